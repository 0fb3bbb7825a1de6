"""How good is a model: worlds with exact answers, calibration against them, skills, statistics."""

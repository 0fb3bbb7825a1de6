"""Released models in and out: formats, weights, tokenizers, conversion."""

"""Families of released checkpoints."""

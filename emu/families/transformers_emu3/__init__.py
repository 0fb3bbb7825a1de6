"""Emu3 as transformers keeps it."""

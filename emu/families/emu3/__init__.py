"""Emu3 as its makers released it."""

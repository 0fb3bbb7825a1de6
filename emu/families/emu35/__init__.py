"""Emu3.5 as its makers released it."""

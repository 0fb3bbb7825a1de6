"""The demo: tokenizers and one transformer trained from nothing on handwritten digits, and everything it can do measured and shown."""

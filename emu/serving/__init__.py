"""Serving: a model behind OpenAI's interface, for many users at once."""

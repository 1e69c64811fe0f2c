"""Experiments: what is seen of them, what is decided, and what is done about it."""

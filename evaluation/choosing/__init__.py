"""Choosing: which way to make a model smaller, before anything is run."""

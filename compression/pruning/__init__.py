"""Pruning methods, one in each file."""

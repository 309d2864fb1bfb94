"""Quantization methods, one a file."""

"""Quantization methods, one in each file."""

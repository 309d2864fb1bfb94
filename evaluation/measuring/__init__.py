"""Measures a model: its predictions, its texts, its speed, its memory. metrics.py declares every figure."""

"""Distillation: a smaller student learns from the model, one method a file."""

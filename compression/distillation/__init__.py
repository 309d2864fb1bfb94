"""Distillation: a smaller student learns from the model. Each method has one file."""

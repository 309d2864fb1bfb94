"""The verbs of `python -m evaluation`, a file each."""

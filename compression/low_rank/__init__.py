"""Low-rank methods, one in each file."""

"""Low-rank methods, one a file."""

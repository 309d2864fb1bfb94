"""Slow, obvious versions of the methods, written from the papers in numpy float64; never from the code they
test. A file a family."""

from tests.oracles import codes, low_rank, pruning, quantization

__all__ = ["codes", "low_rank", "pruning", "quantization"]

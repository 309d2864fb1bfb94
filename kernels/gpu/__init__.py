"""Kernels for graphics cards, in Triton: one op a file, the operands as the references in kernels/ lay them
out.

A launcher takes tensors that lie on the device already and returns y [tokens, out] in x's dtype (float16,
bfloat16 or float32). Every op sums in float32. Importing this package imports no Triton; `python -m
kernels.gpu` compiles what `VARIANTS` lists, which needs no graphics card, and prints what came of it.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, NamedTuple

import kernels

# the files: those that ops name, and the product of int8 by int8, which is a route of grouped integers
FILES = (*dict.fromkeys(op.triton.partition(".")[0] for op in kernels.OPS.values() if op.triton), "int8")


class Variant(NamedTuple):
    """A kernel compiled ahead of time: the types of its pointers (its other arguments are int32) and the
    launch's keywords."""

    kernel: Any
    pointers: dict[str, str]
    keywords: dict


def serves(x) -> bool:
    """Whether these kernels can multiply x: it lies on a card that they are compiled for (sm_80 and later)
    and Triton is there, or Triton interprets."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    if not x.is_cuda or importlib.util.find_spec("triton") is None:
        return False
    import torch

    return torch.cuda.get_device_capability(x.device) >= (8, 0)

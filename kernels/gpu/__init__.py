"""Kernels for graphics cards, in Triton. Each op has one file.

The operands are laid out as the references in kernels/ say. A launcher takes tensors that lie on the device
already, and returns y [tokens, out] in x's dtype (float16, bfloat16 or float32). Every op sums in float32.

Importing this package imports no Triton. `python -m kernels.gpu` compiles every entry of VARIANTS, which
needs no graphics card, and prints the registers and memory that each takes.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, NamedTuple

import kernels

# the files that ops name, and int8.py (int8 times int8), which is a second route of grouped integers
FILES = (*dict.fromkeys(op.triton.partition(".")[0] for op in kernels.OPS.values() if op.triton), "int8")


class Variant(NamedTuple):
    """A kernel that is compiled ahead of time.

    It has the types of the kernel's pointers (the other arguments are int32) and the launch's keywords.
    """

    kernel: Any
    pointers: dict[str, str]
    keywords: dict


def serves(x) -> bool:
    """Whether these kernels can multiply x.

    x must lie on a card that they are compiled for (sm_80 and later) with Triton installed; or Triton runs in
    its interpreter.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    if not x.is_cuda or importlib.util.find_spec("triton") is None:
        return False
    import torch

    return torch.cuda.get_device_capability(x.device) >= (8, 0)

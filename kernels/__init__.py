"""Kernels: how stored formats are multiplied. One op a file, each with its plain PyTorch reference and its CASES.

`OPS[op]` names what serves an op here: C on a processor where there is a kernel and a compiler (kernels/cpu), else
plain PyTorch, which unpacks a block of rows into 32-bit (or the input's own) floats and multiplies it. A whole dense
copy never exists.

Hugging Face publishes a package of the same name, and transformers looks names up in it. This module does no work at
import, has no version, and hands names that it doesn't know to that package if one is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

PYTORCH = {
    "dense": "dense (PyTorch)",
    "grouped_int": "dequantise-then-multiply (PyTorch)",
    "bitmask": "dequantise-then-multiply (PyTorch)",
    "two_four": "dequantise-then-multiply (PyTorch)",
    "low_rank": "two products (PyTorch)",
}
IN_C = {
    "grouped_int": "grouped integers, exact activations (C, {instructions})",
    "low_rank": "two products of 16-bit weights (C, {instructions})",
}


class _Ops(Mapping):
    """op -> the name of what serves it here; asking builds the C kernels if need be."""

    def __getitem__(self, op: str) -> str:
        if op in IN_C:
            from kernels import cpu

            if cpu.library() is not None:
                return IN_C[op].format(instructions=cpu.instructions())
        return PYTORCH[op]

    def __iter__(self):
        return iter(PYTORCH)

    def __len__(self) -> int:
        return len(PYTORCH)


OPS = _Ops()


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    other = _installed()
    if other is None or not hasattr(other, name):
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    return getattr(other, name)


def _installed():
    """The package `kernels` that stands elsewhere on the search path, or None. Loaded under a name of its own."""
    import sys
    from importlib.machinery import PathFinder
    from pathlib import Path

    alias = "_installed_kernels"
    if alias in sys.modules:
        return sys.modules[alias]
    here = Path(__file__).resolve().parent.parent
    elsewhere = [p for p in sys.path if Path(p or ".").resolve() != here]
    spec = PathFinder.find_spec("kernels", elsewhere)
    if spec is None or spec.loader is None:
        return None
    spec = importlib.util.spec_from_file_location(alias, spec.origin, submodule_search_locations=spec.submodule_search_locations)
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    spec.loader.exec_module(module)
    return module

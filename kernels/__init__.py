"""Kernels: how stored formats are multiplied. One op a file, each with its plain PyTorch reference and its
CASES.

    kernels/<op>.py     the formula, the operands' layout, the reference, the PyTorch route
    kernels/cpu/        C for processors: every op from one tile layout, and whole decoder layers in one call
    kernels/gpu/        Triton, one file an op
    kernels/bench.py    verifies, then times

`name(op, ...)` says what serves an op, for labels. Where neither C nor Triton serves, PyTorch unpacks a block
of rows into floats and multiplies it; a whole dense copy never exists.

Hugging Face publishes a package of the same name, and transformers looks names up in it. This module does no
work at import, has no version, and hands names that it doesn't know to that package if one is installed.
"""

from __future__ import annotations

import importlib.util

OPS = {  # op -> what is multiplied, in words
    "dense": "dense weights",
    "grouped_int": "grouped integers",
    "codebook": "4-bit code book",
    "binary_coded": "binary-coded planes",
    "looked_up": "binary-coded planes, sums looked up",
    "bitmask": "bitmask-sparse weights",
    "two_four": "2:4 sparse weights",
    "low_rank": "two thin products",
    "outliers": "sparse outliers",
    "columns": "16-bit columns",
    "tensor_train": "tensor trains",
}
PYTORCH = {  # others unpack first
    "dense": "dense (PyTorch)",
    "low_rank": "two products (PyTorch)",
    "columns": "16-bit columns (PyTorch)",
    "tensor_train": "tensor trains, rebuilt a block at a time (PyTorch)",
}


def name(op: str, by: str = "", int8: bool = False, outliers: bool = False) -> str:
    """A kernel's label, e.g. "grouped integers, int8 activations (C, AVX-512 VNNI)". by: "C, <instructions>",
    "Triton" or "" for PyTorch. outliers: large activations aren't rounded to int8."""
    if not by:
        return PYTORCH.get(op, "dequantise-then-multiply (PyTorch)")
    if op == "two_four" and by == "Triton":
        from kernels.gpu import sparse_cores

        by = ", ".join(filter(None, (by, sparse_cores.label())))
    activations = f"int8 activations{', outliers exact' if outliers else ''}" if int8 else "exact activations"
    return f"{OPS[op]}, {activations} ({by})"


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    other = _installed()
    if other is None or not hasattr(other, name):
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    return getattr(other, name)


def _installed():
    """The package `kernels` that stands elsewhere on the search path, or None. Loaded under a name of its
    own."""
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
    spec = importlib.util.spec_from_file_location(
        alias, spec.origin, submodule_search_locations=spec.submodule_search_locations
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    spec.loader.exec_module(module)
    return module

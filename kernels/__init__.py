"""Kernels multiply an input by weights that are stored in a compressed format.

An op is one such product, e.g. "grouped_int" for weights in integers with a scale for each group. Each op has
one file, with its plain PyTorch reference and its CASES (the shapes that the tests run).

    kernels/<op>.py     the formula, the operands' layout, the reference, the PyTorch route
    kernels/cpu/        C for processors: every op from one tile layout, and whole decoder layers in one call
    kernels/gpu/        Triton for graphics cards, one file an op
    kernels/bench.py    checks every kernel against its reference, then times it

`name(op, ...)` gives the label that the page shows for the kernel of an op. If neither C nor Triton can
multiply, PyTorch unpacks a block of rows into floats and multiplies it; a whole dense copy never exists.

Hugging Face publishes a package that is also called `kernels`, and transformers looks names up in it. So this
module does no work at import and has no version. It passes names that it doesn't know on to that package, if
that package is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import NamedTuple

UNPACKED = "dequantise-then-multiply (PyTorch)"


class Op(NamedTuple):
    """A product, and the names of everything that computes it. A named module is imported when it is used.

    `module` holds `<op>` (the PyTorch route), `<op>_reference` (the formula) and `<op>_examples`. The
    self-test of the C library and the tests run the examples with every kernel. TILES[op] of
    kernels/cpu/plans.py brings an example's operands into tiles.
    """

    title: str  # what is multiplied, for labels
    module: str  # the module that holds the formula
    kinds: tuple[str, ...]  # the kinds of tiles that C decodes for it (kernels/cpu/plan.h)
    triton: str = ""  # "file.function" in kernels/gpu; "": PyTorch multiplies on a card
    pytorch: str = UNPACKED  # the label where PyTorch multiplies
    like: str = ""  # another op that has the same formula and examples


OPS = {
    "dense": Op("dense weights", "kernels.dense", ("F32", "F16", "BF16"), "dense.dense", "dense (PyTorch)"),
    "grouped_int": Op("grouped integers", "kernels.grouped_int", ("INT",), "grouped_int.grouped_int"),
    "codebook": Op("4-bit code book", "kernels.codebook", ("BOOK",), "codebook.codebook"),
    "binary_coded": Op("binary-coded planes", "kernels.binary_coded", ("BITS",), "binary_coded.binary_coded"),
    "looked_up": Op(
        "binary-coded planes, sums looked up",
        "kernels.binary_coded",
        ("LOOK",),
        "binary_coded.looked_up",
        like="binary_coded",
    ),
    "bitmask": Op("bitmask-sparse weights", "kernels.sparse", ("MASK_F16", "MASK_INT"), "sparse.bitmask"),
    "two_four": Op("2:4 sparse weights", "kernels.sparse", ("TWO_F16", "MASK_INT"), "sparse.two_four"),
    "low_rank": Op(
        "two thin products", "kernels.low_rank", ("LOW_RANK",), "dense.low_rank", "two products (PyTorch)"
    ),
    "outliers": Op("sparse outliers", "kernels.outliers", ("OUTLIERS",), "outliers.outliers"),
    "columns": Op(
        "16-bit columns", "kernels.columns", ("COLUMNS",), "columns.columns", "16-bit columns (PyTorch)"
    ),
    "tensor_train": Op(
        "tensor trains",
        "kernels.tensor_train",
        ("TENSOR_TRAIN",),
        pytorch="tensor trains, rebuilt a block at a time (PyTorch)",
    ),
}


def part(op: str, what: str = ""):
    """A function of an op's module: `<op>`, or `<op>_<what>`.

    part("dense") is `dense`, part("dense", "reference") is `dense_reference`; `what` may also be "examples".
    """
    name = f"{OPS[op].like or op}_{what}" if what else op
    return getattr(importlib.import_module(OPS[op].module), name)


def launcher(op: str):
    """The function that multiplies an op with Triton: (x, *operands) -> y."""
    file, name = OPS[op].triton.split(".")
    return getattr(importlib.import_module(f"kernels.gpu.{file}"), name)


def name(op: str, by: str = "", int8: bool = False, outliers: bool = False) -> str:
    """A kernel's label, e.g. "grouped integers, int8 activations (C, AVX-512 VNNI)".

    `by` is "C, <instructions>", "Triton", or "" for PyTorch. With `outliers`, large activations stay exact
    instead of being rounded to int8.
    """
    if not by:
        return OPS[op].pytorch
    if op == "two_four" and by == "Triton":
        from kernels.gpu import sparse_cores

        by = ", ".join(filter(None, (by, sparse_cores.label())))
    activations = f"int8 activations{', outliers exact' if outliers else ''}" if int8 else "exact activations"
    return f"{OPS[op].title}, {activations} ({by})"


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    other = _installed()
    if other is None or not hasattr(other, name):
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    return getattr(other, name)


def _installed():
    """The installed package `kernels`, from elsewhere on the search path; None if there is none.

    It is loaded under a name of its own, `_installed_kernels`.
    """
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
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    spec.loader.exec_module(module)
    return module

"""Formats: how compressed weights are stored. Each format has one file.

A format doesn't know which method made it. `FORMATS` has one entry for each format: its class, and the op
that multiplies it. The op's own entry (kernels.OPS) names the rest: formula, examples, C decode, Triton
kernel and label.

A format's state_dict is its canonical layout: it is what the file holds, and its bytes are counted.
`from_config` makes an empty format on the meta device, and `load_state_dict` fills it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from compression.packed.base import Packed


class Format(NamedTuple):
    """Where a format's class is, and what multiplies its matrices."""

    module: str
    name: str  # of the class
    op: str | None  # its key in kernels.OPS; None: the ops of its parts multiply it


def _own(file: str, name: str, op: str | None) -> Format:
    return Format(f"compression.packed.{file}", name, op)


FORMATS = {  # the keys are the names in configs and files
    "dense": _own("dense", "Dense", "dense"),
    "grouped_int": _own("grouped_int", "GroupedInt", "grouped_int"),
    "affine_int": _own("affine_int", "AffineInt", "grouped_int"),
    "bitmask": _own("bitmask", "Bitmask", "bitmask"),
    "two_four": _own("two_four", "TwoFour", "two_four"),
    "low_rank": _own("low_rank", "LowRank", "low_rank"),
    "codebook": _own("codebook", "CodeBook", "codebook"),
    "binary_coded": _own("binary_coded", "BinaryCoded", "binary_coded"),
    "outliers": _own("outliers", "Outliers", "outliers"),
    "columns": _own("columns", "Columns", "columns"),
    "tensor_train": _own("tensor_train", "TensorTrain", "tensor_train"),
    "sum": _own("sum", "Sum", None),
}


def format_class(name: str) -> type[Packed]:
    entry = FORMATS[name]
    return getattr(importlib.import_module(entry.module), entry.name)


def from_config(config: dict) -> Packed:
    """The empty format that `config` (from `Packed.full_config()`) describes.

    `load_state_dict` fills it.
    """
    packed = format_class(config["format"]).from_config(config)
    if config.get("activations"):
        from compression.packed.activations import ActivationRule

        packed.activations = ActivationRule(**config["activations"])
    return packed

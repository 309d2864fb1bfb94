"""Formats: how compressed weights are stored. One format a file; a format never knows which method made it.

`FORMATS` maps a format's name to its class. `from_config` rebuilds an empty format on the meta device; its
`load_state_dict` fills it. The state_dict is the canonical layout: it is the file and the byte count.
"""

from __future__ import annotations

import importlib

FORMATS = {
    "dense": ("compression.packed.dense", "Dense"),
    "grouped_int": ("compression.packed.grouped_int", "GroupedInt"),
    "affine_int": ("compression.packed.affine_int", "AffineInt"),
    "bitmask": ("compression.packed.bitmask", "Bitmask"),
    "two_four": ("compression.packed.two_four", "TwoFour"),
    "low_rank": ("compression.packed.low_rank", "LowRank"),
    "codebook": ("compression.packed.codebook", "CodeBook"),
    "binary_coded": ("compression.packed.binary_coded", "BinaryCoded"),
    "outliers": ("compression.packed.outliers", "Outliers"),
    "columns": ("compression.packed.columns", "Columns"),
    "tensor_train": ("compression.packed.tensor_train", "TensorTrain"),
    "sum": ("compression.packed.total", "Sum"),
}


def format_class(name: str) -> type:
    module, cls = FORMATS[name]
    return getattr(importlib.import_module(module), cls)


def from_config(config: dict):
    """The empty format that `config` (from `Packed.full_config()`) describes; fill it with
    load_state_dict."""
    packed = format_class(config["format"]).from_config(config)
    if config.get("activations"):
        from compression.packed.activations import ActivationRule

        packed.activations = ActivationRule(**config["activations"])
    return packed

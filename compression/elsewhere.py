"""Writes a config and a tokenizer that transformers 4 and 5 read alike.

Version 5 writes some settings in new places. Version 4 doesn't look there and takes its defaults instead, and
with e.g. another rope_theta it is another model. So these files hold such settings in both places, and each
version reads its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from compression import arch

NEWER = ("backend", "is_local", "local_files_only")  # what version 5 writes about its own way of loading
TOKENIZER = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is, in both


def config(module: nn.Module, dtype: str) -> dict:
    """config.json of a model that is stored in `dtype`."""
    found = module.config.to_diff_dict() | {
        "architectures": [type(module).__name__],
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    rope = found.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = {
            k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")
        }
    row = arch.of(module).rotary
    for name, old in (("rope_theta", row.theta), ("partial_rotary_factor", row.share)) if row else ():
        if name in rope:
            found[name] = rope[name]
            found[old] = rope[name]  # version 4's name, which may differ
    return found


def tokenizer(folder: Path) -> None:
    """Rewrite tokenizer_config.json of a folder that holds a tokenizer.json."""
    file = folder / "tokenizer_config.json"
    if not file.is_file() or not (folder / "tokenizer.json").is_file():
        return
    found = {k: v for k, v in json.loads(file.read_text("utf-8")).items() if k not in NEWER} | {
        "tokenizer_class": TOKENIZER
    }
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    write(file, found)


def write(file: Path, content: dict) -> None:
    """Write a JSON file. Raises ValueError for infinity and NaN, which JSON doesn't have."""
    file.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )

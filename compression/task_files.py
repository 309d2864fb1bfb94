"""Task files: the scales of a rounded model, swapped in place while the model's integers stay.

    from compression import artifact, sample, task_files

    bundle = artifact.load("a-folder-of-peqa")
    task_files.load(bundle, "another-folder/task.safetensors")
    print(sample.complete(bundle, "..."))

The file is safetensors. Under the path of each linear it has the linear's scales, float16 [out, groups]. Its
metadata has the hash of the codes and zero points that the scales were trained on. Scales on other codes
would give a broken model, so a file with another hash is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from compression import engine
from compression.base import CompressionError
from compression.bundle import Bundle
from compression.packed.grouped_int import GroupedInt
from compression.packed.linear import CompressedLinear

# the metadata has a single key, since safetensors writes several in any order
FILE, ABOUT = "task.safetensors", "codes"


class TaskRefused(CompressionError):
    """A task file that doesn't belong to this model."""

    code = "task_refused"


def codes_hash(linears: Mapping[str, GroupedInt]) -> str:
    """Hash of everything that scales multiply: paths, shapes, bits, groups, codes and zero points."""
    digest = hashlib.sha256()
    for path, packed in sorted(linears.items()):
        grid = packed.grid
        digest.update(f"{path} {packed.shape} {grid.bits} {grid.group_size} {grid.zero is None}\n".encode())
        for tensor in (packed.codes, grid.zero, grid.group_index):
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode(linears: Mapping[str, GroupedInt]) -> bytes:
    """The task file of these linears, path -> stored form."""
    scales = {path: packed.grid.scale.cpu() for path, packed in linears.items()}
    return save(scales, metadata={ABOUT: codes_hash(linears)})


def rounded_linears(bundle: Bundle) -> dict[str, GroupedInt]:
    """The model's linears that are grouped integers, by path."""
    found = {p: m.packed for p, m in bundle.module.named_modules() if isinstance(m, CompressedLinear)}
    return {p: packed for p, packed in found.items() if isinstance(packed, GroupedInt)}


def load(bundle: Bundle, file: Path | str) -> None:
    """Put a task's scales into the model, in place.

    Raises TaskRefused if the file belongs to other codes, or is no task file; the model is then unchanged.
    """
    file, linears = Path(file), rounded_linears(bundle)
    if any(packed.prepared for packed in linears.values()):
        raise TaskRefused(
            f"this model serves already and keeps no codes to compare with {file.name}; load it again and "
            "give it the task first",
            code="task_served",
            name=file.name,
        )
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            paths = opened.keys()
            scales = {path: opened.get_tensor(path) for path in paths}
    except (OSError, SafetensorError) as error:
        raise TaskRefused(f"{file.name} can't be read: {error}", name=file.name) from None
    if ABOUT not in about:
        raise TaskRefused(f"{file.name} is no task file", name=file.name)
    tuned = {path: packed for path, packed in linears.items() if path in scales}
    if set(scales) != set(tuned) or about[ABOUT] != codes_hash(tuned):
        raise TaskRefused(
            f"{file.name} belongs to other integers: it was trained on another model, or with other bits or "
            "groups. Give a task of this one.",
            name=file.name,
        )
    for path, packed in tuned.items():
        # copied in place; tiles that were made from the old scales are dropped
        packed.load_state_dict({"grid.scale": scales[path]}, strict=False)
    engine.forget(bundle)

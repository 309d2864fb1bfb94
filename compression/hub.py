"""Downloads models from the hub into the hub's own cache.

Before anything large is downloaded, the list of files and the config give the model's sizes. Only files that
`load` reads are downloaded: the config, the tokenizer, the licence, and safetensors named model*. No torch.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compression import configs, headers
from compression.base import CompressionError, ModelUnavailable
from compression.bundle import Geometry
from compression.catalogue import unknown
from compression.folder import JSON_BYTES, Folder

TIMEOUT_SECONDS = 5
KEEP = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.model",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
READERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # a folder with a tokenizer has one of them

Emit = Callable[[dict], None]


@dataclass(frozen=True)
class Offer:
    """What the hub has of a model."""

    revision: str
    files: dict[str, int]  # name -> bytes, of the files that would be downloaded
    geometry: Geometry


def is_id(name: str) -> bool:
    """True for a name owner/name that the hub allows: at most 96 letters, digits, '-', '_' and '.'."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and name.isascii()


def offline() -> bool:
    """Whether the hub must not be asked."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def fetch(repo: str, emit: Emit) -> Path:
    """The folder of a model in the hub's cache; it is downloaded if it isn't there.

    Raises ModelUnavailable or UnsupportedModel.
    """
    if folder := cached(repo):
        return folder
    offer = ask(repo)
    size = sum(offer.files.values())
    _check_room(repo, size)
    return _in_our_words(repo, lambda: _download(repo, offer.revision, offer.files, emit))


def ask(repo: str) -> Offer:
    """What the hub has of a model, from its list of files and its config.

    Raises ModelUnavailable or UnsupportedModel.
    """
    return _in_our_words(repo, lambda: _ask(repo))


def _ask(repo: str) -> Offer:
    from huggingface_hub import HfApi

    if offline():
        raise _unreachable(repo)
    api = HfApi()
    info = api.model_info(repo, files_metadata=True, timeout=TIMEOUT_SECONDS)
    if info.gated and not _may_read(api, repo):
        raise _gated(repo)
    info = _with_safetensors(api, repo, info)
    listed = {s.rfilename: s.size or 0 for s in info.siblings}
    if "adapter_config.json" in listed:
        raise ModelUnavailable(
            f"{repo} is an adapter (adapter_config.json), which changes another model; give a whole model",
            code="adapter_folder",
            name=repo,
            file="adapter_config.json",
        )
    files = {name: size for name, size in listed.items() if _wanted(name, whole=headers.SINGLE in listed)}
    if headers.SINGLE not in files and headers.INDEX not in files:
        raise headers.nothing_to_read(repo, listed)
    geometry = _geometry(api, repo, info.sha, listed)
    return Offer(info.sha, files, geometry)


def _geometry(api, repo: str, revision: str, listed: dict[str, int]) -> Geometry:
    """The sizes that the repository's config describes.

    An unsupported or odd config is refused before anything else is downloaded.
    """
    if configs.CONFIG not in listed:
        raise ModelUnavailable(
            f"{repo} has no config.json, so its architecture is unknown", code="no_config", name=repo
        )
    if listed[configs.CONFIG] > JSON_BYTES:
        raise ModelUnavailable(
            f"{repo} has a config.json of {listed[configs.CONFIG]} bytes; at most {JSON_BYTES} are read",
            code="file_too_big",
            name=repo,
            file=configs.CONFIG,
            bytes=listed[configs.CONFIG],
            limit=JSON_BYTES,
        )
    file = Path(api.hf_hub_download(repo, configs.CONFIG, revision=revision))
    return configs.read(Folder(file.parent, repo)).geometry


def _in_our_words(repo: str, do: Callable):
    """Run `do`, and turn the errors of the hub's library into ModelUnavailable."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return do()
    except CompressionError:
        raise
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


def _wanted(file: str, whole: bool) -> bool:
    """Whether a repository's file is downloaded.

    whole: one file holds all weights, so the shards that hold the same weights are left out.
    """
    if "/" in file:
        return False
    weights = (
        file == headers.SINGLE if whole else file == headers.INDEX or bool(headers.SHARD.fullmatch(file))
    )
    return weights or any(map(Path(file).match, KEEP))


def cached(repo: str) -> Path | None:
    """The newest complete snapshot in the hub's cache, or None.

    It has the config, the tokenizer, and every file that holds weights.
    """
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots"
    for path in sorted(snapshots.glob("*"), key=lambda f: f.stat().st_mtime, reverse=True):
        folder = Folder(path, repo)
        try:
            files, _ = headers.weight_files(folder)
            if (
                (path / configs.CONFIG).is_file()
                and all((path / f).is_file() for f in files)
                and any((path / r).is_file() for r in READERS)
            ):
                return path
        except (ModelUnavailable, OSError):
            continue  # a download that didn't finish
    return None


def _with_safetensors(api, repo: str, info):
    """The revision that has safetensors: main, or the hub's own conversion waiting as a pull request."""
    if any(s.rfilename.endswith(".safetensors") for s in info.siblings):
        return info
    for talk in api.get_repo_discussions(repo, discussion_type="pull_request"):
        if talk.author == "SFconvertbot" and "safetensors" in talk.title.lower() and talk.status != "closed":
            return api.model_info(
                repo, revision=f"refs/pr/{talk.num}", files_metadata=True, timeout=TIMEOUT_SECONDS
            )
    return info


def _may_read(api, repo: str) -> bool:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        api.auth_check(repo)
        return True
    except (GatedRepoError, HfHubHTTPError):
        return False


def _check_room(repo: str, size: int) -> None:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size * 1.1:
        raise ModelUnavailable(
            f"{repo} takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on this disk; free "
            "some space",
            code="no_room",
            name=repo,
            need_bytes=size,
            free_bytes=free,
        )


def _download(repo: str, revision: str, files: dict[str, int], emit: Emit) -> Path:
    """Download `files` (name -> bytes) of one revision, and report the progress twice a second."""
    from huggingface_hub import constants, snapshot_download

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    total, before, done = sum(files.values()), _bytes_in(blobs), threading.Event()

    def watch():
        while not done.wait(0.5):
            have = min(total, _bytes_in(blobs) - before)
            emit(
                {"stage": "download", "done": have, "total": total, "facts": {"model": repo, "bytes": total}}
            )

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
        except FileNotFoundError:  # it was renamed after it was listed
            time.sleep(0)
    return total


def _gated(repo: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{repo} is gated: accept its terms on its page, then log in (`hf auth login`, or set "
        "HF_TOKEN) and try again",
        code="gated_model",
        name=repo,
    )


def _unreachable(repo: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"the model hub can't be reached, and {repo} is not on this disk; check the network, or "
        "choose the offline model",
        code="hub_unreachable",
        name=repo,
    )

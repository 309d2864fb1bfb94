"""The program's folder on this disk: where it is, how things are written there, and what the dead left
behind.

    with whole(folder) as temporary:      # a neighbour `.name~1a2b3c4d`, which becomes `folder` if all went
                                          well
        ...
    write(file, b"...")                   # the same for one file
    with held(folder): ...                # in use: whoever makes room leaves it alone
    sweep(home())                         # what nobody holds any more

Whoever writes or reads holds the file lock (flock) of that very folder or file. The system frees it when a
process ends, however that comes about: what is hidden and not locked is left over. Where a file system has no
such locks, age decides (a day).

A home that can't be written gives way to a temporary one (`why_temporary` says why), which begins with what
the other one has and ends with this process. It stands here, on the lowest floor, because the kernels are
built there too. No import of anything slow.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without file locks: age decides
    fcntl = None  # type: ignore[assignment]  # to mypy the name is that module alone

VARIABLE = "COMPRESSION_EXPLORER_HOME"
# what can't be locked, or was written by an older version, is left over after a day
LEFT_OVER_SECONDS = 86_400
WAIT_SECONDS = 2  # for a lock
OURS = "compression-explorer-home-"  # how temporary homes are called
PROBE_BYTES = 65_536  # a home with less room than this can't be used
# of a home that can only be read: used where they are
SHARED = ("models", "artifacts", "kernels", "packages")
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
log = logging.getLogger(__name__)
_MARK = re.compile(r"\..*~[0-9a-f]{8}")
_OLD_MARKS = {
    "": r"\.(.+\.[0-9a-f]{8}|probe\..+|build-.+)",
    "downloads": r".+\.part|tmp\w{8}",
}  # folder ("": any) -> names of older versions
_replaced: dict[Path, str] = {}  # temporary home -> why
_claims: dict[Path, tuple[str, int | None]] = {}  # home -> (this process's name there, the open file)
_claiming = threading.Lock()


# --- where it is ---


def home() -> Path:
    """Where models, results, artifacts and kernels live: $COMPRESSION_EXPLORER_HOME or
    ~/.cache/compression-explorer, or a temporary folder where that can't be written. Processes that this one
    starts find the same. Raises OSError if there is no place at all."""
    try:
        wanted = (
            Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "compression-explorer")
            .expanduser()
            .absolute()
        )
    except RuntimeError:  # this user has no home
        wanted = Path("/nonexistent/compression-explorer")
    found = usable(wanted)
    if os.environ.get(VARIABLE) != str(found):
        os.environ[VARIABLE] = str(found)
    return found


@functools.cache
def usable(wanted: Path) -> Path:
    """`wanted`, made if need be, or a temporary folder if it can't be written."""
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with _neighbour(wanted / "probe", folder=False) as probe:
            probe.write_bytes(bytes(PROBE_BYTES))
        return wanted
    except OSError as error:
        return _temporary(wanted, error)


def why_temporary(folder: Path) -> str:
    """Why a home is a temporary one ("Read-only file system"), "" for an ordinary one."""
    return _replaced.get(Path(folder), "")


def _temporary(wanted: Path, why: OSError) -> Path:
    try:
        place, lock = _owned(lambda: Path(tempfile.mkdtemp(prefix=OURS)))
    except OSError as error:
        raise OSError(
            error.errno,
            f"neither {wanted} nor a temporary folder can be written ({why.strerror}; {error}); "
            f"set {VARIABLE} to a folder that can",
        ) from None
    log.warning(
        "%s can't be written (%s): models and results are kept in %s and removed when this program "
        "ends; set %s to a folder "
        "that can be written",
        wanted,
        why.strerror or why,
        place,
        VARIABLE,
    )
    _replaced[place] = why.strerror or type(why).__name__
    atexit.register(_remove, place, lock, os.getpid())
    for name in SHARED:
        (place / name).mkdir()
        with contextlib.suppress(OSError):
            for thing in (wanted / name).iterdir():
                if not thing.name.startswith("."):
                    (place / name / thing.name).symlink_to(thing)
    with contextlib.suppress(OSError):
        shutil.copytree(wanted / "runs", place / "runs", ignore=shutil.ignore_patterns(".*"))
    return place


def _remove(place: Path, lock: int | None, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(place, ignore_errors=True)
        _unlock(lock)


# --- writing and reading ---


@contextlib.contextmanager
def whole(target: Path | str, *, replace: bool = True) -> Iterator[Path]:
    """A temporary neighbour folder to write to, which becomes `target` if all went well; in place of what was
    there, or, without `replace`, only if nothing is there."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _neighbour(target, folder=True) as temporary:
        yield temporary
        settle(temporary, target, replace)


def settle(folder: Path, target: Path, replace: bool = True) -> None:
    """Give a finished folder its name; what was there goes, or, without `replace`, stays."""
    for _ in range(10):  # another process may put its own there between two steps
        aside = _hidden(target)
        with contextlib.suppress(FileNotFoundError):
            if not replace and target.exists():
                return
            target.rename(aside)
        try:
            os.rename(folder, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        finally:
            _left_over(aside)
    raise FileExistsError(errno.EEXIST, "another process keeps writing this folder", str(target))


@contextlib.contextmanager
def whole_file(target: Path | str) -> Iterator[Path]:
    """The same for a file: a temporary neighbour, which takes the place of `target` if all went well."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _neighbour(target, folder=False) as temporary:
        yield temporary
        os.replace(temporary, target)


def write(target: Path | str, content: bytes) -> None:
    """A file's new content, whole or not at all. Raises OSError."""
    with whole_file(target) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def scratch(place: Path | str) -> Iterator[Path]:
    """A folder in `place` for what is needed on the way; it is gone afterwards."""
    place = Path(place)
    place.mkdir(parents=True, exist_ok=True)
    with _neighbour(place / "scratch", folder=True) as folder:
        yield folder


@contextlib.contextmanager
def _neighbour(target: Path, folder: bool) -> Iterator[Path]:
    """An empty hidden folder or file beside `target`, locked; removed at the end unless it was renamed."""

    def make() -> Path:
        path = _hidden(target)
        path.mkdir() if folder else os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        return path

    path, lock = _owned(make)
    try:
        yield path
    finally:
        if lock is None or _same(lock, path):
            shutil.rmtree(path, ignore_errors=True) if folder else path.unlink(missing_ok=True)
        _unlock(lock)


def _hidden(target: Path) -> Path:
    return target.with_name(f".{target.name[:40]}~{uuid.uuid4().hex[:8]}")


def _owned(make: Callable[[], Path]) -> tuple[Path, int | None]:
    """A new folder or file and its lock; made again if somebody took it for left over before it was
    locked."""
    while True:
        path = make()
        lock = _locked(path)
        if path.exists() and (lock is None or _same(lock, path)):
            return path, lock
        _unlock(lock)


@contextlib.contextmanager
def held(path: Path | str) -> Iterator[None]:
    """While it lasts nobody makes room by removing this folder. It need not exist."""
    lock = _locked(path, shared=True)
    try:
        yield
    finally:
        _unlock(lock)


def remove_unused(path: Path) -> bool:
    """Remove a folder that nobody holds; True if it is gone."""
    with _sole(path) as sole:
        if sole:
            shutil.rmtree(path, ignore_errors=True)
    return bool(sole)


# --- who lives ---


def claim(place: Path) -> str:
    """The name under which this process lives in a home; `alive` tells others as long as it does."""
    with _claiming:
        if place not in _claims:
            folder = place / "live"
            folder.mkdir(parents=True, exist_ok=True)

            def make() -> Path:
                file = folder / uuid.uuid4().hex[:12]
                file.write_text(f"{os.getpid()} {_started(os.getpid())}", "utf-8")
                return file

            file, lock = _owned(make)
            _claims[place] = file.name, lock
            atexit.register(file.unlink, missing_ok=True)
        return _claims[place][0]


def alive(place: Path, name: str) -> bool:
    """Whether the process that claimed this name still runs."""
    if not re.fullmatch(r"[0-9a-f]{12}", name):
        return False
    file = place / "live" / name
    if name == _claims.get(place, ("",))[0]:
        return True
    with _sole(file, by_age=False) as sole:
        if sole is not None:
            return not sole
    try:  # no locks here: the process's number and the moment of its start
        number, started = file.read_text("utf-8").split()
        return _started(int(number)) == started
    except (OSError, ValueError):
        return False


def _started(process: int) -> str:
    """When a process started, as the system counts; "" if there is none."""
    import psutil

    try:
        return str(psutil.Process(process).create_time())
    except psutil.Error:
        return ""


# --- what is left over ---


def sweep(place: Path) -> list[str]:
    """Remove what dead processes left in a home, and their temporary homes. Returns the removed names."""
    removed = []
    for folder in [
        place,
        *(f for f in _listed(place) if f.is_dir() and not f.is_symlink() and not f.name.startswith(".")),
    ]:
        old = re.compile("|".join(names for where, names in _OLD_MARKS.items() if where in ("", folder.name)))
        for path in _listed(folder):
            outlived = (old.fullmatch(path.name) or _unfinished(path)) and _age(path) > LEFT_OVER_SECONDS
            if (_MARK.fullmatch(path.name) or outlived) and _left_over(path):
                removed.append(path.name)
    for file in _listed(place / "live"):
        if not alive(place, file.name):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob(f"{OURS}*"):
            if path.stat().st_uid == os.getuid() and _left_over(path):
                removed.append(path.name)
    return removed


def _unfinished(path: Path) -> bool:
    """A baseline without its index, as older versions left them."""
    return path.parent.name == "baselines" and path.is_dir() and not (path / "index.json").is_file()


def _left_over(path: Path) -> bool:
    """True if nobody held it: then it is gone now."""
    with _sole(path) as sole:
        if sole:
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return bool(sole) and not path.exists()


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


# --- locks ---


def _locked(path: Path | str, shared: bool = False) -> int | None:
    """An open file that holds the lock of a folder or file until it is closed; None where there are no locks
    (or no such file)."""
    if fcntl is None:
        return None
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(opened, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return opened
        except OSError as error:
            if error.errno not in _TAKEN or time.monotonic() > end:
                os.close(opened)
                return None
            time.sleep(0.01)  # whoever looks whether it is left over lets go at once


@contextlib.contextmanager
def _sole(path: Path, by_age: bool = True) -> Iterator[bool | None]:
    """True if nobody else holds `path`, and nobody can take it meanwhile. Where locks can't tell: by age, or
    None."""
    unknown = _age(path) > LEFT_OVER_SECONDS if by_age else None
    if fcntl is None:
        yield unknown
        return
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        yield True if error.errno == errno.ENOENT else unknown
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except OSError as error:
        yield False if error.errno in _TAKEN else unknown
    finally:
        os.close(opened)


def _same(opened: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(opened), os.stat(path))
    except OSError:
        return False


def _unlock(opened: int | None) -> None:
    if opened is not None:
        os.close(opened)

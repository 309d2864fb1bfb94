"""The program's folder on this disk: where it is, how files are written there, and how leftovers are removed.

    with whole(folder) as temporary:      # a neighbour folder `.name~1a2b3c4d`
        ...                               # after a success it is renamed to `folder`
    write(file, b"...")                   # the same for one file
    with held(folder): ...                # in use: nobody removes it to make room
    sweep(home())                         # removes what dead processes left

A process that writes or reads a folder or file holds a file lock (flock) on it. The system frees the lock
when the process ends, however it ends. So a hidden neighbour without a lock is a leftover. If a file system
has no such locks, age decides: a hidden neighbour that is older than a day is a leftover.

If the home can't be written, a temporary one takes its place (`why_temporary` says why). It starts with the
contents of the home that can only be read, and ends with this process.

This file stands on the lowest floor because the kernels are built in the home too. It imports nothing slow.
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
# seconds after which something counts as left over, if it can't be locked or an older version wrote it
LEFT_OVER_SECONDS = 86_400
WAIT_SECONDS = 2  # how long to wait for a lock
OURS = "compression-explorer-home-"  # what the names of temporary homes begin with
PROBE_BYTES = 65_536  # a home with less room than this can't be used
# folders of a read-only home that are used where they are
SHARED = ("models", "artifacts", "kernels", "packages")
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
log = logging.getLogger(__name__)
_MARK = re.compile(r"\..*~[0-9a-f]{8}")
_OLD_MARKS = {
    "": r"\.(.+\.[0-9a-f]{8}|probe\..+|build-.+)",
    "downloads": r".+\.part|tmp\w{8}",
}  # folder ("": any) -> patterns of names that older versions used
_replaced: dict[Path, str] = {}  # temporary home -> why
_claims: dict[Path, tuple[str, int | None]] = {}  # home -> (this process's name there, the open file)
_claiming = threading.Lock()


# --- where it is ---


def home() -> Path:
    """The folder where models, results, artifacts and kernels live.

    It is $COMPRESSION_EXPLORER_HOME or ~/.cache/compression-explorer; or a temporary folder if that can't be
    written. Processes that this one starts find the same folder. Raises OSError if no folder can be written.
    """
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
    """`wanted`, which is made if it doesn't exist; or a temporary folder if it can't be written."""
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with _neighbour(wanted / "probe", folder=False) as probe:
            probe.write_bytes(bytes(PROBE_BYTES))
        return wanted
    except OSError as error:
        return _temporary(wanted, error)


def why_temporary(folder: Path) -> str:
    """Why a home is a temporary one, e.g. "Read-only file system"; "" for an ordinary home."""
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
        "%s can't be written (%s): models and results are kept in %s and removed when this program ends; set "
        "%s to a folder that can be written",
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
    """A temporary neighbour folder to write to, which becomes `target` if all went well.

    It replaces an existing `target`. With replace=False an existing `target` stays, and the new folder goes.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _neighbour(target, folder=True) as temporary:
        yield temporary
        put_in_place(temporary, target, replace)


def put_in_place(folder: Path, target: Path, replace: bool = True) -> None:
    """Give a finished folder its name. A folder of that name is replaced, or stays without `replace`."""
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
    """A temporary neighbour file to write to, which replaces `target` if all went well."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _neighbour(target, folder=False) as temporary:
        yield temporary
        os.replace(temporary, target)


def write(target: Path | str, content: bytes) -> None:
    """Write a file's new content, whole or not at all. Raises OSError."""
    with whole_file(target) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def scratch(place: Path | str) -> Iterator[Path]:
    """A folder in `place` for intermediate files; it is removed afterwards."""
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
    """A new folder or file and its lock.

    Before it is locked, another process may remove it as a leftover; then it is made again.
    """
    while True:
        path = make()
        lock = _locked(path)
        if path.exists() and (lock is None or _same(lock, path)):
            return path, lock
        _unlock(lock)


@contextlib.contextmanager
def held(path: Path | str) -> Iterator[None]:
    """As long as this lasts, nobody removes this folder to make room. It need not exist."""
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
    """Give this process a name in a home; `alive` tells other processes whether it still runs."""
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
    try:  # no locks here: compare the process's number and the moment of its start
        number, started = file.read_text("utf-8").split()
        return _started(int(number)) == started
    except (OSError, ValueError):
        return False


def _started(process: int) -> str:
    """When a process started, as the system counts; "" if there is no such process."""
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
    """Whether this is a baseline without its index, as older versions left them."""
    return path.parent.name == "baselines" and path.is_dir() and not (path / "index.json").is_file()


def _left_over(path: Path) -> bool:
    """Remove `path` if it is a leftover, which nobody holds. Returns True if it was one."""
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
    """An open file that holds the lock of a folder or file until it is closed.

    None if there are no locks, or no such file.
    """
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
            time.sleep(0.01)  # a process that only checks for leftovers lets go at once


@contextlib.contextmanager
def _sole(path: Path, by_age: bool = True) -> Iterator[bool | None]:
    """True if nobody else holds `path`; nobody can take it meanwhile.

    Where locks can't tell, age decides; or, without `by_age`, the answer is None.
    """
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

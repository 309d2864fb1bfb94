"""This machine: its name for timings, what it can do (for estimates), and the lock that timings hold.

No torch at import: the page reads this at start.
"""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compression.base import CompressionError
from evaluation import limits
from kernels.cpu import processor
from kernels.home import home, write

LATENCY_WAIT_SECONDS = 30
_measuring = threading.Lock()  # two measurements side by side would both be too slow


@dataclass(frozen=True)
class Host:
    """The speed of a machine, for estimates."""

    processor: str
    threads: int
    gflops: float  # float32 matrix product
    gbytes_per_second: float  # reading memory
    memory_bytes: int


def threads() -> int:
    """Processor cores that this process may use."""
    return limits.processors()


def device(asked: str = "auto") -> str:
    """ "cpu" or "cuda": where runs compute and the chat answers.

    asked: "cpu", "cuda", or "auto" for a card if there is one. Raises CompressionError if a card is asked for
    and there is none.
    """
    import torch

    card = torch.cuda.is_available()
    if asked == "cuda" and not card:
        raise CompressionError(
            "device = 'cuda', but PyTorch sees no GPU here; use --device cpu", code="no_gpu"
        )
    return asked if asked != "auto" else "cuda" if card else "cpu"


def available_bytes() -> int:
    """Memory that a new process could use now."""
    return limits.available_bytes()


def profile(again: bool = False) -> Host:
    """This machine's speed, measured in under a second and remembered.

    `again` measures anew and keeps the better figures: a measurement while something else computes is too
    slow, never too fast.
    """
    with _measuring:
        return _profile(again)


def _profile(again: bool) -> Host:
    file = home() / "host.json"
    name, cores = processor(), threads()
    stored = _remembered(file)
    if stored is not None and (stored.processor, stored.threads) != (name, cores):
        stored = None
    if stored and not again:
        return stored
    speed, bandwidth = _gflops(), _gbytes_per_second()
    if stored:
        speed, bandwidth = max(speed, stored.gflops), max(bandwidth, stored.gbytes_per_second)
    host = Host(name, cores, speed, bandwidth, limits.memory_bytes())
    try:
        write(file, json.dumps(asdict(host)).encode())
    except OSError:
        pass  # a full disk: it is measured again next time
    return host


def _remembered(file: Path) -> Host | None:
    """What an earlier measurement left in a file; None if the file holds nothing of that kind."""
    try:
        host = Host(**json.loads(file.read_text("utf-8")))
        numbers = host.gflops, host.gbytes_per_second, host.memory_bytes
        return host if all(type(n) in (int, float) and 0 < n < 1e18 for n in numbers) else None
    except (OSError, ValueError, TypeError):
        return None


def pace() -> float:
    """How long runs take on this machine, as a multiple of the plan: 0.1 to 10; 1 before the first run."""
    try:
        known = float((home() / "pace.txt").read_text("utf-8"))
    except (OSError, ValueError):
        return 1.0
    return known if 0.1 <= known <= 10 else 1.0


def learn(planned_seconds: float, actual_seconds: float) -> None:
    """Move the pace half way to what a run that has ended showed."""
    known = pace()
    shown = known * actual_seconds / planned_seconds
    try:
        write(home() / "pace.txt", f"{min(max(math.sqrt(known * shown), 0.1), 10):.3f}".encode())
    except OSError:
        pass  # the disk is full: the pace stays as it was


def _best(work, seconds: float = 0.25) -> float:
    """The shortest time of as many tries as fit into `seconds`, at least three."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _gflops() -> float:
    import numpy

    a = numpy.ones((768, 768), numpy.float32)
    return 2 * 768**3 / _best(lambda: a @ a) / 1e9


def _gbytes_per_second() -> float:
    import numpy

    a = numpy.ones(16_000_000, numpy.float32)
    return a.nbytes / _best(lambda: a.sum()) / 1e9


def environment() -> dict:
    """Versions and processor for a result; no paths, no names of people or machines."""
    versions = {}
    for package in ("torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "threads": threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


# the share of its time that a process may wait for a processor before a timing counts as disturbed
WAITED = 0.1


class Watch:
    """Tells whether other programs took the processors away while something was timed.

    The system counts how long this process's threads wanted to compute and had to wait (schedstat, Linux).
    """

    def __init__(self):
        self._ran, self._waited = _scheduled()

    def waited(self) -> float:
        """The share of the time since this watch began that threads waited; 0.0 if the system doesn't say."""
        ran, waited = _scheduled()
        ran, waited = max(0, ran - self._ran), max(0, waited - self._waited)
        return waited / (ran + waited) if ran + waited else 0.0


def _scheduled() -> tuple[int, int]:
    """(nanoseconds that this process's threads ran, and that they waited for a processor)."""
    ran = waited = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            own, queued, _ = map(int, file.read_text().split())
        except (OSError, ValueError):  # a thread that has just ended
            continue
        ran, waited = ran + own, waited + queued
    return ran, waited


@contextmanager
def timing_lock(wait_seconds: float = LATENCY_WAIT_SECONDS):
    """Hold the machine for a timing.

    Yields False if somebody else still computes after the wait, or if nobody can tell.
    """
    lock = _acquired(wait_seconds)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def _acquired(wait_seconds: float):
    """The lock that all timings of this home share; None if somebody else holds it, or if there is none.

    If the home has no such lock (a full disk, a file system without locks), it is one in the temporary
    folder.
    """
    from filelock import FileLock, Timeout

    for file in (
        home() / "timing.lock",
        Path(tempfile.gettempdir()) / f"compression-explorer-{_user()}.lock",
    ):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(file)
            lock.acquire(timeout=wait_seconds)
            return lock
        except Timeout:
            return None
        except (OSError, NotImplementedError):
            continue
    return None


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0

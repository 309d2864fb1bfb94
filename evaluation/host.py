"""This machine: its name for timings, what it can do (for estimates), and the lock that timings hold.

No torch at import: the page reads this at start.
"""

from __future__ import annotations

import json
import math
import os
import platform
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from compression.models import home
from kernels.cpu import processor

LATENCY_WAIT_SECONDS = 30
_measuring = threading.Lock()  # two measurements side by side would both be too slow


@dataclass(frozen=True)
class Host:
    """What an estimate needs to know about a machine."""

    processor: str
    threads: int
    gflops: float  # float32 matrix product
    gbytes_per_second: float  # reading memory
    memory_bytes: int


def threads() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int:
    """Memory that a new process could use now."""
    import psutil

    return psutil.virtual_memory().available


def profile(again: bool = False) -> Host:
    """This machine's speed, measured in under a second and remembered; `again` measures anew and keeps the better figures
    (a measurement while something else computes is too slow, never too fast)."""
    with _measuring:
        return _profile(again)


def _profile(again: bool) -> Host:
    file = home() / "host.json"
    name, cores = processor(), threads()
    stored = None
    if file.is_file():
        try:
            stored = Host(**json.loads(file.read_text("utf-8")))
        except (ValueError, TypeError):
            pass
    known = stored is not None and (stored.processor, stored.threads) == (name, cores)
    if known and not again:
        return stored
    import psutil

    speed, bandwidth = _gflops(), _gbytes_per_second()
    if known:
        speed, bandwidth = max(speed, stored.gflops), max(bandwidth, stored.gbytes_per_second)
    host = Host(name, cores, speed, bandwidth, psutil.virtual_memory().total)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(host)), "utf-8")
    except OSError:
        pass  # a read-only store measures again next time
    return host


def pace() -> float:
    """How much longer runs have taken on this machine than planned; 1 before the first run."""
    try:
        return float((home() / "pace.txt").read_text("utf-8"))
    except (OSError, ValueError):
        return 1.0


def learn(planned_seconds: float, actual_seconds: float) -> None:
    """Correct the pace by a run that has ended: half way to what it showed."""
    known = pace()
    shown = known * actual_seconds / planned_seconds
    try:
        (home() / "pace.txt").write_text(f"{min(max(math.sqrt(known * shown), 0.1), 10):.3f}", "utf-8")
    except OSError:
        pass  # a read-only store learns nothing


def _best(work, seconds: float = 0.25) -> float:
    """The shortest of as many tries as fit into `seconds`, at least three."""
    times, begin = [], time.perf_counter()
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
    return {"processor": processor(), "threads": threads(), "system": platform.system(),
            "python": platform.python_version(), **versions}  # fmt: skip


@contextmanager
def timing_lock(wait_seconds: float = LATENCY_WAIT_SECONDS):
    """Hold the machine for a timing; yields False if somebody else still computes after the wait."""
    from filelock import FileLock, Timeout

    home().mkdir(parents=True, exist_ok=True)
    lock = FileLock(home() / "timing.lock")
    try:
        lock.acquire(timeout=wait_seconds)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()

"""How much memory and how many processors this process may really use.

Control groups (containers), resource limits and the machine itself set limits, and the least of them counts.
A control group limits its members and all groups below it, so every group above this process is read. Version
2 of control groups keeps them in one tree (memory.max, memory.current, cpu.max). Version 1 has one tree for
each controller (memory.limit_in_bytes, cpu.cfs_quota_us). Inside a container the tree often begins at the
container's own group, whatever /proc/self/cgroup calls that group.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

PROC, TREE = Path("/proc"), Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60  # version 1 writes the largest number that fits where there is no limit


def memory_bytes() -> int:
    """Memory that this process may use in all."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory()), *_address_space()])


def available_bytes() -> int:
    """Memory that a new process beside this one could use now."""
    import psutil

    return max(
        0,
        min(
            [
                psutil.virtual_memory().available,
                *(limit - used for limit, used in _memory()),
                *_address_space(),
            ]
        ),
    )


def processors() -> int:
    """Processors that this process may use.

    They are those it may run on, or as many as its groups' share of time is worth, if that is less.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(share) for share in _shares())]))


def oom_kills() -> int | None:
    """How many processes the system has ended because memory ran out; None where it doesn't say.

    It counts those of this process's groups, or else of the whole machine.
    """
    files = [
        folder / file for folder in _groups("memory") for file in ("memory.events", "memory.oom_control")
    ]
    counts = [n for file in (*files, PROC / "vmstat") if (n := _named(file, "oom_kill")) is not None]
    return sum(counts) if counts else None


def _memory() -> Iterator[tuple[int, int]]:
    """(limit, used) of every group above this process that limits memory.

    Files that the system only keeps in memory for later don't count as used.
    """
    for folder in _groups("memory"):
        for limit_file, used_file, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(folder / limit_file), _number(folder / used_file)
            if limit is not None and limit < NO_LIMIT:
                yield limit, max(0, (used or 0) - (_named(folder / "memory.stat", cached) or 0))


def _shares() -> Iterator[float]:
    """How many processors every group above this process is worth, where it limits their time."""
    for folder in _groups("cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)


def _address_space() -> list[int]:
    """The limits of this process alone (ulimit -v, ulimit -d)."""
    try:
        import resource
    except ImportError:
        return []
    soft = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return [limit for limit in soft if limit != resource.RLIM_INFINITY and 0 < limit < NO_LIMIT]


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in, in both versions.

    They begin with its own group and go up to the tree's root.
    """
    seen: set[Path] = set()
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for tree in (TREE / controllers, TREE / controller) if controllers else (TREE, TREE / "unified"):
            parts = [p for p in path.split("/") if p not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                folder = tree.joinpath(*parts[:depth])
                if folder not in seen and folder.is_dir():
                    seen.add(folder)
                    yield folder


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None


def _named(file: Path, name: str) -> int | None:
    """A number in a file of lines "name number"."""
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None

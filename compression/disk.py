"""Room on the disk: asked before much is written, and told the same way wherever it ends."""

from __future__ import annotations

import shutil
from pathlib import Path

from compression.base import CompressionError


class DiskFull(CompressionError):
    """Facts: free_bytes, and need_bytes where it is known."""

    code = "disk_full"


def free_bytes(place: Path | str) -> int:
    """Bytes that this user may still write where `place` is, or will be."""
    place = Path(place).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_room(place: Path | str, need_bytes: int) -> None:
    """Raises DiskFull if `place`'s disk has no room for so many bytes."""
    free = free_bytes(place)
    if free < need_bytes:
        raise DiskFull(
            f"the disk is full: this takes {need_bytes / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are "
            "free; free some space",
            need_bytes=int(need_bytes),
            free_bytes=free,
        )

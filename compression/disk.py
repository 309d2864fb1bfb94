"""Checks that the disk has room before much is written. A full disk always gives the same error."""

from __future__ import annotations

import shutil
from pathlib import Path

from compression.base import CompressionError


class DiskFull(CompressionError):
    """Facts: free_bytes, and need_bytes if it is known."""

    code = "disk_full"


def free_bytes(place: Path | str) -> int:
    """Bytes that this user may still write on the disk of `place`, which need not exist yet."""
    place = Path(place).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_room(place: Path | str, need_bytes: int) -> None:
    """Raises DiskFull if the disk of `place` has no room for `need_bytes`."""
    free = free_bytes(place)
    if free < need_bytes:
        raise DiskFull(
            f"the disk is full: this takes {need_bytes / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are "
            "free; free some space",
            need_bytes=int(need_bytes),
            free_bytes=free,
        )

"""Reads a folder of files that somebody else wrote, with care.

A name in it may turn out to be a pipe, a device, a link to somewhere else, a file of a hundred gigabytes or
no JSON. `Folder` then raises an error that says so, and never waits. Files are read by their plain names. A
link may stay inside the folder, or lead from a snapshot of the hub's cache to that cache's own blobs; no
other link is followed.
"""

from __future__ import annotations

import json
import math
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from compression.base import ModelUnavailable

MAX_ENTRIES = 10_000
JSON_BYTES = 1_000_000
SHOWN = 3  # names in a message
POINTERS = {
    b"version https://git-lfs": "git lfs pull",
    b"/annex/objects": "git annex get",
    b"../../.git/annex": "git annex get",
}


class Folder:
    """A model's folder. `name` is what error messages call it."""

    def __init__(self, path: Path | str, name: str = ""):
        self.path = Path(path)
        self.name = shown(name or self.path.name)

    def names(self) -> list[str]:
        """The entries of the folder in order. Raises ModelUnavailable if there are very many."""
        with os.scandir(self.path) as found:
            names = [entry.name for _, entry in zip(range(MAX_ENTRIES + 1), found)]  # noqa: B905
        if len(names) > MAX_ENTRIES:
            raise self.error(
                "too_many_files",
                f"holds more than {MAX_ENTRIES} files; a model's folder has a few dozen",
                limit=MAX_ENTRIES,
            )
        return sorted(names)

    def has(self, name: str) -> bool:
        """True if there is an entry of that name, whatever its kind."""
        return os.path.lexists(self.path / name)

    def open(self, name: str, limit: int | None = None) -> BufferedReader:
        """The regular file `name`, for reading from its start. limit: the most bytes that it may have."""
        if not is_plain(name):
            raise self.error(
                "outside_folder",
                f"names the file {shown(name)!r}; only files directly in the folder are read",
                file=shown(name),
            )
        path = self.path / name
        try:
            real, home = Path(os.path.realpath(path)), Path(os.path.realpath(self.path))
            if real.parent not in (home, *self._blobs(home)):
                raise self.error(
                    "outside_folder",
                    f"has {shown(name)} as a link to a place outside of the folder; copy the file here",
                    file=shown(name),
                )
            handle = os.open(real, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        except FileNotFoundError:
            raise self.error("file_missing", f"has no {shown(name)}", file=shown(name)) from None
        except (OSError, ValueError) as why:
            raise self.error(
                "no_file_there",
                f"has {shown(name)}, which can't be opened ({_reason(why)}); put the plain file there",
                file=shown(name),
            ) from None
        kind = os.fstat(handle)
        if not stat.S_ISREG(kind.st_mode):
            os.close(handle)
            raise self.error(
                "no_file_there",
                f"has {shown(name)} as {_kind(kind.st_mode)}, no plain file; put the plain file there",
                file=shown(name),
            )
        if limit is not None and kind.st_size > limit:
            os.close(handle)
            raise self.error(
                "file_too_big",
                f"has {shown(name)} of {kind.st_size} bytes; at most {limit} are read",
                file=shown(name),
                bytes=kind.st_size,
                limit=limit,
            )
        return os.fdopen(handle, "rb")

    @staticmethod
    def _blobs(home: Path) -> list[Path]:
        """Where the files of a snapshot in the hub's cache are.

        models--owner--name/snapshots/revision -> models--owner--name/blobs.
        """
        return [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []

    def read(self, name: str, limit: int = JSON_BYTES) -> bytes:
        """The whole content of a file of at most `limit` bytes."""
        with self.open(name, limit) as stream:
            content = stream.read(limit + 1)
        self.check_content(name, content[:200], len(content))
        return content

    def json(self, name: str, limit: int = JSON_BYTES, finite: bool = False) -> dict[str, Any]:
        """The JSON object in a file.

        Refused are a key that stands twice, a value that is no object, and text that is no JSON. finite:
        infinity and NaN too, which Python writes into such files and other programs can't read.
        """
        return self.parse(name, self.read(name, limit), finite)

    def parse(self, name: str, content: bytes, finite: bool = False) -> dict[str, Any]:
        """The JSON object that `content`, read from the file `name`, holds."""
        strict: dict[str, Any] = {"parse_constant": _number, "parse_float": _number} if finite else {}
        try:
            found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once, **strict)
        except (ValueError, RecursionError) as why:
            raise self.error(
                "bad_json",
                f"has {shown(name)}, which is no JSON that can be read ({_reason(why)}); fetch the "
                "file again",
                file=shown(name),
            ) from None
        if not isinstance(found, dict):
            raise self.error(
                "bad_json",
                f"has {shown(name)} with a {type(found).__name__} where a JSON object is due; "
                "fetch the file again",
                file=shown(name),
            )
        return found

    def check_content(self, name: str, start: bytes, size: int) -> None:
        """Refuse a file that isn't itself: nothing, a pointer to the file, or a web page.

        start: its first bytes.
        """
        if size == 0:
            raise self.error(
                "cut_file", f"has an empty {shown(name)}; fetch the file again", file=shown(name), bytes=0
            )
        for mark, command in POINTERS.items():
            if start.startswith(mark):
                raise self.error(
                    "pointer_file",
                    f"has {shown(name)} as a pointer only; run: {command}",
                    file=shown(name),
                    command=command,
                )
        if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            raise self.error(
                "web_page",
                f"has a web page saved as {shown(name)}; fetch the file itself again",
                file=shown(name),
            )

    def error(self, code: str, message: str, **facts: Any) -> ModelUnavailable:
        """A ModelUnavailable about this folder: its name stands before the message."""
        return ModelUnavailable(f"{self.name} {message}", code=code, name=self.name, **facts)


def is_plain(name: str) -> bool:
    """True for the name of an entry of a folder: no separators, nothing hidden, no control characters."""
    return (
        0 < len(name) <= 255
        and not name.startswith(".")
        and name.isprintable()
        and not set(name) & set("/\\:")
    )


def shown(text: object, limit: int = 80) -> str:
    """A name as a message shows it: on one line, and cut if it is long."""
    text = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def few(names) -> str:
    """A few names and how many there are more: "a, b, c and 4 more"."""
    names = [shown(n) for n in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _number(word: str) -> float:
    if not math.isfinite(found := float(word)):
        raise ValueError(f"{shown(word, 20)} is no number of JSON")
    return found


def _reason(why: BaseException) -> str:
    return shown(getattr(why, "strerror", None) or (str(why) or type(why).__name__))


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((word for test, word in kinds.items() if test(mode)), "something else")

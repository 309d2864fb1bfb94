"""Where results live: one JSON a run, written whole or not at all, and the folders that belong to it.

    home/runs/<id>.json          every run, whatever its end (evaluation/records.py says what is in it)
    home/artifacts/<key>/        compressed models, the oldest go when they pass a byte budget
    home/baselines/<hash>/       what measuring an original left behind
    home/live/<name>             a process that has runs waiting or going on

Several programs may share a home: none marks as interrupted what another is running, none removes what
another holds. Results that ship with the app are read from assets/results and never written. A home that
can't be written gives way to a temporary one, which ends with the program (`read_only`). No torch here: the
page reads the store at start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from evaluation import ROOT, records
from evaluation.spec import Result
from kernels import home as place

ARTIFACT_BYTES = int(os.environ.get("COMPRESSION_EXPLORER_ARTIFACT_BYTES", 10_000_000_000))
BASELINE_BYTES = 4_000_000_000
SHIPPED = ROOT / "assets" / "results"
_ID = re.compile(records.NAME)
log = logging.getLogger(__name__)


class Store:
    """All results that this app knows: its own and the shipped ones."""

    def __init__(self, home: Path | None = None, shipped: Path | None = SHIPPED):
        """home: default the program's own; made if need be. Raises OSError if neither it nor a temporary one
        can be written."""
        self.home = place.usable(Path(home).expanduser().absolute()) if home else place.home()
        self.read_only = bool(place.why_temporary(self.home))
        self._shipped = shipped
        self._memory: dict[str, Result] = {}  # results that couldn't be written: the disk is full
        self._kept: dict[Path, dict[str, tuple]] = {}  # folder -> {file: (its stamp, what it holds)}
        self._changes = 0  # of the results in memory
        self.sweep()

    def new_id(self) -> str:
        """A fresh id; ids sort by time."""
        return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"

    def put(self, result: Result) -> Result:
        """Write a result (its id is made if it has none) and return it.

        Raises OSError for a full disk (the result is kept in memory then) and records.NotFinite for a figure
        that is no number.
        """
        if not result.id:
            result = dataclasses.replace(result, id=self.new_id())
        file = self._file(result.id)
        self._memory[result.id] = result
        self._changes += 1
        try:
            owner = place.claim(self.home) if result.status in ("running", "queued") else ""
            place.write(file, records.content(result, owner))
        except records.NotFinite:
            self._memory.pop(result.id, None)
            raise
        self._memory.pop(result.id, None)
        return result

    def _file(self, run_id: str) -> Path:
        if not _ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is no run id")
        return self.home / "runs" / f"{run_id}.json"

    def _read(self, folder: Path | None) -> dict[str, tuple]:
        """{file's name: (its stamp, its result)} of a folder, by name."""
        if folder is None:
            return {}
        try:
            files = [entry.name for entry in os.scandir(folder)]
        except OSError:
            files = []
        names = sorted(name for name in files if name.endswith(".json") and name[0] != ".")
        found = {name: one for name in names if (one := self._one(folder, name))}
        self._kept[folder] = found
        return found

    def _one(self, folder: Path, name: str) -> tuple | None:
        """(a file's stamp, its result), read again when the stamp changes. A result of None, told by one line
        in the log, can't be used."""
        known, result = self._kept.get(folder, {}).get(name), None
        stamp: tuple[int, ...] = ()
        try:
            about = os.stat(f"{folder}/{name}")
            stamp = (about.st_mtime_ns, about.st_ino, about.st_size)
            if known and known[0] == stamp:
                return known
            if not stat.S_ISREG(about.st_mode) or about.st_size > records.LARGEST_FILE_BYTES:
                raise records.OddRecord(f"it is no file of at most {records.LARGEST_FILE_BYTES:,} bytes")
            result, _ = records.parse((folder / name).read_bytes())
            if folder != self._shipped and f"{result.id}.json" != name:
                result = None
                raise records.OddRecord("it calls itself otherwise")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, records.OddRecord) as error:  # such a record must never take the app down
            log.warning("skipping %s: %s", name, error)
        self._kept.setdefault(folder, {})[name] = stamp, result
        return stamp, result

    def own(self) -> list[Result]:
        """This store's results, oldest first."""
        found = {r.id: r for _, r in self._read(self.home / "runs").values() if r} | self._memory
        return [found[run_id] for run_id in sorted(found)]

    def shipped(self) -> list[Result]:
        """The results that came with the app."""
        return [r for _, r in self._read(self._shipped).values() if r]

    def stamp(self) -> tuple:
        """It changes whenever a result or the presence of an artifact does: what was made of the store may be
        kept by it."""
        files = [
            (name, stamp)
            for folder in (self._shipped, self.home / "runs")
            for name, (stamp, _) in self._read(folder).items()
        ]
        return self._changes, tuple(files), tuple(r.artifact for r in self.own() if self.has_artifact(r))

    def all(self) -> list[Result]:
        """Shipped results, then this store's."""
        return self.shipped() + self.own()

    def get_id(self, run_id: str) -> Result | None:
        """The result of a run by its id."""
        if run_id in self._memory:
            return self._memory[run_id]
        if not _ID.fullmatch(run_id or ""):
            return None
        _, own = self._one(self.home / "runs", f"{run_id}.json") or ((), None)
        return own or next((r for r in self.shipped() if r.id == run_id), None)

    def get(self, key: str) -> Result | None:
        """The newest `ok` result for a key, an own one before a shipped one."""
        own = [r for r in self.own() if r.key == key and r.status == "ok"]
        return (
            own[-1] if own else next((r for r in self.shipped() if r.key == key and r.status == "ok"), None)
        )

    def find(self, identity: str) -> Result | None:
        """The newest own `ok` result that answers the same request (its content is checked by the run
        itself)."""
        return next(
            (r for r in reversed(self.own()) if r.status == "ok" and r.spec.identity() == identity), None
        )

    def delete(self, run_id: str) -> None:
        """Forget a run and its artifact."""
        result = self.get_id(run_id)
        if result and result.artifact:
            place.remove_unused(self.artifact_folder(result.artifact))
        self._memory.pop(run_id, None)
        self._changes += 1
        if _ID.fullmatch(run_id):
            self._file(run_id).unlink(missing_ok=True)

    def mark_interrupted(self) -> int:
        """Runs that wait or go on by their record, and whose program has ended, are interrupted. Returns how
        many."""
        stale = [r for r in self.own() if r.status in ("running", "queued") and not self._runs(r.id)]
        for r in stale:
            error = {
                "code": "interrupted",
                "message": "the app ended while this run was going on",
                "facts": {},
            }
            with contextlib.suppress(OSError):  # a full disk: it is in memory
                self.put(dataclasses.replace(r, status="interrupted", error=error))
        return len(stale)

    def _runs(self, run_id: str) -> bool:
        """Whether the program that a waiting or running record belongs to still lives."""
        try:
            _, owner = records.parse(self._file(run_id).read_bytes())
        except (OSError, records.OddRecord):
            owner = ""
        return run_id in self._memory or place.alive(self.home, owner)

    def sweep(self) -> list[str]:
        """Remove what programs that died left in this home. Returns the removed names."""
        return place.sweep(self.home)

    def artifact_folder(self, name: str) -> Path:
        """The folder of a compressed model."""
        if not _ID.fullmatch(name):
            raise ValueError(f"{name!r} is no artifact name")
        return self.home / "artifacts" / name

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """Where to save an artifact; it gets its name, and is found, if all went well until the end."""
        with place.scratch(self.home / "artifacts") as folder:
            yield folder / "model"
            place.settle(folder / "model", self.artifact_folder(name))

    @contextlib.contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """While it lasts no program removes these artifacts to make room."""
        with contextlib.ExitStack() as stack:
            for name in filter(None, names):
                stack.enter_context(place.held(self.artifact_folder(name)))
            yield

    def has_artifact(self, result: Result) -> bool:
        """True if the compressed model itself is on this disk."""
        return (
            bool(result.artifact) and (self.artifact_folder(result.artifact) / "compression.json").is_file()
        )

    def manifest(self, result: Result) -> dict:
        """What the compressed model's folder says of itself (compression.artifact)."""
        return json.loads((self.artifact_folder(result.artifact) / "compression.json").read_text("utf-8"))

    def keep_within_budget(self, newest: str, budget: int = ARTIFACT_BYTES) -> list[str]:
        """Remove the oldest artifacts until all fit; the newest and those in use stay. Returns the removed
        names."""
        return _trim(self.home / "artifacts", newest, budget)

    def baseline_folder(self, name: str) -> Path:
        """Where the original's measurements in one protocol lie; the oldest of others make room."""
        _trim(self.home / "baselines", name, BASELINE_BYTES)
        return self.home / "baselines" / name

    def rows(self) -> list[dict]:
        """One row a run: every metric that it has, and what the page filters and labels by."""
        return [self._row(r, shipped=True) for r in self.shipped()] + [
            self._row(r, shipped=False) for r in self.own()
        ]

    def _row(self, r: Result, shipped: bool) -> dict:
        family = (
            "original"
            if r.spec.is_original
            else "quantization"
            if r.spec.keeps_weights
            else r.spec.methods[-1][0].family
        )
        return dict(r.metrics) | {
            "id": r.id,
            "key": r.key,
            "status": r.status,
            "model": r.spec.model,
            "family": family,
            "recipe": r.spec.recipe,
            "cache_bits": r.spec.cache_bits,
            "cache_keys": r.spec.cache_keys,
            "protocol_id": r.protocol_id,
            "text": r.spec.text,
            "protocol": r.spec.protocol,
            "tokens": r.spec.tokens,
            "window": r.spec.window,
            "calibration": r.model.get("calibration", ""),
            "shipped": shipped,
            "created": r.created,
            "artifact": not shipped and self.has_artifact(r),
            "notes": r.notes,
            "error": r.error,
            "host": r.environment.get("processor", ""),
            "threads": r.environment.get("threads", 0),
        }


def _trim(folder: Path, newest: str, budget: int) -> list[str]:
    """Remove the oldest folders until all fit into `budget` bytes; `newest` and what is in use stay. Returns
    the removed names."""
    found = sorted((_size(f), f) for f in folder.glob("[!.]*") if f.is_dir() and not f.is_symlink())
    found.sort(key=lambda entry: (entry[1].name != newest, -entry[0][0]))
    total, removed = 0, []
    for (_, size), one in found:
        total += size
        if total > budget and one.name != newest and place.remove_unused(one):
            removed.append(one.name)
            total -= size
    return removed


def _size(folder: Path) -> tuple[float, int]:
    """(when it was written, bytes of its files); of what vanishes meanwhile nothing."""
    written, total = 0.0, 0
    with contextlib.suppress(OSError):
        written = folder.stat().st_mtime
        for file in folder.rglob("*"):
            with contextlib.suppress(OSError):
                total += file.stat().st_size if file.is_file() else 0
    return written, total

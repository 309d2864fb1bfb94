"""Where results live: a JSON file for each run, and the folders that belong to it.

A file is written whole or not at all.

    home/runs/<id>.json          every run, however it ended (evaluation/records.py says what is in it)
    home/artifacts/<key>/        compressed models; the oldest go when all together pass a byte budget
    home/baselines/<hash>/       what measuring an original left behind
    home/labels/<id>.json        the title and the note that a person gave a run (evaluation/labels.py)
    home/live/<name>             a process that has runs waiting or going on

Several programs may share a home. A program never marks another one's running run as interrupted, and never
removes a folder that another one holds. Results that ship with the app are read from assets/results and never
written. If the home
can't be written, a temporary one takes its place, and ends with the program (`read_only`). No torch here: the
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

from evaluation import ROOT, declared, labels, records
from evaluation.labels import Label
from evaluation.spec import Result, RunSpec
from kernels import home as place

ARTIFACT_BYTES = int(os.environ.get("COMPRESSION_EXPLORER_ARTIFACT_BYTES", 10_000_000_000))
BASELINE_BYTES = 4_000_000_000
SHIPPED = ROOT / "assets" / "results"
_ID = re.compile(records.NAME)
log = logging.getLogger(__name__)


class Store:
    """All results that this app knows: its own and the shipped ones."""

    def __init__(self, home: Path | None = None, shipped: Path | None = SHIPPED):
        """home: the program's own by default; made if it doesn't exist.

        Raises OSError if neither this folder nor a temporary one can be written.
        """
        self.home = place.usable(Path(home).expanduser().absolute()) if home else place.home()
        self.read_only = bool(place.why_temporary(self.home))
        self._shipped = shipped
        self._memory: dict[str, Result] = {}  # results that couldn't be written because the disk is full
        self._kept: dict[Path, dict[str, tuple]] = {}  # folder -> {file: (its stamp, its result)}
        self._changes = 0  # counts the changes of `_memory`
        self.sweep()

    def new_id(self) -> str:
        """A fresh id; ids sort by time."""
        return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"

    def put(self, result: Result) -> Result:
        """Write a result, which gets an id if it has none, and return it.

        Raises OSError if the disk is full (the result is kept in memory then), and records.NotFinite if a
        figure is NaN or infinite.
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

    def add(self, data: bytes) -> Result:
        """Keep a result that another program has written, and return it.

        Its figures and its machine stay as they are. Its compressed model isn't here, so it has none. A
        result that is here already stays as it is. Raises records.OddRecord if `data` is no finished result.
        """
        if len(data) > records.LARGEST_FILE_BYTES:
            raise records.OddRecord(f"it is larger than {records.LARGEST_FILE_BYTES:,} bytes")
        result, _ = records.parse(data)
        if result.status != "ok":
            raise records.OddRecord(f"it is a run that is {result.status}, and has no result")
        known = self.get_id(result.id)
        return known or self.put(dataclasses.replace(result, artifact=""))

    def _file(self, run_id: str) -> Path:
        if not _ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is no run id")
        return self.home / "runs" / f"{run_id}.json"

    def _read(self, folder: Path | None) -> dict[str, tuple]:
        """The results in a folder, by name: {file's name: (its stamp, its result)}."""
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
        """(a file's stamp, its result), read again when the stamp changes.

        The result is None if the record can't be used; one line in the log says why.
        """
        known, result = self._kept.get(folder, {}).get(name), None
        stamp: tuple[int, ...] = ()
        try:
            about = os.stat(f"{folder}/{name}")
            stamp = (about.st_mtime_ns, about.st_ino, about.st_size)
            if known and known[0] == stamp:
                return known
            if not stat.S_ISREG(about.st_mode) or about.st_size > records.LARGEST_FILE_BYTES:
                raise records.OddRecord(f"it is no file, or larger than {records.LARGEST_FILE_BYTES:,} bytes")
            result, _ = records.parse((folder / name).read_bytes())
            if folder != self._shipped and f"{result.id}.json" != name:
                result = None
                raise records.OddRecord("the id in it is not the file's name")
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
        """A value that changes whenever a result changes, or an artifact comes or goes.

        Whatever was computed from the store can be kept as long as the stamp stays the same.
        """
        files = [
            (name, stamp)
            for folder in (self._shipped, self.home / "runs")
            for name, (stamp, _) in self._read(folder).items()
        ]
        held = tuple(r.artifact for r in self.own() if self.has_artifact(r))
        return self._changes, tuple(files), held, tuple(self.labels().items())

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
        """The newest `ok` result for a key; an own result comes before a shipped one."""
        own = [r for r in self.own() if r.key == key and r.status == "ok"]
        return (
            own[-1] if own else next((r for r in self.shipped() if r.key == key and r.status == "ok"), None)
        )

    def find(self, identity: str) -> Result | None:
        """The newest own `ok` result that answers the same request.

        Only the request is compared here; the run itself compares the contents of what it reads.
        """
        return next(
            (r for r in reversed(self.own()) if r.status == "ok" and r.spec.identity() == identity), None
        )

    def labels(self) -> dict[str, Label]:
        """The titles and notes of this store's runs."""
        return labels.read(self.home / "labels")

    def label(self, run_id: str, label: Label) -> None:
        """Give a run of this store a title and a note. Raises OSError if the disk is full."""
        self._file(run_id)  # the id is one
        labels.put(self.home / "labels", run_id, label)

    def disk_bytes(self, result: Result) -> int:
        """Bytes that a run's compressed model takes on this disk; 0 without one."""
        return _size(self.artifact_folder(result.artifact))[1] if self.has_artifact(result) else 0

    def delete(self, run_id: str) -> None:
        """Delete a run, its label and its artifact."""
        result = self.get_id(run_id)
        if result and result.artifact:
            place.remove_unused(self.artifact_folder(result.artifact))
        self._memory.pop(run_id, None)
        self._changes += 1
        if _ID.fullmatch(run_id):
            self._file(run_id).unlink(missing_ok=True)
            labels.remove(self.home / "labels", run_id)

    def mark_interrupted(self) -> int:
        """Mark runs as interrupted that should be waiting or going on, but whose program has ended.

        Returns how many there are.
        """
        stale = [r for r in self.own() if r.status in ("running", "queued") and not self._runs(r.id)]
        for r in stale:
            error = {
                "code": "interrupted",
                "message": "the app ended while this run was going on",
                "facts": {},
            }
            with contextlib.suppress(OSError):  # the disk is full: the record is in memory
                self.put(dataclasses.replace(r, status="interrupted", error=error))
        return len(stale)

    def _runs(self, run_id: str) -> bool:
        """Whether the program of a waiting or running record is still alive."""
        try:
            _, owner = records.parse(self._file(run_id).read_bytes())
        except (OSError, records.OddRecord):
            owner = ""
        return run_id in self._memory or place.alive(self.home, owner)

    def sweep(self) -> list[str]:
        """Remove what dead programs left in this home. Returns the removed names."""
        return place.sweep(self.home)

    def artifact_folder(self, name: str) -> Path:
        """The folder of a compressed model."""
        if not _ID.fullmatch(name):
            raise ValueError(f"{name!r} is no artifact name")
        return self.home / "artifacts" / name

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """The folder to save an artifact in. It gets its name, and can be found, only after a success."""
        with place.scratch(self.home / "artifacts") as folder:
            yield folder / "model"
            place.put_in_place(folder / "model", self.artifact_folder(name))

    @contextlib.contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """As long as this lasts, no program removes these artifacts to make room."""
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
        """What the folder of a compressed model says about it (compression.artifact)."""
        return json.loads((self.artifact_folder(result.artifact) / "compression.json").read_text("utf-8"))

    def keep_within_budget(self, newest: str, budget: int = ARTIFACT_BYTES) -> list[str]:
        """Remove the oldest artifacts until all fit; the newest and those in use stay.

        Returns the removed names.
        """
        return _trim(self.home / "artifacts", newest, budget)

    def baseline_folder(self, name: str) -> Path:
        """The folder of the original's measurements in one protocol; the oldest folders make room for it."""
        _trim(self.home / "baselines", name, BASELINE_BYTES)
        return self.home / "baselines" / name

    def rows(self) -> list[dict]:
        """One row for each run: every metric that it has, and what the page filters and labels by."""
        named = self.labels()
        return [self._row(r, shipped=True) for r in self.shipped()] + [
            self._row(r, shipped=False) | {"title": named.get(r.id, Label()).title} for r in self.own()
        ]

    def _row(self, r: Result, shipped: bool) -> dict:
        family = (
            "original" if r.spec.is_original else "quantization" if r.spec.keeps_weights else _family(r.spec)
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
            "table_bits": r.spec.table_bits,
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


def _family(spec: RunSpec) -> str:
    """The family of what compresses: that of the last step, or of the one that an adapter repairs."""
    steps = [declared.get(name) for name, _ in spec.recipe]
    compress = [m for m in steps if not m.adds and m.family != "original"]
    return (compress or steps)[-1].family


def _trim(folder: Path, newest: str, budget: int) -> list[str]:
    """Remove the oldest folders until all fit into `budget` bytes.

    `newest` and the folders in use stay. Returns the removed names.
    """
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
    """(when a folder was written, bytes of its files); a file that vanishes meanwhile doesn't count."""
    written, total = 0.0, 0
    with contextlib.suppress(OSError):
        written = folder.stat().st_mtime
        for file in folder.rglob("*"):
            with contextlib.suppress(OSError):
                total += file.stat().st_size if file.is_file() else 0
    return written, total

"""Where results live: one JSON a run, written to a temporary name and renamed, and the folders that belong to it.

    home/runs/<id>.json          every run, whatever its end
    home/artifacts/<key>/        compressed models, the oldest go when they pass a byte budget
    home/baselines/<hash>/       what measuring an original left behind

Results that ship with the app are read from assets/results and never written. A store that can't be written keeps new
results in memory and says so (`read_only`). No torch here: the page reads the store at start.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
import uuid
import warnings
from pathlib import Path

from compression.models import home as default_home
from evaluation.spec import ROOT, Result

ARTIFACT_BYTES = int(os.environ.get("COMPRESSION_EXPLORER_ARTIFACT_BYTES", 10_000_000_000))
BASELINE_BYTES = 4_000_000_000
SHIPPED = ROOT / "assets" / "results"
_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}")


class Store:
    """All results that this app knows: its own and the shipped ones."""

    def __init__(self, home: Path | None = None, shipped: Path | None = SHIPPED):
        self.home = Path(home) if home else default_home()
        self._shipped = shipped
        self._memory: dict[str, Result] = {}  # results that couldn't be written
        self._kept: dict[Path, dict[str, tuple]] = {}  # folder -> {file: (its stamp, what it holds)}
        self._changes = 0  # of the results in memory
        self.read_only = not self._writable()

    def _writable(self) -> bool:
        try:
            (self.home / "runs").mkdir(parents=True, exist_ok=True)
            probe = self.home / "runs" / f".probe.{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
            return True
        except OSError:
            return False

    def new_id(self) -> str:
        """A fresh id; ids sort by time."""
        return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"

    def put(self, result: Result) -> Result:
        """Write a result (its id is made if it has none) and return it. Raises OSError only for a full disk."""
        if not result.id:
            result = dataclasses.replace(result, id=self.new_id())
        if self.read_only:
            self._memory[result.id] = result
            self._changes += 1
            return result
        file = self._file(result.id)
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
        try:
            temporary.write_text(json.dumps(result.json(), ensure_ascii=False), "utf-8")
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        return result

    def _file(self, run_id: str) -> Path:
        if not _ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is no run id")
        return self.home / "runs" / f"{run_id}.json"

    def _read(self, folder: Path | None) -> dict[str, tuple]:
        """{file's name: (its stamp, its result)} of a folder, by name."""
        try:
            names = sorted(e.name for e in os.scandir(folder) if e.name.endswith(".json") and e.name[0] != ".") if folder else []
        except OSError:
            names = []
        found = {name: one for name in names if (one := self._one(folder, name))}
        self._kept[folder] = found
        return found

    def _one(self, folder: Path, name: str) -> tuple | None:
        """(a file's stamp, its result), read again when the stamp changes. A result of None (with a warning) can't be read."""
        known, result, stamp = self._kept.get(folder, {}).get(name), None, ()
        try:
            about = os.stat(f"{folder}/{name}")
            stamp = (about.st_mtime_ns, about.st_ino, about.st_size)
            if known and known[0] == stamp:
                return known
            result = Result.parse(json.loads((folder / name).read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # a broken or outdated record must never take the app down
            warnings.warn(f"skipping {name}: {error}", stacklevel=2)
        return stamp, result

    def own(self) -> list[Result]:
        """This store's results, oldest first."""
        return [r for _, r in self._read(self.home / "runs").values() if r] + list(self._memory.values())

    def shipped(self) -> list[Result]:
        """The results that came with the app."""
        return [r for _, r in self._read(self._shipped).values() if r]

    def stamp(self) -> tuple:
        """It changes whenever a result or the presence of an artifact does: what was made of the store may be kept by it."""
        files = [
            (name, stamp) for folder in (self._shipped, self.home / "runs") for name, (stamp, _) in self._read(folder).items()
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
        return own[-1] if own else next((r for r in self.shipped() if r.key == key and r.status == "ok"), None)

    def find(self, identity: str) -> Result | None:
        """The newest own `ok` result that answers the same request (its content is checked by the run itself)."""
        return next((r for r in reversed(self.own()) if r.status == "ok" and r.spec.identity() == identity), None)

    def delete(self, run_id: str) -> None:
        """Forget a run and its artifact."""
        result = self.get_id(run_id)
        if result and result.artifact:
            shutil.rmtree(self.artifact_folder(result.artifact), ignore_errors=True)
        self._memory.pop(run_id, None)
        self._changes += 1
        if not self.read_only:
            self._file(run_id).unlink(missing_ok=True)

    def mark_interrupted(self) -> int:
        """Records that say "running" or "queued" belong to an app that died: call once at start. Returns how many."""
        stale = [r for r in self.own() if r.status in ("running", "queued")]
        for r in stale:
            error = {"code": "interrupted", "message": "the app ended while this run was going on", "facts": {}}
            self.put(dataclasses.replace(r, status="interrupted", error=error))
        return len(stale)

    def artifact_folder(self, name: str) -> Path:
        """The folder of a compressed model."""
        if not _ID.fullmatch(name):
            raise ValueError(f"{name!r} is no artifact name")
        return self.home / "artifacts" / name

    def has_artifact(self, result: Result) -> bool:
        """True if the compressed model itself is on this disk."""
        return bool(result.artifact) and (self.artifact_folder(result.artifact) / "compression.json").is_file()

    def manifest(self, result: Result) -> dict:
        """What the compressed model's folder says of itself (compression.artifact)."""
        return json.loads((self.artifact_folder(result.artifact) / "compression.json").read_text("utf-8"))

    def keep_within_budget(self, newest: str, budget: int = ARTIFACT_BYTES) -> list[str]:
        """Remove the oldest artifacts until all fit; the newest always stays. Returns the removed names."""
        return _trim(self.home / "artifacts", newest, budget)

    def baseline_folder(self, name: str) -> Path:
        """Where the original's measurements in one protocol lie; the oldest of others make room."""
        _trim(self.home / "baselines", name, BASELINE_BYTES)
        return self.home / "baselines" / name

    def rows(self) -> list[dict]:
        """One row a run: every metric that it has, and what the page filters and labels by."""
        return [self._row(r, shipped=True) for r in self.shipped()] + [self._row(r, shipped=False) for r in self.own()]

    def _row(self, r: Result, shipped: bool) -> dict:
        family = "original" if r.spec.is_original else "quantization" if r.spec.keeps_weights else r.spec.methods[-1][0].family
        return dict(r.metrics) | {
            "id": r.id, "key": r.key, "status": r.status, "model": r.spec.model, "family": family, "recipe": r.spec.recipe,
            "cache_bits": r.spec.cache_bits, "protocol_id": r.protocol_id, "text": r.spec.text, "protocol": r.spec.protocol, "tokens": r.spec.tokens,
            "window": r.spec.window, "shipped": shipped, "created": r.created,
            "artifact": not shipped and self.has_artifact(r), "notes": r.notes, "error": r.error,
            "host": r.environment.get("processor", ""), "threads": r.environment.get("threads", 0),
        }  # fmt: skip


def _trim(place: Path, newest: str, budget: int) -> list[str]:
    """Remove the oldest folders of `place` until all fit into `budget` bytes; `newest` stays. Returns the removed names."""
    found = sorted((f for f in place.glob("[!.]*") if f.is_dir()), key=lambda f: f.stat().st_mtime, reverse=True)
    found.sort(key=lambda f: f.name != newest)
    total, removed = 0, []
    for folder in found:
        total += sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        if total > budget and folder.name != newest:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return removed

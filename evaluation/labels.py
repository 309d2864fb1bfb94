"""A title and a note that a person gives a run.

They stand beside the run's record (home/labels/<run's id>.json), not in it. The process of the run writes the
record, and the record may be copied to other machines. A title is a person's own word about the run: it stays
on this machine and may change at any time. No torch here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from kernels.home import write

TITLE, NOTE = 60, 500  # characters at most
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Label:
    """A run's title and note; empty where nobody wrote anything."""

    title: str = ""
    note: str = ""


def put(folder: Path, run_id: str, label: Label) -> None:
    """Keep a run's label; one without any words is removed. Raises OSError if the disk is full."""
    if label == Label():
        return remove(folder, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f"{run_id}.json", json.dumps(asdict(label), ensure_ascii=False).encode())


def remove(folder: Path, run_id: str) -> None:
    """A run without a label again."""
    (folder / f"{run_id}.json").unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Label]:
    """All labels by run. A file that can't be used is left out, with a line in the log."""
    found = {}
    for file in sorted(folder.glob("[!.]*.json")) if folder.is_dir() else ():
        try:
            found[file.stem] = _parsed(json.loads(file.read_text("utf-8")))
        except (OSError, ValueError) as error:
            log.warning("skipping the label %s: %s", file.name, error)
    return found


def _parsed(data) -> Label:
    if not isinstance(data, dict) or not data.keys() <= {"title", "note"}:
        raise ValueError("a label has a title and a note")
    label = Label(**data)
    for text, longest in ((label.title, TITLE), (label.note, NOTE)):
        if not isinstance(text, str) or len(text) > longest:
            raise ValueError(f"a title is a text of at most {TITLE} characters, a note of at most {NOTE}")
    return label

"""python -m tests.soak [PART ...] [--scale 0.05] [--again] [--keep] [--state FILE]

Parts that are finished (at this scale) aren't repeated unless asked with --again. With --keep the table goes
to assets/results/bench/soak.json: of each part the row at the largest scale, which it names, and what parts
are missing. Rows that are there already stay where no larger or newer one is at hand, so that a campaign may
be spread over days and machines. SOAK_PATIENCE=3 in the environment makes all limits of time three times as
long, for a slow or a busy machine; the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path

from tests.soak import PARTS, stage
from tests.soak.campaign import LONGEST_SECONDS, Campaign, commit
from tests.soak.ledger import OUTCOMES

TABLE = stage.ROOT / "assets" / "results" / "bench" / "soak.json"


def main(argv: list[str]) -> int:
    """Exit code 0 if nothing went wrong in the parts that were asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        epilog="\n".join(f"{name:<14}{what}" for name, what in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all if none is given")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the counts and times, 1 by default"
    )
    parser.add_argument("--again", action="store_true", help="repeat parts that are finished")
    parser.add_argument(
        "--keep", action="store_true", help="write the table of all finished parts into assets/results/bench"
    )
    parser.add_argument(
        "--state", type=Path, default=Path.home() / ".cache" / "compression-explorer-soak" / "state.json"
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        help="where homes and logs lie (default: a folder under the system's for temporary files)",
    )
    parser.add_argument(
        "--cgroup",
        help="a memory cgroup in which groups may be made; without it limits are those of address space",
    )
    asked = parser.parse_args(argv)
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    state = _read(asked.state)
    names = asked.parts or list(PARTS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that apps and disks are put away
    with _scratch(asked.scratch) as scratch:
        os.environ |= {
            "SOAK_SCRATCH": str(scratch),
            "HF_HUB_OFFLINE": "1",
            "COMPRESSION_EXPLORER_HOME": str(scratch / "home"),
            "COMPRESSION_EXPLORER_TESTS": str(scratch),
        }
        for name in names:
            key = f"{name} x{asked.scale:g}"
            if asked.again or key not in state:
                row = _do(name, asked, scratch)
                state = _read(asked.state) | {key: row}  # another campaign may have written meanwhile
                asked.state.parent.mkdir(parents=True, exist_ok=True)
                asked.state.write_text(json.dumps(state, indent=1), "utf-8")
    rows = [state[f"{name} x{asked.scale:g}"] for name in names]
    if len(rows) > 1:
        print(_table(rows))
    if asked.keep:
        # of other days and machines
        kept = json.loads(TABLE.read_text("utf-8"))["rows"] if TABLE.is_file() else []
        done = {
            row["part"]: row
            for row in sorted([*kept, *state.values()], key=lambda row: (row["scale"], row["date"]))
        }
        TABLE.write_text(
            json.dumps(_kept([done[name] for name in PARTS if name in done]), indent=1, ensure_ascii=False)
            + "\n",
            "utf-8",
        )
        print(f"kept in {TABLE.relative_to(stage.ROOT)}")
    return int(any(row[outcome] for row in rows for outcome in OUTCOMES[1:]))


def _read(state: Path) -> dict:
    """The rows of finished parts: "part xscale" -> row."""
    return json.loads(state.read_text("utf-8")) if state.is_file() else {}


@contextlib.contextmanager
def _scratch(place: Path | None):
    """A folder for homes and logs, removed at the end unless it was given."""
    folder = place or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder.resolve()
    finally:
        if place is None:
            shutil.rmtree(folder, ignore_errors=True)


def _do(name: str, asked: argparse.Namespace, scratch: Path) -> dict:
    """One part's row."""
    shutil.rmtree(scratch / name, ignore_errors=True)
    part = importlib.import_module(f"tests.soak.{name}")
    campaign = Campaign(name, asked.scale, scratch, {"cgroup": asked.cgroup}, longest(part))
    print(f"{name}: {PARTS[name]}", flush=True)
    start, busy = time.monotonic(), os.getloadavg()[0]
    try:
        part.run(campaign)
    except Exception as error:  # the other parts go on; what stopped this one stands in its row
        traceback.print_exc()
        campaign.ledger.count("hung", f"the part itself stopped: {type(error).__name__}: {error}")
    if stage.PATIENCE != 1:
        campaign.ledger.note(f"limits of time {stage.PATIENCE:g} times as long")
    if busy > (os.cpu_count() or 1) / 2:
        campaign.ledger.note(f"others were computing (load {busy:.1f} at the start)")
    row = campaign.ledger.json() | {
        "seconds": round(time.monotonic() - start),
        "scale": asked.scale,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    print(_table([row]), flush=True)
    return row


def longest(part: types.ModuleType) -> float:
    """Seconds that a part may take: its own LONGEST_SECONDS, else that of every part."""
    return getattr(part, "LONGEST_SECONDS", LONGEST_SECONDS)


def _kept(rows: list[dict]) -> dict:
    """The table as it is stored."""
    from kernels.cpu import processor

    return {
        "date": max(row["date"] for row in rows),
        "commits": sorted({row["commit"] for row in rows}),
        "processor": processor(),
        "cores": os.cpu_count(),
        "total": {k: sum(row[k] for row in rows) for k in ("tried", *OUTCOMES, "seconds")},
        "missing": [name for name in PARTS if name not in {row["part"] for row in rows}],
        "rows": rows,
    }


def _table(rows: list[dict]) -> str:
    """One line a part, notes and defects below."""
    columns = ("part", "tried", *OUTCOMES, "seconds")
    heads = dict.fromkeys(columns) | {c: "stopped by another" if c == "stopped" else c for c in columns}
    total = {"part": "all"} | {c: sum(row[c] for row in rows) for c in columns[1:]}
    lines = [" ".join(f"{heads[c]:<14}" if c == "part" else f"{heads[c]:>10}" for c in columns)]
    for row in [*rows, *([total] if len(rows) > 1 else [])]:
        lines.append(
            " ".join(
                f"{row[c]:<14}" if c == "part" else f"{row[c]:>{max(10, len(heads[c]))}}" for c in columns
            )
        )
    for row in rows:
        figures = [f"{k} {v:g}" for k, v in row["figures"].items()]
        lines += [f"{row['part']}: {'; '.join([*figures, *row['notes']])}"] if figures or row["notes"] else []
        lines += [f"  {d.splitlines()[0][:300]}" for d in row["defects"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

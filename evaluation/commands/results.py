"""Results as files: written out here, added elsewhere.

    python -m evaluation results save FILE [ID ...]    this machine's finished runs, one JSON record a line
    python -m evaluation results add FILE ...          results of another machine

A compressed model doesn't go along, only what was measured of it and on which machine. Exit code 0; 1 if a
record couldn't be added; 2 for a bad argument.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evaluation import records
from evaluation.store import Store
from kernels.home import write


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation results",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    saving = verbs.add_parser("save", help="write this machine's results into a file")
    saving.add_argument("file", type=Path)
    saving.add_argument("ids", nargs="*", metavar="ID", help="all finished runs if none is given")
    adding = verbs.add_parser("add", help="add results of another machine")
    adding.add_argument("files", nargs="+", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    store = Store()
    if asked.verb == "save":
        own = {r.id: r for r in store.own() if r.status == "ok"}
        if unknown := [i for i in asked.ids if i not in own]:
            parser.error(f"no finished run of this machine is called {unknown[0]!r}")
        chosen = [own[i] for i in asked.ids or own]
        write(asked.file, b"".join(records.content(r) + b"\n" for r in chosen))
        print(f"{len(chosen)} results written to {asked.file}")
        return 0
    failed = 0
    for file in asked.files:
        try:
            lines = [line for line in file.read_bytes().splitlines() if line.strip()]
        except OSError as error:
            parser.error(str(error))
        for i, line in enumerate(lines, 1):
            try:
                result = store.add(line)
                print(f"{result.id}  {result.spec.model}  {result.environment.get('processor', '')}")
            except records.OddRecord as error:
                failed += 1
                print(f"{file}, line {i}: {error}", file=sys.stderr)
    return int(failed > 0)

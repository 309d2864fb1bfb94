"""Says whether a stored answer is still the answer of this program.

`code()` names the program (evaluation/program.py). An answer that the same program gave holds. An answer of
another program holds if its witness is the same today (witness.py); taking one lasts a second or two. That is
done once for each program and processor: by the run that needs the answer, or by this command, which the app
runs in the background at its start:

    python -m evaluation.running.provenance     judge all of the home's answers that another program gave

Nothing here imports torch unless a witness is taken, because the page asks too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation import ROOT
from evaluation.program import code
from kernels import home as place

if TYPE_CHECKING:
    from evaluation.spec import Result
    from evaluation.store import Store


def known(result: Result, store: Store) -> bool | None:
    """Whether an answer still holds; None if it hasn't been checked yet."""
    if result.code == code():
        return True
    if not result.witness:
        return False
    return _verdicts(store).get(result.id)


def holds(result: Result, store: Store) -> bool:
    """Whether an answer still holds. If it hasn't been checked, take its witness and remember the verdict."""
    from evaluation.running import witness

    found = known(result, store)
    if found is None:
        found = not witness.differences(functools.partial(witness.of_run, result.spec), result.witness)
        _remember(store, {result.id: found})
    return found


def unjudged(store: Store) -> list[Result]:
    """The home's answers that another program gave and that haven't been checked."""
    return [r for r in store.own() if r.status == "ok" and known(r, store) is None]


def judge_behind(store: Store) -> None:
    """If there are unjudged answers, start a process of low priority that judges them."""
    if unjudged(store):
        subprocess.Popen(
            [sys.executable, "-m", "evaluation.running.provenance"],
            cwd=ROOT,
            env=os.environ | {place.VARIABLE: str(store.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )


def _file(store: Store) -> Path:
    from evaluation import host

    machine = hashlib.sha256(json.dumps([host.environment().get("processor"), code()]).encode()).hexdigest()[
        :20
    ]
    return store.home / "judged" / f"{machine}.json"


def _verdicts(store: Store) -> dict[str, bool]:
    try:
        found = json.loads(_file(store).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if type(v) is bool} if isinstance(found, dict) else {}


def _remember(store: Store, verdicts: dict[str, bool]) -> None:
    try:
        _file(store).parent.mkdir(parents=True, exist_ok=True)
        place.write(_file(store), json.dumps(_verdicts(store) | verdicts).encode())
    except OSError:
        pass  # the disk is full: it is found out again next time


def main() -> int:
    """Judge all answers that nobody has judged. Returns the exit code 0."""
    import torch

    from evaluation.store import Store

    torch.set_num_threads(1)  # somebody may be using the app meanwhile
    if hasattr(os, "nice"):
        os.nice(10)
    store = Store()
    for result in unjudged(store):
        print(f"{result.id}: {'holds' if holds(result, store) else 'is of other code'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

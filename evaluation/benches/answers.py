"""Records the answers of the shipped points' models, for the page's chat:

    python -m evaluation answers [--only WORDS] [--calibration FILE] [--again] [--dry]

It loads the model, compresses it again as the stored result says, saves it, loads the saved folder as the
chat does, and lets it answer the prompts (evaluation/recorded.py). Nothing is measured, so the evaluation
text isn't read. A point that is fresh (evaluation/recorded.py) is left out unless asked for by --again. The
file is written after each point, whole or not at all: if the command is stopped, the next start continues.

A point takes as long as compressing it, and then some seconds for each prompt. Without a network, give the
calibration text by path, as for `python -m evaluation measure`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation import ROOT, recorded
from evaluation.benches import gates, shipped
from evaluation.benches.gates import LARGER
from evaluation.recorded import PROMPTS, SETTINGS, Prompt
from evaluation.spec import BUILTIN_TEXT, WIKITEXT, Result, RunSpec
from kernels import home

if TYPE_CHECKING:
    from evaluation.running.chat import Side

ORIGINAL = "none"
# one question at 8, 4, 3 and 2 bits: plain rounding, where nothing but the width changes
LADDER = tuple(f"rtn --bits {bits}" for bits in (8, 4, 3, 2))
POINTS = (
    ORIGINAL,
    *LADDER,
    # quantization
    "nf4 --double true",
    "llm_int8",
    "hqq --bits 4",
    "gptq --bits 4",
    "gptq --bits 3",
    "spqr --bits 4",
    # pruning
    gates.BY_GRADIENT,
    "wanda --sparsity 0.5",
    "sparsegpt --sparsity 0.5",
    # low rank
    "svd --removed 0.2",
    "svd_llm --removed 0.2",
    # distillation
    f"gkd {LARGER}",
)
SECONDS = 4.0  # the time that the 135M model takes for an answer on two slow cores


def points() -> list[tuple[str, RunSpec]]:
    """(recipe in words, the run as its result ships), in the order in which they are recorded."""
    known = dict(reversed(shipped.named("gates")))
    return [(words, known[words]) for words in POINTS]


def record(
    spec: RunSpec,
    result: Result,
    prompts: Sequence[Prompt] = PROMPTS,
    say: Callable[[str], None] = lambda told: None,
) -> dict[str, Any]:
    """A recorded point: the run's model answers the prompts. Raises what compressing it raises.

    result: what ships of this run.
    """
    found = {}
    with _made(spec) as side:
        for prompt in prompts:
            found[prompt.name] = answer(side, prompt.text)
            say(f"  {prompt.name}: {found[prompt.name]['text']!r}")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "asked": recorded.asked(prompts),
        "witness": recorded.witnessed(result),
        "answers": found,
    }


@contextlib.contextmanager
def _made(spec: RunSpec) -> Iterator[Side]:
    """The run's model, in the form in which the chat loads it."""
    from compression import artifact, models
    from compression.recorder import Recorder
    from evaluation.running import stages
    from evaluation.running.chat import Side
    from evaluation.running.clock import Clock
    from evaluation.store import Store

    if spec.is_original:
        yield Side("original", models.load(spec.model))
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as held:
        store, clock = Store(Path(folder) / "home", shipped=None), Clock(spec, lambda event: None)
        # nothing is measured: a window of the built-in text takes the place of the evaluation text
        unread = dataclasses.replace(spec, text=BUILTIN_TEXT, tokens=spec.window)
        recorder = Recorder(clock.emit, seed=spec.seed)
        order = stages.Order(
            unread, store, clock, held, recorder, allow_paths=True, timings=False, again=True, nudges=()
        )
        read = stages.read_texts(order)
        loaded = stages.load(order, read)
        outcome = stages.compress(order, read, loaded)
        artifact.save(loaded.bundle, Path(folder) / "model", {"recipe": spec.json()["recipe"]}, outcome.files)
        del loaded, outcome
        yield Side("compressed", artifact.load(Path(folder) / "model"))


def answer(side: Side, text: str) -> dict[str, Any]:
    """What a model answers to a text, computed as the live chat computes it."""
    from evaluation.running import chat

    written, ends = "", []
    question = {"messages": [{"role": "user", "content": text}], **SETTINGS}
    for event in chat.answer([side], question, threading.Event()):
        if "side" in event:
            written += event["text"]
            ends.append(len(written))
    n = len(side.tokens)
    return {"text": written, "tokens": side.tokens, "ends": ends[:n], "ended": n < SETTINGS["max_tokens"]}


def _commit() -> str:
    """The commit of these sources; "" outside a repository."""
    asked = ("git", "rev-parse", "--short=10", "HEAD")
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def write(found: Mapping[str, Any], file: Path) -> None:
    """Write the points that are declared, in their order; any other point is dropped."""
    ids = [shipped.result_id(spec, "gates") for _, spec in points()]
    lines = [f"{json.dumps(i)}: {json.dumps(found[i], ensure_ascii=False)}" for i in ids if i in found]
    home.write(file, ('{"points": {\n' + ",\n".join(lines) + "\n}}\n").encode())


def main(argv: list[str]) -> int:
    """Record what is missing or stale, or all with --again; exit code 1 if a point failed."""
    parser = argparse.ArgumentParser(prog="python -m evaluation answers", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="only points whose recipe contains this, e.g. rtn")
    parser.add_argument(
        "--calibration", default=WIKITEXT, help="calibration text of the points that read one"
    )
    parser.add_argument("--again", action="store_true", help="record the points that are fresh, too")
    parser.add_argument("--dry", action="store_true", help="say what is missing or stale, and record nothing")
    own = parser.parse_args(argv)
    known, todo = recorded.read(), []
    for words, spec in points():
        result = shipped.stored(shipped.RESULTS / shipped.file_name(spec, "gates"))
        why = recorded.why_stale(known.get(shipped.result_id(spec, "gates")), result)
        why = why or ("asked for again" if own.again else "")
        if why and own.only in words:
            print(f"{words}: {why if result else 'left out, because its result is not measured'}", flush=True)
            if result:
                todo.append((words, spec, result))
    seconds = sum(r.metrics.get("compress_seconds", 0.0) + len(PROMPTS) * SECONDS for *_, r in todo)
    print(f"{len(todo)} to record, about {seconds / 60:.0f} min by their last times", flush=True)
    failed = 0
    for words, spec, result in () if own.dry else todo:
        start = time.perf_counter()
        try:
            point = record(
                dataclasses.replace(spec, calibration=own.calibration), result, say=partial(print, flush=True)
            )
        except Exception as error:
            failed += 1
            print(f"{words}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        write(recorded.read() | {shipped.result_id(spec, "gates"): point}, recorded.FILE)
        print(f"{words}: recorded in {time.perf_counter() - start:.0f} s", flush=True)
    return 1 if failed else 0

"""Measures the results that ship in assets/results: `make measure`, or

    python -m evaluation measure [gates|domain|calibration] [--text FILE --calibration FILE]

gates        the points of the first screen (points.py) and the orderings that the tests check (gates.py), on
             32k tokens of WikiText-2: as the page measures a new run. Without a network, give the raw test
             file and a calibration text by path. They stand for WikiText-2, and a result is published under
             that name; its protocol and its source name the files.
domain       fine-tunes four-bit and 16-bit weights to a text that the model hardly knows.
calibration  some of the gates once more, calibrated on a text of another kind than the one that they are
             measured on.

None is timed, because a time belongs to the machine that it was taken on. A run is skipped if the code still
gives its stored result (evaluation/running/witness.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import compression
from compression.catalogue import OFFLINE_MODEL
from evaluation import ROOT
from evaluation.benches import gates, points
from evaluation.running import witness
from evaluation.spec import BUILTIN_TEXT, CALIBRATIONS, FIRST, UNICODE_TEXT, WIKITEXT, Result, RunSpec
from evaluation.store import Store

RESULTS = ROOT / "assets" / "results"
GROUPS = ("gates", "domain", "calibration")
UNKNOWN = 180.0  # seconds that are assumed for a run that was never measured

# gates that only show the order of the widths: at 8 bits nothing is lost, at 2 bits this small model is
# broken
LADDER = (
    "rtn --bits 2",
    "gptq --bits 8",
    "gptq --bits 2",
    "awq --bits 8",
    "awq --bits 2",
    "owq --bits 2",
    "spqr --bits 2",
    "hqq --bits 8",
    "hqq --bits 2",
    "zeroquant --bits 3",
)

# it takes ten minutes on two slow cores
TAUGHT = "--rank 16 --learning_rate 0.002 --train_tokens 32768 --train_minutes 120"

DOMAIN = {
    "none": (0,),
    "nf4 --double true": (0,),
    f"lora {TAUGHT}": range(3),
    f"qlora {TAUGHT}": range(3),
}  # recipe -> its seeds; measured on UNICODE_TEXT

ELSEWHERE = (  # gates that read a text; here they are measured on the gates' text, calibrated on BUILTIN_TEXT
    "gptq --bits 4", "gptq --bits 3", "awq --bits 4", "owq --bits 4", "owq --bits 3", "spqr --bits 4",
    "smoothquant --activations tensor", "smoothquant --activations tensor --smooth false",
)  # fmt: skip

RUN_FIELDS = {
    "cache_bits": int,
    "cache_keys": str,
    "table_bits": int,
    "activations": str,
}  # fields of a run that a recipe's words may set


def recipe(words: str) -> tuple[tuple[str, dict], ...]:
    """The recipe that words describe.

    "wanda --sparsity 0.5 + gptq --bits 4" -> (("wanda", {"sparsity": "0.5"}), ("gptq", {"bits": "4"})).
    """
    return asked(words)[0]


def asked(words: str) -> tuple[tuple[tuple[str, dict], ...], dict]:
    """(recipe, fields of the run) that words describe.

    "none --cache_bits 8" -> ((("none", {}),), {"cache_bits": 8}). A flag belongs to the method if the method
    declares it.
    """
    steps = []
    fields: dict[str, Any] = {}
    for step in words.split(" + "):
        name, *flags = step.split()
        own = {f["name"] for f in compression.get(name).params.describe()}
        values = {flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
        fields |= {k: RUN_FIELDS[k](v) for k, v in values.items() if k in RUN_FIELDS and k not in own}
        steps.append((name, {k: v for k, v in values.items() if k in own or k not in RUN_FIELDS}))
    return tuple(steps), fields


def named(group: str, text: str = WIKITEXT, calibration: str = WIKITEXT) -> list[tuple[str, RunSpec]]:
    """(recipe in words, run) of a group, the original first.

    A recipe with several seeds is listed once for each seed.
    """
    fields: dict[str, Any] = dict(FIRST)
    if group == "domain":
        fields |= {"window": 128, "text": UNICODE_TEXT, "calibration": UNICODE_TEXT}
        return [(w, _spec(w, **fields, seed=seed)) for w, seeds in DOMAIN.items() for seed in seeds]
    fields |= {"text": text, "calibration": BUILTIN_TEXT if group == "calibration" else calibration}
    if group == "calibration":
        return [(w, _spec(w, **fields)) for w in ELSEWHERE]
    return [
        (w, _spec(w, **fields, seed=seed))
        for w in dict.fromkeys((*gates.recipes(), *points.POINTS, *LADDER))
        for seed in gates.SEEDS.get(w, (0,))
    ]


def specs(group: str, text: str = WIKITEXT, calibration: str = WIKITEXT) -> list[RunSpec]:
    """The runs of a group."""
    return [spec for _, spec in named(group, text, calibration)]


def _spec(words: str, **fields) -> RunSpec:
    steps, named = asked(words)
    return RunSpec(OFFLINE_MODEL, steps, **fields | named)


def file_name(spec: RunSpec, group: str) -> str:
    """A result's file name, e.g. "gates-gptq-4-group_size_64.json".

    It has the group, then each step with its main parameters and, by name, the others that differ from their
    defaults; then the bits of a quantized cache, and a seed other than 0. Two runs of a group never share a
    name.
    """
    steps = []
    for method, params in spec.methods:
        values = params.json()
        parts = [
            _plain(values[f["name"]]) if f["main"] else _named(f["name"], values[f["name"]])
            for f in params.describe()
            if f["main"] or values[f["name"]] != f["default"]
        ]
        steps.append("-".join([method.name, *parts]))
    cache = (
        f"-cache{spec.cache_bits}{'-channel' if spec.cache_keys == 'channel' else ''}"
        if spec.cache_bits < 16
        else ""
    )
    drawn = f"-seed{spec.seed}" if spec.seed else ""
    return f"{group}-{'+'.join(steps)}{cache}{drawn}.json"


def result_id(spec: RunSpec, group: str) -> str:
    """The id under which a run's result ships, e.g. "shipped-gates-gptq-4-group_size_64"."""
    return f"shipped-{file_name(spec, group).removesuffix('.json')}".replace("+", ".")


def _named(name: str, value) -> str:
    """ "clip" or "no_clip" for a switch, else e.g. "group_size_64"."""
    return {True: name, False: f"no_{name}"}[value] if isinstance(value, bool) else f"{name}_{_plain(value)}"


def _plain(value) -> str:
    """A value as it may stand in a file name: "2of4", "0.5", "row"."""
    return (
        "row"
        if value == -1
        else f"{value:g}"
        if isinstance(value, float)
        else str(value).replace(":", "of").lower()
    )


def stored(file: Path) -> Result | None:
    """The result in a file of this folder; None if there is none."""
    return Result.parse(json.loads(file.read_text("utf-8"))) if file.is_file() else None


def why_stale(result: Result | None) -> list[str]:
    """Where today's code differs from the code that measured a result, a line each; [] if it agrees."""
    if result is None or result.status != "ok":
        return ["not measured yet"]
    return witness.differences(partial(witness.of_run, result.spec), result.witness)


def seconds(result: Result | None) -> float:
    """How long a run took when it was last measured; UNKNOWN if it never was."""
    parts = ("load_seconds", "compress_seconds", "evaluate_seconds")
    return sum(result.metrics.get(part, 0.0) for part in parts) if result else UNKNOWN


def due(specs: Iterable[tuple[str, RunSpec]]) -> list[tuple[str, RunSpec, float]]:
    """(group, run, seconds that it takes) of the runs whose result is missing or stale.

    What differs is printed.
    """
    found = []
    for group, spec in specs:
        result = stored(RESULTS / file_name(spec, group))
        if why := why_stale(result):
            found.append((group, spec, seconds(result)))
            print(
                f"{file_name(spec, group)}: {why[0]}" + (f" and {len(why) - 1} more" if why[1:] else ""),
                flush=True,
            )
    return found


def publish(result: Result, group: str) -> Path:
    """Write a result for shipping, without an artifact. A file among its texts stands for WikiText-2."""
    text, calibration = (
        name if name in CALIBRATIONS else WIKITEXT for name in (result.spec.text, result.spec.calibration)
    )
    spec = dataclasses.replace(result.spec, text=text, calibration=calibration)
    file = RESULTS / file_name(spec, group)
    shown = dataclasses.replace(result, spec=spec, artifact="", id=result_id(spec, group))
    RESULTS.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_text(
        json.dumps(shown.json(), ensure_ascii=False, indent=1, sort_keys=True) + "\n", "utf-8"
    )
    os.replace(temporary, file)
    return file


def main(argv: list[str]) -> int:
    """Measure what is missing or stale; exit code 1 if a run failed.

    If it is stopped and started again, it goes on where it was.
    """
    from evaluation.running.run import run

    parser = argparse.ArgumentParser(prog="python -m evaluation measure", description=__doc__.split("\n")[0])
    parser.add_argument("group", nargs="?", choices=GROUPS, help="one group only")
    parser.add_argument(
        "--text", default=WIKITEXT, help="evaluation text of the gates, and of the group `calibration`"
    )
    parser.add_argument(
        "--calibration", default=WIKITEXT, help="calibration text of the gates; every other group has its own"
    )
    parser.add_argument(
        "--dry", action="store_true", help="say what is stale and how long it takes, and measure nothing"
    )
    own = parser.parse_args(argv)
    if own.group not in (None, "gates") and own.calibration != WIKITEXT:
        parser.error(
            f"--calibration is for the gates; the group {own.group} has a calibration text of its own"
        )
    groups = (own.group,) if own.group else GROUPS
    todo = due([(group, spec) for group in groups for spec in specs(group, own.text, own.calibration)])
    print(
        f"{len(todo)} to measure, about {sum(took for *_, took in todo) / 60:.0f} min by their last times",
        flush=True,
    )
    failed = 0
    for group, spec, _ in () if own.dry else todo:
        start = time.perf_counter()
        result = run(spec, store=Store(shipped=None), timings=False, nudges=witness.NUDGES)
        took = time.perf_counter() - start
        if result.status == "ok":
            file = publish(result, group)
            print(f"{file.name}: perplexity {result.metrics['perplexity']:.3f}, {took:.0f} s", flush=True)
        else:
            failed += 1
            print(
                f"{file_name(spec, group)}: {result.status}: {result.error.get('message')}",
                file=sys.stderr,
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

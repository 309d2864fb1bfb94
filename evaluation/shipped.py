"""Measure the results that ship in assets/results: `make measure`, or

    python -m evaluation.shipped [page|gates] [--text FILE --calibration FILE]

`page` fills the first screen: the offline model in exactly the page's default protocol. `gates` holds the orderings
that the tests check on 32k tokens of WikiText-2; without a network give the test file (raw) and a calibration text
by path. Timings of shipped results are one machine's and carry its name. A run whose stored result still matches
the code is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from evaluation.spec import BUILTIN_TEXT, PRESETS, ROOT, WIKITEXT, Result, RunSpec
from evaluation.store import Store

OFFLINE_MODEL = "smollm2-135m-instruct-q4_1"
RESULTS = ROOT / "assets" / "results"

PAGE = (
    "none", "rtn --bits 8", "rtn --bits 4", "rtn --bits 3", "gptq --bits 8", "gptq --bits 4", "gptq --bits 3",
    "gptq --bits 2", "wanda --sparsity 0.5", "wanda --pattern 2:4", "magnitude --sparsity 0.5",
    "wanda --sparsity 0.5 + gptq --bits 4", "svd_llm --removed 0.2", "svd_llm --removed 0.4", "svd --removed 0.2",
)  # fmt: skip

GATES = (
    "none", "rtn --bits 8", "gptq --bits 8",
    "rtn --bits 4", "gptq --bits 4", "rtn --bits 4 --group_size -1", "gptq --bits 4 --group_size -1",
    "rtn --bits 3", "gptq --bits 3", "rtn --bits 3 --group_size 128", "gptq --bits 3 --group_size 128",
    "rtn --bits 3 --group_size -1", "gptq --bits 3 --group_size -1",
    "magnitude --sparsity 0.5", "wanda --sparsity 0.5", "svd --removed 0.2", "svd_llm --removed 0.2",
)  # fmt: skip


def recipe(words: str) -> tuple[tuple[str, dict], ...]:
    """"wanda --sparsity 0.5 + gptq --bits 4" -> (("wanda", {"sparsity": "0.5"}), ("gptq", {"bits": "4"}))."""
    steps = []
    for step in words.split(" + "):
        name, *flags = step.split()
        steps.append((name, {flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}))
    return tuple(steps)


def specs(group: str, text: str = WIKITEXT, calibration: str = WIKITEXT) -> list[RunSpec]:
    """The runs of a group, the original first."""
    if group == "page":
        return [RunSpec(OFFLINE_MODEL, recipe(w), **_fields("quick"), text=BUILTIN_TEXT) for w in PAGE]
    fields = _fields("standard") | {"table_bits": 16}
    return [RunSpec(OFFLINE_MODEL, recipe(w), **fields, text=text, calibration=calibration) for w in GATES]


def _fields(preset: str) -> dict:
    return PRESETS[preset] | {"preset": preset}


def stored(spec: RunSpec, fingerprint_of: dict[str, Result]) -> Result | None:
    return fingerprint_of.get(spec.identity())


def file_name(spec: RunSpec, group: str) -> str:
    words = "+".join("-".join([n, *(f"{v}" for v in m.params.parse(p).effective().values())])
                     for (n, p), (m, _) in zip(spec.recipe, spec.methods, strict=True))  # fmt: skip
    return f"{group}-{words}.json".replace(":", "of").replace("--1", "-row").lower()

"""The sum that comes first: parameters times bytes, keys and values, and what training needs.

The browser does the sum, by the formulas of compression/bundle.py (keys and values) and the bytes of Adam
in 32 bits. Parameters and shapes come from the catalogue, or from a model's own paper.
"""

from __future__ import annotations

import math

from compression.bundle import Geometry
from compression.catalogue import CATALOGUE, OF_PAPERS
from evaluation.choosing.planner import MACHINES
from evaluation.learning.lesson import Lesson, Real, attempt, claim

LISTED = ("llama-3.1-8b", "qwen3-0.6b", "smollm2-135m-instruct")
SHOWN = ("pi5", "m4", "rtx4090", "a100")
ASKED, CARD, BITS = "gpt-175b", "a100", 16


def make(real: Real) -> dict:
    """Parameters and the cache's bytes a token of five models, and the memory of four machines."""
    machines = {m.key: m for m in MACHINES if m.key in SHOWN}
    models = [
        _model(name, title, parameters, geometry) for name, (title, parameters, geometry) in OF_PAPERS.items()
    ] + [_model(name, _title(name), e.parameters, e.geometry) for name in LISTED for e in [CATALOGUE[name]]]
    asked, card = OF_PAPERS[ASKED], machines[CARD].memory_bytes
    size = asked[1] * BITS / 8
    return {
        "facts": {
            "gigabytes": size / 1e9,
            "gibibytes": size / 2**30,
            "cards": math.ceil(size / card),
            "four": asked[1] * 4 / 8 / 1e9,
            "three": asked[1] * 3 / 8 / 1e9,
        },
        "asked": ASKED,
        "card": CARD,
        "models": models,
        "machines": [
            {"key": k, "title": machines[k].title, "bytes": machines[k].memory_bytes} for k in SHOWN
        ],
        "question": {
            "kind": "number",
            "lo": 1,
            "hi": 16,
            "step": 1,
            "start": 1,
            "unit": "cards",
            "answer": math.ceil(size / card),
            "counted": True,
        },
        "tries": [
            attempt(tab="plan", event="opened"),
            attempt([("gptq", {"bits": 4})], run=real.id("gptq --bits 4"), event="shown"),
        ],
    }


def _title(name: str) -> str:
    return CATALOGUE[name].title


def _model(name: str, title: str, parameters: float, geometry: Geometry) -> dict:
    return {
        "name": name,
        "title": title,
        "parameters": parameters,
        "cache": geometry.kv_cache_bytes_per_token(16),
        "positions": geometry.positions,
    }


def check(data: dict) -> None:
    """Five cards of 80 GB, one at 3 bits; the survey's 320 GB are the same bytes in multiples of 1024."""
    facts = data["facts"]
    claim(facts["cards"] == 5, "the weights don't need five cards any more")
    claim(facts["three"] < 80 < facts["four"] < 160, "3 bits don't fit one card, or 4 bits don't fit two")
    claim(320 < facts["gibibytes"] < 330, "the survey's 320 isn't the size in multiples of 1024")


LESSON = Lesson("sum", (), make, check)

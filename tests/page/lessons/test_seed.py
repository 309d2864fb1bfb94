"""What a seed draws (assets/learn/seed.js) is what FNV-1a, Mulberry32 and a shuffle by Fisher and Yates give, and it
differs between seeds."""

from __future__ import annotations

import json

import pytest

from evaluation.learning.lessons import NAMES
from tests.page.lessons.conftest import AT
from tests.page.stage import ROOT

pytestmark = pytest.mark.browser
WORD = 2**32
DRAWING = f"""async ([seed, lesson, what, ...values]) =>
  (await import('{AT}seed.js')).drawing(seed, lesson)[what](...values)"""
SEEDS = ["", "1", "2", "B7KQ", "二班", "a longer seed with spaces"]


def fnv1a(text):
    """32 bits, a UTF-16 unit at a time."""
    found, units = 2166136261, text.encode("utf-16-le")
    for i in range(0, len(units), 2):
        found = (found ^ int.from_bytes(units[i : i + 2], "little")) * 16777619 % WORD
    return found


def mulberry32(state):
    """Tommy Ettinger's generator: a counter through two rounds of multiply and shift."""
    while True:
        state = (state + 0x6D2B79F5) % WORD
        z = (state ^ state >> 15) * (state | 1) % WORD
        z ^= (z + (z ^ z >> 7) * (z | 61)) % WORD
        yield (z ^ z >> 14) / WORD


def stream(seed, lesson, name):
    return mulberry32(fnv1a(f"{seed} {lesson} {name}"))


@pytest.fixture
def draw(empty):
    return lambda *asked: empty.evaluate(DRAWING, list(asked))


def test_known_values(empty):
    """Of FNV-1a from its authors' table; Mulberry32 by the oracle above."""
    found = empty.evaluate(f"async () => (await import('{AT}seed.js')).hash('foobar')")
    assert found == fnv1a("foobar") == 0xBF9CF968


@pytest.mark.parametrize("seed", SEEDS)
def test_one_and_shuffled(draw, seed):
    things = list(range(23))
    expected, numbers = [*things], stream(seed, "sum", "order")
    for i in range(len(things) - 1, 0, -1):
        j = int(next(numbers) * (i + 1))
        expected[i], expected[j] = expected[j], expected[i]
    assert draw(seed, "sum", "shuffled", "order", things) == (expected if seed else things)
    one = things[int(next(stream(seed, "sum", "row")) * 23)]
    assert draw(seed, "sum", "one", "row", things, 5) == (one if seed else 5)


def test_seeds_lessons_and_names_draw_apart(draw):
    things = list(range(12))
    asked = [(s, lesson, n) for s in SEEDS[1:] for lesson in ("sum", "gptq") for n in ("a", "b")]
    drawn = {tuple(draw(s, lesson, "shuffled", n, things)) for s, lesson, n in asked}
    assert len(drawn) == len(asked)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_shows_one_of_the_draws(draw, name):
    data = json.loads((ROOT / f"assets/learn/lessons/{name}/data.json").read_text("utf-8"))
    draws = data.pop("draws", [])
    assert draw("", name, "shown", data | {"draws": draws}) == data
    all_of_it = [data, *(data | own | {"facts": data["facts"] | own.get("facts", {})} for own in draws)]
    shown = [draw(str(seed), name, "shown", data | {"draws": draws}) for seed in range(60)]
    assert all(one in all_of_it for one in shown)
    assert all(one in shown for one in all_of_it), "60 seeds meet every draw"

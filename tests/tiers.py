"""Which tests a run takes.

    make test-all   every test: `pytest --all`
    make test       without those marked `slow`; of a product of three or more parameters only as many cases
                    as it takes for each pair of values to meet, and of a long list (`met`) as many as it
                    takes to meet each of its traits
    make quick      up to a dozen cases of each short test: `pytest --quick`; one case of a longer one, and
                    none of those that take about a second (tests/long.txt) or need a browser, the real model
                    or a quiet machine

A fault that needs three parameters at once to show is rare; one that needs a pair is met by the first two.
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest

# "0 name" or "1 name" of a long test, "999 name" of one of many tiny cases: how many the quick tier takes
LONG = Path(__file__).with_name("long.txt")
CASES = 12  # of any other test
ELSEWHERE = ("slow", "browser", "model", "alone")  # marks of what `make quick` leaves to `make test`


def axes(item) -> dict[str, tuple]:
    """{parameter: its value's identity} of a test's case. Parameters that stand in one list are one."""
    params = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    found = {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if isinstance(mark.args[0], str) else ",".join(mark.args[0])
        found[names] = tuple(id(params.pop(name.strip())) for name in names.split(","))
    return found | {name: (id(value),) for name, value in params.items()}


def cover(held: Sequence[frozenset]) -> list[int]:
    """Places of sets that together hold whatever any of them holds, greedily: the one that holds most of what
    no earlier one has comes next."""
    missing = set().union(*held)
    taken: list[int] = []
    while missing:
        best = max(range(len(held)), key=lambda i: (len(held[i] & missing), -i))
        taken.append(best)
        missing -= held[best]
    return sorted(taken)


def pairs(cases: Sequence[dict]) -> list[int]:
    """Places of cases that together hold every pair of values that any of the cases holds.

    cases: {parameter: value} each.
    """
    return cover([frozenset(itertools.combinations(sorted(case.items()), 2)) for case in cases])


def met(cases: Sequence, *traits: Callable[[Any], Hashable]) -> list:
    """The cases as a test's parameters: `make test` runs so many as it takes to meet whatever each trait says
    of any of them, `make test-all` runs all. Cases of which the traits say the same wait for their turn."""
    said = [frozenset((i, trait(case)) for i, trait in enumerate(traits)) for case in cases]
    kept = set(cover(said))
    return [pytest.param(c, marks=() if i in kept else pytest.mark.slow) for i, c in enumerate(cases)]


def left_out(items: Sequence) -> list:
    """The items that `make test` leaves to `make test-all`."""
    found, products = [], defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow"):
            found.append(item)
        elif len(axes(item)) > 2:
            products[item.nodeid.partition("[")[0]].append(item)
    for product in products.values():
        kept = set(pairs([axes(item) for item in product]))
        found += [item for i, item in enumerate(product) if i not in kept]
    return found


def function(item) -> str:
    """A test's name without its case."""
    return item.nodeid.partition("[")[0]


def limits() -> dict[str, int]:
    """Test -> how many of its cases `make quick` takes at most, where that isn't a dozen."""
    lines = (line.split() for line in LONG.read_text("utf-8").splitlines())
    return {name: int(count) for count, name in lines}


def not_quick(items: Sequence) -> list:
    """The items that `make quick` leaves to `make test`."""
    most = limits()
    cases, found = defaultdict(list), []
    for item in items:
        (found if any(map(item.get_closest_marker, ELSEWHERE)) else cases[function(item)]).append(item)
    for name, same in cases.items():
        count = min(len(same), most.get(name, CASES))
        # evenly spread; tests over the same architectures begin at different ones
        first = zlib.crc32(name.encode())
        taken = {(first + i * len(same) // count) % len(same) for i in range(count)}
        found += [item for i, item in enumerate(same) if i not in taken]
    return found

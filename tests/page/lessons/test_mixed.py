"""The mixed lesson's search in the browser finds what the maker finds, at every budget."""

from __future__ import annotations

import random

import pytest

from evaluation.learning.lessons.mixed import CHOICES, PARTS, WIDTHS, best_of

pytestmark = pytest.mark.browser


def test_choices_come_in_the_tables_order(lesson):
    assert lesson("mixed", "choices", list(WIDTHS), len(PARTS)) == [list(choice) for choice in CHOICES]


@pytest.mark.parametrize("seed", range(3))
def test_the_best_within_each_budget(lesson, seed):
    drawn = random.Random(seed)
    sizes = [sorted(drawn.randrange(100, 10_000) for _ in WIDTHS) for _ in PARTS]
    table = {choice: drawn.random() for choice in CHOICES}
    listed, kl = [list(choice) for choice in CHOICES], list(table.values())
    least, most = sum(own[0] for own in sizes), sum(own[-1] for own in sizes)
    for budget in range(least, most + 1, max(1, (most - least) // 9)):
        got = lesson("mixed", "best", listed, kl, list(WIDTHS), sizes, budget)
        assert tuple(got) == best_of(table, sizes, budget)
    assert lesson("mixed", "best", listed, kl, list(WIDTHS), sizes, least - 1) is None

"""What `make test` leaves out still meets every pair."""

from __future__ import annotations

import itertools

import pytest

from tests.tiers import pairs


@pytest.mark.parametrize("sizes", [(3,), (4, 5), (3, 3, 3), (46, 10, 4), (2, 2, 2, 2, 2)])
def test_every_pair_of_a_product_is_met_by_few_cases(sizes):
    cases = [dict(zip("abcde", places, strict=False)) for places in itertools.product(*map(range, sizes))]
    taken = pairs(cases)
    met = [set(itertools.combinations(sorted(cases[i].items()), 2)) for i in taken]
    wanted = set().union(*(set(itertools.combinations(sorted(case.items()), 2)) for case in cases))
    assert set().union(*met) == wanted
    if len(sizes) > 1:
        fewest = sizes[0] * sizes[1] if len(sizes) < 5 else 4
        assert fewest <= len(taken) <= 1.7 * fewest


def test_cases_of_one_list_are_all_kept():
    """Parameters that stand in one list have one index: each case holds pairs that no other has."""
    assert pairs([{"a": i, "b": i, "c": i} for i in range(5)]) == [0, 1, 2, 3, 4]

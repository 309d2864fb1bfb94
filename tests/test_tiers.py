"""What `make test` leaves out still meets every pair."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.mutations import COPIED, MUTATIONS, ROOT
from tests.tiers import limits, met, pairs


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


def test_of_a_long_list_as_many_cases_stay_as_it_takes_to_meet_each_trait():
    cases = [*itertools.product(range(5), (1, 17), "ab")]
    made = met(cases, lambda case: case[:2], lambda case: case[2])
    kept = [case.values[0] for case in made if not case.marks]
    assert [case.values[0] for case in made] == cases and len(kept) == 10
    assert {case[:2] for case in kept} == {*itertools.product(range(5), (1, 17))}
    assert {case[2] for case in kept} == {*"ab"}
    assert {mark.name for case in made for mark in case.marks} == {"slow"}


def test_the_faults_that_the_quick_tests_are_tried_on_reach_every_folder():
    """`make mutations` tries them; here only that each can still be put in, and where."""
    for name, old, new, test in MUTATIONS:
        assert (ROOT / name).read_text("utf-8").count(old) == 1 and old != new, f"{name} has changed: {old!r}"
        assert not test or (ROOT / "tests" / test).is_file()
    folders = {str(Path(name).parent) for name, *_ in MUTATIONS}
    code = {f for f in ROOT.rglob("*.py") if f.relative_to(ROOT).parts[0] in set(COPIED) - {"tests"}}
    rooms = {str(f.parent.relative_to(ROOT)) for f in code}
    assert rooms - folders <= {"evaluation/benches", "evaluation/commands"}
    assert len(MUTATIONS) >= 50 and sum(bool(test) for *_, test in MUTATIONS) >= 40


def test_the_long_tests_are_there():
    """A name that no test has any more hides nothing, and should go."""
    for name in limits():
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text("utf-8"), name

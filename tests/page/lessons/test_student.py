"""The student's formulas in the browser are those of compression/divergences.py."""

from __future__ import annotations

import math

import pytest
import torch

from compression.divergences import forward_kl, reverse_kl
from evaluation.learning.lessons.student import best

pytestmark = pytest.mark.browser
TEACHERS = {
    "two hills": [0.003, 0.063, 0.401, 0.091, 0.03, 0.029, 0.013, 0.349, 0.016, 0.005],
    "one hill": [0.001, 0.002, 0.01, 0.05, 0.15, 0.4, 0.3, 0.07, 0.012, 0.005],
}


@pytest.mark.parametrize("mean, width", [(5, 1), (0, 0.4), (8.7, 5)])
def test_one_hill(lesson, mean, width):
    places = torch.arange(10).double()
    expected = torch.softmax(-((places - mean) ** 2) / (2 * width**2), 0)
    assert lesson("student", "hill", mean, width) == pytest.approx(expected.tolist(), abs=1e-12)


@pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS)
def test_both_divergences(lesson, teacher):
    p = torch.tensor(teacher, dtype=torch.float64) / sum(teacher)
    q = torch.tensor(lesson("student", "hill", 3, 2), dtype=torch.float64)
    for which, measure in (("forward", forward_kl), ("reverse", reverse_kl)):
        got = lesson("student", f"MEASURES.{which}", p.tolist(), q.tolist())
        assert got == pytest.approx(float(measure(p.log(), q.log())), abs=1e-9)


def test_what_was_never_written_makes_the_reverse_divergence_infinite(lesson):
    assert math.isinf(lesson("student", "kl", [0.5, 0.5], [1, 0]))
    assert lesson("student", "kl", [1, 0], [0.5, 0.5]) == pytest.approx(math.log(2))


def test_each_objective_finds_its_own_best(lesson):
    teacher = TEACHERS["two hills"]
    chances = [v / sum(teacher) for v in teacher]
    covers, picks = (lesson("student", "best", chances, which) for which in ("forward", "reverse"))
    assert (covers["mean"], covers["width"]) == pytest.approx(best(chances, "forward"), abs=0.1)
    assert (picks["mean"], picks["width"]) == pytest.approx(best(chances, "reverse"), abs=0.1)
    assert round(picks["mean"]) == 2 and picks["width"] < 1 < covers["width"]

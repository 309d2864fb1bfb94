"""The verdicts in the browser are those of evaluation/verdict.py, on the numbers that ship."""

from __future__ import annotations

import json
import math

import pytest

from evaluation import verdict
from tests.page.stage import ROOT

pytestmark = pytest.mark.browser
SHIPPED = json.loads((ROOT / "assets/learn/lessons/believe/data.json").read_text("utf-8"))


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 30, 63])
def test_students_distribution(lesson, freedom):
    for t in (0.3, 1.0, 2.5):
        assert lesson("believe", "shareBelow", t, freedom) == pytest.approx(verdict.share_below(t, freedom))
    assert lesson("believe", "quantile", 0.975, freedom) == pytest.approx(verdict.quantile(0.975, freedom))


@pytest.mark.parametrize("pair", SHIPPED["pairs"], ids="-".join)
@pytest.mark.parametrize("windows", [4, 17, 64])
def test_a_pair_of_results(lesson, pair, windows):
    ours, control = (SHIPPED["models"][name]["losses"][:windows] for name in pair)
    got, expected = lesson("believe", "paired", ours, control), verdict.paired(ours, control)
    assert got["word"] == expected.word
    for name, key in (("mean", "mean"), ("margin", "margin"), ("ratio", "ratio")):
        assert got[key] == pytest.approx(getattr(expected, name))
    assert got["ratioMargin"] == pytest.approx(expected.ratio_margin)


def test_an_interval_of_one_result(lesson):
    losses = [3.0, 3.5, 4.0, 3.2, 3.1]
    expected = verdict.paired(losses, [0.0] * 5)
    got = lesson("believe", "interval", losses)
    assert (got["mean"], got["margin"]) == pytest.approx((expected.mean, expected.margin))


def test_equal_results_cant_be_told_apart(lesson):
    got = lesson("believe", "paired", [1, 2, 3], [1, 2, 3])
    assert got["word"] == "unclear" and math.isclose(got["ratio"], 1)

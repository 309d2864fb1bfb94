"""The verdict: against tables, against numerical integration, and against how often it is wrong."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from evaluation.verdict import Difference, paired, quantile, share_below

# Student 1908; 97.5 %
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 63: 1.998, 1000: 1.962}


@pytest.mark.parametrize("freedom, expected", TABLE.items())
def test_quantiles_of_the_printed_table(freedom, expected):
    assert quantile(0.975, freedom) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9])
def test_the_distribution_is_the_integral_of_its_density(freedom):
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    steps, end = 20_000, 1.7
    height = [
        scale * (1 + (end * i / steps) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps + 1)
    ]
    area = (sum(height) - (height[0] + height[-1]) / 2) * end / steps
    assert share_below(end, freedom) == pytest.approx(0.5 + area, abs=1e-7)


def test_pairs_are_the_textbooks():
    """A paired t test by hand: differences -1, -2, -3 have mean -2 and standard error 1/sqrt(3)."""
    found = paired([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert (found.mean, found.stderr, found.freedom) == (-2.0, pytest.approx(1 / math.sqrt(3)), 2)
    assert found.margin == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert found.word == "unclear", "2 is less than 4.303 / sqrt(3)"
    assert found.ratio == pytest.approx(math.exp(-2))
    assert found.ratio_margin == pytest.approx(found.ratio * found.margin)


def test_a_pair_is_seen_where_two_means_are_not():
    """Windows differ by more than the methods do; every window agrees who is better."""
    draw = random.Random(0)
    hard = [3 + draw.gauss(0, 0.5) for _ in range(64)]
    ours = [x - 0.02 + draw.gauss(0, 0.02) for x in hard]
    assert paired(ours, hard).word == "better" and paired(hard, ours).word == "worse"
    assert statistics.stdev(hard) / math.sqrt(64) > 0.02, "the error of each mean alone"


def test_higher_may_be_better():
    assert paired([0.9, 0.8, 0.91, 0.85], [0.5, 0.41, 0.52, 0.46], higher_is_better=True).word == "better"


def test_equal_results_and_single_pairs_tell_nothing():
    assert paired([1.0, 2.0], [1.0, 2.0]).word == "unclear"
    assert paired([1.0], [2.0]).word == "unclear" and math.isnan(paired([1.0], [2.0]).margin)
    assert paired([1.0, 2.0], [9.0, 9.0], clusters=["a", "a"]).word == "unclear", (
        "one cluster is one observation"
    )


def test_a_repeated_pair_is_no_second_observation():
    """The same five differences, each told four times: clustered, the error is that of five."""
    once = [-0.1, 0.3, -0.4, -0.2, 0.1]
    told = paired([d for d in once for _ in range(4)], [0.0] * 20, [i for i in range(5) for _ in range(4)])
    assert (told.mean, told.stderr, told.freedom) == pytest.approx(
        (-0.06, statistics.stdev(once) / math.sqrt(5), 4)
    )
    assert paired([d for d in once for _ in range(4)], [0.0] * 20).stderr < 0.5 * told.stderr, (
        "not clustered it looks surer than it is"
    )


@pytest.mark.parametrize("pairs", [3, 10])
def test_where_there_is_no_difference_one_verdict_in_twenty_is_wrong(pairs):
    draw = random.Random(pairs)
    said = [
        paired([draw.gauss(0, 1) for _ in range(pairs)], [0.0] * pairs).word != "unclear" for _ in range(4000)
    ]
    assert statistics.mean(said) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    "ours, control, clusters",
    [
        ([], [], None),
        ([1.0], [1.0, 2.0], None),
        ([1.0, 2.0], [1.0, 2.0], ["a"]),
        ([math.nan], [1.0], None),
        ([1.0], [math.inf], None),
    ],
)
def test_what_can_not_be_paired_is_refused(ours, control, clusters):
    with pytest.raises(ValueError, match="pairs need"):
        paired(ours, control, clusters)


def test_an_interval_that_touches_zero_is_unclear():
    assert (
        Difference(-0.1, 0.05, 0.1, 9).word == "unclear"
        and Difference(-0.1001, 0.05, 0.1, 9).word == "better"
    )

"""HQQ against the half-quadratic steps written out group by group, and what it must never do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import get
from compression.base import Site, Stats
from compression.quantization.hqq import HqqParams, first_grid, hqq
from tests import oracles


def run(weight, **params):
    method = get("hqq")
    edit = method.compress(Site("a", "q", 0, 1, weight, None, None), Stats(0), method.params.parse(params))
    return edit.linears["a"]


def heavy(out=24, n=80, size=0.05, seed=0):
    """Weights with a few large ones."""
    g = torch.Generator().manual_seed(seed)
    return size * torch.randn(out, n, generator=g) * (1 + 5 * (torch.rand(out, n, generator=g) > 0.98))


def power(weight, found, p=0.7):
    return (weight - found).abs().double().pow(p)


def decode(groups, scale, zero, bits):
    codes = torch.round(groups / scale[:, None] + zero[:, None]).clamp(0, 2**bits - 1)
    return scale[:, None] * (codes - zero[:, None])


@pytest.mark.parametrize(
    "bits, p, beta, size",
    [(4, 0.7, 10.0, 0.05), (2, 0.7, 10.0, 3.0), (3, 1.0, 50.0, 1.0), (2, 0.5, 1.0, 5.0)],
)
def test_equals_the_oracle(bits, p, beta, size):
    """With small weights every error is shrunk to nothing, with large ones some are kept: both ways of the
    first step."""
    groups = heavy(40, 64, size)
    params = HqqParams(bits=bits, p=p, beta=beta, round_zero=False)
    scale, zero = hqq(groups, params)
    same = 0
    for i, group in enumerate(groups.numpy().astype(np.float64)):
        s, z, tried = oracles.quantization.hqq(group, bits, p=p, beta=beta)
        assert float(scale[i]) == s
        one = slice(i, i + 1)
        found = float(power(groups[one], decode(groups[one], scale[one], zero[one], bits), p).sum())
        assert found == pytest.approx(min(tried)[0], rel=1e-2)
        same += float(zero[i]) == z
    assert same >= 37  # a weight at a tie may go either way in float32, and the path with it


def test_shrinking_matters():
    """Where errors are large enough for beta to keep some, their sum of powers is smaller than with the mean
    alone."""
    groups = heavy(400, 64, 1.0)
    sums = []
    for beta in (10.0, 1e-2):  # with 0.01 every error is shrunk to nothing: the mean, least squares
        scale, zero = hqq(groups, HqqParams(bits=4, beta=beta))
        sums.append(power(groups, decode(groups, scale, zero, 4)).sum())
    assert sums[0] < 0.997 * sums[1]


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_group_is_worse_than_its_start_and_the_sum_is_better(bits):
    """The start is rounding with a real zero point."""
    groups = heavy(300, 64)
    scale, zero = hqq(groups, HqqParams(bits=bits, round_zero=False))
    first = first_grid(groups, bits)
    before, after = (power(groups, decode(groups, s, z, bits)).sum(1) for s, z in (first, (scale, zero)))
    assert torch.equal(scale, first[0]), "only zero points move"
    assert (
        bool((after <= before * (1 + 1e-6)).all())
        and after.sum() < (0.95 if bits == 2 else 0.995) * before.sum()
    )


def test_no_rounds_is_rounding_with_a_real_zero():
    weight = heavy()
    packed = run(weight, bits=3, group_size=16, iterations=0, round_zero=False)
    for start in range(0, 80, 16):
        group = weight[:, start : start + 16].double()
        low, high = group.amin(1, True), group.amax(1, True)
        scale = ((high - low) / 7).half().double()
        zero = (-low / scale).half().double()
        expected = scale * ((group / scale + zero).round().clamp(0, 7) - zero)
        assert torch.allclose(packed.dequantize()[:, start : start + 16].double(), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_whole_first_zero_meets_small_weights_exactly(bits):
    """The authors' round_zero, a weight of 0 is then met exactly at the start, and not without it."""
    groups = heavy(50, 64)
    groups[:, 5] = 0
    for whole in (True, False):
        scale, zero = hqq(groups, HqqParams(bits=bits, iterations=0, round_zero=whole))
        exact = decode(groups, scale, zero, bits)[:, 5] == 0
        assert bool(exact.all()) if whole else not bool(exact.any())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_better_than_rounding_with_a_zero_point_on_the_grid(bits):
    weight = heavy(64, 256)
    ours, method = run(weight, bits=bits).dequantize(), get("rtn")
    edit = method.compress(
        Site("a", "q", 0, 1, weight, None, None), Stats(0), method.params.parse({"bits": bits})
    )
    plain = edit.linears["a"].dequantize()
    assert power(weight, ours).sum() < 0.98 * power(weight, plain).sum()
    assert (weight - ours).norm() < (weight - plain).norm()


def test_codes_on_the_grid_stay():
    """Weights that are marks of a ruler from 0 to 15: nothing to gain, nothing lost."""
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (8, 64), generator=g)
    codes[:, 0], codes[:, 1] = 0, 15
    weight = 0.125 * (codes - 6.5)
    assert torch.equal(run(weight, bits=4, round_zero=False).dequantize(), weight)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 300.0, 1e-5])
def test_groups_of_equal_and_nearly_equal_weights(value):
    weight = torch.full((2, 32), value)
    weight[1] += 1e-4 * abs(value) * torch.linspace(0, 1, 32)
    found = run(weight, bits=4, group_size=16).dequantize()
    assert (found - weight).abs().amax() <= 1e-3 * abs(value) + 1e-5


def test_bits_a_weight():
    assert run(heavy(64, 256), bits=4).bits_per_weight() == 4.5
    assert run(heavy(64, 256), bits=3, group_size=128).bits_per_weight() == 3.25

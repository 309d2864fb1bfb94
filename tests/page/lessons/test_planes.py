"""Planes and looked-up sums in the browser are those of compression/quantization/lut_gemm.py."""

from __future__ import annotations

import itertools

import pytest
import torch

from compression.quantization.lut_gemm import planes_of
from compression.quantization.rtn import fit

pytestmark = pytest.mark.browser


@pytest.fixture
def problem():
    drawn = torch.Generator().manual_seed(0)
    return torch.randn(16, generator=drawn), torch.randn(16, generator=drawn)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_planes(lesson, problem, bits):
    weight, _ = problem
    grid = fit(weight[None], bits, -1, False)
    scale, zero = grid.scale.float().item(), grid.zero_points().item()
    got = lesson("planes", "planes", weight.tolist(), bits)
    assert got["signs"] == (2 * planes_of(grid.round(weight[None])[0], bits).int() - 1).tolist()
    assert got["alpha"] == pytest.approx([scale * 2 ** (k - 1) for k in range(bits)], rel=1e-3)
    assert got["offset"] == pytest.approx(scale * ((2**bits - 1) / 2 - zero), rel=1e-3)


def test_the_table_holds_every_sum_once(lesson):
    x = [1.0, 10.0, 100.0, 1000.0]
    table = lesson("planes", "table", x)
    assert len(table) == 16 and table[-1] == sum(x)
    for signs in itertools.product((-1, 1), repeat=4):
        key = lesson("planes", "keyOf", list(signs))
        assert table[key] == sum(s * v for s, v in zip(signs, x, strict=True))


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_looking_up_gives_the_product(lesson, problem, bits, chunks):
    weight, x = problem
    grid = fit(weight[None], bits, -1, False)
    expected = float((grid.decode(grid.round(weight[None]))[0] * x)[: 4 * chunks].sum())
    got = lesson("planes", "product", weight.tolist(), x.tolist(), bits, chunks)
    assert got["looked"] == pytest.approx(got["plain"], abs=1e-9)
    assert got["looked"] == pytest.approx(expected, rel=2e-3, abs=2e-3)

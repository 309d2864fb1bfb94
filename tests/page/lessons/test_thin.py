"""The thin lesson's formulas in the browser: bytes of two factors, and what a rank leaves out."""

from __future__ import annotations

import pytest
import torch

from compression.base import Site, Stats
from compression.low_rank import svd
from compression.low_rank.rank import rank_for

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("out, n, removed", [(24, 24, 0.2), (40, 16, 0.5), (16, 48, 0.9)])
def test_against_the_factors_themselves(lesson, out, n, removed):
    weight = torch.randn(out, n, generator=torch.Generator().manual_seed(out))
    site = Site("down", "down", 0, 1, weight, None, None)
    packed = svd.compress(site, Stats(tokens=0), svd.SvdParams(removed=removed)).linears["down"]
    rank = rank_for((out, n), removed)
    assert lesson("thin", "factorBytes", [out, n], rank) == packed.stored_bytes()
    lost = float((weight - packed.dequantize()).square().sum() / weight.square().sum())
    spectrum = torch.linalg.svdvals(weight.double()).tolist()
    assert lesson("thin", "leftOut", spectrum, rank) == pytest.approx(lost, rel=0.01)  # factors of 16 bits


def test_the_whole_matrix_leaves_nothing_out(lesson):
    assert lesson("thin", "leftOut", [3, 2, 1], 3) == 0
    assert lesson("thin", "leftOut", [3, 2, 1], 1) == pytest.approx(5 / 14)

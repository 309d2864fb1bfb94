"""ASVD against the paper's form with the inverse of S, its limit cases and its claim."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compression import get
from compression.base import CalibrationError, Stats
from compression.low_rank.rank import rank_for
from tests import oracles
from tests.compression.test_methods import inputs, run, site


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_equals_the_oracle(shape, alpha):
    here, x = site(*shape), inputs(shape[1])
    packed, _ = run("asvd", here, x, removed=0.4, alpha=alpha)
    weight, wide = here.weight.numpy().astype(np.float64), x.numpy().astype(np.float64)
    expected = oracles.low_rank.asvd(weight, wide, rank_for(shape, 0.4), alpha)
    assert np.abs(packed.dequantize().numpy() - expected).max() < 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_without_loudness_it_is_svd(shape):
    here = site(*shape)
    plain = run("svd", here, removed=0.5)[0].dequantize()
    for x, alpha in ((inputs(shape[1]), 0.0), (torch.ones(9, shape[1]), 0.5)):
        assert (run("asvd", here, x, removed=0.5, alpha=alpha)[0].dequantize() - plain).abs().max() < 6e-3


def test_inputs_of_one_kind_each_make_alpha_1_the_optimum():
    """Uncorrelated inputs whose loudness is their root mean square: S^2 is the Gram matrix up to a factor."""
    here = site(24, 40)
    loud = 0.1 + 3 * torch.rand(40, generator=torch.Generator().manual_seed(2)) ** 4
    x = torch.linalg.qr(torch.randn(64, 40, generator=torch.Generator().manual_seed(3))).Q * loud
    same = Stats(64, mean_abs=loud)
    best = run("svd_llm", here, x, removed=0.5)[0].dequantize()
    packed = get("asvd").compress(here, same, get("asvd").params(removed=0.5, alpha=1.0)).linears[here.path]
    assert (packed.dequantize() - best).abs().max() < 6e-3 * best.abs().max()


def test_a_silent_input_is_no_division_by_zero():
    here, x = site(), inputs()
    x[:, 5] = 0
    packed, _ = run("asvd", here, x, removed=0.2)
    assert bool(packed.dequantize().isfinite().all())


def test_activations_that_are_not_finite_are_told():
    with pytest.raises(CalibrationError, match="not finite"):
        get("asvd").compress(site(), Stats(5, mean_abs=torch.full((40,), torch.nan)), get("asvd").params())


def test_loud_inputs_are_worth_more():
    """The claim: a few channels many times louder than the rest, as language models have them."""
    here = dataclasses.replace(site(48, 64, seed=4), role="up")
    g = torch.Generator().manual_seed(6)
    x = torch.randn(600, 64, generator=g) * torch.where(torch.rand(64, generator=g) < 0.1, 20.0, 1.0)

    def outputs(name):
        return float(((here.weight - run(name, here, x, removed=0.3)[0].dequantize()) @ x.T).square().sum())

    assert outputs("asvd") < 0.5 * outputs("svd") and outputs("svd_llm") <= outputs("asvd")

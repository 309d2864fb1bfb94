"""NMF against entry-by-entry updates, its invariants, its limit cases and what Eckart and Young promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import get
from compression.low_rank.nmf import factorise
from compression.low_rank.rank import rank_for
from tests import oracles
from tests.compression.test_methods import run, site


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_equals_the_oracle(shape, signed):
    weight = site(*shape).weight.double()
    weight = weight if signed else weight.clamp_min(0)
    for rounds in (1, 3):
        u, v = factorise(weight, 4, rounds, signed)
        first = torch.Generator().manual_seed(0)
        level = (weight.abs().mean() / 4).sqrt()
        start = (torch.randn if signed else torch.rand)(4, shape[0], generator=first) * level
        other = torch.rand(4, shape[1], generator=first) * level
        a, b = oracles.low_rank.hals(weight.numpy(), start.T.numpy(), other.numpy(), rounds, signed)
        assert np.allclose((u @ v).numpy(), a @ b, atol=1e-9)


@pytest.mark.parametrize("signed", [False, True])
def test_the_error_never_rises_and_the_factors_are_not_negative(signed):
    weight, last = site(40, 60).weight, np.inf
    weight = weight if signed else weight.clamp_min(0)
    for updates in range(1, 25):
        u, v = factorise(weight, 8, updates, signed)
        error = float((weight - u @ v).square().sum())
        assert error <= last * (1 + 1e-6)
        assert bool((v >= 0).all()) and (signed or bool((u >= 0).all()))
        last = error


@pytest.mark.parametrize("signs", ["split", "semi"])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (7, 33), (1, 12)])
def test_what_is_stored_has_the_signs_it_should(shape, signs):
    packed, edit = run("nmf", site(*shape), removed=0.3, signs=signs)
    rank = rank_for(shape, 0.3)
    assert packed.u.shape[1] == rank == edit.figures["block.linear"]["rank"]
    assert bool((packed.v >= 0).all())
    if signs == "split":
        plus = rank - rank // 2
        assert bool((packed.u[:, :plus] >= 0).all()) and bool((packed.u[:, plus:] <= 0).all())


def test_a_non_negative_matrix_of_low_rank_is_found_again():
    g = torch.Generator().manual_seed(1)
    weight = (torch.rand(30, 3, generator=g) @ torch.rand(3, 40, generator=g)).double()
    u, v = factorise(weight, 3, 1500)
    assert (u @ v - weight).norm() < 1e-3 * weight.norm()


def test_rank_1_is_the_best_there_is():
    """The best rank-1 approximation of a non-negative matrix is non-negative (Perron and Frobenius): NMF
    finds the SVD's."""
    weight = site(12, 20).weight.double().clamp_min(0)
    u, v = factorise(weight, 1, 300)
    a, s, b = torch.linalg.svd(weight)
    assert torch.allclose(u @ v, s[0] * a[:, :1] @ b[:1], atol=1e-6)


def test_zeros_and_one_sign_only_are_no_trouble():
    here = site()
    here.weight.abs_()
    packed, _ = run("nmf", here, removed=0.2)
    assert bool(packed.dequantize().isfinite().all()) and packed.v[6:].abs().max() < 1e-6
    here.weight.zero_()
    assert float(run("nmf", here, removed=0.2)[0].dequantize().abs().max()) < 1e-6


@pytest.mark.parametrize("removed", [0.2, 0.6])
@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_no_better_than_svd_and_less_constrained_is_better(shape, removed):
    """Eckart and Young; and semi-NMF, whose one factor is free, lies between the two by far."""
    here = site(*shape)
    errors = {
        signs: run("nmf", here, removed=removed, signs=signs, updates=20)[1].figures["block.linear"][
            "weight_error"
        ]
        for signs in ("split", "semi")
    }
    best = float(
        (here.weight - run("svd", here, removed=removed)[0].dequantize()).square().sum()
        / here.weight.square().sum()
    )
    assert best <= errors["semi"] < 0.8 * errors["split"] < 1


def test_more_updates_lose_less_and_the_seed_is_fixed():
    here = site(48, 64)
    first, again = (run("nmf", here)[0].dequantize() for _ in range(2))
    more = run("nmf", here, updates=60)[0].dequantize()
    assert torch.equal(first, again) and (here.weight - more).norm() < 0.98 * (here.weight - first).norm()
    assert not get("nmf").needs_calibration(get("nmf").params())

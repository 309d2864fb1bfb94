"""GPTQ against an oracle that re-inverts the remaining Hessian at every column, and the identities of the
paper."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compression import get
from compression.base import CalibrationError, Site, Stats
from compression.grids import fit
from compression.packed.bitmask import Bitmask
from compression.packed.two_four import TwoFour
from compression.quantization.gptq import GptqParams, gptq
from compression.second_order import inverse_factor, output_error
from tests import oracles


def problem(out=12, n=48, tokens=400, seed=0):
    """A weight [out, n] and the Gram matrix of correlated inputs with a few loud channels."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=g) / n**0.5 + torch.eye(n)
    x = torch.randn(tokens, n, generator=g) @ mix * (1 + 9 * (torch.rand(n, generator=g) > 0.9))
    return torch.randn(out, n, generator=g), x.T @ x


def damped(gram, damping=0.01):
    h = gram.double()
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_equals_the_oracle(act_order, group_size, symmetric, bits):
    weight, gram = problem()
    params = GptqParams(
        bits=bits, group_size=group_size, symmetric=symmetric, act_order=act_order, block_size=20
    )
    codes, grid, _, _ = gptq(weight, gram, params)
    scale, zero = (t.numpy().astype(np.float64) for t in fit(weight, bits, group_size, symmetric).columns())
    order = np.argsort(-gram.diagonal().numpy(), kind="stable") if act_order else range(gram.shape[0])
    expected, _ = oracles.quantization.gptq_columns(
        weight.numpy(), damped(gram).numpy(), scale, zero, 2**bits - 1, order
    )
    assert np.array_equal(codes.numpy(), expected)


def test_live_groups_equal_the_oracle_group_by_group():
    """Without static groups each group's grid is fitted on the weights as they are when its turn comes."""
    weight, gram = problem(n=32)
    params = GptqParams(bits=3, group_size=16, act_order=False, static_groups=False, block_size=5)
    codes, grid, _, _ = gptq(weight, gram, params)
    live, h = weight.numpy().astype(np.float64), damped(gram).numpy()
    expected, remaining = np.zeros_like(live), list(range(32))
    for c in range(32):
        if c % 16 == 0:
            fits = [oracles.quantization.minmax_asym(row[c : c + 16], 3) for row in live]
        inverse = np.linalg.inv(h[np.ix_(remaining, remaining)])
        for r, (scale, zero) in enumerate(fits):
            expected[r, c] = np.clip(np.round(live[r, c] / scale) + zero, 0, 7)
            error = (live[r, c] - scale * (expected[r, c] - zero)) / inverse[0, 0]
            live[r, remaining] -= error * inverse[0]
        remaining = remaining[1:]
    # a live minimum may round to the other half-precision scale
    assert (codes.numpy() == expected).mean() > 0.995


@pytest.mark.parametrize(
    "changes", [{}, {"act_order": False}, {"static_groups": False}, {"group_size": -1}, {"symmetric": True}]
)
def test_column_errors_sum_to_the_objective(changes):
    """sum E^2 = tr(D H D^T) under the damped H: catches a wrong factor, transpose or late update."""
    weight, gram = problem(seed=3)
    codes, grid, total, _ = gptq(
        weight, gram, GptqParams(bits=3, block_size=7, **({"group_size": 16} | changes))
    )
    d = (weight - grid.decode(codes)).double()
    assert total == pytest.approx(float(((d @ damped(gram)) * d).sum()), rel=1e-4)


def test_white_inputs_reduce_to_rounding():
    weight, _ = problem()
    gram = 37.0 * torch.eye(weight.shape[1])
    codes, grid, _, _ = gptq(weight, gram, GptqParams(bits=3, group_size=16))
    assert torch.equal(codes, fit(weight, 3, 16, False).round(weight))


def test_block_size_scale_of_h_and_row_splitting_change_nothing():
    weight, gram = problem(out=24, seed=5)
    params = GptqParams(bits=3, group_size=16)
    codes = gptq(weight, gram, params)[0]
    for block_size in (1, 5, 48, 128):
        assert torch.equal(gptq(weight, gram, dataclasses.replace(params, block_size=block_size))[0], codes)
    assert torch.equal(gptq(weight, 1024 * gram, params)[0], codes)
    halves = [gptq(part, gram, params)[0] for part in weight.split(12)]
    assert torch.equal(torch.cat(halves), codes)


def test_better_than_rounding_on_the_layer_and_worse_on_the_weights():
    weight, gram = problem(out=32, n=64, seed=7)
    codes, grid, _, _ = gptq(weight, gram, GptqParams(bits=3, group_size=32))
    rounded = grid.decode(grid.round(weight))
    assert output_error(weight, grid.decode(codes), gram) < 0.8 * output_error(weight, rounded, gram)
    assert (weight - grid.decode(codes)).norm() > (weight - rounded).norm()


def test_act_order_without_static_groups_stores_its_index():
    weight, gram = problem()
    params = GptqParams(bits=4, group_size=16, static_groups=False)
    site = Site("a", "q", 0, 1, weight, None, None)
    packed = get("gptq").compress(site, Stats(400, gram=gram), params).linears["a"]
    assert packed.grid.group_index is not None and len(set(packed.grid.group_index[:16].tolist())) > 1
    codes, grid, _, _ = gptq(weight, gram, params)
    assert torch.equal(packed.dequantize(), grid.decode(codes))


@pytest.mark.parametrize("form", ["bitmask", "two_four"])
def test_pruned_places_stay_zero(form):
    weight, gram = problem()
    pruned = torch.zeros_like(weight, dtype=torch.bool)
    pruned[:, 0::4] = pruned[:, 1::4] = True
    previous = (Bitmask if form == "bitmask" else TwoFour).encode(weight, pruned)
    site = Site("a", "q", 0, 1, previous.dequantize(), None, previous)
    packed = get("gptq").compress(site, Stats(400, gram=gram), GptqParams(bits=4, group_size=16)).linears["a"]
    assert packed.format == form and torch.equal(packed.mask(), pruned)
    assert bool((packed.dequantize()[pruned] == 0).all())
    kept = packed.dequantize() - previous.dequantize()
    rounded = previous.with_codes(
        fit(site.weight, 4, 16, False).round(site.weight), fit(site.weight, 4, 16, False)
    )
    assert output_error(site.weight, site.weight + kept, gram) < output_error(
        site.weight, rounded.dequantize(), gram
    )


def test_damping_rises_and_is_reported():
    weight, _ = problem()
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
    gram = x.T @ x
    gram -= 0.02 * gram.diagonal().mean() * torch.eye(48)  # indefinite: the first damping is not enough
    factor, used = inverse_factor(gram, 0.01)
    assert used > 0.01 and bool(torch.isfinite(factor).all())
    site = Site("a.b", "q", 0, 1, weight, None, None)
    edit = get("gptq").compress(site, Stats(5, gram=gram), GptqParams(group_size=16))
    assert [n.code for n in edit.notes] == ["damping_raised"] and edit.notes[0].facts["layer"] == "a.b"


def test_not_finite_is_refused():
    weight, gram = problem()
    gram[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="not finite"):
        gptq(weight, gram, GptqParams())


def test_the_factor_is_the_papers():
    _, gram = problem()
    factor, _ = inverse_factor(gram, 0.01)
    assert torch.allclose(factor.T @ factor, torch.linalg.inv(damped(gram)), rtol=1e-8)
    assert torch.equal(factor, factor.triu())

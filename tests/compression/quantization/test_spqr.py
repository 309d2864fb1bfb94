"""SpQR against an oracle that leaves each weight out and re-inverts the Hessian, its limit cases, its size
and its claims."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compression import get
from compression.base import Site, Stats
from compression.quantization.gptq import GptqParams, gptq
from compression.quantization.spqr import SpqrParams, arrange, gains, outlier_limit, spqr
from compression.second_order import inverse_factor, output_error
from tests import oracles
from tests.compression.quantization.test_gptq import damped, problem

ORDERS = {"as they come": {"act_order": False}, "like loudness": {}, "neighbours": {"neighbours": True}}


def heavy(out=32, n=128, tokens=1200, seed=0):
    """The usual problem, a few weights of it far off: what SpQR is for."""
    weight, gram = problem(out, n, tokens, seed)
    g = torch.Generator().manual_seed(seed + 100)
    return weight * (1 + 5 * (torch.rand(out, n, generator=g) > 0.99)), gram


def unit(weight, gram, params):
    """mean(var(W[:, j]) / U_jj^2), what the paper's tau is a multiple of."""
    order, _ = arrange(gram.diagonal(), params)
    diagonal = inverse_factor(gram[order][:, order], params.damping)[0].diagonal()
    return float((weight[:, order].var(0) / diagonal.square()).mean())


def where_kept(packed):
    places = torch.zeros(packed.shape, dtype=torch.bool)
    if packed.format == "sum":
        rows = torch.repeat_interleave(torch.arange(packed.shape[0]), packed.second.starts.diff().long())
        places[rows, packed.second.columns.long()] = True
    return places


# --- the paper's algorithm ---


@pytest.mark.parametrize("size", [2, 15, 16])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gains_are_those_of_leaving_each_weight_out(size, bits):
    g = torch.Generator().manual_seed(size)
    groups = torch.randn(40, size, generator=g) * (1 + 4 * (torch.rand(40, size, generator=g) > 0.9))
    groups[0], groups[1, 1:] = 0.5, groups[1, 0]  # all equal; all but one equal
    groups[2, 1] = groups[2, 0] = groups[2].max() + 1  # two largest
    roots = 0.2 + torch.rand(size, generator=g)
    found = gains(groups.double(), roots.double(), bits)
    expected = [
        oracles.quantization.leave_one_out(group, roots.double().numpy(), bits)
        for group in groups.double().numpy()
    ]
    assert np.allclose(found.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("level_bits, level_search", [(3, False), (3, True), (16, True)])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("tau", [0.1, 0.5, float("inf")])
def test_equals_the_oracle(order, level_bits, level_search, leave_one_out, tau):
    """E5 among them: tau infinite and no second level is GPTQ's column loop on grids with a real zero."""
    weight, gram = heavy(out=24, n=40, tokens=400, seed=2)  # a short last run of rows and a short last group
    params = SpqrParams(
        level_bits=level_bits, level_search=level_search, leave_one_out=leave_one_out, **ORDERS[order]
    )
    limit = tau * unit(weight, gram, params)
    packed, _, _ = spqr(weight, gram, params, limit)
    places, group = (t.tolist() for t in arrange(gram.diagonal(), params))
    groups = [[c for c in places if group[c] == g] for g in dict.fromkeys(group[c] for c in places)]
    _, result, outliers = oracles.quantization.spqr(
        weight.numpy(), damped(gram).numpy(), groups, 3, level_bits, limit, leave_one_out, level_search
    )
    assert np.array_equal(where_kept(packed).numpy(), outliers) and (outliers.any() or tau > 0.1)
    assert np.abs(packed.dequantize().numpy() - result).max() < 4e-3, (
        "no code differs; outliers are in half precision"
    )


def test_groups_hold_inputs_of_like_loudness_or_neighbours_and_the_loudest_come_first():
    loudness = torch.rand(40, generator=torch.Generator().manual_seed(0))
    order, group = arrange(loudness, SpqrParams())
    assert torch.equal(order, loudness.argsort(descending=True)) and torch.equal(
        group[order], torch.arange(40) // 16
    )
    order, group = arrange(loudness, SpqrParams(neighbours=True))
    assert torch.equal(group, torch.arange(40) // 16) and sorted(order.tolist()) == list(range(40))
    assert order[0] == loudness.argmax()
    visited = torch.unique_consecutive(group[order]).tolist()
    assert visited == sorted(range(3), key=lambda g: -loudness[16 * g : 16 * g + 16].max()), (
        "each group once, by its loudest"
    )
    for g in range(3):
        within = order[group[order] == g]
        assert torch.equal(within, within[loudness[within].argsort(descending=True)])
    order, group = arrange(loudness, SpqrParams(act_order=False))
    assert torch.equal(order, torch.arange(40)) and torch.equal(group, torch.arange(40) // 16)


@pytest.mark.parametrize("tau", [0.2, 0.5])
def test_one_tau_is_the_authors_threshold_in_every_matrix(tau):
    """T = tau * mean(var(W[:, j]) / U_jj^2), U from the inverse of the damped Hessian of what is left at each
    column; a heavy-tailed matrix then keeps more outliers than a plain one."""
    shares = []
    for made in (heavy, problem):
        weight, gram = made()
        params = SpqrParams(tau=tau)
        order, group = arrange(gram.diagonal(), params)
        roots, remaining, hessian = {}, order.tolist(), damped(gram).double().numpy()
        while remaining:
            roots[remaining[0]] = np.linalg.inv(hessian[np.ix_(remaining, remaining)])[0, 0]
            remaining = remaining[1:]
        wanted = tau * np.mean([weight.numpy()[:, j].var(ddof=1) / roots[j] for j in range(len(order))])
        (packed, _, _), (expected, _, _) = spqr(weight, gram, params), spqr(weight, gram, params, wanted)
        assert torch.equal(packed.dequantize(), expected.dequantize())
        shares.append(float(where_kept(packed).float().mean()))
    assert shares[0] > shares[1]


# --- identities and limits ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"act_order": False},
        {"neighbours": True},
        {"level_bits": 16},
        {"group_size": 32},
        {"leave_one_out": False},
        {"damping": 1.0},
        {"outliers": 0.0},
        {"bits": 4},
        {"level_search": False},
    ],
)
def test_column_errors_sum_to_the_objective_of_what_is_stored(changes):
    """E2: so what the loop went on with is what the format gives back, to the last bit that matters."""
    weight, gram = heavy(out=20, n=200, seed=3)  # more than one block
    params = dataclasses.replace(SpqrParams(outliers=0.03), **changes)
    packed, total, _ = spqr(weight, gram, params)
    d = (weight - packed.dequantize()).double()
    assert total == pytest.approx(float(((d @ damped(gram, params.damping)) * d).sum()), rel=1e-5)
    assert (packed.format == "sum") == (params.outliers > 0)


@pytest.mark.parametrize("order", ORDERS)
def test_limit_zero_is_the_weight_in_half_precision(order):
    """E5: tau = 0, every weight that is not exactly on the grid is an outlier."""
    weight, gram = heavy()
    packed, _, _ = spqr(weight, gram, SpqrParams(**ORDERS[order]), 0.0)
    assert (packed.dequantize() - weight).abs().max() < 0.01
    assert output_error(weight, packed.dequantize(), gram) < 1e-6
    assert float(where_kept(packed).float().mean()) > 0.99


def test_white_inputs_without_outliers_and_second_level_reduce_to_rounding():
    weight, _ = heavy()
    packed, _, _ = spqr(weight, 37.0 * torch.eye(128), SpqrParams(level_bits=16, outliers=0.0))
    groups = weight.view(32, 8, 16).numpy().astype(np.float64)
    for r, row in enumerate(groups):
        for k, group in enumerate(row):
            scale, zero = (float(np.float16(t)) for t in oracles.quantization.real_grid(group, 3))
            expected = oracles.quantization.on_real_grid(group, scale, zero, 3)[1]
            assert np.allclose(packed.dequantize()[r, 16 * k : 16 * k + 16].numpy(), expected, atol=1e-5)


def test_scale_of_h_changes_nothing():
    weight, gram = heavy()
    first, other = spqr(weight, gram, SpqrParams())[0], spqr(weight, 1024 * gram, SpqrParams())[0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_code_beside_an_outlier_is_that_of_zero():
    weight, gram = heavy()
    packed, _, _ = spqr(weight, gram, SpqrParams(outliers=0.02))
    of_zero = packed.first.grid.decode(packed.first.grid.round(torch.zeros_like(weight)))
    kept = where_kept(packed)
    assert bool(kept.any()) and torch.equal(packed.first.dequantize()[kept], of_zero[kept])


def test_weights_that_are_all_alike_or_zero_are_no_trouble():
    weight, gram = heavy()
    weight[3], weight[4, :16] = 0.0, 0.7
    weight[5] = 1 + 1e-5 * weight[5]  # a step that 16 bits could not hold a zero point for
    for params in (
        SpqrParams(),
        SpqrParams(outliers=0.0),
        SpqrParams(outliers=0.2),
        SpqrParams(group_size=128),
    ):
        assert bool(torch.isfinite(spqr(weight, gram, params)[0].dequantize()).all())
    found = spqr(weight, gram, SpqrParams(level_bits=16, outliers=0.0))[0].dequantize()
    assert bool((found[3] == 0).all()) and (found[5] - 1).abs().max() < 0.01


def test_a_dead_input_keeps_its_rounded_weight():
    weight, gram = heavy()
    gram[7], gram[:, 7] = 0, 0
    packed, _, _ = spqr(weight, gram, SpqrParams(bits=4, level_bits=16, outliers=0.0))
    scale, _ = packed.grid.columns()
    assert bool(((packed.dequantize() - weight)[:, 7].abs() <= 0.51 * scale[:, 7] + 1e-3).all())


# --- size ---


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("level_bits", [3, 16])
def test_stored_bits_are_the_formula(order, level_bits):
    """3 + (3 + 3) / 16 + 64 / 256 + 32 r of the paper, where rows and inputs come in sixteens."""
    weight, gram = heavy(out=32, n=128)
    packed, _, _ = spqr(weight, gram, SpqrParams(level_bits=level_bits, **ORDERS[order]))
    kept = int(where_kept(packed).sum())
    grid = 6 / 16 + 64 / 256 if level_bits == 3 else 32 / 16
    index = 16 / 32 if order == "like loudness" else 0.0
    assert packed.bits_per_weight() == pytest.approx(
        3 + grid + 32 * kept / weight.numel() + index + 32 * 33 / weight.numel()
    )
    assert (packed.first.grid.group_index is not None) == (order == "like loudness")


@pytest.mark.parametrize("share", [0.002, 0.01, 0.05])
@pytest.mark.parametrize(
    "changes", [{}, {"neighbours": True}, {"leave_one_out": False}, {"bits": 4}, {"damping": 1.0}]
)
def test_the_share_of_outliers_is_about_what_was_asked(share, changes):
    weight, gram = heavy(out=128, n=256, tokens=2000, seed=5)
    here = Site("a", "q", 0, 1, weight, None, None)
    edit = get("spqr").compress(here, Stats(2000, gram=gram), SpqrParams(outliers=share, **changes))
    assert edit.figures["a"]["outlier_share"] == pytest.approx(share, rel=0.2)


def test_the_limit_is_found_on_a_sample_of_rows():
    weight, gram = heavy(out=1000, n=64, tokens=800)
    diagonal = inverse_factor(gram, 0.01)[0].float().diagonal()
    params = SpqrParams(act_order=False)
    whole = outlier_limit(weight[:250], diagonal, params)
    assert outlier_limit(weight, diagonal, params) == pytest.approx(whole, rel=0.3)


# --- the claims ---


def test_error_falls_with_outliers_and_their_grids_are_better_without_them():
    weight, gram = heavy(out=64, n=256, tokens=2000, seed=1)

    def error(**p):
        return output_error(weight, spqr(weight, gram, SpqrParams(**p))[0].dequantize(), gram)

    errors = [error(outliers=r) for r in (0.0, 0.005, 0.02, 0.08)]
    assert (
        all(b < 0.9 * a for a, b in zip(errors[:-1], errors[1:], strict=True))
        and errors[3] < 0.35 * errors[0]
    )
    assert errors[2] < 0.97 * error(outliers=0.02, leave_one_out=False)


def test_beats_gptq_at_no_more_bits():
    weight, gram = heavy(out=256, n=256, tokens=2000, seed=7)
    ours, _, _ = spqr(weight, gram, SpqrParams())
    codes, grid, _, _ = gptq(weight, gram, GptqParams(bits=4, group_size=128))
    from compression.packed.grouped_int import GroupedInt

    theirs = GroupedInt.encode(codes, grid)
    assert ours.bits_per_weight() < theirs.bits_per_weight()
    assert output_error(weight, ours.dequantize(), gram) < 0.8 * output_error(
        weight, theirs.dequantize(), gram
    )


def test_rounded_scales_of_tiny_groups_beat_exact_ones_of_larger_groups():
    """At about 3.6 bits: the paper's table of what each part brings."""
    weight, gram = heavy(out=128, n=256, tokens=2000, seed=9)
    two, one = (
        spqr(weight, gram, SpqrParams(act_order=False, outliers=0.0, **p))[0]
        for p in ({}, {"level_bits": 16, "group_size": 48})
    )
    assert two.bits_per_weight() < one.bits_per_weight()
    assert output_error(weight, two.dequantize(), gram) < output_error(weight, one.dequantize(), gram)


def test_order_matters_where_inputs_are_loud():
    """Groups of like loudness (the authors') and groups of neighbours, each by the loudest, against no
    order."""
    weight, gram = heavy(out=64, n=256, tokens=2000, seed=4)
    errors = {
        o: output_error(weight, spqr(weight, gram, SpqrParams(**p))[0].dequantize(), gram)
        for o, p in ORDERS.items()
    }
    assert errors["like loudness"] < errors["neighbours"] < 0.97 * errors["as they come"]

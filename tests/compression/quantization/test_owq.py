"""OWQ against an oracle with an exhaustive search and a re-inverted Hessian, its limit cases, its budget and
its claims."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compression import calibrate, get
from compression.base import Site, Stats
from compression.grids import RANGES, TUNINGS, fit, minmax_asym, minmax_sym, mse_asym, shrunk
from compression.quantization.gptq import GptqParams, gptq
from compression.quantization.owq import OwqParams, owq, sensitivity, share, weak_count
from compression.second_order import output_error
from tests import oracles, tiny
from tests.compression.quantization.test_gptq import damped, problem

LLAMA = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576),
         "gate": (1536, 576), "up": (1536, 576), "down": (576, 1536)}  # SmolLM2-135M  # fmt: skip
LLAMA_7B = {r: (4096, 4096) for r in "qkvo"} | {
    "gate": (11008, 4096),
    "up": (11008, 4096),
    "down": (4096, 11008),
}
OPT_125M = {r: (768, 768) for r in "qkvo"} | {"up": (3072, 768), "down": (768, 3072)}


def site(role, block):
    return Site(role, role, 0, 1, torch.empty(block[role], device="meta"), None, None, block)


def rounded_by_rows(weight, bits, tuning):
    result = np.zeros_like(weight)
    for r, row in enumerate(weight):
        scale, zero = (
            oracles.quantization.minmax_asym if tuning == "minmax" else oracles.quantization.cheapest_range
        )(row, bits)[:2]
        result[r] = scale * (np.clip(np.round(row / scale) + zero, 0, 2**bits - 1) - zero)
    return result


def fitted_without(weight, bits, tuning, size):
    """fit(rest) for the oracle: each row's groups, of the columns in `rest` only."""

    def fit(rest):
        scale, zero = np.ones_like(weight), np.zeros_like(weight)
        for r, row in enumerate(weight):
            for start in range(0, len(row), size):
                group = row[[c for c in range(start, min(start + size, len(row))) if c in set(rest)]]
                if len(group):
                    found = (
                        oracles.quantization.minmax_asym
                        if tuning == "minmax"
                        else oracles.quantization.cheapest_range
                    )(group, bits)
                    scale[r, start : start + size], zero[r, start : start + size] = found[:2]
        return scale, zero

    return fit


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize("tuning", ["mse", "minmax"])
@pytest.mark.parametrize("bits", [2, 3])
def test_equals_the_oracle(act_order, group_size, tuning, bits):
    weight, gram = problem(out=6, n=40, seed=4)
    params = OwqParams(bits=bits, group_size=group_size, tuning=tuning, act_order=act_order, block_size=20)
    packed, _, _ = owq(weight, gram, params, 3)
    wide, size = weight.numpy().astype(np.float64), 40 if group_size == -1 else 16
    result, weak = oracles.quantization.owq(
        wide,
        damped(gram).numpy(),
        gram.diagonal().numpy(),
        rounded_by_rows(wide, bits, tuning),
        fitted_without(wide, bits, tuning, size),
        2**bits - 1,
        3,
        act_order,
    )
    assert packed.second.index.tolist() == weak
    assert np.abs(packed.dequantize().numpy() - result).max() < 2e-3, (
        "no code differs; weak columns are in half precision"
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_search_finds_what_trying_everything_finds(bits):
    """Also on rows with a few large weights, where the best range is short and off the centre."""
    g = torch.Generator().manual_seed(bits)
    rows = torch.randn(24, 48, generator=g) * (1 + 6 * (torch.rand(24, 48, generator=g) > 0.97))
    rows[3], rows[4], rows[5] = rows[3].abs(), -rows[4].abs() - 1, 0.0
    scale, zero = mse_asym(rows, bits)
    error = (
        (rows - scale * ((torch.round(rows / scale) + zero).clamp(0, 2**bits - 1) - zero))
        .abs()
        .pow(2.4)
        .sum(1)
    )
    best = [
        oracles.quantization.cheapest_range(row, bits)[2] if row.any() else 0.0
        for row in rows.numpy().astype(np.float64)
    ]
    assert RANGES == 40 and np.allclose(error.numpy(), best, rtol=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_shortened_range_is_the_best_of_all_that_are_tried(symmetric):
    """GPTQ's reference code: both ends times one factor, the least sum of |w - w'|^2.4; written out row by
    row."""
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(10, 32, generator=g) * (1 + 6 * (torch.rand(10, 32, generator=g) > 0.95))
    rows[3] = 0.0
    scale, zero = shrunk(rows, 3, symmetric)
    for i, row in enumerate(rows):
        tried = {}  # (scale, zero) -> sum of errors
        for k in range(8, 41):
            low, high = (row.min() * k / 40)[None], (row.max() * k / 40)[None]
            s, z = minmax_sym(low, high, 3) if symmetric else minmax_asym(low, high, 3)
            s, z = float(s), 4.0 if z is None else float(z)
            tried[s, z] = sum(
                abs(w - s * (min(max(round(w / s) + z, 0), 7) - z)) ** 2.4 for w in row.tolist()
            )
        mine = 4.0 if zero is None else float(zero[i])
        assert tried[float(scale[i]), mine] == pytest.approx(min(tried.values()), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_longer_search_is_never_worse(symmetric):
    weight, _ = problem(out=40, n=72, seed=8)
    grids = [fit(weight, 3, 16, symmetric, tuning) for tuning in TUNINGS]
    whole, shorter, any_range = ((weight - g.decode(g.round(weight))).abs().pow(2.4).sum(1) for g in grids)
    assert bool((shorter <= whole * (1 + 1e-5)).all()) and float(shorter.sum()) < 0.95 * float(whole.sum())
    assert float(any_range.sum()) <= float(shorter.sum()) * (1 + 1e-5)


@pytest.mark.parametrize("group_size", [-1, 16])
def test_the_search_is_never_worse_than_the_whole_range(group_size):
    weight, _ = problem(out=40, n=72, seed=8)
    errors = []
    for tuning in ("mse", "minmax"):
        grid = fit(weight, 3, group_size, False, tuning)
        errors.append((weight - grid.decode(grid.round(weight))).abs().pow(2.4).sum(1))
    assert bool((errors[0] <= errors[1]).all()) and float(errors[0].sum()) < 0.9 * float(errors[1].sum())


@pytest.mark.parametrize(
    "changes", [{}, {"act_order": False}, {"group_size": 16}, {"tuning": "minmax"}, {"damping": 0.3}]
)
@pytest.mark.parametrize("count", [0, 1, 5, 48])
def test_column_errors_sum_to_the_objective(changes, count):
    """E2: the 16-bit rounding of weak columns counts too."""
    weight, gram = problem(seed=3)
    params = OwqParams(bits=3, block_size=7, **changes)
    packed, total, _ = owq(weight, gram, params, count)
    d = (weight - packed.dequantize()).double()
    assert total == pytest.approx(float(((d @ damped(gram, params.damping)) * d).sum()), rel=1e-4)


@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block_size, tuning", [(20, "minmax"), (128, "mse")])
def test_without_weak_columns_it_is_gptq_on_the_same_grid(group_size, act_order, block_size, tuning):
    """E4, bit for bit: the fair control of weak columns has the same search of ranges."""
    weight, gram = problem()
    options = {
        "bits": 3,
        "group_size": group_size,
        "act_order": act_order,
        "block_size": block_size,
        "tuning": tuning,
    }
    packed, _, _ = owq(weight, gram, OwqParams(extra_bits=0.0, **options), 0)
    codes, grid, _, _ = gptq(weight, gram, GptqParams(**options))
    assert packed.format == "grouped_int"
    assert torch.equal(packed.dequantize(), grid.decode(codes))


def test_all_columns_weak_is_the_weight_in_half_precision():
    """E4; a column makes up for the last bits that those before it lost, so it may be off by more than its
    own."""
    weight, gram = problem()
    packed, _, _ = owq(weight, gram, OwqParams(), 48)
    assert (packed.dequantize() - weight).abs().max() < 3e-3
    assert (
        output_error(weight, packed.dequantize(), gram)
        <= output_error(weight, weight.half().float(), gram)
        < 1e-7
    )


@pytest.mark.parametrize("group_size", [-1, 16])
def test_white_inputs_leave_weak_columns_as_they_are_and_round_the_rest(group_size):
    weight, _ = problem()
    packed, _, _ = owq(weight, 37.0 * torch.eye(48), OwqParams(group_size=group_size), 4)
    weak = packed.second.index.long()
    assert torch.equal(packed.dequantize()[:, weak], weight[:, weak].half().float())
    rest = weight.index_fill(1, weak, 0.0)
    grid = fit(rest, OwqParams().bits, group_size, False, "mse")
    assert torch.equal(packed.first.dequantize(), grid.decode(grid.round(rest)))


def test_the_integer_part_is_zero_at_weak_columns():
    weight, gram = problem()
    packed, _, _ = owq(weight, gram, OwqParams(group_size=16), 5)
    weak = packed.second.index.long()
    assert bool((packed.first.dequantize()[:, weak] == 0).all())
    assert torch.equal(packed.dequantize()[:, weak], packed.second.values.float())
    assert not torch.equal(packed.second.values, weight[:, weak].half()), (
        "weak columns make up for the others' errors"
    )


def test_scale_of_h_and_block_size_change_nothing():
    weight, gram = problem(out=24, seed=5)
    packed, _, _ = owq(weight, gram, OwqParams(), 3)
    for other in (
        owq(weight, 1024 * gram, OwqParams(), 3)[0],
        owq(weight, gram, OwqParams(block_size=5), 3)[0],
    ):
        assert torch.equal(other.second.index, packed.second.index) and torch.equal(
            other.first.codes, packed.first.codes
        )
        assert torch.allclose(other.second.values, packed.second.values, atol=1e-3)


def test_sensitivity_is_the_papers_and_a_dead_input_is_never_weak():
    weight, gram = problem()
    gram[7], gram[:, 7] = 0, 0
    weight[:, 7] *= 100
    grid = fit(weight, 3, -1, False)
    expected = [
        float(gram[j, j] * ((weight - grid.decode(grid.round(weight)))[:, j] ** 2).sum()) for j in range(48)
    ]
    assert np.allclose(sensitivity(weight, gram, OwqParams(tuning="minmax")).numpy(), expected, rtol=1e-5)
    assert 7 not in owq(weight, gram, OwqParams(), 10)[0].second.index.tolist()


# --- the budget ---


@pytest.mark.parametrize(
    "block, target, within",
    [
        (LLAMA_7B, 0.01, 0.1),
        (LLAMA_7B, 0.1, 0.03),
        (LLAMA, 0.01, 0.3),
        (LLAMA, 0.1, 0.05),
        (OPT_125M, 0.05, 0.1),
    ],
)
def test_the_average_over_a_block_is_what_was_asked(block, target, within):
    """Where k is small, rounding it to whole columns is what keeps it from the target."""
    params = OwqParams(bits=3, extra_bits=target)
    counts = {role: weak_count(block[role][1], params, share(site(role, block))) for role in block}
    spent = sum(counts[r] * out * 13 for r, (out, _) in block.items()) / sum(
        out * n for out, n in block.values()
    )
    assert spent == pytest.approx(target, rel=within)


def test_counts_are_the_authors_but_for_their_rounding_to_even_numbers():
    def even_up(k):
        return round(k) + round(k) % 2

    for block, expected in (
        (LLAMA_7B, {"q": 6, "k": 6, "v": 6, "o": 6, "gate": 2, "up": 2, "down": 6}),
        (OPT_125M, {"q": 2, "k": 2, "v": 2, "o": 2, "up": 0, "down": 2}),
    ):
        exact = {role: block[role][1] * share(site(role, block)) * 0.01 / 13 for role in block}
        assert {role: even_up(k) for role, k in exact.items()} == expected


def test_a_matrix_alone_gets_the_average_and_nothing_means_no_columns():
    params = OwqParams(bits=3, extra_bits=0.13)
    assert share(Site("a", "q", 0, 1, torch.empty(8, 8), None, None)) == 1
    assert share(site("up", dict.fromkeys(("q", "k", "v", "o", "up", "down"), (100, 100)))) == 1
    assert (
        weak_count(1000, params) == 10 and weak_count(1000, dataclasses.replace(params, extra_bits=0.0)) == 0
    )
    assert weak_count(10, dataclasses.replace(params, extra_bits=1.0), share=1e9) == 10


def test_the_driver_tells_each_matrix_its_block():
    bundle, ids = tiny.bundle("llama"), tiny.ids(8)
    outcome = calibrate.compress(bundle, ((get("owq"), OwqParams(extra_bits=0.9)),), ids)
    found = {row["role"]: row["weak_columns"] for row in outcome.layers if row["layer"] == 0}
    block = {
        row["role"]: bundle.module.get_submodule(row["path"]).packed.shape
        for row in outcome.layers
        if row["layer"] == 0
    }
    assert found == {
        role: weak_count(block[role][1], OwqParams(extra_bits=0.9), share(site(role, block)))
        for role in block
    }
    assert found["q"] > found["up"], (
        "attention has more columns than the feed-forward part, which has more weights"
    )


@pytest.mark.parametrize("group_size, groups", [(-1, 1), (16, 3)])
def test_stored_bytes_are_the_formula(group_size, groups):
    weight, gram = problem(out=12, n=48)
    for bits, count in ((3, 0), (3, 4), (5, 7)):
        packed, _, _ = owq(weight, gram, OwqParams(bits=bits, group_size=group_size), count)
        grid = 2 * 12 * groups + -(-12 * groups // 8) * bits
        assert packed.stored_bytes() == 12 * 6 * bits + grid + count * (2 * 12 + 4)


# --- the claims ---


@pytest.mark.parametrize("bits, at_most", [(3, 0.75), (4, 0.9)])
def test_a_hundredth_of_a_bit_beats_gptq(bits, at_most):
    weight, gram = problem(out=32, n=576, tokens=2000, seed=7)
    here = dataclasses.replace(site("q", LLAMA), weight=weight)
    edit = get("owq").compress(here, Stats(2000, gram=gram), OwqParams(bits=bits, extra_bits=0.01))
    assert edit.figures["q"]["weak_columns"] == 1
    codes, grid, _, _ = gptq(weight, gram, GptqParams(bits=bits, group_size=-1))
    assert edit.figures["q"]["output_error"] < at_most * output_error(weight, grid.decode(codes), gram)


def test_chosen_columns_beat_random_ones_and_more_are_better():
    weight, gram = problem(out=32, n=96, tokens=800, seed=11)
    errors = [
        output_error(weight, owq(weight, gram, OwqParams(), k)[0].dequantize(), gram) for k in (0, 2, 6, 16)
    ]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.6 * errors[0]
    g = torch.Generator().manual_seed(0)
    for _ in range(3):  # the same loop, its scores replaced by chance
        score = torch.rand(96, generator=g)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("compression.quantization.owq.sensitivity", lambda *args, s=score: s)
            random = output_error(weight, owq(weight, gram, OwqParams(), 6)[0].dequantize(), gram)
        assert errors[2] < 0.8 * random


def test_raised_damping_is_told():
    weight, gram = problem()
    gram -= 0.02 * gram.diagonal().mean() * torch.eye(48)
    low = float(torch.linalg.eigvalsh(gram.double()).min())
    # indefinite: the first damping is not enough
    gram -= (low + 0.05 * float(gram.diagonal().mean())) * torch.eye(48)
    edit = get("owq").compress(Site("a.b", "q", 0, 1, weight, None, None), Stats(5, gram=gram), OwqParams())
    assert [n.code for n in edit.notes] == ["damping_raised"] and edit.notes[0].facts["layer"] == "a.b"

"""SparseGPT against an oracle with a re-inverted Hessian, its exact identities, what it reduces to, and the
paper's claims."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compression import calibrate, get
from compression.base import BadParam, Site, Stats, UnsupportedLayer
from compression.grids import fit
from compression.pruning.sparsegpt import SparsegptParams, lowest_of_all, sparsegpt
from compression.quantization.gptq import GptqParams, gptq
from compression.second_order import inverse_factor, output_error
from kernels import cpu
from tests import oracles, tiny
from tests.compression.quantization.test_gptq import damped, problem

PATTERNS = {"2:4": (2, 4), "1:4": (1, 4), "4:8": (4, 8)}


def wide(out=12, n=48, seed=0):
    """The problem in float64, so that identities hold to the last digits."""
    weight, gram = problem(out, n, seed=seed)
    return weight.double(), gram.double()


def some_mask(weight, share=0.5, seed=3):
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < share


def objective(weight, result, hessian):
    d = torch.as_tensor(weight).double() - torch.as_tensor(result).double()
    return float(((d @ hessian) * d).sum())


def compress(weight, gram, **params):
    site = Site("a.b", "q", 0, 1, weight, None, None)
    edit = get("sparsegpt").compress(site, Stats(400, gram=gram), SparsegptParams(**params))
    return edit.linears.get("a.b"), edit


# --- the oracle ---


def oracle(weight, gram, pattern="unstructured", sparsity=0.5, block=128, bits=0, group_size=-1):
    out, n = weight.shape
    size = block if pattern == "unstructured" else PATTERNS[pattern][1]
    runs = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    if pattern == "unstructured":

        def removed_of(scores):
            return oracles.pruning.lowest_scores(scores, int(np.floor(sparsity * scores.size)))

    else:
        count = size - PATTERNS[pattern][0]

        def removed_of(scores):
            return np.concatenate([oracles.pruning.lowest_scores(row[None], count) for row in scores])

    def stored(values, c):
        return values

    if bits:
        size = n if group_size == -1 else group_size
        dense = weight.numpy().astype(np.float64)
        grids = {
            c: [
                oracles.quantization.minmax_asym(row[c // size * size : (c // size + 1) * size], bits)
                for row in dense
            ]
            for c in range(n)
        }

        def stored(values, c):
            scale, zero = (np.array(t) for t in zip(*grids[c], strict=True))
            return scale * (np.clip(np.round(values / scale) + zero, 0, 2**bits - 1) - zero)

    dead = (gram.diagonal() == 0).numpy()
    hessian = gram.double().numpy() + np.diag(np.where(dead, gram.double().diagonal().mean(), 0.0))
    hessian += 0.01 * gram.double().diagonal().mean().item() * np.eye(n)
    return oracles.pruning.sparsegpt(weight.numpy(), hessian, dead, removed_of, runs, stored)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("block", [1, 20, 48, 128])
def test_equals_the_oracle(block, sparsity, silent):
    weight, gram = wide()
    if silent:
        gram[[3, 7]], gram[:, [3, 7]] = 0, 0
    new, pruned, _, _, _ = sparsegpt(weight, gram, SparsegptParams(sparsity=sparsity, mask_block=block))
    removed, result = oracle(weight, gram, sparsity=sparsity, block=block)
    assert np.array_equal(pruned.numpy(), removed)
    assert np.allclose(new.numpy(), result, atol=1e-9)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_equal_the_oracle(pattern, silent):
    weight, gram = wide(n=136)  # beyond one block of late updates
    if silent:
        gram[5], gram[:, 5] = 0, 0
    new, pruned, _, _, _ = sparsegpt(weight, gram, SparsegptParams(pattern=pattern))
    removed, result = oracle(weight, gram, pattern)
    assert np.array_equal(pruned.numpy(), removed)
    assert np.allclose(new.numpy(), result, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_rounding_in_the_same_step_equals_the_oracle(bits, group_size, pattern):
    """In the stored form: kept weights on the dense weight's grid, removed ones exactly 0."""
    weight, gram = problem()
    params = {"pattern": pattern, "quantize": True, "bits": bits, "group_size": group_size, "mask_block": 20}
    packed, _ = compress(weight, gram, **params)
    removed, result = oracle(weight, gram, pattern, block=20, bits=bits, group_size=group_size)
    assert packed.format == ("two_four" if pattern == "2:4" else "bitmask") and packed.grid.bits == bits
    assert np.array_equal(packed.mask().numpy(), removed)
    assert np.abs(packed.dequantize().numpy() - result).max() < 1e-5
    assert bool((packed.dequantize()[packed.mask()] == 0).all())


# --- identities ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pattern": "2:4"},
        {"mask_block": 7},
        {"sparsity": 0.8},
        {"damping": 0.3},
        {"quantize": True, "bits": 3, "group_size": 16},
        {"quantize": True, "symmetric": True},
        {"pattern": "4:8", "quantize": True, "bits": 2},
    ],
)
def test_column_errors_sum_to_the_objective(changes):
    """sum e^2 = tr(D H D^T) under the damped H: catches a wrong factor, transpose or late update."""
    weight, gram = wide(n=136)
    params = SparsegptParams(**changes)
    new, _, _, total, _ = sparsegpt(weight, gram, params)
    assert total == pytest.approx(objective(weight, new, damped(gram, params.damping)), rel=1e-9)


def test_with_a_given_mask_blocks_change_nothing():
    weight, gram = wide()
    mask = some_mask(weight)
    first = sparsegpt(weight, gram, SparsegptParams(mask_block=1), mask)
    for block in (4, 7, 48):
        other = sparsegpt(weight, gram, SparsegptParams(mask_block=block), mask)
        assert torch.equal(other[1], mask) and (other[0] - first[0]).abs().max() < 1e-12


def test_a_given_mask_is_solved_for_in_turn():
    """Whenever a weight goes, the later ones are what least squares gives with all up to it fixed."""
    weight, gram = wide()
    mask = some_mask(weight)
    new = sparsegpt(weight, gram, SparsegptParams(), mask)[0]
    assert np.allclose(
        new.numpy(),
        oracles.pruning.resolved_in_turn(weight.numpy(), damped(gram).numpy(), mask.numpy()),
        atol=1e-10,
    )


def test_a_prefix_of_each_row_is_solved_for_exactly():
    weight, gram = wide()
    mask = torch.arange(48) < torch.arange(3, 39, 3)[:, None]  # the first 3, 6, 9 ... inputs
    new = sparsegpt(weight, gram, SparsegptParams(), mask)[0]
    assert np.allclose(
        new.numpy(),
        oracles.pruning.masked_least_squares(weight.numpy(), damped(gram).numpy(), mask.numpy()),
        atol=1e-10,
    )


@pytest.mark.parametrize("seed", range(4))
def test_least_squares_on_the_same_mask_is_never_worse(seed):
    weight, gram = wide(seed=seed)
    hessian = damped(gram)
    for mask in (some_mask(weight, seed=seed), sparsegpt(weight, gram, SparsegptParams())[1]):
        new = sparsegpt(weight, gram, SparsegptParams(), mask)[0]
        best = oracles.pruning.masked_least_squares(weight.numpy(), hessian.numpy(), mask.numpy())
        assert objective(weight, best, hessian) <= objective(weight, new, hessian) * (1 + 1e-12)


@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.65, 0.95])
@pytest.mark.parametrize("n", [40, 128, 300])
def test_every_block_loses_exactly_its_share(n, sparsity):
    """Also where scores tie: silent inputs and equal weights."""
    weight, gram = problem(out=10, n=n, seed=2)
    weight[:, 5:15] = 1.0
    gram[10:30], gram[:, 10:30] = 0, 0
    packed, _ = compress(weight, gram, sparsity=sparsity)
    assert [int(part.sum()) for part in packed.mask().split(128, 1)] == [
        int(sparsity * part.numel()) for part in weight.split(128, 1)
    ]
    assert bool((packed.dequantize()[packed.mask()] == 0).all())


@pytest.mark.parametrize("count", [0, 1, 17, 60, 99, 100])
def test_ties_go_to_the_first(count):
    scores = (torch.rand(10, 10, generator=torch.Generator().manual_seed(0)) * 4).floor()
    assert np.array_equal(
        lowest_of_all(scores, count).numpy(), oracles.pruning.lowest_scores(scores.numpy(), count)
    )


@pytest.mark.parametrize("pattern, kept, of", [(p, *k) for p, k in PATTERNS.items()])
def test_patterns_hold_in_every_group(pattern, kept, of):
    weight, gram = problem(n=136)
    packed, _ = compress(weight, gram, pattern=pattern)
    assert (~packed.mask()).view(-1, of).sum(1).unique().tolist() == [kept]
    assert packed.format == ("two_four" if pattern == "2:4" else "bitmask")


@pytest.mark.parametrize("group_size", [-1, 16])
def test_what_stays_lies_on_the_grid_of_the_dense_weight(group_size):
    weight, gram = problem()
    packed, _ = compress(weight, gram, quantize=True, bits=3, group_size=group_size)
    grid = fit(weight, 3, group_size, False)
    assert torch.equal(packed.grid.scale, grid.scale) and torch.equal(packed.grid.zero, grid.zero)
    stored = packed.dequantize()
    assert torch.equal(grid.decode(grid.round(stored)), stored)


# --- what it reduces to ---


def test_nothing_removed_is_nothing_done():
    weight, gram = problem()
    _, edit = compress(weight, gram, sparsity=0.0)
    assert not edit.linears and not edit.notes


@pytest.mark.parametrize("group_size", [-1, 16])
def test_nothing_removed_but_rounded_is_gptq(group_size):
    weight, gram = problem()
    packed, _ = compress(weight, gram, sparsity=0.0, quantize=True, bits=3, group_size=group_size)
    codes, grid, _, _ = gptq(weight, gram, GptqParams(bits=3, group_size=group_size, act_order=False))
    assert packed.format == "grouped_int" and torch.equal(packed.dequantize(), grid.decode(codes))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_orthogonal_inputs_and_a_pattern_give_wandas_mask(pattern):
    """No weight can speak for another: nothing moves, and w^2 H_cc ranks as |w| ||x_c|| does."""
    weight, _ = problem(n=136)
    loud = 0.1 + 5 * torch.rand(136, generator=torch.Generator().manual_seed(6)) ** 2
    packed, _ = compress(weight, torch.diag(loud.square()), pattern=pattern, damping=1e-4)
    wanda = get("wanda")
    stats = Stats(400, sum_sq=loud.square())
    site = Site("a.b", "q", 0, 1, weight, None, None)
    expected = wanda.compress(site, stats, wanda.params(pattern=pattern)).linears["a.b"]
    assert torch.equal(packed.mask(), expected.mask()) and torch.equal(
        packed.dequantize(), expected.dequantize()
    )


def test_white_inputs_and_one_block_give_magnitudes_mask():
    weight, _ = problem()
    packed, _ = compress(weight, 37.0 * torch.eye(48), sparsity=0.4)
    site = Site("a.b", "q", 0, 1, weight, None, None)
    magnitude = get("magnitude")
    expected = magnitude.compress(site, Stats(0), magnitude.params(sparsity=0.4)).linears["a.b"]
    assert torch.equal(packed.mask(), expected.mask()) and torch.equal(
        packed.dequantize(), expected.dequantize()
    )


def test_scale_of_h_changes_nothing_and_silent_inputs_go_first():
    weight, gram = problem()
    first, _ = compress(weight, gram)
    other, _ = compress(weight, 1024 * gram)
    assert torch.equal(first.mask(), other.mask()) and torch.equal(first.values, other.values)
    gram[[3, 7, 11]], gram[:, [3, 7, 11]] = 0, 0
    packed, _ = compress(100 * weight, gram, sparsity=0.3)
    assert bool(packed.mask()[:, [3, 7, 11]].all())
    few, _ = compress(weight, gram, sparsity=0.05)
    kept = ~few.mask()[:, 3]
    assert bool(kept.any()) and torch.equal(few.dequantize()[kept, 3], weight[kept, 3].half().float())


# --- storage ---


@pytest.mark.parametrize(
    "params", [{}, {"sparsity": 0.75}, {"pattern": "4:8"}, {"pattern": "2:4"}, {"pattern": "1:4"}]
)
@pytest.mark.parametrize(
    "rounding", [{}, {"quantize": True}, {"quantize": True, "bits": 3, "symmetric": True, "group_size": -1}]
)
@pytest.mark.parametrize("shape", [(24, 64), (16, 192), (7, 96)])
def test_the_cost_is_what_is_stored(params, rounding, shape):
    weight, gram = problem(*shape)
    packed, _ = compress(weight, gram, **params, **rounding)
    promised = get("sparsegpt").cost(shape, SparsegptParams(**params, **rounding), 400).bytes
    assert abs(packed.stored_bytes() - promised) <= 0.005 * promised + 8


@pytest.mark.parametrize(
    "params, bits",
    [
        ({}, 9.0),
        ({"pattern": "2:4"}, 9.0),
        ({"quantize": True}, 1 + 2 + 20 / 64),
        ({"pattern": "2:4", "quantize": True, "group_size": -1}, 3.0),
    ],
)
def test_bits_a_weight(params, bits):
    weight, gram = problem(out=16, n=512, tokens=800)
    packed, _ = compress(weight, gram, **params)
    assert packed.bits_per_weight() == pytest.approx(bits, abs=0.08)


@pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")
@pytest.mark.parametrize(
    "params", [{}, {"pattern": "2:4"}, {"quantize": True}, {"pattern": "2:4", "quantize": True, "bits": 3}]
)
def test_the_kernels_serve_what_is_stored(params):
    assert cpu.wait() is not None, cpu.status()
    weight, gram = problem(out=40, n=192, tokens=600)
    packed, _ = compress(weight, gram, **params)
    x = torch.randn(3, 192, generator=torch.Generator().manual_seed(1))
    expected = x @ packed.stored().T
    assert packed.plan() is not None and torch.allclose(packed.matmul(x), expected, atol=1e-3)


@pytest.mark.parametrize("params", [{}, {"pattern": "2:4"}])
def test_gptq_follows_and_the_places_stay(params):
    alone, chained, ids = tiny.bundle("llama"), tiny.bundle("llama"), tiny.ids(8)
    steps = ((get("sparsegpt"), SparsegptParams(**params)), (get("gptq"), GptqParams(group_size=16)))
    outcome = calibrate.compress(alone, steps[:1], ids)
    calibrate.compress(chained, steps, ids)
    for row in outcome.layers:
        before, after = (b.module.get_submodule(row["path"]).packed for b in (alone, chained))
        assert (
            after.format == before.format
            and after.grid.bits == 4
            and torch.equal(after.mask(), before.mask())
        )


# --- the claims ---


@pytest.mark.parametrize("pattern, at_most", [("unstructured", 0.75), ("4:8", 0.75), ("2:4", 0.7)])
def test_less_error_than_wanda(pattern, at_most):
    weight, gram = problem(out=32, n=256, tokens=2000, seed=7)
    wanda = get("wanda")
    site = Site("a.b", "q", 0, 1, weight, None, None)
    other = wanda.compress(site, Stats(2000, sum_sq=gram.diagonal()), wanda.params(pattern=pattern)).linears[
        "a.b"
    ]
    packed, edit = compress(weight, gram, pattern=pattern)
    error = output_error(weight, packed.dequantize(), gram)
    assert error < at_most * output_error(weight, other.dequantize(), gram)
    assert edit.figures["a.b"]["output_error"] == pytest.approx(error, rel=1e-3)


def test_its_error_grows_with_what_is_removed_and_how_fixed_the_places_are():
    weight, gram = problem(out=32, n=256, tokens=2000, seed=7)

    def error(**params):
        return compress(weight, gram, **params)[1].figures["a.b"]["output_error"]

    ladder = [error(sparsity=s) for s in (0.2, 0.4, 0.5, 0.6, 0.8)]
    assert ladder == sorted(ladder)
    assert error() < error(pattern="4:8") < error(pattern="2:4") < error(pattern="1:4")
    assert error() < error(quantize=True) < error(quantize=True, bits=3)


def test_one_step_is_better_than_pruning_and_then_rounding():
    """Section 3.5: the same places' number, the same grid."""
    weight, gram = problem(out=32, n=256, tokens=2000, seed=7)
    options = {"bits": 3, "group_size": 64}
    joint, _ = compress(weight, gram, quantize=True, **options)
    first, _ = compress(weight, gram)
    site = Site("a.b", "q", 0, 1, first.dequantize(), None, first)
    then = get("rtn").compress(site, Stats(0), get("rtn").params(**options)).linears["a.b"]
    assert output_error(weight, joint.dequantize(), gram) < 0.8 * output_error(
        weight, then.dequantize(), gram
    )


# --- what goes wrong ---


def test_widths_and_shares_that_do_not_fit_are_refused():
    weight, gram = problem(n=42)
    with pytest.raises(UnsupportedLayer, match="divisible by 4; it is 42"):
        compress(weight, gram, pattern="2:4")
    with pytest.raises(BadParam, match="0.0 to 0.95"):
        SparsegptParams(sparsity=1.0)


def test_raised_damping_and_short_groups_are_told():
    weight, gram = problem()
    gram -= 0.02 * gram.diagonal().mean() * torch.eye(48)
    low = float(torch.linalg.eigvalsh(gram.double()).min())
    # indefinite: the first damping is not enough
    gram -= (low + 0.05 * float(gram.diagonal().mean())) * torch.eye(48)
    assert inverse_factor(gram, 0.01)[1] > 0.01
    _, edit = compress(weight, gram, quantize=True, group_size=32)
    assert [n.code for n in edit.notes] == ["short_group", "damping_raised"] and edit.notes[1].facts[
        "layer"
    ] == "a.b"


def test_what_has_no_effect_leaves_the_key():
    plain = SparsegptParams()
    assert dataclasses.replace(plain, bits=3, group_size=16, symmetric=True).effective() == plain.effective()
    two_four = SparsegptParams(pattern="2:4")
    assert dataclasses.replace(two_four, sparsity=0.7, mask_block=64).effective() == two_four.effective()
    assert (
        dataclasses.replace(plain, quantize=True, bits=3).effective()
        != dataclasses.replace(plain, quantize=True).effective()
    )

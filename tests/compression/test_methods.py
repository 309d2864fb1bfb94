"""The contract that every method keeps, and the small methods against their definitions."""

from __future__ import annotations

import copy
import dataclasses
import sys

import numpy as np
import pytest
import torch

from compression import NAMES, arch, calibrate, get
from compression.base import (
    STATS,
    BadChain,
    BadParam,
    Block,
    BlockMethod,
    Group,
    LinearMethod,
    ModelMethod,
    Site,
    Stats,
    StudentMethod,
    UnsupportedLayer,
)
from compression.bundle import Geometry, LayerGeometry
from compression.low_rank.rank import rank_for
from compression.packed import FORMATS
from tests import oracles, tiny

LINEAR = [n for n in NAMES if not isinstance(get(n), ModelMethod)]
STUDENTS = [n for n in NAMES if isinstance(get(n), StudentMethod)]
CUTS = [n for n in NAMES if n not in (*LINEAR, *STUDENTS) and get(n).reshaped]
STORING = [n for n in NAMES if n not in LINEAR and get(n).stores]


def on_families(names) -> list[tuple[str, str]]:
    """What sees each matrix by itself has two families: test_calibrate.py has them all. What sees a block or
    the model has every one."""
    single = [n for n in names if isinstance(get(n), LinearMethod)]
    return [*tiny.pairs(single), *((n, f) for n in names if n not in single for f in tiny.FAMILIES)]


def site(out=24, n=40, seed=0, previous=None):
    weight = torch.randn(out, n, generator=torch.Generator().manual_seed(seed))
    return Site("block.linear", "q", 0, 1, weight, None, previous)


def inputs(n=40, tokens=500, seed=1):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tokens, n, generator=g)
        @ (torch.eye(n) + torch.randn(n, n, generator=g) / n**0.5)
        * (0.1 + 3 * torch.rand(n, generator=g) ** 4)
    )


def stats(x):
    return Stats(
        tokens=len(x),
        gram=x.T @ x,
        sum_sq=x.square().sum(0),
        mean_abs=x.abs().mean(0),
        max_abs=x.abs().amax(0),
        mean=x.mean(0),
    )


def run(name, here=None, x=None, **params):
    method = get(name)
    here = here or site()
    edit = compress(
        method, here, stats(inputs(here.weight.shape[1]) if x is None else x), method.params.parse(params)
    )
    return edit.linears.get(here.path), edit


def compress(method, here, summed, params):
    """One linear, by itself or as the only one of a block."""
    if isinstance(method, BlockMethod):
        return method.compress(Block(0, 1, (Group((here,), summed, None, "post_norm"),)), params)
    return method.compress(here, summed, params)


# --- the contract ---


@pytest.mark.parametrize("name", NAMES)
def test_declares_what_exists(name):
    method = get(name)
    assert method.family in ("quantization", "pruning", "low_rank", "distillation", "original")
    assert method.collects(method.params()) <= STATS and method.after | {method.stores or "dense"} <= set(
        FORMATS
    )
    method.params.parse(method.tiny)
    for values in (method.identity or {},):
        method.params.parse(values)


@pytest.mark.parametrize("shape", [(24, 40), (7, 33), (64, 16), (16, 64)])
@pytest.mark.parametrize("name", LINEAR)
def test_stored_bytes_are_what_the_cost_promised(name, shape):
    here = site(*shape)
    method = get(name)
    params = method.params.parse(dict(method.tiny))
    packed, edit = run(name, here, **method.tiny)
    promised = method.cost_of(shape, params, 500, here.role).bytes
    slack = 4 * (shape[0] + 1) + 8 if packed.format == "bitmask" else 8
    # one that the linear hadn't, in 16 bits
    bias = 2 * shape[0] if f"{here.path}.bias" in edit.tensors else 0
    assert abs(packed.stored_bytes() + bias - promised) <= 0.02 * promised + slack


@pytest.mark.parametrize("name", LINEAR)
def test_inputs_are_not_changed(name):
    here, x = site(), inputs()
    before, summed = here.weight.clone(), stats(x)
    kept = copy.deepcopy(summed)
    compress(get(name), here, summed, get(name).params.parse(dict(get(name).tiny)))
    assert torch.equal(here.weight, before)
    assert torch.equal(summed.gram, kept.gram) and torch.equal(summed.sum_sq, kept.sum_sq)


@pytest.mark.parametrize("name", LINEAR)
def test_the_same_input_gives_the_same_bytes(name):
    """E18."""
    a, b = run(name, **get(name).tiny)[0], run(name, **get(name).tiny)[0]
    assert all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name, family", on_families([n for n in NAMES if get(n).identity is not None]))
def test_nothing_to_do_leaves_the_logits_bit_identical(name, family):
    """J, E16."""
    bundle, tokens = tiny.bundle(family), tiny.ids(4)
    before = tiny.logits(bundle, tokens)
    method = get(name)
    calibrate.compress(bundle, ((method, method.params.parse(dict(method.identity))),), tokens)
    assert torch.equal(tiny.logits(bundle, tokens), before)


@pytest.mark.parametrize("name, family", on_families([*LINEAR, *CUTS]))
def test_every_method_works_on_every_family(name, family):
    """K: a non-empty set of layers changes, and the logits with them, but not beyond recognition."""
    bundle, tokens = tiny.bundle(family), tiny.ids(8)
    before = tiny.logits(bundle, tokens)
    method = get(name)
    outcome = calibrate.compress(bundle, ((method, method.params.parse(dict(method.tiny))),), tokens)
    after = tiny.logits(bundle, tokens)
    assert outcome.layers and bool(torch.isfinite(after).all())
    assert 0 < (after - before).norm() < before.norm()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", CUTS)
def test_a_method_that_cuts_leaves_the_sizes_that_it_promised_and_the_same_every_time(name, family):
    left = []
    for _ in range(2):
        bundle, method = tiny.bundle(family), get(name)
        params = method.params.parse(dict(method.tiny))
        promised = method.reshaped(bundle.geometry, params)
        calibrate.compress(bundle, ((method, params),), tiny.ids(8))
        assert bundle.geometry == promised
        left.append(bundle.module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in left), strict=True))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_of_every_family_has_the_sizes_that_were_promised(name, family):
    bundle, tokens, method = tiny.bundle(family), tiny.ids(8), get(name)
    params = method.params.parse(dict(method.tiny))
    promised, before = method.reshaped(bundle.geometry, params), tiny.logits(bundle, tokens)
    calibrate.compress(bundle, ((method, params),), tokens)
    after = tiny.logits(bundle, tokens)
    assert bundle.geometry == promised and len(promised.layers) < 2
    assert bool(torch.isfinite(after).all()) and not torch.equal(after, before)
    assert not any(p.requires_grad for p in bundle.module.parameters()) and not bundle.module.training


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_the_same_every_time_and_follows_an_uncompressed_model_only(name):
    method, left = get(name), []
    params = method.params.parse(dict(method.tiny))
    for _ in range(2):
        bundle = tiny.bundle("llama")
        calibrate.compress(bundle, ((method, params),), tiny.ids(8))
        left.append(bundle.module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in left), strict=True))
    rounded = tiny.bundle("llama")
    with pytest.raises(BadChain):
        calibrate.compress(rounded, ((get("rtn"), get("rtn").params()), (method, params)), tiny.ids(8))


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_is_stored_in_the_format_that_the_method_declares(name):
    method = get(name)
    packed, _ = run(name, site(32, 64), **method.tiny)
    assert packed.format == method.stores


@pytest.mark.parametrize("name", STORING)
def test_a_model_is_stored_in_the_format_that_the_method_declares(name):
    method, bundle = get(name), tiny.bundle("llama")
    params = method.params.parse(dict(method.tiny) | {"train_tokens": 0})
    outcome = calibrate.compress(bundle, ((method, params),), tiny.ids(8))
    # an adapter that wasn't trained isn't there
    expected = "codebook" if name == "qlora" else method.stores
    assert {row["format"] for row in outcome.layers} == {expected}


@pytest.mark.parametrize("family", ("quantization", "pruning", "low_rank", "distillation"))
def test_one_method_of_a_family_is_shown_first(family):
    assert sum(get(n).shown_first for n in NAMES if get(n).family == family) == 1


# --- rounding ---


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [-1, 16])
def test_rounding_is_rounding(bits, group):
    here = site(5, 40)
    packed, _ = run("rtn", here, bits=bits, group_size=group)
    _, expected = oracles.quantization.rtn(here.weight.numpy().astype(np.float64), bits, group)
    assert np.allclose(packed.dequantize().numpy(), expected, atol=1e-6)


def test_rounding_error_is_at_most_half_a_step_and_falls_with_bits():
    here, last = site(), np.inf
    for bits in range(2, 9):
        packed, _ = run("rtn", here, bits=bits, group_size=16)
        scale, _ = packed.grid.columns()
        error = (packed.dequantize() - here.weight).abs()
        assert bool((error <= scale * 0.51 + 1e-3).all())
        assert float(error.square().sum()) < last
        last = float(error.square().sum())


def test_zero_survives_rounding():
    here = site()
    here.weight[:, ::3] = 0
    for symmetric in (False, True):
        packed, _ = run("rtn", here, bits=3, group_size=16, symmetric=symmetric)
        assert bool((packed.dequantize()[:, ::3] == 0).all())


def test_a_short_group_is_told():
    _, edit = run("rtn", site(8, 40), bits=4, group_size=16)
    assert [(n.code, n.facts["last"]) for n in edit.notes] == [("short_group", 8)]


# --- pruning ---


def test_wanda_is_the_papers_mask():
    here, x = site(), inputs()
    packed, _ = run("wanda", here, x, sparsity=0.5)
    assert np.array_equal(
        packed.mask().numpy(), oracles.pruning.wanda_mask(here.weight.numpy(), x.numpy(), 0.5)
    )


@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.6, 0.95])
def test_wanda_removes_exactly_that_many_in_every_row_and_keeps_the_rest(sparsity):
    here = site()
    packed, _ = run("wanda", here, sparsity=sparsity)
    assert packed.mask().sum(1).tolist() == [int(40 * sparsity)] * 24
    kept = ~packed.mask()
    assert torch.equal(packed.dequantize()[kept], here.weight[kept].half().float())


def test_wanda_follows_inputs_and_magnitude_does_not():
    """B: unchanged by W -> cW, X -> cX and by moving a factor from inputs to weights; magnitude's mask
    moves."""
    here, x = site(), inputs()
    first = run("wanda", here, x)[0].mask()
    factor = 0.2 + 5 * torch.rand(40, generator=torch.Generator().manual_seed(5))
    moved = Site(here.path, "q", 0, 1, here.weight / factor, None, None)
    assert torch.equal(
        run("wanda", Site(here.path, "q", 0, 1, 8 * here.weight, None, None), x)[0].mask(), first
    )
    assert torch.equal(run("wanda", here, 4 * x)[0].mask(), first)
    assert torch.equal(run("wanda", moved, x * factor)[0].mask(), first)
    assert not torch.equal(run("magnitude", moved)[0].mask(), run("magnitude", here)[0].mask())


def test_equal_inputs_make_wanda_row_wise_magnitude():
    here = site()
    packed, _ = run("wanda", here, torch.ones(100, 40))
    for row, mask in zip(here.weight.abs(), packed.mask(), strict=True):
        assert row[mask].max() <= row[~mask].min() and mask.sum() == 20


def test_magnitude_removes_the_smallest_of_the_matrix():
    here = site()
    packed, _ = run("magnitude", here, sparsity=0.3)
    mask = packed.mask()
    assert int(mask.sum()) == int(0.3 * here.weight.numel())
    assert here.weight.abs()[mask].max() <= here.weight.abs()[~mask].min()


@pytest.mark.parametrize("pattern, kept, of", [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("name", ["wanda", "magnitude"])
def test_patterns_hold_in_every_group_and_keep_the_best(name, pattern, kept, of):
    """C."""
    here, x = site(), inputs()
    packed, _ = run(name, here, x, pattern=pattern)
    score = here.weight.abs() * (x.square().sum(0).sqrt() if name == "wanda" else 1)
    groups, scores = packed.mask().view(-1, of), score.view(-1, of)
    assert (~groups).sum(1).unique().tolist() == [kept]
    for mask, s in zip(groups, scores, strict=True):
        assert s[mask].max() <= s[~mask].min()
    assert packed.format == ("two_four" if pattern == "2:4" else "bitmask")


def test_a_width_without_whole_groups_is_refused():
    with pytest.raises(UnsupportedLayer, match="divisible by 4; it is 42"):
        run("wanda", site(8, 42), pattern="2:4")


def test_everything_may_not_be_removed():
    with pytest.raises(BadParam, match="0.0 to 0.95"):
        get("wanda").params.parse({"sparsity": 1.0})


# --- low rank ---


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_svd_is_the_nearest_and_its_error_the_discarded_spectrum(shape):
    """G."""
    here = site(*shape)
    packed, _ = run("svd", here, removed=0.5)
    rank = packed.u.shape[1]
    assert rank == int(0.5 * shape[0] * shape[1] / sum(shape))
    u, s, vt = np.linalg.svd(here.weight.numpy().astype(np.float64), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    assert np.allclose(packed.dequantize().numpy(), best, atol=6e-3)
    error = float((packed.dequantize() - here.weight).square().sum())
    assert error == pytest.approx((s[rank:] ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_svd_llm_is_the_papers_form_and_its_error_the_discarded_eigenvalues(shape):
    """G: without an inverse it is the same matrix as with the Cholesky factor and its inverse."""
    here, x = site(*shape), inputs(shape[1])
    packed, _ = run("svd_llm", here, x, removed=0.4)
    rank = packed.u.shape[1]
    weight, wide = here.weight.numpy().astype(np.float64), x.numpy().astype(np.float64)
    expected, spectrum = oracles.low_rank.svd_llm(weight, wide, rank)
    assert np.abs(packed.dequantize().numpy() - expected).max() < 4e-3 * np.abs(expected).max() + 4e-3
    error = (((weight - packed.dequantize().numpy().astype(np.float64)) @ wide.T) ** 2).sum()
    assert error == pytest.approx((spectrum[rank:] ** 2).sum(), rel=1e-2)


def test_svd_llm_wins_on_outputs_and_svd_on_weights():
    here, x = site(32, 32), inputs(32)
    ours, plain = (
        run("svd_llm", here, x, removed=0.5)[0].dequantize(),
        run("svd", here, removed=0.5)[0].dequantize(),
    )

    def outputs(w):
        return float(((here.weight - w) @ x.T).square().sum())

    assert outputs(ours) < 0.9 * outputs(plain)
    assert (here.weight - plain).norm() < (here.weight - ours).norm()


def test_svd_llm_needs_no_invertible_gram():
    here = dataclasses.replace(site(16, 40), role="down")  # the widest input tells that tokens are few
    x = inputs(40, tokens=8)  # fewer tokens than inputs
    packed, edit = run("svd_llm", here, x, removed=0.2)
    assert bool(torch.isfinite(packed.dequantize()).all())
    assert [n.code for n in edit.notes] == ["few_tokens"]
    reached = ((here.weight - packed.dequantize()) @ x.T).norm() / (here.weight @ x.T).norm()
    assert packed.u.shape[1] == 9 and reached < 0.01, "rank 9 reproduces the outputs on 8 tokens"


LLAMA_7B = Geometry("llama", 4096, 32_000, 2048, False, (LayerGeometry(32, 32, 128, 11_008),) * 32)


@pytest.mark.parametrize(
    "shape, rank",
    [
        ((4096, 4096), 1638),
        ((11_008, 4096), 2388),
        ((4096, 11_008), 2388),
        ((768, 768), 307),
        ((3072, 768), 491),
    ],
)
def test_the_rank_of_a_budget_is_the_papers(shape, rank):
    assert rank_for(shape, 0.2) == rank


def test_llama_7b_with_a_fifth_removed_is_the_size_that_the_paper_tells():
    """10.14 GiB in 16 bits, "10.2 GB" in the paper."""
    factors = sum(rank_for(shape, 0.2) * sum(shape) for _, _, shape in arch.linear_shapes(LLAMA_7B))
    norms = LLAMA_7B.hidden * (2 * len(LLAMA_7B.layers) + 1)
    assert factors + 2 * LLAMA_7B.table_parameters + norms == 5_442_539_520


LOW_RANK = [n for n in LINEAR if get(n).family == "low_rank"]  # those that factorise each matrix


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30), (7, 90)])
@pytest.mark.parametrize("removed", [0.2, 0.5, 0.8])
def test_every_low_rank_method_has_at_most_that_rank_and_loses_to_the_optima(shape, removed):
    """On every matrix: SVD is nearest to the weights, SVD-LLM to the outputs among those without a bias."""
    here, x = site(*shape), inputs(shape[1]) + 0.4
    weights, outputs = {}, {}
    for name in LOW_RANK:
        packed, edit = run(name, here, x, removed=removed)
        lost = (here.weight - packed.dequantize()).double()
        shift = edit.tensors.get(f"{here.path}.bias", torch.zeros(shape[0])).double()
        weights[name] = float(lost.square().sum())
        outputs[name] = float((x.double() @ lost.T - shift).square().sum())
        assert packed.u.shape[1] <= rank_for(shape, removed)
        assert packed.stored_bytes() <= 2 * (1 - removed) * shape[0] * shape[1]
    assert all(weights["svd"] <= 1.0001 * error for error in weights.values())
    assert all(outputs["svd_llm"] <= 1.0001 * outputs[name] for name in LOW_RANK if name != "pca")
    assert outputs["pca"] <= 1.0001 * outputs["svd_llm"]


@pytest.mark.parametrize("name", ["svd", "asvd", "svd_llm", "pca"])
def test_all_of_the_rank_reproduces_the_weight(name, monkeypatch):
    """A budget never allows it (two factors of full rank are larger than the matrix): the rank is set from
    outside."""
    here, x = site(24, 40), inputs()
    module = sys.modules[get(name).compress.__module__]
    module = sys.modules["compression.low_rank.svd_llm"] if name == "pca" else module
    monkeypatch.setattr(module, "rank_for", lambda shape, removed: min(shape))
    packed, edit = run(name, here, x, removed=0.2)
    assert (packed.dequantize() - here.weight).abs().max() < 5e-3
    assert all(bias.abs().max() < 5e-3 for bias in edit.tensors.values())


@pytest.mark.parametrize("name", ["svd_llm", "pca"])
def test_moving_a_factor_from_inputs_to_weights_moves_no_output(name):
    """SVD-LLM and PCA see W x only; ASVD and SVD see W and x apart."""
    here, x = site(), inputs()
    mix = torch.eye(40) + 0.3 * torch.randn(40, 40, generator=torch.Generator().manual_seed(3)) / 40**0.5
    moved = dataclasses.replace(here, weight=torch.linalg.solve(mix, here.weight, left=False))

    def outputs(name, at, x):
        return x @ run(name, at, x, removed=0.5)[0].dequantize().T

    first = outputs(name, here, x)
    assert (outputs(name, moved, x @ mix.T) - first).norm() < 0.01 * first.norm()
    for other in ("svd", "asvd"):
        assert (outputs(other, moved, x @ mix.T) - outputs(other, here, x)).norm() > 0.03 * first.norm()


def test_error_falls_with_rank():
    here, x = site(), inputs()
    for name in ("svd", "svd_llm", "asvd", "pca"):
        errors = [
            float(((here.weight - run(name, here, x, removed=r)[0].dequantize()) @ x.T).norm())
            for r in (0.8, 0.6, 0.4, 0.2)
        ]
        assert errors == sorted(errors, reverse=True)

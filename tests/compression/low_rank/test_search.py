"""The search of ranks: each measured loss against the model itself, the threshold against trying all of them,
what it gives, and what it costs."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from compression import arch, calibrate, get
from compression.base import Cancelled, Context
from compression.low_rank import search
from compression.low_rank.rank import rank_for
from compression.recorder import QUIET, Recorder
from evaluation.running.estimate import stage_seconds
from evaluation.spec import RunSpec
from tests import oracles, tiny
from tests.compression.test_depth import deeper

ASVD = get("asvd")


def loss(module, ids):
    """As transformers computes it."""
    with torch.no_grad():
        return float(module(input_ids=ids, labels=ids, use_cache=False).loss)


def inputs_of(bundle, path, ids):
    found = []
    hook = bundle.module.get_submodule(path).register_forward_pre_hook(lambda m, args: found.append(args[0]))
    tiny.logits(bundle, ids)
    hook.remove()
    return found[0].detach().double().reshape(-1, found[0].shape[-1]).numpy()


def measured(bundle, ids, monkeypatch, **values):
    """(losses, sizes, kept) that the search hands to its threshold, and its plan."""
    held = []
    monkeypatch.setattr(search, "divide", lambda *args, real=search.divide: held.append(args) or real(*args))
    params = ASVD.params.parse({"removed": 0.3, "search_tokens": 64, **values})
    plan = ASVD.planner.find(bundle, Context(ids, QUIET), params)
    return held[0], plan


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_loss_is_that_of_the_model_with_one_matrix_cut(family, monkeypatch):
    bundle, ids = tiny.bundle(family), tiny.ids(8)
    (losses, sizes, _), _ = measured(bundle, ids, monkeypatch)
    linears = [(path, layer) for path, _, layer in arch.linears(bundle.module)]
    assert set(losses) == set(sizes) == {path for path, _ in linears}
    few = ids[[0, 4]]  # 64 tokens, evenly spread
    for path in (linears[0][0], linears[-1][0], linears[len(linears) // 2][0]):
        weight = bundle.module.get_submodule(path).weight.detach().double().numpy()
        x = inputs_of(bundle, path, ids)
        for share in (0.4, 0.9):
            cut = oracles.low_rank.asvd(weight, x, rank_for(weight.shape, 1 - share), 0.5)
            other = copy.deepcopy(bundle.module)
            other.get_submodule(path).weight.data = torch.tensor(cut, dtype=torch.float32)
            assert losses[path][share] == pytest.approx(loss(other, few), rel=2e-6), (path, share)


@pytest.mark.parametrize("kept", [0.41, 0.6, 0.75, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_the_strictest_that_fits(seed, kept):
    draw = random.Random(seed)
    sizes = {f"m{i}": draw.choice((100, 300, 700)) for i in range(9)}
    losses = {m: {s: draw.random() + 0.3 * (1 - s) for s in (0.4, 0.6, 0.9)} for m in sizes}
    pairs = {(m, s): loss for m, own in losses.items() for s, loss in own.items()}
    assert search.divide(losses, sizes, kept) == oracles.low_rank.divided(pairs, sizes, kept)


def test_what_breaks_the_model_is_refused_last():
    losses = {"a": {0.4: float("nan"), 0.9: 3.0}, "b": {0.4: 3.1, 0.9: 3.05}}
    assert search.divide(losses, {"a": 10, "b": 10}, 0.7) == {"a": 0.9, "b": 0.4}


@pytest.mark.parametrize("removed, least", [(0.2, 0.4), (0.5, 0.4), (0.6, 0.1), (0.95, 0.05)])
def test_any_budget_can_be_met(removed, least):
    found = search.shares(removed)
    assert found[0] == pytest.approx(least) and found[-1] == 0.9 and list(found) == sorted(found)


def test_with_one_share_alone_it_is_the_uniform_form(monkeypatch):
    """All matrices must then take it, if the budget is that share."""
    monkeypatch.setattr(search, "shares", lambda removed: (1 - removed,))
    ids, made = tiny.ids(8), []
    for allocation in ("search", "uniform"):
        bundle = tiny.bundle("llama")
        params = ASVD.params.parse({"removed": 0.4, "allocation": allocation, "search_tokens": 64})
        calibrate.compress(bundle, ((ASVD, params),), ids)
        made.append([bundle.module.get_submodule(path).packed for path, _, _ in arch.linears(bundle.module)])
    for ours, plain in zip(*made, strict=True):
        assert torch.equal(ours.u, plain.u) and torch.equal(ours.v, plain.v)


def searched(bundle, ids, removed=0.3, **values):
    params = ASVD.params.parse({"removed": removed, "search_tokens": 64, **values})
    return calibrate.compress(bundle, ((ASVD, params),), ids)


def test_each_matrix_has_the_rank_of_its_share_and_together_they_fit(monkeypatch):
    bundle, ids = tiny.bundle("llama"), tiny.ids(4)
    _, plan = measured(bundle, ids, monkeypatch)
    assert all(path in plan.params for path, _, _ in arch.linears(bundle.module))
    before = sum(bundle.module.get_submodule(path).weight.numel() for path in plan.params)
    outcome = searched(bundle, ids)
    kept = 0
    for path, params in plan.params.items():
        linear = bundle.module.get_submodule(path)
        if params.removed == 0:
            kept += linear.weight.numel()
        else:
            shape = (linear.out_features, linear.in_features)
            assert linear.packed.u.shape[1] == rank_for(shape, params.removed)
            kept += linear.packed.u.numel() + linear.packed.v.numel()
    assert 0.58 * before < kept <= 0.7 * before
    (note,) = (n for n in outcome.notes if n.code == "ranks_searched")
    assert note.facts["count"] == len(plan.params)


def own_text(bundle, windows, length, seed=0):
    """Token ids [windows, length] that the model draws itself, so that it predicts them well."""
    ids, draw = tiny.ids(windows, 2, seed), tiny.seeded(seed)
    while ids.shape[1] < length:
        chances = torch.softmax(tiny.logits(bundle, ids)[:, -1], -1)
        ids = torch.cat((ids, torch.multinomial(chances, 1, generator=draw)), 1)
    return ids


def test_a_matrix_that_bears_it_gives_more_and_the_model_loses_less():
    """The claim, planted: every other block holds matrices of rank 6, and uniform shares cut the others too.
    At the same budget the search loses less, on text that it didn't measure on."""
    lost = {}
    for allocation in ("uniform", "search"):
        bundle = deeper(blocks=4)
        with torch.no_grad():
            arch.final_norm(bundle.module).weight.mul_(20.0)  # a model that is sure of something
            for path, _, layer in arch.linears(bundle.module):
                weight = bundle.module.get_submodule(path).weight
                if layer % 2:
                    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
                    weight.copy_((u[:, :6] * s[:6]) @ vt[:6])
        ids, other = own_text(bundle, 8, 32), own_text(bundle, 16, 32, seed=1)
        before = loss(bundle.module, other)
        searched(bundle, ids, 0.25, allocation=allocation, search_tokens=128)
        lost[allocation] = loss(bundle.module, other) - before
    assert 0 < lost["search"] < 0.5 * lost["uniform"], lost


def test_it_can_be_stopped():
    with pytest.raises(Cancelled, match="searching ranks"):
        ASVD.planner.find(
            tiny.bundle("llama"), Context(tiny.ids(4), Recorder(cancelled=lambda: True)), ASVD.params()
        )


def test_the_estimate_counts_the_search():
    """1,260 measurements of 0.6 of a pass over SmolLM2-135M, the head included. A pass over the blocks alone is
    what a calibration of 32,768 more tokens takes, beside the sums of products."""

    def seconds(tokens=32_768, **values):
        spec = RunSpec("smollm2-135m-instruct-q4_1", (("asvd", values),), calibration_tokens=tokens)
        return stage_seconds(spec)["compress"]

    shorter, short, long = (seconds(search_tokens=tokens) for tokens in (256, 512, 1_024))
    assert long - short == pytest.approx(2 * (short - shorter), rel=1e-6)
    blocks = stage_seconds(
        RunSpec("smollm2-135m-instruct-q4_1", (("wanda", {"sparsity": 0.0}),), calibration_tokens=65_536)
    )
    fewer = stage_seconds(
        RunSpec("smollm2-135m-instruct-q4_1", (("wanda", {"sparsity": 0.0}),), calibration_tokens=32_768)
    )
    one_pass = (blocks["compress"] - fewer["compress"]) / 2  # Wanda makes two
    whole = one_pass * (135 - 0.1) / 106.2  # with the head
    assert long - short == pytest.approx(0.6 * 1_260 * 512 / 32_768 * whole, rel=0.05)

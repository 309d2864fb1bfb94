"""Channels in another order: what a pattern keeps of them, and that the model computes what it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import calibrate, get
from compression.base import BadParam, Context, UnsupportedLayer
from compression.pruning.permutation import best_order, exchange, kept_sum
from compression.pruning.planning import PLANNER
from compression.recorder import QUIET
from compression.structure import narrow
from tests import oracles, tiny


def drawn(rows, n, seed=0):
    """Scores of which some columns are much louder, as language models have them."""
    g = tiny.seeded(seed)
    return torch.rand(rows, n, generator=g) * torch.rand(n, generator=g) ** 3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kept, of, n", [(2, 4, 8), (2, 4, 12), (1, 4, 8), (4, 8, 8)])
def test_it_is_near_the_best_of_all_orders_and_never_worse_than_none(kept, of, n, seed):
    score = drawn(6, n, seed)
    order = best_order(score, kept, of)
    assert sorted(order.tolist()) == list(range(n))
    found, plain = kept_sum(score[:, order], kept, of), kept_sum(score, kept, of)
    best = oracles.pruning.most_kept(score.double().numpy(), kept, of)
    assert plain <= found <= best * (1 + 1e-6)
    assert found >= 0.99 * best


def test_an_order_that_is_the_best_stays():
    """Each group holds two loud columns already, so that everything loud is kept."""
    score = torch.ones(5, 16)
    score[:, 0::4] = score[:, 1::4] = 9.0
    assert best_order(score, 2, 4).tolist() == list(range(16))


def test_loud_neighbours_are_parted():
    """The claim, planted: eight loud channels side by side, of which four would go."""
    score = drawn(12, 32, 3) + 0.1
    score[:, :8] += 5.0
    order = best_order(score, 2, 4)
    assert kept_sum(score[:, order], 2, 4) > 1.4 * kept_sum(score, 2, 4)
    loud = (order.view(-1, 4) < 8).sum(1)
    assert int(loud.max()) <= 2


@pytest.mark.parametrize("seed", range(4))
def test_swaps_end_where_no_swap_gains(seed):
    gain = torch.rand(9, 9, generator=tiny.seeded(seed))
    order = exchange(gain)
    total = float(sum(gain[order[g], g] for g in range(9)))
    assert sorted(order.tolist()) == list(range(9)) and total >= float(gain.diagonal().sum())
    for i in range(9):
        for j in range(i):
            other = order.clone()
            other[i], other[j] = order[j], order[i]
            assert float(sum(gain[other[g], g] for g in range(9))) <= total + 1e-5


def plan(bundle, **values):
    context = Context(tiny.ids(8), QUIET)
    return PLANNER.find(bundle, context, get("wanda").params.parse({"permute": True, **values}))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_new_order_computes_what_the_old_one_did(family):
    bundle, ids = tiny.bundle(family), tiny.ids(4)
    before = tiny.logits(bundle, ids)
    moved = {path: t.clone() for path, t in plan(bundle, pattern="2:4").edit.tensors.items()}
    changed = 0
    for path, tensor in moved.items():
        owner, _, name = path.rpartition(".")
        held = getattr(bundle.module.get_submodule(owner), name)
        changed += not torch.equal(held, tensor)
        held.data = tensor
    assert changed >= 2 * len(bundle.geometry.layers), "rows and columns of each block"
    after = tiny.logits(bundle, ids)
    assert (after - before).norm() < 1e-5 * before.norm()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_it_is_still_the_pattern_and_more_of_the_score_stays(name, family):
    bundle = tiny.bundle(family)
    params = get(name).params.parse({"pattern": "2:4", "permute": True})
    outcome = calibrate.compress(bundle, ((get(name), params),), tiny.ids(8))
    assert {row["format"] for row in outcome.layers} == {"two_four"}
    gains = {n.facts["role"]: n.facts["percent"] for n in outcome.notes if n.code == "channels_reordered"}
    assert gains["down"] > 1.0 and gains["o"] > 0


def test_less_is_lost_with_it():
    """At the same pattern and file: the matrices that may be reordered lose less of their outputs."""
    lost = {}
    for permute in (False, True):
        bundle = tiny.bundle("llama")
        params = get("wanda").params.parse({"pattern": "2:4", "permute": permute})
        outcome = calibrate.compress(bundle, ((get("wanda"), params),), tiny.ids(8))
        rows = [row for row in outcome.layers if row["role"] == "down"]
        lost[permute] = np.mean([row["removed_score"] for row in rows])
    assert lost[True] < 0.95 * lost[False], lost


def test_groups_that_reach_over_two_heads_are_left():
    """Heads of 12 values are three groups of 4, but not whole groups of 8."""
    found = plan(tiny.bundle("llama"), pattern="4:8").edit
    assert [n.code for n in found.notes] == ["channels_reordered", "values_not_reordered"]
    assert not any("v_proj" in path for path in found.tensors)


def test_what_is_not_possible_is_said():
    with pytest.raises(BadParam, match="order of the channels doesn't matter"):
        get("wanda").params.parse({"permute": True})
    bundle = tiny.bundle("llama")
    for block in bundle.module.model.layers:
        for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            narrow(getattr(block.mlp, name), torch.arange(78), axis)
    with pytest.raises(UnsupportedLayer, match="divisible by 4; it is 78"):
        plan(bundle, pattern="2:4")

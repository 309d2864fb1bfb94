"""SVD-LLM's update of U and its shares by loss, against the papers' forms. Its factors themselves:
test_methods.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compression import arch, calibrate, get
from compression.base import Context
from compression.low_rank import svd_llm
from compression.low_rank.rank import rank_for
from compression.recorder import QUIET
from evaluation.running.estimate import estimate
from evaluation.spec import RunSpec
from tests import oracles, tiny
from tests.compression.low_rank.test_search import loss, own_text
from tests.compression.test_depth import deeper
from tests.compression.test_methods import inputs, site, stats

METHOD = get("svd_llm")


def updated(here, x, moved, **values):
    """The factors for original inputs x, fitted to what the compressed blocks give instead."""
    both = dataclasses.replace(stats(moved), original=stats(x))
    edit = METHOD.compress(here, both, METHOD.params.parse({"removed": 0.4, "update": True, **values}))
    return edit.linears[here.path].dequantize(), edit.figures[here.path]["output_error"]


def moved_inputs(n, seed=9):
    """What enters after other blocks erred: the inputs with some directions damped, and noise."""
    g = tiny.seeded(seed)
    return inputs(n) @ (torch.eye(n) - 0.3 * torch.rand(n, n, generator=g) / n**0.5) + 0.3 * torch.randn(
        500, n, generator=g
    )


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_the_update_is_least_squares_with_the_right_factor_as_it_is(shape):
    here, x, moved = site(*shape), inputs(shape[1]), moved_inputs(shape[1])
    new, error = updated(here, x, moved)
    weight, before, after = (t.numpy().astype(np.float64) for t in (here.weight, x, moved))
    expected = oracles.low_rank.updated(weight, before, after, rank_for(shape, 0.4))
    assert np.abs(new.numpy() - expected).max() < 5e-3 * np.abs(expected).max() + 4e-3
    lost = ((after @ (weight - expected).T) ** 2).sum() / ((after @ weight.T) ** 2).sum()
    assert error == pytest.approx(lost, rel=1e-3)


def test_without_a_move_the_update_changes_nothing():
    here, x = site(), inputs()
    plain = METHOD.compress(here, stats(x), METHOD.params(removed=0.4)).linears[here.path].dequantize()
    assert (updated(here, x, x)[0] - plain).abs().max() < 3e-3


def test_the_update_pays_where_the_inputs_moved():
    """The claim: less is lost on what the layer really gets; both factors fitted to it lose still less."""
    here, x, moved = site(32, 32), inputs(32), moved_inputs(32)

    def lost(w):
        return float(((here.weight - w) @ moved.T).square().sum())

    plain, best = (
        METHOD.compress(here, stats(t), METHOD.params(removed=0.4)).linears[here.path].dequantize()
        for t in (x, moved)
    )
    assert lost(best) < lost(updated(here, x, moved)[0]) < 0.95 * lost(plain)


def test_silent_directions_are_no_division_by_zero():
    here, moved = site(), moved_inputs(40)
    moved[:, 10:] = 0
    assert bool(updated(here, inputs(), moved)[0].isfinite().all())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_a_model_the_first_block_has_nothing_to_make_up_for(family):
    made = []
    for update in (False, True):
        bundle = tiny.bundle(family)
        params = METHOD.params.parse({"removed": 0.4, "update": update})
        calibrate.compress(bundle, ((METHOD, params),), tiny.ids(24))
        made.append(bundle)
    for path, _, layer in arch.linears(made[0].module):
        plain, fitted = (b.module.get_submodule(path).packed.dequantize() for b in made)
        assert ((fitted - plain).norm() < 2e-3 * plain.norm()) == (layer == 0), path


# --- shares by loss ---


def test_shares_are_those_of_the_second_paper():
    losses, sizes = torch.tensor([30.0, 300.0, 3_000.0, 80.0]), torch.full((4,), 100)
    found = svd_llm.by_loss(losses, sizes, 0.3).tolist()
    assert found == pytest.approx(oracles.low_rank.shares_of_v2(losses.tolist(), 0.3))
    assert found[2] < found[1] < found[3] < found[0], "who loses more gives less"


def test_equal_losses_share_alike():
    found = svd_llm.by_loss(torch.full((5,), 70.0), torch.tensor([1, 2, 3, 4, 5]), 0.4)
    assert found.tolist() == pytest.approx([0.4] * 5)


@pytest.mark.parametrize("removed", [0.2, 0.7, 0.9, 0.95])
def test_no_matrix_loses_all_and_the_mean_is_kept(removed):
    losses, sizes = torch.tensor([0.0, 3.0, 1e4, 1e8]), torch.tensor([100, 300, 100, 50])
    found = svd_llm.by_loss(losses, sizes, removed)
    assert float((found * sizes).sum()) == pytest.approx(removed * 550)
    assert float(found.max()) <= 0.95 + 1e-12 and float(found.min()) > 0


def plan(bundle, ids, **values):
    params = METHOD.params.parse({"removed": 0.3, "allocation": "loss", **values})
    return METHOD.planner.find(bundle, Context(ids, QUIET), params)


def test_each_role_keeps_its_budget_and_the_losses_are_the_models_own():
    bundle, ids = deeper(), tiny.ids(24)
    own = plan(bundle, ids).params
    for role in ("q", "down"):
        paths = [path for path, found, _ in arch.linears(bundle.module) if found == role]
        losses = []
        for path in paths:
            caught = []
            module = bundle.module.get_submodule(path)
            hook = module.register_forward_pre_hook(lambda m, a, c=caught: c.append(a[0].flatten(0, -2)))
            tiny.logits(bundle, ids)
            hook.remove()
            weight, x = module.weight.double().numpy(), caught[0].double().numpy()
            _, spectrum = oracles.low_rank.svd_llm(weight, x, 1)
            losses.append(np.sqrt((spectrum[rank_for(weight.shape, 0.3) :] ** 2).sum()))
        losses = [max(lost, np.e) for lost in losses]
        expected = oracles.low_rank.shares_of_v2(losses, 0.3)
        assert [own[path].removed for path in paths] == pytest.approx(expected, rel=1e-3)
        assert max(expected) > 1.01 * min(expected)


@pytest.mark.parametrize("allocation", ["loss", "search"])
def test_the_file_is_as_large_as_with_uniform_shares(allocation):
    spec = RunSpec(tiny.folder("llama"), (("svd_llm", {"removed": 0.3, "allocation": allocation}),))
    uniform = dataclasses.replace(spec, recipe=(("svd_llm", {"removed": 0.3}),))
    assert estimate(spec).file_bytes == estimate(uniform).file_bytes
    assert estimate(spec).seconds > estimate(uniform).seconds
    bundle = tiny.bundle("llama")
    weights = sum(bundle.module.get_submodule(p).weight.numel() for p, _, _ in arch.linears(bundle.module))
    params = METHOD.params.parse({"removed": 0.3, "allocation": allocation, "search_tokens": 32})
    outcome = calibrate.compress(bundle, ((METHOD, params),), tiny.ids(4))
    kept = 0
    for path, _, _ in arch.linears(bundle.module):
        packed = getattr(bundle.module.get_submodule(path), "packed", None)
        kept += (
            sum(t.numel() for t in (packed.u, packed.v))
            if packed
            else bundle.module.get_submodule(path).weight.numel()
        )
    assert 0.58 * weights < kept <= 0.7 * weights
    assert {"shares_by_loss", "ranks_searched"} & {n.code for n in outcome.notes}


def test_what_the_compressed_model_gives_fits_it_better():
    """The claim: half removed of three blocks, on text that nothing was fitted to."""
    lost = {}
    for choice in ("original", "compressed"):
        bundle = deeper(blocks=3)
        with torch.no_grad():
            arch.final_norm(bundle.module).weight.mul_(20.0)
        ids, other = own_text(bundle, 24, 32), own_text(bundle, 16, 32, seed=1)
        before = loss(bundle.module, other)
        params = METHOD.params.parse({"removed": 0.5, "inputs": choice})
        calibrate.compress(bundle, ((METHOD, params),), ids)
        lost[choice] = loss(bundle.module, other) - before
    assert 0 < lost["compressed"] < lost["original"], lost

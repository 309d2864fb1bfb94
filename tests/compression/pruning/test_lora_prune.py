"""LoRAPrune: its stand-in for the gradient, its schedule, masks that only grow, and a cut model that equals
the hidden one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import calibrate, get
from compression.base import BadParam, Context
from compression.low_rank.lora import LoraParams, adapt
from compression.pruning import lora_prune
from compression.pruning.lora_prune import LoraPruneParams, Pruner, hidden_share, stand_in
from compression.pruning.structured import shrunk
from compression.recorder import QUIET, Recorder
from evaluation.spec import RunSpec
from tests import oracles, tiny

TEXT = (torch.arange(64)[:, None] * 3 + torch.arange(32)) % 11
SHORT = {
    "protect_first": 0.0,
    "protect_last": 0.0,
    "rank": 2,
    "train_tokens": 12_000,
    "mask_every": 1,
    "learning_rate": 0.01,
}


def params(**values):
    return LoraPruneParams(**SHORT | values)


def run(bundle, **values):
    method = get("lora_prune")
    return calibrate.compress(bundle, [(method, params(**values))], TEXT)


def test_the_stand_in_is_one_step_of_descent_on_the_product():
    torch.manual_seed(0)
    a, b, da, db = torch.randn(3, 7), torch.randn(5, 3), torch.randn(3, 7), torch.randn(5, 3)
    expected = oracles.pruning.lora_descent(a.numpy(), b.numpy(), da.numpy(), db.numpy())
    assert np.allclose(stand_in(a, b, da, db).numpy(), expected, atol=1e-5)


def test_the_schedule_starts_at_nothing_rises_and_ends_exactly():
    assert [hidden_share(s, 0.5) for s in (0.0, 0.05, 0.1)] == [0.0, 0.0, 0.0]
    assert [hidden_share(s, 0.5) for s in (0.9, 0.95, 1.0, 1.5)] == [0.5] * 4
    steps = [hidden_share(i / 100, 0.5) for i in range(101)]
    assert steps == sorted(steps) and hidden_share(0.5, 0.5) == pytest.approx(0.5 * (1 - 0.5**3))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_cut_model_is_the_hidden_model(family, monkeypatch):
    """F: heads and channels silenced where they enter o and down, against matrices without them."""
    bundle, seen = tiny.bundle(family), {}

    class Spy(Pruner):
        def close(self):
            for adapter in self.adapters.values():
                for part in adapter.values():
                    part.eval()
            seen["hidden"] = tiny.logits(bundle, tiny.ids(2))
            super().close()

    monkeypatch.setattr(lora_prune, "Pruner", Spy)
    sizes = bundle.geometry.layers
    outcome = run(bundle, removed=0.5)
    assert torch.allclose(tiny.logits(bundle, tiny.ids(2)), seen["hidden"], atol=1e-4)
    assert bundle.geometry.layers == tuple(shrunk(s, params(removed=0.5)) for s in sizes) != sizes
    assert {n.code for n in outcome.notes} >= {"trained", "structures_removed"}


def test_masks_only_grow_and_end_at_the_asked_share(monkeypatch):
    history = []
    hide = Pruner.hide
    monkeypatch.setattr(
        Pruner,
        "hide",
        lambda self, removed: (hide(self, removed), history.append((removed, dict(self.kept))))[0],
    )
    bundle = tiny.bundle("opt")
    sizes = bundle.geometry.layers[0]
    run(bundle, removed=0.5)
    shares = [removed for removed, _ in history]
    assert shares == sorted(shares) and shares[-1] == 0.5 and len(set(shares)) > 3
    for (_, before), (_, after) in zip(history, history[1:], strict=False):
        for layer in after:
            assert set(after[layer].channels) <= set(before[layer].channels) and set(
                after[layer].heads
            ) <= set(before[layer].heads)
    then = shrunk(sizes, params(removed=0.5))
    assert (len(after[0].heads), len(after[0].channels)) == (then.heads, then.feed_forward) == (2, 48)


def test_nothing_to_remove_is_plain_lora_step_for_step():
    one, other = tiny.bundle("llama"), tiny.bundle("llama")
    run(one, removed=0.0)
    same = LoraParams(rank=2, train_tokens=12_000, learning_rate=0.01, train_minutes=20.0)
    calibrate.compress(other, [(get("lora"), same)], TEXT)
    for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_importance_is_the_papers(monkeypatch):
    """Row and column sums of |G (W + c B A)|, against an oracle that goes weight by weight."""
    bundle = tiny.bundle("llama")
    adapters = adapt(bundle, LoraParams(rank=2), 0)
    pruner = Pruner(bundle, adapters, params(removed=0.5))
    generator = torch.Generator().manual_seed(1)
    for role in ("up", "down", "q", "o"):
        adapter = pruner.adapters[1][role]
        with torch.no_grad():
            adapter.b.copy_(torch.randn(adapter.b.shape, generator=generator))
        adapter.a.grad = torch.randn(adapter.a.shape, generator=generator)
        adapter.b.grad = torch.randn(adapter.b.shape, generator=generator)
        found = pruner._measure(1, role, adapter)
        values = [
            t.detach().double().numpy()
            for t in (adapter.base.weight, adapter.a, adapter.b, adapter.a.grad, adapter.b.grad)
        ]
        size = 1 if role in ("up", "down") else 12
        expected = oracles.pruning.lora_prune_importance(
            *values, 8.0, axis=0 if role in ("up", "q") else 1, size=size
        )
        assert np.allclose(found.numpy(), expected, rtol=1e-3)


def test_channels_that_do_nothing_go_first():
    bundle = tiny.bundle("opt")
    dead = torch.arange(0, 96, 3)
    for layer in (0, 1):
        block = bundle.module.model.decoder.layers[layer]
        block.fc1.weight.data[dead] = 0
        block.fc1.bias.data[dead] = -1.0  # behind a ReLU: silent whatever comes
        block.fc2.weight.data[:, dead] = 0
    context = Context(TEXT, QUIET)
    edit = lora_prune.compress(bundle, context, params(removed=0.3, learning_rate=5e-4))
    for layer in (0, 1):
        gone = set(range(96)) - set(edit.kept[layer].channels)
        assert len(gone & set(dead.tolist())) >= 0.9 * len(gone)


def test_size_alone_is_the_control_and_needs_no_gradient():
    bundle = tiny.bundle("llama")
    run(bundle, removed=0.5, guide="magnitude")
    assert bundle.geometry.layers[0].feed_forward == 40


def test_an_end_before_the_first_step_is_said():
    with pytest.raises(BadParam, match="more minutes"):
        bundle = tiny.bundle("llama")
        context = Context(TEXT, Recorder(enough=lambda: True))
        lora_prune.compress(bundle, context, params(removed=0.5))


def test_its_control_is_the_same_training_guided_by_size():
    spec = RunSpec("smollm2-135m-instruct-q4_1", (("lora_prune", {"removed": 0.5, "train_tokens": 4_096}),))
    ours, control = spec.recipe[0][1], spec.control()
    assert control.recipe == (("lora_prune", ours | {"guide": "magnitude"}),)
    assert control.control() is None

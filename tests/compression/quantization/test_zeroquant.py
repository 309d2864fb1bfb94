"""ZeroQuant's groups and scales against the authors' definition, and layer-by-layer distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import calibrate, get
from compression.base import Cancelled
from compression.inputs import Passage
from compression.packed.linear import CompressedLinear
from compression.quantization.zeroquant import columns_of, group_grid
from compression.recorder import Recorder
from tests import oracles, tiny


def compressed(family="llama", tokens=None, **values):
    bundle, method = tiny.bundle(family), get("zeroquant")
    outcome = calibrate.compress(
        bundle, ((method, method.params.parse(values)),), tiny.ids(8) if tokens is None else tokens
    )
    return bundle, outcome


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("groups", [1, 4, 12, 24, 72])
@pytest.mark.parametrize("shift", [None, 0.7, -9.0])
def test_groups_are_cut_row_by_row(bits, groups, shift):
    """E9: W.reshape(G, -1), each part with its own scale, symmetric or with a zero point; G = rows is one
    scale a row."""
    weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(0)) + (shift or 0)
    grid = group_grid(weight, bits, groups, symmetric=shift is None)
    oracle = oracles.quantization.zeroquant if shift is None else oracles.quantization.zeroquant_asym
    assert np.allclose(
        grid.decode(grid.round(weight)).numpy(), oracle(weight.numpy(), bits, groups), atol=1e-5
    )


def test_no_number_of_groups_means_rows():
    weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(1))
    a, b = group_grid(weight, 4, 0), group_grid(weight, 4, 24)
    assert torch.equal(a.scale, b.scale) and torch.equal(a.round(weight), b.round(weight))
    assert (
        columns_of((24, 48), 72) == 16 and columns_of((24, 48), 64) == 16 and columns_of((24, 48), 24) == -1
    )


def test_the_positive_extreme_loses_a_step():
    """The authors' symmetric integers end at 2^(b-1) - 1: 1.0 becomes 0.875 in 4 bits."""
    grid = group_grid(torch.tensor([[1.0, -1.0, 0.25, 0.0] * 4]), 4, 0)
    weight = torch.tensor([[1.0, -1.0, 0.25, 0.0] * 4])
    assert grid.decode(grid.round(weight))[0, :4].tolist() == [0.875, -1.0, 0.25, 0.0]


def test_an_empty_group_stays_zero():
    grid = group_grid(torch.zeros(4, 16), 4, 2)
    assert bool((grid.decode(grid.round(torch.zeros(4, 16))) == 0).all())


def test_more_groups_are_better():
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(2)) * (1 + torch.arange(64)[:, None])
    errors = []
    for groups in (1, 8, 64, 192):
        grid = group_grid(weight, 4, groups)
        errors.append(float((grid.decode(grid.round(weight)) - weight).norm()))
    assert errors == sorted(errors, reverse=True)


def test_tokens_do_not_see_each_other():
    bundle, _ = compressed(bits=8)
    linear = next(m for m in bundle.module.modules() if isinstance(m, CompressedLinear))
    x = torch.randn(5, linear.in_features, generator=torch.Generator().manual_seed(3))
    louder = x.clone()
    louder[2] *= 100
    a, b = linear.packed.matmul(x), linear.packed.matmul(louder)
    assert torch.equal(a[[0, 1, 3, 4]], b[[0, 1, 3, 4]]) and not torch.equal(a[2], b[2])


def test_attention_keeps_its_own_bits():
    _, outcome = compressed(bits=4, attention_bits=8, groups=0)
    bits = {row["role"]: row["bits_per_weight"] for row in outcome.layers}
    assert all(bits[r] > 8 for r in "qkvo") and all(4 < bits[r] < 5 for r in ("gate", "up", "down"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt-post-norm"])
def test_distillation_brings_each_block_closer_to_its_original(family):
    """Section 5: the block's error on windows that were not trained on falls, clearly in sum; biases and
    norms move too."""
    tokens = tiny.ids(16)
    bundle, outcome = compressed(
        family, tokens, bits=3, attention_bits=3, groups=0, distill_steps=60, learning_rate=0.003
    )
    plain, _ = compressed(family, tokens, bits=3, attention_bits=3, groups=0)
    blocks = {row["layer"]: (row["block_error_before"], row["block_error"]) for row in outcome.layers}
    assert all(after <= before for before, after in blocks.values())
    assert sum(after for _, after in blocks.values()) < 0.8 * sum(before for before, _ in blocks.values())
    unseen, original = tiny.ids(8, seed=9), tiny.bundle(family)
    target = tiny.logits(original, unseen)
    assert (tiny.logits(bundle, unseen) - target).norm() < 0.95 * (tiny.logits(plain, unseen) - target).norm()


def test_no_step_changes_nothing():
    """E9: LKD of 0 steps is plain rounding; and a hopeless learning rate keeps the block as it was."""
    plain, outcome = compressed(bits=4, groups=0)
    useless, _ = compressed(bits=4, groups=0, distill_steps=10, learning_rate=0.1)
    assert "block_error" not in outcome.layers[0]
    tokens = tiny.ids(2, seed=4)
    original = tiny.logits(tiny.bundle("llama"), tokens)

    def error(b):
        return float((tiny.logits(b, tokens) - original).norm())

    assert error(useless) <= 1.05 * error(plain)


def test_the_inputs_of_queries_keys_and_values_may_stay_as_they_are():
    """The paper's A8/16: the other products round their inputs still; and so does the block while it is
    distilled."""
    bundle, _ = compressed(bits=4, groups=0, symmetric=False, qkv_inputs="exact", distill_steps=10)
    linears = {p: m.packed for p, m in bundle.module.named_modules() if isinstance(m, CompressedLinear)}
    assert all((packed.activations is None) is (path[-6] in "qkv") for path, packed in linears.items())
    assert all(packed.grid.zero is not None for packed in linears.values())
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(3))
    for name, rounds in (("self_attn.q_proj", False), ("mlp.up_proj", True)):
        packed = linears[f"model.layers.0.{name}"]
        seen = (
            (x / (x.abs().amax(1, keepdim=True) / 127)).round() * (x.abs().amax(1, keepdim=True) / 127)
            if rounds
            else x
        )
        assert torch.allclose(packed.matmul(x), seen @ packed.dequantize().T, atol=1e-5)


def test_a_step_takes_as_many_windows_as_asked(monkeypatch):
    """Each step's windows come from those that don't judge; the loss is the mean over them all."""
    took, run = [], Passage.run
    monkeypatch.setattr(
        Passage, "run", lambda self, hidden, state: took.append(hidden) or run(self, hidden, state)
    )
    _, outcome = compressed(
        bits=3, attention_bits=3, groups=0, distill_steps=10, distill_batch=3, learning_rate=0.001
    )
    trained, judged = [h for h in took if len(h) == 3], [h for h in took if len(h) == 1]
    assert len(trained) == 2 * 10 and len(trained) + len(judged) == len(took)

    def same(a, b):
        return bool((a == b).all())

    assert not any(same(one, held[0]) for h in trained[:10] for one in h for held in judged[:4])
    assert any(row["block_error"] < row["block_error_before"] for row in outcome.layers)


def test_stopping_is_heard_while_distilling():
    bundle, method, asked = tiny.bundle("llama"), get("zeroquant"), []

    def cancelled():
        asked.append(1)
        return len(asked) > 12

    with pytest.raises(Cancelled):
        calibrate.compress(
            bundle,
            ((method, method.params.parse({"distill_steps": 1000})),),
            tiny.ids(4),
            recorder=Recorder(cancelled=cancelled),
        )

"""ZeroQuant's groups and scales against the authors' definition, and layer-by-layer distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import calibrate, get
from compression.base import Cancelled
from compression.packed.linear import CompressedLinear
from compression.quantization.zeroquant import columns_of, group_grid
from tests import oracles, tiny


def compressed(family="llama", tokens=None, **values):
    bundle, method = tiny.bundle(family), get("zeroquant")
    outcome = calibrate.compress(bundle, ((method, method.params.parse(values)),), tiny.ids(8) if tokens is None else tokens)
    return bundle, outcome


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("groups", [1, 4, 12, 24, 72])
def test_groups_are_cut_row_by_row(bits, groups):
    """E9: W.reshape(G, -1), each part with its own symmetric scale; G = rows is one scale a row."""
    weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
    grid = group_grid(weight, bits, groups)
    expected = oracles.quantization.zeroquant(weight.numpy(), bits, groups)
    assert np.allclose(grid.decode(grid.round(weight)).numpy(), expected, atol=1e-6)


def test_no_number_of_groups_means_rows():
    weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(1))
    a, b = group_grid(weight, 4, 0), group_grid(weight, 4, 24)
    assert torch.equal(a.scale, b.scale) and torch.equal(a.round(weight), b.round(weight))
    assert columns_of((24, 48), 72) == 16 and columns_of((24, 48), 64) == 16 and columns_of((24, 48), 24) == -1


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
    """Section 5: the block's error on windows that were not trained on falls, clearly in sum; biases and norms move too."""
    tokens = tiny.ids(16)
    bundle, outcome = compressed(family, tokens, bits=3, attention_bits=3, groups=0, distill_steps=60, learning_rate=0.003)
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
    error = lambda b: float((tiny.logits(b, tokens) - original).norm())  # noqa: E731
    assert error(useless) <= 1.05 * error(plain)


def test_stopping_is_heard_while_distilling():
    bundle, method, asked = tiny.bundle("llama"), get("zeroquant"), []

    def cancelled():
        asked.append(1)
        return len(asked) > 12

    with pytest.raises(Cancelled):
        calibrate.compress(bundle, ((method, method.params.parse({"distill_steps": 1000})),), tiny.ids(4), cancelled=cancelled)

"""LoRA: equals its definition, starts as nothing, leaves what it stands on alone, and survives where it ends
up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import artifact, calibrate, get
from compression.adapted import Adapted, release, takes_it
from compression.low_rank.lora import LoraParams, adapt
from compression.packed.linear import CompressedLinear
from compression.packed.low_rank import LowRank
from compression.packed.sum import Sum
from tests import oracles, tiny

BEFORE = {  # a step whose format the adapter meets, and where it ends
    "nothing": ((), "merged"),
    "wanda": ((("wanda", {"sparsity": 0.5}),), "bitmask"),
    "two_four": ((("wanda", {"pattern": "2:4"}),), "two_four"),
    "rtn": ((("rtn", {"bits": 4, "group_size": 16}),), "sum"),
    "sparse and rounded": ((("wanda", {}), ("rtn", {"bits": 4, "group_size": 16})), "sum"),
    "nf4": ((("nf4", {}),), "sum"),
    "svd_llm": ((("svd_llm", {"removed": 0.3}),), "low_rank"),
    "smoothquant": ((("smoothquant", {}),), "sum"),
    "spqr": ((("spqr", {}),), "sum"),
}
WORDS = (torch.arange(64)[:, None] * 3 + torch.arange(32)) % 11  # a text with something to learn
TRAINED = {"rank": 4, "train_tokens": 12_000, "learning_rate": 0.02}


def steps(*recipe):
    return [(get(name), get(name).params.parse(values)) for name, values in recipe]


def compressed(kind, family="llama"):
    bundle = tiny.bundle(family)
    calibrate.compress(bundle, steps(*BEFORE[kind][0]), tiny.ids(8))
    return bundle


@pytest.mark.parametrize("kind", BEFORE)
def test_at_the_start_nothing_changes_bit_for_bit(kind):
    bundle, ids = compressed(kind), tiny.ids(2)
    before = tiny.logits(bundle, ids)
    adapters = adapt(bundle, LoraParams(rank=3, merge=False), seed=0)
    assert torch.equal(tiny.logits(bundle, ids), before) and len(adapters) == 14
    release(bundle, adapters)
    assert torch.equal(tiny.logits(bundle, ids), before)


@pytest.mark.parametrize("kind", BEFORE)
def test_output_and_first_gradients_are_the_papers(kind):
    """y = (W + scale B A) x, by an oracle in 64 bits; with B = 0, A's gradient is zero and B's is scale
    (dy/dB)."""
    bundle = compressed(kind)
    path = "model.layers.0.mlp.up_proj"
    base = bundle.module.get_submodule(path)
    masked = takes_it(base)
    layer = Adapted(base, 3, 2.0, masked, torch.Generator().manual_seed(0))
    weight = base.packed.dequantize() if isinstance(base, CompressedLinear) else base.weight
    x, probe = torch.randn(5, 48), torch.randn(5, 80)
    (layer(x) * probe).sum().backward()
    rule = base.packed.activations if isinstance(base, CompressedLinear) else None
    seen = x if rule is None else rule(x)
    keep = None if layer.keep is None else layer.keep.numpy()
    expected, towards_b = oracles.low_rank.lora(
        weight.detach().numpy(),
        layer.a.detach().numpy(),
        np.zeros((80, 3)),
        2.0,
        seen.numpy(),
        probe.numpy(),
        keep,
    )
    assert not layer.a.grad.any() and layer.b.grad.any()
    assert np.allclose(layer.b.grad.numpy(), towards_b, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        layer.b.normal_()
    expected, _ = oracles.low_rank.lora(
        weight.detach().numpy(),
        layer.a.detach().numpy(),
        layer.b.detach().numpy(),
        2.0,
        seen.numpy(),
        probe.numpy(),
        keep,
    )
    assert np.allclose(layer(x).detach().numpy(), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", BEFORE)
def test_training_wins_back_and_keeps_what_it_stood_on(kind):
    bundle, ends = compressed(kind), BEFORE[kind][1]
    held = {
        p: m.packed.dequantize() for p, m in bundle.module.named_modules() if isinstance(m, CompressedLinear)
    }
    masks = {p: m.packed.mask() for p, m in bundle.module.named_modules() if isinstance(m, CompressedLinear)}
    outcome = calibrate.compress(bundle, steps(("lora", TRAINED)), WORDS)
    facts = next(n.facts for n in outcome.notes if n.code == "trained")
    assert facts["best"] < 0.92 * facts["before"]
    assert outcome.series["training"][0][2] == facts["before"]
    for path, weight in held.items():
        packed = bundle.module.get_submodule(path).packed
        assert packed.format == ends
        if ends == "sum":
            assert torch.equal(packed.first.dequantize(), weight), "the frozen part is the same to the bit"
        if masks[path] is not None and ends != "sum":
            assert torch.equal(packed.mask(), masks[path]) and not packed.dequantize()[masks[path]].any()
            assert not torch.equal(packed.dequantize(), weight)
        if ends == "low_rank":
            assert np.linalg.matrix_rank((packed.stored() - weight).numpy(), tol=1e-3) <= 4


@pytest.mark.parametrize("kind", ["nothing", "wanda", "two_four"])
def test_merged_and_apart_give_the_same_model(kind):
    """Without a mask the two are one model; under a mask the merged one lacks what the mask forbids."""
    made = []
    for merge in (True, False):
        bundle = compressed(kind)
        calibrate.compress(bundle, steps(("lora", TRAINED | {"merge": merge, "train_tokens": 3_000})), WORDS)
        made.append(bundle)
    linear = made[1].module.get_submodule("model.layers.1.mlp.down_proj")
    assert isinstance(linear.packed, Sum) and isinstance(linear.packed.second, LowRank)
    if kind == "nothing":
        assert torch.allclose(*(tiny.logits(b, tiny.ids(2)) for b in made), atol=5e-3)
    else:
        assert linear.packed.mask() is None, "kept apart, the sum is dense"
        assert made[0].module.get_submodule("model.layers.1.mlp.down_proj").packed.mask() is not None


@pytest.mark.parametrize("kind", BEFORE)
def test_it_is_the_same_model_after_saving(kind, tmp_path):
    bundle = compressed(kind)
    calibrate.compress(bundle, steps(("lora", TRAINED | {"train_tokens": 1_024})), WORDS)
    artifact.save(bundle, tmp_path / "m", {"label": "LoRA"})
    loaded = artifact.load(tmp_path / "m")
    # 16-bit tables
    assert torch.allclose(tiny.logits(loaded, tiny.ids(2)), tiny.logits(bundle, tiny.ids(2)), atol=5e-3)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_learns(family):
    bundle = tiny.bundle(family)
    outcome = calibrate.compress(
        bundle,
        steps(("rtn", {"bits": 3, "group_size": 16}), ("lora", TRAINED | {"train_tokens": 3_000})),
        WORDS,
    )
    facts = next(n.facts for n in outcome.notes if n.code == "trained")
    assert facts["best"] < facts["before"] and {r["role"] for r in outcome.layers} >= {
        "q",
        "k",
        "v",
        "o",
        "up",
        "down",
    }


# --- dropout, and answers alone ---


@pytest.mark.parametrize("before", [(), (("wanda", {"sparsity": 0.5}),), (("rtn", {"bits": 4}),)])
def test_dropout_is_of_the_adapters_inputs_in_training_only(before):
    """peft's and the papers': y = W x + alpha / r B A (m x / (1 - p)), m drawn anew, W x whole; nothing is
    left out of an evaluation."""
    bundle = tiny.bundle()
    calibrate.compress(bundle, [(get(n), get(n).params.parse(v)) for n, v in before], tiny.ids(4))
    layer = adapt(bundle, get("lora").params(rank=4, dropout=0.25), seed=0)["model.layers.0.mlp.up_proj"]
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layer.b.normal_(generator=torch.Generator().manual_seed(2))
        plain = layer(x)
        base = layer.base(x)
    torch.manual_seed(5)
    found = layer(x)
    torch.manual_seed(5)
    mask = (torch.nn.functional.dropout(torch.ones_like(x), 0.25) > 0).float()
    assert 0 < float(mask.mean()) < 1 and layer.scale == 4.0
    expected = base + (mask * x / 0.75) @ (layer.delta()).T
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, plain, atol=1e-3)
    assert torch.allclose(plain, base + x @ layer.delta().T, atol=1e-4)


def test_dropout_zero_is_the_training_without_it():
    made = []
    for values in ({}, {"dropout": 0.0}, {"dropout": 0.5}):
        bundle = tiny.bundle()
        text = (torch.arange(64)[:, None] * 3 + torch.arange(32)) % 11
        values = {"rank": 2, "train_tokens": 2_000, "learning_rate": 0.02} | values
        calibrate.compress(bundle, [(get("lora"), get("lora").params.parse(values))], text)
        made.append(bundle.module.state_dict())
    same = [all(torch.equal(made[0][k], other[k]) for k in made[0]) for other in made[1:]]
    assert same == [True, False]

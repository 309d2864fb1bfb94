"""Every method and format on a pretended graphics card (tests/card.py): nothing mixes devices, nothing comes
back to the processor by itself, and a saved model gives the same there."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from compression import NAMES, artifact, calibrate, get, kv_cache, models, sample
from tests import tiny
from tests.card import Card, DeviceMix, OnCard

DEVICE = "card"
MORE = (
    ("gptq", {"bits": 4, "group_size": 16, "static_groups": False}),
    ("spqr", {"level_bits": 16}),
    ("sparsegpt", {"pattern": "2:4"}),
    ("sparsegpt", {"quantize": True, "bits": 4, "group_size": 16}),
    ("wanda", {"pattern": "2:4"}),
    ("llm_pruner", {"granularity": "channel"}),
    ("smoothquant", {"activations": "tensor"}),
    ("tensorgpt", {"kind": "svd"}),
    ("zeroquant", {"distill_steps": 10}),
    ("nf4", {"group_size": 16, "double": True}),
    ("gkd", {"objective": "supervised"}),
)


@pytest.fixture
def card():
    with Card() as entered:
        yield entered


def compressed(name: str, values: dict, family: str = "llama"):
    bundle = models.load(tiny.folder(family), DEVICE)
    method = get(name)
    params = method.params.parse(dict(method.tiny) | values)
    outcome = calibrate.compress(bundle, ((method, params),), tiny.ids(8), table_bits=8, cache_bits=16)
    return bundle, outcome


@pytest.mark.parametrize(
    "name, values",
    [*((name, {}) for name in NAMES), *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE)],
    ids=lambda v: str(v).replace(" ", ""),
)
def test_a_method_runs_on_the_card(card, name, values, tmp_path):
    bundle, outcome = compressed(name, values)
    for key, tensor in bundle.module.state_dict().items():
        assert isinstance(tensor.data, OnCard) or isinstance(tensor, OnCard), key
    tokens = tiny.ids(2).to(DEVICE)
    with torch.no_grad():
        before = bundle.module(input_ids=tokens, use_cache=False).logits
    assert len(list(sample.generate(bundle, tiny.ids(1, 8), 3, 0.7))) == 3
    artifact.save(bundle, tmp_path / "saved", {"label": "x"}, outcome.files)
    again = artifact.load(tmp_path / "saved", device=DEVICE, dtype=bundle.module.dtype)
    with torch.no_grad():
        after = again.module(input_ids=tokens, use_cache=False).logits
    # what no method packed is stored in float16, which has fewer small numbers than bfloat16
    torch.testing.assert_close(after.cpu(), before.cpu(), rtol=0.02, atol=0.03)


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "llama"])
def test_every_family_is_compressed_on_the_card(card, family):
    bundle, _ = compressed("rtn", {}, family)
    assert len(list(sample.generate(bundle, tiny.ids(1, 8), 3, 0.7))) == 3


def test_a_decode_step_waits_for_the_card_once():
    """The host needs the next token, and nothing else; the launches are those of transformers' own loop."""
    with Card() as card:
        bundle = models.load(tiny.folder("llama"), DEVICE)
        tokens, cache = tiny.ids(1, 8).to(DEVICE), DynamicCache(config=bundle.module.config)
        for _ in range(3):
            counts = card.again()
            with torch.no_grad():
                logits = bundle.module(input_ids=tokens, **kv_cache.handed(bundle.module, cache)).logits
            tokens = logits[:, -1:].argmax(-1)
            int(tokens)
    assert counts.synchronisations == 1 and counts.down == 0
    assert counts.launches <= 100 * len(bundle.module.model.layers)


def test_what_a_card_refuses_is_refused_here():
    """The stand-in itself: mixed devices, a processor's generator, numpy; and a number waits for the card."""
    with Card() as card:
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        with pytest.raises(DeviceMix, match="operands"):
            here + there
        with pytest.raises(DeviceMix, match="generator"):
            torch.rand(3, generator=torch.Generator(), device=DEVICE)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        counts = card.again()
        assert float(there.sum()) == 3 and counts.synchronisations == 1
        assert (there + 1).cpu().tolist() == [2, 2, 2] and counts.down == 1

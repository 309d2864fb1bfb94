"""QLoRA: the chain of its two halves to the bit, a base that keeps still, adapters that learn through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import artifact, calibrate, get
from compression.low_rank import lora
from compression.packed.codebook import CodeBook
from compression.packed.linear import CompressedLinear
from compression.packed.low_rank import LowRank
from compression.packed.sum import Sum
from compression.quantization import qlora
from compression.quantization.qlora import QloraParams, adapter_params, cost, freeze
from compression.recorder import Recorder
from compression.training import adamw, language_loss
from evaluation.spec import RunSpec
from tests import chain_language, oracles, talk, tiny

WORDS = (torch.arange(64)[:, None] * 3 + torch.arange(32)) % 11  # a text with something to learn
TRAINED = {"rank": 4, "group_size": 16, "train_tokens": 3_000, "learning_rate": 0.02}
BASE, ADAPTER = (
    ("table", "group_size", "double"),
    ("rank", "lora_alpha", "train_tokens", "learning_rate", "train_minutes"),
)


def steps(*recipe):
    return [(get(name), get(name).params.parse(values)) for name, values in recipe]


def compressed(*recipe, family="llama", text=WORDS):
    bundle = tiny.bundle(family)
    return bundle, calibrate.compress(bundle, steps(*recipe), text)


def packed_of(bundle):
    return {p: m.packed for p, m in bundle.module.named_modules() if isinstance(m, CompressedLinear)}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("values", [{"double": False}, {"double": True, "table": "fp4"}])
def test_it_is_nf4_and_then_lora_bit_for_bit(family, values):
    whole = TRAINED | values | {"train_tokens": 1_024}
    first, told = compressed(("qlora", whole), family=family)
    base, adapter = ({k: v for k, v in whole.items() if k in names} for names in (BASE, ADAPTER))
    second, _ = compressed(("nf4", base), ("lora", adapter), family=family)
    a, b = first.module.state_dict(), second.module.state_dict()
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
    assert {n.facts["method"] for n in told.notes if "method" in n.facts} == {"qlora"}
    assert {row["format"] for row in told.layers} == {"sum"} and all(
        isinstance(p, Sum) for p in packed_of(first).values()
    )


@pytest.mark.parametrize("double", [False, True])
def test_untrained_it_is_nf4(double):
    first, _ = compressed(("qlora", TRAINED | {"double": double, "train_tokens": 0}))
    second, _ = compressed(("nf4", {"group_size": 16, "double": double}))
    a, b = first.module.state_dict(), second.module.state_dict()
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_the_frozen_weight_stays_within_the_papers_bounds():
    """|w - w'| <= half the widest gap times the largest |w| of 64, plus what the scale's own rounding adds:
    at most .0070313 of the largest |c - mean| among 256 scales. The table is the normal distribution's
    quantiles."""
    bundle = chain_language.model(hidden=128)
    weights = {
        p: m.weight.clone() for p, m in bundle.module.named_modules() if isinstance(m, torch.nn.Linear)
    }
    freeze(bundle, QloraParams())
    table = np.array(sorted(oracles.codes.nf4_table()))
    half_gap = np.diff(table).max() / 2
    assert half_gap == pytest.approx(0.151904, abs=1e-6)
    for path, packed in packed_of(bundle).items():
        assert np.allclose(sorted(packed.table.tolist()), table, atol=2e-7)
        weight = weights[path]
        largest = weight.view(len(weight), -1, 64).abs().amax(-1)
        lost = (packed.scales() - largest).abs()
        flat = (largest - largest.mean()).flatten()
        blocks = torch.nn.functional.pad(flat, (0, -len(flat) % 256)).view(-1, 256).abs().amax(1)
        allowed = 0.0070313 * blocks.repeat_interleave(256)[: len(flat)].view_as(lost)
        assert bool((lost <= allowed + 1e-7).all())
        error = (packed.dequantize() - weight).abs().view(len(weight), -1, 64).amax(-1)
        assert bool((error <= half_gap * largest + lost + 1e-6).all())


def test_bits_a_weight_are_the_papers():
    """4.127 for the base: 4 + 8/64 + 32/(64 256); the adapter comes on top in 16 bits."""
    shape, params = (4096, 4096), QloraParams(train_tokens=0)
    assert 8 * cost(shape, params, 0).bytes / 4096**2 == pytest.approx(4.12695, abs=1e-4)
    both = cost(shape, QloraParams(rank=64), 0).bytes - cost(shape, params, 0).bytes
    assert both == 2 * 64 * (4096 + 4096)
    bundle, _ = compressed(("qlora", TRAINED))
    for packed in packed_of(bundle).values():
        assert packed.stored_bytes() == cost(packed.shape, QloraParams(**TRAINED), 0).bytes


def test_at_the_start_the_adapters_are_nothing_and_only_b_has_a_gradient():
    bundle = tiny.bundle()
    freeze(bundle, QloraParams(group_size=16))
    before = tiny.logits(bundle, tiny.ids(2))
    adapters = lora.adapt(bundle, adapter_params(QloraParams()), seed=0)
    assert torch.equal(tiny.logits(bundle, tiny.ids(2)), before) and len(adapters) == 14
    language_loss(bundle, WORDS[:4]).backward()
    assert all(not a.a.grad.any() and bool(a.b.grad.any()) for a in adapters.values())


def test_after_an_evaluation_every_adapter_still_learns():
    """A public library's 4-bit linear loses its gradients on some processors once it was evaluated; tiles and
    kernels that serve an evaluation must not take ours away."""
    bundle = tiny.bundle()
    freeze(bundle, QloraParams(group_size=16))
    bundle.module.eval()
    tiny.logits(bundle, tiny.ids(4)), tiny.logits(bundle, tiny.ids(1, 1))
    assert language_loss(bundle, WORDS[:2]).item() > 0
    adapters = lora.adapt(bundle, adapter_params(QloraParams()), seed=0)
    tiny.logits(bundle, tiny.ids(4))
    held = {p: [t.clone() for t in a.base.packed.buffers()] for p, a in adapters.items()}
    optimizer = torch.optim.AdamW([p for a in adapters.values() for p in (a.a, a.b)], lr=0.01)
    for step in range(2):
        language_loss(bundle, WORDS[:4]).backward()
        assert all(bool(a.b.grad.any()) for a in adapters.values()), "in the lowest layers too"
        assert step == 0 or all(bool(a.a.grad.any()) for a in adapters.values())
        optimizer.step()
        optimizer.zero_grad()
        tiny.logits(bundle, tiny.ids(4))
    for path, adapter in adapters.items():
        assert not any(t.requires_grad for t in (*adapter.base.buffers(), *adapter.base.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(adapter.base.packed.buffers(), held[path], strict=True))


def test_the_sum_is_the_adapter_added_to_what_the_base_stands_for():
    bundle, _ = compressed(("qlora", TRAINED))
    x = torch.randn(3, 48)
    packed = packed_of(bundle)["model.layers.0.mlp.up_proj"]
    assert (
        isinstance(packed.first, CodeBook)
        and isinstance(packed.second, LowRank)
        and packed.second.u.shape[1] == 4
    )
    merged = packed.first.dequantize() + packed.second.u.float() @ packed.second.v.float()
    assert torch.allclose(packed.matmul(x), x @ merged.T, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_it_comes_back_from_disk(family, tmp_path):
    bundle, outcome = compressed(("qlora", TRAINED | {"train_tokens": 1_024}), family=family)
    artifact.save(bundle, tmp_path / "m", {"label": "QLoRA"}, outcome.files)
    assert torch.allclose(
        tiny.logits(artifact.load(tmp_path / "m"), tiny.ids(2)), tiny.logits(bundle, tiny.ids(2)), atol=5e-3
    )


def test_the_control_is_lora_with_the_same_adapters_and_tokens():
    spec = RunSpec("a-model", (("qlora", {"rank": 4, "train_tokens": 100}),))
    ((name, values),) = spec.control().recipe
    assert (
        name == "lora"
        and values["rank"] == 4
        and values["train_tokens"] == 100
        and values["targets"] == "all"
    )
    assert values["learning_rate"] == spec.methods[0][1].learning_rate
    assert spec.without_training().methods[0][1].train_tokens == 0


def test_no_gain_leaves_nf4_and_says_so():
    bundle = tiny.bundle()
    outcome = calibrate.compress(
        bundle, steps(("qlora", TRAINED)), WORDS, recorder=Recorder(enough=lambda: True)
    )
    assert "training_no_gain" in {n.code for n in outcome.notes}
    assert all(isinstance(p, CodeBook) for p in packed_of(bundle).values()) and len(outcome.layers) == 14


def test_a_new_domain_is_learned_as_well_as_on_sixteen_bits():
    """Within two percent of LoRA on the original, tokens and seed the same."""
    text, found = chain_language.text(768, 5, dialect=1), {}
    budget = {"train_tokens": 16_000, "learning_rate": 0.02}
    plain = {"train_tokens": 0}
    for name, recipe in (
        ("lora", ("lora", budget)),
        ("qlora", ("qlora", budget)),
        ("base", ("qlora", plain)),
        ("single", ("qlora", plain | {"double": False})),
    ):
        bundle = chain_language.teacher()
        calibrate.compress(bundle, steps(recipe), text)
        found[name] = [chain_language.perplexity(bundle, dialect=d) for d in (0, 1)]
    original = chain_language.perplexity(chain_language.teacher())
    assert found["qlora"][1] < 1.02 * found["lora"][1] and found["qlora"][1] < 0.5 * found["base"][1]
    assert original < found["base"][0] < 1.1 * original
    assert found["base"][0] == pytest.approx(found["single"][0], rel=0.01)


def test_equals_peft():
    """y, with a and b of ours in PEFT's own layer around a linear that holds the rebuilt weight."""
    from peft import LoraConfig, inject_adapter_in_model

    bundle, _ = compressed(("qlora", TRAINED))
    packed = packed_of(bundle)["model.layers.0.mlp.up_proj"]
    linear = torch.nn.Linear(48, 80, bias=False)
    linear.weight.data = packed.first.dequantize()
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"])
    theirs = inject_adapter_in_model(config, torch.nn.Sequential(linear))[0]
    theirs.lora_A["default"].weight.data = packed.second.v.float()
    theirs.lora_B["default"].weight.data = packed.second.u.float()
    x = torch.randn(3, 48)
    assert torch.allclose(theirs(x), packed.matmul(x), atol=1e-4)


def test_a_run_and_its_chat(tmp_path):
    from evaluation.running.estimate import estimate
    from evaluation.running.run import run
    from evaluation.store import Store

    (tmp_path / "test.txt").write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(200)))
    (tmp_path / "valid.txt").write_text(
        "".join(f"line {i + 300} of a small text, {i**3}\n" for i in range(200))
    )
    store, found = Store(tmp_path / "home", shipped=None), {}
    for tokens in (0, 2_048):
        spec = RunSpec(
            tiny.folder("llama"),
            (("qlora", TRAINED | {"train_tokens": tokens}),),
            text=str(tmp_path / "test.txt"),
            window=64,
            tokens=512,
            calibration=str(tmp_path / "valid.txt"),
            calibration_tokens=1024,
            table_bits=16,
        )
        found[tokens] = run(spec, store=store, timings=False)
        assert found[tokens].status == "ok", found[tokens].error
    assert found[2_048].metrics["perplexity"] < 0.9 * found[0].metrics["perplexity"], (
        "another part of the text that was read"
    )
    # a tiny model's header
    assert estimate(spec).file_bytes == pytest.approx(found[2_048].metrics["file_bytes"], rel=0.2)
    sides = {e["side"] for e in talk.said(store, found[2_048].id, "hello", max_tokens=4)}
    assert sides == {"original", "compressed"}


def test_pages_are_a_graphics_cards(monkeypatch):
    """A processor has nothing to page; a card without bitsandbytes says so and takes plain AdamW."""
    card, processor = torch.device("cuda"), torch.device("cpu")
    assert qlora.optimizer_for(processor, QloraParams()) == (adamw, ())
    assert qlora.optimizer_for(card, QloraParams(paged=False)) == (adamw, ())
    monkeypatch.setattr(qlora.importlib.util, "find_spec", lambda name: None)
    optimizer, notes = qlora.optimizer_for(card, QloraParams())
    assert optimizer is adamw and [n.code for n in notes] == ["paging_missing"]
    monkeypatch.setattr(qlora.importlib.util, "find_spec", lambda name: object())
    assert qlora.optimizer_for(card, QloraParams()) == (qlora.paged_adamw, ())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_paged_steps_are_those_of_adamw(device):
    """bitsandbytes' paged optimizer against PyTorch's AdamW; on a processor it steps the same and pages
    nothing."""
    pytest.importorskip("bitsandbytes")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no card here")
    found = []
    for make in (adamw, qlora.paged_adamw):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 400 * 300, device=device).view(400, 300))
        optimizer = make([p], 0.1)
        for step in range(5):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            (p - 0.3).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(p.detach().cpu())
    assert torch.allclose(*found, atol=1e-5)

"""LLM-QAT: the paper's quantizer and gradients, text that the model writes, and that what was trained is what
is stored."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from compression import arch, artifact, calibrate, get, kv_cache, row_losses
from compression.base import Cancelled, Context
from compression.divergences import forward_kl
from compression.likelihood import final_states
from compression.packed.activations import ActivationRule
from compression.packed.linear import CompressedLinear
from compression.quantization import llm_qat
from compression.quantization.llm_qat import FakeQuant, LlmQatParams
from compression.recorder import Recorder
from evaluation.running.estimate import estimate
from evaluation.running.run import run
from evaluation.spec import RunSpec
from evaluation.store import Store
from kernels.bits import unpack
from tests import chain_language, oracles, talk, tiny

METHOD = get("llm_qat")


def compressed(bundle, seed=0, **values):
    outcome = calibrate.compress(
        bundle, ((METHOD, METHOD.params.parse(values)),), None, recorder=Recorder(seed=seed)
    )
    return bundle, outcome


def context(seed=0, **more):
    return Context(None, Recorder(seed=seed, **more))


@torch.no_grad()
def logits(bundle, ids):
    """All logits, keys and values as the bundle's cache gives them."""
    return arch.head(bundle.module)[1](final_states(bundle, ids))


def weights(out=7, n=24, seed=0):
    weight = torch.randn(out, n, generator=torch.Generator().manual_seed(seed))
    weight[2] = 0
    return weight


# --- the quantizer ---


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_row_is_rounded_as_in_the_paper(bits):
    weight = weights()
    expected = [oracles.quantization.symmetric_minmax(row, bits, half=True) for row in weight.numpy()]
    found = llm_qat.rounded(weight, bits)
    assert np.allclose(found.numpy(), np.stack([values for _, values in expected]), atol=1e-7)
    top, largest = 2 ** (bits - 1) - 1, weight.abs().amax(1, keepdim=True)
    assert all(len(row.unique()) <= 2 * top + 1 for row in found)
    assert bool(((weight - found).abs() <= 1.001 * largest / top / 2 + 1e-7).all()), "half a step at most"
    assert torch.allclose(found.abs().amax(1, keepdim=True), largest, rtol=2**-11), "nothing is cut off"
    assert not found[2].any() and torch.equal(llm_qat.rounded(found, bits), found)
    packed = llm_qat.store(weight, bits, None)
    codes = unpack(packed.codes, bits, weight.shape[1]).float() - 2 ** (bits - 1)
    assert np.array_equal(codes.numpy(), np.stack([c for c, _ in expected]))
    assert torch.equal(packed.stored(), found), "what is stored is what was trained, to the bit"


@pytest.mark.parametrize("bits", [2, 4])
def test_a_row_may_have_a_zero_point(bits):
    """From the least to the largest weight of each row, as rounding does it; skewed rows use all marks."""
    weight = weights() + torch.linspace(-1, 3, 7)[:, None]
    codes, expected = oracles.quantization.rtn(weight.numpy(), bits, -1)
    found, packed = (
        llm_qat.rounded(weight, bits, symmetric=False),
        llm_qat.store(weight, bits, None, symmetric=False),
    )
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    assert np.array_equal(unpack(packed.codes, bits, weight.shape[1]).numpy(), codes) and torch.equal(
        packed.stored(), found
    )

    def error(symmetric):
        return float((llm_qat.rounded(weight, bits, symmetric) - weight).square().sum())

    assert error(False) < error(True)


@pytest.mark.parametrize("bits", [4, 8])
def test_each_token_of_the_inputs_is_rounded_by_itself(bits):
    x = torch.randn(2, 5, 24) * torch.logspace(-2, 2, 5)[:, None]
    found = llm_qat.rule_of(LlmQatParams(activation_bits=bits))(x)
    expected = [oracles.quantization.symmetric_minmax(token, bits)[1] for token in x.reshape(-1, 24).numpy()]
    assert np.allclose(found.reshape(-1, 24).numpy(), np.stack(expected), rtol=1e-5, atol=1e-7)
    assert llm_qat.rule_of(LlmQatParams(activation_bits=16)) is None


@pytest.mark.parametrize(
    "bits, activation_bits, symmetric",
    [(2, 8, True), (3, 16, True), (4, 8, True), (4, 4, True), (8, 8, True), (3, 8, False)],
)
def test_gradients_pass_straight_through(bits, activation_bits, symmetric):
    """By hand: those of a plain product at the rounded values; none goes to a scale, none is stopped
    anywhere."""
    linear = torch.nn.Linear(24, 7)
    linear.weight.data = weights()
    linear.weight.data[0, 0] = 5.0  # an outlier, which moves its row's scale and must not be held
    rule = llm_qat.rule_of(LlmQatParams(activation_bits=activation_bits))
    layer = FakeQuant(linear.requires_grad_(False), bits, rule, symmetric)
    x, probe = torch.randn(2, 3, 24, requires_grad=True), torch.randn(2, 3, 7)
    y = layer(x)
    (y * probe).sum().backward()
    flat, towards = x.detach().reshape(-1, 24).numpy(), probe.reshape(-1, 7).numpy()
    expected, of_weight, of_x = oracles.quantization.straight_through(
        linear.weight.numpy(), flat, towards, bits, activation_bits, symmetric
    )
    assert np.allclose((y - linear.bias).detach().reshape(-1, 7).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert np.allclose(layer.latent.grad.numpy(), of_weight, rtol=1e-4, atol=1e-4)
    assert np.allclose(x.grad.reshape(-1, 24).numpy(), of_x, rtol=1e-4, atol=1e-4)
    assert bool((layer.latent.grad != 0).any(1).all()) and linear.weight.grad is None
    layer.original = True
    assert torch.equal(layer(x), linear(x))


# --- the loss ---


def test_the_divergence_is_forward_and_its_gradient_the_cross_entropys():
    p, q = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5, 0.5]])
    student = q.log().requires_grad_()
    found = forward_kl(p.log(), student)
    assert float(found.sum().detach()) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    found.sum().backward()
    assert torch.allclose(student.grad, q - p, atol=1e-6)


def test_the_teacher_is_the_original_and_the_student_what_will_be_stored():
    bundle, ids = chain_language.model(), chain_language.text(4, seed=3)
    bundle.module.requires_grad_(False).eval()
    before = logits(bundle, ids)
    with llm_qat.fake_quantised(bundle, LlmQatParams(bits=3, kv_bits=4)) as layers:
        rounded = logits(bundle, ids)
        with llm_qat.as_original(bundle, layers):
            assert torch.equal(logits(bundle, ids), before)
        assert not torch.allclose(rounded, before, atol=1e-3) and bundle.cache_bits == 4
        expected = 0.0
        for t, s in zip(before.flatten(0, 1).double(), rounded.flatten(0, 1).double(), strict=True):
            p, q = t.softmax(-1), s.softmax(-1)
            expected += float(sum(p[v] * (p[v].log() - q[v].log()) for v in range(len(p)))) / ids.numel()
        assert float(llm_qat.distillation_loss(bundle, layers, ids)) == pytest.approx(expected, rel=1e-4)
    assert torch.equal(logits(bundle, ids), before) and bundle.cache_bits == 16


def test_a_loss_in_pieces_is_the_same(monkeypatch):
    bundle, ids = chain_language.model(), chain_language.text(4, seed=3)
    bundle.module.requires_grad_(False).eval()
    found = []
    for limit in (row_losses.LOGITS_BYTES, 2_000):
        monkeypatch.setattr(row_losses, "LOGITS_BYTES", limit)
        with llm_qat.fake_quantised(bundle, LlmQatParams()) as layers:
            loss = llm_qat.distillation_loss(bundle, layers, ids)
            loss.backward()
            found.append((loss.detach(), *(layer.latent.grad for layer in layers.values())))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_after_a_measurement_everything_still_trains(family):
    """A forward pass without gradients leaves nothing behind that would stop them."""
    bundle, ids = tiny.bundle(family), tiny.ids(2)
    with llm_qat.fake_quantised(bundle, LlmQatParams(bits=3, kv_bits=8)) as layers:
        logits(bundle, ids)
        llm_qat.distillation_loss(bundle, layers, ids).backward()
        assert len(layers) >= 12 and all(bool(layer.latent.grad.any()) for layer in layers.values())
        assert all(
            p.grad is None for name, p in bundle.module.named_parameters() if not name.endswith("latent")
        )


# --- the text ---


def test_texts_begin_with_any_token_then_surely_then_by_chance():
    bundle = chain_language.teacher()
    texts = llm_qat.write(bundle, 96, 32, context(seed=5))
    starts = llm_qat.beginnings(bundle, 96, seed=5)
    assert texts.shape == (96, 32) and texts[:, 0].tolist() == [token for token, _ in starts]
    assert set(Counter(starts).values()) == {2}, "16 letters and 3 lengths, each once before any again"
    likeliest, chances = logits(bundle, texts).argmax(-1), logits(bundle, texts).log_softmax(-1)
    for row, (_, sure) in enumerate(starts):
        assert texts[row, 1:sure].tolist() == likeliest[row, : sure - 1].tolist()
    drawn, given = texts[:, 5:], chances[:, 4:-1]
    surprise = -given.gather(-1, drawn[..., None]).mean()
    assert float(surprise) == pytest.approx(float(-(given.exp() * given).sum(-1).mean()), rel=0.03), (
        "drawn at temperature 1"
    )
    assert bundle.decoder is None, "the decoder of the old weights is given up"


def test_no_special_token_begins_a_text():
    starts = llm_qat.beginnings(tiny.bundle(), 3 * 260, seed=0)
    assert {256, 257}.isdisjoint(token for token, _ in starts) and len({token for token, _ in starts}) > 200


def test_the_same_seed_writes_the_same_and_another_another():
    bundle, told = tiny.bundle(), []
    first = llm_qat.write(bundle, 6, 16, context(1, emit=told.append))
    assert torch.equal(llm_qat.write(bundle, 6, 16, context(1)), first)
    assert not torch.equal(llm_qat.write(bundle, 6, 16, context(2)), first)
    assert {e["stage"] for e in told} == {"write"} and told[-1]["done"] == told[-1]["total"] == 6 * 15
    with pytest.raises(Cancelled):
        llm_qat.write(bundle, 6, 16, context(1, cancelled=lambda: True))


# --- the whole method ---


@pytest.mark.parametrize("bits, kv_bits", [(2, 8), (4, 4), (8, 16)])
def test_without_training_it_is_rounding(bits, kv_bits):
    bundle = tiny.bundle("opt-post-norm")
    before = {
        path: bundle.module.get_submodule(path).weight.clone() for path, _, _ in arch.linears(bundle.module)
    }
    compressed(bundle, bits=bits, kv_bits=kv_bits, train_tokens=0)
    assert bundle.cache_bits == kv_bits
    for path, weight in before.items():
        packed = bundle.module.get_submodule(path).packed
        expected = np.stack(
            [
                oracles.quantization.symmetric_minmax(row, bits, half=True)[1]
                for row in weight.detach().numpy()
            ]
        )
        assert np.allclose(
            packed.stored().numpy(), expected, atol=1e-6
        ) and packed.activations == ActivationRule(8)
        assert packed.stored_bytes() == METHOD.cost(packed.shape, LlmQatParams(bits=bits), 0).bytes


@pytest.mark.parametrize("kv_bits", [8, 4])
def test_token_by_token_is_all_at_once(kv_bits):
    bundle, ids = chain_language.model(), chain_language.text(3, seed=4)
    bundle.module.requires_grad_(False).eval()
    compressed(bundle, bits=4, activation_bits=16, kv_bits=kv_bits, train_tokens=0)
    whole, cache, steps = logits(bundle, ids), bundle.new_cache(), []
    with torch.no_grad():
        for t in range(ids.shape[1]):
            steps.append(
                bundle.module(input_ids=ids[:, t : t + 1], **kv_cache.handed(bundle.module, cache)).logits
            )
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"bits": 4, "kv_bits": 4},
        {"bits": 2, "activation_bits": 16},
        {"bits": 8, "kv_bits": 16},
        {"bits": 3, "activation_bits": 4},
    ],
)
def test_what_was_trained_is_what_is_stored(values, tmp_path):
    """Layer by layer within float32's error; of the whole model as a divergence, because an error of the last
    bit may move an input that lies between two codes to the other one."""
    bundle, ids = chain_language.model(), chain_language.text(4, seed=6)
    bundle.module.requires_grad_(False).eval()
    before, noise = logits(bundle, ids).flatten(0, 1), torch.Generator().manual_seed(0)
    with llm_qat.fake_quantised(bundle, LlmQatParams(**values)) as layers:
        for layer in layers.values():
            layer.latent.data += 0.02 * torch.randn(layer.latent.shape, generator=noise)
            x = torch.randn(5, layer.latent.shape[1], generator=noise)
            assert torch.allclose(layer.stored().matmul(x), layer(x).detach(), atol=1e-5)
        trained, stored = (
            logits(bundle, ids).flatten(0, 1),
            {path: layer.stored() for path, layer in layers.items()},
        )
    for path, packed in stored.items():
        bundle.module.set_submodule(path, CompressedLinear(packed, None))
    bundle.cache_bits = LlmQatParams(**values).kv_bits
    apart = forward_kl(trained, logits(bundle, ids).flatten(0, 1)).sum()
    assert float(apart) < 0.01 * float(forward_kl(before, trained).sum())
    artifact.save(bundle, tmp_path / "m", {"label": "LLM-QAT"})
    loaded = artifact.load(tmp_path / "m")
    assert loaded.cache_bits == bundle.cache_bits
    assert (
        json.loads((tmp_path / "m" / artifact.MANIFEST).read_text("utf-8"))["cache_bits"] == bundle.cache_bits
    )
    saved = {path: loaded.module.get_submodule(path).packed for path in stored}
    assert all(torch.equal(saved[path].stored(), packed.stored()) for path, packed in stored.items())
    assert all(saved[path].activations == packed.activations for path, packed in stored.items())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_learns_the_same_every_time(family):
    made = []
    for _ in range(2):
        bundle, outcome = compressed(
            tiny.bundle(family), bits=3, train_tokens=1_024, own_texts=16, own_tokens=32, learning_rate=2e-3
        )
        made.append(logits(bundle, tiny.ids(2)))
    facts = next(n.facts for n in outcome.notes if n.code == "trained")
    assert facts["best"] < facts["before"] and outcome.series["training"][0][2] == facts["before"]
    assert torch.equal(*made) and bundle.cache_bits == 8 and bundle.decoder is None
    assert {r["role"] for r in outcome.layers} >= {"q", "k", "v", "o", "up", "down"}
    assert all(r["format"] == "grouped_int" for r in outcome.layers)


def test_stopping_and_having_enough():
    calls = iter(range(10_000))
    with pytest.raises(Cancelled):
        params = METHOD.params.parse(METHOD.tiny)
        calibrate.compress(
            tiny.bundle(), ((METHOD, params),), None, recorder=Recorder(cancelled=lambda: next(calls) > 40)
        )
    bundle = tiny.bundle()
    outcome = calibrate.compress(bundle, ((METHOD, params),), None, recorder=Recorder(enough=lambda: True))
    assert {n.code for n in outcome.notes} == {"trained", "training_enough", "training_no_gain"}
    rounded, _ = compressed(tiny.bundle(), train_tokens=0)
    assert torch.equal(logits(bundle, tiny.ids(2)), logits(rounded, tiny.ids(2))), (
        "the rounded start is what is left"
    )


def test_a_run_knows_what_it_is_compared_with():
    spec = RunSpec("smollm2-135m-instruct-q4_1", (("llm_qat", {}),))
    assert not spec.needs_calibration and spec.training_tokens == 0 and spec.control() is None
    assert spec.without_training().recipe[0][1]["train_tokens"] == 0


# --- what it is worth: tests/chain_language.py ---

TRAINED = {"train_tokens": 10_240, "own_texts": 320, "own_tokens": 32, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    "bits, kv_bits",
    [pytest.param(4, 8, marks=pytest.mark.slow), (4, 4), pytest.param(3, 4, marks=pytest.mark.slow), (2, 8)],
)
def test_training_beats_rounding_and_never_the_original(bits, kv_bits):
    """The paper's order at each W-A-KV; the original stays ahead of what learned from its own text alone."""
    original = chain_language.perplexity(chain_language.teacher())
    found = [
        chain_language.perplexity(
            compressed(chain_language.teacher(), bits=bits, kv_bits=kv_bits, **values)[0]
        )
        for values in ({"train_tokens": 0}, TRAINED)
    ]
    assert found[1] < found[0] and original <= 1.005 * found[1], (original, found)


# --- from end to end ---


def test_a_run_from_end_to_end_and_a_chat_with_what_it_made(tmp_path):
    (tmp_path / "test.txt").write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(200)))
    store = Store(tmp_path / "home", shipped=None)
    recipe = (("llm_qat", METHOD.tiny | {"kv_bits": 4}),)
    spec = RunSpec(
        tiny.folder("qwen3"), recipe, text=str(tmp_path / "test.txt"), window=64, tokens=512, table_bits=16
    )
    stages = []
    result = run(spec, lambda e: stages.append(e["stage"]), store=store, timings=False)
    assert result.status == "ok", result.error
    assert stages.index("write") < stages.index("train") < stages.index("save")
    assert {n["code"] for n in result.notes} >= {"trained"} and result.series["training"][0][0] == 0
    assert result.metrics["weight_bits_per_weight"] == pytest.approx(estimate(spec).weight_bits, rel=1e-3)
    loaded = artifact.load(store.artifact_folder(result.artifact))
    assert loaded.cache_bits == 4
    assert result.metrics["kv_cache_bytes_per_token"] == loaded.geometry.kv_cache_bytes_per_token(4)
    said = talk.said(store, result.id, "hello there", max_tokens=4)
    assert {e["side"] for e in said if "token" in e} == {"original", "compressed"}

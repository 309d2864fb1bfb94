"""Likelihood and generation against a plain transformers loop; the memory that measuring adds."""

from __future__ import annotations

import math

import pytest
import torch

from compression import likelihood, sample
from evaluation.measuring import divergence, generation
from evaluation.measuring import perplexity as ppl
from tests import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_losses_equal_the_plain_loop(family):
    tokens = tiny.ids(5)
    found = likelihood.losses(tiny.bundle(family), tokens)
    for window, row in zip(tokens, found, strict=True):
        with torch.no_grad():
            loss = tiny.original(family)(input_ids=window[None], labels=window[None]).loss
        assert float(row.mean()) == pytest.approx(float(loss), rel=1e-5)


def test_chunks_change_nothing(monkeypatch):
    bundle, tokens = tiny.bundle(), tiny.ids(5)
    found = likelihood.losses(bundle, tokens)
    monkeypatch.setattr(likelihood, "LOGITS_BYTES", 4 * tiny.VOCABULARY * 3)
    monkeypatch.setattr(likelihood, "TOKENS_PER_BATCH", 64)
    assert torch.allclose(likelihood.losses(bundle, tokens), found, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generating_with_a_cache_equals_generating_without(family):
    bundle, prompt = tiny.bundle(family), tiny.ids(2, 9)
    found = torch.stack(list(sample.generate(bundle, prompt, 7)), 1)
    tokens = prompt
    for _ in range(7):
        tokens = torch.cat([tokens, tiny.logits(bundle, tokens)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, tokens[:, 9:])


def test_sampling_follows_its_seed_and_greedy_is_temperature_zero():
    bundle, prompt = tiny.bundle(), tiny.ids(1, 5)

    def draw(t, seed):
        return [int(x) for x in sample.generate(bundle, prompt, 12, t, seed)]

    assert draw(1.0, 1) == draw(1.0, 1) != draw(1.0, 2)
    assert draw(0.0, 1) == draw(0.0, 2) == draw(1e-6, 3)


def test_generation_stops_at_the_models_limit():
    assert len(list(sample.generate(tiny.bundle(), tiny.ids(1, 248), 50))) == 8


def test_perplexity_by_hand():
    losses = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.5, 0.5]])
    value, error = ppl.perplexity(losses)
    means = [2.0, 2.0, 0.5]
    mean = sum(means) / 3
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / 2 / 3)
    assert value == pytest.approx(math.exp(mean)) and error == pytest.approx(math.exp(mean) * spread)
    ratio, ratio_error = ppl.ratio(losses + 0.1, losses)
    assert ratio == pytest.approx(math.exp(0.1), rel=1e-6) and ratio_error == pytest.approx(0, abs=1e-6)
    assert ppl.bits_per_byte(losses, 9) == pytest.approx(9 / math.log(2) / 9)
    assert ppl.rate_and_error(30, 100) == (0.3, pytest.approx(math.sqrt(0.21 / 100)))


def test_divergence_by_hand():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert float(divergence.kl_divergence(p.log(), q.log() + 3)) == pytest.approx(expected, rel=1e-5)
    assert float(divergence.kl_divergence(p.log(), p.log())) == 0
    found = divergence.summary(torch.arange(101.0))
    assert found == {"mean": 50, "median": 50, "p90": 90, "p99": 99, "max": 100}


def test_repeat_rate_and_first_difference():
    assert generation.repeat_rate(list(range(30))) == 0
    assert generation.repeat_rate([1, 2, 3, 4] * 10) == pytest.approx(1 - 4 / 37)
    assert generation.repeat_rate([7] * 3) == 0
    assert generation.first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert generation.first_difference([1, 2], [1, 2]) == 2


@pytest.fixture(scope="module")
def measured(offline_model, tmp_path_factory):
    """(perplexity of a plain loop, metrics, bytes that measuring took) of the real model on a window of 512."""
    from compression import engine, models, texts
    from evaluation.measuring import memory
    from evaluation.measuring.measure import measure

    bundle = models.load(offline_model)
    cut = texts.windows(
        texts.load_text("builtin", "evaluation"), bundle.tokenizer, "raw", 512, 512, "evaluation"
    )
    total = 0.0
    for window in cut.ids:
        with torch.no_grad():
            total += float(bundle.module(input_ids=window[None], labels=window[None], use_cache=False).loss)
    assert engine.serve(bundle) is not None
    memory.reset_peak()
    before = memory.peak_bytes()
    metrics, _ = measure(bundle, cut, None, record=tmp_path_factory.mktemp("record"))
    return math.exp(total / len(cut.ids)), metrics, memory.peak_bytes() - before


@pytest.mark.model
def test_the_real_models_perplexity_equals_a_plain_transformers_loop(measured):
    """Raw protocol, window 512, to 1e-4 relative."""
    plain, metrics, _ = measured
    assert metrics["perplexity"] == pytest.approx(plain, rel=1e-4)


@pytest.mark.model
def test_measuring_takes_little_memory(measured):
    """At most 300 MB beside the model and its decode step: a window's logits alone would be 100 MB a copy."""
    assert measured[2] < 300e6

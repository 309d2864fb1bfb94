"""Short models, short texts, few tokens: measured with a note, or refused before a weight is loaded."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch

from compression import models
from evaluation.measuring import memory
from evaluation.running.run import run
from evaluation.spec import RunSpec
from evaluation.store import Store
from tests import tiny

RTN = (("rtn", {"bits": 4, "group_size": 16}),)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("home"), shipped=None)


def short(place, kind: str, positions: int) -> str:
    """A tiny model that reads so many positions."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = tiny.CONFIGS[kind] | {"n_positions" if kind == "gpt2" else "max_position_embeddings": positions}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=tiny.VOCABULARY, bos_token_id=256, eos_token_id=257, pad_token_id=257, **sizes
    )
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(
        place / f"{kind}-{positions}"
    )
    tiny.tokenizer().save_pretrained(place / f"{kind}-{positions}")
    return str(place / f"{kind}-{positions}")


def asked(place, model: str, recipe=RTN, **more) -> RunSpec:
    fields = dict(
        text=str(place / "test.txt"),
        calibration=str(place / "valid.txt"),
        window=64,
        tokens=128,
        calibration_tokens=256,
    )
    return RunSpec(model, recipe, **fields | {"table_bits": 16} | more)


@pytest.mark.parametrize(
    "kind, positions", [("llama", 2), ("gpt2", 4), ("llama", 32), ("opt", 64), ("llama", 1 << 20)]
)
def test_models_that_read_little_or_very_much(place, store, tmp_path, kind, positions):
    result = run(asked(place, short(tmp_path, kind, positions)), store=store, timings=positions < 1000)
    assert result.status == "ok", result.error
    notes, m = {n["code"]: n["facts"] for n in result.notes}, result.metrics
    assert (
        ("window_shortened" in notes) == (positions < 64)
        and math.isfinite(m["perplexity"])
        and m["first_difference_tokens"] >= 0
    )
    assert ("short_context_kl_divergence_mean" in m) == (positions >= 32) == ("no_short_context" not in notes)
    assert ("repeat_rate" in m) == (positions >= 8), "two tokens repeat nothing"
    assert ("continuations_shortened" in notes) == (positions < 80)
    assert ("time_per_output_token_ms" in m) == bool(result.timings) == (2 < positions < 1000)
    assert ("no_timing" in notes) == (positions == 2)
    if 2 < positions < 145:
        timing = result.timings[0]
        assert (
            timing["prompt_tokens"] + timing["new_tokens"] <= positions
            and notes["timing_shortened"]["new"] == timing["new_tokens"]
        )


@pytest.mark.parametrize("window, tokens, kept", [(2, 2, 2), (2, 7, 6), (16, 16, 16), (16, 17, 16)])
def test_one_window_windows_of_two_and_a_text_of_exactly_one(place, store, tmp_path, window, tokens, kept):
    (tmp_path / "a.txt").write_text("abcdefghijklmnop")
    result = run(
        asked(place, tiny.folder("llama"), text=str(tmp_path / "a.txt"), window=window, tokens=tokens),
        store=store,
        timings=False,
    )
    assert result.status == "ok" and result.metrics["evaluated_tokens"] == kept, result.error
    assert ("perplexity_stderr" in result.metrics) == (kept > window), "one window has no spread"


GKD = {"train_tokens": 512, "prompt_tokens": 4, "response_tokens": 8}
REFUSED = {
    "evaluation text": (RTN, {"text": "short.txt"}, "text_too_short"),
    "calibration text": (
        (("gptq", {"bits": 4, "group_size": 16}),),
        {"calibration": "short.txt"},
        "text_too_short",
    ),
    "training text": ((("gkd", GKD),), {"calibration": "some.txt", "window": 32}, "too_little_text"),
    "a training's windows": ((("gkd", GKD | {"prompt_tokens": 400}),), {}, "bad_param"),
    "pieces": (
        (("llm_pruner", {"samples": 100, "sample_tokens": 32, "protect_first": 0.0, "protect_last": 0.0}),),
        {},
        "text_too_short",
    ),
    "protected blocks": ((("llm_pruner", {"protect_first": 0.5, "protect_last": 0.5}),), {}, "bad_param"),
    "encoding": (RTN, {"text": "wide.txt"}, "text_encoding"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_be_known_is_refused_before_the_model_is_loaded(place, store, tmp_path, monkeypatch, what):
    (tmp_path / "short.txt").write_text("abcdefghijklmnop")
    (tmp_path / "some.txt").write_text("0123456789" * 10)
    (tmp_path / "wide.txt").write_text("abcdefgh" * 100, encoding="utf-16")
    recipe, changes, code = REFUSED[what]
    changes = {k: str(tmp_path / v) if isinstance(v, str) else v for k, v in changes.items()}
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("loaded"))
    result = run(asked(place, tiny.folder("llama"), recipe, **changes), store=store)
    assert (result.status, result.error["code"]) == ("failed", code), result.error


def test_a_short_calibration_is_used_and_said(place, store, tmp_path):
    (tmp_path / "some.txt").write_text("0123456789" * 10)
    spec = asked(
        place,
        tiny.folder("llama"),
        (("gptq", {"bits": 4, "group_size": 16}),),
        calibration=str(tmp_path / "some.txt"),
    )
    result = run(spec, store=store, timings=False)
    assert result.status == "ok", result.error
    assert {
        "code": "calibration_shortened",
        "facts": {"name": "some.txt", "asked": 256, "used": 64},
    } in result.notes
    original = next(r for r in store.own() if r.spec.is_original and r.protocol_id == result.protocol_id)
    assert "calibration_shortened" not in {n["code"] for n in original.notes}


# --- numbers that are none ---


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_fails_the_run_by_its_name(place, store, monkeypatch, number):
    monkeypatch.setattr(memory, "matrices", lambda *a: {"weight_bits_per_weight": number})
    result = run(asked(place, tiny.folder("llama"), tokens=64), store=store, timings=False, again=True)
    assert (result.status, result.error["code"], result.error["facts"]["name"]) == (
        "failed",
        "figure_not_finite",
        "metrics.weight_bits_per_weight",
    )
    assert store.get_id(result.id) == result


def test_a_loss_beyond_every_number_is_told(place, store, tmp_path):
    """A head of 1e20: losses are finite, their exponential isn't."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "loud"
    __import__("shutil").copytree(tiny.folder("qwen3"), folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"lm_head.weight": 1e6 * weights["lm_head.weight"]},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    result = run(asked(place, str(folder), tokens=64), store=store, timings=False)
    assert (result.status, result.error["code"], result.error["facts"]["name"]) == (
        "failed",
        "figure_not_finite",
        "metrics.perplexity",
    )


def test_a_dialogue_calibrates_through_the_models_own_template(place, store, tmp_path):
    """What the template made of it is part of the question, for the original isn't."""
    (tmp_path / "talk.jsonl").write_text('{"messages": [{"role": "user", "content": "A few words"}]}\n' * 40)
    model = short(tmp_path, "llama", 64)
    spec = asked(
        place, model, (("gptq", {"bits": 4, "group_size": 16}),), calibration=str(tmp_path / "talk.jsonl")
    )
    refused = run(spec, store=store, timings=False)
    assert refused.error.get("code") == "no_chat_template"
    (Path(model) / "chat_template.jinja").write_text("<s>{{ messages[0].content }}</s>")
    found = run(spec, store=store, timings=False)
    assert found.status == "ok" and "chat template" in found.model["calibration"]
    assert found.fingerprint["template"] == hashlib.sha256(b"<s>A few words</s>" * 40).hexdigest()
    assert spec.question(found.fingerprint) != spec.question(found.fingerprint | {"template": "another"})
    original = next(r for r in reversed(store.own()) if r.spec.is_original)
    assert original.fingerprint == {k: v for k, v in found.fingerprint.items() if k != "template"} | {
        "calibration": ""
    }

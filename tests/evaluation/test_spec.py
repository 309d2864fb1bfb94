"""A run's identity and key: what changes them, what doesn't."""

from __future__ import annotations

import dataclasses
import json

import pytest

import evaluation.spec
from compression.base import BadParam
from evaluation.benches import overview, shipped
from evaluation.spec import Result, RunSpec

FINGERPRINT = {"model": "m", "text": "t", "calibration": "c", "dtype": "float32"}
GPTQ = RunSpec("a-model", (("gptq", {"bits": 4}),))


def test_equal_requests_are_one():
    same = RunSpec("a-model", (("gptq", {"bits": "4", "group_size": 64}),))
    assert same.identity() == GPTQ.identity() and same.key(FINGERPRINT) == GPTQ.key(FINGERPRINT)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"table_bits": 16},
        {"cache_bits": 8},
        {"activations": "int8"},
        {"window": 256},
        {"tokens": 4096},
        {"protocol": "paper"},
        {"calibration_tokens": 4096},
        {"recipe": (("gptq", {"bits": 3}),)},
        {"recipe": (("rtn", {"bits": 4}),)},
    ],
)
def test_what_decides_numbers_changes_the_key(change):
    other = dataclasses.replace(GPTQ, **change)
    assert other.key(FINGERPRINT) != GPTQ.key(FINGERPRINT) and other.identity() != GPTQ.identity()


@pytest.mark.parametrize("name", FINGERPRINT)
def test_content_changes_the_key(name):
    assert GPTQ.key(FINGERPRINT | {name: "other"}) != GPTQ.key(FINGERPRINT)


def test_what_decides_nothing_leaves_the_key():
    assert dataclasses.replace(GPTQ, preset="standard", device="cpu").key(FINGERPRINT) == GPTQ.key(
        FINGERPRINT
    )
    rounding = RunSpec("a-model", (("rtn", {"bits": 4}),))
    assert dataclasses.replace(rounding, calibration_tokens=99).key(FINGERPRINT) == rounding.key(FINGERPRINT)
    pattern = RunSpec("a-model", (("wanda", {"pattern": "2:4", "sparsity": 0.5}),))
    other = RunSpec("a-model", (("wanda", {"pattern": "2:4", "sparsity": 0.7}),))
    assert pattern.key(FINGERPRINT) == other.key(FINGERPRINT)
    moved = dataclasses.replace(GPTQ, text="elsewhere/a.txt")
    assert moved.key(FINGERPRINT) == GPTQ.key(FINGERPRINT), "the same content at another place"


def test_a_converter_takes_the_bits_of_the_step_before():
    """What it is called, estimated and found under is what it will be."""
    chain = dataclasses.replace(
        GPTQ, recipe=(("gptq", {"bits": 4, "group_size": 64}), ("lut_gemm", {"bits": 2}))
    )
    assert chain.recipe[1][1]["bits"] == 4 and chain.recipe[1][1]["group_size"] == 64
    again = dataclasses.replace(
        GPTQ, recipe=(("gptq", {"bits": 4, "group_size": 64}), ("lut_gemm", {"bits": 3}))
    )
    assert chain.identity() == again.identity() and RunSpec.parse(chain.json()) == chain
    alone = dataclasses.replace(GPTQ, recipe=(("lut_gemm", {"bits": 2}),))
    assert alone.recipe[0][1]["bits"] == 2 and alone.recipe[0][1]["group_size"] == 128


def test_the_original_with_a_cache_of_few_bits_is_a_run_of_its_own():
    """Nothing else is done to it, whatever the page's default for tables is."""
    original, cache = (RunSpec("a-model", (("none", {}),), cache_bits=bits) for bits in (16, 8))
    assert original.is_original and not cache.is_original and cache.original() == original
    assert cache.table_bits == 16 and not cache.compresses_tables and RunSpec.parse(cache.json()) == cache
    assert cache.key(FINGERPRINT) != original.key(FINGERPRINT) and GPTQ.original() == original
    assert dataclasses.replace(GPTQ, cache_bits=4).original() == original, (
        "the original always keeps what it computes"
    )


def test_a_recipes_words_carry_what_the_run_says():
    """Beside the methods' own parameters; a flag that a method declares too is the method's."""
    assert shipped.asked("none --cache_bits 8") == ((("none", {}),), {"cache_bits": 8})
    steps, fields = shipped.asked("wanda --sparsity 0.5 + gptq --bits 4 --cache_bits 4 --table_bits 8")
    assert steps == (("wanda", {"sparsity": "0.5"}), ("gptq", {"bits": "4"})) and fields == {
        "cache_bits": 4,
        "table_bits": 8,
    }
    assert shipped.asked("smoothquant --activations tensor") == (
        (("smoothquant", {"activations": "tensor"}),),
        {},
    )
    few = RunSpec("a-model", steps, **fields)
    assert few.cache_bits == 4 and shipped.file_name(few, "gates") == "gates-wanda-0.5+gptq-4-cache4.json"
    assert (
        shipped.file_name(dataclasses.replace(few, cache_bits=16), "gates") == "gates-wanda-0.5+gptq-4.json"
    )
    assert overview.rated("none --cache_bits 8").cache_bits == 8
    assert overview.label(overview.rated("none --cache_bits 8")) == "original weights, cache in 8 bits"
    assert overview.label(overview.rated("rtn --bits 4 --cache_bits 8")).endswith(", cache in 8 bits")


def test_the_key_names_the_code_and_the_question_does_not(monkeypatch):
    key, question = GPTQ.key(FINGERPRINT), GPTQ.question(FINGERPRINT)
    monkeypatch.setattr(evaluation.spec, "program_code", lambda: "other")
    assert GPTQ.key(FINGERPRINT) != key and GPTQ.question(FINGERPRINT) == question


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"tokens": 0}, "1 to "),
        ({"tokens": 100}, "less than one window"),
        ({"window": 1}, "2 to "),
        ({"table_bits": 5}, "16, 8, 4"),
        ({"cache_bits": 3}, "16, 8, 4, 2"),
        ({"cache_bits": 2}, "cache_keys = channel"),
        ({"cache_keys": "row"}, "token, channel"),
        ({"protocol": "mine"}, "paper, raw"),
        ({"recipe": ()}, "empty"),
        ({"recipe": (("gptq", {"bits": 17}),)}, "2 to 8"),
        ({"seed": -1}, "0 to 4294967295"),
        ({"seed": 2**70}, "0 to 4294967295"),
    ],
)
def test_bad_runs_are_refused(fields, words):
    with pytest.raises(BadParam, match=words):
        dataclasses.replace(GPTQ, **fields)


def test_json_round_trip():
    result = Result("k", GPTQ, "ok", metrics={"perplexity": 2.5}, notes=[{"code": "a", "facts": {}}])
    again = Result.parse(json.loads(json.dumps(result.json())))
    assert again == result


def test_the_cache_that_comes_out_is_the_runs_or_the_methods():
    def bits(*recipe, **fields):
        return RunSpec("m", recipe, **fields).stored_cache_bits

    qat = ("llm_qat", {"kv_bits": 4})
    assert bits(("none", {})) == bits(("rtn", {})) == 16 and bits(("rtn", {}), cache_bits=8) == 8
    assert bits(qat) == 4 and bits(qat, cache_bits=8) == 8 and bits(("llm_qat", {"kv_bits": 16})) == 16


def test_keys_by_channel_are_another_question_and_nothing_without_few_bits():
    plain, few = (
        RunSpec("m", (("none", {}),), cache_bits=4),
        RunSpec("m", (("none", {}),), cache_bits=4, cache_keys="channel"),
    )
    assert few.identity() != plain.identity() and "cache_keys" not in plain._essence(), (
        "stored answers keep their names"
    )
    assert RunSpec("m", (("none", {}),), cache_keys="channel") == RunSpec("m", (("none", {}),))
    assert (
        few.original() == RunSpec("m", (("none", {}),))
        and shipped.file_name(few, "gates") == "gates-none-cache4-channel.json"
    )
    assert shipped.asked("none --cache_bits 2 --cache_keys channel")[1] == {
        "cache_bits": 2,
        "cache_keys": "channel",
    }
    assert (
        overview.label(RunSpec("m", (("none", {}),), cache_bits=2, cache_keys="channel"))
        == "original weights, cache in 2 bits by channel"
    )

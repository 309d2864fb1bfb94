"""The page's strings: whole in both languages, none invented, none left over; figures cut as people read
them."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

import kernels
from compression import NAMES, get
from evaluation.declared import methods
from evaluation.measuring.metrics import METRICS
from evaluation.page import words as words_of
from evaluation.page.cards import runs_table
from evaluation.page.words import LANGUAGES, Words, digits, essays, grade, table, untranslated

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(ROOT / "assets" / "scripts").glob("*.js"),  # lessons have words of their own
    *(ROOT / "evaluation").rglob("*.py"),
    *(ROOT / "evaluation" / "page" / "templates").iterdir(),
]
CODE = "\n".join(f.read_text("utf-8") for f in SOURCES)
LOGIC = "\n".join(
    f.read_text("utf-8") for folder in ("compression", "evaluation") for f in (ROOT / folder).rglob("*.py")
)
BUILT = (
    "budget.",
    "metric.",
    "param.",
    "value.",
    "setting.",
    "stage.",
    "status.",
    "note.",
    "error.",
    "method.",
    "family.",
    "verdict.",
    "grade.",
    "act.",
    # keys whose last part is computed
    "prompt.",
    "card.verdict.",
    "protocol.",
    "kernel.",
    "unit.",
    "stored.",
    "card.group.",
    "card.export.",
    "app.tab.",
    "app.headline_rounded.",
    "text.",
    "tab.",
    "front.",
    "runs.",
    "recipe.cache.",
)


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_languages_have_the_same_strings_with_the_same_facts(language):
    first, other = table(LANGUAGES[0]), table(language)
    assert set(first) == set(other), (
        "but for those of a method, a metric or a tab, which fall back to English"
    )
    for key, text in first.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", other[key])), key
        assert other[key].strip() or key == "then"


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_of_the_methods_is_not_translated_yet_is_listed(language):
    """A new method works before somebody has translated it; this names what is left to do."""
    missing = untranslated(language)
    if language != "en":
        missing += [f"essay of {name}" for name in NAMES if name not in essays(language)]
    if missing:
        warnings.warn(f"not in {language} yet: {', '.join(sorted(missing))}", stacklevel=1)


def test_a_method_that_nobody_has_translated_is_shown_in_english_with_a_mark(monkeypatch):
    written = {language: words_of.strings(language) for language in LANGUAGES}
    written["en"] |= {"method.new": "A new one"}
    monkeypatch.setattr(words_of, "strings", written.get)
    monkeypatch.setattr(words_of, "table", words_of.table.__wrapped__)  # without its memory
    monkeypatch.setattr(words_of, "essays", lambda language: {})
    assert Words("en").method("new") == "A new one" and Words("zh-Hant").method("new") == "（英文）A new one"
    assert words_of.essay("gptq", "zh-Hant") == f"（英文）{words_of.essay('gptq', 'en')}"


def test_no_english_is_left_in_chinese():
    same = {
        k
        for k, v in table("en").items()
        if v == table("zh-Hant")[k] and re.search(r"[a-z]{4}", re.sub(r"{\w+}", "", v))
    }
    names = {k for k in same if k.startswith(("method.", "error.")) or k == "app.name"}
    assert same - names == set()


def test_every_string_that_the_code_names_exists_and_is_used():
    named = set(re.findall(r"""(?:\bt|words)\(\s*["']([a-z_]+(?:\.[a-z_0-9]+)*)["']""", CODE))
    assert named - set(table("en")) == set()
    unused = [k for k in table("en") if not k.startswith(BUILT) and k.removesuffix(".one") not in CODE]
    assert unused == []


def test_every_error_and_note_that_can_happen_has_words():
    codes = set(re.findall(r'code="([a-z_]+)"', LOGIC)) | set(
        re.findall(r'^    code = "([a-z_]+)"', LOGIC, re.M)
    )
    # never shown by this name
    internal = {"error", "refused", "chat", "model_unavailable", "text_unavailable", "unknown_run"}
    for code in codes - internal:
        assert all(f"error.{code}.{part}" in table("en") for part in ("what", "means", "do")), code
    for code in set(re.findall(r'Note\("([a-z_]+)"', LOGIC)):
        assert f"note.{code}" in table("en"), code


def test_every_declaration_has_words():
    words = table("en")
    for name in NAMES:
        assert (
            f"method.{name}" in words
            and f"method.{name}.line" in words
            and f"family.{get(name).family}" in words
        )
        for p in get(name).params.describe():
            assert f"param.{p['name']}" in words and f"param.{p['name']}.help" in words
            assert not p["main"] or f"param.{p['name']}.low" in words
    for key in METRICS:
        assert f"metric.{key}" in words and f"metric.{key}.help" in words


@pytest.mark.parametrize(
    "x, expected",
    [
        (0, "0"),
        (1.0234, "1.02"),
        (98.44, "98.4"),
        (0.01234, "0.0123"),
        (1230.4, "1,230"),
        (9.999, "10.0"),
        (float("inf"), "∞"),
        (123456, "123,000"),
    ],
)
def test_digits(x, expected):
    assert digits(x) == expected


@pytest.mark.parametrize("n, told", [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1200, "1,200 runs")])
def test_one_is_told_as_one(n, told):
    assert Words("en").many("runs.count", n) == told
    assert Words("zh-Hant").many("runs.count", n) == f"{n:,} 個結果"


def test_every_count_of_things_has_a_form_for_one():
    """What a note counts is told as one thing where it is one."""
    english = table("en")
    counted = {k for k, text in english.items() if re.search(r"(?<!of )\{count\} [a-z]+s\b", text)}
    assert counted and {f"{k}.one" for k in counted if not k.endswith(".one")} <= set(english)
    assert not any("{count}" in english[f"{k}.one"] for k in counted)
    note = {"code": "export_in_float32", "facts": {"name": "lm_head", "count": 1}}
    assert Words("en").note(note).startswith("One tensor (lm_head) is")
    assert (
        Words("en").note(note | {"facts": {"name": "lm_head", "count": 3}}).startswith("3 tensors (lm_head")
    )
    assert Words("zh-Hant").note(note).startswith("有一個張量（lm_head）")
    assert Words("en").groups(1) == "one group a matrix" and Words("en").groups(64) == "64 groups a matrix"


def test_figures_become_words():
    words = Words("en")
    assert (
        words.size(269_030_016) == "269\u00a0MB"
        and words.size(86_577_320) == "87\u00a0MB"
        and words.size(1.25e9) == "1.2\u00a0GB"
    )
    assert (
        words.smaller(269e6, 86.5e6) == "3.1× smaller"
        and words.smaller(100, 100.5) == "the same size"
        and words.smaller(1, 2) == "2.0× larger"
    )
    assert (
        words.speed(10, 25) == "2.5× faster"
        and words.speed(20, 10) == "2.0× slower"
        and words.speed(10, 10.3) == "as fast"
    )
    assert words.share(0.934) == "93 %" and words.share(0.99999) == "99.9 %" and words.share(1) == "100 %"
    assert words.seconds(41) == "41 s" and words.seconds(150) == "2 min" and words.seconds(9000) == "2.5 h"
    recipe = (
        ("wanda", {"sparsity": 0.5, "pattern": "unstructured"}),
        ("gptq", {"bits": 4, "group_size": 64}),
    )
    assert words.recipe(recipe) == "Wanda 50 % removed → GPTQ 4 bits" and words.recipe(
        recipe, long=True
    ).endswith("GPTQ, 4 bits, group 64")
    sparse = {"sparsity": 0.5, "pattern": "unstructured", "quantize": False, "bits": 4, "group_size": 64}
    assert words.recipe((("sparsegpt", sparse),), long=True) == "SparseGPT, 50 % removed"
    assert words.recipe((("sparsegpt", sparse | {"quantize": True}),)) == "SparseGPT 50 % removed, 4 bits"
    assert (
        words.recipe((("sparsegpt", sparse | {"quantize": True, "pattern": "2:4"}),), True)
        == "SparseGPT, 2:4, 4 bits, group 64"
    )
    book = (("nf4", {"table": "fp4", "group_size": 64, "double": False}),)
    adapted = get("qlora").params(rank=8).json()
    assert words.recipe((("qlora", adapted),)) == "QLoRA rank 8"
    assert words.recipe((("qlora", adapted | {"table": "fp4"}),)) == "QLoRA rank 8, FP4"
    assert (
        words.recipe((("peqa", get("peqa").params(bits=3, round=False).json()),))
        == "PEQA not rounded (control)"
    )

    def zeroquant(**v):
        return (("zeroquant", get("zeroquant").params(**v).json()),)

    assert words.recipe(zeroquant()) == "ZeroQuant W8A8"
    assert words.recipe(zeroquant(bits=4), long=True) == "ZeroQuant, W4/8A8, 64 groups a matrix"
    told = words.recipe(
        zeroquant(bits=4, groups=0, qkv_inputs="exact", symmetric=False, distill_steps=50), long=True
    )
    assert told == "ZeroQuant, W4/8A8/16, one group a row, symmetric off, distillation steps 50"
    assert (
        words.recipe(zeroquant(groups=1, activations="exact"), long=True)
        == "ZeroQuant, W8A16, one group a matrix"
    )
    assert words.recipe(book) == "FP4" and words.recipe(book, long=True) == "FP4, group 64"


@pytest.mark.parametrize("language", LANGUAGES)
def test_two_settings_of_a_method_have_two_names(language):
    """The long name tells every parameter that isn't at its default, once, and those that are always told;
    the short one stays short."""
    words, make = Words(language), lambda name, **values: ((name, get(name).params(**values).json()),)
    symmetric = make("llm_int8", zero_point=False)
    assert words.recipe(make("llm_int8")) == words.recipe(symmetric) == words.method("llm_int8")
    assert words.recipe(make("hqq", bits=8), long=True) == words("comma").join(
        [words.method("hqq"), words("value.bits", v=8), words("value.group_size", v=64)]
    )
    assert words.recipe(make("llm_int8"), long=True).endswith(
        f"{words('param.zero_point').lower()} {words('on')}"
    ), "always told"
    told = words.recipe(symmetric, long=True)
    assert (
        told.startswith(words.method("llm_int8"))
        and words("off") in told
        and words("param.zero_point").lower() in told
    )
    trained = words.recipe(make("qlora", train_tokens=131_072), long=True)
    assert "131,072" in trained
    paid = words.recipe(
        (("minillm", get("minillm").params().json() | methods()["minillm"]["full"]),), long=True
    )
    assert paid.endswith(words("budget.full")) and str(
        methods()["minillm"]["full"]["train_tokens"]
    ) not in paid.replace(",", "")
    said = words.settings("smoothquant", get("smoothquant").params().json())
    assert said[0] == f"{words('param.alpha').lower()} 0.5" and len(said) == 3, (
        "its main knob, and what shares a scale"
    )
    moved = get("smoothquant").params(rounding=False).json()
    assert words.settings("smoothquant", moved) == [], "what has no effect isn't told"


def test_the_table_of_runs_tells_settings_under_the_name():
    row = {
        "id": "a",
        "created": 0.0,
        "status": "ok",
        "family": "quantization",
        "model": "m",
        "text": "t",
        "notes": [],
        "host": "",
        "threads": 0,
        "recipe": [["llm_int8", get("llm_int8").params(zero_point=False).json()]],
    }
    words = Words("en")
    assert "<small" in (shown := runs_table([row], words, "", 0)) and "zero point off" in shown
    assert "<small" not in runs_table(
        [row | {"recipe": [["hqq", get("hqq").params(bits=8).json()]]}], words, "", 0
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_cache_of_few_bits_is_part_of_the_name(language):
    words, recipe = Words(language), (("gptq", {"bits": 4, "group_size": 64}),)
    told = words.recipe(recipe, True, 8)
    assert told != words.recipe(recipe, True) and told.startswith(words.recipe(recipe, True)) and "8" in told
    assert words.run({"recipe": recipe}) == words.recipe(recipe) and words.run(
        {"recipe": recipe, "cache_bits": 4}
    ).startswith("GPTQ")
    alone = words.recipe((("none", {}),), cache_bits=8)
    assert alone != words.recipe((("none", {}),)) and not alone.startswith(
        words.method("none") + words("comma")
    )
    if language == "en":
        assert (
            alone == "original weights, cache in 8 bits" and told == "GPTQ, 4 bits, group 64, cache in 8 bits"
        )


def test_the_estimate_and_the_chat_tell_the_cache():
    from evaluation.page.cards import estimate_line
    from evaluation.page.questions import Page
    from evaluation.running.estimate import estimate
    from evaluation.spec import RunSpec

    words = Words("en")
    said = [
        estimate_line(
            words,
            estimate(RunSpec("smollm2-135m-instruct-q4_1", (("none", {}),), cache_bits=b)),
            False,
            False,
        )
        for b in (16, 8)
    ]
    assert "of cache per token" not in said[0] and "12\u00a0KB of cache per token" in said[1]
    state = {
        "parted": None,
        "sides": {side: {"text": "", "cache": "", "pieces": 0} for side in ("original", "compressed")},
    }
    for side, bits in (("original", 16), ("compressed", 4)):
        Page._take(state, {"side": side, "text": "a", "cache_bits": bits}, words)
    assert [s["cache"] for s in state["sides"].values()] == ["", "cache in 4 bits"]


@pytest.mark.parametrize(
    "values, said",
    [
        ({}, "heads 9 → 6, key-value heads 3 → 3, channels 1,536 → 1,152 in 25 of 30 layers"),
        ({"ranking": "global"}, "on average heads 9 → 6"),
        ({"removed": 0.45}, "the same heads go from 20 % to 45 %"),
    ],
    ids=str,
)
def test_the_estimate_tells_what_is_cut(values, said):
    from evaluation.page.cards import estimate_line
    from evaluation.running.estimate import estimate
    from evaluation.spec import RunSpec

    found = estimate(RunSpec("smollm2-135m-instruct-q4_1", (("llm_pruner", values),)))
    line = re.sub("[\u00a0\u202f]", " ", estimate_line(Words("en"), found, False, False))
    assert said in line
    assert "9 → 6" in estimate_line(Words("zh-Hant"), found, False, False)


def test_grades_follow_their_thresholds_and_the_noise():
    assert [grade(r) for r in (0.99, 1.01, 1.02, 1.1, 1.3, 2, 9)] == [
        "same",
        "same",
        "about",
        "slightly",
        "clearly",
        "much",
        "broken",
    ]
    assert grade(1.03, 0.02) == "same", "within twice its own error"
    assert grade(1.2, 0.2) == "clearly", "a large difference is not excused by a large error"


def test_unknown_codes_fall_back_to_their_own_message():
    parts = Words("zh-Hant").error({"code": "brand_new", "message": "something odd"})
    assert parts["what"] == table("zh-Hant")["error.error.what"] and parts["details"] == "something odd"
    assert Words("en").note({"code": "brand_new"}) == "brand_new"


def test_listing_and_essays_agree_with_the_methods():
    listed = json.loads((ROOT / "assets" / "methods.json").read_text("utf-8"))
    assert [m["name"] for m in listed] == list(NAMES)


@pytest.mark.parametrize("lang", ["en", "zh-Hant"])
def test_the_card_tells_the_share_of_the_limit_and_the_dense_times(lang):
    from evaluation.page.cards import _against_limits

    words, ms = Words(lang), lambda x: {"time_per_output_token_ms": x}
    timing = {
        "limit": {"share_of_read_bandwidth": 0.834},
        "original": ms(6.1),
        "original_float32": ms(12.0),
        "transformers": ms(57.0),
    }
    said = _against_limits(words, timing)
    assert all(x in said for x in ("83 %", "6.1", "12.0", "57.0"))
    del timing["original_float32"]
    assert "57.0" in _against_limits(words, timing) and "12.0" not in _against_limits(words, timing)
    assert _against_limits(words, {"limit": {}, "original": ms(6.1)}) == ""


def test_the_scripts_get_every_string_that_they_name():
    """Also those whose key they put together: t(`error.${code}.what`) is asked with codes of links alone."""
    scripts = "\n".join(f.read_text("utf-8") for f in (ROOT / "assets" / "scripts").glob("*.js"))
    named = set(re.findall(r"""\b(?:t|many)\(\s*'([a-z_]+(?:\.[a-z_0-9]+)*)'""", scripts))
    begun = set(re.findall(r"`([a-z_]+\.(?:[a-z_]+\.)*)\$\{", scripts)) - {"error."}
    for language in LANGUAGES:
        sent, everything = words_of.shown(language), table(language)
        assert named and named <= set(sent)
        assert begun and {k for k in everything if k.startswith(tuple(begun))} <= set(sent)
        assert {k for k in everything if k.startswith("error.link_")} <= set(sent)
    problems = set(re.findall(r"problems\.push\(\['([a-z_]+)'", scripts))
    assert problems and all(code.startswith("link_") for code in problems)


PROTOCOL = (
    "wiki.test.raw 173c87a5 · raw · window 512 · 32768 tokens · no start token · tokenizer 7e0b8f35 · float32"
)


def test_a_protocol_is_told_in_the_readers_words():
    told = Words("zh-Hant").protocol(PROTOCOL)
    assert told == (
        "wiki.test.raw 173c87a5 · raw · 視窗 512 個詞元 · 32768 個詞元 · 不加起始詞元 · 分詞器 7e0b8f35 · float32"
    )
    assert Words("en").protocol(PROTOCOL) == PROTOCOL.replace("window 512", "window of 512 tokens")
    assert Words("en").protocol("a window · 512") == "a window · 512", "what has no words stays"


def test_every_kernel_has_words():
    labels = [
        kernels.UNPACKED,
        "16-bit weights, whole layers (C)",
        *(op.pytorch for op in kernels.OPS.values()),
    ]
    labels += [kernels.name(op, "C, AVX2", int8=i, outliers=i) for op in kernels.OPS for i in (False, True)]
    for label in labels:
        told = Words("zh-Hant").kernels([label])
        assert Words("en").kernels([label]) == label
        # only names of instructions and programs stay in letters
        assert not re.search(r"[a-z]{5}", told.partition(" (")[0]), told

"""The README's tables: blocks of like with like, and what stands beside a control."""

from __future__ import annotations

import math

import pytest

from compression import get
from evaluation.benches import gates, overview, shipped
from evaluation.page.cards import run_card
from evaluation.page.words import Words
from evaluation.spec import Result, RunSpec
from evaluation.verdict import paired

BETTER_CONTROL = {f"llm_qat --bits 4 --kv_bits 4 {gates.QAT}"}  # of two untrained grids, the better one
SEEN = {"shipped": False, "artifact": False, "here": False, "chat": False}


def result(words: str, losses: list[float], bits: float = 4.0, seed: int = 0) -> Result:
    """A made-up result of a recipe."""
    steps, fields = shipped.asked(words)
    spec = RunSpec(shipped.OFFLINE_MODEL, steps, seed=seed, **fields)
    mean = math.exp(sum(losses) / len(losses))
    metrics = {
        "weight_bits_per_weight": bits,
        "model_bits_per_parameter": bits,
        "file_bytes": 100_000_000,
        "perplexity": mean,
        "perplexity_stderr": 1.0,
        "kl_divergence_mean": 0.1,
        "same_top_token_rate": 0.7,
    }
    return Result("", spec, "ok", metrics, series={"window_losses": losses})


def test_every_control_is_measured_and_no_recipe_controls_itself():
    known = (*gates.recipes(), *shipped.LADDER)
    for found in gates.BLOCKS:
        for recipe, control in found.rows.items():
            assert control != recipe and (not control or control in known), (found.title, recipe, control)


def test_a_comparison_within_a_block_changes_one_thing():
    """Recipe and control of one length with the same flags, or the same method with one flag changed or
    added, or one step more."""

    def flags(words):
        return [step.split() for step in words.split(" + ")]

    pairs = [
        (r, c)
        for found in gates.BLOCKS
        for r, c in found.rows.items()
        if c and len(flags(r)) == len(flags(c)) == 1
    ]
    assert len(pairs) > 30
    for recipe, control in pairs:
        (name, *own), (other, *its) = flags(recipe)[0], flags(control)[0]
        changed = {
            k: (
                dict(zip(own[::2], own[1::2], strict=True)).get(k),
                dict(zip(its[::2], its[1::2], strict=True)).get(k),
            )
            for k in (*own[::2], *its[::2])
        }
        # tokens end a training, not minutes
        changed = {k for k, (a, b) in changed.items() if a != b and k != "--train_minutes"}
        assert len(changed) <= 1 or name != other or recipe in BETTER_CONTROL, (recipe, control, changed)


def test_a_row_stands_beside_its_control_in_words():
    ours, control = [3.0, 3.1, 2.9, 3.2], [3.2, 3.31, 3.09, 3.42]
    rows = {"rtn --bits 4": "", "gptq --bits 4": "rtn --bits 4", "owq --bits 4": "gptq --bits 4"}
    measured = {
        "rtn --bits 4": [result("rtn --bits 4", control)],
        "gptq --bits 4": [result("gptq --bits 4", ours)],
        "owq --bits 4": [result("owq --bits 4", ours, bits=4.25)],
    }
    lines = overview.recipes_table(rows, measured).splitlines()
    assert overview.BESIDE in lines[0] and len(lines) == 5
    change = 100 * (1 - math.exp(-0.205))
    assert (
        "| better: −19 ± " in lines[3]
        and round(change) == 19
        and "than" not in lines[3]
        and "bits |" not in lines[3]
    )
    assert "can't tell: +0 ± 0 %, +0.25 bits (than GPTQ, 4 bits, group 64)" in lines[4]


def test_two_broken_models_are_not_compared():
    """Half the perplexity of a model that knows nothing is no merit of a method."""
    rows = {"rtn --bits 2": "", "gptq --bits 2": "rtn --bits 2"}
    for low, said in ((9.3, "both broken"), (9.0, "better: ")):  # e^9.2 = 10,000
        measured = {
            "rtn --bits 2": [result("rtn --bits 2", [13.0, 13.1, 13.2])],
            "gptq --bits 2": [result("gptq --bits 2", [low, low + 0.11, low + 0.19])],
        }
        assert said in overview.recipes_table(rows, measured).splitlines()[-1]


def test_a_control_of_several_seeds_is_paired_seed_by_seed():
    ours = [result("llm_pruner --removed 0.25", [4.0, 4.2])]
    draws = [result(gates.CHANCE, [5.0 + 0.1 * i, 5.2 + 0.1 * i], seed=i) for i in range(5)]
    found = overview.beside(ours, draws)
    assert found.freedom == 4 and found.mean == pytest.approx(-1.2)
    assert found.stderr == pytest.approx(0.1 * math.sqrt(2.5 / 5)), (
        "the spread of the draws, not of the windows"
    )


def test_a_recipe_that_is_not_measured_leaves_no_row_and_its_pupils_no_verdict():
    rows = {"rtn --bits 4": "", "gptq --bits 4": "rtn --bits 4"}
    lines = overview.recipes_table(
        rows, {"gptq --bits 4": [result("gptq --bits 4", [3.0, 3.1])]}
    ).splitlines()
    assert len(lines) == 3 and "better" not in lines[2] and "tell" not in lines[2]


@pytest.mark.parametrize(
    "ours, control, said",
    [
        ([3.0, 3.0, 3.02], [2.0, 1.9, 2.1], "not better: +170 ± 61 %"),
        ([9.0, 9.0, 9.1], [2.0, 1.9, 2.1], "not better: × 1,100"),
        ([2.0, 1.9, 2.1], [9.0, 9.0, 9.1], "better: ÷ 1,100"),
        ([2.0], [3.0], "can't tell: −63 %"),
    ],
)
def test_changes_are_told_as_people_read_them(ours, control, said):
    assert Words("en").verdict(paired(ours, control)) == said
    assert Words("zh-Hant").verdict(paired(ours, control)) != said


def test_the_card_of_a_training_says_whether_it_pays():
    """Beside the run without it always; beside the control where that differs in the method alone."""
    curve = {"training": [[0, 3.0, 3.0], [1, 2.5, 2.6]]}
    before, after = [3.2, 3.31, 3.09, 3.42], [3.0, 3.1, 2.9, 3.2]
    mended, cut = result("wanda --sparsity 0.5 + lora", after), result("wanda --sparsity 0.5", before)
    mended.series.update(curve)
    card = run_card(Words("en"), mended, relatives={"without": cut, "control": None}, **SEEN)
    assert "window by window" not in card, "no figure of the run without the training"
    cut.metrics["perplexity_ratio"] = 2.0
    assert "beside the same without it, window by window: better: −19 ± " in run_card(
        Words("en"), mended, relatives={"without": cut}, **SEEN
    )
    cut.series["window_losses"] = before[:3]
    assert "window by window" not in run_card(Words("en"), mended, relatives={"without": cut}, **SEEN), (
        "other windows can't be paired"
    )

    worst, bad = (
        result("wanda --sparsity 0.9", [12.0, 12.1]),
        result("wanda --sparsity 0.9 + lora", [9.4, 9.5]),
    )
    bad.series.update(curve)
    worst.metrics["perplexity_ratio"] = 5000.0
    card = run_card(Words("en"), bad, relatives={"without": worst}, **SEEN)
    assert "window by window: both broken" in card, "e^9.21 = 10,000: neither says anything of the training"

    student, supervised = result("gkd", before), result("gkd --objective supervised", after)
    student.series.update(curve)
    for each in (student, supervised):
        each.metrics["perplexity_ratio"] = 1.2
    card = run_card(Words("en"), student, relatives={"control": supervised}, **SEEN)
    assert "Beside the control, window by window: not better: +23 ± " in card


def test_a_rate_belongs_to_what_is_stored_however_long_it_was_trained():
    assert overview.timed_as("qlora --rank 4 --train_tokens 16384 --train_minutes 120") == "qlora --rank 4"
    assert overview.timed_as("llm_qat --kv_bits 4 --train_tokens 0") == "llm_qat --kv_bits 4 --train_tokens 0"


def test_a_name_tells_a_budget_even_where_it_is_the_usual_one():
    words = Words("en")
    short, usual = (dict(get("lora").params.parse({"train_tokens": n}).json()) for n in (1_024, 32_768))
    assert words.settings("lora", usual) == ["training tokens 32,768"] and words.settings("lora", short) == [
        "training tokens 1,024"
    ]

"""The full budgets: one for every method that trains, of values that the method takes."""

from __future__ import annotations

import pytest

import compression
from compression.base import BUDGET_MINUTES, BadParam, TrainingMethod
from evaluation.commands.run import request, split

TRAINING = {
    name
    for name in compression.NAMES
    if isinstance(m := compression.get(name), TrainingMethod) or "distill_steps" in m.params().json()
}


def test_every_method_that_trains_has_one_and_no_other():
    assert {name for name in compression.NAMES if compression.get(name).full} == TRAINING


@pytest.mark.parametrize("name", sorted(TRAINING))
def test_a_method_takes_its_full_budget_and_it_is_the_larger_one(name):
    params, declared = compression.get(name).params, compression.get(name).full
    short, full = params.parse({}).json(), params.parse(declared).json()
    assert {k: full[k] for k in declared} == declared
    assert "train_tokens" not in short or declared["train_minutes"] == BUDGET_MINUTES, "its tokens end it"
    spent = "train_tokens" if "train_tokens" in short else "distill_steps"
    assert full[spent] > 100 * short[spent]
    assert full.get("prompt_tokens", 0) + full.get("response_tokens", 0) <= 512, (
        "fits a window of the presets"
    )


@pytest.mark.parametrize(
    "name", sorted(n for n in TRAINING if "warm_up" in compression.get(n).params().json())
)
def test_a_full_budget_warms_a_broken_student_up_by_steps_of_their_own(name):
    """The authors' step sizes are for students that know the language."""
    declared = compression.get(name).full
    assert declared["warm_up_rate"] >= 2 * declared["learning_rate"] and 0 < declared["warm_up"] < 0.5


def test_the_command_line_takes_it_and_a_flag_of_ones_own_wins():
    spec = request(*split(["qlora", "--rank", "32", "--budget", "full"]))
    _, values = spec.recipe[0]
    assert (values["rank"], values["learning_rate"], values["train_tokens"]) == (32, 2e-4, 15_840_000)
    assert request(*split(["qlora", "--budget", "short"])) == request(*split(["qlora"]))
    chain = request(*split(["wanda", "--sparsity", "0.5", "+", "lora", "--budget", "full"]))
    assert chain.recipe[0] == request(*split(["wanda", "--sparsity", "0.5"])).recipe[0]
    assert chain.recipe[1][1]["train_tokens"] == 25_600_000


@pytest.mark.parametrize(
    ("line", "said"), [("qlora --budget huge", "short, full"), ("rtn --budget full", "methods that train")]
)
def test_what_has_no_such_budget_is_told_why(line, said):
    with pytest.raises(BadParam, match=said):
        split(line.split())

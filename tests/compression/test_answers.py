"""Answers in texts of dialogues: found by their headings whatever the tokenizer, and counted alone."""

from __future__ import annotations

import pytest
import torch

from compression import calibrate, get
from compression.answers import Answers
from compression.base import CalibrationError
from compression.training import language_loss
from tests import tiny
from tests.tokenizers_of_kinds import make

OASST = "### Human: Why? ### odd\n### Assistant: Because é.\n\nSo.### Human: And?### Assistant: No."
ALPACA = "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n3"
ANSWERED = {OASST: [" Because é.\n\nSo.", " No."], ALPACA: ["\n3"]}


def answered(tokenizer, text):
    """The runs of counted tokens of a text, as they are written, and all its token ids."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    answers = Answers(tokenizer)
    counted, runs = [False, *answers.counted(torch.tensor([ids]))[0].tolist()], [""]
    for i, mine in zip(ids, counted, strict=True):
        runs += [""] if not mine and runs[-1] else []
        runs[-1] += answers.piece(i) if mine else ""
    return [r for r in runs if r], ids


@pytest.mark.parametrize("text", [OASST, ALPACA])
def test_answers_are_what_follows_their_heading(text):
    runs, _ = answered(tiny.tokenizer(), text)
    assert [r.replace("\ufffd\ufffd", "é") for r in runs] == ANSWERED[text]


# the others' small vocabularies can't write a heading
@pytest.mark.parametrize("kind", ["bytes with merges", "byte fallback"])
def test_every_kind_of_tokenizer_tells_its_answers(kind):
    text = "### Human: a word\n### Assistant: naive na\n### Human: words"
    runs, ids = answered(make(kind), text)
    assert "".join(map(Answers(make(kind)).piece, ids)) == text and runs == [" naive na\n"]


def test_a_window_that_begins_within_a_part_is_told_by_its_first_heading():
    tokenizer = tiny.tokenizer()
    for text, expected in (
        ("of it. ### Human: b", ["f it. "]),
        ("of it. ### Assistant: b", [" b"]),
        ("no heading", []),
        ("Add. ### Input: b", []),
    ):
        assert answered(tokenizer, text)[0] == expected


def dialogues(n=64, window=64):
    """Windows of byte tokens: a question with letters at random, an answer that can be learned."""
    g, rows = torch.Generator().manual_seed(0), []
    for _ in range(n):
        asked = "".join(chr(97 + int(i)) for i in torch.randint(26, (16,), generator=g))
        rows.append(tiny.tokenizer()(f"### Human: {asked}### Assistant: {'xyz' * 30}")["input_ids"][:window])
    return torch.tensor(rows)


def test_the_loss_is_the_mean_over_answers():
    bundle, ids = tiny.bundle(), dialogues(3)
    counted = Answers(bundle.tokenizer).counted(ids)
    chances = tiny.logits(bundle, ids)[:, :-1].log_softmax(-1)
    each = [-float(chances[i, t, ids[i, t + 1]]) for i in range(3) for t in range(63) if counted[i, t]]
    assert len(each) == 3 * (64 - len("### Human: ") - 16 - len("### Assistant:"))
    with torch.no_grad():
        assert float(language_loss(bundle, ids, counted)) == pytest.approx(sum(each) / len(each), rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_training_on_answers_judges_by_answers(method):
    ids, bundle = dialogues(), tiny.bundle()
    values = {"rank": 2, "train_tokens": 4_000, "learning_rate": 0.02, "answers_only": True}
    values |= {"group_size": 16} if method == "qlora" else {}
    outcome = calibrate.compress(bundle, [(get(method), get(method).params.parse(values))], ids)
    facts = next(n.facts for n in outcome.notes if n.code == "trained")
    held = ids[7::8]
    with torch.no_grad():
        found = float(language_loss(bundle, held, Answers(bundle.tokenizer).counted(held)))
    assert facts["best"] < 0.95 * facts["before"] and found == pytest.approx(facts["best"], rel=2e-3)


def test_a_text_without_answers_is_refused():
    values = {"rank": 2, "train_tokens": 500, "answers_only": True}
    with pytest.raises(CalibrationError, match="### Assistant:"):
        calibrate.compress(tiny.bundle(), [(get("lora"), get("lora").params.parse(values))], tiny.ids(8))

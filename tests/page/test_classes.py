"""Classes: who may see what and when, and that nothing grows without bound."""

from __future__ import annotations

import pytest

from evaluation.page import classes as of
from evaluation.page.classes import Classes, ClassError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def made(clock):
    return Classes(clock)


def test_guesses_are_the_teachers_until_the_answer_is_shown(made):
    code, key = made.open()
    made.guess(code, "member-one", "rounding", 40.0)
    made.guess(code, "member-two", "rounding", 90.0)
    assert made.look(code, "rounding")["guesses"] == []
    assert made.look(code, "rounding", "not the key")["guesses"] == []
    assert made.look(code, "rounding", key)["guesses"] == [40.0, 90.0]
    made.lead(code, key, "rounding", show=True)
    seen = made.look(code, "rounding")
    assert (seen["guesses"], seen["shown"], seen["members"]) == ([40.0, 90.0], ["rounding"], 2)


def test_a_later_guess_replaces_an_earlier_one_and_none_comes_after_the_answer(made):
    code, key = made.open()
    made.guess(code, "member", "gptq", [2, 0, 1])
    made.guess(code, "member", "gptq", [0, 1, 2])
    made.lead(code, key, "gptq", show=True)
    made.guess(code, "member", "gptq", [2, 1, 0])
    made.guess(code, "late", "gptq", [2, 1, 0])
    assert made.look(code, "gptq")["guesses"] == [[0, 1, 2]]


def test_only_the_teacher_leads_and_ends(made):
    code, key = made.open()
    other, other_key = made.open()
    for wrong in ("", other_key, key[:-1]):
        with pytest.raises(ClassError) as raised:
            made.lead(code, wrong, "sum", show=True, close=True)
        assert raised.value.code == "class_key"
    assert made.look(code)["lesson"] == ""
    made.lead(code, key, "sum")
    assert made.look(code)["lesson"] == "sum"
    made.lead(code, key, close=True)
    with pytest.raises(ClassError) as raised:
        made.look(code)
    assert raised.value.code == "class_unknown"
    made.look(other)


def test_a_class_is_gone_after_a_day(made, clock):
    code, _ = made.open()
    clock.now = of.DAY - 1
    made.look(code)
    clock.now = of.DAY
    with pytest.raises(ClassError):
        made.guess(code, "member", "sum", 1.0)
    assert not made._classes  # and so is what was kept of it


def test_members_lessons_and_classes_have_limits(made, clock, monkeypatch):
    monkeypatch.setattr(of, "MEMBERS", 3)
    monkeypatch.setattr(of, "CLASSES", 2)
    monkeypatch.setattr(of, "LESSONS", 2)
    code, _ = made.open()
    for i in range(3):
        made.guess(code, f"member-{i}", "sum", 1.0)
    with pytest.raises(ClassError) as raised:
        made.guess(code, "member-3", "sum", 1.0)
    assert raised.value.code == "class_full"
    with pytest.raises(ClassError):
        made.look(code, member="member-4")
    made.look(code)  # whoever only looks is no member
    made.guess(code, "member-0", "gptq", 1.0)
    with pytest.raises(ClassError) as raised:
        made.guess(code, "member-0", "third", 1.0)
    assert raised.value.code == "classes_full"
    made.open()
    with pytest.raises(ClassError) as raised:
        made.open()
    assert raised.value.code == "classes_full"
    clock.now = of.DAY  # old ones make room
    made.open()


def test_nothing_of_a_member_is_kept_but_a_hash(made):
    code, key = made.open()
    made.guess(code, "a-secret-of-a-browser", "sum", 2.0)
    kept = repr(made._classes)
    assert "a-secret-of-a-browser" not in kept and key not in kept
    assert set(code) <= set(of.LETTERS) and len(code) == of.LENGTH

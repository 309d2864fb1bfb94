"""Records by which a distillation is judged: values of the quantity that it optimises, question by question.

Perplexity on a text says little about a student that learnt to write as its teacher would (MiniLLM, GKD), to
read demonstrations, to explain, or to follow instructions. So such a method returns a `Judged` for each
measure. A `Judged` has a value for each question (or for each sample that the student writes): before the
training, after it, and for the control, which differs in one thing. All values are in one order, so that
evaluation/measuring/judging.py can compare them question by question.

    Judged("answers_right", questions_id(texts), before=(0, 1), after=(1, 1), control=(0, 1), chance=0.5)

`MEASURES` declares every measure: its unit, its direction, and whether a value belongs to a question or to a
sample. Its words stand in assets/i18n under `metric.<key>`, because the mean of the values is a figure of the
result. A model is judged as its training leaves it, in float32, before any of its weights is rounded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Measure:
    """One quantity that methods optimise.

    unit: "nats" (a token), "share" (0 to 1), or "points" (a difference of shares, -1 to 1). asks: what one
    value belongs to. axis: offered as an axis of the front. original: the uncompressed model's value, if its
    definition fixes it (the KL divergence of a model from itself is 0). instead: the measure that the control
    has in place of this one.
    """

    key: str
    unit: Literal["nats", "share", "points"]
    better: Literal["low", "high"]
    asks: Literal["questions", "samples"] = "questions"
    axis: bool = False
    original: float | None = None
    instead: str = ""


MEASURES: dict[str, Measure] = {
    m.key: m
    for m in (
        # GKD and MiniLLM: KL(student || teacher) on texts that the student writes
        Measure("own_reverse_kl", "nats", "low", asks="samples", axis=True, original=0.0),
        # in-context distillation: the share of right labels with demonstrations less the share without
        Measure("demonstration_gain_alike", "points", "high"),
        Measure("demonstration_gain_others", "points", "high"),
        # MT-CoT: exact match when the answer is asked for, and when the explanation is. A control without
        # explanations can only be asked for the answer
        Measure("answers_right", "share", "high"),
        Measure("explained_right", "share", "high", instead="answers_right"),
        # Lion: ROUGE-L with the right answers to kept-aside instructions, and with the teacher's answers
        Measure("instructions_overlap", "share", "high"),
        Measure("teacher_agreement", "share", "high"),
    )
}


@dataclass(frozen=True)
class Judged:
    """A value for each of n questions, in one order.

    measure: a key of `MEASURES`. asked: a name for the questions (`questions_id`); the values of two runs
    with equal names are pairs. before, after: [n], before and after the method's training. control: [n], the
    control that was trained in the same run; () if there is none. clusters: [n], questions with equal numbers
    belong together, for example samples that continue one prompt; () if each question stands alone. chance:
    the mean that guessing gives; None if there is no such level.

    Raises ValueError for an unknown measure, for no question, for lists of different lengths, and for a
    number that isn't finite.
    """

    measure: str
    asked: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    control: tuple[float, ...] = ()
    clusters: tuple[int, ...] = ()
    chance: float | None = None

    def __post_init__(self):
        if self.measure not in MEASURES:
            raise ValueError(f"no measure {self.measure!r}; allowed: {', '.join(MEASURES)}")
        for name in ("before", "after", "control", "clusters"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        n = len(self.after)
        lengths = [len(self.before), n, len(self.control) or n, len(self.clusters) or n]
        if not n or set(lengths) != {n}:
            raise ValueError(f"{self.measure} has lists of {lengths} values; all need one length, at least 1")
        numbers = (*self.before, *self.after, *self.control, self.chance or 0.0)
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{self.measure} has a number that isn't finite")

    def json(self) -> dict[str, Any]:
        """As JSON; `parse` reads it. Numbers have six digits."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {k: [_short(x) for x in v] for k, v in out.items() if isinstance(v, tuple)}
        return out | lists | {"clusters": list(self.clusters)}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Judged:
        return cls(**values)


def _short(x: float) -> float:
    return float(f"{x:.6g}")


def questions_id(*parts: Any) -> str:
    """A name for what was asked: equal for equal parts (texts, token ids, seeds, lengths)."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def best_guess(kinds: Sequence[str], answers: Iterable[str]) -> float:
    """The share of right answers if all questions of a kind get the constant answer that suits the kind best.

    kinds, answers: the kind and the right answer of each question, in one order.
    """
    counts: dict[str, dict[str, int]] = {}
    for kind, answer in zip(kinds, answers, strict=True):
        of = counts.setdefault(kind, {})
        of[answer] = of.get(answer, 0) + 1
    return sum(max(of.values()) for of in counts.values()) / len(kinds)

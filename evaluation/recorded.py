"""Answers that were recorded once, so that a visitor can read them before any model is made.

`python -m evaluation answers` (evaluation/benches/answers.py) writes assets/answers.json, and the chat's tab
reads it. Each shipped point answers the same prompts greedily, by the code that the live chat runs. So a chat
with the same model, made on this machine, gives the same answers, up to the rounding of another processor.

The file: {"points": {result id: point}}. A point has "date", "commit", "asked" (a hash of the prompts and
settings), "witness" (a hash of its result's witness) and "answers": {prompt's name: {"text", "tokens" (ids),
"ends" (where each token ends in the text, in characters), "ended" (by the model itself)}}.

A point is fresh while prompts and settings are those of today, and while its result has the witness that it
had when the answers were recorded. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation import ROOT
from evaluation.spec import Result

FILE = ROOT / "assets" / "answers.json"
SETTINGS = {"max_tokens": 60, "temperature": 0.0, "seed": 0}  # greedy


@dataclass(frozen=True)
class Prompt:
    """A question that every point answers; its label on the page is the string `prompt.<name>`."""

    name: str
    text: str


PROMPTS = (
    Prompt("capital", "What is the capital of France?"),
    Prompt("sum", "What is 17 + 25?"),
    Prompt("list", "List five animals that can fly."),
    Prompt("code", "Write a Python function that returns the sum of two numbers."),
    Prompt("story", "Tell a short story about a lighthouse."),
    Prompt("taiwan", "用一句話介紹台灣。"),
    Prompt("gravity", "Explain gravity to a child in one sentence."),
    Prompt("opposite", "What is the opposite of hot?"),
    Prompt("rewrite", "Rewrite politely: Give me the book now."),
    Prompt("seasons", "一年有哪四個季節？"),
    Prompt("water", "Why do we need to drink water?"),
    Prompt("spell", "Spell the word 'computer' backwards."),
)


def read() -> dict[str, Any]:
    """The recorded points by their result's id; {} if nothing was recorded."""
    return json.loads(FILE.read_text("utf-8"))["points"] if FILE.is_file() else {}


def asked(prompts: Sequence[Prompt] = PROMPTS, settings: Mapping[str, Any] = SETTINGS) -> str:
    """A hash of the questions, and of how they were asked."""
    return _hash([[[p.name, p.text] for p in prompts], dict(settings)])


def witnessed(result: Result) -> str:
    """A hash of a result's witness: it changes when the result is measured again with other code."""
    return _hash(result.witness)


def why_stale(point: Mapping[str, Any] | None, result: Result | None) -> str:
    """Why a point has to be recorded (again); "" if it is fresh. `result`: what ships under its id."""
    if point is None:
        return "not recorded yet"
    if point["asked"] != asked():
        return "the prompts or their settings changed"
    if result is None:
        return "its result doesn't ship any more"
    return "" if point["witness"] == witnessed(result) else "its result was measured again with other code"


def parted(a: Sequence[int], b: Sequence[int], a_done: bool = True, b_done: bool = True) -> int | None:
    """Index of the first token on which two answers differ; None while they agree.

    An answer that has ended differs from one that goes on. a_done, b_done: no more tokens will come.
    """
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    shorter_done = a_done if len(a) < len(b) else b_done
    return min(len(a), len(b)) if len(a) != len(b) and shorter_done else None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]

"""A teacher that only answers in words, as black-box distillation sees a model.

`ask` takes strings and gives strings: no logits, no hidden states, no tokenizer. Beside it there are only
three counters. Answers are kept by the question and the teacher, so that a question is answered only once.
The questions and answers of a training are saved beside the student (`teacher_cache.jsonl`). A `Replay` of
that file trains the same student without the teacher.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from compression.base import CalibrationError
from compression.bundle import Bundle
from compression.models import home
from compression.recorder import QUIET, Recorder

ORACLE = "oracle text teacher"


class Answers(Protocol):
    """What a black-box method can use of its teacher."""

    calls: int  # prompts that were answered anew
    tokens: int  # tokens that were written for them
    hits: int  # prompts whose answer was known already

    def ask(
        self,
        prompts: Sequence[str],
        count: int = 1,
        temperature: float = 0.0,
        new_tokens: int = 64,
        seed: int = 0,
        recorder: Recorder = QUIET,
    ) -> list[list[str]]:
        """`count` answers of at most `new_tokens` tokens to each prompt. temperature 0: the likeliest."""


def row(name: str, asked: Mapping, texts: Sequence[str]) -> dict:
    """One line of a transcript.

    It has the teacher's name, the question (prompt, count, temperature, new_tokens, seed) and the answers.
    """
    return {"key": key(asked), "teacher": name} | dict(asked) | {"texts": list(texts)}


def key(asked: Mapping) -> str:
    """Equal for equal questions."""
    return hashlib.sha256(json.dumps(dict(asked), sort_keys=True).encode()).hexdigest()[:24]


class _Known:
    """A teacher that first looks among known answers; `_answer` writes the missing ones."""

    def __init__(self):
        self._rows: dict[str, dict] = {}
        self.calls = self.tokens = self.hits = 0

    def ask(
        self, prompts, count=1, temperature=0.0, new_tokens=64, seed=0, recorder=QUIET
    ) -> list[list[str]]:
        """`count` answers of at most `new_tokens` tokens to each prompt, in the prompts' order.

        temperature 0: the likeliest. Raises Cancelled, and CalibrationError for a prompt that is too long or
        an answer that isn't there.
        """
        how = {"count": count, "temperature": temperature, "new_tokens": new_tokens, "seed": seed}
        questions = [{"prompt": prompt} | how for prompt in prompts]
        new = {key(q): q for q in questions if key(q) not in self._rows}
        self.hits += len(questions) - len(new)
        if new:
            self._answer(list(new.values()), recorder)
        return [list(self._rows[key(q)]["texts"]) for q in questions]

    def _answer(self, questions: list[dict], recorder: Recorder) -> None:
        raise NotImplementedError


class TextTeacher(_Known):
    """A model that answers. Its answers are kept in a file under the program's home."""

    def __init__(self, bundle: Bundle, store: Path | None = None):
        """store: the file of kept answers; default: one for these weights."""
        super().__init__()
        self._bundle, self._name = bundle, bundle.source.get("weights_hash") or bundle.name
        self._file = (
            store or home() / "teachers" / f"{hashlib.sha256(self._name.encode()).hexdigest()[:20]}.jsonl"
        )
        if self._file.is_file():
            self._rows = {r["key"]: r for r in _lines(self._file.read_bytes())}

    def _answer(self, questions, recorder) -> None:
        from compression.replies import TOGETHER, write

        how = {name: value for name, value in questions[0].items() if name != "prompt"}
        # prompts of equal length are answered together
        questions = sorted(questions, key=lambda q: len(q["prompt"]))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(questions), 4 * TOGETHER):  # written at once, so that stopping loses little
            some = questions[start : start + 4 * TOGETHER]
            for question, texts in zip(
                some, write(self._bundle, [q["prompt"] for q in some], recorder=recorder, **how), strict=True
            ):
                self.calls, self.tokens = self.calls + 1, self.tokens + sum(t.tokens for t in texts)
                found = row(self._name, question, [t.text for t in texts])
                self._rows[found["key"]] = found
                # one write, since another program may add to the file too
                with self._file.open("ab", buffering=0) as file:
                    file.write(json.dumps(found, ensure_ascii=False).encode() + b"\n")


def _lines(kept: bytes) -> list[dict]:
    """The answers in a file. An unfinished last line, left by a process that was killed, is skipped."""
    found = []
    for line in kept.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("key"), str) and isinstance(row.get("texts"), list):
            found.append(row)
    return found


class OracleTeacher(_Known):
    """A text teacher that is a program which knows the right answers, not a model.

    `tokens` counts its words.
    """

    def __init__(self, answer: Callable[[str], str]):
        """answer: prompt -> text."""
        super().__init__()
        self._rule = answer

    def _answer(self, questions, recorder) -> None:
        for question in questions:
            texts = [self._rule(question["prompt"])] * question["count"]
            self.calls, self.tokens = self.calls + 1, self.tokens + sum(len(t.split()) for t in texts)
            self._rows[key(question)] = row(ORACLE, question, texts)


class Replay(_Known):
    """Answers from a saved transcript and from nowhere else."""

    def __init__(self, transcript: bytes):
        super().__init__()
        self._rows = {r["key"]: r for r in map(json.loads, transcript.decode().splitlines())}

    def _answer(self, questions, recorder) -> None:
        raise CalibrationError(
            f"the transcript has no answer to {questions[0]['prompt'][:60]!r}", code="not_in_transcript"
        )


class Interview:
    """A teacher and the record of what it was asked: all that a black-box method gets of it."""

    def __init__(self, teacher: Answers, name: str, recorder: Recorder = QUIET):
        """name: the teacher's name in the record."""
        self._teacher, self._name, self._recorder = teacher, name, recorder
        self._record: dict[str, dict] = {}

    def ask(
        self,
        prompts: Sequence[str],
        count: int = 1,
        temperature: float = 0.0,
        new_tokens: int = 64,
        seed: int = 0,
    ) -> list[list[str]]:
        """As `Answers.ask`."""
        how: dict[str, Any] = {
            "count": count,
            "temperature": temperature,
            "new_tokens": new_tokens,
            "seed": seed,
        }
        out = self._teacher.ask(list(prompts), recorder=self._recorder, **how)
        for prompt, texts in zip(prompts, out, strict=True):
            found = row(self._name, {"prompt": prompt} | how, texts)
            self._record.setdefault(found["key"], found)
        return out

    def counts(self) -> dict[str, int]:
        """{"calls", "tokens", "hits"}."""
        return {name: getattr(self._teacher, name) for name in ("calls", "tokens", "hits")}

    def transcript(self) -> bytes:
        """Questions and answers in the order of the questions, one JSON object on each line."""
        return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in self._record.values()).encode()

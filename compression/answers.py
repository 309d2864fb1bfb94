"""Finds the answers in a text of dialogues or instructions, so that a training can count those tokens alone.

Parts of a dialogue begin with a heading, as in the texts that QLoRA's authors train on: `### Human:` and `###
Assistant:` (OpenAssistant), `### Instruction:`, `### Input:` and `### Response:` (Alpaca). An answer is what
follows `### Assistant:` or `### Response:`, up to the next heading.

A window may begin in the middle of a part. `### Human:` and `### Instruction:` follow an answer. So if one of
them is a window's first heading, the text before it counts as an answer; before any other heading it doesn't.
In a window without a heading no answer can be found.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from compression.base import CalibrationError

HEADING = re.compile(r"### (Human|Instruction|Input|Assistant|Response):")
# headings of answers; headings of the parts that follow an answer
ANSWERS, OPENINGS = ("Assistant", "Response"), ("Human", "Instruction")
# a token is written out after this letter, since some tokenizers drop a space at the start of a text
ANCHOR = "a"


class Answers:
    """Finds answers in windows of one tokenizer's ids. It remembers the letters of each token."""

    def __init__(self, tokenizer):
        self.tokenizer, self.pieces = tokenizer, {}
        self.anchor = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
        self.before = len(self._written([]))

    def _written(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            [*self.anchor, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def piece(self, i: int) -> str:
        """The letters of a token; a token that is a part of a character counts as one letter."""
        if i not in self.pieces:
            self.pieces[i] = self._written([i])[self.before :]
        return self.pieces[i]

    def counted(self, ids: Tensor) -> Tensor:
        """ids [n, window] -> bool [n, window - 1]: is the token that is predicted here part of an answer?"""
        return torch.tensor([self._window(row) for row in ids.tolist()], dtype=torch.bool, device=ids.device)[
            :, 1:
        ]

    def _window(self, ids: list[int]) -> list[bool]:
        pieces, starts, at = [self.piece(i) for i in ids], [], 0
        for piece in pieces:
            starts.append(at)
            at += len(piece)
        parts = [(m.start(), m.end(), m[1]) for m in HEADING.finditer("".join(pieces))]
        if not parts:
            return [False] * len(ids)
        inside = parts[0][2] in OPENINGS
        ends = [start for start, _, _ in parts[1:]] + [at]
        # answers: from the end of their heading to the next heading
        spans = [(0, parts[0][0])] * inside + [
            (end, then) for (_, end, name), then in zip(parts, ends, strict=True) if name in ANSWERS
        ]
        return [any(first <= start < last for first, last in spans) for start in starts]

    def windows(self, windows: Tensor) -> Tensor:
        """The windows, of [n, window], in which at least one token of an answer is predicted.

        Raises CalibrationError if there are none.
        """
        found = windows[self.counted(windows).any(1)]
        if not len(found):
            raise CalibrationError(
                "no answer in the calibration text: no window has a heading '### Assistant:' or '### "
                "Response:'. Give a text of dialogues with these headings, or count all tokens.",
                code="no_answers",
                got=len(windows),
            )
        return found

"""Lets a model answer many prompts at once.

Prompts of one length go through the model together. Every answer draws from a random stream of its own, so
that it doesn't depend on the answers that are written beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compression import sample
from compression.base import CalibrationError
from compression.bundle import Bundle
from compression.recorder import QUIET, Recorder

TOGETHER = 16  # answers that are written side by side


@dataclass(frozen=True)
class Written:
    """One answer, and how many tokens the model wrote for it, without the stop token."""

    text: str
    tokens: int


def prompt_text(tokenizer, prompt: str) -> str:
    """The prompt as the model reads it.

    It is a user's turn in the model's chat template, or plain text if the model has no template. Raises
    sample.PromptRefused if the template refuses it.
    """
    if not tokenizer.chat_template:
        return prompt
    return sample.templated(tokenizer, [{"role": "user", "content": prompt}])


def prompt_ids(tokenizer, prompt: str) -> list[int]:
    """Token ids of `prompt_text`.

    A template brings its own special tokens. A plain text gets those that the tokenizer adds.
    """
    return tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=not tokenizer.chat_template)[
        "input_ids"
    ]


@torch.no_grad()
def write(
    bundle: Bundle,
    prompts: Sequence[str],
    count: int = 1,
    temperature: float = 0.0,
    new_tokens: int = 64,
    seed: int = 0,
    recorder: Recorder = QUIET,
) -> list[list[Written]]:
    """`count` texts of at most `new_tokens` tokens after each prompt.

    temperature 0 takes the likeliest token.

    Raises Cancelled, and CalibrationError for a prompt that leaves no room.
    """
    stops = sample.stop_ids(bundle)
    rows = [
        (p, c, prompt_ids(bundle.tokenizer, prompt)) for p, prompt in enumerate(prompts) for c in range(count)
    ]
    rows.sort(key=lambda row: len(row[2]))
    out: list[list] = [[None] * count for _ in prompts]
    while rows:
        length = len(rows[0][2])
        now = [row for row in rows[:TOGETHER] if len(row[2]) == length]
        rows = rows[len(now) :]
        room = min(new_tokens, bundle.geometry.positions - length)
        if room < 1:
            raise CalibrationError(
                f"a prompt has {length} tokens; the model reads {bundle.geometry.positions}",
                code="prompt_too_long",
                got=length,
                allowed=bundle.geometry.positions,
            )
        streams = [torch.Generator().manual_seed(_stream(prompts[p], c, seed)) for p, c, _ in now]
        forward = sample.stepper(bundle, len(now), length + room)
        step = torch.tensor([ids for _, _, ids in now])
        said: list[list[int]] = [[] for _ in now]
        open_rows = set(range(len(now)))
        for _ in range(room):
            recorder.check("a model writes")
            logits = forward(step).float().cpu()
            if temperature > 0:
                chances = torch.softmax(logits / temperature, -1)
                chosen = torch.cat(
                    [torch.multinomial(c, 1, generator=g) for c, g in zip(chances, streams, strict=True)]
                )
            else:
                chosen = logits.argmax(-1)
            for i in list(open_rows):
                if int(chosen[i]) in stops:
                    open_rows.discard(i)
                else:
                    said[i].append(int(chosen[i]))
            if not open_rows:
                break
            step = chosen[:, None]
        for (p, c, _), tokens in zip(now, said, strict=True):
            out[p][c] = Written(
                bundle.tokenizer.decode(tokens, skip_special_tokens=True).strip(), len(tokens)
            )
    return out


def _stream(prompt: str, number: int, seed: int) -> int:
    return int(hashlib.sha256(f"{seed} {number} {prompt}".encode()).hexdigest()[:15], 16)

"""Makes a student's training data: pieces of text, or its own continuations of their beginnings (rollouts).

A rollout continues a prompt token by token at temperature 1; each model has its key-value cache. There is no
filter such as top-p, because a token that a filter removes would have a log-probability of minus infinity. A
rollout is drawn from the student's q, or from the mixture q~ = alpha p + (1 - alpha) q of teacher and
student, mixed as probabilities. Each token then has the weight w = q / q~, at most 1 / (1 - alpha). A rollout
ends at the first token that ends a text; this token still counts, and the ids after it never do. Which tokens
count follows from lengths, never from a padding id, because some models use one token for padding and end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.bundle import Bundle
from compression.divergences import logs
from compression.recorder import QUIET, Recorder
from compression.sample import transformers_stepper


@dataclass(frozen=True)
class Sequences:
    """Token ids [b, t]: a prompt of `prompt` tokens, then a response of lengths [b].

    The ids after the response mean nothing.
    """

    ids: Tensor
    prompt: int
    lengths: Tensor
    log_q: Tensor | None = None  # [b, t - prompt]: the drawn tokens' log-probability in the student then
    log_p: Tensor | None = None  # the same in the teacher
    weights: Tensor | None = None  # w = q / q~
    text: Tensor | None = None  # plain text [b, n] that is trained on too
    # the teacher's final hidden states of the tokens that count, if they are needed more than once
    teacher_states: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """[b, t - prompt]: whether a response token counts."""
        places = torch.arange(self.ids.shape[1] - self.prompt, device=self.ids.device)
        return places < self.lengths[:, None]

    @property
    def scored(self) -> Tensor:
        """[b, t - 1]: whether the token after this place counts."""
        before = torch.zeros(len(self.ids), self.prompt - 1, dtype=torch.bool, device=self.ids.device)
        return torch.cat([before, self.mask], 1)

    @property
    def targets(self) -> Tensor:
        """The tokens that count, [n] in the order of `scored`."""
        return self.ids[:, 1:][self.scored]

    def numel(self) -> int:
        """Tokens that a step trains on: prompts, responses, and the plain text."""
        return (
            len(self.ids) * self.prompt
            + int(self.lengths.sum())
            + (0 if self.text is None else self.text.numel())
        )


def given(ids: Tensor, prompt: int) -> Sequences:
    """Pieces of text [b, t] whose tokens after the first `prompt` count."""
    return Sequences(ids, prompt, torch.full((len(ids),), ids.shape[1] - prompt, device=ids.device))


def pieces(windows: Tensor, size: int) -> Tensor:
    """Windows [n, window] cut into pieces [n * k, size]; a remainder is dropped."""
    return windows.unfold(1, size, size).flatten(0, 1).contiguous()


@torch.no_grad()
def draw(
    student: Bundle,
    teacher: Bundle | None,
    prompts: Tensor,
    new_tokens: int,
    alpha: float,
    ends: frozenset[int],
    generator: torch.Generator,
    recorder: Recorder = QUIET,
) -> Sequences:
    """Continuations of prompts [b, n] by at most `new_tokens` tokens.

    teacher None: the student alone draws, and there is no `log_p`. generator: the source of randomness, on
    the processor. Raises Cancelled.
    """
    steppers = [transformers_stepper(b) for b in (student, teacher) if b is not None]
    width = min(b.geometry.vocabulary for b in (student, teacher) if b is not None)
    stops = torch.tensor(sorted(ends), dtype=torch.long)
    prompts = prompts.cpu()
    step, running, drawn, kept = prompts, torch.ones(len(prompts), dtype=torch.bool), [], []
    lengths = torch.zeros(len(prompts), dtype=torch.long)
    for _ in range(new_tokens):
        recorder.check("sampling")
        log_q, *others = [logs(forward(step)[:, :width].cpu()) for forward in steppers]
        q = log_q.exp()
        mixed = alpha * others[0].exp() + (1 - alpha) * q if others and alpha else q
        token = torch.multinomial(mixed, 1, generator=generator)
        at = [x.gather(1, token)[:, 0] for x in (log_q, *others)]
        kept.append((*at, (q.gather(1, token) / mixed.gather(1, token))[:, 0]))
        drawn.append(token)
        lengths += running
        running = running & ~torch.isin(token[:, 0], stops)
        step = token
        if not bool(running.any()):
            break
    device = student.device
    log_q, *log_p, weights = (torch.stack(parts, 1).to(device) for parts in zip(*kept, strict=True))
    ids = torch.cat([prompts, *drawn], 1).to(device)
    return Sequences(ids, prompts.shape[1], lengths.to(device), log_q, log_p[0] if log_p else None, weights)


def distinct(sequences: Sequences, n: int = 4) -> float:
    """Share of the responses' n-grams that are distinct.

    Near 1 the responses are varied; near 0 they are the same over and over.
    """
    rows = [
        r[:k].tolist()
        for r, k in zip(sequences.ids[:, sequences.prompt :], sequences.lengths.tolist(), strict=True)
    ]
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0

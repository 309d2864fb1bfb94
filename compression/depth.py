"""Measures how much each decoder block does, and chooses the blocks that stay when some have to go.

A block reads the hidden state h_i of each token and gives h_(i+1). Two measures say how far it turns them:

    influence of block i           1 - mean over tokens of cos(h_i, h_(i+1))                       (ShortGPT)
    distance over n blocks from l  mean over tokens of arccos(cos(h_l, h_(l+n))) / pi         (Gromov et al.)

A block that changes no direction has the influence 0. There are three orders. `influence` removes the blocks
with the lowest influence. `contiguous` measures the distance over each run of n neighbours, and removes the
run with the least. `angular` measures the distance over each block alone, and removes the lowest.

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv
2403.03853, equation 1. Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv
2403.17887, which takes the last token of each text alone; we take the mean over all tokens, because our texts
are few. The state behind the last block is taken before the final norm, since that norm stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compression.base import CalibrationError, Note
from compression.bundle import Bundle
from compression.inputs import follow, split
from compression.recorder import QUIET, Recorder

ORDERS = ("influence", "contiguous")
NOTES = {  # order -> the note that tells which blocks are gone
    "influence": "blocks_by_influence",
    "contiguous": "blocks_contiguous",
    "angular": "blocks_by_angle",
    "taylor": "blocks_by_gradient",
    "random": "blocks_by_chance",
}
MEASURED = 8_192  # tokens that the blocks are measured on, at most


def cosine(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of each token's two hidden states [..., hidden], float64 [...]."""
    return F.cosine_similarity(before.double(), after.double(), dim=-1).clamp(-1.0, 1.0)


def influence(before: Tensor, after: Tensor) -> Tensor:
    """How far a block turns each token's state, 0 to 2: `before` enters it and `after` leaves it."""
    return 1.0 - cosine(before, after)


def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """The angle between each token's two states as a share of half a turn, 0 to 1."""
    return torch.arccos(cosine(before, after)) / torch.pi


def spread(windows: Tensor, tokens: int = MEASURED) -> Tensor:
    """Some of windows [n, window], evenly spread: at most `tokens` tokens, but at least one window."""
    count = min(len(windows), max(1, tokens // windows.shape[1]))
    return windows[torch.arange(count) * len(windows) // count]


def over_blocks(
    bundle: Bundle,
    windows: Tensor,
    run: int,
    measure: Callable[[Tensor, Tensor], Tensor],
    recorder: Recorder = QUIET,
) -> Tensor:
    """Mean over all tokens of measure(h_l, h_(l+run)) for each start l, float64 [blocks - run + 1].

    One pass of the model over windows [n, window] of token ids. Of a batch only the last run + 1 states are
    held. Every window is full, so padding never counts. Raises CalibrationError where a state isn't finite.
    """
    total = torch.zeros(len(bundle.geometry.layers) - run + 1, dtype=torch.float64, device=bundle.device)
    if not len(windows):
        raise CalibrationError(
            "no window of calibration text; give at least 1", code="too_little_text", got=0, allowed=1
        )
    batches = list(split(windows))
    for done, ids in enumerate(batches):
        recorder.progress("compress", done, len(batches))
        recorder.check("measuring the blocks")
        held: deque[Tensor] = deque(maxlen=run + 1)

        def seen(number: int, states: Tensor, held: deque[Tensor] = held) -> None:
            held.append(states.detach())
            if number >= run:
                total[number - run] += measure(held[0], held[-1]).sum()

        follow(bundle, ids, seen)
    if not bool(torch.isfinite(total).all()):
        raise CalibrationError(
            "the hidden states on the calibration text are not finite; use another text",
            code="gram_not_finite",
        )
    return (total / windows.numel()).cpu()


def least(influences: Tensor, count: int) -> list[int]:
    """Numbers, rising, of the `count` blocks with the lowest influence [blocks]; of equal ones the first."""
    return sorted(torch.argsort(influences, stable=True)[:count].tolist())


def nearest(distances: Tensor, count: int) -> list[int]:
    """Numbers of the run of `count` blocks with the least distance [starts]; of equal runs the first."""
    start = int(torch.argmin(distances))
    return list(range(start, start + count))


@dataclass(frozen=True)
class Choice:
    """Which blocks stay and which go, and by which order they were chosen."""

    order: str
    kept: tuple[int, ...]
    gone: tuple[int, ...]

    def note(self) -> Note:
        """The note for the reader."""
        facts = {"gone": spans(self.gone), "count": len(self.gone), "of": len(self.gone) + len(self.kept)}
        return Note(NOTES[self.order], facts)


def choose(bundle: Bundle, windows: Tensor, count: int, order: str, recorder: Recorder = QUIET) -> Choice:
    """Which `count` blocks go by what they do to the hidden states: order influence, angular or contiguous.

    It is measured on windows [n, window] of token ids (`spread` of them).
    """
    some, total = spread(windows), len(bundle.geometry.layers)
    if not count:
        gone: list[int] = []
    elif order == "contiguous":
        gone = nearest(over_blocks(bundle, some, count, angular_distance, recorder), count)
    else:
        measure = {"influence": influence, "angular": angular_distance}[order]
        gone = least(over_blocks(bundle, some, 1, measure, recorder), count)
    return without(total, gone, order)


def without(total: int, gone: Sequence[int], order: str) -> Choice:
    """The choice that removes the blocks `gone` (rising) of `total`; `order` says how they were found."""
    return Choice(order, tuple(i for i in range(total) if i not in gone), tuple(gone))


def spans(numbers: Sequence[int]) -> str:
    """Rising numbers in words: [2, 3, 4, 8] -> "2-4, 8"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)

"""Times how fast the compressed model and the original answer, at batch 1 and in one process.

Each runs by its best path, and the original by transformers' own loop too. Rounds alternate between them, so
that a slow phase of the machine hits all. The figures are medians over rounds and steps. A round in which
other programs took the processors away is timed again; if that doesn't help, the result says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compression import engine
from compression.base import Note
from compression.bundle import Bundle
from compression.sample import fitted, stepper, transformers_stepper
from evaluation.host import WAITED, Watch, available_bytes
from evaluation.measuring.memory import resident_bytes
from kernels.bench import read_bandwidth

PROMPT_TOKENS, NEW_TOKENS, WARM_UPS, ROUNDS = 128, 17, 2, 3
DRIFT = 1.25  # between two rounds of the same model; a quiet machine stays below 1.1

# a function that starts a text: it returns a function from ids to the last token's logits
Begin = Callable[[], Callable[[Tensor], Tensor]]


def lengths(positions: int, available: int) -> tuple[int, int]:
    """(prompt tokens, new tokens) that are timed on a model of `positions` positions.

    (0, 0) if it can't be timed: a second new token must fit after the first.
    """
    prompt, new = fitted(positions, available, PROMPT_TOKENS, NEW_TOKENS)
    return (prompt, new) if new >= WARM_UPS else (0, 0)


def left_out(positions: int, available: int) -> list[Note]:
    """Notes on where the timing differs from its definition."""
    prompt, new = lengths(positions, available)
    if (prompt, new) == (PROMPT_TOKENS, NEW_TOKENS):
        return []
    return [
        Note("timing_shortened", {"prompt": prompt, "new": new})
        if new
        else Note("no_timing", {"positions": positions})
    ]


def ways(
    compressed: Bundle | None, original: Bundle, room: int = PROMPT_TOKENS + NEW_TOKENS
) -> dict[str, Begin]:
    """The models and paths that are timed over `room` tokens, by name.

    "compressed", "original" (16-bit weights), "original_float32" (if memory allows) and "transformers"
    (float32, its own loop). Where the decode step serves neither model, both run by transformers' loop.
    """
    found = {} if compressed is None else {"compressed": lambda: stepper(compressed, 1, room)}
    found["original"] = lambda: stepper(original, 1, room)
    if engine.serve(original):
        if available_bytes() > 1.5 * resident_bytes(original.module):  # its tiles take as much memory again
            wide = engine.decoder(original, torch.float32)
            found["original_float32"] = lambda: wide.session(1, room).run
        found["transformers"] = lambda: transformers_stepper(original)
    return found


@torch.no_grad()
def one_round(begin: Begin, prompt: Tensor, new_tokens: int = NEW_TOKENS) -> tuple[float, list[float]]:
    """(seconds to the first token, seconds of each later token) after a prompt [1, t]."""
    forward, ids, stamps = begin(), prompt, [time.perf_counter()]
    for _ in range(new_tokens):
        ids = forward(ids).argmax(-1).cpu()[:, None]
        stamps.append(time.perf_counter())
    steps = [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
    return steps[0], steps[1:]


@dataclass(frozen=True)
class Compared:
    """Timings of several models in turns.

    figures: metrics of each. waited: the largest share of a round that this process had to wait for a
    processor. drift: the slowest round of the original over its fastest (of the first, if there is none).
    """

    figures: dict[str, dict[str, float]]
    waited: float
    drift: float

    @property
    def disturbed(self) -> bool:
        """Whether other work ran meanwhile, so that the figures are too slow or uncertain."""
        return self.waited > WAITED or self.drift > DRIFT


def compare(
    named: dict[str, Begin],
    prompt: Tensor,
    rounds: int = ROUNDS,
    new_tokens: int = NEW_TOKENS,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Compared:
    """Time each in turns after `WARM_UPS` tokens each.

    While the rounds are disturbed, up to `rounds` more are taken, and the least disturbed count. tell: takes
    (parts that are done, all parts).
    """
    for begin in named.values():
        one_round(begin, prompt, WARM_UPS)
    taken: list[_Round] = []
    while len(taken) < rounds or (len(taken) < 2 * rounds and _result(taken, rounds, prompt).disturbed):
        watch, times = Watch(), {}
        for i, (name, begin) in enumerate(named.items(), 1):
            times[name] = one_round(begin, prompt, new_tokens)
            tell(min(len(taken), rounds - 1) * len(named) + i, rounds * len(named))
        taken.append(_Round(times, watch.waited()))
    return _result(taken, rounds, prompt)


@dataclass(frozen=True)
class _Round:
    times: dict[str, tuple[float, list[float]]]  # as `one_round` gives them
    waited: float

    @property
    def reference(self) -> float:
        """Seconds of the original's step; of the first way's, if there is no original."""
        return statistics.median(self.times.get("original", next(iter(self.times.values())))[1])


def _result(taken: list[_Round], rounds: int, prompt: Tensor) -> Compared:
    """The figures of the rounds that were disturbed least."""
    kept = sorted(taken, key=lambda r: (r.waited > WAITED, r.reference))[:rounds]
    figures = {
        name: summary(
            [r.times[name][0] for r in kept],
            [step for r in kept for step in r.times[name][1]],
            prompt.shape[1],
        )
        for name in kept[0].times
    }
    steps = [r.reference for r in kept]
    return Compared(figures, max(r.waited for r in kept), max(steps) / max(min(steps), 1e-12))


def share_of_limit(bundle: Bundle, seconds: float) -> dict[str, float]:
    """The share of this machine's memory bandwidth that a step of `seconds` used; {} without a decode step.

    Parts of a small model stay in the processor's cache, so its share can be more than 1.
    """
    if not (decoder := engine.serve(bundle)):
        return {}
    read = read_bandwidth()
    moved = decoder.bytes_per_token
    return {
        "read_gbytes_per_second": read / 1e9,
        "bytes_per_token": moved,
        "share_of_read_bandwidth": moved / seconds / read,
    }


def summary(first: list[float], later: list[float], prompt_tokens: int) -> dict[str, float]:
    """Metrics from the seconds to the first token and the seconds of each later token."""
    begin, step = statistics.median(first), statistics.median(later)
    return {
        "time_to_first_token_ms": 1e3 * begin,
        "time_per_output_token_ms": 1e3 * step,
        "prefill_tokens_per_second": prompt_tokens / begin,
        "decode_tokens_per_second": 1 / step,
    }


def device_name(bundle: Bundle) -> str:
    """ "cpu" or the GPU's name."""
    device = bundle.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

"""Times how fast the compressed model and the original answer, at batch 1 and in one process.

Each runs by its best path, and the original by transformers' own loop too. Rounds alternate between them, so
that a slow phase of the machine hits all. The figures are medians over rounds and steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from compression import engine
from compression.base import Note
from compression.bundle import Bundle
from compression.sample import fitted, stepper, transformers_stepper
from evaluation.host import available_bytes
from evaluation.measuring.memory import resident_bytes
from kernels.bench import read_bandwidth

PROMPT_TOKENS, NEW_TOKENS, WARM_UPS, ROUNDS = 128, 17, 2, 3

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
    """What is timed over `room` tokens, by name.

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


def compare(
    named: dict[str, Begin], prompt: Tensor, rounds: int = ROUNDS, new_tokens: int = NEW_TOKENS
) -> dict[str, dict[str, float]]:
    """The timings of each, measured in turns after `WARM_UPS` tokens each."""
    first: dict[str, list[float]] = {name: [] for name in named}
    later: dict[str, list[float]] = {name: [] for name in named}
    for begin in named.values():
        one_round(begin, prompt, WARM_UPS)
    for _ in range(rounds):
        for name, begin in named.items():
            start, steps = one_round(begin, prompt, new_tokens)
            first[name].append(start)
            later[name] += steps
    return {name: summary(first[name], later[name], prompt.shape[1]) for name in named}


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

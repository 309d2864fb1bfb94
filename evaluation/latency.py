"""How fast a model answers, batch 1: the same loop for the original and the compressed model, in one process.

Rounds alternate between the two, so that a slow phase of the machine hits both. Medians over rounds and steps.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from compression.bundle import Bundle
from compression.sample import generate

PROMPT_TOKENS, NEW_TOKENS, WARM_UPS, ROUNDS = 128, 17, 2, 2


def one_round(bundle: Bundle, prompt: Tensor, new_tokens: int = NEW_TOKENS) -> tuple[float, list[float]]:
    """(seconds to the first token, seconds of each later token) after a prompt [1, t]."""
    stamps = [time.perf_counter()]
    for _ in generate(bundle, prompt, new_tokens):
        stamps.append(time.perf_counter())
    steps = [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
    return steps[0], steps[1:]


def compare(bundles: dict[str, Bundle], prompt: Tensor, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Timings of each bundle, measured side by side after `WARM_UPS` tokens each."""
    first: dict[str, list[float]] = {name: [] for name in bundles}
    later: dict[str, list[float]] = {name: [] for name in bundles}
    for bundle in bundles.values():
        one_round(bundle, prompt, WARM_UPS)
    for _ in range(rounds):
        for name, bundle in bundles.items():
            begin, steps = one_round(bundle, prompt)
            first[name].append(begin)
            later[name] += steps
    return {name: summary(first[name], later[name], prompt.shape[1]) for name in bundles}


def summary(first: list[float], later: list[float], prompt_tokens: int) -> dict[str, float]:
    """Metrics from seconds to the first token and seconds per later token."""
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

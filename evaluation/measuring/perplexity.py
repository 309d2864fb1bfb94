"""Perplexity and other figures that follow from token losses.

Pure functions; losses are in nats, [windows, window - 1].
"""

from __future__ import annotations

import math

from torch import Tensor


def perplexity(losses: Tensor) -> tuple[float, float]:
    """(perplexity, standard error): exp of the mean of the windows' mean losses (the GPTQ papers' protocol).

    The error is that of the mean over windows, carried through exp (delta method); nan for a single window.
    """
    mean, error = mean_and_error(losses.double().mean(1))
    return _exp(mean), _exp(mean) * error


def ratio(losses: Tensor, baseline: Tensor) -> tuple[float, float]:
    """(perplexity divided by the original's, standard error), from paired windows.

    The error is much smaller than that of two separate perplexities.
    """
    mean, error = mean_and_error((losses.double() - baseline.double()).mean(1))
    return _exp(mean), _exp(mean) * error


def _exp(x: float) -> float:
    """e^x; infinite if no float holds it."""
    return math.inf if x > 709 else math.exp(x)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of the mean of values [n]."""
    spread = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), spread


def rate_and_error(hits: int, total: int) -> tuple[float, float]:
    """A share and its binomial standard error."""
    share = hits / total
    return share, math.sqrt(share * (1 - share) / total)


def bits_per_byte(losses: Tensor, scored_bytes: int) -> float:
    """Total loss in bits over the UTF-8 bytes of the predicted text: comparable across tokenizers."""
    return float(losses.double().sum()) / math.log(2) / scored_bytes

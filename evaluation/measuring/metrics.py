"""Declares the figures that a result has: for each its unit, its direction, and where its error stands.

Pure, and without torch. Rows are dicts as `Store.rows()` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compression.judged import MEASURES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """One figure of a result. Its name and explanation stand in assets/i18n under `metric.<key>`."""

    key: str
    kind: Literal["quality", "size", "time"]
    unit: Literal["bytes", "bits", "ratio", "share", "ms", "seconds", "rate", "tokens", "nats", "points", ""]
    better: Literal["low", "high"]
    axis: bool = False  # offered as an axis of the front
    log: bool = False
    error: str = ""  # the metric that holds its standard error
    original: float | None = None  # what the original has by definition


METRICS: dict[str, Metric] = {
    m.key: m
    for m in (
        Metric("perplexity_ratio", "quality", "ratio", "low", True, True, "perplexity_ratio_stderr", 1.0),
        Metric(
            "same_top_token_rate", "quality", "share", "high", True, False, "same_top_token_rate_stderr", 1.0
        ),
        Metric("kl_divergence_mean", "quality", "nats", "low", True, False, original=0.0),
        Metric("perplexity", "quality", "", "low", True, True, "perplexity_stderr"),
        Metric("next_token_accuracy", "quality", "share", "high", True, False, "next_token_accuracy_stderr"),
        Metric("bits_per_byte", "quality", "bits", "low", True),
        Metric("kl_divergence_median", "quality", "nats", "low", original=0.0),
        Metric("kl_divergence_p90", "quality", "nats", "low", original=0.0),
        Metric("kl_divergence_p99", "quality", "nats", "low", True, original=0.0),
        Metric("kl_divergence_max", "quality", "nats", "low", original=0.0),
        Metric("short_context_kl_divergence_mean", "quality", "nats", "low", original=0.0),
        Metric("short_context_same_top_token_rate", "quality", "share", "high", original=1.0),
        *(
            Metric(
                m.key, "quality", m.unit, m.better, m.axis, error=f"{m.key}_stderr", original=m.original
            )  # what methods optimise
            for m in MEASURES.values()
        ),
        Metric("repeat_rate", "quality", "share", "low"),
        Metric("first_difference_tokens", "quality", "tokens", "high"),
        Metric("file_bytes", "size", "bytes", "low", True),
        Metric("weight_bits_per_weight", "size", "bits", "low", True),
        Metric("model_bits_per_parameter", "size", "bits", "low", True),
        Metric("resident_weight_bytes", "size", "bytes", "low", True),
        Metric("peak_memory_bytes", "size", "bytes", "low", True),
        Metric("kv_cache_bytes_per_token", "size", "bytes", "low"),
        Metric("time_per_output_token_ms", "time", "ms", "low", True),
        Metric("time_to_first_token_ms", "time", "ms", "low", True),
        Metric("decode_tokens_per_second", "time", "rate", "high", True),
        # of the stored bench, against the original timed beside it (assets/speeds.json)
        Metric("decode_speedup", "time", "ratio", "high", True, original=1.0),
        Metric("prefill_tokens_per_second", "time", "rate", "high", True),
        Metric("compress_seconds", "time", "seconds", "low", True),
        Metric("evaluate_seconds", "time", "seconds", "low"),
        Metric("load_seconds", "time", "seconds", "low"),
        Metric("evaluated_tokens", "quality", "tokens", "high"),
    )
}
AXES = tuple(m.key for m in METRICS.values() if m.axis)
DEFAULT_X, DEFAULT_Y = "file_bytes", "perplexity_ratio"
WITHIN = 1.05  # "about as good": at most this times the original's perplexity


def value(row: Row, key: str) -> float | None:
    """A row's figure; None if it is missing. The original's comparison with itself is known by definition."""
    found = row.get(key)
    if isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found):
        return float(found)
    metric = METRICS.get(key)
    return metric.original if metric and row.get("family") == "original" else None


def present(row: Row, key: str) -> float:
    """A figure that the row surely has."""
    found = value(row, key)
    assert found is not None
    return found


def error(row: Row, key: str) -> float | None:
    """The standard error of a row's figure; None if there is none."""
    name = METRICS[key].error
    return value(row, name) if name else None


def better(key: str, a: float, b: float) -> bool:
    """True if `a` is strictly better than `b`."""
    return a < b if METRICS[key].better == "low" else a > b

"""The figures that a result has (METRICS), which direction is better, and which runs no other run beats.

Pure and without torch: rows are dicts as `Store.rows()` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Row = Mapping[str, object]


@dataclass(frozen=True)
class Metric:
    """One figure of a result. Its name and explanation stand in assets/i18n under `metric.<key>`."""

    key: str
    kind: Literal["quality", "size", "time"]
    unit: Literal["bytes", "bits", "ratio", "share", "ms", "seconds", "rate", "tokens", "nats", ""]
    better: Literal["low", "high"]
    axis: bool = False  # offered as an axis of the front
    log: bool = False
    error: str = ""  # the metric that holds its standard error
    original: float | None = None  # what the original has by definition


METRICS: dict[str, Metric] = {
    m.key: m
    for m in (
        Metric("perplexity_ratio", "quality", "ratio", "low", True, True, "perplexity_ratio_stderr", 1.0),
        Metric("same_top_token_rate", "quality", "share", "high", True, False, "same_top_token_rate_stderr", 1.0),
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
    """A row's figure, None when it is missing. The original's comparisons with itself hold by definition."""
    found = row.get(key)
    if isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found):
        return float(found)
    metric = METRICS.get(key)
    return metric.original if metric and row.get("family") == "original" else None


def error(row: Row, key: str) -> float | None:
    """The standard error of a row's figure, None when there is none."""
    name = METRICS[key].error
    return value(row, name) if name else None


def better(key: str, a: float, b: float) -> bool:
    """True if `a` is strictly better than `b`."""
    return a < b if METRICS[key].better == "low" else a > b


def front(rows: Iterable[Row], x: str, y: str) -> list[str]:
    """Ids of the rows that no other row beats, by x. A row is beaten by one that is no worse in both and better in one."""
    known = [(r, a, b) for r in rows if (a := value(r, x)) is not None and (b := value(r, y)) is not None]

    def beaten(a: float, b: float) -> bool:
        return any(not better(x, a, p) and not better(y, b, q) and (better(x, p, a) or better(y, q, b)) for _, p, q in known)

    return [str(r["id"]) for r, a, b in sorted(known, key=lambda k: k[1]) if not beaten(a, b)]


def smallest_within(rows: Iterable[Row], limit: float = WITHIN) -> Row | None:
    """The smallest compressed model whose perplexity is at most `limit` times the original's, errors not counted."""
    fit = [
        r for r in rows
        if r.get("family") != "original" and value(r, "file_bytes") and (value(r, "perplexity_ratio") or math.inf) <= limit
    ]  # fmt: skip
    return min(fit, key=lambda r: value(r, "file_bytes"), default=None)


def best_under(rows: Iterable[Row], budget_bytes: float) -> Row | None:
    """The model with the lowest perplexity among those whose file fits a budget."""
    fit = [
        r for r in rows
        if (value(r, "file_bytes") or math.inf) <= budget_bytes and value(r, "perplexity_ratio") is not None
    ]  # fmt: skip
    return min(fit, key=lambda r: value(r, "perplexity_ratio"), default=None)


def comparable(rows: Iterable[Row], model: str, protocol: str) -> list[Row]:
    """The `ok` rows of one model in one protocol, one a key (the newest): two protocols never share an axis."""
    newest: dict[str, Row] = {}
    for r in rows:
        if r.get("status") == "ok" and r.get("model") == model and r.get("protocol_id") == protocol:
            known = newest.get(str(r["key"]))
            if known is None or r["created"] >= known["created"]:
                newest[str(r["key"])] = r
    return list(newest.values())


def protocols(rows: Iterable[Row], model: str) -> list[tuple[str, int]]:
    """(protocol, compressed runs) of a model's results, the one with the most runs first."""
    count: dict[str, int] = {}
    for r in rows:
        if r.get("status") == "ok" and r.get("model") == model:
            count[str(r["protocol_id"])] = count.get(str(r["protocol_id"]), 0) + (r.get("family") != "original")
    return sorted(count.items(), key=lambda item: -item[1])


def on_this_machine(rows: Iterable[Row], processor: str, threads: int) -> list[Row]:
    """The compressed models timed here, for times of two machines never share an axis, and the original with the times
    that the newest of these runs measured beside its own."""
    rows = list(rows)
    here = [r for r in rows if r.get("host") == processor and r.get("threads") == threads and r.get("family") != "original"]
    timed = [r for r in here if value(r, "decode_tokens_per_second") is not None and "baseline_decode_tokens_per_second" in r]
    newest = max(timed, key=lambda r: r["created"], default={})
    times = {k: newest.get(f"baseline_{k}") for k, m in METRICS.items() if m.kind == "time"}
    return here + [dict(r) | times for r in rows if r.get("family") == "original"]

"""Chooses the measured runs that are drawn together, and those of them that no other run beats.

Pure, and without torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from operator import itemgetter

from evaluation.measuring.metrics import METRICS, WITHIN, Row, better, value


def front(rows: Iterable[Row], x: str, y: str) -> list[str]:
    """Ids of the rows that no other row beats, ordered by x.

    A row is beaten by a row that is no worse in x and y, and better in one of them.
    """
    known = [(r, a, b) for r in rows if (a := value(r, x)) is not None and (b := value(r, y)) is not None]

    def beaten(a: float, b: float) -> bool:
        return any(
            not better(x, a, p) and not better(y, b, q) and (better(x, p, a) or better(y, q, b))
            for _, p, q in known
        )

    return [str(r["id"]) for r, a, b in sorted(known, key=lambda k: k[1]) if not beaten(a, b)]


def smallest_within(rows: Iterable[Row], limit: float = WITHIN) -> Row | None:
    """The smallest compressed model whose perplexity is at most `limit` times the original's.

    Standard errors are not taken into account.
    """
    sizes = [
        (size, r)
        for r in rows
        if r.get("family") != "original"
        and (size := value(r, "file_bytes"))
        and (value(r, "perplexity_ratio") or math.inf) <= limit
    ]
    return min(sizes, key=itemgetter(0), default=(0, None))[1]


def best_under(rows: Iterable[Row], budget_bytes: float) -> Row | None:
    """The model with the lowest perplexity among those whose file fits a budget."""
    ratios = [
        (ratio, r)
        for r in rows
        if (value(r, "file_bytes") or math.inf) <= budget_bytes
        and (ratio := value(r, "perplexity_ratio")) is not None
    ]
    return min(ratios, key=itemgetter(0), default=(0, None))[1]


def family_best(rows: Iterable[Row]) -> dict[str, Row]:
    """Each family's best run: the smallest that stays within WITHIN, else the one with the lowest perplexity.

    Only models that are smaller than the original count.
    """
    groups: dict[str, list[Row]] = {}
    for r in rows:
        size, before = value(r, "file_bytes"), value(r, "baseline_file_bytes")
        known = value(r, "perplexity_ratio") is not None
        if r.get("family") != "original" and known and size and before and size < before:
            groups.setdefault(str(r["family"]), []).append(r)
    return {
        family: smallest_within(own) or min(own, key=lambda r: value(r, "perplexity_ratio") or math.inf)
        for family, own in groups.items()
    }


def parents(rows: Sequence[Row]) -> dict[str, str]:
    """id of a chain -> id of the run that it goes on from, which has the same steps without the last."""
    known = {_steps(r["recipe"]): str(r["id"]) for r in rows if r.get("cache_bits", 16) == 16}
    return {
        str(r["id"]): known[before]
        for r in rows
        if len(r["recipe"]) > 1 and (before := _steps(r["recipe"][:-1])) in known
    }


def _steps(recipe: Sequence) -> str:
    return repr([(name, sorted(values.items())) for name, values in recipe])


def comparison(row: Row) -> str:
    """The set in which a run may stand on one axis with others: its protocol and the bits of its word tables.

    A run that leaves the weights as they are is in the set of 16 bits and may stand in every other.
    """
    return f"{row['protocol_id']} · table {row.get('table_bits', 16)}"


def _untouched(row: Row) -> bool:
    return all(name == "none" for name, _ in row["recipe"])


def comparable(rows: Iterable[Row], model: str, chosen: str) -> list[Row]:
    """The `ok` rows of one model in one set (`comparison`), the newest for each key.

    Results of two sets are never compared on one axis.
    """
    protocol = chosen.rsplit(" · table ", 1)[0]
    newest: dict[str, Row] = {}
    for r in rows:
        if r.get("status") != "ok" or r.get("model") != model:
            continue
        if comparison(r) == chosen or (_untouched(r) and r.get("protocol_id") == protocol):
            known = newest.get(str(r["key"]))
            if known is None or r["created"] >= known["created"]:
                newest[str(r["key"])] = r
    return list(newest.values())


def opening(rows: list[Row], first: Collection[str], selected: str = "") -> list[Row]:
    """The rows of one protocol that are drawn: own runs, and of the shipped ones those that `first` names.

    The selected run is always among them. If `first` names no shipped row of this protocol, all are drawn.
    """
    if not any(r.get("shipped") and r["id"] in first for r in rows):
        return rows
    return [r for r in rows if not r.get("shipped") or r["id"] in first or r["id"] == selected]


def sets(rows: Iterable[Row], model: str) -> list[tuple[str, Row, int]]:
    """(set, one of its rows, compressed runs) of a model's results, the set with the most runs first."""
    own = [r for r in rows if r.get("status") == "ok" and r.get("model") == model]
    compressed = [r for r in own if not _untouched(r)] or own
    one = {comparison(r): r for r in compressed}
    count = {name: sum(r.get("family") != "original" for r in comparable(own, model, name)) for name in one}
    return sorted(((name, r, count[name]) for name, r in one.items()), key=lambda item: -item[2])


def on_this_machine(rows: Iterable[Row], processor: str, threads: int) -> list[Row]:
    """The compressed models that were timed here, and the original.

    Times of two machines are never compared on one axis. The original has the times that the newest of these
    runs measured beside its own.
    """
    rows = list(rows)
    here = [
        r
        for r in rows
        if r.get("host") == processor and r.get("threads") == threads and r.get("family") != "original"
    ]
    timed = [
        r
        for r in here
        if value(r, "decode_tokens_per_second") is not None and "baseline_decode_tokens_per_second" in r
    ]
    newest = max(timed, key=lambda r: r["created"], default={})
    times = {k: newest.get(f"baseline_{k}") for k, m in METRICS.items() if m.kind == "time"}
    return here + [dict(r) | times for r in rows if r.get("family") == "original"]

"""Fills the pieces of the page: cards of runs and errors, the estimate, the answer, the table of runs.

This file chooses the facts that are shown and puts them into words; the templates (templates/) make the HTML.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from compression.bundle import Geometry
from compression.catalogue import CATALOGUE, OFFLINE_MODEL
from evaluation.choosing import planner
from evaluation.declared import methods
from evaluation.labels import Label
from evaluation.measuring import judging
from evaluation.measuring.metrics import METRICS, WITHIN, Row, error, present, value
from evaluation.page import curve, plots
from evaluation.page.markup import render
from evaluation.page.pareto import best_under, smallest_within
from evaluation.page.words import Words, digits, grade
from evaluation.spec import Result
from evaluation.verdict import Difference, both_broken, paired

# --- the front's sentences ---


def answer(rows: Sequence[Row], words: Words, budget_bytes: float | None) -> tuple[str, str]:
    """("which one should I take?" as HTML, its first sentence as text)."""
    percent, best = f"{100 * (WITHIN - 1):.0f} %", smallest_within(rows)
    within = under = None
    first = words("front.within_none", percent=percent)
    if best is not None:
        size = present(best, "file_bytes")
        facts = {
            "percent": percent,
            "size": words.size(size),
            "smaller": words.smaller(value(best, "baseline_file_bytes") or size, size),
            "verdict": _graded(words, best),
        }
        within = {"row": best, "facts": facts}
        first = words("front.within", name=words.run(best), **facts)
    compressed = [r for r in rows if r.get("family") != "original"]
    if budget_bytes and (found := best_under(compressed, budget_bytes)):
        facts = {
            "size": words.size(present(found, "file_bytes")),
            "ratio": words.figure("perplexity_ratio", present(found, "perplexity_ratio")),
        }
        under = {"row": found, "facts": facts}
    budget = f"{budget_bytes / 1e6:.0f}" if budget_bytes else ""
    html = render("answer.html", words=words, percent=percent, within=within, budget=budget, under=under)
    return html, first


def _graded(words: Words, row: Row) -> str:
    """How good a row's model is compared with its original, in words."""
    return words("grade." + grade(present(row, "perplexity_ratio"), error(row, "perplexity_ratio")))


# --- what fits ---


def plan(
    words: Words,
    model: str,
    geometry: Geometry,
    need: planner.Need,
    options: Sequence[planner.Option],
    others: Sequence[tuple[str, planner.Option]],
) -> str:
    """The table of ways to store a model, with the answer as its first sentence.

    model: its name; "" for one of typed sizes. others: the largest models of the catalogue that fit.
    """
    entry = CATALOGUE.get(model)
    title = entry.title if entry else model or words("tab.plan.this_model")
    best = options[0]
    smallest = min(options, key=lambda option: option.need_bytes)
    facts = {"model": title, "memory": words.size(need.memory_bytes), "context": f"{need.context:,}"}
    if best.fits:
        facts |= {"name": words.recipe(best.recipe), "need": words.size(best.need_bytes)}
        first = words(f"tab.plan.best.{best.known.kind if best.known else 'unknown'}", **facts)
    else:
        facts |= {"name": words.recipe(smallest.recipe), "need": words.size(smallest.need_bytes)}
        first = words("tab.plan.none", **facts)
    if need.context > geometry.positions:
        first += words("tab.plan.too_long", positions=f"{geometry.positions:,}")
    return render(
        "plan.html",
        words=words,
        first=first,
        cache=words.size(best.cache_bytes),
        program=words.size(planner.PROCESS_BYTES),
        can_use=bool(model),
        rows=[_way(words, need, option) for option in options],
        others=[
            {
                "model": name,
                "title": CATALOGUE[name].title,
                "need": words(
                    "tab.plan.other",
                    name=words.recipe(option.recipe, True),
                    need=words.size(option.need_bytes),
                ),
            }
            for name, option in others
            if name != model
        ],
    )


def _way(words: Words, need: planner.Need, option: planner.Option) -> dict:
    """One row of the plan's table."""
    known = option.known
    row = {
        "name": words.recipe(option.recipe, True),
        "family": methods()[option.recipe[-1][0]]["family"],
        "file": words.size(option.file_bytes),
        "bits": words("tab.plan.bits", bits=digits(option.weight_bits, 2)),
        "need": words.size(option.need_bytes),
        "fits": option.fits,
        "share": round(100 * min(1.0, option.need_bytes / need.memory_bytes)),
        "over": words("tab.plan.over", size=words.size(max(0, option.need_bytes - need.memory_bytes))),
        "speed": words("tab.plan.rate", rate=digits(option.tokens_per_second, 2))
        if option.tokens_per_second
        else "",
        "quality": "",
        "source": "",
        "url": known.url if known else "",
        "run": known.run if known else "",
    }
    if known and known.kind == "original":
        row["quality"] = words("tab.plan.original")
    elif known:
        graded = words("grade." + grade(known.ratio, known.stderr or None))
        row["quality"] = words("tab.plan.graded", grade=graded, ratio=f"{known.ratio:.2f}")
        row["source"] = words(f"tab.plan.from.{known.kind}", source=known.source, where=known.where)
    elif option.elsewhere:
        facts = {"model": CATALOGUE[OFFLINE_MODEL].title, "ratio": f"{option.elsewhere.ratio:.2f}"}
        row["source"] = words("tab.plan.elsewhere", **facts)
        row["run"] = option.elsewhere.run
    return row


# --- before a run, and when it fails ---


SIZE_KEYS = {False: "estimate.size", True: "estimate.size_at_least"}  # whether more may come beside it


def estimate_line(words: Words, estimate, stored: bool, public: bool) -> str:
    """What a run will cost; `estimate` is None if that is known only after the run has begun."""
    if estimate is None:
        return render("estimate.html", words=words, found=None)
    more = [
        words("estimate.bits", bits=digits(estimate.weight_bits, 2)),
        words("estimate.needs", peak=words.size(estimate.peak_bytes)),
    ]
    if estimate.cut:
        more += _cut(words, estimate.cut)
    if estimate.cache_bytes_per_token:
        more.append(words("estimate.cache", size=words.size(estimate.cache_bytes_per_token)))
    time_told = words("estimate.time", time=words.seconds(estimate.seconds))
    more.append(words("estimate.measured") if stored else time_told)
    too_big = ""
    if not estimate.fits and not stored:
        sizes = {"peak": words.size(estimate.peak_bytes), "free": words.size(estimate.available_bytes)}
        too_big = words("estimate.too_big_public" if public else "estimate.too_big", **sizes)
    found = {
        "size": words(SIZE_KEYS[estimate.open_ended], size=words.size(estimate.file_bytes)),
        "smaller": words.smaller(estimate.baseline_file_bytes, estimate.file_bytes),
        "more": more,
        "too_big": too_big,
    }
    return render("estimate.html", words=words, found=found)


def _cut(words: Words, cut) -> list[str]:
    """Sentences on the heads and channels that will be left, and on the knob's stops with the same heads."""
    left = words(
        "estimate.cut" if cut.alike else "estimate.cut.mean",
        heads=cut.before.heads,
        heads_left=cut.after.heads,
        kv=cut.before.kv_heads,
        kv_left=cut.after.kv_heads,
        channels=f"{cut.before.feed_forward:,}",
        channels_left=f"{cut.after.feed_forward:,}",
        blocks=cut.blocks,
        of=cut.of,
    )
    low, high = cut.same
    if low == high:
        return [left]
    return [left, words("estimate.cut.same", low=words.share(low), high=words.share(high))]


def error_card(words: Words, error: dict, run_id: str = "", act: str | None = None) -> str:
    """What happened, what it means, what to do, and a button that does it if there is one."""
    return render("error.html", words=words, error=_error(words, error, run_id, act))


def _error(words: Words, error: dict, run_id: str, act: str | None = None) -> dict:
    parts = words.error(error)
    return {
        "what": parts["what"],
        "sentences": [parts[p] for p in ("means", "do") if parts.get(p)],
        "details": parts["details"],
        "act": act or parts["act"],
        "id": run_id,
        "calm": error.get("code") == "cancelled",
    }


# --- the card of a run ---


def run_card(
    words: Words,
    result: Result,
    *,
    shipped: bool,
    artifact: bool,
    here: bool,
    chat: bool,
    dominated: bool = False,
    managed: bool = False,
    label: Label | None = None,
    disk_bytes: int = 0,
    seconds: float | None = None,
    exports: Sequence[str] = (),
    unchecked: bool = False,
    relatives: Mapping[str, Result | None] | None = None,
) -> str:
    """The card of a run: first what it did in plain words, below that its figures.

    managed: the visitor may name and delete it. label: its title and note. disk_bytes: of its model.
    here: it was timed on this machine. seconds: the estimate for running it again. chat: the page can chat.
    exports: formats of other programs that its model can be exported to. unchecked: its model was saved
    without hashes, so nobody can tell whether its files are as they were. relatives: for a run with training,
    the runs "without" it and its "control"; None for a run that isn't measured yet.
    """
    spec = result.spec
    waiting = failed = run = None
    if result.status in ("queued", "running"):
        waiting = words(f"status.{result.status}")
    elif result.status != "ok":
        failed = _error(words, result.error or {"code": result.status}, result.id)
    else:
        run = {
            "id": result.id,
            "facts": _facts(words, result, here),
            "verdict": _takeaways(words, result, relatives or {}),
            "judged": words.judged(result, (relatives or {}).get("control")),
            "lines": _lines(words, result, here),
            "dominated": dominated and not spec.is_original,
            "notes": [
                *(words.note(n) for n in plots.noteworthy({"notes": result.notes})),
                *([words("note.unchecked")] if unchecked else []),
            ],
            "training": _training(words, result, relatives or {}),
            "buttons": _buttons(words, result, artifact, chat, seconds, exports, managed),
            "heads": _heads(words, spec.is_original),
            "groups": _groups(words, result.metrics, here),
            "foot": _foot(words, result, here, shipped, disk_bytes),
        }
    recipe, label = words.recipe(spec.recipe, True, spec.cache_bits, spec.cache_keys), label or Label()
    return render(
        "card.html",
        words=words,
        name=label.title or recipe,
        recipe=recipe if label.title else "",
        title=label.title,
        note=label.note,
        model=spec.model,
        waiting=waiting,
        error=failed,
        run=run,
    )


def _facts(words: Words, result: Result, here: bool) -> list[dict]:
    """Figures as words: smaller, quality, faster, same next word."""

    def fact(text: str, strong: bool = False, help: str = "", aside: str = "") -> dict:
        return {"text": text, "strong": strong, "help": help, "aside": aside}

    if result.spec.is_original:
        return [fact(words("card.original_line"))]
    m, out = result.metrics, []
    if m.get("baseline_file_bytes"):
        out.append(fact(words.smaller(m["baseline_file_bytes"], m["file_bytes"]), strong=True))
    if ratio := m.get("perplexity_ratio"):
        graded = words("grade." + grade(ratio, m.get("perplexity_ratio_stderr")))
        times = words("card.ratio", ratio=words.figure("perplexity_ratio", ratio))
        out.append(fact(graded, strong=True, help=words("grade.help"), aside=times))
    if (rate := m.get("same_top_token_rate")) is not None:
        out.append(fact(words("card.same_top", share=words.share(rate))))
    if here and m.get("baseline_decode_tokens_per_second"):
        out.append(fact(words.speed(m["baseline_decode_tokens_per_second"], m["decode_tokens_per_second"])))
    return out


REPEATS = 0.1  # a model that repeats this much more of its text than the original is said to


def _takeaways(words: Words, result: Result, relatives: Mapping[str, Result | None]) -> list[str]:
    """What a reader should take away: whether the method helped, and whether the model repeats itself.

    A method with a measure of its own is compared by it with its control. Any other method is compared by
    perplexity; a training that only repairs is compared with the run without the training.
    """
    sentences, control, m = [], relatives.get("control"), result.metrics
    for measure in judging.of(result):
        found = judging.within(measure, [result])
        if found is None and control is not None:
            found = judging.beside(measure, [result], [control])
        if found is not None:
            sentences.append(words.helped(found, measure=measure))
    off = any(method.control for method, _ in result.spec.trainings)
    other = control if off else relatives.get("without")
    if not sentences and other is not None and (beside := _beside(result, other)):
        broken = both_broken(*(r.metrics.get("perplexity", 0.0) for r in (result, other)))
        sentences.append(words("card.verdict.broken") if broken else words.helped(beside, training=not off))
    own, before = m.get("repeat_rate"), m.get("baseline_repeat_rate")
    if own is not None and before is not None and own - before >= REPEATS:
        sentences.append(words("card.repeats", own=words.share(own), original=words.share(before)))
    return sentences


def _beside(result: Result, other: Result) -> Difference | None:
    """A result's losses beside another's, window by window; None if their windows can't be paired."""
    ours, theirs = (r.series.get("window_losses", []) for r in (result, other))
    same = result.protocol_id == other.protocol_id and len(ours) == len(theirs) > 1
    return paired(ours, theirs) if same else None


def _lines(words: Words, result: Result, here: bool) -> list[str]:
    """Sizes, the notes that every result of its kind has, and how its matrices were multiplied."""
    m, lines = result.metrics, []
    if m.get("baseline_file_bytes"):
        sizes = {"now": words.size(m["file_bytes"]), "original": words.size(m["baseline_file_bytes"])}
        lines.append(words("card.versus", **sizes, model=result.spec.model))
    elif "file_bytes" in m:
        lines.append(words.size(m["file_bytes"]))
    lines += _storage(words, result)
    if result.spec.stored_cache_bits < 16 and m.get("baseline_kv_cache_bytes_per_token"):
        sizes = {
            "now": words.size(m["kv_cache_bytes_per_token"]),
            "original": words.size(m["baseline_kv_cache_bytes_per_token"]),
        }
        lines.append(words("card.cache", bits=result.spec.stored_cache_bits, **sizes))
    lines += [words.note(n) for n in result.notes if n.get("code") in plots.EXPECTED_NOTES]
    if result.timings and not result.spec.is_original:
        timing = result.timings[-1]
        if not here:
            lines.append(words("card.kernel.other", processor=timing["host"].get("processor", "")))
        else:
            lines.append(words("card.kernel", kernel=words.kernels(timing["kernel"])))
            lines += filter(None, [_against_limits(words, timing)])
    return lines


def _storage(words: Words, result: Result) -> list[str]:
    """Bytes of the compressed matrices, dense and as stored.

    It also says whether the stored form is faster too, or only smaller.
    """
    m, formats = result.metrics, [row["format"] for row in result.layers if "format" in row]
    if not formats or "kept_weights" not in m:
        return []
    stored = "table" if result.layers[-1].get("role") == "embedding" else formats[-1]  # of the last step
    lines = []
    if m["kept_weights"] < m["matrix_weights"]:
        lines.append(
            words(
                "card.kept",
                kept=words.millions(m["kept_weights"]),
                of=words.millions(m["matrix_weights"]),
                dense=words.size(m["dense_matrix_bytes"]),
                stored=words.size(m["matrix_bytes"]),
            )
        )
    return lines + ([words(f"stored.{stored}")] if words.has(f"stored.{stored}") else [])


def _against_limits(words: Words, timing: dict) -> str:
    """How near a decode step is to the limit that the memory's bandwidth sets.

    The times of the original, by the same kernels and by transformers, stand beside it.
    """
    share, parts = timing.get("limit", {}).get("share_of_read_bandwidth"), []
    if share is not None:
        parts.append(words("card.limit", share=words.share(share)))
    times = {
        name: timing[name]["time_per_output_token_ms"]
        for name in ("original", "original_float32", "transformers")
        if name in timing
    }
    if "transformers" in times:
        shown = {k: words.figure("time_per_output_token_ms", v) for k, v in times.items()}
        parts.append(words("card.dense" if "original_float32" in shown else "card.dense.16", **shown))
    return " ".join(parts)


def _training(words: Words, result: Result, relatives: Mapping[str, Result | None]) -> dict | None:
    """The curve of a training and what the training is worth.

    It is compared with the run without training, and with the same training alone.
    """
    rows = result.series.get("training")
    if not rows:
        return None
    seen = [row[2] for row in rows if row[2] is not None]
    alt = words("card.training.alt", **words.facts({"first": seen[0], "last": seen[-1]}))
    samples = any(note.get("code") == "distilled" for note in result.notes)
    # without such a method, the control would be a training of the original, which nobody runs
    off = any(method.control for method, _ in result.spec.trainings)
    lines = [words("card.training.own") if samples else words("card.training")]
    own = result.metrics.get("perplexity_ratio")
    known = {name: r for name, r in relatives.items() if r is not None}
    ratio = {name: r.metrics.get("perplexity_ratio") for name, r in known.items()}
    if without := ratio.get("without"):
        lines.append(words("card.without", ratio=words.figure("perplexity_ratio", without)))
        lines += _verdict(words, "card.training.verdict", result, known["without"])
    control_wanted = False
    if own and (control := ratio.get("control")):
        facts = {"ratio": words.figure("perplexity_ratio", control), "change": words.change(own / control)}
        lines.append(words("card.control.off", **facts) if off else words("card.control", **facts))
        lines += _verdict(words, "card.control.verdict", result, known["control"]) if off else []
    elif "control" in relatives:
        lines.append(words("card.control.off.none") if off else words("card.control.none"))
        control_wanted = True
    return {"curve": curve.marks(rows, words, alt), "lines": lines, "control_wanted": control_wanted}


def _verdict(words: Words, key: str, result: Result, other: Result) -> list[str]:
    """Whether a result is better than another of the same protocol, window by window.

    [] if their windows can't be paired.
    """
    if (found := _beside(result, other)) is None:
        return []
    if both_broken(*(r.metrics.get("perplexity", 0.0) for r in (result, other))):
        return [words(key, verdict=words("verdict.broken"))]
    return [words(key, verdict=words.verdict(found))]


def _buttons(
    words: Words,
    result: Result,
    artifact: bool,
    chat: bool,
    seconds: float | None,
    exports: Sequence[str],
    managed: bool,
) -> list[dict]:
    def button(act: str, text: str, primary: bool = False, form: str = "", help: str = "") -> dict:
        return {"act": act, "text": text, "primary": primary, "form": form, "help": help}

    original, out = result.spec.is_original, []
    if not original and artifact:
        out += [button("chat", words("card.chat"), primary=True)] if chat else []
        out.append(button("download", words("card.download")))
        out += [
            button(
                "download", words(f"card.export.{form}"), form=form, help=words(f"card.export.{form}.help")
            )
            for form in exports
        ]
    if not original and not artifact:
        plain = words("card.make.plain")
        making = words("card.make", time=words.seconds(seconds)) if seconds else plain
        out.append(button("make", making, primary=True))
    else:
        out.append(button("again", words("card.again")))
    out += [button("link", words("card.link")), button("use", words("card.use"))]
    out.append(button("record", words("card.record")))
    if managed:
        out += [button("name", words("card.name")), button("delete", words("card.delete"))]
    return out


def _heads(words: Words, original: bool) -> list[str]:
    """Titles of the table of figures; the original's table has nothing to compare with."""
    own = words("original") if original else words("card.compressed")
    return [words("card.figure"), own, "" if original else words("card.original")]


def _groups(words: Words, m: Mapping, here: bool) -> list[dict]:
    """All figures by kind, each with its error and the original's; times only if taken on this machine."""
    groups = []
    for kind in ("quality", "size", "time"):
        figures = [
            _figure(words, key, m)
            for key, metric in METRICS.items()
            if metric.kind == kind and key in m and (here or key not in TIMES)
        ]
        if figures:
            groups.append({"title": words(f"card.group.{kind}"), "figures": figures})
    return groups


def _figure(words: Words, key: str, m: Mapping) -> dict:
    original = m.get(f"baseline_{key}")
    return {
        "name": words(f"metric.{key}"),
        "help": words(f"metric.{key}.help"),
        "own": words.with_error(key, m),
        "original": "" if original is None else words.figure(key, original),
    }


def _foot(words: Words, result: Result, here: bool, shipped: bool, disk_bytes: int) -> list[str]:
    """The lines under the figures: how and when they were measured."""
    foot = [words("card.protocol", protocol=words.protocol(result.protocol_id))]
    if source := result.model.get("calibration"):
        foot.append(words("card.calibrated", source=source))
    if here and result.timings:
        timing = result.timings[-1]
        foot.append(
            words(
                words.form("card.host", timing["host"].get("threads")),
                processor=timing["host"].get("processor", "?"),
                threads=timing["host"].get("threads", "?"),
                warm_ups=timing.get("warm_ups", "?"),
                kernel=words.kernels(timing["kernel"]),
            )
        )
    day = time.strftime("%Y-%m-%d", time.localtime(result.created))
    machine = result.environment.get("processor")
    measured = words("card.measured_on" if machine else "card.measured", date=day, processor=machine)
    foot.append(measured + (f" · {words('shipped_mark')}" if shipped else ""))
    if disk_bytes:
        foot.append(words("card.disk", size=words.size(disk_bytes)))
    return foot + [words.note(n) for n in result.notes if n.get("code") == "plain_kernel"]


# --- the table of runs ---

TIMES = (  # figures that hold only for the machine on which they were taken
    "time_to_first_token_ms",
    "time_per_output_token_ms",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)
COLUMNS = {  # columns of figures: the column's name -> its metric
    "size": "file_bytes",
    "ratio": "perplexity_ratio",
    "same": "same_top_token_rate",
    "speed": "decode_tokens_per_second",
}
SIDES = {"model": "model", "text": "model", "when": "when"}  # columns that a narrow page leaves out


def runs_table(rows: Iterable[Row], words: Words, processor: str, threads: int) -> str:
    """The table of all runs, newest first: the figure's data as text. The page sorts and filters its rows."""
    here = (processor, threads)
    shown = [_run(words, row, here) for row in sorted(rows, key=lambda r: -float(r["created"]))]
    columns = ("method", "model", "text", *COLUMNS, "when")
    heads = [{"label": words(f"runs.{name}"), "side": SIDES.get(name, "")} for name in columns]
    return render("runs.html", words=words, rows=shown, heads=heads)


def _run(words: Words, row: Row, here: tuple[str, int]) -> dict:
    name, notes = words.run(row), plots.noteworthy(row)
    parts = [part for step in row["recipe"] for part in words.settings(*step)]
    if row.get("title"):
        parts.insert(0, words.run({**row, "title": ""}))
    settings = words("comma").join(parts)
    timed_here = (row.get("host"), row.get("threads")) == here
    return {
        "id": row["id"],
        "model": row["model"],
        "text": row["text"],
        "text_name": Path(str(row["text"])).name,
        "family": row["family"],
        "name": name,
        "settings": settings,
        "full": words("comma").join([name, settings] if settings else [name]),
        "status": "" if row["status"] == "ok" else str(row["status"]),
        "note": words.note(notes[0]) if notes else "",
        "cells": [_cell(words, row, key, timed_here) for key in COLUMNS.values()],
        "second": f"{float(row['created']):.0f}",
        "day": time.strftime("%m-%d %H:%M", time.localtime(float(row["created"]))),
    }


def _cell(words: Words, row: Row, key: str, timed_here: bool) -> dict:
    """A figure, and the number to sort it by. The unit of a rate stands in the column's head."""
    x = value(row, key) if timed_here or key not in TIMES else None
    if x is None:
        return {"value": "", "told": ""}
    return {"value": x, "told": digits(x) if METRICS[key].unit == "rate" else words.figure(key, x)}

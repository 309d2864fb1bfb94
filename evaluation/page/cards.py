"""Pieces of the page as HTML: the card of a run, the error card, the estimate, the answer, the table of runs.

Pure. Every string from outside (names, paths, messages, models' text) passes through `_e` before it becomes
markup.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from evaluation.measuring.metrics import METRICS, WITHIN, Row, error, value
from evaluation.page.pareto import best_under, smallest_within
from evaluation.page.plots import EXPECTED_NOTES, noteworthy
from evaluation.page.plots import curve as curve_picture
from evaluation.page.words import Words, digits, grade
from evaluation.spec import Result
from evaluation.verdict import paired

TIMES = (
    "time_to_first_token_ms",
    "time_per_output_token_ms",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
)


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def term(words: Words, key: str) -> str:
    """A metric's name with its one-line explanation on hover and focus."""
    return _tip(words(f"metric.{key}"), words(f"metric.{key}.help"))


def _tip(text: str, help: str) -> str:
    return (
        f'<span class="term" tabindex="0" data-tip="{_e(help)}" '
        f'aria-description="{_e(help)}">{_e(text)}</span>'
    )


def answer(rows: Sequence[Row], words: Words, budget_bytes: float | None) -> tuple[str, str]:
    """("which one should I take?" as HTML, the first sentence as text)."""
    best = smallest_within(rows)
    percent = f"{100 * (WITHIN - 1):.0f} %"
    if best is None:
        first = words("front.within_none", percent=percent)
        html_first = _e(first)
    else:
        ratio = value(best, "perplexity_ratio")
        facts = {
            "percent": percent,
            "size": words.size(value(best, "file_bytes")),
            "smaller": words.smaller(
                value(best, "baseline_file_bytes") or value(best, "file_bytes"), value(best, "file_bytes")
            ),
            "verdict": words("grade." + grade(ratio, error(best, "perplexity_ratio"))),
        }
        first = words("front.within", name=words.run(best), **facts)
        html_first = _e(words("front.within", name="\0", **facts)).replace("\0", _pick(best, words))
    if not budget_bytes:
        return f"<p>{html_first}</p>", first
    found = best_under([r for r in rows if r.get("family") != "original"], budget_bytes)
    if found is None:
        second = _e(words("front.under_none"))
    else:
        facts = {
            "size": words.size(value(found, "file_bytes")),
            "ratio": words.figure("perplexity_ratio", value(found, "perplexity_ratio")),
        }
        second = _e(words("front.under_is", name="\0", **facts)).replace("\0", _pick(found, words))
    box = (
        '<input type="number" min="1" step="1" inputmode="numeric" '
        f'value="{budget_bytes / 1e6:.0f}" aria-label="{_e(words("front.under"))} MB">'
    )
    return f"<p>{html_first}</p><p><label>{_e(words('front.under'))} {box} MB:</label> {second}</p>", first


def _pick(row: Row, words: Words) -> str:
    return f'<button class="linklike" data-run="{_e(row["id"])}">{_e(words.run(row))}</button>'


def headline(rows: Sequence[Row], model: str, words: Words) -> str:
    """The computed sentence of the first screen, as text."""
    best = smallest_within(rows)
    if best is None or not value(best, "baseline_file_bytes"):
        return words("app.headline_none", model=model) if rows else words("app.headline_empty")
    return words(
        "app.headline",
        model=model,
        original=words.size(value(best, "baseline_file_bytes")),
        now=words.size(value(best, "file_bytes")),
        verdict=words("grade." + grade(value(best, "perplexity_ratio"), error(best, "perplexity_ratio"))),
    )


def estimate_line(words: Words, found, stored: bool, public: bool) -> str:
    """What a run will cost."""
    if stored and found is None:
        return f"<p>{_e(words('estimate.measured'))}</p>"
    size = words.size(found.file_bytes)
    smaller = words.smaller(found.baseline_file_bytes, found.file_bytes)
    lines = [f'<p class="size"><b>{_e(words("estimate.size", size=size))}</b> <span>{_e(smaller)}</span></p>']
    more = [
        words("estimate.bits", bits=digits(found.weight_bits, 2)),
        words("estimate.needs", peak=words.size(found.peak_bytes)),
    ]
    if found.cache_bytes_per_token:
        more.append(words("estimate.cache", size=words.size(found.cache_bytes_per_token)))
    more.append(
        words("estimate.measured") if stored else words("estimate.time", time=words.seconds(found.seconds))
    )
    lines.append(f'<p class="more" title="{_e(words("estimate.range"))}">{_e(" · ".join(more))}</p>')
    if not found.fits and not stored:
        key = "estimate.too_big_public" if public else "estimate.too_big"
        sizes = {"peak": words.size(found.peak_bytes), "free": words.size(found.available_bytes)}
        lines.append(f'<p class="warn">{_e(words(key, **sizes))}</p>')
    return "".join(lines)


def error_card(words: Words, error: dict, run_id: str = "", act: str | None = None) -> str:
    """What happened, what it means, what to do, and a button that does it where one can."""
    parts = words.error(error)
    act = act or parts["act"]
    details = ""
    if parts["details"]:
        told = f"<summary>{_e(words('error.details'))}</summary><pre>{_e(parts['details'])}</pre>"
        details = f"<details>{told}</details>"
    body = "".join(f"<p>{_e(parts[p])}</p>" for p in ("means", "do") if parts.get(p))
    button = (
        f'<button class="plain" data-act="{_e(act)}" '
        f'data-id="{_e(run_id)}">{_e(words(f"act.{act}"))}</button>'
    )
    calm = " calm" if error.get("code") == "cancelled" else ""
    return f'<div class="error{calm}" role="alert"><h3>{_e(parts["what"])}</h3>{body}{details}{button}</div>'


def run_card(
    words: Words,
    result: Result,
    *,
    shipped: bool,
    artifact: bool,
    here: bool,
    chat: bool,
    dominated: bool = False,
    seconds: float | None = None,
    exports: Sequence[str] = (),
    relatives: Mapping[str, Result | None] | None = None,
) -> str:
    """A run in plain words first, its figures one look further.

    here: it was timed on this machine. seconds: the estimate for making it again. chat: the page can chat.
    exports: formats of other programs that its model can be had in. relatives: of a run with training, the
    runs "without" it and its "control", None where they aren't measured yet.
    """
    m, original = result.metrics, result.spec.is_original
    name = words.recipe(result.spec.recipe, True, result.spec.cache_bits, result.spec.cache_keys)
    title = (
        f'<div class="card-title"><h2>{_e(name)}</h2><span class="model">{_e(result.spec.model)}</span></div>'
    )
    if result.status != "ok":
        if result.status in ("queued", "running"):
            return f'{title}<p class="facts">{_e(words(f"status.{result.status}"))}</p>'
        return title + error_card(words, result.error or {"code": result.status}, result.id)
    facts = [words("card.original_line")] if original else _plain_facts(words, m, here)
    chips = "".join(f"<li>{f}</li>" for f in (facts if not original else map(_e, facts)))
    lines = [f'<ul class="facts">{chips}</ul>', *_sizes(words, result, here)]
    if dominated and not original:
        lines.append(f'<p class="quiet">{_e(words("card.dominated"))}</p>')
    notes = noteworthy({"notes": result.notes})
    lines += (
        ['<ul class="notes">' + "".join(f"<li>{_e(words.note(n))}</li>" for n in notes) + "</ul>"]
        if notes
        else []
    )
    return "".join(
        [
            title,
            *lines,
            _training(words, result, relatives or {}),
            _buttons(words, result, artifact, chat, seconds, exports),
            _figures(words, result, here, shipped),
        ]
    )


def _training(words: Words, result: Result, relatives: Mapping[str, Result | None]) -> str:
    """The curve of a training, and what it is worth: beside the run without it, and beside the same training
    alone."""
    curve = result.series.get("training")
    if not curve:
        return ""
    seen = [row[2] for row in curve if row[2] is not None]
    picture = curve_picture(
        curve, words("card.training.alt", **words.facts({"first": seen[0], "last": seen[-1]}))
    )
    samples = any(note.get("code") == "distilled" for note in result.notes)
    # the control is no training of the original
    off = any(method.control for method, _ in result.spec.trainings)
    lines, own = (
        [words("card.training.own") if samples else words("card.training")],
        result.metrics.get("perplexity_ratio"),
    )
    ratio = {name: r.metrics.get("perplexity_ratio") for name, r in relatives.items() if r is not None}
    if ratio.get("without"):
        lines.append(words("card.without", ratio=words.figure("perplexity_ratio", ratio["without"])))
        lines += _verdict(words, "card.training.verdict", result, relatives["without"])
    button = ""
    if own and ratio.get("control"):
        shown = {"ratio": ratio["control"], "against": own / ratio["control"]}
        facts = {k: words.figure("perplexity_ratio", v) for k, v in shown.items()}
        lines.append(words("card.control.off", **facts) if off else words("card.control", **facts))
        lines += _verdict(words, "card.control.verdict", result, relatives["control"]) if off else []
    elif "control" in relatives:
        lines.append(words("card.control.off.none") if off else words("card.control.none"))
        button = (
            ' <button class="linklike" data-act="control" '
            f'data-id="{_e(result.id)}">{_e(words("card.control.run"))}</button>'
        )
    return f'{picture}<p class="quiet">{"<br>".join(map(_e, lines))}{button}</p>'


def _verdict(words: Words, key: str, result: Result, other: Result) -> list[str]:
    """Whether a result is better than another of the same protocol, window by window; nothing where windows
    can't be paired."""
    ours, theirs = (r.series.get("window_losses", []) for r in (result, other))
    same = result.protocol_id == other.protocol_id and len(ours) == len(theirs) > 1
    return [words(key, verdict=words.verdict(paired(ours, theirs)))] if same else []


def _plain_facts(words: Words, m: dict, here: bool) -> list[str]:
    """Figures as words: smaller, quality, faster, same next word."""
    out = []
    if m.get("baseline_file_bytes"):
        out.append(f"<b>{_e(words.smaller(m['baseline_file_bytes'], m['file_bytes']))}</b>")
    if ratio := m.get("perplexity_ratio"):
        said = words("grade." + grade(ratio, m.get("perplexity_ratio_stderr")))
        times = words("card.ratio", ratio=words.figure("perplexity_ratio", ratio))
        out.append(f"<b>{_tip(said, words('grade.help'))}</b> <span>({_e(times)})</span>")
    if (rate := m.get("same_top_token_rate")) is not None:
        out.append(_e(words("card.same_top", share=words.share(rate))))
    if here and m.get("baseline_decode_tokens_per_second"):
        out.append(_e(words.speed(m["baseline_decode_tokens_per_second"], m["decode_tokens_per_second"])))
    return out


def _sizes(words: Words, result: Result, here: bool) -> list[str]:
    m, lines = result.metrics, []
    if m.get("baseline_file_bytes"):
        against = words(
            "card.versus",
            now=words.size(m["file_bytes"]),
            original=words.size(m["baseline_file_bytes"]),
            model=result.spec.model,
        )
        lines.append(against)
    elif "file_bytes" in m:
        lines.append(words.size(m["file_bytes"]))
    lines += _storage(words, result)
    if result.spec.stored_cache_bits < 16 and m.get("baseline_kv_cache_bytes_per_token"):
        taken = {
            name: words.size(m[f"{prefix}kv_cache_bytes_per_token"])
            for name, prefix in (("now", ""), ("original", "baseline_"))
        }
        lines.append(words("card.cache", bits=result.spec.stored_cache_bits, **taken))
    lines += [words.note(n) for n in result.notes if n.get("code") in EXPECTED_NOTES]
    if result.timings and not result.spec.is_original:
        host = result.timings[-1]["host"].get("processor", "")
        kernel = ", ".join(result.timings[-1]["kernel"])
        lines.append(
            words("card.kernel", kernel=kernel) if here else words("card.kernel.other", processor=host)
        )
        if here and (against := _against_limits(words, result.timings[-1])):
            lines.append(against)
    return ['<p class="quiet">' + "<br>".join(map(_e, lines)) + "</p>"] if lines else []


def _storage(words: Words, result: Result) -> list[str]:
    """What the compressed matrices take dense and as they are stored, and whether that is faster too or only
    smaller."""
    m, formats = result.metrics, [row["format"] for row in result.layers if "format" in row]
    if not formats or "kept_weights" not in m:
        return []
    told = "table" if result.layers[-1].get("role") == "embedding" else formats[-1]  # of the last step
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
    return lines + ([words(f"stored.{told}")] if words.has(f"stored.{told}") else [])


def _against_limits(words: Words, timing: dict) -> str:
    """How near the step is to what memory delivers, and what the original takes by the same route and by
    transformers."""
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


def _buttons(
    words: Words, result: Result, artifact: bool, chat: bool, seconds: float | None, exports: Sequence[str]
) -> str:
    out, run = [], f'data-id="{_e(result.id)}"'
    if not result.spec.is_original:
        if artifact and chat:
            out.append(f'<button class="primary" data-act="chat" {run}>{_e(words("card.chat"))}</button>')
        elif not artifact:
            making = words("card.make", time=words.seconds(seconds)) if seconds else words("card.again")
            out.append(f'<button class="primary" data-act="make" {run}>{_e(making)}</button>')
        if artifact:
            out.append(
                f'<button class="plain" data-act="download" {run}>{_e(words("card.download"))}</button>'
            )
            for form in exports:
                title, said = _e(words(f"card.export.{form}.help")), _e(words(f"card.export.{form}"))
                out.append(
                    f'<button class="plain" data-act="download" data-form="{form}" title="{title}" '
                    f"{run}>{said}</button>"
                )
    if artifact or result.spec.is_original:
        out.append(f'<button class="plain" data-act="again" {run}>{_e(words("card.again"))}</button>')
    out.append(f'<button class="plain" data-act="link" {run}>{_e(words("card.link"))}</button>')
    out.append(f'<button class="plain" data-act="use" {run}>{_e(words("card.use"))}</button>')
    return f'<div class="buttons">{"".join(out)}</div>'


def _figures(words: Words, result: Result, here: bool, shipped: bool) -> str:
    m = result.metrics
    groups = []
    for kind in ("quality", "size", "time"):
        rows = []
        for metric in METRICS.values():
            if metric.kind != kind or metric.key not in m or (metric.key in TIMES and not here):
                continue
            spread = m.get(metric.error) if metric.error else None
            own = words.figure(metric.key, m[metric.key])
            if spread:
                own += " " + words("card.error", x=words.figure(metric.key, spread, 2))
            base = m.get(f"baseline_{metric.key}")
            rows.append(
                f"<tr><th scope='row'>{term(words, metric.key)}</th><td>{_e(own)}</td>"
                f"<td>{_e(words.figure(metric.key, base)) if base is not None else ''}</td></tr>"
            )
        if rows:
            groups.append(
                "<tr class='group'><th colspan='3' "
                f"scope='colgroup'>{_e(words(f'card.group.{kind}'))}</th></tr>" + "".join(rows)
            )
    own, other = ("original", "") if result.spec.is_original else ("card.compressed", words("card.original"))
    head = "".join(f"<th scope='col'>{_e(title)}</th>" for title in (words("card.figure"), words(own), other))
    foot = [words("card.protocol", protocol=result.protocol_id)]
    if source := result.model.get("calibration"):
        foot.append(words("card.calibrated", source=source))
    if here and result.timings:
        t = result.timings[-1]
        foot.append(
            words(
                "card.host",
                processor=t["host"].get("processor", "?"),
                threads=t["host"].get("threads", "?"),
                warm_ups=t.get("warm_ups", "?"),
                kernel=", ".join(t["kernel"]),
            )
        )
    day = time.strftime("%Y-%m-%d", time.localtime(result.created))
    foot.append(words("card.measured", date=day) + (f" · {words('shipped_mark')}" if shipped else ""))
    foot += [words.note(n) for n in result.notes if n.get("code") == "plain_kernel"]
    return (
        f"<details class='all'><summary>{_e(words('card.figures'))}</summary><div "
        f"class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(groups)}</tbody></table></div><p "
        f"class='quiet'>{'<br>'.join(map(_e, foot))}</p></details>"
    )


COLUMNS = (  # table column, metric that sorts it
    ("size", "file_bytes"),
    ("ratio", "perplexity_ratio"),
    ("same", "same_top_token_rate"),
    ("speed", "decode_tokens_per_second"),
)


def runs_table(rows: Iterable[Row], words: Words, processor: str, threads: int) -> str:
    """All runs, newest first: the figure's twin. The page sorts and filters its rows."""
    body = []
    for r in sorted(rows, key=lambda r: -float(r["created"])):
        name, here = words.run(r), (r.get("host"), r.get("threads")) == (processor, threads)
        cells = []
        for _, key in COLUMNS:
            x = value(r, key) if key not in TIMES or here else None
            told = "" if x is None else _e(words.figure(key, x).replace(" tokens/s", ""))
            cells.append(f'<td data-v="{"" if x is None else x}">{told}</td>')
        status = (
            ""
            if r["status"] == "ok"
            else f' <span class="status {_e(r["status"])}">{_e(words("status." + str(r["status"])))}</span>'
        )
        mark = (
            f' <span class="note-mark" title="{_e(words.note(noteworthy(r)[0]))}">!</span>'
            if noteworthy(r)
            else ""
        )
        settings = words("comma").join(told for step in r["recipe"] for told in words.settings(*step))
        full = words("comma").join([name, settings] if settings else [name])
        pick = (
            f'<button class="linklike" data-run="{_e(r["id"])}" '
            f'aria-label="{_e(words("runs.select", name=full))}">{_e(name)}</button>'
        )
        small = f'<small title="{_e(settings)}">{_e(settings)}</small>' if settings else ""
        day = time.strftime("%m-%d %H:%M", time.localtime(float(r["created"])))
        dot = f'<i class="dot {_e(r["family"])}"></i>'
        body.append(
            f'<tr data-run="{_e(r["id"])}" data-model="{_e(r["model"])}"><td '
            f'data-v="{_e(name)}">{dot}{pick}{status}{mark}{small}</td>'
            f'<td class="model" data-v="{_e(r["model"])}">{_e(r["model"])}</td>'
            f'<td class="model" data-v="{_e(r["text"])}">{_e(Path(str(r["text"])).name)}</td>{"".join(cells)}'
            f'<td class="when" data-v="{float(r["created"]):.0f}">{_e(day)}</td></tr>'
        )
    if not body:
        return f'<p class="quiet">{_e(words("runs.empty"))}</p>'
    heads = []
    for i, key in enumerate(("method", "model", "text", *(c for c, _ in COLUMNS), "when")):
        label = words(f"runs.{key}")
        side = ' class="model"' if key in ("model", "text") else ' class="when"' if key == "when" else ""
        heads.append(
            f'<th scope="col"{side}><button data-sort="{i}" '
            f'title="{_e(words("runs.sort", name=label))}">{_e(label)}</button></th>'
        )
    return (
        f'<table class="runs"><thead><tr>{"".join(heads)}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    )

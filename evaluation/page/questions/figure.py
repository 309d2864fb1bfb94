"""The question that the figure asks: the points of one model, their sentences and the still picture."""

from __future__ import annotations

import math
from collections.abc import Iterable

from compression.catalogue import CATALOGUE
from evaluation import host
from evaluation.measuring import metrics
from evaluation.page import cards, pareto, plots, points, requests
from evaluation.page.questions.base import Panel
from evaluation.page.words import Words


class Figure(Panel):
    """What is drawn of the stored runs."""

    def front(self, ask: requests.Front) -> dict:
        """The figure of one model in one protocol, its sentences and its still picture."""
        return self._keep(("front", ask.model_dump_json()), lambda: self._front(ask))

    def _front(self, ask: requests.Front) -> dict:
        words, rows, model = Words(ask.lang), self.rows(), ask.model
        x = ask.x if ask.x in metrics.AXES else metrics.DEFAULT_X
        y = ask.y if ask.y in metrics.AXES else metrics.DEFAULT_Y
        chosen = next((r for r in rows if r["id"] == ask.selected and r["status"] == "ok"), None)
        known = pareto.protocols(rows, model)
        names = [p for p, _ in known]
        protocol = ask.protocol or (chosen["protocol_id"] if chosen and chosen["model"] == model else "")
        if protocol not in names:
            protocol = self._usual(rows, names, model, ask.settings) or (names[0] if names else "")
        measured = pareto.comparable(rows, model, protocol)
        group = pareto.opening(measured, points.names(), ask.selected)
        drawn, remarks = group, []
        if names and protocol != names[0]:  # the protocol of most runs is another
            remarks.append(words.many("front.elsewhere", known[0][1], name=names[0]))
        if len(group) < len(measured):
            remarks.append(words.many("front.others", len(measured) - len(group)))
        if any(metrics.METRICS[k].kind == "time" for k in (x, y)):
            drawn = pareto.on_this_machine(group, host.processor(), host.threads())
            remarks.append(words("front.time_here"))
        whole = [r for r in drawn if metrics.value(r, x) is not None and metrics.value(r, y) is not None]
        if len(whole) < len(drawn):
            remarks.append(words.many("front.missing", len(drawn) - len(whole)))
        drawing = plots.draw(whole, x, y, words)
        entry = CATALOGUE.get(model)
        if entry and entry.rounded:
            facts = {"format": entry.rounded, "bytes": entry.publisher_bytes}
            remarks.append(words.note({"code": "already_rounded", "facts": facts}))
        budget = ask.budget or self._budget(group)
        sentences, first = cards.answer(group, words, budget)
        best = pareto.smallest_within(group) or next(
            (r for r in group if r.get("family") == "original"), None
        )
        return {
            "figure": plots.figure(drawing),
            "still": plots.still(drawing),
            "alt": plots.summary(drawing, first),
            "headline": cards.headline(group, model, words),
            "answer": sentences if group else "",
            "remarks": remarks,
            "protocols": [[p, words.many("front.protocol.runs", n, name=p)] for p, n in known],
            "protocol": protocol,
            "empty": not whole,
            "best": best["id"] if best else "",
            "x": x,
            "y": y,
            "ids": [r["id"] for r in group],
        }

    @staticmethod
    def _usual(rows: list[dict], names: list[str], model: str, settings: requests.Settings) -> str:
        """The protocol in which a run with these settings would be measured; "" if none is stored."""
        wanted = [settings.text, settings.protocol, settings.tokens, settings.window]
        return next(
            (
                r["protocol_id"]
                for r in rows
                if r["model"] == model
                and r["protocol_id"] in names
                and [r.get(k) for k in ("text", "protocol", "tokens", "window")] == wanted
            ),
            "",
        )

    @staticmethod
    def _budget(rows: Iterable[metrics.Row]) -> float | None:
        """A first size to ask about: a third of the original or the smallest run, up to the next 10 MB."""
        sizes = sorted(s for r in rows if (s := metrics.value(r, "file_bytes")))
        return math.ceil(max(sizes[0], sizes[-1] / 3) / 1e7) * 1e7 if sizes else None

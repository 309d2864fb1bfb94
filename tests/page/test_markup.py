"""Text from outside never becomes markup: in every template, and in what the page makes of whole results."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import jinja2
import pytest

from evaluation.page import cards
from evaluation.page.markup import TEMPLATES, render
from evaluation.page.words import LANGUAGES, Words
from evaluation.store import Store

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "</p></svg></div><b>&amp;",
    "{{ 7 * 7 }}{name}",
)
PLAIN = "plain"


class Says:
    """A voice that says one text, whatever it is asked."""

    def __init__(self, text: str):
        self.text = text
        self.table = dict.fromkeys(("front.within", "front.under_is"), "{name} & {size}")

    def __call__(self, key, **facts):
        return self.text

    def run(self, row):
        return self.text


def samples(s: str) -> dict[str, dict]:
    """For each template what fills all of it, with `s` wherever a text stands."""
    curve = {
        **dict.fromkeys(("width", "height", "left", "right", "top", "bottom"), 1),
        **dict.fromkeys(("alt", "x_words", "y_words"), s),
        "line": [(0, 1)],
        "dots": [(0, 1)],
        "x_ticks": [(1, s), (2, s), (3, s)],
        "y_ticks": [(1, s)],
    }
    error = {"what": s, "sentences": [s, s], "details": s, "act": s, "id": s, "calm": True}
    fact = {"text": s, "strong": True, "help": s, "aside": s}
    row = {
        **dict.fromkeys(("id", "model", "text", "text_name", "family", "name", "settings", "full"), s),
        **dict.fromkeys(("status", "note", "second", "day"), s),
        "cells": [{"value": s, "told": s}],
    }
    run = {
        "id": s,
        "facts": [fact, fact | {"help": ""}, fact | {"help": "", "strong": False}],
        "verdict": [s, s],
        "judged": [[s, s], [s]],
        "lines": [s, s],
        "dominated": True,
        "notes": [s],
        "training": {"curve": curve, "lines": [s, s], "control_wanted": True},
        "buttons": [{"act": s, "text": s, "primary": False, "form": s, "help": s}],
        "heads": [s],
        "groups": [{"title": s, "figures": [{"name": s, "help": s, "own": s, "original": s}]}],
        "foot": [s, s],
    }
    chosen = {"row": {"id": s}, "facts": {"size": s}}
    return {
        "answer.html": {"percent": s, "within": chosen, "budget": s, "under": chosen},
        "card.html": {
            **dict.fromkeys(("name", "model", "recipe", "title", "note", "waiting"), s),
            "error": None,
            "run": None,
        },
        "curve.svg": {"curve": curve},
        "error.html": {"error": error},
        "estimate.html": {"found": {"size": s, "smaller": s, "more": [s, s], "too_big": s}},
        "measured.html": {"run": run},
        "panel.html": {"label": s},
        "pieces.html": {},
        "plan.html": {
            **dict.fromkeys(("first", "cache", "program"), s),
            "can_use": True,
            "rows": [
                {
                    **dict.fromkeys(
                        ("name", "family", "file", "bits", "need", "over", "speed", "quality"), s
                    ),
                    **dict.fromkeys(("source", "share"), s),
                    "fits": fits,
                    "run": run,
                    "url": url,
                }
                for fits, run, url in ((True, s, ""), (False, "", s), (True, "", ""))
            ],
            "others": [{"model": s, "title": s, "need": s}],
        },
        "runs.html": {"rows": [row], "heads": [{"label": s, "side": s}]},
        "picture.svg": {
            **dict.fromkeys(("width", "height", "left", "top", "right", "bottom", "floor"), 1),
            "band": {"top": 1, "height": 1},
            "x_ticks": [(1, s)],
            "y_ticks": [(1, s)],
            "x_words": s,
            "y_words": s,
            "line": [(1, 1)],
            "broken": s,
            "light": [(s, s)],
            "dark": [(s, s)],
            "title": s,
            "about": s,
            "foot": s,
            "alt": s,
            "families": [{"key": s, "path": s, "x": 1.0, "name": s}],
            "marks": [
                {"x": 1.0, "y": 1.0, "family": s, "path": s, "far": (1.0, 1.0)}
                | {"label": {"x": 1.0, "y": 1.0, "anchor": s, "text": s}}
            ],
        },
    }


class _Shape(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, *(name for name, _ in attributes)))

    def handle_endtag(self, tag):
        self.seen.append(f"/{tag}")


def shape(markup: str) -> list:
    """Tags and names of attributes, in order."""
    parser = _Shape()
    parser.feed(markup)
    parser.close()
    return parser.seen


@pytest.mark.parametrize("template", sorted(f.name for f in TEMPLATES.iterdir()))
def test_no_template_lets_markup_through(template):
    plain = shape(render(template, words=Says(PLAIN), **samples(PLAIN)[template]))
    assert plain or template == "pieces.html"
    for text in HOSTILE:
        assert shape(render(template, words=Says(text), **samples(text)[template])) == plain, text


def test_a_template_that_misses_a_fact_raises():
    with pytest.raises(jinja2.UndefinedError):
        render("panel.html")


@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_results_have_the_shape_of_harmless_ones(tmp_path, language):
    words, shipped = Words(language), Store(tmp_path).shipped()
    trained = next(r for r in shipped if "training" in r.series)
    flags = {"shipped": True, "artifact": False, "here": True, "chat": True, "relatives": {"control": None}}

    def everything(text: str) -> str:
        notes = [{"code": text}, {"code": "fold_skipped", "facts": {"roles": text, "reason": text}}]
        spec = dataclasses.replace(trained.spec, model=text)
        result = dataclasses.replace(trained, id=text, spec=spec, protocol_id=text, notes=notes)
        failed = dataclasses.replace(result, status="failed", error={"code": text, "message": text})
        row = {
            "id": text,
            "created": 0.0,
            "status": "ok",
            "family": "quantization",
            "model": text,
            "text": text,
            "notes": notes,
            "recipe": [[text, {}]],
            "calibration": text,
            "file_bytes": 5e7,
            "baseline_file_bytes": 1e8,
            "perplexity_ratio": 1.0,
        }
        return "".join(
            [
                cards.run_card(words, result, **flags),
                cards.run_card(words, failed, **flags),
                cards.error_card(words, {"code": "unknown_model", "facts": {"name": text}}, text),
                cards.answer([row], words, 9e7)[0],
                cards.runs_table([row], words, "", 0),
            ]
        )

    harmless = shape(everything(PLAIN))
    for text in HOSTILE:
        assert shape(everything(text)) == harmless, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_rate_in_the_table_stands_without_the_unit_that_its_head_names(language):
    row = {
        "id": "a",
        "created": 0.0,
        "status": "ok",
        "family": "quantization",
        "model": "m",
        "text": "t",
        "notes": [],
        "host": "cpu",
        "threads": 2,
        "recipe": [["rtn", {"bits": 4}]],
        "decode_tokens_per_second": 12.34,
    }
    assert '<td data-v="12.34">12.3</td>' in cards.runs_table([row], Words(language), "cpu", 2)

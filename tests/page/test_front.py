"""Which runs lead, which one to take, and that both pictures show the same."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression import texts
from compression.catalogue import OFFLINE_MODEL
from evaluation.benches.shipped import asked
from evaluation.measuring import metrics
from evaluation.page import cards, pareto, plots, points, requests
from evaluation.page.questions import Page
from evaluation.page.words import Words
from evaluation.running import estimate as estimates
from evaluation.spec import Result, RunSpec
from evaluation.store import Store

EN = Words("en")


def row(name, size, ratio, family="quantization", **more):
    return {
        "id": name,
        "key": name,
        "status": "ok",
        "model": "m",
        "protocol_id": "p",
        "family": family,
        "recipe": (("rtn", {"bits": 4}),),
        "file_bytes": size,
        "perplexity_ratio": ratio,
        "created": 0.0,
        "shipped": False,
        "notes": [],
        "baseline_file_bytes": 100,
    } | more


ORIGINAL = row("o", 100e6, None, "original", recipe=(("none", {}),))
ROWS = [ORIGINAL, row("a", 50e6, 1.001), row("b", 30e6, 1.2), row("c", 60e6, 1.1), row("d", 20e6, 400.0)]


def test_the_front_by_hand():
    assert pareto.front(ROWS, "file_bytes", "perplexity_ratio") == ["d", "b", "a", "o"]
    assert pareto.front(ROWS, "file_bytes", "decode_tokens_per_second") == []


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12))
def test_the_front_is_exactly_what_nothing_beats(points):
    rows = [row(str(i), size, ratio) for i, (size, ratio) in enumerate(points)]
    beaten = {
        str(i) for i, (s, r) in enumerate(points) for p, q in points if p <= s and q <= r and (p, q) != (s, r)
    }
    assert set(pareto.front(rows, "file_bytes", "perplexity_ratio")) == {r["id"] for r in rows} - beaten


def test_which_one_to_take():
    assert pareto.smallest_within(ROWS)["id"] == "a"
    assert pareto.best_under(ROWS, 40e6)["id"] == "b" and pareto.best_under(ROWS, 1e6) is None
    html, first = cards.answer(ROWS, EN, 40e6)
    assert "50\u00a0MB" in first and 'data-run="b"' in html


def test_two_protocols_and_two_models_never_share_a_figure():
    rows = [
        *ROWS,
        row("x", 1, 1.0, model="other"),
        row("y", 1, 1.0, protocol_id="q"),
        row("z", 1, 1.0, status="failed"),
    ]
    assert {r["id"] for r in pareto.comparable(rows, "m", "p")} == {"o", "a", "b", "c", "d"}
    assert pareto.protocols(rows, "m") == [("p", 4), ("q", 1)]


def test_the_first_screen_opens_with_the_points_that_are_declared():
    """Own runs stay, and the run that is selected; a protocol without a declared run shows all of its runs."""
    stored = [r | {"shipped": True} for r in ROWS]
    rows = [*stored, row("own", 1, 1.0)]
    assert [r["id"] for r in pareto.opening(rows, {"o", "b"})] == ["o", "b", "own"]
    assert [r["id"] for r in pareto.opening(rows, {"o", "b"}, "d")] == ["o", "b", "d", "own"]
    assert pareto.opening(rows, {"another"}) == rows and pareto.opening(rows[-1:], {"own"}) == rows[-1:]


def front(store, **more):
    page = Page(store, None)
    settings = page.boot()["first"]["settings"] | more.pop("settings", {})
    return page.front(requests.Front(model=OFFLINE_MODEL, settings=requests.Settings(**settings), **more))


def test_a_first_visit_sees_the_points_and_what_else_is_stored_is_told(tmp_path):
    found = front(Store(tmp_path))
    assert set(found["ids"]) == points.names() and found["protocol"].startswith("wiki.test.raw")
    assert any("more stored runs are in the table" in said for said in found["remarks"])
    other = next(r.id for r in Store(tmp_path).shipped() if "gates-rtn-2" in r.id)
    assert set(front(Store(tmp_path), selected=other)["ids"]) == points.names() | {other}


def test_runs_measured_otherwise_never_stand_beside_the_points_and_say_so(tmp_path):
    """A quick run of the built-in text: alone on its figure, with a word on where the others are."""
    store = Store(tmp_path)
    shipped = next(r for r in store.shipped() if r.id == "shipped-gates-rtn-4")
    protocol = "builtin 00000000 · raw · window 512 · 8192 tokens"
    spec = dataclasses.replace(shipped.spec, text="builtin", calibration="builtin", tokens=8_192)
    store.put(dataclasses.replace(shipped, id="quick", key="quick", spec=spec, protocol_id=protocol))
    found = front(store, selected="quick")
    assert found["ids"] == ["quick"] and found["protocol"] == protocol
    assert any("measured otherwise (wiki.test.raw" in said for said in found["remarks"])
    assert not any("measured otherwise" in said for said in front(store)["remarks"])


def test_a_new_run_of_the_first_knobs_is_stored_and_one_beside_it_shares_its_figure(tmp_path):
    page = Page(Store(tmp_path), None)
    choices = page.boot()["first"]["settings"] | {"model": OFFLINE_MODEL, "recipe": [("gptq", {"bits": 4})]}
    spec = requests.spec_of(requests.Choices(**choices), public=False)
    assert page._stored(spec) == "shipped-gates-gptq-4" and spec.table_bits == 16


def test_a_text_that_can_not_be_had_is_told_before_the_run(tmp_path, monkeypatch):
    """Not where the answer is stored, and not for another text."""
    monkeypatch.setattr(texts, "refused", lambda name: name == "wikitext-2")
    page = Page(Store(tmp_path), None, estimate=estimates.estimate, path=estimates.path)
    settings = page.boot()["first"]["settings"] | {"model": OFFLINE_MODEL}

    def weigh(bits, **more):
        return page.weigh(
            requests.Weigh(choices=requests.Choices(**settings | more, recipe=[("rtn", {"bits": bits})]))
        )

    told = weigh(5)
    assert not told["fits"] and "wikitext-2" in told["error"] and 'data-act="builtin"' in told["error"]
    assert weigh(4)["stored"] and not weigh(4)["error"]
    assert not weigh(5, text="builtin")["error"]
    assert told["instead"]["text"] == "builtin" and "8,192" in told["told"]
    assert "instead" not in weigh(5, tokens=16_384), "a visitor's own choice stays"
    assert not weigh(5, **told["instead"])["error"]


@pytest.mark.parametrize(
    "words, family",
    [
        ("wanda --sparsity 0.5 + lora", "pruning"),
        ("svd_llm + lora", "low_rank"),
        ("lora", "low_rank"),
        ("wanda --sparsity 0.5 + gptq --bits 4", "quantization"),
        ("gptq --bits 4 + lora", "quantization"),
        ("none --cache_bits 4", "quantization"),
    ],
)
def test_a_repaired_model_belongs_to_the_family_of_what_was_repaired(words, family, tmp_path):
    steps, fields = asked(words)
    spec = RunSpec(OFFLINE_MODEL, steps, **fields)
    assert Store(tmp_path)._row(Result("k", spec, "ok"), shipped=False)["family"] == family


def test_the_newest_of_equal_runs_is_drawn():
    rows = [row("old", 1, 1.0, key="k", created=1.0), row("new", 1, 1.0, key="k", created=2.0)]
    assert [r["id"] for r in pareto.comparable(rows, "m", "p")] == ["new"]


def test_times_of_other_machines_are_left_out_and_the_original_gets_this_ones():
    times = {"decode_tokens_per_second": 10.0, "baseline_decode_tokens_per_second": 20.0}
    rows = [
        ORIGINAL,
        row("here", 1, 1.0, host="cpu", threads=2, **times),
        row("there", 1, 1.0, host="other", threads=2, **times),
    ]
    found = pareto.on_this_machine(rows, "cpu", 2)
    assert [r["id"] for r in found] == ["here", "o"] and metrics.value(
        found[1], "decode_tokens_per_second"
    ) == 20.0


@pytest.mark.parametrize("y", ["perplexity_ratio", "same_top_token_rate", "kl_divergence_mean"])
def test_both_pictures_hold_every_point_and_the_figure_is_json(y):
    rows = [
        r | {"same_top_token_rate": 0.9, "kl_divergence_mean": 0.1} if r is not ORIGINAL else r for r in ROWS
    ]
    drawing = plots.draw(rows, "file_bytes", y, EN)
    figure = plots.figure(drawing)
    json.dumps(figure, allow_nan=False)
    ids = [i for t in figure["data"] for i in t.get("customdata", ())]
    assert sorted(ids) == ["a", "b", "c", "d", "o"]
    assert plots.still(drawing).count('class="mark') == 5


def test_a_broken_model_is_drawn_at_the_edge_with_its_true_value():
    marks = {m.id: m for m in plots.marks(ROWS, "file_bytes", "perplexity_ratio", EN)}
    assert marks["d"].clipped and marks["d"].y == plots.WORST_RATIO and "400" in marks["d"].hover


def test_better_is_up_and_the_line_runs_from_left_to_right():
    drawing = plots.draw(ROWS, "file_bytes", "perplexity_ratio", EN)
    assert drawing.y.at(1.0) > drawing.y.at(2.0)
    line = plots.figure(drawing)["data"][0]["x"]
    assert line == sorted(line)
    for scale in (drawing.x, drawing.y):
        assert all(0 <= scale.at(t) <= 1 for t, _ in scale.ticks) and len(scale.ticks) >= 3
        assert all(0 <= scale.at(getattr(m, "x" if scale is drawing.x else "y")) <= 1 for m in drawing.marks)


def test_at_most_four_labels_and_none_covers_another():
    labels = plots.draw(ROWS, "file_bytes", "perplexity_ratio", EN).labels
    assert 2 <= len(labels) <= 4


def test_nothing_to_draw_is_drawn_as_nothing():
    drawing = plots.draw([], "file_bytes", "perplexity_ratio", EN)
    assert plots.figure(drawing)["layout"]["xaxis"]["tickvals"] == [] and "mark" not in plots.still(
        drawing
    ).replace("markers", "")


def test_foreign_text_never_becomes_markup():
    evil = row(
        "e", 10, 1.0, model="<img src=x onerror=alert(1)>", recipe=(("rtn", {"bits": "<b>"}),), text="<i>"
    )
    html = cards.runs_table([evil], EN, "cpu", 2)
    html += cards.error_card(EN, {"code": "unknown_model", "message": "<script>", "facts": {"name": "<img>"}})
    assert not any(tag in html for tag in ("<img", "<script", "<i>", "<b>"))

"""Which runs lead, which one to take, and that both pictures show the same."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from compression import texts
from compression.catalogue import OFFLINE_MODEL
from evaluation import ROOT
from evaluation.benches import exported, overview
from evaluation.benches.shipped import asked
from evaluation.measuring import metrics
from evaluation.page import cards, pareto, plots, points, requests
from evaluation.page import front as front_page
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


def test_what_was_measured_otherwise_never_shares_a_figure():
    """Another model, another text or window (the protocol), another word table; a failed run."""
    rows = [
        *ROWS,
        row("x", 1, 1.0, model="other"),
        row("y", 1, 1.0, protocol_id="q"),
        row("t", 1, 1.0, table_bits=8),
        row("z", 1, 1.0, status="failed"),
    ]
    named = {name: n for name, _, n in pareto.sets(rows, "m")}
    assert named == {"p · table 16": 4, "q · table 16": 1, "p · table 8": 1}
    assert next(iter(named)) == "p · table 16", "the set with the most runs first"

    def drawn(name):
        return {r["id"] for r in pareto.comparable(rows, "m", name)}

    assert drawn("p · table 16") == {"o", "a", "b", "c", "d"}
    assert drawn("p · table 8") == {"o", "t"}, "the original, whose table nobody rounded, stands in both"
    assert drawn("q · table 16") == {"y"}


def test_sets_are_told_in_words_and_two_of_one_name_apart():
    facts = {"text": "wikitext-2", "tokens": 32_768, "window": 512}
    rows = [row("a", 1, 1.0, **facts), row("b", 1, 1.0, **facts, protocol_id="q")]
    known = pareto.sets([*rows, row("c", 1, 1.0, **facts, table_bits=8)], "m")
    told = front_page.set_names(known, EN)
    assert "WikiText-2, 32,768 tokens, windows of 512, word table in 8 bits" in told
    assert len(set(told)) == 3
    whole = front_page.set_names([("n", row("d", 1, 1.0, text="/home/me/my book.txt", tokens=None), 1)], EN)
    assert whole[0].startswith("my book.txt, the whole text, ")


def test_a_familys_best_by_hand():
    """The smallest within 5 %, else the least bad; nothing that isn't smaller than the original."""
    rows = [
        *ROWS,
        row("p", 80, 1.9, "pruning", baseline_file_bytes=100),
        row("r", 90, 1.7, "pruning", baseline_file_bytes=100),
        row("l", 100, 0.9, "low_rank", baseline_file_bytes=100),
    ]
    rows = [r | {"baseline_file_bytes": 100e6} if r["family"] == "quantization" else r for r in rows]
    assert {f: r["id"] for f, r in pareto.family_best(rows).items()} == {"quantization": "a", "pruning": "r"}
    told = {f: front_page.best_of(r, EN) for f, r in pareto.family_best(rows).items()}
    assert told["quantization"] == "best: Rounding 4 bits, 50\u00a0MB, as good as the original"
    assert told["pruning"] == "best: Rounding 4 bits, 90\u00a0B, 70 % worse"


@pytest.mark.parametrize(
    "ratio, said",
    [
        (1.004, "as good as the original"),
        (1.033, "3.3 % worse"),
        (1.999, "100 % worse"),
        (3.0, "3.0× the perplexity"),
        (6.7, "broken (6.7×)"),
    ],
)
def test_what_one_pays_in_words(ratio, said):
    assert front_page.cost(ratio, EN) == said


def test_a_chain_goes_on_from_the_run_of_its_first_steps():
    one, other = ("gptq", {"bits": 4, "group_size": 64}), ("gptq", {"group_size": 128, "bits": 4})
    last = ("lut_gemm", {"bits": 4})
    rows = [
        row("one", 1, 1.0, recipe=[one]),
        row("other", 1, 1.0, recipe=[other]),
        row("chain", 1, 1.0, recipe=[other, last]),
        row("orphan", 1, 1.0, recipe=[("rtn", {"bits": 4}), last]),
    ]
    assert pareto.parents(rows) == {"chain": "other"}
    assert pareto.parents([rows[0], row("c", 1, 1.0, recipe=[one], cache_bits=4)]) == {}


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
    assert set(found["ids"]) == points.names() and found["set"].startswith("wiki.test.raw")
    assert found["set"] == max(found["sets"], key=lambda s: int(s[1].rsplit(" ", 2)[-2]))[0], "the richest"
    assert any("more stored runs are in the table" in said for said in found["remarks"])
    assert set(found["families"]) == set(plots.SYMBOLS)
    other = next(r.id for r in Store(tmp_path).shipped() if "gates-rtn-2" in r.id)
    assert set(front(Store(tmp_path), selected=other)["ids"]) == points.names() | {other}


def test_the_headline_compares_with_what_can_be_downloaded(tmp_path):
    """The publisher's file has 98 MB, the 16-bit weights 269: both are in the sentence, and right."""
    said = front(Store(tmp_path))["headline"].replace("\u00a0", " ")
    found = re.fullmatch(
        r"SmolLM2 135M Instruct in (\d+) MB stays about as good: ([\d.]+)× smaller than in 16 bits \(269 MB\), "
        r"([\d.]+)× (smaller|larger) than its publisher's file \(98 MB\)\.",
        said,
    )
    now, smaller, times = map(float, found.groups()[:3])
    assert smaller == pytest.approx(269 / now, abs=0.06)
    assert times == pytest.approx(max(now, 98) / min(now, 98), abs=0.06)
    assert (found[4] == "larger") == (now > 98)
    plain = front_page.headline([row("a", 50e6, 1.001, baseline_file_bytes=100e6)], "m", EN)
    assert plain.replace("\u00a0", " ") == "m shrinks from 100 MB to 50 MB and stays as good as the original."


def test_runs_measured_otherwise_never_stand_beside_the_points(tmp_path):
    """A quick run of the built-in text: alone on its figure; both sets can be chosen, each by its words."""
    store = Store(tmp_path)
    shipped = next(r for r in store.shipped() if r.id == "shipped-gates-rtn-4")
    protocol = "builtin 00000000 · raw · window 512 · 8192 tokens"
    spec = dataclasses.replace(shipped.spec, text="builtin", calibration="builtin", tokens=8_192)
    store.put(dataclasses.replace(shipped, id="quick", key="quick", spec=spec, protocol_id=protocol))
    found = front(store, selected="quick")
    assert found["ids"] == ["quick"] and found["set"] == f"{protocol} · table 16"
    told = dict(found["sets"])
    assert told[found["set"]].startswith("Built-in text, 8,192 tokens") and len(told) >= 3
    assert front(store)["set"] != found["set"], "nobody who didn't ask for it sees the other set"


def test_a_word_table_of_fewer_bits_is_another_set(tmp_path):
    store = Store(tmp_path)
    shipped = next(r for r in store.shipped() if r.id == "shipped-gates-rtn-4")
    spec = dataclasses.replace(shipped.spec, table_bits=8)
    store.put(dataclasses.replace(shipped, id="eight", key="eight", spec=spec))
    assert front(store, selected="eight")["ids"] == ["shipped-gates-none", "eight"]
    assert "eight" not in front(store)["ids"]


def test_only_what_other_programs_load(tmp_path):
    """The original stays; advice is drawn from what is left."""
    every, some = front(Store(tmp_path)), front(Store(tmp_path), deploy=True)
    left = set(some["ids"])
    assert "shipped-gates-gptq-4" in left and "shipped-gates-none" in left
    assert not left & {"shipped-gates-spqr-4", "shipped-gates-svd-0.2", "shipped-gates-wanda-0.5"}
    assert left < set(every["ids"]) and some["best"] in left
    assert some["families"]["quantization"] != every["families"]["quantization"]
    store = Store(tmp_path)
    rows = [
        r | {"id": "own", "shipped": False, "artifact": True} for r in store.rows() if "gptq-4" in r["id"]
    ]
    ask = requests.Front(model=OFFLINE_MODEL, deploy=True)
    assert front_page.answer(ask, rows[:1], lambda row: ["gptq_v2"])["ids"] == ["own"]
    assert front_page.answer(ask, rows[:1], lambda row: [])["ids"] == []


def test_speed_is_that_of_one_named_machine_beside_the_original(tmp_path):
    found = front(Store(tmp_path), x="decode_speedup")
    machine = points.machine(sorted(points.names()))
    drawn = {m["id"]: m for m in found["scene"]["marks"]}
    assert set(drawn) == {i for i in points.names() if i in machine["rates"]} and len(drawn) >= 30
    assert any(machine["processor"] in said for said in found["remarks"])
    own, original = machine["rates"]["shipped-gates-gptq-4"]
    said = " ".join(drawn["shipped-gates-gptq-4"]["lines"])
    assert f"writing speed ÷ original: {EN.figure('decode_speedup', own / original)}" in said
    missing = len(points.names()) - len(drawn)
    assert any(f"{missing} runs have no value" in said for said in found["remarks"])
    assert found["time_here"]["id"] == found["best"], "what is looked at can be timed here"


def test_an_own_run_has_its_times_on_the_machine_of_the_bench_alone():
    machine = {"processor": "cpu", "threads": 2, "rates": {"a": [30.0, 10.0]}}
    times = {"decode_tokens_per_second": 20.0, "baseline_decode_tokens_per_second": 10.0, "threads": 2}
    rows = [
        row("a", 1, 1.0),
        row("b", 1, 1.0, host="cpu", **times),
        row("c", 1, 1.0, host="other", **times),
        row("d", 1, 1.0, host="cpu", threads=2),
    ]
    faster = [metrics.value(r, "decode_speedup") for r in points.rated(rows, machine)]
    assert faster == [3.0, 2.0, None, None]
    assert "decode_speedup" not in rows[0], "rows are shared and stay as they are"


def test_speeds_are_those_of_the_bench_and_every_export_was_tried(tmp_path):
    """`python -m evaluation tables` writes both files."""
    assert [m["rates"] for m in points.machines()] == [m["rates"] for m in overview.speeds()]
    assert set(points.exports()) == {r.id for r in Store(tmp_path).shipped() if r.status == "ok"}


@pytest.mark.parametrize(
    "name", ["gates-rtn-4", "gates-nf4-double", "gates-smoothquant-0.5", "gates-magnitude-0.5"]
)
def test_exports_are_what_writing_the_recipe_gives(tmp_path, name):
    result = next(r for r in Store(tmp_path).shipped() if r.id == f"shipped-{name}")
    assert exported.forms(result) == points.exports()[result.id]
    assert exported.found([result], {result.id: ["x"]}) == {result.id: ["x"]}, "what is known isn't run again"


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
    assert [r["id"] for r in pareto.comparable(rows, "m", "p · table 16")] == ["new"]


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
def test_the_scene_holds_every_point_inside_its_frame_and_is_json(y):
    rows = [
        r | {"same_top_token_rate": 0.9, "kl_divergence_mean": 0.1} if r is not ORIGINAL else r for r in ROWS
    ]
    scene = plots.scene(plots.draw(rows, "file_bytes", y, EN))
    json.dumps(scene, allow_nan=False)
    assert sorted(m["id"] for m in scene["marks"]) == sorted(scene["names"]) == ["a", "b", "c", "d", "o"]
    assert all(0 <= m["x"] <= 1 and (m["y"] is None or 0 <= m["y"] <= 1) for m in scene["marks"])


def test_a_broken_model_stretches_no_axis_and_keeps_its_true_value():
    """It has no height of its own, and its words say what it is."""
    drawing = plots.draw(ROWS, "file_bytes", "perplexity_ratio", EN)
    marks = {m["id"]: m for m in plots.scene(drawing)["marks"]}
    assert marks["d"]["y"] is None and "400" in " ".join(marks["d"]["lines"])
    without = plots.draw(ROWS[:-1], "file_bytes", "perplexity_ratio", EN)
    assert (drawing.y.low, drawing.y.high) == (without.y.low, without.y.high)
    own = [r | {"perplexity": 10 * (r["perplexity_ratio"] or 1)} for r in ROWS]
    told = {m["id"]: m["y"] for m in plots.scene(plots.draw(own, "file_bytes", "perplexity", EN))["marks"]}
    assert told["d"] is None and told["c"] is not None
    assert plots.beyond_use(ROWS, "kl_divergence_mean") == math.inf


@pytest.mark.parametrize("quality", ["perplexity_ratio", "perplexity"])
def test_a_broken_model_has_no_place_on_whichever_axis_the_quality_stands(quality):
    """Perplexity from left to right: the same as upwards, with the axes changed; on both axes: no place."""
    rows = [r | {"perplexity": 10 * (r["perplexity_ratio"] or 1)} for r in ROWS]
    up, across, both = (
        plots.draw(rows, *axes, EN)
        for axes in (("file_bytes", quality), (quality, "file_bytes"), (quality, quality))
    )

    def lost(drawing, axis):
        return {m["id"] for m in plots.scene(drawing)["marks"] if m[axis] is None}

    assert lost(up, "y") == lost(across, "x") == lost(both, "x") == lost(both, "y") == {"d"}
    assert not lost(up, "x") and not lost(across, "y")
    assert (across.x.low, across.x.high) == (up.y.low, up.y.high) and "d" in across.names
    assert "d" not in {m.id for m in plots.joined(across.marks)}
    json.dumps(plots.scene(both), allow_nan=False)


FIRST_FIGURE = """
import json, sys, tempfile
from pathlib import Path
from compression.catalogue import OFFLINE_MODEL
from evaluation.page.questions import Page
from evaluation.store import Store

page = Page(Store(Path(tempfile.mkdtemp())), None)
page.boot()
for more in ({}, {"deploy": True}, {"x": "decode_speedup"}):
    got = page.answer("front", {"model": OFFLINE_MODEL, "lang": "zh-Hant", **more})
    assert "error" not in got and got["scene"]["marks"] and got["headline"], got
page.answer("zoomed", {"model": OFFLINE_MODEL})
table = page.answer("runs", {})
heavy = sorted({"torch", "transformers"} & set(sys.modules))
print(json.dumps([len(got["scene"]["marks"]), "error" in table, heavy]))
"""


def test_the_first_figure_waits_for_no_torch(tmp_path):
    """An import of torch takes seconds, and shipped results need none of it."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_FIGURE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    marks, failed, imported = json.loads(done.stdout)
    assert marks > 5 and not failed and imported == []


FIRST_CARDS = """
import json, sys, tempfile
from pathlib import Path
from compression.catalogue import OFFLINE_MODEL
from evaluation.declared import get
from evaluation.page.questions import Page
from evaluation.running.estimate import estimate, path
from evaluation.store import Store

page = Page(Store(Path(tempfile.mkdtemp())), None, estimate=estimate, path=path)
front = page.answer("front", {"model": OFFLINE_MODEL})
runs = {r.id: r.spec for r in page.store.shipped()}
plain = [m["id"] for m in front["scene"]["marks"] if not any(get(n).trains for n, _ in runs[m["id"]].recipe)]
cold = [page.answer("card", {"id": id, "lang": "zh-Hant"}) for id in plain]
heavy = sorted({"torch", "transformers"} & set(sys.modules))
assert front["best"] in plain and all(got["html"] and got["spec"] and "error" not in got for got in cold)
estimate(runs[front["best"]])
(again,) = [page.answer("card", {"id": front["best"]})]
print(json.dumps([len(plain), heavy, [got["soon"] for got in cold], again["soon"], again["html"]]))
"""


def test_the_first_cards_wait_for_no_torch(tmp_path):
    """A card of a run without training says how long it takes as soon as its methods are loaded."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CARDS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    count, imported, soon, later, html = json.loads(done.stdout)
    assert count > 5 and imported == [] and all(soon) and not later
    assert re.search(r"Make it \([^)]+\), then chat", html)


def test_better_is_up_and_the_line_runs_from_left_to_right():
    drawing = plots.draw(ROWS, "file_bytes", "perplexity_ratio", EN)
    assert drawing.y.at(1.0) > drawing.y.at(2.0)
    line = [x for x, _ in plots.scene(drawing)["line"]]
    assert line == sorted(line)
    for scale in (drawing.x, drawing.y):
        assert all(0 <= scale.at(t) <= 1 for t, _ in scale.ticks) and len(scale.ticks) >= 3


def test_an_error_bar_reaches_two_errors_to_each_side():
    rows = [ORIGINAL, row("a", 50e6, 1.5, perplexity_ratio_stderr=0.1), row("b", 60e6, 3.0)]
    drawing = plots.draw(rows, "file_bytes", "perplexity_ratio", EN)
    (mark,) = (m for m in plots.scene(drawing)["marks"] if m["spread"])
    assert mark["spread"] == pytest.approx(sorted((drawing.y.at(1.3), drawing.y.at(1.7))))


def test_which_names_come_first():
    """The original, the best, the run that is looked at, own runs with the newest first, families' best."""
    stored = [r | {"shipped": True} for r in ROWS]
    own = [row("old", 55e6, 2.0, created=1.0), row("new", 56e6, 2.1, created=2.0)]
    drawing = plots.draw([*stored, *own], "file_bytes", "perplexity_ratio", EN, "c")
    assert drawing.names[:5] == ["o", "a", "c", "new", "old"] and set(drawing.names) == {
        m.id for m in drawing.marks
    }


def test_nothing_to_draw_is_drawn_as_nothing():
    scene = plots.scene(plots.draw([], "file_bytes", "perplexity_ratio", EN))
    assert scene["marks"] == scene["x"]["ticks"] == scene["line"] == [] and scene["band"] is None


def test_the_figure_as_a_page_of_its_own_holds_every_run_and_needs_no_network(tmp_path):
    page = Page(Store(tmp_path), None)
    ask = {"model": OFFLINE_MODEL, "x": "file_bytes", "y": "perplexity_ratio"}
    drawn, text = page.answer("front", ask), page.answer("zoomed", ask)["text"]
    assert text.startswith("<!doctype html>") and "plotly.js v" in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text), "nothing is loaded from elsewhere"
    said = re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text)
    for mark in drawn["scene"]["marks"]:
        assert str(escape(mark["lines"][0])) in said
    assert "No run of this model" in page.answer("zoomed", {"model": "gpt2"})["error"]


def test_foreign_text_never_becomes_markup():
    evil = row(
        "e", 10, 1.0, model="<img src=x onerror=alert(1)>", recipe=(("rtn", {"bits": "<b>"}),), text="<i>"
    )
    html = cards.runs_table([evil], EN, "cpu", 2)
    html += cards.error_card(EN, {"code": "unknown_model", "message": "<script>", "facts": {"name": "<img>"}})
    assert not any(tag in html for tag in ("<img", "<script", "<i>", "<b>"))

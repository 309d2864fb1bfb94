"""The page's scripts, function by function, in an empty page of the browser that the other tests use."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

import pytest

from evaluation.page import plots
from tests.page.stage import ROOT

pytestmark = pytest.mark.browser
SCRIPTS = ROOT / "assets" / "scripts"
PANELS = {  # what a panel's files find there, without a server behind it
    "front": "small link layout plot picture answer front",
    "controls": "small link declared model knobs fields estimate progress controls",
    "runs": "small link runs",
    "chat": "small link columns recorded chat",
    "top": "small link",
    "plan": "small sizes plan",
}
AROUND = """
  const root = document.createElement('section'), props = {}, server = {}, watch = () => {}, t = key => key;
  const ce = {ready: new Promise(() => {}), state: {x: 'file_bytes'}};
"""
BITS = {"name": "bits", "type": "int", "default": 4, "lo": 2, "hi": 8, "choices": None, "main": True}
ORDER = {"name": "order", "type": "bool", "default": True, "lo": None, "hi": None, "choices": None}
TABLE = {"name": "table", "type": "str", "default": "nf4", "lo": None, "hi": None, "choices": ["nf4", "fp4"]}
QUICK = {"tokens": 8192, "calibration_tokens": 8192, "window": 512, "table_bits": 8}
DATA = {  # as Page.boot has it
    "words": {
        "en": {"param.bits": "Bits", "param.order": "Order", "setting.window": "Window"},
        "zh-Hant": {},
    },
    "tabs": ["explore", "chat", "learn"],
    "models": [{"name": "small"}, {"name": "large"}],
    "methods": [
        {"name": "gptq", "params": [BITS, ORDER]},
        {"name": "rtn", "params": [BITS]},
        {"name": "nf4", "params": [TABLE], "family": "pruning"},
    ],
    "presets": {
        "quick": QUICK,
        "paper": {"tokens": None, "calibration_tokens": 8192, "window": 2048, "table_bits": 16},
    },
    "axes": ["file_bytes", "perplexity_ratio"],
    "view": {"x": "file_bytes", "y": "perplexity_ratio"},
    "first": {
        "model": "small",
        "method": "gptq",
        "values": {"bits": 4},
        "settings": QUICK
        | {"preset": "quick", "text": "builtin", "calibration": "builtin", "protocol": "raw"},
    },
    "public": False,
}


@pytest.fixture(scope="module")
def blank(browser):
    context = browser.new_context()
    yield context.new_page()
    context.close()


@pytest.fixture
def call(blank):
    """What an expression over a panel's functions gives."""

    def call(panel: str, expression: str, *arguments, around: str = ""):
        source = AROUND + "\n".join(
            (SCRIPTS / f"{name}.js").read_text("utf-8") for name in PANELS[panel].split()
        )
        code = f"{source}\n{around}\nreturn ({expression})(...values);"
        return blank.evaluate("([code, values]) => new Function('values', code)(values)", [code, arguments])

    return call


# --- words and numbers ---


@pytest.mark.parametrize(
    "sentence, facts, expected",
    [
        ("{a} of {b}", {"a": 1, "b": "two"}, "1 of two"),
        ("{n} left", {"n": 0}, "0 left"),
        ("{n} left", {}, "? left"),
        ("{a}", {"a": "{b}", "b": "no"}, "{b}"),
    ],
)
def test_a_sentence_is_filled_once(call, sentence, facts, expected):
    assert call("top", "fill", sentence, facts) == expected


@pytest.mark.parametrize("n, expected", [(98_400_000, "98 MB"), (1.26e9, "1.3 GB"), (15e9, "15 GB")])
def test_sizes(call, n, expected):
    assert call("top", "sizeWords", n) == expected


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("bits", 4, "4"),
        ("alpha", 0.30000000000000004, "0.3"),
        ("sparsity", 0.55, "55 %"),
        ("kept", 0.65, "65 %"),
    ],
)
def test_a_knobs_value(call, name, value, expected):
    assert call("controls", "shown", name, value) == expected


@pytest.mark.parametrize(
    "lang, n, expected",
    [("en", 134_515_008, "135M"), ("zh-Hant", 134_515_008, "1.35億"), ("en", 32_768, "32.8K")],
)
def test_large_numbers_as_the_language_says_them(call, lang, n, expected):
    assert call("controls", "(lang, n) => { ce.lang = lang; return compact(n); }", lang, n) == expected


@pytest.mark.parametrize("text, expected", [("", 96), ("abc", 96), ("5", 8), ("40", 40), ("9999", 512)])
def test_a_number_stays_within_its_limits(call, text, expected):
    assert call("chat", "text => within(text, 8, 512, 96)", text) == expected


def test_an_elements_children_are_text(call):
    made = "(...children) => h('p', {title: '\"', hidden: false}, children).outerHTML"
    assert call("top", made, "<img>", None, False, "", 0) == '<p title="&quot;">&lt;img&gt;0</p>'


# --- tabs ---


@pytest.mark.parametrize(
    "tabs, now, key, expected",
    [
        ("ec", "e", "ArrowRight", "c"),
        ("ec", "c", "ArrowRight", "e"),
        ("ec", "e", "ArrowLeft", "c"),
        ("ecl", "c", "ArrowRight", "l"),
        ("ecl", "c", "ArrowLeft", "e"),
        ("ecl", "l", "ArrowRight", "e"),
        ("ecl", "c", "Home", "e"),
        ("ecl", "c", "End", "l"),
        ("e", "e", "ArrowRight", "e"),
        ("ecl", "c", "Enter", None),
    ],
)
def test_keys_move_through_any_number_of_tabs(call, tabs, now, key, expected):
    assert call("top", "tabAt", list(tabs), now, key) == expected


# --- the address ---


def read(call, query, natural="en", **changes):
    return call("top", "readLink", query, DATA | changes, natural)


def write(call, shown, **changes):
    return call("top", "(shown, data) => writeLink(shown, data).toString()", shown, DATA | changes)


def test_a_first_visit(call):
    shown = read(call, "")
    assert shown["state"]["model"] == "small" and shown["state"]["steps"] == [{"method": "gptq"}]
    assert shown["memory"] == {"gptq": {"bits": 4}} and shown["tab"] == "explore" and shown["problems"] == []
    assert shown["state"]["settings"]["tokens"] == 8192 and shown["state"]["x"] == "file_bytes"
    assert write(call, shown | {"natural": "en"}) == "method=gptq&bits=4"


@pytest.mark.parametrize(
    "query",
    [
        "model=large&method=gptq&bits=3&order=false&then=nf4&then.table=fp4",
        "model=owner%2Fname&method=rtn&bits=8&run=2024-a%2Bb&tab=chat&lang=zh-Hant",
        "method=gptq&bits=4&tokens=all&window=2048&table_bits=16&preset=paper",
        "method=gptq&bits=4&text=%2Fhome%2Fme%2Ftext.txt&cache_bits=4&cache_keys=channel&seed=7",
        "method=gptq&bits=4&x=perplexity_ratio&y=file_bytes",
        "method=gptq&bits=4&family=pruning&deploy=yes",
        "method=gptq&bits=4&seed=7&tab=learn&lesson=gptq&knobs=4%2Cx&lesson_seed=room+12&class=AB12",
    ],
)
def test_a_link_restores_what_it_was_made_of(call, query):
    shown = read(call, query)
    assert shown["problems"] == []
    written = write(call, shown | {"natural": "en"})
    assert parse_qs(written) == parse_qs(query)
    assert read(call, written) == shown


@pytest.mark.parametrize(
    "query, code, fact",
    [
        ("model=nosuch", "link_model", "nosuch"),
        ("method=nosuch", "link_method", "nosuch"),
        ("method=gptq&bits=99", "link_knob", "2 – 8"),
        ("method=gptq&bits=4.5", "link_knob", "4.5"),
        ("method=gptq&bits=", "link_knob", "2 – 8"),
        ("method=gptq&order=constructor", "link_knob", "true, false"),
        ("method=nf4&table=nf5", "link_knob", "nf4, fp4"),
        ("window=many", "link_knob", "Window"),
        ("window=-1", "link_knob", "-1"),
    ],
)
def test_what_a_link_names_wrongly_is_told_and_replaced(call, query, code, fact):
    shown = read(call, query)
    ((told, facts),) = shown["problems"]
    assert told == code and fact in facts.values()
    usual = read(call, query.split("&")[0] if query.startswith("method=") and "&" in query else "")
    assert shown["state"] == usual["state"] and shown["memory"] == usual["memory"]


@pytest.mark.parametrize("name", ["constructor", "toString", "__proto__", "nosuch"])
def test_a_link_names_nothing_that_the_page_doesnt_list(call, name):
    shown = read(call, f"lang={name}&preset={name}&tab={name}&x={name}&family={name}&deploy={name}")
    assert shown["lang"] == "en" and shown["tab"] == "explore" and shown["state"] == read(call, "")["state"]


def test_a_path_is_a_model_only_on_ones_own_machine(call):
    assert read(call, "model=/models/mine")["state"]["model"] == "/models/mine"
    refused = read(call, "model=/models/mine", public=True)
    assert refused["state"]["model"] == "small" and refused["problems"][0][0] == "link_model"


def test_a_tab_that_this_page_doesnt_have_is_not_opened(call):
    assert read(call, "tab=chat", tabs=["explore"])["tab"] == "explore"
    assert read(call, "tab=learn", tabs=["explore", "chat", "learn"])["tab"] == "learn"


# --- the line to the server ---

# Newest over a line of which the test holds the other end: `asked` has what was asked and how to answer it.
LINE = """
  const asked = [], get = newest(what => new Promise(answer => asked.push({what, answer})), {again: 5});
  const until = async n => { while (asked.length < n) await sleep(1); };
"""


def test_a_dropped_line_is_tried_until_it_answers(call):
    tries = """async () => {
      const got = get('a');
      for (const [i, answer] of [null, null, 'yes'].entries()) { await until(i + 1); asked[i].answer(answer); }
      return [await got, asked.map(a => a.what)];
    }"""
    assert call("top", tries, around=LINE) == ["yes", ["a", "a", "a"]]


def test_an_older_answer_never_replaces_a_newer_one(call):
    late = """async () => {
      const old = get('a'); await until(1);
      const fresh = get('b'); await until(2);
      asked[1].answer('fresh'); asked[0].answer('old');
      return Promise.all([old, fresh]);
    }"""
    assert call("top", late, around=LINE) == [None, "fresh"]


def test_whoever_is_overtaken_stops_asking(call):
    overtaken = """async () => {
      const old = get('a'); await until(1);
      asked[0].answer(null);
      const fresh = get('b'); await until(2);
      asked[1].answer('fresh');
      const got = await Promise.all([old, fresh]);
      await sleep(50);
      return [got, asked.map(a => a.what)];
    }"""
    assert call("top", overtaken, around=LINE) == [[None, "fresh"], ["a", "b"]]


def test_askings_in_a_row_are_asked_once(call):
    row = """async () => {
      const got = [1, 2, 3].map(n => get(n)); await until(1);
      asked[0].answer('yes');
      return [await Promise.all(got), asked.map(a => a.what)];
    }"""
    assert call("top", row, around=LINE) == [[None, None, "yes"], [3]]


@pytest.mark.parametrize(
    "got, going, pause",
    [
        (None, True, 400),
        ({"status": "queued"}, True, 2500),
        ({"status": "running"}, True, 400),
        ({"status": "ok"}, False, 400),
        ({"status": "unknown"}, False, 400),
    ],
)
def test_a_run_is_followed_while_it_is_on_its_way(call, got, going, pause):
    assert call("controls", "got => [onItsWay(got), pause(got)]", got) == [going, pause]


def test_a_browser_that_keeps_nothing_still_works(call):
    """An empty page may not use the storage."""
    assert call("top", "() => { keep('a', 1); keep('a', null); return kept('a'); }") is None


# --- the knobs ---


def test_a_parameter_without_effect(call):
    when = {"when": {"rounding": True}}
    assert call("top", "effective", when, {"rounding": True}) and call("top", "effective", when, {})
    assert not call("top", "effective", when, {"rounding": False}) and call("top", "effective", {}, {})


PATH = [{"at": v / 10, "bytes": 100 * v, "hint": f"{v}"} for v in (1, 2, 3)]


@pytest.mark.parametrize(
    "value, weighed, expected",
    [
        (0.1 + 0.2, {"path": PATH}, {"bytes": 300, "words": "3"}),
        (0.25, {"path": PATH, "bytes": 7, "hint": "h"}, {"bytes": 7, "words": "h"}),
        (0.25, {"path": PATH}, None),
        (4, {"path": []}, None),
    ],
)
def test_where_the_ghost_stands(call, value, weighed, expected):
    assert call("controls", "ghostAt", weighed, value) == expected


@pytest.mark.parametrize(
    "ends, value, expected",
    [
        ([100, 200], 150, 0.5),
        ([100, 200], 100, 0),
        ([100, 200], 90, None),
        ([100, 200], None, None),
        (None, 150, None),  # a logarithmic axis
    ],
)
def test_where_the_knobs_next_model_stands(call, ends, value, expected):
    assert call("front", "(range, value) => along({range}, value)", ends, value) == expected


def test_four_points(call):
    assert call("controls", "fourPoints", BITS) == [8, 4, 3, 2]
    assert call("controls", "fourPoints", {"type": "float", "lo": 0.3, "hi": 0.7}) == [0.4, 0.6]


def test_which_budget_the_values_are_of(call):
    params = [BITS, {"name": "train_tokens", "default": 10}, {"name": "other", "default": 1}]
    full = {"bits": 8, "train_tokens": 99}
    now = "(...given) => budgets(...given).now"
    assert call("controls", now, full, params, {"bits": 3, "train_tokens": 10}) == "short", (
        "the knob may move"
    )
    assert call("controls", now, full, params, {"bits": 3, "train_tokens": 99}) == "full"
    assert call("controls", now, full, params, {"bits": 8, "train_tokens": 50}) == "own"
    assert list(call("controls", "budgets", full, params, {"train_tokens": 50})["all"]) == [
        "short",
        "full",
        "own",
    ]


def test_an_essays_formulas_stay_lines(call):
    essay = "One\ntwo `three`.\n    a = b\n    c = d\nAnd so\non.\n\nNext."
    assert call("controls", "paragraphs", essay) == [
        {"formula": False, "text": "One two three."},
        {"formula": True, "text": "    a = b\n    c = d"},
        {"formula": False, "text": "And so on."},
        {"formula": False, "text": "Next."},
    ]


# --- the pictures, the table and the chat ---


def point(x, y, **more):
    return {"id": f"{x} {y}", "x": x, "y": y, "r": 7} | more


FRAME = {"left": 50, "top": 30, "right": 590, "bottom": 340, "floor": 400, "width": 600, "height": 446}
WIDTH = "text => 7 * text.length"  # a measure of texts, as a browser has one


def test_names_cover_no_point_no_line_and_no_other_name(call):
    points = [point(100 + 23 * (i * 7 % 17), 60 + 19 * (i * 5 % 13)) for i in range(16)]
    names = [{**p, "text": f"Method {i} bits"} for i, p in enumerate(points)]
    line = [[120, 100], [300, 120], [500, 110]]
    places = f"(names, points, line, f) => placed(names, points, onLine(line), f, {WIDTH})"
    found = call("front", places, names, points, line, FRAME)
    boxes = []
    for name in filter(None, found):
        wide = 7 * len(name["text"])
        left = name["x"] - {"start": 0, "middle": wide / 2, "end": wide}[name["anchor"]]
        boxes.append((left, name["y"] - 12, left + wide, name["y"] + 4))
    assert len(boxes) >= 6
    for i, box in enumerate(boxes):
        assert box[0] >= FRAME["left"] and box[2] <= FRAME["width"] and box[3] <= FRAME["floor"]
        assert not any(plots.overlap(box, other) for other in boxes[i + 1 :])
        assert not any(plots.overlap(box, (p["x"], p["y"], p["x"], p["y"])) for p in points)
        for (a, b), (x, y) in zip(line, line[1:], strict=False):
            on = [(a + (x - a) * k / 200, b + (y - b) * k / 200) for k in range(201)]
            assert not any(plots.overlap(box, (p, q, p, q)) for p, q in on)


def test_a_name_that_has_no_room_is_left_out_and_the_first_gets_the_place(call):
    crowd = [point(300, 200), point(300, 208), point(308, 204), point(292, 204)]
    names = [{**p, "text": "a name that is long enough to need the room of its neighbours"} for p in crowd]
    found = call("front", f"(names, f) => placed(names, names, [], f, {WIDTH})", names * 4, FRAME)
    assert found[0] and None in found


@pytest.mark.parametrize(
    "at, key, expected",
    [
        ("b", "ArrowRight", "c"),
        ("b", "ArrowLeft", "a"),
        ("a", "ArrowLeft", "a"),
        ("b", "ArrowUp", "c"),
        ("b", "ArrowDown", "a"),
        ("c", "Home", "a"),
        ("a", "End", "c"),
        ("a", "x", None),
    ],
)
def test_arrows_lead_from_point_to_point(call, at, key, expected):
    spots = [point(10, 90, id="a"), point(30, 10, id="c"), point(20, 50, id="b")]
    ids = [s["id"] for s in spots]
    to = call("front", "keyTo", spots, ids.index(at), key)
    assert (None if to is None else ids[to]) == expected


def test_the_arrow_right_reaches_every_point_even_where_two_coincide(call):
    spots = [point(10, 5), point(10, 5), point(10, 7), point(3, 1)]
    walk = """spots => { const seen = [keyTo(spots, 0, 'Home')];
      for (let k = 1; k < spots.length; k++) seen.push(keyTo(spots, seen.at(-1), 'ArrowRight')); return seen; }"""
    assert sorted(call("front", walk, spots)) == [0, 1, 2, 3]


def test_a_click_means_the_nearest_point_within_reach(call):
    spots = [point(100, 100), point(130, 100)]
    assert (
        call("front", "nearest", spots, 118, 100) == 1 and call("front", "nearest", spots, 200, 100) is None
    )


def test_what_is_looked_at_is_named_first_and_a_lit_family_alone_beside_the_original(call):
    marks = [{"id": i, "family": f} for i, f in (("o", "original"), ("q", "quantization"), ("p", "pruning"))]
    scene = {"marks": marks, "names": ["o", "q", "p"]}
    assert call("front", "wanted", scene, {"run": "p", "family": ""}, False) == ["p", "o", "q"]
    assert call("front", "wanted", scene, {"run": "", "family": "pruning"}, False) == ["o", "p"]
    assert call("front", "wanted", scene, {"run": "q", "family": "pruning"}, False) == ["q", "o", "p"]
    many = {"marks": [{"id": str(i), "family": "f"} for i in range(40)], "names": [str(i) for i in range(40)]}
    assert len(call("front", "wanted", many, {"run": "", "family": ""}, True)) == 6, "on a phone"


def test_a_broken_model_stands_in_the_band_under_the_axis(call):
    scene = {"marks": [{"y": 0.5}, {"y": None}], "y": {"ticks": [[0.5, "2.00"]]}}
    frame = call("front", f"scene => frameOf(scene, 600, 420, {WIDTH})", scene)
    low, broken = call("front", "f => [down(f, 0), down(f, null)]", frame)
    assert frame["bottom"] == low < broken < frame["floor"] < 420 and frame["left"] >= 12 + 7 * 4
    whole = call("front", f"s => frameOf({{...s, marks: [{{y: 1}}]}}, 600, 420, {WIDTH})", scene)
    assert whole["bottom"] == whole["floor"], "no band where nothing is broken"


def test_a_broken_model_stands_in_the_band_beside_the_axes_where_quality_runs_across(call):
    ticks = {"ticks": [[0.5, "2.00"]]}
    scene = {"marks": [{"x": 0.5, "y": 0.5}, {"x": None, "y": 0.2}], "y": ticks}
    frame = call("front", f"scene => frameOf(scene, 600, 420, {WIDTH})", scene)
    high, broken = call("front", "f => [across(f, 1), across(f, null)]", frame)
    assert frame["right"] == high < broken < frame["wall"] < 600 and frame["bottom"] == frame["floor"]
    (band,) = call("front", "bandsOf", frame)
    left, top, right, bottom = band["box"]
    assert high < left < broken < right and (top, bottom) == (frame["top"], frame["bottom"])
    # its words are read upwards and stand beside the points
    words = call("front", "covered", band, 100)
    assert broken + 7 < words[0] < band["x"] <= words[2] == right and words[3] - words[1] == 106
    # and leave room for a name on the left of a point
    spot = {"x": broken, "y": bottom - 50, "r": 7, "text": "a name"}
    (name,) = call("front", f"(n, f, w) => placed(n, n, w, f, {WIDTH})", [spot], frame, [words])
    assert name["anchor"] == "end" and name["x"] < broken
    both = scene | {"marks": [{"x": None, "y": None}]}
    frame = call("front", f"scene => frameOf(scene, 600, 420, {WIDTH})", both)
    under, beside = call("front", "bandsOf", frame)
    assert under["box"][3] == frame["floor"] and beside["box"][3] <= under["box"][1], "they don't overlap"
    assert call("front", "bandsOf", frame | {"under": False, "beside": False}) == []


def test_rows_sort_as_numbers_or_words_and_what_is_missing_stands_last(call):
    rows = "(values, number, down) => values.sort((p, q) => order(p, q, number, down))"
    assert call("runs", rows, ["10", "", "9"], True, False) == ["9", "10", ""]
    assert call("runs", rows, ["10", "", "9"], True, True) == ["10", "9", ""]
    assert call("runs", rows, ["b", "", "a"], False, True) == ["b", "a", ""]


@pytest.mark.parametrize(
    "at, pieces, expected",
    [
        (None, 3, None),
        (3, 3, None),  # not written so far
        (0, 3, ["", "ab", "cdef"]),
        (1, 3, ["ab", "cd", "ef"]),
        (2, 3, ["abcd", "ef", ""]),
        (7, 9, None),  # ends that never came
    ],
)
def test_where_two_answers_part(call, at, pieces, expected):
    said = {"text": "abcdef", "ends": [2, 4, 6], "pieces": pieces}
    assert call("chat", "parted", said, at) == expected


@pytest.mark.parametrize("own, other, expected", [(5, 10, 50), (10, 5, 100), (5, None, 100)])
def test_a_bars_length(call, own, other, expected):
    assert call("chat", "share", own, other) == expected


# --- the files ---


def test_every_script_is_small_and_used(call):
    import app

    files = {f.stem: f.read_text("utf-8").splitlines() for f in SCRIPTS.iterdir()}
    assert max(map(len, files.values())) <= 200
    source = (ROOT / "app.py").read_text("utf-8")
    assert all(name in source for name in files) and set(app.SHARED.split()) <= set(files)


def test_scripts_are_110_columns_wide():
    wide = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sorted((ROOT / "assets").rglob("*.js"))
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if len(line) > 110
    ]
    assert not wide


def test_no_template_string_goes_over_several_lines():
    """The page's scripts are sent without indentation, which such a string would lose."""
    for file in SCRIPTS.iterdir():
        for line in file.read_text("utf-8").splitlines():
            code = re.sub(r"(^|\s)//.*|'`'", "", line)
            assert len(re.findall("`", code)) % 2 == 0, f"{file.name}: {line}"


def test_one_tab_is_shown_at_a_time(blank, monkeypatch):
    import app

    monkeypatch.setattr(app, "TABS", dict.fromkeys(("explore", "chat", "learn")))
    ids = "".join(f'<p id="{name}">.</p>' for name in app.TABS)
    blank.set_content(f"<style>{app.hiding()}</style>{ids}")
    visible = "[...document.querySelectorAll('p')].filter(p => p.getClientRects().length).map(p => p.id)"
    assert blank.evaluate(visible) == ["explore"], "before a script has run"
    for name in app.TABS:
        blank.evaluate("name => { document.body.dataset.tab = name; }", name)
        assert blank.evaluate(visible) == [name]


# --- what has no effect ---

CHAIN = [
    {
        "name": "gptq",
        "params": [BITS, {"name": "group_size", "type": "int", "default": 64, "lo": 16, "hi": 128}],
    },
    {
        "name": "lut_gemm",
        "params": [BITS, {"name": "fit", "type": "str", "default": "greedy", "choices": ["greedy", "other"]}],
        "inherits": ["bits", "group_size"],
        "idle": ["bits", "fit"],
    },
    {"name": "prune", "params": [ORDER]},
]


@pytest.mark.parametrize(
    "steps, i, expected",
    [
        (["gptq", "lut_gemm"], 1, ["bits", "fit"]),
        (["gptq", "lut_gemm"], 0, []),
        (["lut_gemm"], 0, []),
        (["prune", "lut_gemm"], 1, []),  # it hands on no bits
        (["gptq", "prune"], 1, []),
    ],
)
def test_a_converter_takes_over_the_numbers_of_the_step_before_it(call, steps, i, expected):
    assert call("top", "idle", CHAIN, [{"method": m} for m in steps], i) == expected


def test_a_knob_without_effect_leaves_the_address(call):
    data = DATA | {"methods": CHAIN}
    shown = {
        "state": {"model": "small", "steps": [{"method": "gptq"}, {"method": "lut_gemm"}], "settings": {}}
        | {"x": "file_bytes", "y": "perplexity_ratio", "run": ""},
        "memory": {"gptq": {"bits": 3}, "lut_gemm": {"bits": 7, "fit": "other"}},
        "lang": "en",
        "natural": "en",
        "tab": "explore",
    }
    query = call("top", "(shown, data) => writeLink(shown, data).toString()", shown, data)
    assert parse_qs(query) == {"method": ["gptq"], "bits": ["3"], "then": ["lut_gemm"]}
    shown["state"]["steps"] = [{"method": "lut_gemm"}]
    query = call("top", "(shown, data) => writeLink(shown, data).toString()", shown, data)
    assert parse_qs(query) == {"method": ["lut_gemm"], "bits": ["7"], "fit": ["other"]}


@pytest.mark.parametrize(
    "methods, expected",
    [
        ([{"name": "lut_gemm", "full": {}}, {"name": "lora", "full": {"rank": 8}}], "lora"),
        ([{"name": "rtn", "full": {}}, {"name": "gptq", "full": {}, "first": True}], "gptq"),
        ([{"name": "lut_gemm", "full": {}}], None),
        ([], None),
    ],
)
def test_a_second_step_is_offered_only_where_it_helps(call, methods, expected):
    assert call("controls", "methods => offered(methods)?.name ?? null", methods) == expected

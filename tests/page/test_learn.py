"""Learn in a browser: every lesson by keyboard in both languages, the live page that it drives, a class of two,
and the folder that any web server gives out."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import urllib.error
import urllib.request

import pytest

from evaluation.commands import learn as command
from evaluation.learning.lessons import NAMES
from evaluation.page import learn
from tests.page.stage import ROOT, Visitor, address, becomes, no_sideways_scroll, says, shot, slowed, until

pytestmark = pytest.mark.browser


@pytest.fixture
def look(browser, server):
    """Opens a page of Learn by itself, in a browser that remembers nothing."""
    server.runner.reset()
    visitor = Visitor(browser, server)

    def open(query="", *, width=1000, base="", language="en"):
        context = browser.new_context(viewport={"width": width, "height": 900}, locale=language)
        visitor.contexts.append(context)
        page = slowed(context.new_page())
        page.on("pageerror", lambda e: visitor.errors.append(str(e)))
        page.goto((base or f"{server.url}learn/") + query)
        page.wait_for_selector("#learn h2")
        return page

    yield open
    for context in visitor.contexts:
        context.close()
    assert visitor.errors == []


def post(server, body, **headers):
    request = urllib.request.Request(
        f"{server.url}learn/ask", json.dumps(body).encode(), {"content-type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def status(server, path):
    try:
        with urllib.request.urlopen(f"{server.url}{path}") as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


# --- lessons ---


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_every_lesson_by_keyboard_on_a_phone(look, language):
    page = look(f"?lesson={NAMES[0]}&lang={language}", width=390)
    titles = set()
    for i, name in enumerate(NAMES):
        page.wait_for_selector(f'#learn [data-lesson="{name}"] .lesson-figure svg')
        address(page, f"lesson={name}")
        titles.add(page.locator("#learn h2").inner_text())
        no_sideways_scroll(page)
        assert_no_gaps(page)
        button = page.locator("#learn .question .primary")
        if button.count():
            _answer(page)
            button.focus()
            page.keyboard.press("Enter")
        page.wait_for_selector("#learn .reveal .why")
        page.wait_for_selector("#learn .reveal .try")
        assert_no_gaps(page)
        no_sideways_scroll(page)
        shot(page, f"learn-{name}-{language}")
        if i + 1 < len(NAMES):
            page.locator("#learn .lesson-steps button").last.focus()
            page.keyboard.press("Enter")
            address(page, f"lesson={NAMES[i + 1]}")
    until(page, lambda: len(titles) == len(NAMES))


def assert_no_gaps(page):
    """Wait until no word misses a fact ("?" stands for one) and none is a key."""
    page.wait_for_function(
        r"() => !/\?{2}|\bundefined\b|\bNaN\b|\[object|\{\w+\}/.test(document.querySelector('#learn').innerText)"
    )


def _answer(page):
    """Answer the question as a keyboard does: the first option, a step of a scale, what the figure holds."""
    option = page.locator("#learn .question input").first
    if option.count():
        option.focus()
        page.keyboard.press("Space" if option.get_attribute("type") == "radio" else "ArrowRight")
    for first in page.locator("#learn .judges fieldset label:first-of-type input").all():
        first.focus()
        page.keyboard.press("Space")
    boxes = page.locator("#learn .lesson-controls input[type=checkbox]")
    for i in range(0 if option.count() else boxes.count() // 2):  # half of what the figure offers
        boxes.nth(i).focus()
        page.keyboard.press("Space")


def test_contents_show_the_survey_and_what_was_answered(look):
    page = look("?lang=en")
    until(page, lambda: page.locator("#learn .map .system").count() == 22)
    page.locator("#learn .lessons button").first.click()
    address(page, "lesson=")
    _answer(page)
    page.locator("#learn .question .primary").click()
    page.wait_for_selector("#learn .reveal .why")
    page.locator("#learn .lesson-nav button").first.click()
    says(page, "#learn .lessons li", "answered")
    page.reload()
    says(page, "#learn .lessons li", "answered")  # this browser remembers


def test_a_teachers_link_sets_the_figures_knobs(look):
    page = look("?lesson=rounding&lang=en&knobs=5,16,8")
    says(page, "#learn .lesson-slider output", "5")
    page.wait_for_selector("#learn .lesson-choice input:checked + span:has-text('16')")
    wrong = look("?lesson=rounding&lang=en&knobs=99,what,-1")
    says(wrong, "#learn .lesson-slider output", "3")


def seen(page):
    """What a visitor of a lesson sees of what a seed draws: figure, ticked boxes, order of options, source."""
    page.wait_for_selector("#learn .lesson-figure svg")
    return page.evaluate(
        """() => [document.querySelector('#learn .lesson-figure').innerHTML,
          ...[...document.querySelectorAll('#learn .lesson-controls input')].map(box => box.checked),
          ...[...document.querySelectorAll('#learn :is(.question, .source)')].map(part => part.innerText)]"""
    )


@pytest.mark.parametrize("name", ["cutting", "bytes"])  # a row of weights, an order of items
def test_a_seed_shows_all_the_same_and_another_seed_something_else(look, name):
    link = f"?lesson={name}&lang=en"
    first, again, fourth, fifth = (seen(look(f"{link}&seed={seed}")) for seed in ("3b", "3b", "4", "5"))
    assert first == again and (first != fourth or first != fifth)


def test_a_classs_code_is_its_seed(look):
    teacher = look("?lang=en")
    teacher.get_by_text("Open a class").click()
    teacher.wait_for_selector("#learn .class-code b")
    code = teacher.locator("#learn .class-code b").inner_text()
    rows = [seen(look(f"?lesson=rounding&lang=en&{key}={code}"))[0] for key in ("class", "seed")]
    assert rows[0] == rows[1] != seen(look("?lesson=rounding&lang=en"))[0]


def test_a_teachers_seed_is_in_every_link(look):
    page = look("?lesson=teacher&lang=en")
    page.locator("#seed-field").fill("room 12")
    page.get_by_text("Use this seed").click()
    address(page, "seed=room+12", "lesson=teacher")
    until(page, lambda: page.locator("#learn .teach a[href*='seed=room+12']").count() == len(NAMES))
    page.locator("#learn .teach button").first.click()
    address(page, "seed=room+12", f"lesson={NAMES[0]}")
    says(page, "#learn .lesson-nav", "Seed room 12")


# --- what was answered ---

QUESTIONS = {
    name: json.loads((ROOT / f"assets/learn/lessons/{name}/data.json").read_text("utf-8"))["question"]
    for name in NAMES
}
FIGURES = [name for name, question in QUESTIONS.items() if question["kind"] == "figure"]
TICKED = """() => [...document.querySelectorAll('#learn .lesson-controls input:checked')]
  .map(box => box.parentElement.innerText + box.getAttribute('aria-label') + box.value)"""


@pytest.mark.parametrize("name", FIGURES)
def test_an_answer_in_the_figure_is_there_again(look, name):
    page = look(f"?lesson={name}&lang=en&seed=1")
    page.wait_for_selector("#learn .lesson-figure svg")
    at_first = page.evaluate(TICKED)
    _answer(page)
    if name == "mixed":  # its usual answer is where it starts
        page.locator("#learn .lesson-choice").first.locator("input").nth(1).check()
    given = page.evaluate(TICKED)
    page.locator("#learn .question .primary").click()
    page.wait_for_selector("#learn .reveal .why")
    verdict = page.locator("#learn .verdict").inner_text()
    page.reload()
    says(page, "#learn .verdict", verdict)
    becomes(page, lambda: page.evaluate(TICKED), given)
    assert given != at_first
    page.goto(page.url.replace("seed=1", "seed=2"))  # another question, which nobody answered yet
    page.wait_for_selector("#learn .question .primary:visible")


def test_teachers_and_paper(look):
    page = look("?lesson=teacher&lang=en")
    until(page, lambda: page.locator("#learn .teach").count() == len(NAMES))
    assert_no_gaps(page)
    page.get_by_text("Worksheet").click()
    page.wait_for_selector("#learn .sheet .blank")
    assert_no_gaps(page)


# --- the live page ---


def test_a_try_sets_the_live_page_and_is_marked_when_it_was_done(visit):
    page = visit("?tab=learn&lesson=rounding&lang=en", drawn=False)
    page.wait_for_selector("#learn .lesson-figure svg")
    page.locator("#learn .question .primary").click()
    page.locator("#learn .try button").first.click()
    address(page, "method=rtn", "bits=3", but=["tab=learn"])
    says(page, "#card", "Rounding, 3 bits")
    page.locator("#tab-learn").click()
    says(page, "#learn .try.done .check", "done")
    shot(page, "learn-try-done")


def test_a_leaf_of_the_map_opens_its_run(visit):
    page = visit("?tab=learn&lang=en", drawn=False)
    leaf = page.locator("#learn .system", has_text="GPTQ 2022")
    leaf.locator("summary").click()
    leaf.get_by_text("Show on the figure").click()
    address(page, "run=shipped-gates-gptq-4")
    says(page, "#card", "GPTQ")


# --- a class ---


def test_a_class_of_two(look):
    teacher = look("?lang=en")
    teacher.get_by_text("Open a class").click()
    teacher.wait_for_selector("#learn .class-code b")
    code = teacher.locator("#learn .class-code b").inner_text()
    teacher.wait_for_selector("#learn .qr svg")
    phone = look(f"?lang=en&class={code}", width=390)
    says(phone, "#learn .class-panel", code)
    teacher.locator("#learn .lessons button", has_text="What rounding is").click()
    address(phone, "lesson=rounding")  # the phone follows
    phone.locator("#learn .question input").first.focus()
    phone.keyboard.press("ArrowRight")
    phone.locator("#learn .question .primary").click()
    says(teacher, "#learn .tally", "1 answer")
    teacher.get_by_text("Show the answer to all").click()
    teacher.wait_for_selector("#learn .reveal .why")
    says(phone, "#learn .tally", "1 answer")
    shot(teacher, "learn-class")
    teacher.locator("#learn .lesson-nav button").first.click()
    teacher.get_by_text("End the class").click()
    says(phone, "#learn .class-badge", but=[code])


def test_a_wrong_code_says_so(look):
    page = look("?lang=en&class=NOPE22")
    says(page, "#learn .class-panel", "There is no class NOPE22")
    page.wait_for_selector("#learn .class-join")


def test_questions_of_a_class_and_nothing_else(server):
    code, opened = post(server, {"question": "class_open", "ask": {}})
    assert code == 200 and set(opened) == {"code", "key"}
    good = {"code": opened["code"], "member": "m" * 20, "lesson": "rounding", "guess": 40.0}
    assert post(server, {"question": "class_guess", "ask": good})[1]["members"] == 1
    for change in ({"guess": 1e300}, {"guess": "x"}, {"guess": [1] * 50}, {"lesson": "../x"}, {"more": 1}):
        code, answer = post(server, {"question": "class_guess", "ask": good | change})
        assert code == 200 and answer["code"] in ("bad_request", "bad_param", "bad_length"), change
    for body in ({"question": "delete", "ask": {"id": "x"}}, {"question": "class_open"}, {"ask": {}}, []):
        assert post(server, body)[0] == 400, body
    assert post(server, {"question": "class_open", "ask": {}}, origin="http://evil.example")[0] == 403


def test_only_learns_own_files_are_given_out(server):
    for path in ("learn", "learn/", "learn/frame.js"):
        assert status(server, path) == 200, path
    for path in ("learn/../app.py", "learn/..%2Fstyle.css", "learn/nothing.js", "learn/lessons/"):
        assert status(server, path) == 404, path


# --- a folder for any web server ---


def test_learn_as_a_folder(look, tmp_path):
    folder = tmp_path / "learn"
    assert command.main(["--static", str(folder)]) == 0
    assert json.loads((folder / "site.json").read_text()) == learn.site()
    assert command.main(["--static", str(folder)]) == 2  # nothing is overwritten
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    served = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(quiet, directory=str(folder))
    )
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        page = look("?lesson=rounding&lang=en", base=f"http://127.0.0.1:{served.server_port}/")
        page.wait_for_selector("#learn .lesson-figure svg")
        page.locator("#learn .question .primary").click()
        says(page, "#learn .try code", "python -m evaluation run rtn --bits 3")
        page.locator("#learn .lesson-nav button").first.click()
        page.wait_for_selector("#learn .lessons")
        page.wait_for_function("() => !document.querySelector('.class-panel')")
    finally:
        served.shutdown()

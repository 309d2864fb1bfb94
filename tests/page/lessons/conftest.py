"""A lesson's functions in an empty page of the browser that the other tests use."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.page.stage import ROOT

LESSONS = ROOT / "assets" / "learn" / "lessons"


@pytest.fixture(scope="module")
def empty(browser):
    context = browser.new_context()
    yield context.new_page()
    context.close()


@pytest.fixture
def lesson(empty):
    """What an exported function of a lesson's script gives: lesson("student", "hill", 5, 1)."""

    def call(name: str, function: str, *values):
        source = (LESSONS / name / "lesson.js").read_text("utf-8")
        code = f"async ([source, values]) => (await import(source)).{function}(...values)"
        return empty.evaluate(code, [f"data:text/javascript,{quote(source)}", list(values)])

    return call

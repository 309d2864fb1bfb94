"""A lesson's functions in an empty page of the browser that the other tests use."""

from __future__ import annotations

import pytest

from tests.page.stage import ROOT

LEARN = ROOT / "assets" / "learn"
AT = "http://learn.test/"  # answered from LEARN, so that a lesson's script can import another's


@pytest.fixture(scope="module")
def empty(browser):
    context = browser.new_context()
    page = context.new_page()
    page.route(f"{AT}**/*.js", lambda route: route.fulfill(path=LEARN / route.request.url.removeprefix(AT)))
    page.route(AT, lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
    page.goto(AT)
    yield page
    context.close()


@pytest.fixture
def lesson(empty):
    """What an exported function of a lesson's script gives: lesson("student", "hill", 5, 1)."""

    def call(name: str, function: str, *values):
        code = f"async ([source, values]) => (await import(source)).{function}(...values)"
        return empty.evaluate(code, [f"{AT}lessons/{name}/lesson.js", list(values)])

    return call

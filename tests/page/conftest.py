"""A page server over scripted parts, one browser for all, and a visitor for each test."""

from __future__ import annotations

import pytest

from tests import chromium
from tests.page.stage import SECONDS, Server, Visitor


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("page"))
    yield server
    server.demo.close()


@pytest.fixture(scope="package")
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * SECONDS)
    path = chromium.find()
    if path is None:
        pytest.fail("no Chromium; run: python -m tests.chromium")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=chromium.ARGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    server.runner.reset()
    visitor = Visitor(browser, server)
    yield visitor.open
    for context in visitor.contexts:
        context.close()
    assert visitor.errors == []

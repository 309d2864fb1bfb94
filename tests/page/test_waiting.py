"""No test of the page asserts what an action changes a moment later: it waits for it (stage.py)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

# what a live page is asked for; "url" is what the browser has told so far, which is older still
LIVE = {
    *("url", "evaluate", "inner_text", "inner_html", "text_content", "all_inner_texts", "all_text_contents"),
    *("input_value", "get_attribute", "bounding_box", "is_visible", "is_hidden", "is_enabled", "is_disabled"),
    *("is_checked", "count", "content", "title", "locator", "query_selector"),
}
BROWSER_TESTS = [f for f in Path(__file__).parent.glob("test_*.py") if "mark.browser" in f.read_text("utf-8")]


def hasty(tree: ast.AST) -> list[int]:
    """Lines of the asserts that read a live page."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        for part in ast.walk(node.test)
        if isinstance(part, ast.Attribute) and part.attr in LIVE and getattr(part.value, "id", "") != "blank"
    ]


@pytest.mark.parametrize("file", BROWSER_TESTS, ids=lambda f: f.stem)
def test_nothing_is_asserted_of_a_live_page(file):
    assert not hasty(ast.parse(file.read_text("utf-8")))


def test_a_hasty_assert_is_found():
    hasty_ones = 'assert "a" in page.url\nassert page.locator("b").count() == 0\nassert text.splitlines()\n'
    assert hasty(ast.parse(hasty_ones)) == [1, 2, 2]

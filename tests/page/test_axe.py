"""axe-core finds nothing to complain about in the page's own markup."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
LOOK = """async () => {
  const found = await axe.run();
  const own = v => v.nodes.filter(n => document.querySelector(n.target.at(-1))?.closest('.panel') !== null);
  return [found.violations.flatMap(v => own(v).map(n => `${v.id}: ${n.html.slice(0, 120)}`)), found.passes.length];
}"""


@pytest.fixture(scope="module")
def axe():
    package = Path(importlib.util.find_spec("axe_playwright_python").origin).parent
    return (package / "axe.min.js").read_text("utf-8")


@pytest.mark.parametrize(
    "query, look",
    [
        ("?x=decode_speedup&family=pruning", {}),
        ("", {"width": 390, "dark": True, "language": "zh-TW"}),
        ("?run=shipped-domain-nf4-double", {"dark": True}),
    ],
)
def test_axe_finds_nothing(visit, axe, query, look):
    page = visit(query, **look)
    page.wait_for_selector("#front .mark")
    page.wait_for_selector("#card .facts")
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    page.evaluate(axe)
    found, passed = page.evaluate(LOOK)
    assert found == []
    assert passed > 20


def test_axe_would_find_something(visit, axe):
    page = visit()
    page.evaluate(
        """() => document.querySelector('#front .panel').append(document.createElement('select'))"""
    )
    page.evaluate(axe)
    found, _ = page.evaluate(LOOK)
    assert [line for line in found if line.startswith("select-name")]

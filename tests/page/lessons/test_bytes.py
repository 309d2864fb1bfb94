"""What fits into a file, counted backwards: at a stored result's own size it is what that result did."""

from __future__ import annotations

import json

import pytest

from evaluation.benches import shipped
from evaluation.learning.lesson import Real
from evaluation.learning.lessons.bytes import FILES
from tests.page.stage import ROOT

pytestmark = pytest.mark.browser
SIZES = json.loads((ROOT / "assets/learn/lessons/bytes/data.json").read_text("utf-8"))["sizes"]
DID = {  # words of a recipe -> family, what it did, how near its file's other bytes let the count come
    "rtn --bits 8": ("quantization", 8, 0.02),
    "rtn --bits 4": ("quantization", 4, 0.02),
    "rtn --bits 3": ("quantization", 3, 0.02),
    FILES["pruning"]: ("pruning", 0.5, 0.01),
    "wanda --sparsity 0.5": ("pruning", 0.5, 0.01),
    FILES["distillation"]: ("distillation", 20, 0.01),
    FILES["low_rank"]: ("low_rank", 0.8, 0.002),
}


@pytest.mark.parametrize("words", DID)
def test_a_stored_file_holds_what_its_recipe_kept(lesson, words):
    family, did, near = DID[words]
    size = Real().result(words).metrics["file_bytes"]
    assert lesson("bytes", "spend", size, SIZES)[family] == pytest.approx(did, abs=near)


def test_the_original_keeps_all_and_the_word_table_alone_nothing(lesson):
    size = Real().result("none").metrics["file_bytes"]
    full = lesson("bytes", "spend", size, SIZES)
    assert (full["distillation"], full["low_rank"]) == (30, 1) and full["pruning"] < 1
    empty = lesson("bytes", "spend", SIZES["rest_bytes"], SIZES)
    assert set(empty.values()) == {0}


def test_every_file_of_the_lesson_is_declared():
    assert set(FILES.values()) <= {words for words, _ in shipped.named("gates")}

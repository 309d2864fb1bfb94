"""Texts and windows: protocols, roles, and every bad file in words."""

from __future__ import annotations

import pytest

from compression import texts
from compression.base import TextUnavailable
from evaluation.spec import TEXTS
from tests import tiny

LINES = " = Title = \n\n First row . \n Second row . \n\n\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text(LINES)
    return str(path)


def cut(text, protocol, **more):
    return texts.windows(text, tiny.tokenizer(), protocol, **({"window": 4, "tokens": None, "role": "evaluation"} | more))


def test_raw_is_the_file_as_it_is(file):
    found = cut(texts.load_text(file, "evaluation"), "raw")
    assert bytes(tiny.tokenizer().decode(found.ids.flatten().tolist()), "utf-8") == LINES[: found.ids.numel()].encode()


def test_paper_joins_rows_with_blank_lines(file):
    """The hub's rows: blank lines are empty strings, others keep their newline; joined by two newlines."""
    rows = ["", " = Title = \n", "", " First row . \n", " Second row . \n", "", "", ""]
    expected = "\n\n".join(rows[1:])
    found = cut(texts.load_text(file, "evaluation"), "paper")
    shown = tiny.tokenizer().decode(found.ids.flatten().tolist())
    assert expected.startswith(shown) and len(expected) - len(shown) < 4


def test_windows_are_cut_in_order_and_the_tail_dropped(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghijk")
    found = cut(texts.load_text(str(tmp_path / "a.txt"), "evaluation"), "raw", window=3)
    assert [tiny.tokenizer().decode(w.tolist()) for w in found.ids] == ["abc", "def", "ghi"]
    assert found.scored_bytes == 6


def test_calibration_windows_follow_the_seed(tmp_path):
    (tmp_path / "a.txt").write_text("".join(chr(97 + i % 26) * 4 for i in range(100)))
    text = texts.load_text(str(tmp_path / "a.txt"), "calibration")
    draw = lambda seed: cut(text, "raw", tokens=40, role="calibration", seed=seed).ids.tolist()  # noqa: E731
    assert draw(0) == draw(0) != draw(1) and len(draw(0)) == 10


def test_the_two_halves_of_the_builtin_text_are_disjoint():
    evaluation, calibration = texts.load_text("builtin", "evaluation"), texts.load_text("builtin", "calibration")
    assert len(evaluation.raw) > 100_000 and len(calibration.raw) > 100_000
    texts.check_disjoint(evaluation, calibration)
    assert {r for r in evaluation.rows if r} & set(calibration.rows) == set()


def test_the_table_of_characters_is_unicodes_own():
    """Rows as in UnicodeData-3.2.0.txt (its columns of older names, comments and cases apart), no matter which Python reads them."""
    evaluation, calibration = texts.load_text("unicode", "evaluation"), texts.load_text("unicode", "calibration")
    rows = set(evaluation.rows) | set(calibration.rows)
    assert len(rows) == len(evaluation.rows) + len(calibration.rows) and 7 * len(evaluation.rows) < 1.01 * len(calibration.rows)
    for row in ("00BD;VULGAR FRACTION ONE HALF;No;0;ON;<fraction> 0031 2044 0032;;;0.5;N;;;;;",
                "0301;COMBINING ACUTE ACCENT;Mn;230;NSM;;;;;N;;;;;",
                "00B2;SUPERSCRIPT TWO;No;0;EN;<super> 0032;2;2;2;N;;;;;",
                "2264;LESS-THAN OR EQUAL TO;Sm;0;ON;;;;;Y;;;;;"):  # fmt: skip
        assert row + "\n" in rows
    assert not any(";CJK " in row or ";HANGUL SYLLABLE " in row for row in rows)
    assert (evaluation.hash[:8], calibration.hash[:8]) == ("a8896e8f", "a71ff29b")


def test_the_command_line_and_the_page_offer_every_named_text():
    assert set(TEXTS) == set(texts.NAMED)


def test_one_file_for_both_roles_is_refused(file):
    with pytest.raises(TextUnavailable, match="calibration and evaluation both"):
        texts.check_disjoint(texts.load_text(file, "evaluation"), texts.load_text(file, "calibration"))


def bad(tmp_path, kind):
    path = tmp_path / "bad.txt"
    if kind == "empty_text":
        path.write_text("")
    elif kind == "not_text":
        path.write_bytes(bytes(range(256)))
    elif kind == "text_too_big":
        with path.open("wb") as f:
            f.truncate(texts.MAX_FILE_BYTES + 1)
    return str(path)


@pytest.mark.parametrize("kind", ["no_file", "empty_text", "not_text", "text_too_big"])
def test_bad_files_are_told_apart(tmp_path, kind):
    with pytest.raises(TextUnavailable) as error:
        texts.load_text(bad(tmp_path, kind), "evaluation")
    assert error.value.code == kind and str(tmp_path) not in str(error.value.facts)


def test_unknown_names_and_paths_on_a_public_page(file):
    with pytest.raises(TextUnavailable, match="'builtin', 'wikitext-2', 'unicode' or the path") as error:
        texts.load_text("nosuchtext", "evaluation")
    assert error.value.code == "unknown_text"
    with pytest.raises(TextUnavailable) as error:
        texts.load_text(file, "evaluation", allow_paths=False)
    assert error.value.code == "path_refused"


def test_too_short_says_how_much_there_is(file):
    text = texts.load_text(file, "evaluation")
    with pytest.raises(TextUnavailable, match="less than one window of 512"):
        cut(text, "raw", window=512)
    with pytest.raises(TextUnavailable, match="Ask for 4 to"):
        cut(text, "raw", tokens=4000)


def test_the_protocol_names_everything_that_decides_numbers(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh" * 20)
    (tmp_path / "b.txt").write_text("abcdefgi" * 20)
    a, b = (texts.load_text(str(tmp_path / f"{n}.txt"), "evaluation") for n in "ab")
    ids = {cut(a, "raw").protocol_id, cut(a, "paper").protocol_id, cut(a, "raw", window=5).protocol_id,
           cut(a, "raw", tokens=8).protocol_id, cut(b, "raw").protocol_id}  # fmt: skip
    assert len(ids) == 5


def test_wikitext_offline_says_what_to_do():
    with pytest.raises(TextUnavailable, match="built-in text") as error:
        texts.load_text("wikitext-2", "evaluation")
    assert error.value.code == "text_unreachable"

"""Runs are named, weighed and written out; only one's own, and never on a public page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from evaluation import labels, records
from evaluation.labels import Label
from evaluation.page.questions import Page
from evaluation.page.words import Words
from evaluation.running import estimate
from evaluation.store import Store
from tests.page.stage import Script, Talk, says, store_run, until

TOKEN = "v" * 32


class Around:
    """What `store_run` needs of a server."""

    def __init__(self, store):
        self.store = store


@pytest.fixture
def page(tmp_path):
    store = Store(tmp_path)
    page = Page(store, Script(store), Talk(), estimate.estimate, estimate.path)
    store_run(Around(store), id="mine", key="mine")
    return page


def test_a_title_and_a_note_are_shown_everywhere_and_stay_out_of_the_record(page):
    record = page.store.get_id("mine")
    stamp = page.store.stamp()
    ask = {"id": "mine", "visitor": TOKEN, "title": "  Best of <b>all</b> ", "note": "for\nthe lecture"}
    assert page.answer("name", ask) == {}
    assert page.store.stamp() != stamp, "whatever was computed from the store is computed again"
    assert page.store.get_id("mine") == record and "Best" not in json.dumps(record.json())
    card, table = page.answer("card", {"id": "mine"})["html"], page.answer("runs", {})["html"]
    assert (
        "<h2>Best of &lt;b&gt;all&lt;/b&gt;</h2>" in card
        and "for\nthe lecture" in card
        and "GPTQ, 4 bits" in card
    )
    assert "Best of &lt;b&gt;all&lt;/b&gt;" in table and "GPTQ 4 bits" in table
    assert Store(page.store.home).labels() == {"mine": Label("Best of <b>all</b>", "for\nthe lecture")}
    assert page.answer("name", {"id": "mine", "title": "", "note": ""}) == {}
    assert page.store.labels() == {} and "<h2>GPTQ, 4 bits" in page.answer("card", {"id": "mine"})["html"]


@pytest.mark.parametrize(
    "ask, said",
    [
        ({"id": "shipped-gates-rtn-4", "title": "x"}, "run is gone"),
        ({"id": "nosuch", "title": "x"}, "run is gone"),
        ({"id": "../mine", "title": "x"}, "run is gone"),
        ({"id": "mine", "title": "x" * 61}, "61"),
        ({"id": "mine", "note": "x" * 501}, "501"),
        ({"id": "mine", "title": "a\nb"}, "error"),
    ],
)
def test_only_an_own_run_takes_a_short_title(page, ask, said):
    assert said in page.answer("name", ask)["error"] and page.store.labels() == {}


def test_a_run_that_is_going_on_keeps_its_name(page):
    page.store.put(dataclasses.replace(page.store.get_id("mine"), id="busy", status="running", artifact=""))
    assert "in progress" in page.answer("name", {"id": "busy", "title": "x"})["error"]


def test_deleting_a_run_deletes_its_label(page):
    page.answer("name", {"id": "mine", "title": "x"})
    assert page.answer("delete", {"id": "mine"}) == {} and page.store.labels() == {}


def test_what_the_models_take_on_the_disk(page):
    folder = page.store.artifact_folder("artifact-mine")
    (folder / "weights").write_bytes(bytes(2_000_000))
    assert page.store.disk_bytes(page.store.get_id("mine")) == 2_000_002
    runs = page.answer("runs", {})
    assert "1 compressed model takes 2.0" in runs["disk"].replace("\u00a0", " ") and runs["own"]
    assert "2.0\u00a0MB on this disk" in page.answer("card", {"id": "mine"})["html"]
    page.store.delete("mine")
    runs = page.answer("runs", {})
    assert runs["disk"] == "" and not runs["own"]


def test_all_own_runs_leave_as_one_file_that_another_store_can_add(page, tmp_path):
    store_run(Around(page.store), id="other", key="other")
    got = page.answer("export_all", {})
    lines = Path(got["file"]).read_bytes().splitlines()
    assert [records.parse(line)[0].id for line in lines] == ["mine", "other"]
    elsewhere = Store(tmp_path / "elsewhere", shipped=None)
    assert {elsewhere.add(line).id for line in lines} == {"mine", "other"}
    for name in ("mine", "other"):
        page.store.delete(name)
    assert "no finished run" in page.answer("export_all", {})["error"]


def test_on_a_public_page_nobody_names_or_exports(page):
    public = Page(page.store, page.runner, page.chat, estimate.estimate, estimate.path, public=True)
    for question, ask in (("name", {"id": "mine", "visitor": TOKEN, "title": "x"}), ("export_all", {})):
        assert "public page" in public.answer(question, ask)["error"]
    assert page.store.labels() == {} and public.answer("runs", {})["disk"] == ""
    assert 'data-act="name"' not in public.answer("card", {"id": "mine"})["html"]


@pytest.mark.parametrize(
    "content", ["", "[]", "3", '{"title": 3}', '{"title": "x", "more": 1}', '{"note": "' + "x" * 501 + '"}']
)
def test_a_label_that_somebody_spoiled_is_left_out(tmp_path, content, caplog):
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "b.json").write_text('{"title": "kept"}')
    assert labels.read(tmp_path) == {"b": Label("kept")} and "a.json" in caplog.text


def test_a_title_stands_for_the_recipe():
    row = {"recipe": [["rtn", {"bits": 4}]], "title": "Tuesday"}
    assert Words("en").run(row) == "Tuesday" and Words("en").run(row, long=True).startswith(
        "Tuesday (Rounding, 4 bits"
    )
    assert Words("en").run(row | {"title": ""}) == "Rounding 4 bits"


@pytest.mark.browser
def test_a_visitor_names_a_run(visit, server):
    store_run(server, id="named", key="named")
    page = visit("?run=named")
    page.locator("#card [data-act=name]").click()
    page.locator("#card .naming input").fill("For Tuesday")
    page.locator("#card .naming textarea").fill("compare with OWQ")
    page.locator("#card .naming button").click()
    expect(page.locator("#card h2")).to_have_text("For Tuesday")
    says(page, "#card .person", "compare with OWQ")
    until(page, lambda: server.store.labels().get("named") == Label("For Tuesday", "compare with OWQ"))
    page.locator("#runs summary").click()
    says(page, "#runs table", "For Tuesday")
    with page.expect_download() as download:
        page.locator("#runs .files button").click()
    assert download.value.suggested_filename.endswith(".jsonl")
    server.store.delete("named")

"""Results as files: what one machine measured stands in another's store and figure, with its machine named."""

from __future__ import annotations

import dataclasses
import json

import pytest

from compression.base import CompressionError
from evaluation import records
from evaluation.commands import results as command
from evaluation.page import requests
from evaluation.page.questions import Page
from evaluation.records import OddRecord
from evaluation.store import Store
from tests.page.stage import Script, Talk, store_run


class Place:
    def __init__(self, home):
        self.store = Store(home)


def elsewhere(home) -> bytes:
    """A record of another machine."""
    place = Place(home)
    store_run(place, id="theirs", key="theirs", metrics={"perplexity_ratio": 1.011})
    result = place.store.get_id("theirs")
    machine = result.environment | {"processor": "Another Processor", "threads": 96}
    return records.content(dataclasses.replace(result, environment=machine))


def page(store, public=False) -> Page:
    return Page(store, Script(store), Talk(), public=public)


def test_a_result_goes_from_one_store_to_another(tmp_path):
    data, store = elsewhere(tmp_path / "there"), Store(tmp_path / "here")
    answer = page(store).answer("add", {"text": data.decode()})
    assert answer == {"id": "theirs"}
    added = store.get_id("theirs")
    assert added.artifact == "" and not store.has_artifact(added), "the model itself didn't come along"
    row = next(r for r in store.rows() if r["id"] == "theirs")
    assert row["host"] == "Another Processor" and row["perplexity_ratio"] == 1.011
    assert "Another Processor" in page(store).answer("card", {"id": "theirs"})["html"]


def test_it_stands_in_the_figure_and_its_times_do_not(tmp_path):
    store = Store(tmp_path / "here")
    store.add(elsewhere(tmp_path / "there"))
    model = store.get_id("theirs").spec.model
    asked = {"model": model, "selected": "theirs"}
    assert "theirs" in page(store).answer("front", asked)["ids"]
    timed = page(store).answer("front", asked | {"x": "decode_tokens_per_second"})
    assert "theirs" not in json.dumps(timed["scene"]), "times are this machine's"


def test_what_is_added_twice_is_there_once(tmp_path):
    data, store = elsewhere(tmp_path / "there"), Store(tmp_path / "here")
    store.add(data)
    store.add(data)
    assert [r.id for r in store.own()] == ["theirs"]


def test_a_result_never_replaces_another(tmp_path):
    """A file that names a run of ours changes nothing of it."""
    place = Place(tmp_path)
    store_run(place, id="theirs", key="mine", metrics={"perplexity_ratio": 1.5})
    place.store.add(elsewhere(tmp_path / "there"))
    assert place.store.get_id("theirs").metrics["perplexity_ratio"] == 1.5


@pytest.mark.parametrize(
    "change, said",
    [
        ({"status": "failed"}, "failed"),
        ({"id": "../../escape"}, "id"),
        ({"version": records.VERSION + 1}, f"version {records.VERSION + 1}"),
        ({"metrics": {"perplexity_ratio": -1}}, "perplexity_ratio"),
        ({"created": "<script>"}, "created"),
        ({"more": 1}, "more"),
    ],
)
def test_odd_files_add_nothing(change, said, tmp_path):
    data, store = json.loads(elsewhere(tmp_path / "there")), Store(tmp_path / "here")
    with pytest.raises(OddRecord, match=said):
        store.add(json.dumps(data | change).encode())
    error = page(store).answer("add", {"text": json.dumps(data | change)})["error"]
    assert "be added" in error and store.own() == []


def test_a_public_page_takes_and_deletes_nothing(tmp_path):
    place = Place(tmp_path)
    store_run(place, id="mine", key="mine")
    public = page(place.store, public=True)
    for question, asked in (("add", {"text": "{}"}), ("delete", {"id": "mine"})):
        with pytest.raises(CompressionError, match="public"):
            getattr(public, question)(requests.take(question, asked))
    assert (
        place.store.get_id("mine")
        and 'data-act="delete"' not in public.answer("card", {"id": "mine"})["html"]
    )


def test_a_run_is_deleted_and_a_shipped_one_stays(tmp_path):
    place = Place(tmp_path)
    store_run(place, id="mine", key="mine")
    own, shipped = page(place.store), place.store.shipped()[0].id
    assert 'data-act="delete"' in own.answer("card", {"id": "mine"})["html"]
    assert own.answer("delete", {"id": "mine"}) == {}
    assert place.store.get_id("mine") is None
    for gone in ("mine", shipped, "../x"):
        assert "error" in own.answer("delete", {"id": gone})
    assert place.store.get_id(shipped)
    going = dataclasses.replace(place.store.shipped()[0], id="going", status="running")
    place.store.put(going)
    assert "going on" in own.answer("delete", {"id": "going"})["error"]


def test_the_command_saves_and_adds(tmp_path, monkeypatch, capsys):
    there, here, file = tmp_path / "there", tmp_path / "here", tmp_path / "results.jsonl"
    elsewhere(there)
    monkeypatch.setattr(command, "Store", lambda: Store(there))
    assert command.main(["save", str(file)]) == 0 and "1 results" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["save", str(file), "nosuch"])
    monkeypatch.setattr(command, "Store", lambda: Store(here))
    file.write_bytes(file.read_bytes() + b"{}\n")
    assert command.main(["add", str(file)]) == 1
    said = capsys.readouterr()
    assert "theirs" in said.out and "line 2" in said.err
    assert [r.id for r in Store(here).own()] == ["theirs"]
    written = json.loads(page(Store(here)).answer("record", {"id": "theirs"})["text"])
    assert written["id"] == "theirs"

"""The store: nothing is lost, nothing broken takes it down, the oldest artifacts make room."""

from __future__ import annotations

import json
import os
import warnings

import pytest

from evaluation.spec import Result, RunSpec
from evaluation.store import Store

SPEC = RunSpec("a-model", (("rtn", {"bits": 4}),))


def result(status="ok", **more):
    return Result("key", SPEC, status, **more)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, shipped=None)


def test_put_get_and_delete(store):
    kept = store.put(result(metrics={"perplexity": 2.0}))
    assert store.get_id(kept.id) == kept and store.get("key") == kept and store.own() == [kept]
    assert store.find(SPEC.identity()) == kept
    store.delete(kept.id)
    assert store.get_id(kept.id) is None and store.own() == []


def test_the_newest_ok_answers_for_a_key(store):
    store.put(result(id="20260101-a", metrics={"perplexity": 1.0}))
    newest = store.put(result(id="20260102-b", metrics={"perplexity": 2.0}))
    store.put(result("failed", id="20260103-c"))
    assert store.get("key") == newest


@pytest.mark.parametrize(
    "content", ["", "{", '{"key": 1}', json.dumps({"key": "k", "spec": {"model": "m", "recipe": [["gone", {}]]}, "status": "ok"})]
)
def test_a_broken_record_is_skipped_with_a_warning(store, content):
    kept = store.put(result())
    (store.home / "runs" / "20260101-broken.json").write_text(content)
    with pytest.warns(UserWarning, match="skipping 20260101-broken"):
        assert store.own() == [kept]


def test_ids_are_no_paths(store):
    (store.home / "secret.json").write_text("{}")
    for bad in ("../secret", "/etc/passwd", "a/b", "", "x" * 200):
        assert store.get_id(bad) is None
    with pytest.raises(ValueError):
        store.artifact_folder("../../etc")


def test_interrupted_runs_are_found_at_the_next_start(store):
    store.put(result("running", id="r"))
    store.put(result("queued", id="q"))
    store.put(result(id="o"))
    assert store.mark_interrupted() == 2
    assert [store.get_id(i).status for i in "rqo"] == ["interrupted", "interrupted", "ok"]
    assert store.get_id("r").error["code"] == "interrupted"


def test_the_oldest_artifacts_make_room_and_the_newest_stays(store):
    for i, name in enumerate("abc"):
        folder = store.artifact_folder(name)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 1000)
        (folder / "compression.json").write_text("{}")
        os.utime(folder, (i, i))
    with_a = store.put(result(artifact="a"))
    assert store.has_artifact(with_a)
    assert store.keep_within_budget("c", budget=2500) == ["a"]
    assert not store.has_artifact(with_a), "the card then offers to compress again"
    assert store.keep_within_budget("c", budget=10) == ["b"] and store.artifact_folder("c").is_dir()


def test_a_store_that_cannot_be_written_keeps_results_in_memory(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("a file where the folder should be")
    store = Store(tmp_path / "home", shipped=None)
    assert store.read_only
    kept = store.put(result(id="x"))
    assert store.get_id("x") == kept and len(store.rows()) == 1


def test_writing_is_all_or_nothing(store, monkeypatch):
    store.put(result(id="x", metrics={"perplexity": 1.0}))
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        store.put(result(id="x", metrics={"perplexity": 2.0}))
    assert store.get_id("x").metrics == {"perplexity": 1.0}
    assert [f.name for f in (store.home / "runs").iterdir()] == ["x.json"]


def test_the_rows_have_what_the_page_needs(store):
    store.put(result(metrics={"perplexity": 2.0, "file_bytes": 10}, protocol_id="p"))
    store.put(result("failed", error={"code": "x"}))
    rows = store.rows()
    ok = next(r for r in rows if r["status"] == "ok")
    assert len(rows) == 2 and ok["perplexity"] == 2.0 and ok["protocol_id"] == "p"
    assert {"id", "key", "model", "family", "recipe", "protocol_id", "shipped", "artifact", "host", "notes"} <= set(rows[0])


def test_every_shipped_result_can_be_read():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shipped = Store().shipped()
    assert len(shipped) >= 20
    assert all(r.status == "ok" and r.environment and r.protocol_id and not r.artifact for r in shipped)
    text = "".join(json.dumps(r.json()) for r in shipped)
    assert "/tmp/" not in text and "/home/" not in text and "/work/" not in text


def test_the_stamp_follows_every_change(store):
    """A new, a replaced, an edited and a removed record, and an artifact that goes, each at once and however soon."""
    seen = [store.stamp()]
    kept = store.put(result(id="a", artifact="art"))
    seen.append(store.stamp())
    store.put(result(id="a", artifact="art", metrics={"perplexity": 1.0}))
    seen.append(store.stamp())
    file = store.home / "runs" / "a.json"
    file.write_text(file.read_text("utf-8").replace("1.0", "10.0"), "utf-8")
    seen.append(store.stamp())
    assert store.get_id("a").metrics == {"perplexity": 10.0} and store.rows()[0]["perplexity"] == 10.0
    store.artifact_folder("art").mkdir(parents=True)
    (store.artifact_folder("art") / "compression.json").write_text("{}")
    seen.append(store.stamp())
    (store.artifact_folder("art") / "compression.json").unlink()
    assert store.stamp() == seen[3]
    store.delete(kept.id)
    seen.append(store.stamp())
    assert len(set(seen)) == len(seen) and store.stamp() == seen[-1]


def test_the_stamp_of_results_in_memory(tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    store = Store(tmp_path / "home", shipped=None)
    seen = {store.stamp(), store.put(result(id="x")) and store.stamp(), store.put(result("failed", id="x")) and store.stamp()}
    assert len(seen) == 3

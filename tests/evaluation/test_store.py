"""The store: nothing is lost, nothing broken takes it down, the oldest artifacts make room."""

from __future__ import annotations

import errno
import html
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation import ROOT, records
from evaluation.spec import Result, RunSpec
from evaluation.store import SHIPPED, Store
from kernels import home as place

SPEC = RunSpec("a-model", (("rtn", {"bits": 4}),))
JUDGED = {
    "measure": "answers_right",
    "asked": "q",
    "before": [0.0, 1.0],
    "after": [1.0, 1.0],
    "control": [0.0, 1.0],
    "clusters": [0, 1],
    "chance": 0.5,
}


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


def whole(**more) -> dict:
    """A record of today with everything in it, and what a test changes."""
    ways = {
        "host": {"processor": "p", "threads": 2},
        "limit": {"share_of_read_bandwidth": 0.5},
        "kernel": ["k"],
        "loop": "decode step (C)",
        "warm_ups": 1,
        "original": {"time_per_output_token_ms": 2.0},
        "transformers": {"time_per_output_token_ms": 3.0},
    }
    full = result(
        metrics={
            "perplexity": 2.0,
            "baseline_perplexity": 1.9,
            "perplexity_ratio": 1.05,
            "file_bytes": 10,
            "baseline_file_bytes": 30,
            "decode_tokens_per_second": 5.0,
            "baseline_decode_tokens_per_second": 4.0,
            "same_top_token_rate": 0.9,
        },
        timings=[ways],
        notes=[{"code": "window_shortened", "facts": {"asked": 512, "used": 64}}],
        environment={"processor": "p", "threads": 2},
        series={"window_losses": [1.0], "training": [[0, None, 3.0], [10, 2.0, None], [20, 1.5, 1.4]]},
        protocol_id="p",
        id="odd",
        created=1e9,
        layers=[{"path": "a.b", "role": "q", "format": "grouped_int", "layer": 0}],
        judged=[JUDGED],
        artifact="0a1b",
        model={"kind": "folder"},
    )
    return full.json() | {"version": records.VERSION, "owner": ""} | more


ODD = {
    "nothing": "",
    "half": "{",
    "a list": "[]",
    "a word": '"word"',
    "little": '{"key": 1}',
    "deep": "[" * 100_000,
    "not text": b"\xff\xfe",
    "a method that is gone": whole(spec={"model": "m", "recipe": [["gone", {}]]}),
    "no spec": whole(spec=None),
    "a spec's list": whole(spec=[]),
    "an unknown field": whole(colour="red"),
    "an unknown field of the spec": whole(spec=SPEC.json() | {"colour": "red"}),
    "a model that is a number": whole(spec=SPEC.json() | {"model": 5}),
    "bits in words": whole(spec=SPEC.json() | {"table_bits": "8"}),
    "created, a word": whole(created="yesterday"),
    "created, too late": whole(created=1e15),
    "created, nothing": whole(created=None),
    "metrics, a list": whole(metrics=[1, 2]),
    "a metric in words": whole(metrics={"perplexity": "low"}),
    "a metric that is true": whole(metrics={"perplexity": True}),
    "a size of nothing": whole(metrics={"file_bytes": 0}),
    "half a pair": whole(metrics={"baseline_file_bytes": 5}),
    "notes of strings": whole(notes=["window_shortened"]),
    "notes, a word": whole(notes="many"),
    "a note without facts": whole(notes=[{"code": "x"}]),
    "layers, a table": whole(layers={"a": 1}),
    "a curve of words": whole(series={"training": [["a", "b", "c"]]}),
    "a curve without held-out": whole(series={"training": [[0, 1.0, None]]}),
    "judged by what is no measure": whole(judged=[JUDGED | {"measure": "beauty"}]),
    "judged in words": whole(judged=[JUDGED | {"after": ["high", "low"]}]),
    "judged on fewer questions": whole(judged=[JUDGED | {"after": [1.0]}]),
    "judged on nothing": whole(judged=[JUDGED | {"before": [], "after": [], "control": [], "clusters": []}]),
    "judged twice": whole(judged=[JUDGED, JUDGED]),
    "judged without a name": whole(judged=[{k: v for k, v in JUDGED.items() if k != "asked"}]),
    "timings without a host": whole(timings=[{"kernel": ["k"], "limit": {}, "loop": ""}]),
    "an artifact above": whole(artifact=".."),
    "an artifact elsewhere": whole(artifact="a/b"),
    "a hidden artifact": whole(artifact=".a"),
    "another's id": whole(id="other"),
    "an id that is a path": whole(id="../odd"),
    "a status of its own": whole(status="fine"),
    "a newer version": whole(version=records.VERSION + 1),
    "a version in words": whole(version="2"),
    "version 0": whole(version=0),
    "no number": json.dumps(whole(metrics={"perplexity": 2.0})).replace("2.0", "NaN", 1),
    "infinite": json.dumps(whole(created=5.5)).replace("5.5", "1e999"),
    "a huge number": json.dumps(whole(created=55)).replace("55", "9" * 5000, 1),
    "half a character": whole(protocol_id="\ud800"),
    "an error in words": whole(status="failed", error="bad"),
    "environment, a list": whole(environment=[]),
    "threads in words": whole(environment={"threads": "2"}),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_record_is_skipped_with_one_line_in_the_log(store, caplog, kind):
    kept, content = store.put(result()), ODD[kind]
    content = json.dumps(content) if isinstance(content, dict) else content
    (store.home / "runs" / "odd.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    for _ in range(2):
        assert store.own() == [kept] and store.get_id("odd") is None and len(store.rows()) == 1
    assert (
        len(caplog.messages) == 1
        and caplog.messages[0].startswith("skipping odd.json: ")
        and "\n" not in caplog.messages[0]
    )
    assert len(caplog.messages[0]) < 300


def test_what_is_no_file_is_skipped_too(store, caplog):
    kept = store.put(result())
    (store.home / "runs" / "folder.json").mkdir()
    (store.home / "runs" / "link.json").symlink_to("/nowhere")
    os.mkfifo(store.home / "runs" / "pipe.json")
    assert store.own() == [kept] and len(caplog.messages) == 2


def test_records_of_the_first_version_are_brought_up(store, caplog):
    old = {
        "key": "key",
        "spec": SPEC.json(),
        "status": "ok",
        "metrics": {"perplexity": 2.0},
        "id": "old",
        "gone": 1,
        "timings": [{"host": {}, "kernel": ["k"], "original": {"time_per_output_token_ms": 2.0}}],
    }
    (store.home / "runs").mkdir(exist_ok=True)
    (store.home / "runs" / "old.json").write_text(json.dumps(old))
    found = store.get_id("old")
    assert (
        found.metrics == {"perplexity": 2.0}
        and found.notes == []
        and found.timings[0]["limit"] == {}
        and not caplog.messages
    )
    store.put(found)
    written = json.loads((store.home / "runs" / "old.json").read_text())
    assert written["version"] == records.VERSION == max(records.STEPS) + 1 and "gone" not in written
    assert store.get_id("old") == found


def test_any_valid_record_can_be_shown(store):
    """Whatever one value of a record is changed to, the page's answers come: the record is either skipped or
    drawn."""
    from evaluation.page import requests
    from evaluation.page.questions import Page

    page = Page(store, None)
    full, odd = (
        whole(),
        (None, True, -1, 0, 1e300, 10**25, "", "word", [], {}, [[]], {"a": []}, "\x00", "<b>"),
    )
    (store.home / "runs").mkdir(exist_ok=True)
    shown = 0

    def places(x, way=()):
        yield way
        for k, y in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
            if len(way) < 4:
                yield from places(y, (*way, k))

    for i, way in enumerate(list(places(full))[1:]):
        for value in (odd[i % len(odd)], odd[(3 * i + 5) % len(odd)]):
            changed = json.loads(json.dumps(full))
            at = changed
            for k in way[:-1]:
                at = at[k]
            at[way[-1]] = value
            (store.home / "runs" / "odd.json").write_text(json.dumps(changed))
            for question, ask in (
                ("runs", {"lang": "en"}),
                ("card", {"lang": "zh-Hant", "id": "odd"}),
                ("sides", {"lang": "en", "id": "odd"}),
                ("front", {"lang": "en", "model": "a-model"}),
            ):
                if question == "sides":
                    page.runner = type("Quiet", (), {"busy": lambda self: False})()
                answer = page.answer(question, ask)
                assert not answer.get("error") and answer != "?", (
                    way,
                    value,
                    question,
                    answer["error"][:300],
                )
                shown += question == "card" and answer["status"] == "ok"
    assert shown > 20, "some of them are only odd"
    assert requests.QUESTIONS


@pytest.mark.parametrize("sealed", [True, False])
def test_the_card_says_that_a_model_of_an_older_version_has_no_hashes(store, sealed):
    from evaluation.page import requests
    from evaluation.page.questions import Page
    from evaluation.page.words import Words

    made = store.put(result(artifact="made", metrics={"perplexity": 2.0}))
    folder = store.artifact_folder("made")
    folder.mkdir(parents=True)
    about = {"version": 2, "sha256": "0" * 64} if sealed else {"version": 1}
    (folder / "compression.json").write_text(json.dumps(about | {"modules": {}}))
    card = Page(store, None).card(requests.OfRun(lang="en", id=made.id))["html"]
    assert (Words("en")("note.unchecked") in html.unescape(card)) is not sealed


def test_a_figure_that_is_no_number_is_never_written(store):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(records.NotFinite, match=r"metrics\.perplexity") as error:
            store.put(result(id="x", metrics={"perplexity": bad}))
        assert error.value.code == "figure_not_finite" and store.get_id("x") is None
    with pytest.raises(records.NotFinite, match="training"):
        store.put(result(id="x", series={"training": [[0, float("nan"), 1.0]]}))
    assert store.own() == []


def test_ids_are_no_paths(store):
    (store.home / "secret.json").write_text("{}")
    for bad in ("../secret", "/etc/passwd", "a/b", "", "x" * 200):
        assert store.get_id(bad) is None
    with pytest.raises(ValueError):
        store.artifact_folder("../../etc")


def test_interrupted_runs_are_found_at_the_next_start(store):
    for run_id, owner in (("r", "0" * 12), ("q", "")):  # of a program that has died, and of an older version
        place.write(
            store.home / "runs" / f"{run_id}.json",
            records.content(result({"r": "running", "q": "queued"}[run_id], id=run_id), owner),
        )
    store.put(result(id="o"))
    assert store.mark_interrupted() == 2
    assert [store.get_id(i).status for i in "rqo"] == ["interrupted", "interrupted", "ok"]
    assert store.get_id("r").error["code"] == "interrupted"


def test_a_second_program_on_the_same_home_leaves_the_firsts_runs_alone(store):
    """Its record is running as long as it lives, however it ends."""
    code = """
import sys
from pathlib import Path
from evaluation.spec import Result, RunSpec
from evaluation.store import Store
store = Store(Path(sys.argv[1]), shipped=None)
store.put(Result("key", RunSpec("a-model", (("rtn", {"bits": 4}),)), "running", id="theirs"))
print("ready", flush=True)
sys.stdin.readline()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(store.home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    other.stdout.readline()
    store.put(result("running", id="ours"))
    second = Store(store.home, shipped=None)
    assert second.mark_interrupted() == 0 and {r.status for r in second.own()} == {"running"}
    other.kill()
    other.wait()
    assert second.mark_interrupted() == 1
    assert [second.get_id(i).status for i in ("ours", "theirs")] == ["running", "interrupted"]


def test_what_is_in_use_makes_no_room(store):
    for i, name in enumerate("abc"):
        with store.making(name) as folder:
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(b"x" * 1000)
        os.utime(store.artifact_folder(name), (i, i))
    with store.using("a", ""):
        assert Store(store.home, shipped=None).keep_within_budget("c", budget=1500) == ["b"]
    assert store.keep_within_budget("c", budget=1500) == ["a"]
    with pytest.raises(RuntimeError), store.making("d") as folder:
        folder.mkdir()
        raise RuntimeError
    assert [f.name for f in (store.home / "artifacts").iterdir()] == ["c"], (
        "one that never got its name is gone"
    )


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


def test_a_store_that_cannot_be_written_keeps_results_in_a_temporary_place(tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    store = Store(tmp_path / "home", shipped=None)
    assert store.read_only and store.home != tmp_path / "home" and store.home.is_dir()
    kept = store.put(result(id="x"))
    assert store.get_id("x") == kept and len(store.rows()) == 1
    with store.making("a") as folder:
        folder.mkdir()
    assert store.artifact_folder("a").is_dir()


def test_on_a_full_disk_the_result_is_kept_in_memory(store, monkeypatch):
    store.put(result("running", id="x"))
    monkeypatch.setattr(
        Path,
        "write_bytes",
        lambda self, data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    with pytest.raises(OSError):
        store.put(result(id="x", metrics={"perplexity": 1.0}))
    assert store.get_id("x").status == "ok" and [r.status for r in store.own()] == ["ok"]
    monkeypatch.undo()
    assert Store(store.home, shipped=None).get_id("x").status == "running", "whole as it was"
    assert [f.name for f in (store.home / "runs").iterdir()] == ["x.json"]


def test_writing_is_all_or_nothing(store, monkeypatch):
    store.put(result(id="x", metrics={"perplexity": 1.0}))
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        store.put(result(id="x", metrics={"perplexity": 2.0}))
    assert Store(store.home, shipped=None).get_id("x").metrics == {"perplexity": 1.0}
    assert [f.name for f in (store.home / "runs").iterdir()] == ["x.json"]


def test_the_rows_have_what_the_page_needs(store):
    store.put(result(metrics={"perplexity": 2.0, "file_bytes": 10}, protocol_id="p"))
    store.put(result("failed", error={"code": "x"}))
    rows = store.rows()
    ok = next(r for r in rows if r["status"] == "ok")
    assert len(rows) == 2 and ok["perplexity"] == 2.0 and ok["protocol_id"] == "p"
    assert {
        "id",
        "key",
        "model",
        "family",
        "recipe",
        "protocol_id",
        "shipped",
        "artifact",
        "host",
        "notes",
    } <= set(rows[0])


def test_every_shipped_result_can_be_read():
    shipped = Store().shipped()
    assert len(shipped) == len(list(SHIPPED.glob("*.json"))) >= 20
    assert all(r.status == "ok" and r.environment and r.protocol_id and not r.artifact for r in shipped)
    text = "".join(json.dumps(r.json()) for r in shipped)
    assert "/tmp/" not in text and "/home/" not in text and "/work/" not in text


def test_the_stamp_follows_every_change(store):
    """A new, a replaced, an edited and a removed record, and an artifact that goes, each at once and however
    soon."""
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
    seen = {
        store.stamp(),
        store.put(result(id="x")) and store.stamp(),
        store.put(result("failed", id="x")) and store.stamp(),
    }
    assert len(seen) == 3

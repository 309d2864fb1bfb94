"""The campaign's own instruments: what they count, find and bend. The campaign itself is `make soak`."""

from __future__ import annotations

import importlib
import json
import random

from tests.soak import PARTS, __main__, campaign, fuzz, kill_workers, stage, visitors
from tests.soak.ledger import OUTCOMES, Ledger


def test_every_part_can_be_run():
    assert all(callable(importlib.import_module(f"tests.soak.{name}").run) for name in PARTS)


def test_a_part_may_declare_how_long_it_may_take(tmp_path, monkeypatch):
    assert __main__.longest(kill_workers) == 7200 and __main__.longest(visitors) == 3600
    now = [0.0]
    monkeypatch.setattr(campaign.time, "monotonic", lambda: now[0])
    for seconds, share, done in ((7200, 1, 72), (3600, 1, 36), (7200, 0.5, 36), (3600, 0.01, 3)):
        now[0] = 0.0
        part = campaign.Campaign("part", share, tmp_path, {}, seconds)
        for _ in part.each(100):
            now[0] += 101
        assert now[0] == done * 101 and part.ledger.notes == [f"{done} of 100 in the time that a part has"]


def test_a_ledger_counts_each_try_once():
    ledger = Ledger("part")
    ledger.count()
    assert ledger.check(True, "right") and not ledger.check(False, "another number")
    ledger.found("traceback", "KeyError: 'lang'")
    row = ledger.json()
    assert (row["tried"], row["survived"], row["wrong"], row["traceback"]) == (3, 2, 1, 1)
    assert row["defects"] == ["wrong: another number", "traceback: KeyError: 'lang'"] and set(OUTCOMES) < set(
        row
    )


def test_what_nobody_owns_is_found(tmp_path):
    for name in (
        "artifacts/kept",
        "artifacts/orphan",
        "artifacts/.key~1a2b3c4d",
        "baselines/whole",
        "baselines/begun",
        "runs",
        "downloads",
    ):
        (tmp_path / name).mkdir(parents=True)
    for name in ("baselines/whole/index.json", "downloads/model.part", "runs/a.json", "timing.lock"):
        (tmp_path / name).touch()
    found = stage.leftovers(tmp_path, [{"status": "ok", "artifact": "kept"}])
    assert found == [
        "artifacts/.key~1a2b3c4d",
        "artifacts/orphan of no record",
        "baselines/begun without index",
        "downloads/model.part",
    ]


def test_a_traceback_is_told_in_a_line():
    text = (
        f'Traceback (most recent call last):\n  File "{stage.ROOT}/evaluation/page/questions/figure.py", '
        "line 80, in front\n    words\nKeyError: 'lang'\nmore\n"
    )
    assert (
        stage.TRACEBACK.search(text)
        and stage.summary(text) == "KeyError: 'lang' (evaluation/page/questions/figure.py:80 in front)"
    )
    line = "TypeError: ask() got an unexpected keyword argument 'owner' (/srv/page.py, line 404)"
    assert stage.TRACEBACK.search(f"started\n{line}\nmore") and stage.summary(line + "\nmore") == line


def test_bent_requests_differ_and_can_be_sent():
    chance, valid = (
        random.Random(0),
        {"lang": "en", "choices": {"recipe": [["gptq", {"bits": 4}]], "tokens": 512}},
    )
    bent = [fuzz.bent(chance, valid) for _ in range(200)]
    assert sum(request != valid for request in bent) > 190
    assert all(json.dumps(request).encode("utf-8", "surrogatepass") for request in bent)

"""A run and its chat on a pretended graphics card (tests/card.py)."""

from __future__ import annotations

import threading

from evaluation import host
from evaluation.running import chat
from evaluation.running.run import run
from evaluation.spec import RunSpec
from evaluation.store import Store
from tests import tiny
from tests.card import Card

DEVICE = "card"


def test_a_run_and_its_chat_take_the_card(monkeypatch, tmp_path):
    """The run is measured where it was compressed; both sides answer there too; a processor's answer to the
    same question is another answer."""
    monkeypatch.setattr(host, "device", lambda asked="auto": DEVICE)
    store = Store(tmp_path, shipped=None)
    asked = RunSpec(
        model=tiny.folder("llama"),
        recipe=(("rtn", {"group_size": 16}),),
        text="builtin",
        tokens=256,
        window=128,
    )
    with Card():
        result = run(asked, store=store, allow_paths=True, timings=False)
        assert result.status == "ok", result.error
        folder = str(store.artifact_folder(result.artifact))
        sides = chat._load({}, {"model": asked.model, "artifact": folder})
        assert all(next(s.bundle.module.parameters()).device.type == DEVICE for s in sides)
        question = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "temperature": 0.5}
        events = list(chat.answer(sides, question | {"seed": 0}, threading.Event()))
    assert sum("side" in event for event in events) >= 2
    monkeypatch.undo()
    here = run(asked, store=store, allow_paths=True, timings=False)
    assert here.status == "ok" and here.key != result.key

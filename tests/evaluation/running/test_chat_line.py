"""The chat's line, its deadlines and its Stop, with a worker that does as it is told and needs no model."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from compression.catalogue import OFFLINE_MODEL
from evaluation.running import chat as chats
from evaluation.running.chat import Chat, ChatError, bounded_memory
from evaluation.spec import Result, RunSpec
from evaluation.store import Store

WORKER = """
import json, sys, threading, time
stopped, hung = threading.Event(), False
def say(**event): print(json.dumps(event), flush=True)
def work(word):
    say(stage="load")
    if word == "load": time.sleep(999)
    say(stage="prompt")
    if word == "prompt": time.sleep(999)
    say(stage="token")
    if word == "token": time.sleep(999)
    if word == "die": __import__("os")._exit(9)
    if word == "wrong": return say(error={"code": "prompt_too_long", "message": "long", "facts": {}})
    for n in range(int(word) if word.isdigit() else 0):
        if stopped.is_set(): break
        say(side="original", text="x", n=n)
        time.sleep(0.02)
    say(end=True)
for line in sys.stdin:
    message = json.loads(line)
    if "stop" in message: stopped.set()
    else:
        stopped.clear()
        threading.Thread(target=work, args=(message["ask"]["messages"][0]["content"],), daemon=True).start()
"""


@pytest.fixture
def chat(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(chats, "COMMAND", (sys.executable, str(tmp_path / "worker.py")))
    store = Store(tmp_path / "home", shipped=None)
    store.put(Result(key="", spec=RunSpec(OFFLINE_MODEL, (("none", {}),)), status="ok", id="run"))
    chat = Chat(store)
    yield chat
    chat.close()


def ask(chat, word, owner="", address=""):
    return chat.stream("run", [{"role": "user", "content": word}], owner=owner, address=address)


def written(stream, seconds=120) -> int:
    """How many words an answer has; it ends within so many seconds, on any machine."""
    words, end = 0, time.monotonic() + seconds
    for event in stream:
        words += "side" in event
        assert time.monotonic() < end, f"not within {seconds} s"
    return words


def until_busy(chat, stream) -> None:
    """Read on until the worker has the question and says nothing."""
    while next(stream) != {}:
        pass


@pytest.mark.parametrize(
    "stage, code", [("load", "chat_slow"), ("prompt", "template_slow"), ("token", "chat_slow")]
)
def test_every_stage_has_a_deadline_and_the_next_question_is_answered(chat, stage, code):
    chat.patience[stage] = 0.3
    with pytest.raises(ChatError) as error:
        written(ask(chat, stage))
    assert error.value.code == code and error.value.facts["seconds"] == 0.3
    chat.patience[stage] = 60
    assert written(ask(chat, "3")) == 3


@pytest.mark.parametrize("stage", ["load", "prompt", "token", "9999"])
def test_stop_works_at_every_stage_for_its_own_visitor_alone(chat, stage):
    stream = ask(chat, stage, "ann")
    until_busy(chat, stream) if stage != "9999" else [next(stream) for _ in range(5)]
    for stranger in ("bob", ""):
        chat.stop(stranger)
    assert not chat._line[0].stopped.is_set()
    chat.stop("ann")
    assert list(stream) == [], "told at once: nothing more comes"
    assert written(ask(chat, "2", "bob")) == 2


@pytest.mark.parametrize("stage", ["load", "prompt", "token", "9999"])
def test_who_leaves_frees_the_line_at_once(chat, stage, monkeypatch):
    stream = ask(chat, stage, "ann")
    until_busy(chat, stream) if stage != "9999" else [next(stream) for _ in range(5)]
    may_leave, leave = threading.Event(), Chat._leave
    monkeypatch.setattr(Chat, "_leave", lambda *turn: may_leave.wait(60) and leave(*turn))
    stream.close()
    assert chat._line and not may_leave.is_set(), "whoever closes a stream doesn't wait"
    may_leave.set()
    assert written(ask(chat, "2", "bob")) == 2


def test_the_line_tells_places_and_has_a_limit(chat, monkeypatch):
    monkeypatch.setattr(chats, "WAITING", 2)
    streams = {who: ask(chat, "9999", who) for who in ("ann", "bob", "cat")}
    assert [next(s)["place"] for s in streams.values()] == [0, 1, 2]
    with pytest.raises(ChatError) as error:
        next(ask(chat, "1", "dan"))
    assert error.value.code == "chat_full" and error.value.facts["n"] == 2
    chat.stop("bob")
    assert written(streams["bob"]) == 0, "stopped while waiting"
    assert next(s for s in streams["cat"] if s.get("place") == 1)
    streams["ann"].close()
    end = time.monotonic() + 120
    assert any("side" in event for event in streams["cat"] if time.monotonic() < end)
    again = ask(chat, "3", "cat")  # a new question ends the same visitor's last one
    assert next(again)["place"] == 1
    written(streams["cat"])
    assert written(again) == 3


def test_a_network_has_a_share_of_a_public_line(chat):
    chat.public = True
    streams = [ask(chat, "9999", f"v{n}", "192.0.2.1") for n in range(chats.WAITING_OF_ADDRESS + 1)]
    for stream in streams:
        next(stream)
    with pytest.raises(ChatError) as error:
        next(ask(chat, "1", "eve", "192.0.2.1"))
    assert error.value.code == "chat_full" and next(ask(chat, "1", "bob", "198.51.100.1"))["place"] == len(
        streams
    )
    for stream in streams:
        stream.close()


def test_a_long_answer_ends_where_it_is_and_other_ends_are_told(chat):
    chat.patience["answer"] = 0.2
    assert 0 < written(ask(chat, "9999")) < 9999
    for word, code in (("die", "chat_died"), ("wrong", "prompt_too_long")):
        with pytest.raises(ChatError) as error:
            written(ask(chat, word))
        assert error.value.code == code
        assert written(ask(chat, "1")) == 1


def test_a_template_has_no_more_memory_than_it_may():
    with pytest.raises(MemoryError), bounded_memory(2**28):
        "x" * 10**10
    assert len("x" * 2**29) == 2**29, "and only the template"

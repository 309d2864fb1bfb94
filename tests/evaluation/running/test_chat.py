"""Side by side in a real worker: equal models agree, others part where their tokens do, questions can be
stopped."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from evaluation.running.chat import Chat, ChatError, Side
from evaluation.running.run import run
from evaluation.spec import Result, RunSpec
from evaluation.store import Store
from kernels import cpu
from kernels.cpu.step import Decoder
from tests import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(store, a result that equals the original, a result that doesn't)."""
    folder = tmp_path_factory.mktemp("chat")
    (folder / "test.txt").write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(200)))
    store = Store(folder / "home", shipped=None)

    def make(name, values):
        spec = RunSpec(
            tiny.folder("qwen3"),
            ((name, values),),
            text=str(folder / "test.txt"),
            window=64,
            tokens=512,
            table_bits=16,
        )
        result = run(spec, store=store, timings=False)
        assert result.status == "ok", result.error
        return result

    return (
        store,
        make("wanda", {"sparsity": 0.0, "pattern": "unstructured"}),
        make("rtn", {"bits": 2, "group_size": 16}),
    )


@pytest.fixture(scope="module")
def chat(made):
    chat = Chat(made[0])
    yield chat
    chat.close()


QUESTION = [{"role": "user", "content": "hello there"}]


def by_side(events):
    return {side: [e for e in events if e["side"] == side] for side in ("original", "compressed")}


def test_the_sides_part_where_their_tokens_do(made, chat):
    sides = by_side(list(chat.ask(made[2].id, QUESTION, max_tokens=24)))
    tokens = {side: [e["token"] for e in events] for side, events in sides.items()}
    differ = [i for i, (a, b) in enumerate(zip(*tokens.values(), strict=False)) if a != b]
    assert differ and sides["compressed"][-1]["diverged_at"] == differ[0]
    assert all(e["diverged_at"] is None for e in sides["original"][: differ[0]])
    for events in sides.values():
        assert events[-1]["done"] and events[-1]["tokens_per_second"] > 0 and events[0]["first_ms"] > 0
    assert sides["compressed"][0]["memory_bytes"] < sides["original"][0]["memory_bytes"]


def test_both_sides_take_turns(made, chat):
    order = [e["side"] for e in chat.ask(made[2].id, QUESTION, max_tokens=6)]
    assert order[:6] == ["original", "compressed"] * 3


def test_the_same_model_says_the_same_at_any_temperature(made, chat):
    for temperature in (0.0, 1.0):
        sides = by_side(list(chat.ask(made[1].id, QUESTION, max_tokens=16, temperature=temperature, seed=3)))
        assert "".join(e["text"] for e in sides["original"]) == "".join(
            e["text"] for e in sides["compressed"]
        )
        assert sides["original"][-1]["diverged_at"] is None


def test_a_cache_of_few_bits_is_used_and_told(made, chat):
    """The worker loads what is stored: only the compressed side's cache is in 4 bits."""
    store, equal, _ = made
    few = dataclasses.replace(equal.spec, recipe=(("rtn", {"bits": 8, "group_size": 16}),), cache_bits=4)
    result = run(few, store=store, timings=False)
    assert result.status == "ok", result.error
    sides = by_side(list(chat.ask(result.id, QUESTION, max_tokens=6)))
    assert {e["cache_bits"] for e in sides["original"]} == {16} and {
        e["cache_bits"] for e in sides["compressed"]
    } == {4}


@pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")
def test_a_side_writes_from_sessions_of_codes(monkeypatch):
    """In the decode step, and with its weights given up."""
    opened, own = [], Decoder.session
    monkeypatch.setattr(Decoder, "session", lambda self, *size: opened.append(own(self, *size)) or opened[-1])
    taken = {}
    for bits in (16, 8, 4):
        bundle = tiny.bundle("qwen3")
        bundle.cache_bits = bits
        side = Side("compressed", bundle)
        side.start(QUESTION, 5, 0.0, 0)
        assert side.step()["cache_bits"] == bits and bundle.refused == ""
        taken[bits] = opened[-1].bytes
    assert len(opened) == 3 and taken[16] > 3 * taken[8] >= 3 * taken[4]


def test_leaving_early_keeps_the_next_question_clean(made, chat):
    stream = chat.ask(made[2].id, QUESTION, max_tokens=200)
    for _ in range(3):
        next(stream)
    stream.close()
    fresh = by_side(list(chat.ask(made[2].id, QUESTION, max_tokens=4)))
    assert all(
        len([e for e in events if e["token"] is not None]) <= 4 and events[-1]["done"]
        for events in fresh.values()
    )


def test_a_killed_worker_is_told_and_starts_anew(made, chat):
    stream = chat.ask(made[2].id, QUESTION, max_tokens=200)
    next(stream)
    chat._worker.process.kill()
    with pytest.raises(ChatError) as error:
        list(stream)
    assert error.value.code == "chat_died"
    assert list(chat.ask(made[2].id, QUESTION, max_tokens=2))


def test_a_template_that_never_ends_is_ended_and_the_next_question_is_answered(
    made, chat, tmp_path, monkeypatch
):
    store, equal, other = made
    shutil.copytree(equal.spec.model, tmp_path / "hostile")
    (tmp_path / "hostile" / "chat_template.jinja").write_text(
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    )
    spec = dataclasses.replace(equal.spec, model=str(tmp_path / "hostile"), recipe=(("none", {}),))
    store.put(Result(key="", spec=spec, status="ok", id="hostile"))
    monkeypatch.setitem(chat.patience, "prompt", 3.0)
    with pytest.raises(ChatError) as error:
        list(chat.ask("hostile", QUESTION))
    assert error.value.code == "template_slow"
    assert list(chat.ask(other.id, QUESTION, max_tokens=2))


def test_what_cannot_be_asked_is_told(made, chat):
    with pytest.raises(ChatError) as error:
        list(chat.ask("nosuchrun", QUESTION))
    assert error.value.code == "unknown_run"
    with pytest.raises(ChatError) as error:
        list(chat.ask(made[2].id, [{"role": "user", "content": "x" * 500}]))
    assert error.value.code == "prompt_too_long"
    store = made[0]
    gone = store.put(dataclasses.replace(made[2], id="gone", artifact="gone"))
    shutil.rmtree(store.artifact_folder("gone"), ignore_errors=True)
    with pytest.raises(ChatError) as error:
        list(chat.ask(gone.id, QUESTION))
    assert error.value.code == "artifact_missing"

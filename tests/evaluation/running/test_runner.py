"""The runner with real worker processes on a tiny model: every way a run can end, and two visitors."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import psutil
import pytest

import compression
from compression.base import CompressionError
from compression.catalogue import OFFLINE_MODEL
from evaluation import records
from evaluation.running import runner as runs
from evaluation.running.clock import NOT_COMPUTED
from evaluation.running.executor import Lent, Workers
from evaluation.running.public import named_only
from evaluation.running.runner import WAITING, WAITING_OF_ADDRESS, Refused, Runner
from evaluation.running.worker import GRACE_SECONDS, events
from evaluation.spec import Result, RunSpec
from evaluation.store import Store
from kernels.home import write
from tests import tiny


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "test.txt").write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(3000)))
    (folder / "valid.txt").write_text("".join(f"other words {i}, {i**3} of them\n" for i in range(3000)))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def runner(place):
    runner = Runner(Store(place, shipped=None))
    yield runner
    runner.close()


def spec(texts, bits=4, tokens=512, **more):
    return RunSpec(
        tiny.folder("llama"),
        (("rtn", {"bits": bits, "group_size": 16}),),
        text=str(texts / "test.txt"),
        calibration=str(texts / "valid.txt"),
        window=64,
        tokens=tokens,
        **more,
    )


def endless(texts, **more):
    """A run that takes long enough to be stopped in the middle."""
    return dataclasses.replace(
        spec(texts, tokens=64 * 800),
        recipe=(("gptq", {"bits": 3, "group_size": 16}),),
        calibration_tokens=64 * 400,
        **more,
    )


def wait(runner, run_id, until=lambda s: s["status"] not in ("queued", "running"), seconds=900):
    start = time.time()
    while not until(state := runner.state(run_id)):
        assert time.time() - start < seconds, state
        time.sleep(0.05)
    return state


def running(runner, run_id):
    return wait(
        runner, run_id, lambda s: s["status"] == "running" and s["stage"] not in (None, *NOT_COMPUTED)
    )


def test_a_run_ends_in_the_store_and_the_apps_own_process_loads_no_model(runner, texts, monkeypatch):
    from compression import artifact, models

    def never(*args, **kwargs):
        raise AssertionError("a model was loaded in the app's process")

    monkeypatch.setattr(models, "load", never)
    monkeypatch.setattr(artifact, "load", never)
    run_id = runner.submit(spec(texts))
    stages = set()
    state = wait(runner, run_id, lambda s: stages.add(s.get("stage")) or s["status"] == "ok")
    assert state["result_id"] == run_id and runner.store.get_id(run_id).metrics["perplexity"] > 1
    assert stages - {None}, "progress was told"
    assert runner.submit(spec(texts)) == run_id, "answered from the store"
    anew = runner.submit(spec(texts), "ann", again=True)
    assert anew != run_id
    runner.cancel(anew, "ann")


def test_two_visitors_share_one_run_and_one_may_leave(runner, texts):
    first = runner.submit(endless(texts), "ann")
    running(runner, first)
    assert runner.submit(endless(texts), "bob") == first and runner.state(first)["shared"]
    runner.cancel(first, "ann")
    assert runner.state(first)["status"] == "running" and not runner.state(first)["shared"]
    runner.cancel(first, "bob")
    assert wait(runner, first)["status"] == "cancelled"


def test_stopping_frees_the_memory_of_a_worker_that_hangs(runner, texts):
    """It has two seconds to obey."""
    run_id = runner.submit(endless(texts), "ann")
    running(runner, run_id)
    worker = psutil.Process(runner._jobs[run_id].running.pid)
    worker.suspend()
    runner.cancel(run_id, "ann")
    state = wait(runner, run_id, seconds=60)
    assert GRACE_SECONDS == 2 and not worker.is_running()
    assert (state["status"], state["error"]["code"]) == ("cancelled", "cancelled")


def test_a_public_page_ends_what_never_ends(texts, place, monkeypatch):
    """For example a chat template without an end: the run's record says so, and the line goes on."""
    monkeypatch.setattr(runs, "PUBLIC_SECONDS", 1.0)
    monkeypatch.setattr(runs, "named_only", lambda spec: None)
    public = Runner(Store(place, shipped=None), public=True, executor=Workers(spare=False))
    try:
        run_id = public.submit(endless(texts, seed=7))
        state = wait(public, run_id, seconds=60)
        assert (state["status"], state["error"]["code"]) == ("failed", "overtime")
        assert not public._jobs and public._thread.is_alive()
    finally:
        public.close()


def test_a_killed_worker_is_told_and_the_next_run_works(runner, texts):
    run_id = runner.submit(endless(texts, seed=5))
    running(runner, run_id)
    os.kill(runner._jobs[run_id].running.pid, signal.SIGKILL)
    state = wait(runner, run_id)
    assert (state["status"], state["error"]["code"]) == ("oom", "worker_killed")
    assert runner.store.get_id(run_id).status == "oom"
    assert wait(runner, runner.submit(spec(texts, bits=5)))["status"] == "ok"


def test_a_failed_run_keeps_its_own_words(runner, texts):
    run_id = runner.submit(dataclasses.replace(spec(texts), model="gpt2"))
    state = wait(runner, run_id)
    assert (state["status"], state["error"]["code"]) == ("failed", "hub_unreachable")


def test_the_queue_has_one_place_a_visitor(runner, texts):
    first = runner.submit(endless(texts, seed=7), "ann")
    running(runner, first)
    second = runner.submit(spec(texts, bits=6), "ann")
    assert runner.state(second)["status"] == "queued" and runner.state(second)["place"] == 1
    with pytest.raises(Refused) as refused:
        runner.submit(spec(texts, bits=7), "ann")
    assert refused.value.code == "one_queued"
    other = runner.submit(spec(texts, bits=8), "bob")
    for stranger in ("bob", ""):
        runner.cancel(second, stranger)
        assert runner.state(second)["status"] == "queued" and not runner.state(second, stranger)["mine"]
    runner.cancel(second, "ann")
    assert runner.state(second)["status"] == "cancelled" and runner.state(other)["place"] == 1
    runner.cancel(first, "ann")
    assert wait(runner, other)["status"] == "ok"


def test_the_line_and_each_address_have_limits(tmp_path, monkeypatch):
    """Nothing starts here: the line alone."""
    monkeypatch.setattr(Runner, "_work", lambda self: None)
    runner = Runner(Store(tmp_path, shipped=None), public=True, executor=Workers(spare=False))

    def ask(n, who, where):
        return runner.submit(RunSpec(OFFLINE_MODEL, (("rtn", {}),), seed=n), who, address=where)

    for n in range(WAITING_OF_ADDRESS):
        ask(n, f"ann{n}", "192.0.2.1")
    with pytest.raises(Refused) as refused:
        ask(100, "eve", "192.0.2.1")
    assert refused.value.code == "address_full"
    assert runner.state(ask(0, "eve", "192.0.2.1"))["shared"], "to share a run takes no place"
    for n in range(WAITING_OF_ADDRESS, WAITING):
        ask(n, f"ann{n}", f"198.51.100.{n}")
    with pytest.raises(Refused) as refused:
        ask(101, "bob", "203.0.113.1")
    assert refused.value.code == "queue_full" and len(runner._jobs) == WAITING
    runner.close()


@pytest.mark.parametrize(
    "model, code",
    [
        ("/etc", "path_refused"),
        ("../x", "path_refused"),
        ("~/x", "path_refused"),
        ("assets/i18n", "path_refused"),
        ("owner/" + "x" * 97, "bad_hub_id"),
        ("a/b/c", "bad_hub_id"),
        ("a/b.git", "bad_hub_id"),
        ("http://a/b", "bad_hub_id"),
        ("nosuch", "unknown_model"),
        ("owner/name", ""),
    ],
)
@pytest.mark.parametrize("field", ["model", "student"])
def test_a_public_page_takes_named_models_alone(model, code, field):
    step = ("gkd", {"student": model}) if field == "student" else ("rtn", {})
    spec = RunSpec(model if field == "model" else OFFLINE_MODEL, (step,))
    try:
        named_only(spec)
        assert code == ""
    except CompressionError as error:
        assert error.code == code


def test_unknown_runs_are_gone(runner):
    assert runner.state("nosuchrun")["status"] == "unknown"


def test_after_the_app_was_killed_the_run_is_interrupted(texts, tmp_path):
    first = Runner(Store(tmp_path, shipped=None))
    run_id = first.submit(endless(texts, seed=9))
    running(first, run_id)
    job = first._jobs[run_id]
    job.running.stdin.close()  # what the worker sees when its parent dies
    wait(first, run_id)  # its watcher has noted the death: an app that dies as well notes nothing
    first._closed = True
    left = dataclasses.replace(first.store.get_id(run_id), status="running", error={})
    # of a program that has died
    write(tmp_path / "runs" / f"{run_id}.json", records.content(left, owner="0" * 12))
    again = Runner(Store(tmp_path, shipped=None), executor=Workers(spare=False))
    assert (again.state(run_id)["status"], again.state(run_id)["error"]["code"]) == (
        "interrupted",
        "interrupted",
    )
    assert wait(again, again.submit(spec(texts)))["status"] == "ok"
    again.close()
    first.close()


@pytest.mark.parametrize("field", ["model", "text", "calibration"])
def test_a_public_page_refuses_paths(texts, tmp_path, field):
    runner = Runner(Store(tmp_path, shipped=None), public=True, executor=Workers(spare=False))
    named = RunSpec(OFFLINE_MODEL, (("gptq", {}),))
    with pytest.raises(CompressionError) as refused:
        runner.submit(dataclasses.replace(named, **{field: str(texts / "test.txt")}))
    assert refused.value.code == "path_refused"
    runner.close()


def test_a_public_page_refuses_days_of_work_but_not_their_answer(tmp_path, monkeypatch):
    long = RunSpec(OFFLINE_MODEL, (("qlora", compression.get("qlora").full),))

    def seconds(spec):
        return {"compress": 6000.0 if spec.recipe == long.recipe else 60.0}

    monkeypatch.setattr("evaluation.running.runner.stage_seconds", seconds)
    public, own = (
        Runner(Store(tmp_path / str(p), shipped=None), public=p, executor=Workers(spare=False))
        for p in (True, False)
    )
    with pytest.raises(Refused) as refused:
        public.submit(long)
    assert refused.value.code == "too_long" and refused.value.facts["minutes"] > 60
    public.cancel(public.submit(dataclasses.replace(long, recipe=(("qlora", {}),)), "ann"), "ann")
    own.cancel(own.submit(long, "ann"), "ann")
    monkeypatch.setattr(public.store, "find", lambda identity: Result("key", long, "ok", id="stored"))
    monkeypatch.setattr(public, "_usable", lambda found: True)
    assert public.submit(long) == "stored"
    public.close()
    own.close()


def test_inline_runs_behind_the_same_interface(texts, tmp_path):
    """As on ZeroGPU, where the work is a generator and no process of ours."""
    runner = Runner(Store(tmp_path, shipped=None), executor=Lent(events))
    run_id = runner.submit(spec(texts))
    assert (state := wait(runner, run_id))["status"] == "ok", state
    stopped = runner.submit(endless(texts), "ann")
    running(runner, stopped)
    runner.cancel(stopped, "ann")
    assert wait(runner, stopped)["status"] == "cancelled"
    assert (
        wait(runner, runner.submit(dataclasses.replace(spec(texts), model="nosuch")))["error"]["code"]
        == "unknown_model"
    )
    runner.close()


def test_a_training_can_be_ended_early_and_its_best_state_is_measured(runner, texts):
    recipe = (
        ("rtn", {"bits": 3, "group_size": 16}),
        ("lora", {"rank": 2, "train_tokens": 10_000_000, "train_minutes": 5.0}),
    )
    run_id = runner.submit(dataclasses.replace(spec(texts), recipe=recipe), "ann")
    state = wait(runner, run_id, lambda s: s["status"] == "running" and s["stage"] == "train")
    assert (
        state["facts"]["budget"] == 10_000_000
        and state["facts"]["curve"][0][0] == 0
        and state["facts"]["method"] == "lora"
    )
    runner.enough(run_id, "bob")  # not bob's: it goes on
    runner.enough(run_id, "ann")
    assert (state := wait(runner, run_id))["status"] == "ok", state
    result = runner.store.get_id(run_id)
    assert {"trained", "training_enough"} <= {n["code"] for n in result.notes}
    assert result.series["training"] and result.series["window_losses"]
    assert result.spec.control().recipe == (
        result.spec.recipe[1],
    ) and result.spec.without_training().recipe == (result.spec.recipe[0],)
    runner.enough("no such run", "ann")

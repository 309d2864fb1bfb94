"""How long a run still takes: an hour glass that is turned by hand instead of by time."""

from __future__ import annotations

import pytest

from evaluation import host
from evaluation.running import clock
from evaluation.running.clock import Clock, still
from kernels import cpu

PLAN = {"load": 2.0, "baseline": 10.0, "compress": 20.0, "save": 1.0, "evaluate": 30.0}


class Hours:
    """Stands for the module `time`."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def hours(monkeypatch):
    found = Hours()
    monkeypatch.setattr(clock, "time", found)
    monkeypatch.setattr("evaluation.running.estimate.stage_seconds", lambda spec: dict(PLAN))
    monkeypatch.setattr(cpu, "is_built", lambda: True)
    return found


@pytest.fixture
def told():
    return []


@pytest.fixture
def running(hours, told):
    return Clock("a spec", told.append)


def test_at_the_start_the_whole_plan_is_left(running, told):
    running.emit({"stage": "load", "done": 0, "total": 1})
    assert told == [{"stage": "load", "done": 0, "total": 1, "seconds_left": 63.0}]


def test_seconds_that_passed_are_no_longer_left_and_a_late_stage_owes_nothing(running, told, hours):
    for passed, left in ((1.5, 61.5), (500, 61.0)):
        hours.now = 100 + passed
        running.emit({"stage": "load"})
        assert told[-1]["seconds_left"] == left


def test_a_stage_that_begins_ends_all_before_it(running, told):
    """The original was found in the store: its stage never begins."""
    running.stage("compress")
    assert told[-1] == {"stage": "compress", "done": 0, "total": 1, "seconds_left": 51.0}


def test_the_pace_of_a_stage_counts_once_a_twentieth_of_it_is_done(running, told, hours):
    running.stage("compress")
    hours.now += 4
    running.emit({"stage": "compress", "done": 1, "total": 20})
    assert told[-1]["seconds_left"] == 16 + 31, "as planned: 20 seconds, 4 are over"
    running.emit({"stage": "compress", "done": 10, "total": 20})
    # half took 4 seconds instead of 10, beside 5 in which the plan is trusted: 9 / 15 for the stages to come
    assert told[-1]["seconds_left"] == pytest.approx(4 + 31 * 9 / 15)


def test_what_the_original_emits_is_told_as_its_stage(running, told):
    running.stage("baseline")
    running.emit({"stage": "evaluate", "done": 1, "total": 4})
    assert told[-1]["stage"] == "baseline"
    running.stage("evaluate")
    running.emit({"stage": "generate", "done": 1, "total": 4})
    assert told[-1]["stage"] == "generate"


def test_a_run_teaches_the_pace_by_its_planned_stages_without_loading(running, hours, monkeypatch):
    learnt = []
    monkeypatch.setattr(host, "learn", lambda *seconds: learnt.append(seconds))
    hours.now += 50  # a download
    running.stage("compress")
    hours.now += 30
    running.stage("evaluate")
    hours.now += 60
    running.end()
    assert learnt == [(50.0, 90.0)]


def test_a_short_run_teaches_nothing(running, hours, monkeypatch):
    monkeypatch.setattr(host, "learn", lambda *seconds: pytest.fail("learnt"))
    running.stage("save")
    hours.now += 300
    running.end()


@pytest.mark.parametrize(
    "known, planned, actual, expected", [(1, 10, 40, 2), (2, 10, 20, 2.828), (1, 1, 1e6, 10)]
)
def test_the_pace_goes_half_way_to_what_a_run_showed(known, planned, actual, expected, tmp_path, monkeypatch):
    """Half way on a scale of ratios, and never beyond ten."""
    monkeypatch.setattr(host, "home", lambda: tmp_path)
    (tmp_path / "pace.txt").write_text(str(known))
    host.learn(planned, actual)
    assert host.pace() == pytest.approx(expected, abs=1e-3)


# --- within a factor of 1.5 after the first minute ---

LONG = {"load": 3.0, "baseline": 60.0, "compress": 90.0, "save": 1.0, "evaluate": 80.0, "latency": 40.0}
KERNELS = 75.0  # what building them really takes here; the clock is told 60
UNEVEN = {"load": 2.0, "baseline": 0.9, "compress": 1.2, "save": 1.0, "evaluate": 1.1, "latency": 0.85}


def whole_run(hours, monkeypatch, busy, kernels, steps=40):
    """A run on a machine that is `busy` times slower than planned: [(seconds since its begin, said, true)]."""
    monkeypatch.setattr("evaluation.running.estimate.stage_seconds", lambda spec: dict(LONG))
    monkeypatch.setattr(cpu, "is_built", lambda: not kernels)
    said = []
    found = Clock("a spec", said.append)
    took = {name: busy * UNEVEN[name] * seconds for name, seconds in LONG.items()}
    if kernels:
        took = {"load": took.pop("load"), "kernels": KERNELS} | took
    begin, end, out = hours.now, hours.now + sum(took.values()), []
    for name, seconds in took.items():
        if name != "load":
            found.stage(name)
        for step in range(1, steps + 1) if name != "kernels" else ():
            hours.now += seconds / steps
            # as the run emits them: loading and saving say nothing of how far they are
            quiet = name in ("load", "save")
            found.emit({"stage": name, "done": 0 if quiet else step, "total": 1 if quiet else steps})
            out.append((hours.now - begin, said[-1]["seconds_left"], end - hours.now))
        hours.now += KERNELS if name == "kernels" else 0.0
    return out


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("busy", [0.5, 1.0, 2.0, 4.0])
def test_time_left_is_right_within_half_after_the_first_minute(hours, monkeypatch, busy, kernels):
    run = whole_run(hours, monkeypatch, busy, kernels)
    # what began computing only after the kernels were built has its minute from then on
    first = 60 + (KERNELS if kernels else 0)
    later = [(at, said, true) for at, said, true in run if at > first and true > 15]
    assert len(later) > 20
    wrong = [
        (round(at), round(said), round(true)) for at, said, true in later if not 1 / 1.5 < said / true < 1.5
    ]
    assert wrong == []


def test_the_plan_alone_would_be_wrong_on_a_busy_machine(hours, monkeypatch):
    """The margin of the test above: a clock that only subtracts is off by more than that."""
    run = whole_run(hours, monkeypatch, 4.0, False)
    at, said, true = next(one for one in run if one[0] > 60)
    assert true / (sum(LONG.values()) - at) > 2.5 and 1 / 1.5 < said / true < 1.5


def test_kernels_that_must_be_built_are_counted(hours, monkeypatch):
    told = []
    monkeypatch.setattr("evaluation.running.estimate.stage_seconds", lambda spec: dict(PLAN))
    monkeypatch.setattr(cpu, "is_built", lambda: False)
    found = Clock("a spec", told.append)
    found.emit({"stage": "load", "done": 0, "total": 1})
    assert told[-1]["seconds_left"] == 63 + 60
    found.stage("kernels")
    hours.now += 20
    found.emit({"stage": "kernels", "done": 0, "total": 1})
    assert told[-1]["seconds_left"] == 40 + 61
    found.stage("baseline")
    assert told[-1]["seconds_left"] == 61, "a slow compiler says nothing of the stages to come"


def test_time_goes_on_between_two_events():
    assert [still(100, quiet) for quiet in (0, 30, 80)] == [100, 70, 20]
    assert still(100, 99) == pytest.approx(19.8) and still(100, 500) == 100, "overdue, and no end in sight"

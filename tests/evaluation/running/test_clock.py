"""How long a run still takes: an hour glass that is turned by hand instead of by time."""

from __future__ import annotations

import pytest

from evaluation import host
from evaluation.running import clock
from evaluation.running.clock import Clock

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
    assert told[-1]["seconds_left"] == 4 + 31, "half took 4 seconds"


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

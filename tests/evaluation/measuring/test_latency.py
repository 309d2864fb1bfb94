"""What is timed and how the figures follow from it, with models that need exactly as long as they are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation import host
from evaluation.measuring import latency

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


class Hours:
    """Stands for the module `time`."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def hours(monkeypatch):
    """The clock; `waited`: what the system says of each round, 0 when the list is empty."""
    found = Hours()
    found.waited = []
    monkeypatch.setattr(latency, "time", found)

    class Watch:
        def waited(self):
            return found.waited.pop(0) if found.waited else 0.0

    monkeypatch.setattr(latency, "Watch", Watch)
    return found


def model(hours, first, later, read, name="m"):
    """A way: its next token is always one more than the last that it read, modulo ten. read: what it was
    given."""

    def begin():
        state = {"seconds": first}

        def forward(ids):
            read.append((name, ids.tolist()))
            hours.now += state["seconds"]
            state["seconds"] = later.pop(0) if isinstance(later, list) else later
            return torch.nn.functional.one_hot((ids[:, -1] + 1) % 10, 10).float()

        return forward

    return begin


def test_a_round_reads_the_prompt_once_and_then_its_own_tokens(hours):
    read = []
    first, later = latency.one_round(model(hours, 0.5, 0.125, read), PROMPT, 4)
    assert (first, later) == (0.5, [0.125] * 3)
    assert [ids for _, ids in read] == [PROMPT.tolist(), [[6]], [[7]], [[8]]]


def test_the_ways_take_turns_after_a_warm_up_each(hours):
    read = []
    named = {name: model(hours, 1, 1, read, name) for name in "ab"}
    latency.compare(named, PROMPT, rounds=2, new_tokens=3)
    assert "".join(name for name, _ in read) == "aabb" + 2 * "aaabbb"


def test_medians_leave_a_slow_step_out(hours):
    """Five of six steps take 0.1 s; the mean would be 1.75 s."""
    steps = [0.1, 0.1, 0.1, 10.0] + 6 * [0.1]
    found = latency.compare({"a": model(hours, 2.0, steps, [])}, PROMPT, rounds=2, new_tokens=4).figures["a"]
    assert found == pytest.approx(
        {
            "time_to_first_token_ms": 2000.0,
            "time_per_output_token_ms": 100.0,
            "prefill_tokens_per_second": 2.5,
            "decode_tokens_per_second": 10.0,
        }
    )


@pytest.mark.parametrize(
    "positions, available, expected",
    [(2048, 4096, (128, 17)), (145, 4096, (128, 17)), (2048, 20, None), (64, 4096, None), (2, 4096, (0, 0))],
)
def test_what_fits_into_a_model_is_timed_or_told(positions, available, expected):
    """A prompt and the tokens behind it never reach beyond the model's last position."""
    prompt, new = latency.lengths(positions, available)
    assert prompt + new <= positions and prompt <= available
    assert expected in (None, (prompt, new))
    codes = [note.code for note in latency.left_out(positions, available)]
    assert codes == ([] if (prompt, new) == (128, 17) else ["timing_shortened"] if new else ["no_timing"])


def test_the_share_of_the_memorys_speed_is_bytes_over_seconds_over_speed(monkeypatch):
    class Decoder:
        bytes_per_token = 200_000_000

    monkeypatch.setattr(latency.engine, "serve", lambda bundle: Decoder())
    monkeypatch.setattr(latency, "read_bandwidth", lambda: 20e9)
    found = latency.share_of_limit("a bundle", 0.02)
    assert found["share_of_read_bandwidth"] == pytest.approx(0.5) and found["bytes_per_token"] == 200_000_000
    monkeypatch.setattr(latency.engine, "serve", lambda bundle: None)
    assert latency.share_of_limit("a bundle", 0.02) == {}


def turns(hours, *rounds):
    """A way whose rounds take one second for the prompt and then so long for each of three tokens."""
    left = iter(rounds)

    def begin():
        step = next(left, rounds[-1])
        return model(hours, 1.0, step, [])()

    return begin


def test_a_round_that_others_disturbed_is_timed_again(hours):
    """The first round waits for a third of its time and is slow: it doesn't count."""
    hours.waited = [0.33, 0.0, 0.0, 0.02]
    # the warm-up begins once too
    found = latency.compare({"original": turns(hours, 0.1, 0.3, 0.1, 0.1, 0.1)}, PROMPT, 3, 4)
    assert found.figures["original"]["time_per_output_token_ms"] == pytest.approx(100)
    assert not found.disturbed and found.waited == 0.02 and found.drift == pytest.approx(1)


def test_an_original_whose_speed_drifts_is_timed_again_and_then_marked(hours):
    """Where the system says nothing of waiting, the original's own speed shows it."""
    found = latency.compare({"original": turns(hours, 0.1, 0.1, 0.2, 0.1, 0.1)}, PROMPT, 3, 4)
    assert not found.disturbed and found.figures["original"]["decode_tokens_per_second"] == pytest.approx(10)
    found = latency.compare({"original": turns(hours, 0.1, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)}, PROMPT, 3, 4)
    assert found.disturbed and found.drift == pytest.approx(4)


def test_a_machine_that_stays_busy_is_marked_after_twice_the_rounds(hours):
    hours.waited, parts = [0.5] * 6, []
    named = {name: model(hours, 1, 1, [], name) for name in ("compressed", "original")}
    found = latency.compare(named, PROMPT, 3, 3, tell=lambda done, total: parts.append((done, total)))
    assert found.disturbed and found.waited == 0.5 and hours.waited == []
    assert parts[0] == (1, 6) and max(parts) == (6, 6) and len(parts) == 12


def test_a_quiet_machine_is_timed_no_longer_than_asked(hours):
    read = []
    named = {name: model(hours, 1, 1, read, name) for name in "ab"}
    found = latency.compare(named, PROMPT, rounds=3, new_tokens=3)
    assert len(read) == 2 * 2 + 3 * 6 and not found.disturbed


def test_the_watch_sees_other_programs(monkeypatch):
    """Threads that ran for 3 s and waited for 1 s since the watch began waited a quarter of the time."""
    told = iter(
        [(5_000_000_000, 7_000_000_000), (8_000_000_000, 8_000_000_000), (5_000_000_000, 7_000_000_000)]
    )
    monkeypatch.setattr(host, "_scheduled", lambda: next(told))
    watch = host.Watch()
    assert watch.waited() == pytest.approx(0.25)
    assert watch.waited() == 0.0, "nothing ran, nothing waited"


def test_the_system_counts_what_ran():
    if not Path("/proc/self/schedstat").is_file():
        pytest.skip("no schedstat here")
    before, _ = host._scheduled()
    sum(i * i for i in range(200_000))
    assert host._scheduled()[0] > before

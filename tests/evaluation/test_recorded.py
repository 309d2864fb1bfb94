"""Recorded answers: they are what the live chat says, the command goes on where it was stopped, what ships is
fresh."""

from __future__ import annotations

import dataclasses
import json

import pytest

from evaluation import recorded
from evaluation.benches import answers, shipped
from evaluation.running.run import run
from evaluation.spec import RunSpec
from evaluation.store import Store
from tests import talk, tiny

PROMPTS = (recorded.Prompt("greeting", "hello there"), recorded.Prompt("taiwan", "台灣"))


@pytest.mark.parametrize(
    "a, b, done, expected",
    [
        ([1, 2, 3], [1, 2, 3], (True, True), None),
        ([1, 2, 3], [1, 9, 3], (True, True), 1),
        ([4], [5], (False, False), 0),
        ([1, 2], [1, 2, 3], (True, True), 2),  # one ended, the other went on
        ([1, 2, 3], [1, 2], (True, True), 2),
        ([1, 2], [1, 2, 3], (False, False), None),  # its next token is still to come
        ([1, 2], [1, 2, 3], (True, False), 2),
        ([1, 2], [1, 2], (True, False), None),
        ([], [], (True, True), None),
        ([], [7], (True, False), 0),
    ],
)
def test_answers_part_at_the_first_token_that_differs(a, b, done, expected):
    assert recorded.parted(a, b, *done) == expected
    assert recorded.parted(b, a, *reversed(done)) == expected


@pytest.mark.parametrize("recipe", [(("none", {}),), (("rtn", {"bits": 2, "group_size": 16}),)])
def test_a_recording_is_what_the_live_chat_says(tmp_path, recipe):
    (tmp_path / "test.txt").write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(200)))
    spec = RunSpec(
        tiny.folder("qwen3"), recipe, text=str(tmp_path / "test.txt"), window=64, tokens=512, table_bits=16
    )
    store = Store(tmp_path / "home", shipped=None)
    result = run(spec, store=store, timings=False)
    assert result.status == "ok", result.error
    point = answers.record(spec, result, PROMPTS)
    side = "original" if spec.is_original else "compressed"
    for prompt in PROMPTS:
        events = [
            e for e in talk.said(store, result.id, prompt.text, **recorded.SETTINGS) if e["side"] == side
        ]
        found = point["answers"][prompt.name]
        assert found["text"] == "".join(e["text"] for e in events)
        assert (
            found["tokens"] == [e["token"] for e in events if e["token"] is not None][: len(found["tokens"])]
        )
        assert len(found["ends"]) == len(found["tokens"]) > 0 and found["ends"] == sorted(found["ends"])
        assert found["ended"] == (len(found["tokens"]) < recorded.SETTINGS["max_tokens"])
    assert point["witness"] == recorded.witnessed(result) and point["date"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The command with an empty file and a recorder that only counts; "gptq" fails."""
    monkeypatch.setattr(recorded, "FILE", tmp_path / "answers.json")
    asked = []

    def record(spec, result, prompts=recorded.PROMPTS, say=None):
        asked.append((shipped.result_id(spec, "gates"), spec.calibration))
        if spec.recipe[0][0] == "gptq":
            raise OSError("no calibration text")
        return {"asked": recorded.asked(), "witness": recorded.witnessed(result), "answers": {}}

    monkeypatch.setattr(answers, "record", record)
    monkeypatch.setattr(answers, "POINTS", ("none", "rtn --bits 4", "gptq --bits 4", "rtn --bits 3"))
    return asked


def test_the_command_records_what_is_missing_and_goes_on_after_a_failure(bench, capsys):
    assert answers.main(["--dry"]) == 0 and not bench and not recorded.FILE.exists()
    assert "4 to record" in capsys.readouterr().out
    assert answers.main(["--only", "rtn --bits 4"]) == 0
    assert list(recorded.read()) == ["shipped-gates-rtn-4"]
    assert answers.main(["--calibration", "valid.txt"]) == 1
    assert "no calibration text" in capsys.readouterr().err
    assert [name for name, _ in bench] == [
        "shipped-gates-rtn-4",
        "shipped-gates-none",
        "shipped-gates-gptq-4",
        "shipped-gates-rtn-3",
    ]
    assert {text for _, text in bench[1:]} == {"valid.txt"}
    # in the order in which they are declared, whenever they were recorded
    assert list(recorded.read()) == ["shipped-gates-none", "shipped-gates-rtn-4", "shipped-gates-rtn-3"]


def test_a_stopped_command_continues_and_repeats_only_what_is_asked_for_again(bench, monkeypatch):
    """Stopped in its second point, it has kept the first, whole; the next start begins with the second."""
    record, names = answers.record, ["shipped-gates-none", "shipped-gates-rtn-4", "shipped-gates-rtn-3"]

    def stopped(spec, *more, **named):
        found = record(spec, *more, **named)
        if spec.recipe[0][1].get("bits") == 4:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(answers, "POINTS", ("none", "rtn --bits 4", "rtn --bits 3"))
    monkeypatch.setattr(answers, "record", stopped)
    with pytest.raises(KeyboardInterrupt):
        answers.main([])
    assert list(recorded.read()) == names[:1]
    assert [file.name for file in recorded.FILE.parent.iterdir()] == [recorded.FILE.name]
    monkeypatch.setattr(answers, "record", record)
    bench.clear()
    assert answers.main([]) == 0 and [name for name, _ in bench] == names[1:]
    assert answers.main([]) == 0 and len(bench) == 2, "all are fresh"
    assert answers.main(["--again", "--only", "rtn --bits 3"]) == 0
    assert [name for name, _ in bench[2:]] == names[2:] and list(recorded.read()) == names


def test_a_file_that_cannot_be_written_stays_as_it_was(bench, monkeypatch):
    assert answers.main(["--only", "none"]) == 0
    before = recorded.FILE.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="disk is full"):
            answers.main(["--only", "rtn --bits 4"])
    assert recorded.FILE.read_bytes() == before
    assert [file.name for file in recorded.FILE.parent.iterdir()] == [recorded.FILE.name]


def test_a_point_of_other_prompts_or_of_other_code_is_stale(bench):
    assert answers.main(["--only", "rtn"]) == 0
    file = shipped.RESULTS / "gates-rtn-4.json"
    result, point = shipped.stored(file), recorded.read()["shipped-gates-rtn-4"]
    assert recorded.why_stale(point, result) == ""
    other = json.loads(json.dumps(result.witness))
    other["numbers"][next(iter(other["numbers"]))][0] *= 1.5
    assert "other code" in recorded.why_stale(point, dataclasses.replace(result, witness=other))
    assert "doesn't ship" in recorded.why_stale(point, None) and "not recorded" in recorded.why_stale(
        None, result
    )
    for others in (
        recorded.asked(recorded.PROMPTS[1:]),
        recorded.asked(settings=recorded.SETTINGS | {"max_tokens": 61}),
    ):
        assert "prompts" in recorded.why_stale(point | {"asked": others}, result)


def test_what_ships_is_fresh():
    """The original and the row of bits are there; others may wait for `python -m evaluation answers`."""
    points, known = recorded.read(), {shipped.result_id(spec, "gates"): spec for _, spec in answers.points()}
    assert set(points) <= set(known), "a recorded point is not declared"
    assert set(list(known)[: 1 + len(answers.LADDER)]) <= set(points)
    for name, point in points.items():
        result = shipped.stored(shipped.RESULTS / shipped.file_name(known[name], "gates"))
        assert recorded.why_stale(point, result) == "", name
        assert set(point["answers"]) == {p.name for p in recorded.PROMPTS}, name
        for found in point["answers"].values():
            assert len(found["ends"]) == len(found["tokens"]) <= recorded.SETTINGS["max_tokens"]
            assert [*found["ends"], len(found["text"])] == sorted([*found["ends"], len(found["text"])])


def test_the_declared_points_cover_the_families_and_languages():
    families = {spec.methods[-1][0].family for _, spec in answers.points()}
    assert families == {"original", "quantization", "pruning", "low_rank", "distillation"}
    assert len(answers.POINTS) > 10 and len(recorded.PROMPTS) == 12
    assert any("\u4e00" <= c <= "\u9fff" for p in recorded.PROMPTS for c in p.text)

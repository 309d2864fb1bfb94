"""The comparison with public implementations, without them: equal settings, paired ratios, what fails it."""

from __future__ import annotations

import inspect
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from compression import get
from evaluation.benches import peers
from evaluation.benches.shipped import recipe
from tests import tiny


@pytest.mark.parametrize("name", peers.PAIRS)
def test_both_sides_are_given_the_same_settings(name):
    pair = peers.PAIRS[name]
    ours = {}
    for method, values in recipe(pair.ours):
        ours |= get(method).params.parse(values).json()
    defaults = {p.name: p.default for p in list(inspect.signature(pair.theirs).parameters.values())[2:]}
    assert set(pair.settings) <= set(defaults)
    theirs = defaults | pair.settings
    shared = {k for k in set(ours) & set(theirs) if theirs[k] is not None}
    assert {k: ours[k] for k in shared} == {k: theirs[k] for k in shared}
    assert shared or name == peers.CONTROL or (theirs["bits"], theirs["symmetric"]) == (8, True)
    assert pair.package in [
        line.split("==")[0]
        for line in (peers.ROOT / "evaluation" / "benches" / "peers.txt").read_text().split()
    ] or (name == peers.CONTROL)


@pytest.fixture
def one_process(monkeypatch):
    """Both sides run here instead of in their own processes."""

    def run(command, cwd, env, **more):
        assert command[1:3] == ["-m", "evaluation.benches.peers"] and env["OMP_NUM_THREADS"]
        assert Path(command[0]).is_absolute(), "it is started in another folder"
        try:
            peers.main(command[3:])
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, "", "")

    threads = torch.get_num_threads()
    monkeypatch.setattr(peers.subprocess, "run", run)
    yield
    torch.set_num_threads(threads)


def test_their_layers_answer_as_they_do_in_use():
    """A new layer is in training mode, in which bitsandbytes' 8-bit one leaves its inputs unrounded."""

    def theirs(model, ids):
        model.lm_head = torch.nn.Linear(48, tiny.VOCABULARY)
        return model

    bundle = tiny.bundle("llama")
    peers._theirs(peers.Pair("none", "theirs", theirs), bundle, None)
    assert not any(m.training for m in bundle.module.modules())


ASKED = ("--tokens", "512", "--window", "64", "--calibration-tokens", "256")


def test_the_control_pair_measures_the_same_on_both_sides(one_process, tmp_path, capsys):
    out = tmp_path / "peers.json"
    words = [
        "--peers",
        sys.executable,
        "--model",
        tiny.folder("llama"),
        *ASKED,
        "--only",
        "original",
        "--out",
        str(out),
    ]
    assert peers.main(words) == 0
    table = json.loads(out.read_text())
    (row,) = table["rows"]
    assert (
        abs(row["ratio"] - 1) < 1e-5
        and row["ratio_stderr"] < 1e-5
        and row["ours"]["versions"]["torch"] == torch.__version__
    )
    assert (
        "512 tokens" in table["protocol"]
        and set(table["not_compared"])
        and all(row["environment"]["threads"] >= 1 for row in table["rows"])
    )
    assert tiny.folder("llama") not in json.dumps(table | {"model": ""})
    assert "original" in capsys.readouterr().out


def test_the_peers_python_may_be_a_relative_path_and_a_crash_loses_no_row(one_process, monkeypatch, tmp_path):
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    real, out = peers.compare, tmp_path / "peers.json"

    def compare(name, *rest):
        if name != peers.CONTROL:
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(peers, "compare", compare)
    words = ["--peers", "python", "--model", tiny.folder("llama"), *ASKED, "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        peers.main([*words, "--only", peers.CONTROL, "nf4"])
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == [peers.CONTROL]


@pytest.mark.alone
def test_work_of_others_is_told_from_the_sides_own():
    """A stranger that computes shows; one's own work doesn't."""
    stranger = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, end = peers._work_of_others(), time.monotonic() + 60
        while peers._work_of_others() - before < 0.5:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        stranger.kill()
        stranger.wait()

    def all_work():
        return sum(psutil.cpu_times()[i] for i in (0, 1, 2))

    def left_out():
        """How much of a second of its own is no work of others, while others may work too."""
        own, everything, before = time.process_time(), all_work(), peers._work_of_others()
        while time.process_time() - own < 1:
            pass
        return all_work() - everything - (peers._work_of_others() - before)

    assert any(left_out() > 0.8 for _ in range(5)), "between two readings others may have worked"


def test_some_pairs_only_leave_the_other_rows_of_the_same_texts(tmp_path):
    about, file = {"weights_hash": "w", "protocol": "p", "calibration": "c"}, tmp_path / "peers.json"
    nf4, new, old = (
        {"name": "nf4", "ratio": 1.0},
        {"name": "gptq-4", "ratio": 0.9},
        {"name": "gptq-4", "ratio": 0.8},
    )
    file.write_text(json.dumps(about | {"rows": [old, nf4]}))
    assert peers.merged(file, about, [new])["rows"] == [new, nf4]
    assert peers.merged(file, about | {"protocol": "another"}, [new])["rows"] == [new]
    assert peers.merged(tmp_path / "none.json", about, [nf4, new])["rows"] == [new, nf4], (
        "in the order of the table"
    )


def test_a_side_that_fails_is_told_and_fails_the_comparison(one_process, monkeypatch, capsys, tmp_path):
    def broken(model, ids):
        raise RuntimeError("no such kernel here")

    monkeypatch.setitem(peers.PAIRS, peers.CONTROL, peers.Pair("none", "transformers", broken))
    words = ["--peers", sys.executable, "--model", tiny.folder("llama"), *ASKED, "--only", peers.CONTROL]
    assert peers.main([*words, "--out", str(tmp_path / "peers.json")]) == 1
    said = capsys.readouterr()
    assert "original, theirs: RuntimeError: no such kernel here" in said.err and "failed" in said.out


def test_without_the_peers_environment_it_says_what_to_run(capsys):
    assert peers.main(["--peers", "/no/such/python"]) == 2
    assert "make compare-peers" in capsys.readouterr().err


def test_a_ratio_is_paired(monkeypatch, tmp_path):
    """Two windows of very different loss, each 1 % of loss apart: the error of the ratio is that of the
    differences."""
    losses = {
        "ours": torch.tensor([[1.01, 1.01], [5.03, 5.03]]),
        "theirs": torch.tensor([[1.0, 1.0], [5.0, 5.0]]),
    }
    for which, values in losses.items():
        save_file({"losses": values}, tmp_path / f"nf4.{which}.safetensors")
        (tmp_path / f"nf4.{which}.json").write_text(
            json.dumps({"compress_seconds": 2.0 if which == "ours" else 4.0})
        )
    monkeypatch.setattr(peers.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, "", ""))
    row = peers.compare("nf4", tmp_path, {"ours": "", "theirs": ""}, 1)
    assert row["ratio"] == pytest.approx(torch.tensor(0.02).exp().item(), rel=1e-5)
    assert row["ratio_stderr"] == pytest.approx(row["ratio"] * 0.01, rel=1e-3) and row["seconds_ratio"] == 0.5


def rows(**ratios):
    return [{"name": name, "ratio": ratio} for name, ratio in ratios.items()]


def test_a_pair_that_chance_decides_is_drawn_several_times(one_process, monkeypatch, tmp_path):
    """Each draw leaves one more window out, for both sides alike; the mean of the draws counts, its error is
    their spread."""
    seen = []

    def theirs(model, ids):
        seen.append(len(ids))
        return model

    monkeypatch.setitem(peers.PAIRS, peers.CONTROL, peers.Pair("none", "transformers", theirs, draws=3))
    monkeypatch.setattr(peers, "_ours", lambda pair, bundle, ids: seen.append(len(ids)) or 0.0)
    out = tmp_path / "peers.json"
    words = [
        "--peers",
        sys.executable,
        "--model",
        tiny.folder("llama"),
        *ASKED,
        "--only",
        peers.CONTROL,
        "--out",
        str(out),
    ]
    assert peers.main(words) == 0 and seen == [4, 4, 3, 3, 2, 2]
    (row,) = json.loads(out.read_text())["rows"]
    assert len(row["draws"]) == 3 and row["ratio"] == pytest.approx(1, abs=1e-5)

    def draw(ratio):
        return {
            "ours": {"perplexity": 8 * ratio},
            "theirs": {"perplexity": 8.0},
            "ratio": ratio,
            "ratio_stderr": 0.001,
        }

    mean = peers.joined([draw(1.25), draw(0.8)])
    assert mean["ratio"] == pytest.approx(1.0) and mean["ours"]["perplexity"] == pytest.approx(8.0)
    assert mean["ratio_stderr"] == pytest.approx(
        math.log(1.25)
    )  # two logarithms +-l: their deviation is l sqrt(2), of the mean l
    assert peers.joined([draw(1.0), {"failed": {"ours": "no room"}}])["failed"] == {"ours": "no room"}


def test_what_fails_the_comparison():
    assert peers.verdict(rows(original=1.0, nf4=1.019, hqq=0.9)) == []
    assert len(peers.verdict(rows(original=1.0, nf4=1.021))) == 1
    assert "don't measure the same" in peers.verdict(rows(original=1.002))[0]
    assert peers.verdict([{"name": "nf4", "failed": {"theirs": "no room"}}]) == ["nf4, theirs: no room"]


def test_a_side_that_dies_without_a_word_is_named(tmp_path):
    row = peers.compare(peers.CONTROL, tmp_path, {"theirs": shutil.which("false")}, 1)
    assert row["failed"] == {"theirs": "exit code 1"}

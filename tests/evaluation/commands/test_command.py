"""The command line: what it takes, what it refuses, what it prints and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from compression import NAMES
from evaluation.commands.run import main, request, split
from kernels import cpu
from tests import tiny

ROOT = Path(__file__).parents[3]


def command(*words, home, **environment):
    """The command in a home of its own, where the kernels are built already."""
    home.mkdir(exist_ok=True)
    (home / "kernels").symlink_to(cpu.cache())
    return subprocess.run(
        [sys.executable, "-m", "evaluation.run", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ) | {"COMPRESSION_EXPLORER_HOME": str(home)} | environment,
    )


def test_the_command_prints_one_json_object(place, tmp_path):
    done = command(
        "wanda",
        "--sparsity",
        "0.5",
        "+",
        "gptq",
        "--bits",
        "4",
        "--group-size=16",
        "--model",
        tiny.folder("llama"),
        "--text",
        str(place / "test.txt"),
        "--calibration",
        str(place / "valid.txt"),
        "--window",
        "64",
        "--tokens",
        "512",
        "--calibration-tokens",
        "512",
        "--no-timings",
        "--json",
        home=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        found["status"] == "ok" and found["spec"]["recipe"][0][0] == "wanda" and "compress 1/2" in done.stderr
    )


def test_a_home_whose_name_the_locale_cannot_write(place, tmp_path):
    """Python then holds the name's bytes as surrogates, which some libraries refuse."""
    texts = ("--text", str(place / "test.txt"), "--calibration", str(place / "valid.txt"))
    done = command(
        *("gptq", "--bits", "4", "--group-size=16", "--model", tiny.folder("llama"), *texts),
        *("--window", "64", "--tokens", "512", "--calibration-tokens", "512", "--no-timings", "--json"),
        home=tmp_path / "home-é",
        LC_ALL="C",
        LANG="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING="ascii",
        COMPRESSION_EXPLORER_KERNELS="pytorch",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == "ok" and found["metrics"]["kl_divergence_mean"] > 0
    assert list((tmp_path / "home-é" / "artifacts").glob("*/*.safetensors"))


@pytest.mark.parametrize(
    "words, said",
    [
        (["gptq", "--bits", "17"], "2 to 8"),
        (["gptq", "--bits", "0"], "2 to 8"),
        (["gptk"], "Did you mean 'gptq'"),
        (["wanda", "--sparsity", "1.0"], "0.0 to 0.95"),
        (["gptq", "--tokens", "0"], "a whole number, 1 to"),
        (["gptq", "--colour", "1"], "colour"),
        ([], "no method"),
        (["gptq", "--protocol", "mine"], "paper, raw"),
        (["gptq", "--preset", "slow"], "quick"),
        (["gptq", "--group-size", "40"], "steps of 16"),
    ],
)
def test_bad_arguments_exit_with_2_and_say_why(words, said, capsys):
    assert main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err


def test_a_flag_belongs_to_the_method_that_declares_it_else_to_the_run():
    words = (
        "--activations int8 awq --rounding false + smoothquant --activations tensor --tokens 64 "
        "--smooth=false"
    )
    own, steps = split(words.split())
    assert steps == [
        ("awq", {"rounding": "false"}),
        ("smoothquant", {"activations": "tensor", "smooth": "false"}),
    ]
    assert own.activations == "int8" and own.tokens == 64
    found = request(*split(["smoothquant", "--activations", "tensor"]))
    assert found.methods[0][1].activations == "tensor" and found.activations == "exact"


def test_help_tells_a_methods_own_flags(capsys):
    assert main(["svd_llm", "+", "gptq", "--help"]) == 0
    out, _ = capsys.readouterr()
    assert all(
        f"--{flag}" in out for flag in ("removed", "bits", "group-size", "act-order", "preset", "table-bits")
    )
    assert "2 to 8" in out and "--sparsity" not in out.split("Methods:")[1].partition("gptq --bits 4.")[2]


def test_a_failed_run_exits_with_1_and_still_prints_its_record(tmp_path, capsys):
    assert main(["rtn", "--model", "gpt2", "--out", str(tmp_path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "hub_unreachable" and "hub" in err


def test_the_list_names_every_method(capsys):
    assert main(["--list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in listing] == list(NAMES) and all(
        {"name", "family", "title", "paper", "params"} <= set(m) for m in listing
    )


def test_a_home_that_cannot_be_written_and_a_terminal_of_few_letters(place, tmp_path):
    """The run works in a temporary home, which is gone afterwards; what is printed is JSON all the same."""
    model = tmp_path / "模型 with spaces"
    shutil.copytree(tiny.folder("llama"), model)
    (tmp_path / "home").write_text("a file where the folder should be")
    (tmp_path / "tmp").mkdir()
    more = {
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "C",
        "TMPDIR": str(tmp_path / "tmp"),
        "COMPRESSION_EXPLORER_KERNELS": "pytorch",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "evaluation.run",
            "rtn",
            "--model",
            str(model),
            "--text",
            str(place / "test.txt"),
            "--window",
            "64",
            "--tokens",
            "128",
            "--no-timings",
            "--json",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ) | {"COMPRESSION_EXPLORER_HOME": str(tmp_path / "home")} | more,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == "ok" and found["model"]["id"] == model.name and done.stdout.isascii()
    assert done.stderr.count("can't be written (") == 1 and "COMPRESSION_EXPLORER_HOME" in done.stderr
    assert not [f for f in (tmp_path / "tmp").iterdir() if "compression-explorer-home" in f.name]


def test_a_folder_that_was_asked_for_and_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert main(["rtn", "--out", str(tmp_path / "out"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "--out" in err and "can't be written" in err


def test_a_run_that_is_killed_is_told_and_leaves_nothing_half_written(place, tmp_path):
    words = [
        "gptq",
        "--group-size",
        "16",
        "--model",
        tiny.folder("llama"),
        "--text",
        str(place / "test.txt"),
        "--calibration",
        str(place / "valid.txt"),
        "--window",
        "64",
        "--tokens",
        "512",
        "--calibration-tokens",
        "12800",
        "--no-timings",
        "--json",
    ]
    started = subprocess.Popen(
        [sys.executable, "-m", "evaluation.run", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ)
        | {"COMPRESSION_EXPLORER_HOME": str(tmp_path), "COMPRESSION_EXPLORER_KERNELS": "pytorch"},
    )
    for line in started.stderr:
        if line.startswith("baseline"):
            break
    (child,) = psutil.Process(started.pid).children()
    child.kill()
    out, _ = started.communicate(timeout=900)
    found = json.loads(out)
    assert started.returncode == 1 and (found["status"], found["error"]["code"]) == ("oom", "worker_killed")
    assert [json.loads(f.read_text())["status"] for f in (tmp_path / "runs").iterdir()] == ["oom"]
    assert not [f for f in tmp_path.rglob("*") if "~" in f.name]

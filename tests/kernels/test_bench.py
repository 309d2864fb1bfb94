"""The bench verifies before it times, and its rows say what was timed."""

from __future__ import annotations

import json

import pytest
import torch

from kernels import bench, bench_gpu, bench_model, cpu
from kernels.cpu import plans

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((64, 128),))
    monkeypatch.setattr(bench, "TOKENS", (1, 20))
    monkeypatch.setattr(bench, "ROUNDS", 3)
    monkeypatch.setattr(bench, "ROTATED_BYTES", 100_000)
    monkeypatch.setattr(bench, "read_bandwidth", lambda: 1e10)
    monkeypatch.setattr(bench, "arithmetic", lambda: {"int8": 1e12, "exact": 1e11})
    monkeypatch.setattr(cpu, "takes_matrix", lambda plan, tokens: plan.kind == "INT" and tokens > 1)


def test_every_row_names_its_kernel_and_its_arithmetic(tmp_path, capsys):
    assert bench.main(["--json", str(tmp_path / "bench.json")]) == 0
    found = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    ours = [r for r in found["rows"] if r["op"] != "peers"]
    assert len(ours) == 2 * sum(len(activations) for *_, activations in bench.VARIANTS)
    for row in ours:
        assert row["kernel"].endswith(f"(C, {cpu.instructions()})") and row["activations"] in row["kernel"]
        assert (
            row["microseconds"] > 0
            and row["pytorch_default_microseconds"] > 0
            and row["own_float32_microseconds"] > 0
        )
        most = 1e12 if row["activations"] == "int8" else 1e12 / 3 if row["op"] == "grouped_int" else 1e11
        arithmetic = most / (2 * 20 * 64 * 128)
        limit = 1e9 * row["read_gbytes_per_second"] / row["bytes"] if row["tokens"] == 1 else arithmetic
        assert row["share_of_limit"] == pytest.approx(1 / (1e-6 * row["microseconds"] * limit))
    assert found["processor"] in capsys.readouterr().out


def test_no_speed_for_a_wrong_op(monkeypatch):
    def wrong(out, n, rule):
        return (plans.dense(torch.ones(out, n)), torch.zeros(out, n) + 2)

    monkeypatch.setattr(bench, "VARIANTS", (("dense", "float32", wrong, bench.EXACT),))
    with pytest.raises(ArithmeticError, match=r"dense \(float32\).*no speed"):
        bench.main(["dense"])


def test_an_op_that_is_none_is_told(capsys):
    with pytest.raises(SystemExit):
        bench.main(["nosuch"])
    assert "grouped_int" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.model
def test_whole_models(monkeypatch, tmp_path, capsys):
    """Every way writes, and the step writes what transformers writes."""
    monkeypatch.setattr(bench_model, "PROMPTS", (8,))
    monkeypatch.setattr(bench_model, "NEW_TOKENS", 8)
    monkeypatch.setattr(bench_model, "ROUNDS", 1)
    monkeypatch.setattr(bench_model, "OURS", bench_model.OURS[:1] + bench_model.OURS[3:4])
    assert (
        bench.main(
            ["--model", "--json", str(tmp_path / "model.json"), "--figure", str(tmp_path / "model.svg")]
        )
        == 0
    )
    found = json.loads((tmp_path / "model.json").read_text("utf-8"))["rows"]
    assert [r["way"] for r in found][-2:] == ["transformers float32", "transformers bfloat16"] and len(
        found
    ) == 4
    assert all(r["decode_after_8"] > 0 and r["prefill_8"] > 0 and r["activations"] for r in found)
    figure = (tmp_path / "model.svg").read_text("utf-8")
    assert figure.startswith("<svg") and all(r["way"].split(",")[0] in figure for r in found)


def test_a_wrong_kernel_of_a_card_gets_no_speed(monkeypatch):
    op, name, make, reference = next(row for row in bench_gpu.VARIANTS if row[0] == "grouped_int")
    operands = make(40, 128)
    monkeypatch.setattr(bench_gpu, "launcher", lambda op: lambda x, *o: reference(x.float(), *o).half())
    bench_gpu.verify(op, name, operands, reference, 128)
    monkeypatch.setattr(
        bench_gpu, "launcher", lambda op: lambda x, *o: 1.01 * reference(x.float(), *o).half()
    )
    with pytest.raises(ArithmeticError, match=r"grouped_int \(2 bits, group 64\) is wrong at 1 x 128"):
        bench_gpu.verify(op, name, operands, reference, 128)


def test_without_a_card_nothing_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--gpu"]) == 1
    assert "no graphics card" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["--gpu", "tensor_train"])

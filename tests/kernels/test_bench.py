"""The bench verifies before it times, and its rows say what was timed."""

from __future__ import annotations

import json

import pytest

from kernels import bench


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((64, 128),))
    monkeypatch.setattr(bench, "ROUNDS", 3)
    monkeypatch.setattr(bench, "ROTATED_BYTES", 100_000)
    monkeypatch.setattr(bench, "read_bandwidth", lambda: 1e10)


def test_every_row_names_its_kernel_and_its_arithmetic(tmp_path, capsys):
    assert bench.main(["--json", str(tmp_path / "bench.json")]) == 0
    found = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    assert len(found["rows"]) == 2 * sum(len(variants) for _, _, variants in bench.OPS.values())
    for row in found["rows"]:
        assert (
            row["kernel"]
            and row["activations"] == "exact"
            and row["microseconds"] > 0
            and row["pytorch_default_microseconds"] > 0
        )
    assert found["processor"] in capsys.readouterr().out


def test_no_speed_for_a_wrong_op(monkeypatch):
    real, reference, variants = bench.OPS["grouped_int"]
    monkeypatch.setitem(bench.OPS, "grouped_int", (lambda *a: real(*a) + 1, reference, variants))
    with pytest.raises(ArithmeticError, match="grouped_int.*no speed"):
        bench.main(["grouped_int"])

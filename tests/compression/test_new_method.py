"""A new method needs its file and its name: the template is listed, checked, estimated, run, measured, saved
and loaded by the program as it stands, and gone again."""

from __future__ import annotations

import json

import pytest
import torch

import compression
from compression import arch, artifact
from compression.base import BadParam
from evaluation.commands import run as command
from evaluation.running.estimate import estimate
from evaluation.running.run import run
from evaluation.spec import RunSpec
from evaluation.store import Store
from tests import tiny
from tests.compression import template_method


@pytest.fixture
def even(monkeypatch):
    """Its line in NAMES is all that is registered, and it goes when the test ends."""
    monkeypatch.setitem(compression.NAMES, "even", template_method.__name__)
    return compression.get("even")


@pytest.fixture
def spec(even, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The {i} dogs bark at {i * i % 97} cats. " for i in range(400)))
    return RunSpec(
        tiny.folder("llama"), (("even", {"bits": "5"}),), text=str(text), window=64, tokens=512, table_bits=16
    )


def test_the_command_line_and_the_page_learn_of_it_by_its_declaration(even, capsys):
    assert command.main(["--list", "--json"]) == 0
    listed = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert (
        listed["even"]["params"][0]["hi"] == 8 and listed["even"]["essay"] == template_method.__doc__.strip()
    )
    with pytest.raises(BadParam, match="bits = 9.*allowed: 2 to 8"):
        even.params(bits=9)


def test_a_run_of_it_is_estimated_measured_saved_and_loaded(spec, tmp_path):
    store = Store(tmp_path / "home", shipped=None)
    promised, result = estimate(spec), run(spec, store=store, timings=False)
    assert result.status == "ok" and result.metrics["perplexity_ratio"] > 0
    assert promised.file_bytes == pytest.approx(result.metrics["file_bytes"], rel=0.2)
    bundle = artifact.load(store.artifact_folder(result.artifact))
    original = tiny.bundle("llama")
    for path, _, _ in arch.linears(bundle.module):
        weight = original.module.get_submodule(path).weight
        stored = bundle.module.get_submodule(path).packed.dequantize()
        step = 2 * weight.abs().amax(1, keepdim=True) / 31
        assert ((stored - weight).abs() <= 0.502 * step + 1e-3 * weight.abs()).all()
        assert all(len(torch.unique(row)) <= 32 for row in stored)


def test_it_is_gone_again():
    assert "even" not in compression.NAMES

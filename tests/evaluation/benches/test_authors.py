"""The comparison with the authors' loops, without their code: clones that are made up here, missing or
broken."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from evaluation.benches import authors, overview, peers
from tests import tiny

QUANT = """
import torch
class Quantizer:
    def __init__(self, bits, perchannel=False, sym=False, mse=False):
        assert perchannel and mse and not sym
        self.top = 2**bits - 1
    def find_params(self, x, weight=False, num=100):
        self.low, self.scale = x.amin(1, True), ((x.amax(1, True) - x.amin(1, True)) / self.top).clamp_min(1e-8)
    def quantize(self, x):
        return torch.round((x - self.low) / self.scale) * self.scale + self.low
"""
RECON = """
import torch
class GPTQ_OWQ:
    def __init__(self, layer, n_out):
        self.layer, self.n_out = layer, n_out
    def hessian_sorting(self, actorder, frob_norm):
        self.ids = torch.argsort(torch.diag(self.H) * frob_norm, descending=True)[: self.n_out]
        return self.ids
    def fasterquant(self, percdamp, groupsize, actorder):
        assert (percdamp, groupsize, actorder) == (0.01, -1, True)
        torch.cuda.synchronize()
        w = self.layer.weight.data
        self.quantizer.find_params(w)
        new = self.quantizer.quantize(w)
        new[:, self.ids] = w[:, self.ids]
        self.layer.weight.data = new
"""


@pytest.fixture(scope="module")
def given():
    bundle = tiny.bundle("llama")
    ids = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))
    before = {name: p.clone() for name, p in bundle.module.named_parameters()}
    found = authors.matrices(bundle, ids)
    assert all(torch.equal(p, before[name]) for name, p in bundle.module.named_parameters())
    return found


@pytest.fixture
def clones(tmp_path):
    (tmp_path / "owq" / "owq").mkdir(parents=True)
    (tmp_path / "owq" / "owq" / "quant.py").write_text(QUANT)
    (tmp_path / "owq" / "owq" / "recon.py").write_text(RECON)
    (tmp_path / "SpQR").mkdir()
    (tmp_path / "SpQR" / "spqr_engine.py").write_text("import a_package_that_nobody_has")
    return tmp_path


@pytest.fixture
def here(monkeypatch):
    """Their side runs in this process; its modules and its stand-in for a card are gone afterwards."""

    def run(command, **more):
        if command[0] == "git":
            return subprocess.CompletedProcess(command, 128, "", "")
        assert command[1:3] == ["-m", "evaluation.benches.authors"]
        name, job, folder = command[3:]
        try:
            authors.theirs(name, authors.Path(job), authors.Path(folder))
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{type(error).__name__}: {error}")
        finally:
            for module in [m for m in sys.modules if m.partition(".")[0] in ("owq", "spqr_engine")]:
                del sys.modules[module]
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(authors.subprocess, "run", run)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(torch.cuda, "synchronize", torch.cuda.synchronize)


def test_the_matrices_are_the_models_with_the_gram_matrix_of_their_inputs(given):
    """Written out here: the inputs of k by a hook on the model itself."""
    bundle, seen = tiny.bundle("llama"), []
    ids = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))
    path = next(p for p in given if p.endswith("k_proj"))
    linear = bundle.module.get_submodule(path)
    linear.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        bundle.module(ids)
    x = torch.cat([s.reshape(-1, s.shape[-1]) for s in seen]).double()
    weight, gram = given[path]
    assert torch.equal(weight, linear.weight) and torch.allclose(gram.double(), x.T @ x, rtol=1e-4, atol=1e-4)
    assert {p.rpartition(".")[2] for p in given} == {"k_proj", "v_proj", "o_proj", "down_proj"}


def test_errors_and_weak_columns_are_those_of_both_sides(given, clones, here, tmp_path):
    """Error left and the columns in common, against a naive count; the made-up loop only rounds."""
    authors.save(given, tmp_path)
    row = authors.compare("owq-3", given, tmp_path, clones)
    assert (
        "failed" not in row
        and row["settings"] == {"bits": 3, "damping": 0.01, "act_order": True}
        and row["commit"] == ""
    )
    for path, (weight, gram) in given.items():
        low, high = weight.amin(1, True), weight.amax(1, True)
        scale = (high - low) / 7
        new = torch.round((weight - low) / scale) * scale + low
        weak = torch.argsort(gram.diagonal() * (weight - new).square().sum(0), descending=True)[
            : authors.WEAK
        ]
        new[:, weak] = weight[:, weak]
        d, h = (weight - new).double(), gram.double()
        assert row["matrices"][path]["theirs"] == pytest.approx(
            float((d @ h @ d.T).trace() / (weight.double() @ h @ weight.double().T).trace()), rel=1e-3
        )
        assert (
            row["matrices"][path]["weak_columns"] == authors.WEAK >= row["matrices"][path]["weak_in_common"]
        )
        assert row["matrices"][path]["ours"] < row["matrices"][path]["theirs"], "GPTQ's loop against rounding"
    assert row["ratio"] < 1 and authors.line(row).startswith("owq-3 ")


def test_a_missing_or_broken_clone_is_told_and_leaves_the_others_alone(
    given, clones, here, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(authors, "matrices", lambda bundle, ids: given)
    out = tmp_path / "peers.json"
    out.write_text(json.dumps({"rows": ["kept"], "protocol": "p"}))
    words = [
        "--authors",
        str(clones),
        "--model",
        tiny.folder("llama"),
        "--window",
        "32",
        "--calibration-tokens",
        "64",
        "--out",
        str(out),
    ]
    assert peers.main([*words, "--only", "spqr-3", "owq-3"]) == 1
    assert (
        "spqr-3: ModuleNotFoundError: No module named 'a_package_that_nobody_has'" in capsys.readouterr().err
    )
    table = json.loads(out.read_text())
    assert table["rows"] == ["kept"] and [row["name"] for row in table["authors"]["rows"]] == ["owq-3"]
    (clones / "owq" / "owq" / "recon.py").unlink()
    assert peers.main([*words, "--only", "owq-3"]) == 1
    assert "owq/owq/recon.py isn't there; clone https://github.com/xvyaward/owq" in capsys.readouterr().err
    assert [row["name"] for row in json.loads(out.read_text())["authors"]["rows"]] == ["owq-3"], (
        "an earlier row stays"
    )
    merged = peers.merged(out, {"weights_hash": "w", "protocol": "q", "calibration": "c"}, [])
    assert merged["rows"] == [] and merged["authors"] == json.loads(out.read_text())["authors"]


def test_rows_of_the_other_comparison_are_refused(capsys):
    for words in (["--only", "owq-3"], ["--authors", ".", "--only", "nf4"]):
        with pytest.raises(SystemExit):
            peers.main(words)
        assert "is no row of this comparison" in capsys.readouterr().err


@pytest.mark.parametrize("name", authors.LOOPS)
def test_what_theirs_is_given_are_our_own_values(name):
    import inspect

    loop = authors.LOOPS[name]
    asked = {
        p
        for p in inspect.signature(loop.their).parameters
        if p not in ("weight", "gram", "weak", "threshold")
    }
    assert set(authors.settings(name)) == asked and loop.same and loop.folder in authors.REPOSITORIES
    assert authors.settings(name)["bits"] == int(loop.ours.split()[2])


def test_the_table_says_what_is_alike(tmp_path):
    def f(ratio, **kept):
        return {"ours": ratio, "theirs": 1.0, "ratio": ratio} | kept

    rows = [
        {
            "name": "owq-3",
            "recipe": "owq --bits 3",
            "repository": "https://github.com/a/b",
            "commit": "0123456789",
            "same": "all alike",
            "ratio": 1.0,
            "matrices": {
                "k": f(0.8, weak_columns=2, weak_in_common=2),
                "v": f(1.25, weak_columns=2, weak_in_common=1),
            },
        },
        {
            "name": "spqr-3",
            "recipe": "spqr --bits 3",
            "repository": "https://github.com/a/c",
            "commit": "",
            "same": "most",
            "ratio": 0.9,
            "matrices": {"k": f(0.9, outlier_share_ours=0.01, outlier_share_theirs=0.02)},
        },
    ]
    (tmp_path / "peers.json").write_text(json.dumps({"authors": {"rows": rows}}))
    _, _, first, second = overview.authors_table(tmp_path / "peers.json").splitlines()
    assert (
        first == "| `owq --bits 3` | [a/b](https://github.com/a/b) at 01234567 | all alike | 1.0000 | "
        "0.8000 and 1.2500 of 2 matrices | 3 of 4 weak columns |"
    )
    assert second.endswith(
        "| most | 0.9000 | 0.9000 and 0.9000 of 1 matrices | 1.00 and 2.00 % outliers, ours and theirs |"
    )
    (tmp_path / "peers.json").write_text("{}")
    assert overview.authors_table(tmp_path / "peers.json") == overview.NO_AUTHORS


def test_every_pair_says_what_is_alike():
    assert all(pair.same for pair in peers.PAIRS.values())

"""The Triton kernels: their products by Triton's interpreter (test_gpu_*.py), their compilation for cards
that nobody here has, and their products on a card where there is one."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from kernels import bench_gpu, gpu
from tests.kernels.gpu.on_card import DEVICE, needs_triton, product

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def apart(tmp_path_factory, pytestconfig):
    """What two processes of their own say, run side by side: test_gpu_*.py's tests marked `product`, where
    Triton interprets (it must be told before it is imported), and the table of what was compiled, where it
    doesn't."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    clean |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "CUDA_VISIBLE_DEVICES": ""}
    files = sorted(map(str, Path(__file__).parent.glob("test_gpu_*.py")))
    tests = ["-m", "pytest", "-x", "-p", "no:cacheprovider", *files, "-k", "product"]
    turns = [] if pytestconfig.getoption("--all") else ["--turns"]
    started = {
        name: subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=clean | more, text=True, stdout=PIPE, stderr=PIPE
        )
        for name, command, more in (
            ("interpreted", tests, {"TRITON_INTERPRET": "1"}),
            ("compiled", ["-m", "kernels.gpu", "--json", *turns], {}),
        )
    }
    told = {name: process.communicate() for name, process in started.items()}
    return {name: (process.returncode, *told[name]) for name, process in started.items()}


@needs_triton
def test_every_product_through_the_interpreter(apart):
    code, out, error = apart["interpreted"]
    assert code == 0, out[-4000:] + error[-2000:]


@needs_triton
def test_every_variant_compiles_without_spilling(apart):
    code, out, error = apart["compiled"]
    assert code == 0, error[-4000:]
    from kernels.gpu.__main__ import variants

    table, names = json.loads(out), [name for name, _ in variants()]
    assert {line["kernel"] for line in table} == set(names)
    met = {(line["kernel"].partition(" ")[0], line["target"]) for line in table}
    kernels = {name.partition(" ")[0] for name in names}
    assert met == set(itertools.product(kernels, ("sm_80", "sm_90", "sm_120")))
    assert {kernel.split(".")[0] for kernel in kernels} == set(gpu.FILES)
    assert not (spilling := [line for line in table if line["spilled_bytes"]]), spilling
    tiled = [line for line in table if ".many" in line["kernel"] or ".product" in line["kernel"]]
    assert not (
        slow := [line for line in tiled if line["tensor_cores"] == "none" and "fp32" not in line["kernel"]]
    ), slow


def test_importing_the_package_imports_no_triton():
    code = "import sys, kernels.gpu; assert not {'triton', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_file_is_listed():
    shared = {"__init__", "__main__", "decode", "sparse_cores"}
    assert {file.stem for file in Path(gpu.__file__).parent.glob("*.py")} - shared == set(gpu.FILES)


def test_it_serves_cards_and_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not gpu.serves(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.serves(torch.zeros(1))


@product
def test_product_of_every_variant_that_the_bench_times():
    """Each row was verified by its reference first; what others' kernels can't do is told."""

    def clock(work):
        return (work(), 1e-3)[1]

    table = bench_gpu.rows(
        list(bench_gpu.FILES), {"read": 1e9, "exact": 1e9}, clock, DEVICE, ((40, 128),), (1, 20)
    )
    ours = [row for row in table if row["op"] != "others"]
    assert {row["op"] for row in ours} == set(bench_gpu.FILES) and not [
        row for row in ours if "failed" in row
    ]
    assert len([row for row in ours if row["share_of_limit"]]) == len(ours) - 1, (
        "int8 has no limit in float16 operations"
    )
    assert all(row.keys() & {"failed", "microseconds"} for row in table) and len(table) > len(ours)

"""The Triton kernels: their products by Triton's interpreter (test_gpu_*.py), and on a card where there is
one. test_variants.py compiles them for cards that nobody here has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from kernels import gpu
from tests.kernels.gpu.on_card import needs_triton

ROOT = Path(__file__).parents[3]


@needs_triton
def test_every_product_through_the_interpreter(pytestconfig):
    """test_gpu_*.py's tests marked `product`, in a process of its own: Triton must be told before it is
    imported."""
    files = sorted(map(str, Path(__file__).parent.glob("test_gpu_*.py")))
    tests = ["-m", "pytest", "-x", "-p", "no:cacheprovider", *files, "-k", "product"]
    done = subprocess.run(
        [sys.executable, *tests, *(["--all"] if pytestconfig.getoption("--all") else [])],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


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

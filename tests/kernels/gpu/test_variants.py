"""The Triton kernels' compilation for cards that nobody here has."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

from kernels import gpu
from tests.kernels.gpu.on_card import needs_triton

ROOT = Path(__file__).parents[3]


@needs_triton
def test_every_variant_compiles_without_spilling(tmp_path, pytestconfig):
    """In a process of its own, where Triton doesn't interpret; `make test` compiles each variant for one kind
    of card, by turns."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kernels.gpu",
            "--json",
            *([] if pytestconfig.getoption("--all") else ["--turns"]),
        ],
        cwd=ROOT,
        env=clean | {"TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    from kernels.gpu.__main__ import variants

    table, names = json.loads(done.stdout), [name for name, _ in variants()]
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

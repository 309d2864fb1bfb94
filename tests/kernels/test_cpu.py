"""The C kernels: built once, cached, tested before use, and never in the way when they can't serve."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import kernels
from kernels import cpu
from kernels.bits import pack
from kernels.grouped_int import _in_pytorch, grouped_int, groups_of

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(
    cpu.compiler() is None or "avx512f" not in cpu.flags(), reason="no C compiler or no AVX-512 here"
)
PYTORCH = kernels.PYTORCH["grouped_int"]


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has built nothing yet, with a cache of its own."""
    monkeypatch.setenv("COMPRESSION_EXPLORER_HOME", str(tmp_path))
    cpu.library.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    cpu.library.cache_clear()


def operands(tokens, out, n, bits, group, seed=0):
    g = torch.Generator().manual_seed(seed)
    codes = pack(torch.randint(0, 2**bits, (out, n), generator=g).to(torch.uint8), bits)
    scale = (0.01 + torch.rand(out, groups_of(n, group), generator=g)).half()
    zero = torch.randint(0, 2**bits, scale.shape, generator=g).to(torch.uint8)
    return torch.randn(tokens, n, generator=g), codes, scale, zero, bits, group


@needs_compiler
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("tokens, out, n, group", [(1, 64, 576, 64), (3, 7, 1536, -1), (16, 33, 80, 32), (17, 130, 48, 16), (64, 5, 37, 16),
                                                   (1, 1, 8, 16), (2, 300, 4096, 128)])  # fmt: skip
def test_c_equals_pytorch(bits, tokens, out, n, group):
    case = operands(tokens, out, n, bits, group)
    assert cpu.library() is not None, cpu.status()
    found, expected = grouped_int(*case), _in_pytorch(*case)
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@needs_compiler
def test_it_is_built_once_and_kept(fresh):
    assert kernels.OPS["grouped_int"].startswith("grouped integers, exact activations (C, ")
    files = list((fresh / "kernels").iterdir())
    assert len(files) == 1 and files[0].suffix == ".so"
    stamp = files[0].stat().st_mtime_ns
    cpu.library.cache_clear()
    assert cpu.library() is not None and files[0].stat().st_mtime_ns == stamp


@needs_compiler
def test_a_damaged_library_is_built_anew(fresh):
    assert cpu.library() is not None
    file = next((fresh / "kernels").iterdir())
    code = f"""
import pathlib; file = pathlib.Path({str(file)!r}); file.unlink(); file.write_bytes(b"not a library")  # this process has the old one open
from kernels import cpu; assert cpu.library() is not None, cpu.status()"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr


def served_by_pytorch():
    assert cpu.library() is None and kernels.OPS["grouped_int"] == PYTORCH
    case = operands(2, 9, 40, 4, 16)
    assert torch.equal(grouped_int(*case), _in_pytorch(*case))


def test_without_avx512_pytorch_serves_under_its_own_name(fresh, monkeypatch):
    monkeypatch.setattr(cpu, "flags", lambda: frozenset({"avx2", "fma"}))
    served_by_pytorch()
    assert "AVX-512" in cpu.status()


@pytest.mark.skipif("avx512f" not in cpu.flags(), reason="told before the compiler is looked for")
def test_without_a_compiler_pytorch_serves_under_its_own_name(fresh, monkeypatch):
    monkeypatch.setattr(cpu, "compiler", lambda: None)
    served_by_pytorch()
    assert "no C compiler" in cpu.status()


@needs_compiler
def test_a_compiler_that_refuses_is_survived(fresh, monkeypatch):
    monkeypatch.setattr(cpu, "COMMON", ("-this-is-no-flag",))
    served_by_pytorch()
    assert "refused" in cpu.status()


@needs_compiler
def test_a_wrong_kernel_is_never_used(fresh, monkeypatch):
    from kernels.cpu import selftest

    monkeypatch.setattr(selftest, "failure", lambda library: "product of 1 x 5 x 40")
    served_by_pytorch()
    assert "self-test failed" in cpu.status() and not list((fresh / "kernels").iterdir())


@needs_compiler
def test_the_self_test_notices_a_wrong_product(fresh):
    from kernels.cpu.selftest import failure

    class Broken:
        def __getattr__(self, name):
            real = getattr(cpu.library(), name)
            return (lambda *a: real(*a[:-1], 4)) if name == "grouped_int_product" else real  # always takes 4 bits

    assert cpu.library() is not None and failure(cpu.library()) == "" and "product" in failure(Broken())


def test_it_can_be_switched_off(fresh, monkeypatch):
    monkeypatch.setenv("COMPRESSION_EXPLORER_KERNELS", "pytorch")
    served_by_pytorch()


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_obstacle(fresh):
    (fresh / "kernels").write_text("a file where the folder should be")
    assert cpu.library() is not None, cpu.status()


@needs_compiler
def test_two_processes_may_build_at_once(fresh):
    code = "from kernels import cpu; assert cpu.library() is not None, cpu.status()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    assert [p.wait(60) for p in both] == [0, 0], [p.stderr.read() for p in both]
    assert len(list((fresh / "kernels").iterdir())) == 1


@needs_compiler
def test_eight_threads_call_at_once():
    cases = [operands(1 + i % 3, 64, 256, 2 + i % 7, 64, seed=i) for i in range(8)]
    expected, wrong = [grouped_int(*c) for c in cases], []

    def work(i):
        for _ in range(50):
            if not torch.equal(grouped_int(*cases[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert wrong == []


@needs_compiler
def test_edges():
    x, *rest = operands(1, 9, 40, 4, 16)
    assert grouped_int(x[:0], *rest).shape == (0, 9)
    x[0, 3] = float("nan")
    assert bool(grouped_int(x, *rest).isnan().all())
    x[0, 3] = float("inf")
    assert not bool(grouped_int(x, *rest).isfinite().all())
    wide, *rest = operands(4, 9, 40, 4, 16)
    strided = torch.stack([wide, wide], 1)[:, 1]
    assert not strided.is_contiguous() and torch.equal(grouped_int(strided, *rest), grouped_int(wide, *rest))


def test_the_labels_cover_every_op():
    assert set(kernels.OPS) == set(kernels.PYTORCH) and set(kernels.IN_C) <= set(kernels.PYTORCH)

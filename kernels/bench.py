"""How fast the ops are here: verifies each one, then times it beside PyTorch's dense product in the same process.

    python -m kernels.bench [op ...] [--json FILE]

Every case rotates over more weights than the caches hold, warms up right before timing and reports medians. "read" is
the memory bandwidth measured in the same run (PyTorch's sum over 256 MB, both threads); an op's share of it counts the
stored bytes. PyTorch's dense float32 product stands twice: as it comes, and by the library that this program takes
(kernels/dense.py), which is the harder one to beat. No speed is printed for an op that differs from its reference.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import kernels
from kernels import cpu
from kernels.bits import pack
from kernels.dense import choose_float32
from kernels.grouped_int import grouped_int, grouped_int_reference
from kernels.low_rank import low_rank, low_rank_reference

SHAPES = ((576, 576), (1536, 576), (576, 1536), (49152, 576), (4096, 4096))  # (out, in)
ROTATED_BYTES = 160_000_000
ROUNDS = 15


def seconds(work: Callable[[int], object], rounds: int = ROUNDS) -> float:
    """Median seconds of work(i), i counting up, after two calls to warm up."""
    for i in range(2):
        work(i)
    times = []
    for i in range(rounds):
        start = time.perf_counter()
        work(i + 2)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_bandwidth() -> float:
    """Bytes a second that both threads read from memory."""
    block = torch.ones(64_000_000)
    return block.numel() * 4 / seconds(lambda i: block.sum(), 7)


def grouped_operands(out: int, n: int, bits: int, group: int = 64):
    """Random codes packed to the bit, scales and zero points."""
    codes = pack(torch.randint(0, 2**bits, (out, n)).to(torch.uint8), bits)
    scale = 0.01 + torch.rand(out, n // group).half()
    return codes, scale, torch.randint(0, 2**bits, scale.shape).to(torch.uint8), bits, group


def low_rank_operands(out: int, n: int, removed: float):
    """Two factors of the rank that leaves `1 - removed` of the parameters."""
    rank = int((1 - removed) * out * n / (out + n))
    return torch.randn(out, rank).half(), torch.randn(rank, n).half()


OPS = {  # op -> (function, reference, variants: label -> operands of a shape)
    "grouped_int": (grouped_int, grouped_int_reference,
                    {f"{b} bits, group 64": lambda o, n, b=b: grouped_operands(o, n, b) for b in (2, 3, 4, 8)}),
    "low_rank": (low_rank, low_rank_reference, {"20 % removed": lambda o, n: low_rank_operands(o, n, 0.2)}),
}  # fmt: skip


def stored_bytes(operands) -> int:
    return sum(t.numel() * t.element_size() for t in operands if isinstance(t, torch.Tensor))


def dense_times(out: int, n: int, tokens: int) -> dict[str, float]:
    """Seconds of PyTorch's float32 product by each of its two libraries."""
    weights = [torch.randn(out, n) for _ in range(max(2, min(60, ROTATED_BYTES // (4 * out * n))))]
    x, found = torch.randn(tokens, n), {}
    chosen = torch.get_float32_matmul_precision()
    for name, precision in (("pytorch_default", "highest"), ("pytorch_chosen", chosen)):
        torch.set_float32_matmul_precision(precision)
        found[name] = seconds(lambda i: F.linear(x, weights[i % len(weights)]))
    return found


def rows(ops: list[str], read: float) -> list[dict]:
    """One row an op, variant, shape and number of tokens. Raises ArithmeticError for an op that is wrong."""
    table = []
    for out, n in SHAPES:
        for tokens in (1, 512):
            dense = dense_times(out, n, tokens)
            x = torch.randn(tokens, n)
            for op in ops:
                function, reference, variants = OPS[op]
                for label, make in variants.items():
                    first = make(out, n)
                    found, expected = function(x, *first), reference(x, *first)
                    if not bool((found - expected).abs().max() <= 1e-4 * expected.abs().max()):
                        raise ArithmeticError(f"{op} ({label}) is wrong at {tokens} x {out} x {n}; no speed is given")
                    size = stored_bytes(first)
                    many = [first, *(make(out, n) for _ in range(max(1, min(30, ROTATED_BYTES // size)) - 1))]
                    took = seconds(lambda i, f=function, x=x, many=many: f(x, *many[i % len(many)]))
                    table.append({
                        "op": op, "variant": label, "kernel": kernels.OPS[op], "activations": "exact", "out": out, "in": n,
                        "tokens": tokens, "microseconds": 1e6 * took, "bytes": size, "share_of_read_bandwidth": size / took / read,
                        **{f"{k}_microseconds": 1e6 * v for k, v in dense.items()},
                    })  # fmt: skip
    return table


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n")[0])
    parser.add_argument("ops", nargs="*", choices=[*OPS, []], help="ops to time (default: all)")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    own = parser.parse_args(argv)
    choose_float32()
    read = read_bandwidth()
    table = rows(own.ops or list(OPS), read)
    about = {"processor": cpu.processor(), "threads": torch.get_num_threads(), "instructions": cpu.instructions(),
             "torch": torch.__version__, "read_gbytes_per_second": read / 1e9, "c_kernels": cpu.status()}  # fmt: skip
    print(
        f"{about['processor']}, {about['threads']} threads, {about['instructions']}; read {read / 1e9:.1f} GB/s; {cpu.status()}"
    )
    print(f"{'op':<12} {'variant':<18} {'shape':>13} {'M':>4} {'us':>9} {'of read':>8} {'x default':>10} {'x chosen':>9}")
    for r in table:
        print(f"{r['op']:<12} {r['variant']:<18} {r['out']:>7}x{r['in']:<5} {r['tokens']:>4} {r['microseconds']:>9.0f} "
              f"{r['share_of_read_bandwidth']:>7.0%} {r['pytorch_default_microseconds'] / r['microseconds']:>10.1f} "
              f"{r['pytorch_chosen_microseconds'] / r['microseconds']:>9.1f}")  # fmt: skip
    if own.json:
        own.json.write_text(json.dumps(about | {"rows": table}, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Times the kernels on this machine, each beside other ways to compute the same product.

    python -m kernels.bench [op ...] [--json FILE]
        products on the processor
    python -m kernels.bench --model [--llama-cpp] [--json FILE] [--figure FILE]
        whole models (kernels/bench_model.py)
    python -m kernels.bench --gpu [op ...] [--json FILE]
        products on a graphics card (kernels/bench_gpu.py)

Every kernel is checked against its reference first. No speed is printed for one that differs from it.

How it is timed. A product of one token rotates over more weights than the caches hold, because a model's
weights don't fit there either. Every case warms up right before it is timed, and the median is given. The
calls of one row are timed in turns, a few of each, because a shared machine's bandwidth changes within
minutes: a ratio of two times from different moments says nothing.

What stands beside a kernel:
- PyTorch's dense float32 product, by its default library and by the library that this program chooses
  (kernels/dense.py);
- our own float32 and bfloat16 kernels;
- the limit: the bandwidth of memory for one token, the arithmetic of registers for many;
- PyTorch's and bitsandbytes' low-bit kernels, in rows of their own.

Where two of our kernels serve one format (RIVALS), the row of the second also has a ratio: the median over
neighbouring calls of the first one's time divided by the second one's. More than 1 means that the second is
faster. "activations" says what the weights were multiplied with: exact float32, or int8 with a scale for
every 32 values (in a token with outliers, the large values stay exact).
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
from torch import Tensor

import kernels
from kernels import cpu
from kernels.binary_coded import binary_coded_rows
from kernels.bits import pack
from kernels.codebook import codebook_rows
from kernels.columns import columns_matrix
from kernels.cpu import plans, selftest
from kernels.dense import choose_float32
from kernels.grouped_int import levelled, spread
from kernels.outliers import outliers_matrix
from kernels.sparse import mask_bits
from kernels.tensor_train import tensor_train_rows, values_per_row

SHAPES = ((576, 576), (1536, 576), (576, 1536), (49152, 576), (4096, 4096))  # (out, in)
TOKENS = (1, 8, 512)
ROTATED_BYTES = 160_000_000
# rounds for one and eight tokens; rounds for many tokens, whose products take long and are limited by
# arithmetic
ROUNDS, MANY_ROUNDS = 21, 3
INT8 = (32, 127)
GROUP = 64


def seconds(work: Callable[[int], object], rounds: int | None = None) -> float:
    """Median seconds of work(i), where i counts up, after three calls to warm up."""
    for i in range(3):
        work(i)
    times = []
    for i in range(rounds or ROUNDS):
        start = time.perf_counter()
        work(i + 3)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_turns(works: dict[str, Callable[[int], object]], rounds: int | None = None) -> dict[str, float]:
    """Median seconds of each work(i). In every round, each is called once to warm up and twice timed."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds or max(1, ROUNDS // 2)):
        for name, work in works.items():
            work(3 * i)
            for k in (1, 2):
                start = time.perf_counter()
                work(3 * i + k)
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def ratio(
    first: Callable[[int], object], second: Callable[[int], object], rounds: int | None = None
) -> float:
    """Median of (time of `first`) / (time of `second`), over pairs of calls that follow each other.

    The order within a pair alternates. 2.0 means that `second` is twice as fast.
    """
    found = []
    for i in range(rounds or ROUNDS):
        took = {}
        for name, work in (("first", first), ("second", second))[:: 1 if i % 2 else -1]:
            work(2 * i)
            start = time.perf_counter()
            work(2 * i + 1)
            took[name] = time.perf_counter() - start
        found.append(took["first"] / took["second"])
    return statistics.median(found)


def read_bandwidth() -> float:
    """Bytes a second that all threads together can read from memory."""
    block = torch.ones(64_000_000)
    return block.numel() * 4 / seconds(lambda i: block.sum(), 7)


def arithmetic() -> dict[str, float]:
    """Multiplications and additions a second that registers allow, by activations; {} without C kernels."""
    c, threads = cpu.wait(), torch.get_num_threads()
    if c is None:
        return {}
    found = {}
    for name, function, each in (("int8", c.limit_int8, 2 * 12 * 64), ("exact", c.limit_float, 2 * 12 * 16)):
        rounds = 2_000_000

        def spin(i: int, f=function, r=rounds) -> object:
            return f(r, threads)

        found[name] = threads * rounds * each / seconds(spin, 5)
    return found


# --- what is timed: name -> (op, shape and rule -> (plan, dense float32 weight)) ---


def integers(bits: int):
    def make(out: int, n: int, rule):
        codes = torch.randint(0, 2**bits, (out, n)).to(torch.uint8)
        scale = 0.01 + torch.rand(out, n // GROUP).half()
        zero = torch.randint(0, 2**bits, scale.shape).to(torch.uint8)
        weight = spread(scale.float(), n, GROUP) * (codes.float() - spread(zero.float(), n, GROUP))
        return plans.grouped_int(pack(codes, bits), scale, zero, bits, GROUP, n, rule), weight

    return make


def real_zeros(out: int, n: int, rule):
    codes, scale = torch.randint(0, 16, (out, n)).to(torch.uint8), 0.01 + torch.rand(out, n // GROUP).half()
    zero = (16 * torch.rand(scale.shape)).half()
    weight = spread(scale.float(), n, GROUP) * (codes.float() - spread(zero.float(), n, GROUP))
    return plans.grouped_int(pack(codes, 4), scale, zero, 4, GROUP, n, rule), weight


def two_levels(out: int, n: int, rule):
    codes, *levels = (torch.randint(0, 8, (out, size)).to(torch.uint8) for size in (n, n // 16, n // 16))
    stats = [torch.rand(-(-out // 16), n // 16, 2).half() for _ in levels]
    scale, zero = (spread(levelled(c, s), n, 16) for c, s in zip(levels, stats, strict=True))
    packed = [pack(c.view(1, -1), 3)[0] for c in levels]
    return plans.two_level(pack(codes, 3), packed, stats, 3, 3, 16, n, rule), scale * (codes.float() - zero)


def eight_a_row(out: int, n: int, rule):
    codes, scale = torch.randint(0, 256, (out, n)).to(torch.uint8), 0.01 + torch.rand(out, 1).half()
    return plans.grouped_int(pack(codes, 8), scale, None, 8, -1, n, rule), scale.float() * (
        codes.float() - 128
    )


def book(out: int, n: int, rule):
    codes, scale = pack(torch.randint(0, 16, (out, n)).to(torch.uint8), 4), torch.rand(out, n // GROUP).half()
    table = torch.randn(16)
    return plans.codebook(codes, scale, table, GROUP, n, rule), codebook_rows(codes, scale, table, GROUP, n)


def nested_book(out: int, n: int, rule):
    codes = pack(torch.randint(0, 16, (out, n)).to(torch.uint8), 4)
    scale = torch.rand(out, n // GROUP)
    table = torch.randn(16)
    return plans.codebook(codes, scale, table, GROUP, n, rule), codebook_rows(codes, scale, table, GROUP, n)


def planes(looked_up: bool):
    def make(out: int, n: int, rule):
        bits = torch.randint(0, 256, (3, out, n // 8)).to(torch.uint8)
        alpha, offset = torch.rand(3, out, n // GROUP).half(), torch.randn(out, n // GROUP).half()
        plan = plans.binary_coded(bits, alpha, offset, GROUP, n, rule, looked_up)
        return plan, binary_coded_rows(bits, alpha, offset, GROUP, n)

    return make


def half_kept(out: int, n: int, rule):
    keep, weight = torch.rand(out, n) > 0.5, torch.randn(out, n).half()
    return plans.bitmask(mask_bits(keep), weight[keep], n, rule), weight.float() * keep


def two_of_four(out: int, n: int, rule):
    keep = (
        torch.zeros(out * n // 4, 4, dtype=torch.bool)
        .scatter_(1, torch.rand(out * n // 4, 4).argsort(1)[:, :2], True)
        .view(out, n)
    )
    weight = torch.randn(out, n).half()
    return plans.bitmask(mask_bits(keep), weight[keep], n, rule, "two_four"), weight.float() * keep


def half_kept_codes(bits: int):
    def make(out: int, n: int, rule):
        keep, codes = torch.rand(out, n) > 0.5, torch.randint(0, 2**bits, (out, n)).to(torch.uint8)
        scale = 0.01 + torch.rand(out, n // GROUP).half()
        weight = spread(scale.float(), n, GROUP) * (codes.float() - 2 ** (bits - 1)) * keep
        return plans.bitmask_codes(keep, codes, scale, None, bits, GROUP, rule), weight

    return make


def floats(dtype: torch.dtype):
    def make(out: int, n: int, rule):
        weight = torch.randn(out, n).to(dtype)
        return plans.dense(weight, rule), weight.float()

    return make


def thin(out: int, n: int, rule):
    rank = out * n // (out + n) // 2
    u, v = torch.randn(out, rank).half(), torch.randn(rank, n).half()
    return plans.low_rank(u, v, rule), u.float() @ v.float()


def chains(out: int, n: int, rule):
    modes, ranks = (16, n // 16), (1, 4, 1)
    cores = torch.randn(out, values_per_row(modes, ranks)).half()
    return plans.tensor_train(cores, modes, ranks, n, rule), tensor_train_rows(cores, modes, ranks, n)


def with_outliers(out: int, n: int, rule):
    below, weight = integers(3)(out, n, rule)
    count = n // 100
    columns, values = torch.randint(0, n, (out * count,)).to(torch.int16), torch.randn(out * count).half()
    starts = torch.arange(out + 1, dtype=torch.int32) * count
    return plans.sum_of(below, plans.outliers(values, columns, starts, n, rule)), weight + outliers_matrix(
        values, columns, starts, n
    )


def with_columns(out: int, n: int, rule):
    below, weight = integers(3)(out, n, rule)
    values, index = torch.randn(out, n // 100).half(), torch.randperm(n)[: n // 100]
    return plans.sum_of(below, plans.columns(values, index, n, rule)), weight + columns_matrix(
        values, index, n
    )


BOTH, EXACT = (("int8", INT8), ("exact", None)), (("exact", None),)
VARIANTS = (  # (op, name, maker, activations)
    ("dense", "float32", floats(torch.float32), EXACT),
    ("dense", "bfloat16", floats(torch.bfloat16), EXACT),
    ("dense", "float16", floats(torch.float16), EXACT),
    *(("grouped_int", f"{b} bits, group 64", integers(b), BOTH) for b in (2, 3, 4, 8)),
    ("grouped_int", "4 bits, real zeros, group 64", real_zeros, BOTH),
    ("grouped_int", "3 bits, scales in 3 bits, group 16", two_levels, BOTH),
    ("grouped_int", "8 bits a row, 0.3 % inputs exact", eight_a_row, (("int8", (1 << 30, 127, 3.0)),)),
    ("codebook", "16 entries, group 64", book, BOTH),
    ("codebook", "16 entries, nested scales", nested_book, BOTH),
    ("binary_coded", "3 planes, added, group 64", planes(False), BOTH),
    ("binary_coded", "3 planes, looked up, group 64", planes(True), BOTH),
    ("bitmask", "50 %, 16 bits", half_kept, EXACT),
    ("bitmask", "50 %, 8 bits", half_kept_codes(8), BOTH),
    ("bitmask", "50 %, 4 bits", half_kept_codes(4), BOTH),
    ("two_four", "2:4, 16 bits", two_of_four, EXACT),
    ("low_rank", "half the parameters", thin, EXACT),
    ("tensor_train", "two sides, rank 4", chains, EXACT),
    ("outliers", "3 bits + 1 % outliers", with_outliers, BOTH),
    ("columns", "3 bits + 1 % columns", with_columns, BOTH),
)
# variant -> the variant before it that it is compared with
RIVALS = {"3 planes, looked up, group 64": "3 planes, added, group 64"}


def peers(out: int, n: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Other programs' low-bit kernels on this shape, by name.

    A kernel that isn't installed or doesn't take the shape is left out.
    """
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    q = torch.randint(0, 16, (out, n), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
    scale = torch.rand(n // GROUP, out, 2).bfloat16()
    found["PyTorch 4 bits, group 64 (bfloat16)"] = lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(
        x.bfloat16(), packed, GROUP, scale
    )
    eight, row = torch.randint(-127, 128, (out, n), dtype=torch.int8), torch.rand(out).bfloat16()
    found["PyTorch 8 bits (bfloat16)"] = lambda x: torch.ops.aten._weight_int8pack_mm(
        x.bfloat16(), eight, row
    )
    sixteen = torch.randn(out, n).bfloat16()
    found["PyTorch bfloat16"] = lambda x: F.linear(x.bfloat16(), sixteen)
    try:
        import bitsandbytes as bnb
    except ImportError:
        return found
    linear = bnb.nn.Linear4bit(n, out, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    linear.weight = bnb.nn.Params4bit(torch.randn(out, n).bfloat16(), requires_grad=False, quant_type="nf4")
    linear = linear.to("cpu").eval()
    found["bitsandbytes NF4 (bfloat16)"] = lambda x: linear(x.bfloat16())
    return found


def dense_works(out: int, n: int) -> dict[str, Callable[[Tensor], Callable[[int], object]]]:
    """The dense products: name -> (input -> work(i)).

    They are PyTorch's float32 product by each of its two libraries, and our own dense kernels.
    """
    weights = [torch.randn(out, n) for _ in range(max(2, min(60, ROTATED_BYTES // (4 * out * n))))]
    chosen = torch.get_float32_matmul_precision()

    def pytorch(precision: str):
        def work(x: Tensor, i: int):
            torch.set_float32_matmul_precision(precision)
            F.linear(x, weights[i % len(weights)])
            torch.set_float32_matmul_precision(chosen)

        return lambda x: lambda i: work(x, i)

    def own(dtype: torch.dtype):
        made = [plans.dense(w.to(dtype)) for w in weights]
        return lambda x: lambda i: cpu.product(made[i % len(made)], x)

    return {
        "pytorch_default": pytorch("highest"),
        "pytorch_chosen": pytorch(chosen),
        "own_float32": own(torch.float32),
        "own_bfloat16": own(torch.bfloat16),
    }


def verify(op: str, name: str, plan: plans.Plan, weight: Tensor) -> None:
    """Raises ArithmeticError for a product that differs from its formula."""
    for tokens in (1, 9):
        x = torch.randn(tokens, plan.shape[1])
        expected, size = selftest.rounded(x, plan.rule) @ weight.T, x.abs() @ weight.abs().T
        if not bool((cpu.product(plan, x) - expected).abs().max() <= selftest.TOLERANCE * size.max()):
            raise ArithmeticError(f"{op} ({name}) is wrong at {tokens} x {plan.shape}; no speed is given")


def most_per_second(plan: plans.Plan, tokens: int, activations: str, limits: dict[str, float]) -> float:
    """Operations a second that registers allow for many tokens.

    An exact product by the matrix unit counts as three int8 products.
    """
    return (
        limits.get("int8", 0) / 3
        if activations == "exact" and cpu.takes_matrix(plan, tokens)
        else limits.get(activations, 0)
    )


def rows(ops: list[str], limits: dict[str, float]) -> list[dict]:
    """One row for each op, variant, activations, shape and number of tokens.

    limits: operations a second, under "int8" and "exact".
    """
    table, block = [], torch.ones(16_000_000)
    for out, n in SHAPES:
        inputs = {tokens: torch.randn(tokens, n) for tokens in TOKENS}
        beside = dense_works(out, n)

        made: dict[tuple[str, str], Callable] = {}  # variant and activations -> its work

        def add(
            op, name, kernel, activations, plan, work, out=out, n=n, inputs=inputs, beside=beside, made=made
        ):
            made[name, activations] = work
            rival = made.get((RIVALS.get(name, ""), activations))
            for tokens, x in inputs.items():
                works = {"this": lambda i, x=x: work(i, x)} | {k: make(x) for k, make in beside.items()}
                if tokens == 1:
                    works["read"] = lambda i: block.sum()
                took = in_turns(works, None if tokens <= 8 else MANY_ROUNDS)
                # operations per second; of other programs' kernels we know neither bytes nor arithmetic
                this, limit = took.pop("this"), 0.0
                read = 4 * block.numel() / took.pop("read") if tokens == 1 else 0.0
                if plan is not None:
                    limit = (
                        read / plan.bytes
                        if tokens == 1
                        else most_per_second(plan, tokens, activations, limits) / (2 * tokens * out * n)
                    )
                raced = {}
                if rival:

                    def of_rival(i: int, x=x, rival=rival) -> object:
                        return rival(i, x)

                    raced = {"rival": RIVALS[name], "times_rival": ratio(of_rival, works["this"])}
                table.append(
                    {
                        "op": op,
                        "variant": name,
                        "kernel": kernel,
                        "activations": activations,
                        "out": out,
                        "in": n,
                        "tokens": tokens,
                        "microseconds": 1e6 * this,
                        "bytes": plan.bytes if plan else 0,
                        "limit": "reading memory" if tokens == 1 else "arithmetic",
                        "share_of_limit": 1 / (this * limit) if limit else None,
                        "read_gbytes_per_second": read / 1e9 if read else None,
                        **raced,
                        **{f"{k}_microseconds": 1e6 * v for k, v in took.items()},
                    }
                )

        for op, name, make, activations in VARIANTS:
            if op not in ops:
                continue
            for words, rule in activations:
                plan, weight = make(out, n, rule)
                verify(op, name, plan, weight)
                many = [
                    plan,
                    *(plan.clone() for _ in range(max(1, min(30, ROTATED_BYTES // plan.bytes)) - 1)),
                ]
                kernel = kernels.name(
                    plan.serves(op), f"C, {cpu.instructions()}", plan.in_int8, plan.outliers_exact
                )
                add(
                    op, name, kernel, words, plan, lambda i, x, many=many: cpu.product(many[i % len(many)], x)
                )
        if "peers" in ops:
            for name, work in peers(out, n).items():
                add("peers", name, name, "bfloat16", None, lambda i, x, work=work: work(x))
    return table


OPS = (*dict.fromkeys(op for op, *_ in VARIANTS), "peers")


def about(limits: dict[str, float]) -> dict:
    """This machine and what it can do, for the head of a table."""
    return {
        "processor": cpu.processor(),
        "threads": torch.get_num_threads(),
        "instructions": cpu.instructions(),
        "torch": torch.__version__,
        "read_gbytes_per_second": limits["read"] / 1e9,
        "int8_gops": limits.get("int8", 0) / 1e9,
        "float32_gflops": limits.get("exact", 0) / 1e9,
        "c_kernels": cpu.status(),
    }


def show(head: dict, table: list[dict]) -> None:
    print(
        f"{head['processor']}, {head['threads']} threads, {head['c_kernels']}; reads "
        f"{head['read_gbytes_per_second']:.1f} GB/s, "
        f"int8 {head['int8_gops']:.0f} Gop/s, float32 {head['float32_gflops']:.0f} GFLOP/s"
    )
    print(
        f"{'op':<13} {'variant':<36} {'activations':<11} {'shape':>12} {'M':>4} {'us':>9} {'of limit':>8} "
        f"{'x PyTorch':>9} {'x chosen':>8} {'x own f32':>9} {'x own bf16':>10}"
    )
    for r in table:
        share = f"{r['share_of_limit']:.0%}" if r["share_of_limit"] else ""
        times = [
            r.get(f"{k}_microseconds", 0) / r["microseconds"]
            for k in ("pytorch_default", "pytorch_chosen", "own_float32", "own_bfloat16")
        ]
        print(
            f"{r['op']:<13} {r['variant']:<36} {r['activations']:<11} {r['out']:>6}x{r['in']:<5} "
            f"{r['tokens']:>4} "
            f"{r['microseconds']:>9.1f} {share:>8} {times[0]:>9.1f} {times[1]:>8.1f} {times[2]:>9.1f} "
            f"{times[3]:>10.2f}" + (f"  {r['times_rival']:.2f} x {r['rival']}" if "rival" in r else "")
        )


def main(argv: list[str]) -> int:
    from kernels import bench_gpu

    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n")[0])
    parser.add_argument(
        "ops",
        nargs="*",
        help=f"what to time: {', '.join(OPS)}; with --gpu {', '.join(bench_gpu.OPS)} (default: all)",
    )
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--model", action="store_true", help="time whole models instead of products")
    parser.add_argument("--gpu", action="store_true", help="time the Triton kernels on the graphics card")
    parser.add_argument(
        "--llama-cpp", action="store_true", help="with --model: beside llama.cpp (package llama-cpp-python)"
    )
    parser.add_argument("--figure", type=Path, help="with --model: draw the table into this SVG file")
    own = parser.parse_args(argv)
    known = bench_gpu.OPS if own.gpu else OPS
    if unknown := set(own.ops) - set(known):
        parser.error(f"no op {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    if own.gpu:
        return bench_gpu.main(own.ops, own.json)
    choose_float32()
    if cpu.wait() is None:
        print(
            f"the C kernels don't serve here ({cpu.status()}); there is nothing of ours to time",
            file=sys.stderr,
        )
        return 1
    limits = {"read": read_bandwidth(), **arithmetic()}
    if own.model:
        from kernels import bench_model

        table = bench_model.rows(own.llama_cpp)
        bench_model.show(about(limits), table)
        if own.figure:
            own.figure.write_text(bench_model.figure(about(limits), table), "utf-8")
    else:
        table = rows(own.ops or list(OPS), limits)
        show(about(limits), table)
    if own.json:
        own.json.write_text(json.dumps(about(limits) | {"rows": table}, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Times the Triton kernels on this machine's graphics card, after checking each against its reference.

    python -m kernels.bench --gpu [op ...] [--json FILE]

x is float16. Beside each kernel stand PyTorch's product of a dense float16 weight and the limit, both
measured in this run. The limit is the card's memory for one token, and its tensor cores for many. Other
programs' kernels have rows of their own; if one doesn't take a shape, its row says why.
`triton.testing.do_bench` clears the second-level cache before every call and gives medians.

One of those rows is PyTorch's cuSPARSELt with the weights already in its own layout. That layout is a second
copy beside the stored weights. Our kernel keeps no such copy: it converts the stored weights at every call.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import binary_coded, codebook, columns, dense, gpu, grouped_int, low_rank, outliers, sparse
from kernels.bits import pack, unpack
from kernels.grids import Levels

SHAPES = ((576, 576), (49152, 576), (4096, 4096), (11008, 4096))  # (out, in)
TOKENS = (1, 8, 512, 2048)
GROUP = 64
TOLERANCE = 4e-3  # relative to the largest entry of y, which is float16
Work = Callable[[Tensor], Tensor]


# --- what is timed: (op, variant, (out, in) -> operands, reference); the launcher is called like the op and
# takes the same operands


def scales(out: int, n: int) -> Tensor:
    return (0.01 + torch.rand(out, n // GROUP)).half()


def integers(bits: int):
    def make(out: int, n: int):
        codes = torch.randint(0, 2**bits, (out, n)).to(torch.uint8)
        scale = scales(out, n)
        return pack(codes, bits), scale, torch.randint(0, 2**bits, scale.shape).to(torch.uint8), bits, GROUP

    return make


def eight_a_row(out: int, n: int):
    codes = torch.randint(1, 256, (out, n)).to(torch.uint8)
    return (
        pack(codes, 8),
        (0.01 + torch.rand(out, 1)).half(),
        torch.full((out, 1), 128, dtype=torch.uint8),
        -1,
    )


def rounded_tokens(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Tensor:
    """The product with x rounded to int8, with one scale for each token."""
    step = x.float().abs().amax(1, keepdim=True) / 127
    return grouped_int.grouped_int_reference(
        (x.float() / step).round() * step, codes, scale, zero, 8, group_size
    )


def book(out: int, n: int):
    return pack(torch.randint(0, 16, (out, n)).to(torch.uint8), 4), scales(out, n), torch.randn(16), GROUP


def planes(out: int, n: int):
    bits = torch.randint(0, 256, (3, out, n // 8)).to(torch.uint8)
    return bits, torch.rand(3, out, n // GROUP).half(), torch.randn(out, n // GROUP).half(), GROUP


def half_kept(out: int, n: int):
    keep = torch.rand(out, n) > 0.5
    starts = F.pad(keep.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return sparse.mask_bits(keep), torch.randn(int(keep.sum())).half(), starts


def two_of_four(out: int, n: int):
    positions = torch.rand(out, n // 4, 4).argsort(-1)[..., :2].sort(-1).values
    return torch.randn(out, n // 2).half(), pack(positions.reshape(out, n // 2).to(torch.uint8), 2)


def levels(out: int, n: int, bits: int) -> Levels:
    scale = scales(out, n)
    return Levels(scale, torch.randint(0, 2**bits, scale.shape).to(torch.uint8), bits, GROUP)


def half_kept_codes(out: int, n: int):
    kept, values, starts = half_kept(out, n)
    return kept, pack(torch.randint(0, 16, (1, len(values))).to(torch.uint8), 4)[0], starts, levels(out, n, 4)


def two_of_four_codes(out: int, n: int):
    positions = two_of_four(out, n)[1]
    return pack(torch.randint(0, 16, (out, n // 2)).to(torch.uint8), 4), positions, levels(out, n, 4)


def whole(out: int, n: int):
    return (torch.randn(out, n).half(),)


def half_the_parameters(out: int, n: int):
    rank = max(1, out * n // (2 * (out + n)))
    return torch.randn(out, rank).half() / rank**0.5, torch.randn(rank, n).half()


def few_outliers(out: int, n: int):
    count = max(1, n // 100)
    places = torch.rand(out, n).argsort(1)[:, :count].flatten().to(torch.int16)
    return torch.randn(out * count).half(), places, torch.arange(out + 1, dtype=torch.int32) * count


def few_columns(out: int, n: int):
    count = max(1, n // 100)
    return torch.randn(out, count).half(), torch.randperm(n)[:count].to(torch.int32)


VARIANTS: tuple[tuple[str, str, Callable, Callable], ...] = (
    ("dense", "16 bits", whole, dense.dense_reference),
    ("low_rank", "half the parameters", half_the_parameters, low_rank.low_rank_reference),
    *(
        ("grouped_int", f"{b} bits, group 64", integers(b), grouped_int.grouped_int_reference)
        for b in (2, 3, 4, 8)
    ),
    ("int8", "8 bits a row, int8 inputs", eight_a_row, rounded_tokens),
    ("codebook", "16 entries, group 64", book, codebook.codebook_reference),
    ("binary_coded", "3 planes, group 64", planes, binary_coded.binary_coded_reference),
    ("looked_up", "3 planes, group 64, tables of 16", planes, binary_coded.binary_coded_reference),
    ("looked_up_8", "3 planes, group 64, tables of 256", planes, binary_coded.binary_coded_reference),
    ("bitmask", "50 %, 16 bits", half_kept, sparse.bitmask_reference),
    ("bitmask", "50 %, 4 bits, group 64", half_kept_codes, sparse.bitmask_reference),
    ("two_four", "2:4, 16 bits", two_of_four, sparse.two_four_reference),
    ("two_four", "2:4, 4 bits, group 64", two_of_four_codes, sparse.two_four_reference),
    ("outliers", "1 % outliers alone", few_outliers, outliers.outliers_reference),
    ("columns", "1 % columns alone", few_columns, columns.columns_reference),
)
OPS = tuple(dict.fromkeys(op for op, *_ in VARIANTS))


def moved(operand, device: str):
    """An operand, or a tuple of them, on the device."""
    if isinstance(operand, Levels):
        return Levels(*(moved(o, device) for o in operand))
    if isinstance(operand, tuple):
        return tuple(moved(o, device) for o in operand)
    return operand.to(device) if isinstance(operand, Tensor) else operand


def flat(operands: tuple) -> Iterator:
    """The operands one by one; an operand that is a tuple gives its members."""
    for o in operands:
        yield from flat(o) if isinstance(o, tuple) else (o,)


def launcher(op: str) -> Callable:
    """The Triton product of an op: (x, *operands) -> y."""
    if op == "int8":
        return importlib.import_module("kernels.gpu.int8").int8_product
    if op == "looked_up_8":
        return functools.partial(kernels.launcher("looked_up"), mu=8)
    return kernels.launcher(op)


def others(out: int, n: int, device: str) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Other programs' kernels: (name, a function that prepares the weights and returns the product).

    The function may raise for a shape that the kernel doesn't take, or if its package is missing.
    """

    def cusparselt() -> Work:
        from torch.sparse import to_sparse_semi_structured

        values, positions = two_of_four(out, n)
        weight = to_sparse_semi_structured(
            sparse.scatter_two_four(values, unpack(positions, 2, n // 2)).to(device)
        )
        return lambda x: F.linear(x, weight)

    def four_bits() -> Work:
        codes = torch.randint(0, 256, (out, n // 2), device=device).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        scale = torch.rand(n // GROUP, out, 2, device=device).bfloat16()
        return lambda x: torch.ops.aten._weight_int4pack_mm(x.bfloat16(), packed, GROUP, scale)

    def eight_bits() -> Work:
        weight = torch.randint(-127, 128, (out, n), dtype=torch.int8, device=device).T
        return lambda x: torch._int_mm(x.to(torch.int8), weight)

    def nf4() -> Work:
        import bitsandbytes as bnb

        linear = bnb.nn.Linear4bit(n, out, bias=False, compute_dtype=torch.float16, quant_type="nf4")
        return linear.to(device).eval()

    def llm_int8() -> Work:
        import bitsandbytes as bnb

        return (
            bnb.nn.Linear8bitLt(n, out, bias=False, has_fp16_weights=False, threshold=6.0)
            .half()
            .to(device)
            .eval()
        )

    yield "PyTorch 2:4 (cuSPARSELt or CUTLASS)", cusparselt
    yield "PyTorch 4 bits, group 64 (bfloat16)", four_bits
    yield "PyTorch int8 x int8", eight_bits
    yield "bitsandbytes NF4", nf4
    yield "bitsandbytes LLM.int8()", llm_int8


def verify(op: str, name: str, operands: tuple, reference: Callable, n: int) -> None:
    """Raises ArithmeticError for a product that differs from its reference."""
    device = operands[0].device
    for tokens in (1, 20):
        x = torch.randn(tokens, n, device=device).half()
        expected, y = reference(x.float(), *operands), launcher(op)(x, *operands).float()
        if not bool((y - expected).abs().max() <= TOLERANCE * expected.abs().max()):
            raise ArithmeticError(f"{op} ({name}) is wrong at {tokens} x {n}; no speed is given")


def limits(clock: Callable[[Callable], float], device: str) -> dict[str, float]:
    """Bytes a second read from the card's memory, and float16 operations a second of its tensor cores."""
    block = torch.ones(1 << 28, device=device)
    square = torch.ones(8192, 8192, dtype=torch.float16, device=device)
    return {
        "read": 4 * block.numel() / clock(lambda: block.sum()),
        "exact": 2 * 8192**3 / clock(lambda: square @ square),
    }


def seconds(work: Callable[[], object]) -> float:
    """Median seconds of a call on the card, with the cache cleared before each call."""
    import triton.testing

    return triton.testing.do_bench(work, return_mode="median") / 1e3


def rows(
    ops: list[str], limit: dict[str, float], clock=seconds, device: str = "cuda", shapes=SHAPES, tokens=TOKENS
) -> list[dict]:
    """One row for each op, variant, shape and number of tokens.

    Other programs' kernels are timed too if all ops were asked for.
    """
    table = []
    for out, n in shapes:
        inputs = {m: torch.randn(m, n, device=device).half() for m in tokens}
        weight = torch.randn(out, n, device=device).half()
        dense = {m: clock(lambda x=x, w=weight: F.linear(x, w)) for m, x in inputs.items()}

        def add(op, name, kernel, activations, size, work, out=out, n=n, inputs=inputs, dense=dense):
            for m, x in inputs.items():
                row = {
                    "op": op,
                    "variant": name,
                    "kernel": kernel,
                    "activations": activations,
                    "out": out,
                    "in": n,
                    "tokens": m,
                    "bytes": size,
                    "limit": "reading memory" if m == 1 else "arithmetic",
                }
                try:
                    took = clock(lambda x=x: work(x))
                except Exception as error:
                    table.append(row | {"failed": f"{type(error).__name__}: {error}".splitlines()[0]})
                    continue
                least = size / limit["read"] if m == 1 else 2 * m * out * n / limit["exact"]
                table.append(
                    row
                    | {
                        "microseconds": 1e6 * took,
                        "dense_microseconds": 1e6 * dense[m],
                        "share_of_limit": least / took if size and (m == 1 or op != "int8") else None,
                    }
                )

        for op, name, make, reference in VARIANTS:
            if op in ops:
                operands = moved(make(out, n), device)
                verify(op, name, operands, reference, n)
                size = sum(o.nbytes for o in flat(operands) if isinstance(o, Tensor))
                kernel = kernels.name(
                    {"int8": "grouped_int", "looked_up_8": "looked_up"}.get(op, op), "Triton", op == "int8"
                )
                add(
                    op,
                    name,
                    kernel,
                    "int8" if op == "int8" else "exact",
                    size,
                    lambda x, op=op, o=operands: launcher(op)(x, *o),
                )
        if set(ops) == set(OPS):
            for name, ready in others(out, n, device):
                try:
                    work = ready()
                except Exception as error:
                    table.append(
                        {
                            "op": "others",
                            "variant": name,
                            "out": out,
                            "in": n,
                            "failed": f"{type(error).__name__}: {error}".splitlines()[0],
                        }
                    )
                    continue
                add("others", name, name, "as it takes them", 0, work)
    return table


def about(limit: dict[str, float]) -> dict:
    """The card and what it can do, for the head of a table."""
    import triton

    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "read_gbytes_per_second": limit["read"] / 1e9,
        "float16_tflops": limit["exact"] / 1e12,
    }


def missing() -> str:
    """Why nothing can be timed on this machine; "" if kernels can be timed."""
    if not torch.cuda.is_available():
        return "PyTorch sees no graphics card here"
    return (
        ""
        if gpu.serves(torch.zeros(1, device="cuda"))
        else "the kernels need Triton and a card of compute capability 8.0 or later"
    )


def show(head: dict, table: list[dict]) -> None:
    print(
        f"{head['card']}: reads {head['read_gbytes_per_second']:.0f} GB/s, float16 "
        f"{head['float16_tflops']:.0f} TFLOP/s"
    )
    print(f"{'op':<13} {'variant':<36} {'shape':>12} {'M':>4} {'us':>9} {'of limit':>8} {'x dense':>8}")
    for r in table:
        place = f"{r['op']:<13} {r['variant']:<36} {r['out']:>6}x{r['in']:<5} {r.get('tokens', ''):>4}"
        if "failed" in r:
            print(f"{place} {r['failed'][:80]}")
            continue
        share = f"{r['share_of_limit']:.0%}" if r["share_of_limit"] else ""
        print(
            f"{place} {r['microseconds']:>9.1f} {share:>8} "
            f"{r['dense_microseconds'] / r['microseconds']:>8.2f}"
        )


def main(ops: list[str], file: Path | None) -> int:
    """Print the table of `ops` (all if empty), and write it; exit code 1 if there is no card."""
    if why := missing():
        print(f"error: {why}", file=sys.stderr)
        return 1
    limit = limits(seconds, "cuda")
    table = rows(ops or list(OPS), limit)
    show(about(limit), table)
    if file:
        file.write_text(json.dumps(about(limit) | {"rows": table}, indent=1) + "\n", "utf-8")
    return 0

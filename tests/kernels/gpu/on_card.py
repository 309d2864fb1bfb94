"""What the tests of the Triton kernels share: where they run, how exact they are, and their operands."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from kernels import grouped_int
from kernels.bits import pack
from tests.tiers import met

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}  # tolerance, relative to y's largest entry
TOLERANCE = {torch.float32: 1e-5} | HALF

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton isn't installed")
product = pytest.mark.skipif(
    not INTERPRETED and not (torch.cuda.is_available() and importlib.util.find_spec("triton")),
    reason="no card here; test_every_product_through_the_interpreter runs it in a process of its own",
)


def on_device(*operands):
    return tuple(o.to(DEVICE) if isinstance(o, torch.Tensor) else o for o in operands)


def check(op, x, weight, *operands, dtypes=tuple(TOLERANCE), tiled=False):
    """op(x, ...) is x W^T for every dtype of x, W [out, in] in float64."""
    for dtype in dtypes:
        if tiled and INTERPRETED and dtype == torch.bfloat16 and len(x) > 8:
            continue  # the interpreter's tl.dot multiplies the bit patterns of bfloat16
        given = x.to(dtype)
        expected = given.double() @ weight.T
        y = op(*on_device(given, *operands))
        assert y.shape == expected.shape and y.dtype == dtype
        if y.numel():
            assert (y.cpu().double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max(), (
                dtype,
                x.shape,
            )


def half_of(case):
    """float32 and one of the 16-bit types: bfloat16 for every third case (the interpreter is slow)."""
    return torch.float32, torch.bfloat16 if hash(case) % 3 == 0 else torch.float16


def many(case):
    """Whether a case's tokens, its first number, are for the kernel of many."""
    return case[0] > 8


def by_turns(cases, *traits):
    """Cases as parameters: `make test` meets every shape, and every trait in the kernels of few and of many
    tokens (the interpreter is slow); `make test-all` runs them all."""

    def both(trait):
        return lambda case: (many(case), trait(case))

    return met(cases, lambda case: case[:3], *map(both, (lambda case: half_of(case)[1], *traits)))


def scales(out, n, group, g):
    return (0.01 + torch.rand(out, grouped_int.groups_of(n, group), generator=g)).half()


def grid(out, n, bits, group, seed=0):
    """The operands of a matrix of grouped integers, and the matrix."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**bits, (out, n), generator=g).to(torch.uint8)
    scale = scales(out, n, group, g)
    zero = torch.randint(0, 2**bits, scale.shape, generator=g).to(torch.uint8)
    spread = [grouped_int.spread(t.double(), n, group) for t in (scale, zero)]
    return (pack(q, bits), scale, zero, bits, group), spread[0] * (q.double() - spread[1])


def tokens_of(tokens, n, seed=1):
    return torch.randn(tokens, n, generator=torch.Generator().manual_seed(seed))

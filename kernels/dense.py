"""y = x W^T for weights in 16 bits. Also chooses which library multiplies float32 on a processor.

PyTorch has two such libraries. By default MKL multiplies float32, and it uses half the vector width on
processors that are not its maker's. oneDNN uses the whole width, and PyTorch takes it if a lower precision is
allowed. Whether oneDNN then really computes in less than float32 depends on the processor (with AMX it rounds
to bfloat16). So `choose_float32` tries oneDNN, and keeps it only if its products are as exact as float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from kernels import gpu

CASES = ((1, 64, 96), (3, 50, 37), (17, 33, 80), (8, 5, 1100), (1, 1, 16))  # (tokens, out, in)

# largest error of a product over 512 terms, relative to the largest entry; bfloat16 would give 4e-3
EXACT = 4e-6


def dense_reference(x: Tensor, weight: Tensor) -> Tensor:
    """The formula: x W^T."""
    return x @ weight.to(x.dtype).T


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype for x [tokens, in], weight float16 [out, in].

    Triton multiplies few tokens on a GPU; PyTorch does everything else.
    """
    if gpu.serves(x):
        from kernels.gpu.dense import dense as triton

        return triton(x, weight)
    return x @ weight.to(x.dtype).T


@functools.cache
def choose_float32() -> str:
    """Choose this process's library for float32 products, once. Returns its name: "oneDNN" or "default"."""
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 512, generator=generator) for n in (64, 96))
    expected = x.double() @ weight.double().T
    torch.set_float32_matmul_precision("medium")
    errors = [
        (torch.nn.functional.linear(part, weight).double() - expected[: len(part)]).abs().max()
        for part in (x, x[:1])
    ]
    if max(errors) <= EXACT * expected.abs().max():
        return "oneDNN"
    torch.set_float32_matmul_precision(before)
    return "default"


def dense_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        yield f"dense {dtype}", n, (torch.randn(out, n, generator=g).to(dtype),)

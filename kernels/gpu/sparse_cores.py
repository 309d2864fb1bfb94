"""Multiplies many tokens by 2:4 weights on a card's sparse tensor cores, by PyTorch's cuSPARSELt.

cuSPARSELt wants the weights in a layout of its own, 9 bits a weight beside the 9 that are stored. No second
copy is kept. A block of rows is brought into this layout when it is needed; this costs about 3 bytes of
memory traffic a weight, and saves up to half of the tensor cores' work. By the cards' data sheets cost and
saving are equal at about 500 tokens on an A100, and at 700 on an H100. From `MANY` tokens on the sparse cores
are used.

Before the sparse cores are used, a small matrix is multiplied with the same card, library and type. If the
result is wrong, PyTorch's dense product of the same blocks is used.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

MANY = 1024  # tokens
ROWS, COLUMNS = 32, 64  # a block's rows and columns must be multiples of these
TOLERANCE = 2e-2  # relative to y's largest entry: bfloat16


def serve(x: Tensor, out: int) -> bool:
    """Whether x [tokens, in] is multiplied by a weight [out, in] on the sparse cores."""
    fits = (
        len(x) >= MANY
        and x.dtype in (torch.float16, torch.bfloat16)
        and out % ROWS == 0
        and x.shape[1] % COLUMNS == 0
    )
    return fits and x.is_cuda and not why_not(x.device, x.dtype)


@functools.cache
def why_not(device: torch.device, dtype: torch.dtype) -> str:
    """Why the sparse cores of a device aren't used; "" if they are.

    They must be there, and their product must equal the dense one.
    """
    if device.type != "cuda" or not torch.backends.cusparselt.is_available():
        return "PyTorch has no cuSPARSELt here"
    kept = torch.tensor([1, 0, 0, 1, 0, 1, 1, 0], device=device).repeat(2 * ROWS, 2 * COLUMNS // 8)
    weight = (
        kept * torch.randn(kept.shape, device=device, generator=torch.Generator(device).manual_seed(0))
    ).to(dtype)
    x = torch.randn(MANY, kept.shape[1], device=device, generator=torch.Generator(device).manual_seed(1)).to(
        dtype
    )
    try:
        y = product(x, weight)
    except RuntimeError as error:
        return f"cuSPARSELt refused: {error}".splitlines()[0]
    expected = x.float() @ weight.float().T
    return (
        ""
        if bool((y - expected).abs().max() <= TOLERANCE * expected.abs().max())
        else "cuSPARSELt multiplied wrongly"
    )


def product(x: Tensor, rows: Tensor) -> Tensor:
    """x [tokens, in] times the transpose of 2:4 rows [rows, in], zeros written out."""
    return F.linear(x, torch.sparse.to_sparse_semi_structured(rows))


def label() -> str:
    """What a kernel's label says about the sparse cores; "" if they aren't used."""
    used = torch.cuda.is_available() and not why_not(
        torch.device("cuda", torch.cuda.current_device()), torch.float16
    )
    return f"cuSPARSELt from {MANY} tokens" if used else ""

"""y = x W^T where every row of W [out, in] is a tensor train: a chain of small cores.

Contracting (multiplying out) the chain of row v gives the row:

    W[v, (i_1 ... i_K)] = G_1[v][:, i_1, :] G_2[v][:, i_2, :] ... G_K[v][:, i_K, :]

x [tokens, in]; cores float16 [out, P]: the cores G_k [r_{k-1}, I_k, r_k] of each row, flattened, one after
the other. The modes I_1 .. I_K and the ranks r_0 = 1, r_1 .. r_K = 1 are the same for every row. The product
of the modes is at least `in`; columns beyond `in` are dropped. Bytes moved: 2 P a row.

A chain is contracted by halves. Each half of a row of d numbers has about sqrt(d) rank numbers, and joining
the halves takes d rank multiplications; contracting from the left would take d rank^2. A block of rows is
contracted at a time, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CASES = (  # (tokens, out, in, modes, ranks)
    (1, 64, 48, (2, 2, 2, 2, 3), (1, 2, 3, 3, 2, 1)),
    (3, 33, 45, (6, 8), (1, 4, 1)),
    (17, 5, 40, (2,) * 6, (1, 1, 1, 1, 1, 1, 1)),
    (2, 2_500, 24, (2, 3, 4), (1, 2, 4, 1)),
    (64, 7, 13, (13,), (1, 1)),
    (0, 9, 16, (4, 4), (1, 2, 1)),
)
ROWS_PER_BLOCK = 2_048


def sizes(modes: Sequence[int], ranks: Sequence[int]) -> list[tuple[int, int, int]]:
    """The shape (r_{k-1}, I_k, r_k) of each core."""
    return list(zip(ranks, modes, ranks[1:], strict=False))


def values_per_row(modes: Sequence[int], ranks: Sequence[int]) -> int:
    """P = sum of r_{k-1} I_k r_k."""
    return sum(math.prod(size) for size in sizes(modes, ranks))


def split(cores: Tensor, modes: Sequence[int], ranks: Sequence[int]) -> list[Tensor]:
    """cores [n, P] -> the K cores [n, r_{k-1}, I_k, r_k] in float32."""
    shapes = sizes(modes, ranks)
    parts = cores.float().split([math.prod(size) for size in shapes], 1)
    return [part.unflatten(1, size) for part, size in zip(parts, shapes, strict=True)]


def contract(parts: Sequence[Tensor]) -> Tensor:
    """Contract neighbouring cores [n, r, I, r'] to one [n, r_first, product of the modes, r_last]."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = contract(parts[:middle]), contract(parts[middle:])
    return (left.flatten(1, 2) @ right.flatten(2, 3)).view(len(left), left.shape[1], -1, right.shape[3])


def tensor_train_rows(cores: Tensor, modes: Sequence[int], ranks: Sequence[int], n: int) -> Tensor:
    """The rows float32 [len(cores), n] that the chains stand for."""
    return contract(split(cores, modes, ranks)).flatten(1)[:, :n]


def tensor_train_reference(x: Tensor, cores: Tensor, modes: Sequence[int], ranks: Sequence[int]) -> Tensor:
    """The formula, core after core from the left, on the whole matrix."""
    chain = torch.ones(len(cores), 1, 1)
    for core in split(cores, modes, ranks):
        chain = torch.einsum("var,vrib->vaib", chain, core).flatten(1, 2)
    return x @ chain.flatten(1)[:, : x.shape[-1]].to(x.dtype).T


def tensor_train(x: Tensor, cores: Tensor, modes: Sequence[int], ranks: Sequence[int]) -> Tensor:
    """y [tokens, out] in x's dtype for x [tokens, in], by PyTorch."""
    y = x.new_empty(len(x), len(cores))
    for start in range(0, len(cores), ROWS_PER_BLOCK):
        rows = slice(start, start + ROWS_PER_BLOCK)
        y[:, rows] = x @ tensor_train_rows(cores[rows], modes, ranks, x.shape[-1]).to(x.dtype).T
    return y


def tensor_train_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    half, quarter = -(-n // 8), -(-n // 12)
    for modes, ranks in (((n,), (1, 1)), ((8, half), (1, 3, 1)), ((2, 3, quarter, 2), (1, 2, 4, 2, 1))):
        cores = 0.5 * torch.randn(out, values_per_row(modes, ranks), generator=g).half()
        yield f"chains of {len(modes)}", n, (cores, modes, ranks)

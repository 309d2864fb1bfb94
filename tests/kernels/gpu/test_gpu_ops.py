"""Every op's Triton product on the op's own examples (kernels.OPS)."""

from __future__ import annotations

import pytest
import torch

import kernels
from tests.kernels.gpu.on_card import check, product
from tests.kernels.test_ops import examples, matrix


@product
@pytest.mark.parametrize("op", [op for op, entry in kernels.OPS.items() if entry.triton])
def test_product_of_every_example(op, pytestconfig):
    """By Triton, for few tokens and for many, by turns in `make test`; the dense matrices that aren't float16
    are C's alone."""
    for i, (_, columns, operands) in enumerate(examples(op)):
        if op == "dense" and operands[0].dtype is not torch.float16:
            continue
        for tokens in (1, 20) if pytestconfig.getoption("--all") else ((1, 20)[i % 2],):
            x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens))
            weight = matrix(op, columns, operands).double()
            check(kernels.launcher(op), x, weight, *operands, dtypes=(torch.float32,))

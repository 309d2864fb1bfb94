"""What a freshly loaded library must get right before it is used; small, under 50 ms."""

from __future__ import annotations

import ctypes

import torch

CASES = tuple((m, 5, n, bits, group) for bits in range(2, 9) for m, n, group in ((1, 40, 16), (5, 96, 32), (2, 27, -1)))


def failure(library: ctypes.CDLL) -> str:
    """The first case that differs from the reference, "" if none does."""
    from kernels.bits import pack
    from kernels.grouped_int import c_product, c_rows, grouped_int_reference, groups_of
    from kernels.low_rank import c_half_product

    generator = torch.Generator().manual_seed(0)
    for m, out, n, bits, group in CASES:
        codes = pack(torch.randint(0, 2**bits, (out, n), generator=generator).to(torch.uint8), bits)
        scale = (0.01 + torch.rand(out, groups_of(n, group), generator=generator)).half()
        zero = torch.randint(0, 2**bits, scale.shape, generator=generator).to(torch.uint8)
        x = torch.randn(m, n, generator=generator)
        expected = grouped_int_reference(x, codes, scale, zero, bits, group)
        by_rows = x @ c_rows(library, codes, scale, zero, bits, group, n, 0, out).T
        for name, found in (("product", c_product(library, x, codes, scale, zero, bits, group)), ("rows", by_rows)):
            if not bool((found - expected).abs().max() <= 1e-5 * expected.abs().max()):
                return f"{name} of {m} x {out} x {n}, {bits} bits, group {group}"
    for m, n in ((1, 70), (6, 33)):
        x, weight = torch.randn(m, n, generator=generator), torch.randn(7, n, generator=generator).half()
        if not bool((c_half_product(library, x, weight) - x @ weight.float().T).abs().max() <= 1e-4):
            return f"16-bit product of {m} x 7 x {n}"
    return ""

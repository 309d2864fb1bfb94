"""What a freshly loaded library must get right before it is used; small, some 50 ms."""

from __future__ import annotations

import ctypes

import torch

TOLERANCE = 5e-5  # of the largest sum of |x w|, what float sums and 16-bit code books are good to; the same in tests


def failure(library: ctypes.CDLL) -> str:
    """The first case that differs from its formula, "" if none does."""
    from kernels.cpu.plans import _Struct

    if library.plan_bytes() != ctypes.sizeof(_Struct):
        return "the plan's layout"
    for name, plan, weight in cases():
        for tokens in (1, 3, 15):
            x = torch.randn(tokens, plan.shape[1], generator=torch.Generator().manual_seed(tokens))
            expected, size = rounded(x, plan.rule) @ weight.T, x.abs() @ weight.abs().T
            y = torch.full((tokens, plan.shape[0]), float("nan"))
            library.product(plan.address, x.data_ptr(), y.data_ptr(), tokens, 2)
            if not bool((y - expected).abs().max() <= TOLERANCE * size.max()):
                return f"{name}, {tokens} tokens"
    return ""


def rounded(x: torch.Tensor, rule) -> torch.Tensor:
    """x [tokens, in] on the int8 grid of a rule (columns that share a scale, largest code)."""
    if rule is None:
        return x
    columns, top = rule
    out = x.clone()
    for start in range(0, x.shape[1], columns):
        part = x[:, start : start + columns]
        scale = part.abs().amax(1, keepdim=True).clamp_min(1e-30) / top
        out[:, start : start + columns] = (part * (1 / scale)).round() * scale
    return out


def cases(out: int = 19, n: int = 75):
    """(name, plan, dense float32 weight) of every format, small and odd."""
    from kernels import bits as packing
    from kernels.binary_coded import binary_coded_rows
    from kernels.codebook import codebook_rows
    from kernels.cpu import plans
    from kernels.grouped_int import groups_of, spread
    from kernels.outliers import outliers_matrix
    from kernels.sparse import mask_bits

    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    whole = lambda top, *shape: torch.randint(0, top, shape, generator=g).to(torch.uint8)  # noqa: E731
    keep = torch.rand(out, n, generator=g) > 0.5
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight = normal(out, n).to(dtype)
        yield f"dense {dtype}", plans.dense(weight), weight.float()
    for rule in (None, (32, 127), (1 << 30, 127)):
        for b in range(2, 9):
            for group in (16, 64, -1) if rule != (1 << 30, 127) else (-1,):
                codes, groups = whole(2**b, out, n), groups_of(n, group)
                scale, zero = (0.01 + torch.rand(out, groups, generator=g)).half(), whole(2**b, out, groups)
                weight = spread(scale.float(), n, group) * (codes.float() - spread(zero.float(), n, group))
                name = f"{b} bits, group {group}, rule {rule}"
                yield name, plans.grouped_int(packing.pack(codes, b), scale, zero, b, group, n, rule), weight
                if b in (3, 4, 8):
                    yield f"bitmask, {name}", plans.bitmask_codes(keep, codes, scale, zero, b, group, rule), weight * keep
        table = normal(16)
        codes, scale = packing.pack(whole(16, out, n), 4), torch.rand(out, groups_of(n, 32), generator=g).half()
        yield (
            f"codebook, rule {rule}",
            plans.codebook(codes, scale, table, 32, n, rule),
            codebook_rows(codes, scale, table, 32, n),
        )
        for b in (1, 3):
            planes = torch.stack([mask_bits(normal(out, n) > 0) for _ in range(b)])
            alpha, offset = torch.rand(b, out, groups_of(n, 48), generator=g).half(), normal(out, groups_of(n, 48)).half()
            weight = binary_coded_rows(planes, alpha, offset, 48, n)
            yield f"{b} planes, rule {rule}", plans.binary_coded(planes, alpha, offset, 48, n, rule), weight
        half = normal(out, n).half()
        yield f"bitmask, rule {rule}", plans.bitmask(mask_bits(keep), half[keep], n, rule), half.float() * keep
        u, v = normal(out, 5).half(), normal(5, n).half()
        yield f"low rank, rule {rule}", plans.low_rank(u, v, rule), u.float() @ v.float()
        starts = torch.arange(out + 1, dtype=torch.int32) * 2
        values, columns = normal(2 * out).half(), torch.randint(0, n, (2 * out,), generator=g).short()
        sparse = plans.outliers(values, columns, starts, n, rule)
        weight = outliers_matrix(values, columns, starts, n)
        yield f"outliers, rule {rule}", sparse, weight
        codes, scale = whole(8, out, n), torch.rand(out, 1, generator=g).half()
        below = plans.grouped_int(packing.pack(codes, 3), scale, None, 3, -1, n, rule)
        yield f"sum, rule {rule}", plans.total(below, sparse), scale.float() * (codes.float() - 4) + weight

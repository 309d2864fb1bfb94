"""What a freshly loaded library must get right before it is used; small, some 50 ms."""

from __future__ import annotations

import ctypes

import torch

# of the largest sum of |x w|, what float sums and 16-bit code books are good to; the same in tests
TOLERANCE = 5e-5


def failure(library: ctypes.CDLL) -> str:
    """The first case that differs from its formula, "" if none does."""
    from kernels.cpu.plans import _Struct

    if library.plan_bytes() != ctypes.sizeof(_Struct):
        return "the plan's layout"
    for name, plan, weight in cases():
        for tokens in (1, 3, 10, 15):
            x = torch.randn(tokens, plan.shape[1], generator=torch.Generator().manual_seed(tokens))
            expected, size = rounded(x, plan.rule) @ weight.T, x.abs() @ weight.abs().T
            y = torch.full((tokens, plan.shape[0]), float("nan"))
            library.product(plan.address, x.data_ptr(), y.data_ptr(), tokens, 2)
            if not bool((y - expected).abs().max() <= TOLERANCE * size.max()):
                return f"{name}, {tokens} tokens"
    return ""


def rounded(x: torch.Tensor, rule) -> torch.Tensor:
    """x [tokens, in] on the int8 grid of a rule (plans.Rule, or its numbers)."""
    from kernels.cpu.plans import Rule

    if rule is None:
        return x
    columns, top, threshold, static, shifted = Rule(*rule)
    exact = x.abs() >= threshold if threshold else torch.zeros_like(x, dtype=torch.bool)
    out = x.masked_fill(exact, 0)
    for start in range(0, x.shape[1], columns):
        part = out[:, start : start + columns]
        least, most = part.amin(1, keepdim=True).clamp_max(0), part.amax(1, keepdim=True).clamp_min(0)
        reach = (most - least) / 2 if shifted else torch.maximum(most, -least)
        scale = static or reach.clamp_min(1e-30) / top
        zero = (-top - least * (1 / scale)).round() if shifted else 0
        out[:, start : start + columns] = (
            ((part * (1 / scale)).round() + zero).clamp(-top, top) - zero
        ) * scale
    return torch.where(exact, x, out)


def cases(out: int = 35, n: int = 75):
    """(name, plan, dense float32 weight) of every format, small and odd."""
    from kernels import bits as packing
    from kernels.binary_coded import binary_coded_rows
    from kernels.codebook import codebook_rows
    from kernels.columns import columns_matrix
    from kernels.cpu import plans
    from kernels.grouped_int import groups_of, levelled, spread
    from kernels.outliers import outliers_matrix
    from kernels.sparse import mask_bits
    from kernels.tensor_train import tensor_train_rows, values_per_row

    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    chains = torch.Generator().manual_seed(1)

    def whole(top, *shape):
        return torch.randint(0, top, shape, generator=g).to(torch.uint8)

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
                    yield (
                        f"bitmask, {name}",
                        plans.bitmask_codes(keep, codes, scale, zero, b, group, rule),
                        weight * keep,
                    )
        for b, group in ((3, 16), (4, 64), (8, -1)):  # real zero points, and scales that are codes themselves
            codes, groups = whole(2**b, out, n), groups_of(n, group)
            scale, zero = (
                least + most * torch.rand(out, groups, generator=g) for least, most in ((0.01, 1), (0, 2**b))
            )
            scale, zero = scale.half(), zero.half()
            weight = spread(scale.float(), n, group) * (codes.float() - spread(zero.float(), n, group))
            name, codes = f"{b} bits, group {group}, rule {rule}", packing.pack(codes, b)
            yield f"real zeros, {name}", plans.grouped_int(codes, scale, zero, b, group, n, rule), weight
            for level_bits in (3, 6):
                levels = [whole(2**level_bits, out, groups) for _ in range(2)]
                stats = [torch.rand(-(-out // 16), groups, 2, generator=g).half() for _ in range(2)]
                scale, zero = (spread(levelled(c, s), n, group) for c, s in zip(levels, stats, strict=True))
                packed = [packing.pack(c.view(1, -1), level_bits)[0] for c in levels]
                plan = plans.two_level(codes, packed, stats, level_bits, b, group, n, rule)
                yield (
                    f"levels of {level_bits} bits, {name}",
                    plan,
                    scale * (packing.unpack(codes, b, n).float() - zero),
                )
        table = normal(16)
        for dtype in (torch.float16, torch.float32):
            codes, scale = (
                packing.pack(whole(16, out, n), 4),
                torch.rand(out, groups_of(n, 32), generator=g).to(dtype),
            )
            weight = codebook_rows(codes, scale, table, 32, n)
            yield f"codebook, {dtype}, rule {rule}", plans.codebook(codes, scale, table, 32, n, rule), weight
        for b, group in ((1, 48), (3, 48), (2, 32), (4, -1)):
            planes = torch.stack([mask_bits(normal(out, n) > 0) for _ in range(b)])
            alpha, offset = (
                torch.rand(b, out, groups_of(n, group), generator=g).half(),
                normal(out, groups_of(n, group)),
            )
            weight = binary_coded_rows(planes, alpha, offset, group, n)
            for looked_up in (False, True):
                name = f"{b} planes, group {group}, {'looked up' if looked_up else 'added'}, rule {rule}"
                yield name, plans.binary_coded(planes, alpha, offset, group, n, rule, looked_up), weight
        half = normal(out, n).half()
        yield (
            f"bitmask, rule {rule}",
            plans.bitmask(mask_bits(keep), half[keep], n, rule),
            half.float() * keep,
        )
        fours = torch.rand(out, -(-n // 4), 4, generator=g).argsort(-1).argsort(-1).flatten(1) < 2
        half, four = normal(*fours.shape).half(), fours.shape[1]
        yield (
            f"two of four, rule {rule}",
            plans.bitmask(mask_bits(fours), half[fours], four, rule),
            half.float() * fours,
        )
        u, v = normal(out, 5).half(), normal(5, n).half()
        yield f"low rank, rule {rule}", plans.low_rank(u, v, rule), u.float() @ v.float()
        for modes, ranks in (
            ((n,), (1, 1)),
            ((8, -(-n // 8)), (1, 3, 1)),
            ((2, 3, -(-n // 12), 2), (1, 2, 4, 2, 1)),
        ):
            cores = 0.5 * torch.randn(out, values_per_row(modes, ranks), generator=chains).half()
            weight = tensor_train_rows(cores, modes, ranks, n)
            yield (
                f"chains of {len(modes)}, rule {rule}",
                plans.tensor_train(cores, modes, ranks, n, rule),
                weight,
            )
        starts = torch.arange(out + 1, dtype=torch.int32) * 2
        values, columns = normal(2 * out).half(), torch.randint(0, n, (2 * out,), generator=g).short()
        sparse = plans.outliers(values, columns, starts, n, rule)
        weight = outliers_matrix(values, columns, starts, n)
        yield f"outliers, rule {rule}", sparse, weight
        codes, scale = whole(8, out, n), torch.rand(out, 1, generator=g).half()
        below = plans.grouped_int(packing.pack(codes, 3), scale, None, 3, -1, n, rule)
        yield f"sum, rule {rule}", plans.total(below, sparse), scale.float() * (codes.float() - 4) + weight
        values, index = normal(out, min(5, n)).half(), torch.randperm(n, generator=g)[:5]
        columns, weight = plans.columns(values, index, n, rule), columns_matrix(values, index, n)
        yield f"columns, rule {rule}", columns, weight
        yield (
            f"sum with columns, rule {rule}",
            plans.total(below, columns),
            scale.float() * (codes.float() - 4) + weight,
        )
    token = 1 << 30
    rules = [(token, 127, threshold, *more) for threshold in (0.0, 1.5) for more in ((0.02,), (0.0, True))]
    for rule in (*rules, (token, 127, 1.5), (32, 127, 1.5)):
        for group, symmetric in ((16, False), (-1, True)):
            codes, groups = whole(256, out, n), groups_of(n, group)
            scale, zero = (
                torch.rand(out, groups, generator=g).half(),
                None if symmetric else whole(256, out, groups),
            )
            middle = 128 if zero is None else spread(zero.float(), n, group)
            weight = spread(scale.float(), n, group) * (codes.float() - middle)
            plan = plans.grouped_int(packing.pack(codes, 8), scale, zero, 8, group, n, rule)
            yield f"8 bits, group {group}, rule {rule}", plan, weight
        starts = torch.arange(out + 1, dtype=torch.int32)
        sparse = plans.outliers(
            normal(out).half(), torch.randint(0, n, (out,), generator=g).short(), starts, n, rule
        )
        yield f"sum, 8 bits, rule {rule}", plans.total(plan, sparse), weight + sparse.matrix()
        half = normal(out, n).half()
        yield f"dense, rule {rule}", plans.dense(half, rule), half.float()

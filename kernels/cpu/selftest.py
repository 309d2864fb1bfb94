"""The test that a freshly loaded C library must pass before it is used. It takes some 50 ms."""

from __future__ import annotations

import ctypes

import torch

# relative to the largest sum of |x w|: the accuracy of float sums and 16-bit code books; tests use it too
TOLERANCE = 5e-5
TOKEN = 1 << 30  # columns that share a scale: all of a token's
RULES = (None, (32, 127), (TOKEN, 127))


def failure(library: ctypes.CDLL) -> str:
    """The name of the first case that differs from its formula; "" if all agree."""
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
    """Small, odd matrices: (name, plan, dense float32 weight).

    They are every example of every op under every way to round activations, then matrices that no op has
    alone.
    """
    import kernels
    from kernels.cpu import plans

    g = torch.Generator().manual_seed(0)
    for rule in RULES:
        for op in kernels.OPS:
            for name, columns, operands in kernels.part(op, "examples")(out, n, g):
                weight = kernels.part(op, "reference")(torch.eye(columns), *operands).T
                yield f"{name}, {op}, rule {rule}", plans.TILES[op](*operands, columns, rule), weight
        yield from _grids(out, n, rule, g)
        yield from _sums(out, n, rule, g)
    yield from _outliers_and_shifts(out, n, g)


def _whole(top: int, *shape: int, g: torch.Generator) -> torch.Tensor:
    return torch.randint(0, top, shape, generator=g).to(torch.uint8)


def _grids(out: int, n: int, rule, g: torch.Generator):
    """Matrices of masked codes, and matrices whose scales are codes themselves."""
    from kernels import bits as packing
    from kernels.cpu import plans
    from kernels.grouped_int import groups_of, levelled, spread

    keep = torch.rand(out, n, generator=g) > 0.5
    for b in (3, 4, 8):
        for group in (16, 64, -1):
            codes, groups = _whole(2**b, out, n, g=g), groups_of(n, group)
            scale = (0.01 + torch.rand(out, groups, generator=g)).half()
            zero = _whole(2**b, out, groups, g=g)
            weight = spread(scale.float(), n, group) * (codes.float() - spread(zero.float(), n, group)) * keep
            plan = plans.bitmask_codes(keep, codes, scale, zero, b, group, rule)
            yield f"bitmask, {b} bits, group {group}, rule {rule}", plan, weight
    for b, group in ((3, 16), (4, 64), (8, -1)):
        codes, groups = _whole(2**b, out, n, g=g), groups_of(n, group)
        for level_bits in (3, 6):
            levels = [_whole(2**level_bits, out, groups, g=g) for _ in range(2)]
            stats = [torch.rand(-(-out // 16), groups, 2, generator=g).half() for _ in range(2)]
            scale, zero = (spread(levelled(c, s), n, group) for c, s in zip(levels, stats, strict=True))
            packed = [packing.pack(c.view(1, -1), level_bits)[0] for c in levels]
            plan = plans.two_level(packing.pack(codes, b), packed, stats, level_bits, b, group, n, rule)
            name = f"levels of {level_bits} bits, {b} bits, group {group}, rule {rule}"
            yield name, plan, scale * (codes.float() - zero)


def _sums(out: int, n: int, rule, g: torch.Generator):
    """Matrices of codes with outliers, and with whole columns."""
    from kernels import bits as packing
    from kernels import part
    from kernels.cpu import plans

    codes, scale = _whole(8, out, n, g=g), torch.rand(out, 1, generator=g).half()
    below = plans.grouped_int(packing.pack(codes, 3), scale, None, 3, -1, n, rule)
    for op in ("outliers", "columns"):
        for _, _, operands in part(op, "examples")(out, n, g):
            more = part(op, "reference")(torch.eye(n), *operands).T
            plan = plans.sum_of(below, plans.TILES[op](*operands, n, rule))
            yield f"sum with {op}, rule {rule}", plan, scale.float() * (codes.float() - 4) + more


def _outliers_and_shifts(out: int, n: int, g: torch.Generator):
    """Matrices of 8 bits under rules with a threshold, a fixed scale or a zero point."""
    from kernels import bits as packing
    from kernels.cpu import plans
    from kernels.grouped_int import groups_of, spread

    rules = [(TOKEN, 127, threshold, *more) for threshold in (0.0, 1.5) for more in ((0.02,), (0.0, True))]
    for numbers in (*rules, (TOKEN, 127, 1.5), (32, 127, 1.5)):
        rule = plans.Rule(*numbers)
        for group, symmetric in ((16, False), (-1, True)):
            codes, groups = _whole(256, out, n, g=g), groups_of(n, group)
            scale = torch.rand(out, groups, generator=g).half()
            zero = None if symmetric else _whole(256, out, groups, g=g)
            middle = 128 if zero is None else spread(zero.float(), n, group)
            weight = spread(scale.float(), n, group) * (codes.float() - middle)
            plan = plans.grouped_int(packing.pack(codes, 8), scale, zero, 8, group, n, rule)
            yield f"8 bits, group {group}, rule {numbers}", plan, weight
        values = torch.randn(out, generator=g).half()
        columns = torch.randint(0, n, (out,), generator=g).short()
        sparse = plans.outliers(values, columns, torch.arange(out + 1, dtype=torch.int32), n, rule)
        yield f"sum, 8 bits, rule {numbers}", plans.sum_of(plan, sparse), weight + sparse.matrix()
        half = torch.randn(out, n, generator=g).half()
        yield f"dense, rule {numbers}", plans.dense(half, rule), half.float()

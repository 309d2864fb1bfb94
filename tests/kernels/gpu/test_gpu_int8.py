"""Triton's products with rounded activations, and every format by its rules."""

from __future__ import annotations

import pytest
import torch

from kernels.bits import pack
from tests.kernels.gpu.on_card import (
    DEVICE,
    TOLERANCE,
    by_turns,
    half_of,
    on_device,
    product,
    scales,
    tokens_of,
)


def rounded(x, top):
    """x on its int8 grid, float64."""
    step = x.float().abs().amax(1, keepdim=True) / top
    return (x.float() / step).round().double() * step.double()


def rows_of_int8(out, n):
    """((codes, scales, zero points), weight float64 [out, n]) of symmetric 8 bits, a scale a row."""
    g = torch.Generator().manual_seed(n)
    q, scale = torch.randint(1, 256, (out, n), generator=g), scales(out, n, -1, g)
    return (pack(q.to(torch.uint8), 8), scale, torch.full((out, 1), 128, dtype=torch.uint8)), (
        q.double() - 128
    ) * scale.double()


@product
@pytest.mark.parametrize(
    "case",
    [
        (1, 64, 96, 127),
        (2, 33, 80, 7),
        (17, 5, 64, 127),
        (64, 70, 48, 127),
        (3, 50, 37, 127),
        (2, 5, 1500, 7),
    ],
)
def test_product_in_int8(case, poisoned):
    tokens, out, n, top = case
    operands, weight = rows_of_int8(out, n)
    from kernels.gpu.int8 import int8_product

    for dtype, tolerance in TOLERANCE.items():
        x = tokens_of(tokens, n).to(dtype)
        x[-1] = 0 if tokens > 2 else x[-1]
        expected = torch.nan_to_num(rounded(x, top)) @ weight.T
        y = int8_product(*on_device(x, *operands), -1, top)
        assert (
            y.dtype == dtype and (y.cpu().double() - expected).abs().max() <= tolerance * expected.abs().max()
        )


OUTLIERS = (  # (tokens, out, in, threshold)
    (1, 64, 96, 1.5),
    (2, 33, 80, 0.01),
    (17, 5, 64, 1.0),
    (70, 70, 48, 2.0),
    (3, 5, 1500, 2.0),
    (3, 20, 40, 9.0),
)


@product
@pytest.mark.parametrize(
    "case", by_turns([(*c, z) for c in OUTLIERS for z in (False, True)], lambda case: case[4])
)
def test_product_in_int8_with_large_inputs_exact(case, poisoned):
    from compression.packed.activations import ActivationRule

    tokens, out, n, threshold, zero_point = case
    operands, weight = rows_of_int8(out, n)
    from kernels.gpu.int8 import int8_product

    for dtype in half_of(case):
        tolerance, x = TOLERANCE[dtype], tokens_of(tokens, n).to(dtype)
        x[:, 3] = 8
        x[:, 5:9] = x[:, 5:9].abs() + 0.2 * threshold  # one side is larger
        assert (x.float().abs() >= threshold).any() or threshold == 9
        x[-1] = 0 if tokens > 2 else x[-1]
        large = x.float().abs() >= threshold
        calm = x.masked_fill(large, 0)
        rest = (
            ActivationRule(zero_point=True)(calm.double()).double()
            if zero_point
            else torch.nan_to_num(rounded(calm, 127))
        )
        expected = (rest + torch.where(large, x, 0).double()) @ weight.T
        y = int8_product(*on_device(x, *operands), -1, 127, threshold, zero_point)
        assert (
            y.dtype == dtype and (y.cpu().double() - expected).abs().max() <= tolerance * expected.abs().max()
        )


@product
@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("threshold", [None, 2.0])
def test_product_in_int8_of_what_is_not_finite_stays_so(threshold, zero_point):
    from kernels.gpu.int8 import int8_product

    operands = (
        torch.full((8, 16), 200, dtype=torch.uint8),
        torch.ones(8, 1).half(),
        torch.full((8, 1), 128, dtype=torch.uint8),
    )
    for bad in (float("nan"), float("inf")):
        x = torch.ones(3, 16)
        x[1, 5] = bad
        y = int8_product(*on_device(x, *operands), -1, 127, threshold, zero_point).cpu()
        assert not y[1].isfinite().any() and torch.allclose(y[[0, 2]], torch.full((2, 8), 16 * 72.0))


@product
def test_product_of_the_formats_by_their_rules(monkeypatch, pytestconfig):
    """Through the formats: the kernel's name is Triton's, the numbers are the rule's; what Triton doesn't do
    isn't called so. `make test` multiplies by each format's rules in turns, and by all of two."""
    from compression.packed.activations import ActivationRule
    from kernels import cpu
    from tests.compression.packed.test_packed import MADE

    monkeypatch.setattr(cpu, "library", lambda: None)
    ours = (
        "int8-row",
        "real3-g16",
        "two_level3",
        "sum-two_level",
        "sum-columns",
        "columns",
        "codebook-nested",
        "binary_coded-exact",
        "bitmask-int4",
        "two_four-int3",
        "dense",
        "low_rank",
    )
    others = tuple(name for name in MADE if "scattered" in name)
    rules = (
        ("", None),
        ("int8 activations", ActivationRule()),
        ("int8 activations, outliers exact", ActivationRule(threshold=1.5)),
    )
    shifted = (
        ("int8 activations, outliers exact", ActivationRule(threshold=1.5, zero_point=True)),
        ("int8 activations", ActivationRule(zero_point=True)),
    )
    for i, name in enumerate((*ours, *others)):
        whole = name in ("int8-row", "dense")
        for k, (words, rule) in enumerate(rules + shifted * whole):
            packed = MADE[name][0]().to(DEVICE)
            packed.activations = rule
            told = "(PyTorch)" if name in others else f"{words or 'exact activations'} (Triton)"
            assert packed.kernel.endswith(told), (name, packed.kernel)
            if not (whole or pytestconfig.getoption("--all")) and k != i % len(rules):
                continue
            x = tokens_of(3, packed.shape[1]).to(DEVICE)
            expected = (rule(x) if rule else x).double() @ packed.stored().double().T
            assert (packed.matmul(x) - expected).abs().max() <= 2e-5 * expected.abs().max(), (name, words)


@product
def test_product_in_int8_rounds_ties_to_even():
    from kernels.gpu.int8 import int8_product

    x = torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    codes, scale = pack((128 + torch.eye(8)).to(torch.uint8), 8), torch.ones(8, 1).half()
    y = int8_product(*on_device(x, codes, scale, torch.full((8, 1), 128, dtype=torch.uint8)), -1)
    assert y.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]
    with pytest.raises(ValueError, match="one group a row, got 2"):
        int8_product(
            *on_device(x, codes, torch.ones(8, 2).half(), torch.full((8, 2), 128, dtype=torch.uint8)), 4
        )

"""Every format: what it stands for, its exact bytes, its product, and that a file brings it back (D, E11, E14)."""

from __future__ import annotations

import io

import pytest
import torch
from safetensors.torch import load, save

from compression.packed import FORMATS, from_config
from compression.packed.base import ActivationRule
from compression.packed.bitmask import Bitmask
from compression.packed.dense import Dense
from compression.packed.grouped_int import GroupedInt
from compression.packed.low_rank import LowRank
from compression.packed.two_four import TwoFour
from compression.quantization.grids import fit
from kernels import cpu

OUT, IN = 19, 52  # odd on purpose: not a multiple of 8, the last group short


def weight(out=OUT, n=IN):
    return torch.randn(out, n, generator=torch.Generator().manual_seed(out + n))


def pruned_half(w):
    mask = w.abs() < w.abs().median()
    mask[3] = True  # a row of zeros
    return mask


def pruned_two_four(w):
    order = w.abs().view(-1, 4).argsort(1)
    return torch.zeros_like(w, dtype=torch.bool).view(-1, 4).scatter_(1, order[:, :2], True).view(w.shape)


def coded(base, bits):
    w = weight()
    grid = fit(w, bits, 16, False)
    return base(w).with_codes(grid.round(w), grid)


def grouped(bits, group, symmetric):
    w = weight()
    grid = fit(w, bits, group, symmetric)
    return GroupedInt.encode(grid.round(w), grid)


def bitmask(w):
    return Bitmask.encode(w, pruned_half(w))


def two_four(w):
    return TwoFour.encode(w, pruned_two_four(w))


GROUPS = -(-IN // 16)
KEPT = int((~pruned_half(weight())).sum())
MADE = {  # name -> (format, bytes by the formula)
    "dense": (lambda: Dense.encode(weight()), 2 * OUT * IN),
    **{f"int{b}-g16": (lambda b=b: grouped(b, 16, False), OUT * 7 * b + 2 * OUT * GROUPS + -(-OUT * GROUPS // 8) * b)
       for b in range(2, 9)},
    "int4-row": (lambda: grouped(4, -1, False), OUT * 28 + 2 * OUT + -(-OUT // 8) * 4),
    "int4-symmetric": (lambda: grouped(4, 16, True), OUT * 28 + 2 * OUT * GROUPS),
    "bitmask": (lambda: bitmask(weight()), OUT * 7 + 2 * KEPT + 4 * (OUT + 1)),
    "bitmask-int4": (lambda: coded(bitmask, 4),
                     OUT * 7 + -(-KEPT // 8) * 4 + 4 * (OUT + 1) + 2 * OUT * GROUPS + -(-OUT * GROUPS // 8) * 4),
    "two_four": (lambda: two_four(weight()), OUT * IN + OUT * -(-(IN // 2) // 8) * 2),
    "two_four-int3": (lambda: coded(two_four, 3),
                      OUT * 4 * 3 + OUT * 4 * 2 + 2 * OUT * GROUPS + -(-OUT * GROUPS // 8) * 3),
    "low_rank": (lambda: LowRank.encode(weight(OUT, 5), weight(5, IN)), 2 * 5 * (OUT + IN)),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_bytes_are_the_formula(name):
    make, expected = MADE[name]
    packed = make()
    assert packed.stored_bytes() == expected == sum(len(t.numpy().tobytes()) for t in packed.state_dict().values())
    assert packed.bits_per_weight() == 8 * expected / (packed.shape[0] * packed.shape[1])


@pytest.mark.parametrize("name", MADE)
def test_a_file_brings_it_back_bit_for_bit(name):
    packed = MADE[name][0]()
    packed.activations = ActivationRule(bits=8) if name == "int4-g16" else None
    data = save({k: v.contiguous() for k, v in packed.state_dict().items()})
    again = from_config(packed.full_config())
    again.load_state_dict(load(data), strict=True)
    assert type(again) is type(packed) and again.activations == packed.activations
    assert torch.equal(again.dequantize(), packed.dequantize()) and again.shape == packed.shape
    for key, tensor in packed.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor) and again.state_dict()[key].dtype == tensor.dtype
    assert io.BytesIO(data).getbuffer().nbytes - packed.stored_bytes() < 2_000  # a header, nothing else


@pytest.mark.parametrize("shape", [(1,), (3, 2), (17,)])
@pytest.mark.parametrize("name", MADE)
def test_product_is_the_dequantised_product(name, shape):
    packed = MADE[name][0]()
    x = torch.randn(*shape, packed.shape[1], generator=torch.Generator().manual_seed(1))
    expected = x.double() @ packed.dequantize().double().T
    found = packed.matmul(x)
    assert found.shape == (*shape, packed.shape[0]) and found.dtype == x.dtype
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert packed.kernel.endswith(("(PyTorch)", f"(C, {cpu.instructions()})"))


@pytest.mark.parametrize("name", MADE)
def test_the_activation_rule_comes_before_the_product(name):
    packed = MADE[name][0]()
    x = torch.randn(4, packed.shape[1], generator=torch.Generator().manual_seed(2))
    packed.activations = ActivationRule(bits=8)
    scale = x.abs().amax(-1, keepdim=True) / 127
    rounded = torch.round(x / scale) * scale
    assert torch.allclose(packed.matmul(x), rounded @ packed.dequantize().T, atol=1e-4)


def test_what_is_stored_is_what_was_given():
    w = weight()
    kept = bitmask(w)
    assert torch.equal(kept.mask(), pruned_half(w))
    assert torch.equal(kept.dequantize(), w.half().float() * ~pruned_half(w)), "kept weights are the originals in 16 bits"
    half = two_four(w)
    assert torch.equal(half.mask(), pruned_two_four(w)) and torch.equal(half.dequantize(), w.half().float() * ~pruned_two_four(w))
    assert torch.equal(coded(two_four, 4).mask(), pruned_two_four(w))
    assert bool((coded(bitmask, 4).dequantize()[pruned_half(w)] == 0).all())


def test_two_four_refuses_other_masks():
    with pytest.raises(ValueError, match="2:4"):
        TwoFour.encode(weight(), pruned_half(weight()))


@pytest.mark.parametrize("name", [n for n in MADE if n != "low_rank"])
def test_encode_like_keeps_mask_and_grid(name):
    packed = MADE[name][0]()
    again = packed.encode_like(packed.dequantize())
    assert torch.allclose(again.dequantize(), packed.dequantize(), atol=1e-6)
    assert again.stored_bytes() == packed.stored_bytes()


def test_rows_of_a_table_are_its_rows():
    packed = grouped(8, 16, True)
    ids = torch.tensor([3, 3, 0, 18])
    assert torch.equal(packed.rows(ids), packed.dequantize()[ids])


def test_every_format_is_tested():
    assert {make().format for make, _ in MADE.values()} == set(FORMATS)

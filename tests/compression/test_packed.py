"""Every format: what it stands for, its exact bytes, its product, and that a file brings it back (D, E11, E14)."""

from __future__ import annotations

import io

import pytest
import torch
from safetensors.torch import load, save

from compression.packed import FORMATS, from_config
from compression.packed.activations import ActivationRule
from compression.packed.binary_coded import BinaryCoded
from compression.packed.bitmask import Bitmask
from compression.packed.codebook import CodeBook
from compression.packed.dense import Dense
from compression.packed.grid import Grid
from compression.packed.grouped_int import GroupedInt
from compression.packed.low_rank import LowRank
from compression.packed.outliers import Outliers
from compression.packed.total import Sum
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


def binary_coded(bits, with_offset):
    g = torch.Generator().manual_seed(bits)
    signs, alpha = torch.rand(bits, OUT, IN, generator=g) > 0.5, torch.rand(bits, OUT, GROUPS, generator=g)
    return BinaryCoded.encode(signs, alpha, torch.randn(OUT, GROUPS, generator=g) if with_offset else None, 16)


def scattered():
    """Groups that are no runs: GPTQ's act-order."""
    index = torch.randperm(IN, generator=torch.Generator().manual_seed(0)).argsort() // 16
    grid = fit(weight(), 4, 16, False)
    grid = Grid.make(grid.shape, 4, 16, grid.scale.float(), grid.zero_points(), index)
    return GroupedInt.encode(grid.round(weight()), grid)


BOOK = torch.linspace(-1, 1, 16).square() * torch.linspace(-1, 1, 16).sign()
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
    "codebook": (lambda: CodeBook.encode(weight(), BOOK, 16), OUT * 28 + 2 * OUT * GROUPS + 4 * 16),
    "binary_coded": (lambda: binary_coded(2, True), 2 * OUT * 7 + 2 * 2 * OUT * GROUPS + 2 * OUT * GROUPS),
    "binary_coded-no-offset": (lambda: binary_coded(3, False), 3 * OUT * 7 + 3 * 2 * OUT * GROUPS),
    "outliers": (lambda: Outliers.encode(weight(), weight().abs() > 2), 4 * int((weight().abs() > 2).sum()) + 4 * (OUT + 1)),
    "sum": (lambda: Sum(grouped(3, 16, False), Outliers.encode(weight(), weight().abs() > 2)),
            OUT * 7 * 3 + 2 * OUT * GROUPS + -(-OUT * GROUPS // 8) * 3 + 4 * int((weight().abs() > 2).sum()) + 4 * (OUT + 1)),
    "int4-scattered": (lambda: scattered(), OUT * 28 + 2 * OUT * GROUPS + -(-OUT * GROUPS // 8) * 4 + 2 * IN),
}  # fmt: skip
RULES = {"exact": None, "int8 a token": ActivationRule(), "int8 for 32": ActivationRule(group=32), "4 bits": ActivationRule(4)}


@pytest.fixture(params=["C", "PyTorch"])
def served_by(request, monkeypatch):
    """Both routes of every product."""
    if request.param == "PyTorch":
        monkeypatch.setattr(cpu, "library", lambda: None)
    elif cpu.wait() is None:
        pytest.skip(cpu.status())
    return request.param


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


@pytest.mark.parametrize("shape", [(1,), (3, 2), (17,), (0,)])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MADE)
def test_product_is_the_dequantised_product_of_the_rounded_input(name, rule, shape, served_by):
    packed = MADE[name][0]()
    packed.activations = RULES[rule]
    x = torch.randn(*shape, packed.shape[1], generator=torch.Generator().manual_seed(1))
    found = packed.matmul(x)
    assert found.shape == (*shape, packed.shape[0]) and found.dtype == x.dtype
    expected = on_grid(x, RULES[rule]).double() @ packed.stored().double().T
    assert (found - expected).abs().amax() <= 2e-5 * expected.abs().amax() if expected.numel() else True
    refused = name == "int4-scattered" and rule == "int8 for 32"  # neighbours in its tiles are none in the input
    assert packed.kernel.endswith(f"(C, {cpu.instructions()})" if served_by == "C" and not refused else "(PyTorch)")


def on_grid(x, rule):
    """The rule by its definition, place by place."""
    if rule is None:
        return x
    out, top, step = x.clone(), 2 ** (rule.bits - 1) - 1, rule.group or x.shape[-1]
    for start in range(0, x.shape[-1], step):
        part = x[..., start : start + step]
        for at in [tuple(i) for i in torch.cartesian_prod(*map(torch.arange, x.shape[:-1])).view(-1, x.dim() - 1).tolist()]:
            scale = part[at].abs().max() / top
            out[(*at, slice(start, start + step))] = torch.round(part[at] / scale) * scale
    return out


@pytest.mark.parametrize("name", MADE)
def test_prepared_keeps_only_its_tiles(name):
    """What serves is still what was stored; saving says that it can't any more."""
    if cpu.wait() is None:
        pytest.skip(cpu.status())
    packed, plain = MADE[name][0](), MADE[name][0]()
    assert packed.prepare() and packed.prepared and packed.stored_bytes() == plain.stored_bytes()
    assert torch.allclose(packed.dequantize(), plain.stored(), rtol=1e-6, atol=1e-6)
    ids = torch.tensor([3, 3, 0, OUT - 1])
    assert torch.allclose(packed.rows(ids), plain.stored()[ids], rtol=1e-6, atol=1e-6)
    x = torch.randn(2, packed.shape[1])
    assert torch.equal(packed.matmul(x), plain.matmul(x))
    with pytest.raises(RuntimeError, match="load the model again"):
        packed.state_dict()


@pytest.mark.parametrize("name", MADE)
def test_a_gradient_reaches_the_input(name, served_by):
    packed = MADE[name][0]()
    x = torch.randn(3, packed.shape[1], requires_grad=True)
    packed.matmul(x).square().sum().backward()
    weight = packed.stored()
    assert torch.allclose(x.grad, 2 * (x.detach() @ weight.T) @ weight, rtol=1e-3, atol=1e-3 * float(x.grad.abs().max()))


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


@pytest.mark.parametrize("name", [n for n in MADE if n.split("-")[0] not in ("low_rank", "binary_coded", "outliers", "sum")])
def test_encode_like_keeps_mask_and_grid(name):
    packed = MADE[name][0]()
    again = packed.encode_like(packed.dequantize())
    assert torch.allclose(again.dequantize(), packed.dequantize(), atol=1e-6)
    assert again.stored_bytes() == packed.stored_bytes()


def test_rows_of_a_table_are_its_rows():
    packed = grouped(8, 16, True)
    ids = torch.tensor([3, 3, 0, 18])
    assert torch.allclose(packed.rows(ids), packed.dequantize()[ids], rtol=1e-6, atol=1e-7)


def test_every_format_is_tested():
    assert {make().format for make, _ in MADE.values()} == set(FORMATS)

"""Every format: what it stands for, its exact bytes, its product, and that a file brings it back (D, E11,
E14)."""

from __future__ import annotations

import io
import math

import pytest
import torch
from safetensors.torch import load, save

from compression.grids import fit
from compression.packed import FORMATS, from_config
from compression.packed.activations import ActivationRule
from compression.packed.affine_int import AffineInt
from compression.packed.binary_coded import BinaryCoded
from compression.packed.bitmask import Bitmask
from compression.packed.codebook import CodeBook
from compression.packed.columns import Columns
from compression.packed.dense import Dense
from compression.packed.grid import Grid
from compression.packed.grouped_int import GroupedInt
from compression.packed.low_rank import LowRank
from compression.packed.outliers import Outliers
from compression.packed.real_grid import RealGrid, TwoLevelGrid, second_level
from compression.packed.sum import Sum
from compression.packed.tensor_train import TensorTrain
from compression.packed.two_four import TwoFour
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


def binary_coded(bits, with_offset, exact=False):
    g = torch.Generator().manual_seed(bits)
    signs, alpha = torch.rand(bits, OUT, IN, generator=g) > 0.5, torch.rand(bits, OUT, GROUPS, generator=g)
    return BinaryCoded.encode(
        signs, alpha, torch.randn(OUT, GROUPS, generator=g) if with_offset else None, 16, exact
    )


def real(bits, group=16, level_bits=None, index=None, w=None):
    """Min-max grids with real zero points; level_bits: of the second level."""
    w = weight() if w is None else w
    size = w.shape[1] if group == -1 else group
    parts = w.split(size, 1)
    low, high = (torch.stack([f(part, 1) for part in parts], 1) for f in (torch.amin, torch.amax))
    scale = (high - low) / (2**bits - 1)
    more = {"group_index": index} if level_bits is None else {"group_index": index, "level_bits": level_bits}
    grid = (RealGrid if level_bits is None else TwoLevelGrid).make(
        w.shape, bits, group, scale, -low / scale, **more
    )
    return AffineInt.encode(grid.round(w), grid)


def some_columns(count=5):
    return Columns.encode(weight(), torch.randperm(IN, generator=torch.Generator().manual_seed(1))[:count])


def trains(modes, rank):
    """Chains of those sides, padded where they are longer than a row."""
    ranks = [1, *(min(rank, math.prod(modes[:k]), math.prod(modes[k:])) for k in range(1, len(modes))), 1]
    g = torch.Generator().manual_seed(rank)
    shapes = zip(ranks, modes, ranks[1:], strict=False)
    return TensorTrain.encode((OUT, IN), [0.6 * torch.randn(OUT, *shape, generator=g) for shape in shapes])


def scattered_index():
    """Groups that are no runs: GPTQ's act-order."""
    return torch.randperm(IN, generator=torch.Generator().manual_seed(0)).argsort() // 16


def scattered():
    index = scattered_index()
    grid = fit(weight(), 4, 16, False)
    grid = Grid.make(grid.shape, 4, 16, grid.scale.float(), grid.zero_points(), index)
    return GroupedInt.encode(grid.round(weight()), grid)


BOOK = torch.linspace(-1, 1, 16).square() * torch.linspace(-1, 1, 16).sign()
GROUPS = -(-IN // 16)
PAIRS = OUT * GROUPS  # of a scale and a zero point
LEVELS = 2 * 4 * -(-OUT // 16) * GROUPS  # bytes of a second level's own scales and zero points
KEPT = int((~pruned_half(weight())).sum())
MADE = {  # name -> (format, bytes by the formula)
    "dense": (lambda: Dense.encode(weight()), 2 * OUT * IN),
    **{
        f"int{b}-g16": (
            lambda b=b: grouped(b, 16, False),
            OUT * 7 * b + 2 * OUT * GROUPS + -(-OUT * GROUPS // 8) * b,
        )
        for b in range(2, 9)
    },
    "int4-row": (lambda: grouped(4, -1, False), OUT * 28 + 2 * OUT + -(-OUT // 8) * 4),
    "int4-symmetric": (lambda: grouped(4, 16, True), OUT * 28 + 2 * OUT * GROUPS),
    "bitmask": (lambda: bitmask(weight()), OUT * 7 + 2 * KEPT + 4 * (OUT + 1)),
    "bitmask-int4": (
        lambda: coded(bitmask, 4),
        OUT * 7 + -(-KEPT // 8) * 4 + 4 * (OUT + 1) + 2 * OUT * GROUPS + -(-OUT * GROUPS // 8) * 4,
    ),
    "two_four": (lambda: two_four(weight()), OUT * IN + OUT * -(-(IN // 2) // 8) * 2),
    "two_four-int3": (
        lambda: coded(two_four, 3),
        OUT * 4 * 3 + OUT * 4 * 2 + 2 * OUT * GROUPS + -(-OUT * GROUPS // 8) * 3,
    ),
    "low_rank": (lambda: LowRank.encode(weight(OUT, 5), weight(5, IN)), 2 * 5 * (OUT + IN)),
    "codebook": (lambda: CodeBook.encode(weight(), BOOK, 16), OUT * 28 + 2 * OUT * GROUPS + 4 * 16),
    "binary_coded": (lambda: binary_coded(2, True), 2 * OUT * 7 + 2 * 2 * OUT * GROUPS + 2 * OUT * GROUPS),
    "binary_coded-no-offset": (lambda: binary_coded(3, False), 3 * OUT * 7 + 3 * 2 * OUT * GROUPS),
    "outliers": (
        lambda: Outliers.encode(weight(), weight().abs() > 2),
        4 * int((weight().abs() > 2).sum()) + 4 * (OUT + 1),
    ),
    "sum": (
        lambda: Sum(grouped(3, 16, False), Outliers.encode(weight(), weight().abs() > 2)),
        OUT * 7 * 3
        + 2 * OUT * GROUPS
        + -(-OUT * GROUPS // 8) * 3
        + 4 * int((weight().abs() > 2).sum())
        + 4 * (OUT + 1),
    ),
    **{f"real{b}-g16": (lambda b=b: real(b), OUT * 7 * b + 4 * PAIRS) for b in range(2, 9)},
    "real4-row": (lambda: real(4, -1), OUT * 28 + 4 * OUT),
    "real3-scattered": (lambda: real(3, index=scattered_index()), OUT * 21 + 4 * PAIRS + 2 * IN),
    "two_level3": (lambda: real(3, level_bits=3), OUT * 21 + LEVELS + 2 * 3 * -(-PAIRS // 8)),
    "two_level4-l5": (lambda: real(4, 32, 5), OUT * 28 + LEVELS // 2 + 2 * 5 * -(-2 * OUT // 8)),
    "two_level8": (lambda: real(8, level_bits=8), OUT * 56 + LEVELS + 2 * 8 * -(-PAIRS // 8)),
    "two_level3-scattered": (
        lambda: real(3, level_bits=3, index=scattered_index()),
        OUT * 21 + LEVELS + 6 * -(-PAIRS // 8) + 2 * IN,
    ),
    "columns": (lambda: some_columns(), 2 * OUT * 5 + 4 * 5),
    "columns-none": (lambda: some_columns(0), 0),
    "sum-columns": (
        lambda: Sum(grouped(3, 16, False), some_columns()),
        OUT * 21 + 2 * PAIRS + 3 * -(-PAIRS // 8) + 2 * OUT * 5 + 4 * 5,
    ),
    "sum-two_level": (
        lambda: Sum(real(3, level_bits=3), Outliers.encode(weight(), weight().abs() > 2)),
        OUT * 21 + LEVELS + 6 * -(-PAIRS // 8) + 4 * int((weight().abs() > 2).sum()) + 4 * (OUT + 1),
    ),
    "sum-scattered": (
        lambda: Sum(scattered(), Outliers.encode(weight(), weight().abs() > 2)),
        OUT * 28
        + 2 * PAIRS
        + -(-PAIRS // 8) * 4
        + 2 * IN
        + 4 * int((weight().abs() > 2).sum())
        + 4 * (OUT + 1),
    ),
    "sum-columns-scattered": (
        lambda: Sum(real(3, index=scattered_index()), some_columns()),
        OUT * 21 + 4 * PAIRS + 2 * IN + 2 * OUT * 5 + 4 * 5,
    ),
    "tensor_train": (lambda: trains((4, 13), 3), 2 * OUT * (4 * 3 + 3 * 13)),
    "tensor_train-long": (lambda: trains((2, 2, 2, 2, 2, 2), 4), 2 * OUT * (4 + 16 + 32 + 32 + 16 + 4)),
    "tensor_train-one": (lambda: trains((2, 2, 13), 1), 2 * OUT * 17),
    "codebook-nested": (
        lambda: CodeBook.encode(weight(), BOOK, 16, nested=True),
        OUT * 28 + PAIRS + 4 * -(-PAIRS // 256) + 4 + 4 * 16,
    ),
    "binary_coded-exact": (lambda: binary_coded(3, True, True), 3 * OUT * 7 + 3 * 2 * PAIRS + 4 * PAIRS),
    "int8-row": (lambda: grouped(8, -1, True), OUT * 56 + 2 * OUT),
    "int4-scattered": (lambda: scattered(), OUT * 28 + 2 * OUT * GROUPS + -(-OUT * GROUPS // 8) * 4 + 2 * IN),
}
RULES = {
    "exact": None,
    "int8 a token": ActivationRule(),
    "int8 for 32": ActivationRule(group=32),
    "4 bits": ActivationRule(4),
    "outliers exact": ActivationRule(threshold=1.5),
}
IN_C_WITH_A_THRESHOLD = (
    "int8",
    "real8",
    "two_level8",
    "dense",
    "columns",
    "outliers",
    "low_rank",
    "tensor_train",
)  # and 16-bit sparse values


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
    assert (
        packed.stored_bytes()
        == expected
        == sum(len(t.numpy().tobytes()) for t in packed.state_dict().values())
    )
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
    refused = "scattered" in name and rule == "int8 for 32"  # neighbours in its tiles are none in the input
    refused |= (
        rule == "outliers exact"
        and not name.startswith(IN_C_WITH_A_THRESHOLD)
        and name not in ("bitmask", "two_four")
    )
    assert packed.kernel.endswith(
        f"(C, {cpu.instructions()})" if served_by == "C" and not refused else "(PyTorch)"
    )


def on_grid(x, rule):
    """The rule by its definition, place by place."""
    if rule is None:
        return x
    if rule.threshold is not None:
        exact = x.abs() >= rule.threshold
        assert exact.any() or not x.numel()
        return torch.where(exact, x, on_grid(torch.where(exact, 0, x), ActivationRule(rule.bits, rule.group)))
    out, top, step = x.clone(), 2 ** (rule.bits - 1) - 1, rule.group or x.shape[-1]
    for start in range(0, x.shape[-1], step):
        part = x[..., start : start + step]
        for at in [
            tuple(i)
            for i in torch.cartesian_prod(*map(torch.arange, x.shape[:-1])).view(-1, x.dim() - 1).tolist()
        ]:
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
    assert torch.allclose(
        x.grad, 2 * (x.detach() @ weight.T) @ weight, rtol=1e-3, atol=1e-3 * float(x.grad.abs().max())
    )


def test_what_is_stored_is_what_was_given():
    w = weight()
    kept = bitmask(w)
    assert torch.equal(kept.mask(), pruned_half(w))
    assert torch.equal(kept.dequantize(), w.half().float() * ~pruned_half(w)), (
        "kept weights are the originals in 16 bits"
    )
    half = two_four(w)
    assert torch.equal(half.mask(), pruned_two_four(w)) and torch.equal(
        half.dequantize(), w.half().float() * ~pruned_two_four(w)
    )
    assert torch.equal(coded(two_four, 4).mask(), pruned_two_four(w))
    assert bool((coded(bitmask, 4).dequantize()[pruned_half(w)] == 0).all())


def test_two_four_refuses_other_masks():
    with pytest.raises(ValueError, match="2:4"):
        TwoFour.encode(weight(), pruned_half(weight()))


NO_GRID = ("low_rank", "binary_coded", "outliers", "columns", "sum", "tensor_train")


@pytest.mark.parametrize("name", [n for n in MADE if n.split("-")[0] not in NO_GRID])
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


# --- real zero points and second levels ---


def test_real_zeros_round_after_the_zero_is_added():
    """w / scale + zero = 0.5 + 0.5: rounding first would give 0 + 0.5."""
    grid = RealGrid.make((1, 16), 2, 16, torch.tensor([[1.0]]), torch.tensor([[0.5]]))
    codes = grid.round(torch.tensor([[0.5, -0.5, 1.4, -9, 9] + [0.0] * 11]))
    assert codes[0, :5].tolist() == [1, 0, 2, 0, 3] and grid.decode(codes)[0, :5].tolist() == [
        0.5,
        -0.5,
        1.5,
        -0.5,
        2.5,
    ]


@pytest.mark.parametrize("out", [1, 16, 19, 48])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_second_level_is_its_definition(out, bits):
    """Runs of 16 rows of one group, min-max with a real zero, all in half precision; the last run is
    short."""
    g = torch.Generator().manual_seed(out)
    scale, zero = 0.01 + torch.rand(out, 3, generator=g), torch.randn(out, 3, generator=g)
    grid = TwoLevelGrid.make((out, 48), 3, 16, scale, zero, level_bits=bits)
    found = [t[:, ::16] for t in grid.columns()]
    for values, decoded in zip((scale, zero), found, strict=True):
        for first in range(0, out, 16):
            for group in range(3):
                run = values[first : first + 16, group].double()
                step = max(float(run.max() - run.min()) / (2**bits - 1), float(run.abs().max()) / 2048)
                s2 = float(torch.tensor(step).half())
                z2 = float(torch.tensor(-float(run.min()) / s2).half())
                expected = [s2 * (min(max(round(float(v) / s2 + z2), 0), 2**bits - 1) - z2) for v in run]
                error = (
                    (
                        decoded[first : first + 16, group].double()
                        - torch.tensor(expected, dtype=torch.float64)
                    )
                    .abs()
                    .max()
                )
                assert error <= 1e-6 * max(run.abs().max(), 1)
                assert (
                    decoded[first : first + 16, group] - run
                ).abs().max() <= 0.51 * step + run.abs().max() / 1024


def test_the_second_level_of_one_value_or_of_equal_ones_is_exact_to_eleven_bits():
    for values in (torch.tensor([[0.0123, 0.0, -3.0, 5e-5, 900.0]]), torch.full((19, 2), 0.0377)):
        codes, stats = second_level(values, 3)
        grid = TwoLevelGrid.make((len(values), 16 * values.shape[1]), 3, 16, values.abs(), values)
        assert stats.isfinite().all() and int(codes.max()) < 8
        found = grid.columns()[1][:, ::16]
        assert ((found - values).abs() <= values.abs() / 1024 + 1e-7).all()


# --- double quantization ---


def test_the_dynamic_map_is_its_definition():
    from kernels.grids import dynamic_map

    values = {0.0, 1.0}
    for i in range(7):
        edges = [0.1 + 0.9 * k / 2**i for k in range(2**i + 1)]
        middles = [10 ** (i - 6) * (a + b) / 2 for a, b in zip(edges[:-1], edges[1:], strict=True)]
        values |= set(middles) | {-m for m in middles}
    expected = torch.tensor(sorted(values), dtype=torch.float64)
    assert len(values) == 256 and torch.allclose(dynamic_map().double(), expected, rtol=1e-6)


def test_nested_scales_are_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    from kernels.grids import dynamic_map

    w = torch.randn(40, 640, generator=torch.Generator().manual_seed(0)) * (1 + torch.arange(40.0)[:, None])
    book = torch.linspace(-1, 1, 16)
    packed = CodeBook.encode(w, book, 64, nested=True)  # 400 scales: two blocks, one short
    absmax = w.view(-1, 64).abs().amax(1)
    offset = absmax.mean()
    codes, state = functional.quantize_blockwise(absmax - offset, blocksize=256, nested=False)
    assert torch.allclose(dynamic_map(), functional.create_dynamic_map(), rtol=1e-6)
    assert torch.equal(packed.scale.flatten(), codes.flatten()) and torch.allclose(
        packed.absmax, state.absmax
    )
    again = functional.dequantize_blockwise(codes, state) + offset
    assert torch.allclose(packed.scales().flatten(), again.flatten(), rtol=1e-5, atol=1e-6)
    assert abs(packed.bits_per_weight() - 4.127) < 0.03


def test_nested_scales_of_nothing_are_no_trouble():
    for w in (torch.zeros(3, 32), torch.cat([torch.zeros(1, 32), torch.randn(3, 32)])):
        assert CodeBook.encode(w, BOOK, 16, nested=True).dequantize()[0].abs().max() <= 0.02 * w.abs().max()


# --- exact conversions and columns ---


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_uniform_grid_becomes_binary_planes_without_an_error(bits, symmetric):
    """LUT-GEMM's eq. for uniform codes: alpha_k = scale 2^(k - 1), offset = scale ((2^bits - 1) / 2 -
    zero)."""
    source = grouped(bits, 16, symmetric)
    grid, codes = source.grid, source.grid.round(weight())
    scale, zero = grid.scale.float(), grid.zero_points().float()
    signs = torch.stack([codes >> k & 1 == 1 for k in range(bits)])
    alpha = torch.stack([scale * 2 ** (k - 1) for k in range(bits)])
    packed = BinaryCoded.encode(signs, alpha, scale * ((2**bits - 1) / 2 - zero), 16, exact_offset=True)
    assert torch.equal(packed.dequantize(), source.stored())
    halved = BinaryCoded.encode(signs, alpha, scale * ((2**bits - 1) / 2 - zero), 16)
    assert symmetric or not torch.equal(halved.dequantize(), source.stored()), (
        "16 bits don't hold every offset"
    )


def test_columns_are_the_originals_and_are_named_once():
    w, packed = weight(), some_columns()
    expected = torch.zeros_like(w)
    expected[:, packed.index.long()] = w[:, packed.index.long()].half().float()
    assert torch.equal(packed.dequantize(), expected)
    for index in ([1, 1], [0, IN], [-1]):
        with pytest.raises(ValueError, match="named once"):
            Columns.encode(w, torch.tensor(index))


# --- activations with a threshold ---


def test_large_activations_stay_and_leave_the_scale_to_the_others():
    x = torch.tensor([[0.5, -7.0, 1.27, 6.0], [0.1, 0.2, -0.3, 0.4]])
    found = ActivationRule(threshold=6.0)(x)
    assert found[0, [1, 3]].tolist() == [-7.0, 6.0] and torch.allclose(
        found[0, [0, 2]], torch.tensor([0.5, 1.27])
    )
    assert torch.equal(found[1], ActivationRule()(x)[1]), "no outlier: the rule without a threshold"
    assert torch.equal(ActivationRule(threshold=1e-9)(x), x)
    assert torch.equal(ActivationRule(threshold=1e9)(x), ActivationRule()(x))
    with pytest.raises(ValueError, match="above 0"):
        ActivationRule(threshold=0.0)


def test_the_threshold_is_saved_with_the_format():
    packed = grouped(8, -1, True)
    packed.activations = ActivationRule(threshold=6.0)
    assert from_config(packed.full_config()).activations == packed.activations

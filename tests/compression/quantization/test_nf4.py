"""NF4 and FP4: the tables by their definitions, the nearest value weight by weight, and bitsandbytes' own
numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import get
from compression.base import Site, Stats
from compression.grids import minmax_sym
from compression.packed.codebook import TABLES
from kernels.bits import unpack
from tests import oracles


def run(weight, **params):
    method = get("nf4")
    edit = method.compress(Site("a", "q", 0, 1, weight, None, None), Stats(0), method.params.parse(params))
    return edit.linears["a"]


def gaussian(out=64, n=256, seed=0):
    """Weights that half precision holds, so that a scale is the largest of them exactly."""
    return torch.randn(out, n, generator=torch.Generator().manual_seed(seed)).half().float()


def test_the_tables_are_their_definitions():
    assert np.allclose(TABLES["nf4"], oracles.codes.nf4_table(), atol=2e-7)
    # two exponent bits, one of mantissa, in bitsandbytes' order: the smallest two are no powers
    floats = [0.0, 0.0625]
    for exponent, mantissa in ((1, 1.0), (1, 1.5), (2, 1.0), (2, 1.5), (3, 1.0), (3, 1.5)):
        floats.append(2.0 ** (4 - exponent) * mantissa)
    assert np.allclose(sorted(TABLES["fp4"][:8]), np.array(sorted(floats)) / 12)
    assert [12 * v for v in TABLES["fp4"]] == pytest.approx(
        [0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3]
    )


@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_equals_the_oracle(table):
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))  # the last group is short
    found = run(weight, table=table, group_size=16).dequantize().numpy()
    expected = oracles.codes.code_book(weight.numpy().astype(np.float64), TABLES[table], 16)
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_what_stands_in_the_table_stays_and_a_tie_goes_to_the_lower_value(table):
    values = sorted(set(np.float32(TABLES[table])))
    middles = [(a + b) / 2 for a, b in zip(values, values[1:], strict=False)]
    # largest 1: scale 1
    row = torch.tensor(np.pad(np.float32([*values, *middles]), (0, 64 - 2 * len(values) + 1)))[None]
    found = run(row, table=table).dequantize()[0].tolist()
    assert found[: len(values)] == pytest.approx(values, abs=0)
    assert found[len(values) : 2 * len(values) - 1] == pytest.approx(values[:-1], abs=0)


def test_no_error_is_larger_than_half_the_widest_gap():
    weight = gaussian()
    for table, values in TABLES.items():
        gap = max(np.diff(sorted(values)))
        largest = weight.view(64, -1, 64).abs().amax(-1, keepdim=True)
        error = (run(weight, table=table).dequantize() - weight).abs().view(64, -1, 64)
        assert bool((error <= gap / 2 * largest * (1 + 1e-6)).all()) and bool(
            (error.amax(-1) > 0.3 * gap / 2 * largest[..., 0]).any()
        )


def test_on_a_bell_curve_nf4_beats_fp4_and_equally_spaced_marks():
    """The methods' review: .00846, .01488 and .01158 for blocks of 64."""
    weight = gaussian(1024, 512)
    blocks = weight.view(-1, 64)
    # largest |w| to code 7
    scale = minmax_sym(blocks.amin(1, True), blocks.amax(1, True), 4)[0].float() * 15 / 14
    rounded = (blocks / scale).round() * scale

    def mse(found):
        return float((found - weight).square().mean())

    nf4, fp4, int4 = (
        mse(run(weight).dequantize()),
        mse(run(weight, table="fp4").dequantize()),
        mse(rounded.view_as(weight)),
    )
    assert nf4 < 0.8 * int4 and nf4 < 0.6 * fp4
    assert (nf4, int4, fp4) == pytest.approx((0.00846, 0.01158, 0.01488), rel=0.02)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_equals_bitsandbytes(table, double):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = gaussian(48, 512, seed=7)
    theirs, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type=table, compress_statistics=double
    )
    expected = functional.dequantize_4bit(theirs, state)
    packed = run(weight, table=table, double=double)
    found = packed.dequantize()
    if double:
        assert torch.equal(packed.scale.flatten(), state.absmax.flatten())
        assert torch.allclose(packed.absmax, state.state2.absmax, rtol=1e-6) and float(
            packed.offset
        ) == float(state.offset)
        assert (found == expected).float().mean() > 0.999
    assert torch.allclose(found, expected, rtol=2e-6 if double else 1e-6, atol=1e-7 if double else 0)
    codes = unpack(packed.codes, 4, 512).flatten()
    bytes_ = theirs.flatten()
    other = torch.stack([bytes_ >> 4, bytes_ & 15], 1).flatten()
    differs = codes != other  # FP4 has two codes for 0
    assert torch.equal(codes[~(found.flatten() == 0)], other[~(found.flatten() == 0)]) and bool(
        (expected.flatten()[differs] == 0).all()
    )


@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_double_quantization_is_the_oracles(table):
    """Codes are chosen for the scales as they are, scales become codes after that: 340 groups, the second run
    of 256 is short."""
    weight = torch.randn(34, 160, generator=torch.Generator().manual_seed(11))
    packed = run(weight, table=table, group_size=16, double=True)
    places, codes, scales = oracles.codes.double_quantized(
        weight.numpy().astype(np.float64), TABLES[table], 16
    )
    values = np.array(TABLES[table])
    # FP4 has two codes for 0
    assert np.array_equal(values[unpack(packed.codes, 4, 160).numpy()], values[places])
    assert np.array_equal(packed.scale.flatten().numpy(), codes)
    assert np.allclose(packed.scales().flatten().numpy(), scales, atol=1e-6)
    assert np.allclose(
        packed.dequantize().numpy(), values[places] * scales.repeat(16).reshape(34, 160), atol=1e-6
    )


def test_bits_a_weight():
    weight = gaussian(256, 1024)
    table = 64 * 8 / weight.numel()
    assert run(weight).bits_per_weight() == pytest.approx(4.25 + table, abs=1e-9)
    offset = 32 / weight.numel()
    assert run(weight, double=True).bits_per_weight() == pytest.approx(
        4 + 8 / 64 + 32 / (64 * 256) + table + offset, abs=1e-9
    )
    assert abs(4 + 8 / 64 + 32 / (64 * 256) - 4.127) < 5e-4


def test_a_row_of_zeros_and_a_whole_row_as_one_group():
    weight = gaussian(4, 48)
    weight[1] = 0
    for params in ({"group_size": -1}, {"group_size": 16, "double": True}):
        found = run(weight, **params).dequantize()
        assert bool(torch.isfinite(found).all()) and bool((found[1].abs() < 0.05).all())
        assert (found[0] - weight[0]).norm() < 0.2 * weight[0].norm()

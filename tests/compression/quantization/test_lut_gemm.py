"""LUT-GEMM: uniform grids convert exactly, the look-up table multiplies right, the fit is the papers'
(E10)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import calibrate, get
from compression.base import BadChain, Site, Stats
from compression.grids import fit as fit_grid
from compression.packed.activations import ActivationRule
from compression.packed.grid import Grid
from compression.packed.grouped_int import GroupedInt
from compression.quantization.lut_gemm import LutGemmParams, alternate, combinations, fit, greedy, uniform
from kernels import cpu
from kernels.bits import unpack
from tests import oracles, tiny

ABOVE = 1 + 1e-9


def run(weight, previous=None, **params):
    method = get("lut_gemm")
    weight = weight if previous is None else previous.dequantize()
    edit = method.compress(
        Site("a", "q", 0, 1, weight, None, previous), Stats(0), method.params.parse(params)
    )
    return edit.linears["a"]


def normal(out=12, n=80, seed=0):
    return torch.randn(out, n, generator=torch.Generator().manual_seed(seed))


def rounded(weight, bits, group_size=16, symmetric=False):
    grid = fit_grid(weight, bits, group_size, symmetric)
    return GroupedInt.encode(grid.round(weight), grid)


def signs_of(packed):
    """[q, out, in] of -1 and +1."""
    bits = np.unpackbits(packed.planes.numpy(), axis=2, bitorder="little")[:, :, : packed.shape[1]]
    return 2.0 * bits - 1


# --- a uniform grid ---


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [16, -1])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_uniform_grid_converts_bit_for_bit(bits, group_size, symmetric):
    previous = rounded(normal(9, 52), bits, group_size, symmetric)  # a short last group
    packed = run(None, previous)
    assert packed.format == "binary_coded" and torch.equal(packed.stored(), previous.stored())
    assert (
        len(packed.planes) == bits
        and packed.offset.dtype == torch.float32
        and packed.group_size == group_size
    )


def test_the_conversion_is_the_papers():
    previous = rounded(normal(1, 16), 3)
    packed = run(None, previous)
    codes = unpack(previous.codes, 3, 16).numpy()
    grid = previous.grid
    signs, alpha, offset = oracles.codes.uniform_planes(
        codes, float(grid.scale[0, 0]), int(grid.zero_points()[0, 0]), 3
    )
    assert np.array_equal(signs_of(packed), signs) and np.array_equal(packed.alpha.numpy()[:, 0, 0], alpha)
    assert float(packed.offset[0, 0]) == offset


def test_the_fit_is_not_used_on_integers():
    """Bits and groups are the earlier step's, whatever the knobs say."""
    previous = rounded(normal(), 4)
    packed = run(None, previous, bits=2, group_size=64, rounds=3)
    assert torch.equal(packed.stored(), previous.stored()) and len(packed.planes) == 4


def test_what_can_not_be_converted_is_refused_with_the_reason():
    scattered = rounded(normal(12, 64), 4)
    index = torch.arange(64) % 4
    grid = Grid.make(
        scattered.grid.shape, 4, 16, scattered.grid.scale.float(), scattered.grid.zero_points(), index
    )
    with pytest.raises(BadChain, match="static_groups"):
        run(None, GroupedInt(scattered.codes, grid))
    integers = rounded(normal(), 8)
    integers.activations = ActivationRule(bits=8)
    with pytest.raises(BadChain, match="weights only"):
        run(None, integers)
    tiny_scales = rounded(3e-4 * normal(), 4)  # an odd last bit below 2^-13 has no half in 16 bits
    with pytest.raises(BadChain, match="halved"):
        run(None, tiny_scales)


def test_chains_over_a_model_are_exact_or_refused():
    def recipe(*steps):
        return tuple((get(n), get(n).params.parse(p)) for n, p in steps)

    plain, converted = tiny.bundle("llama"), tiny.bundle("llama")
    first = ("rtn", {"bits": 4, "group_size": 16})
    calibrate.compress(plain, recipe(first), None)
    calibrate.compress(converted, recipe(first, ("lut_gemm", {})), None)
    for path, module in plain.module.named_modules():
        if hasattr(module, "packed"):
            assert torch.equal(converted.module.get_submodule(path).packed.stored(), module.packed.stored())
    expected, found = (tiny.logits(b, tiny.ids(4)) for b in (plain, converted))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    for name, params in (
        ("wanda", {"sparsity": 0.5}),
        ("nf4", {"group_size": 16}),
        ("svd", {"removed": 0.2}),
    ):
        with pytest.raises(BadChain, match="lut_gemm can't follow"):
            calibrate.compress(tiny.bundle("llama"), recipe((name, params), ("lut_gemm", {})), tiny.ids(4))


# --- the look-up ---


def test_the_table_holds_every_signed_sum_and_is_antisymmetric():
    x = np.random.default_rng(0).standard_normal(8)
    table = oracles.codes.look_up_table(x)
    keys = np.arange(256)
    expected = [sum(v if key >> t & 1 else -v for t, v in enumerate(x)) for key in keys]
    assert np.allclose(table, expected, atol=1e-12) and np.allclose(table + table[255 - keys], 0, atol=1e-12)


@pytest.mark.parametrize("served", ["C, added", "C, looked up", "PyTorch"])
@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("converted", [False, True])
def test_looking_up_is_multiplying(bits, converted, served, monkeypatch):
    if served == "PyTorch":
        monkeypatch.setattr(cpu, "library", lambda: None)
    elif cpu.wait() is None:
        pytest.skip(cpu.status())
    else:
        monkeypatch.setattr(cpu, "look_up_pays", lambda: served == "C, looked up")
    weight = normal(5, 52, seed=bits)
    packed = run(None, rounded(weight, max(bits, 2))) if converted else run(weight, bits=bits, group_size=16)
    x = normal(1, 52, seed=9)
    alpha, offset = packed.alpha.numpy().astype(np.float64), packed.offset.numpy().astype(np.float64)
    expected = oracles.codes.look_up_product(x[0].numpy(), signs_of(packed), alpha, offset, 16)

    def wide(scales):
        return np.repeat(scales, 16, -1)[..., :52]

    weight = (signs_of(packed) * wide(alpha)).sum(0) + wide(offset)
    assert np.allclose(weight @ x[0].numpy().astype(np.float64), expected, rtol=1e-12, atol=1e-12)
    assert np.allclose(packed.stored().numpy(), weight, rtol=1e-6, atol=0 if converted else 1e-6)
    assert np.allclose(packed.matmul(x)[0].numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert packed.kernel.startswith(
        {
            "C, added": "binary-coded planes, exact activations (C,",
            "PyTorch": "dequantise",
            "C, looked up": "binary-coded planes, sums looked up, exact activations (C,",
        }[served]
    )


# --- the fit ---


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("offset", [False, True])
def test_greedy_and_alternating_equal_the_oracle(bits, offset):
    """Two groups, round by round, from both starts."""
    groups = (normal(2, 32, seed=bits) + 0.3).double()
    weights, signs = groups.sort(1).values, combinations(bits, offset, groups)
    starts = [torch.nn.functional.pad(greedy(groups, bits), (0, int(offset)))] + (
        [uniform(groups, bits)] if offset else []
    )
    assert np.allclose(
        greedy(groups, bits).numpy(),
        [oracles.codes.greedy_planes(g, bits) for g in groups.numpy()],
        rtol=1e-12,
    )
    for start in starts:
        errors = torch.stack([alternate(weights, start, signs, k)[1] for k in range(6)], 1)
        scales = alternate(weights, start, signs, 5)[0]
        for i, group in enumerate(groups.numpy()):
            first = start[i].tolist()
            alpha, constant, history = oracles.codes.binary_codes(
                group, first[:bits], first[bits] if offset else None, rounds=5
            )
            assert np.allclose(errors[i], history, rtol=1e-8)
            assert np.allclose(sorted(scales[i, :bits].abs().tolist(), reverse=True), alpha, rtol=1e-6)
            assert not offset or float(scales[i, bits]) == pytest.approx(constant, abs=1e-7)


@pytest.mark.parametrize("offset", [False, True])
def test_the_error_never_rises_with_rounds_or_planes(offset):
    groups = normal(200, 128).double()
    weights, last = groups.sort(1).values, np.inf
    for bits in range(1, 6):
        signs = combinations(bits, offset, groups)
        start = torch.nn.functional.pad(greedy(groups, bits), (0, int(offset)))
        errors = torch.stack([alternate(weights, start, signs, k)[1] for k in range(16)], 1)
        assert bool((errors[:, 1:] <= errors[:, :-1] * ABOVE).all())
        total = float((run(groups.float(), bits=bits, offset=offset).dequantize() - groups).square().sum())
        assert total < 0.6 * last
        assert total < float(errors[:, 15].sum()) * 1.001  # scales in 16 bits
        assert offset or total == pytest.approx(float(errors[:, 15].sum()), rel=1e-3)
        last = total


@pytest.mark.parametrize("bits", range(1, 9))
def test_never_worse_than_rounding(bits):
    weight = normal(32, 256, seed=bits) + 0.5 * normal(32, 1, seed=2)  # skewed groups
    found = run(weight, bits=bits, group_size=64).dequantize()
    grid = fit_grid(weight, bits, 64, False)
    plain = grid.decode(grid.round(weight))

    def per_group(w):
        return (w - weight).square().view(32, -1, 64).sum(-1)

    assert bool((per_group(found) <= 1.001 * per_group(plain)).all())
    assert per_group(found).sum() < 0.9 * per_group(plain).sum()


def test_on_a_bell_curve_as_the_review_found():
    """Plain binary coding, groups of 128, 15 rounds: .114 at 2 bits, .035 at 3, .0108 at 4."""
    weight = normal(256, 1024)
    for bits, expected in ((2, 0.114), (3, 0.035), (4, 0.0108)):
        plain = (run(weight, bits=bits, offset=False).dequantize() - weight).square().mean()
        assert float(plain) == pytest.approx(expected, rel=0.03)
        assert (run(weight, bits=bits).dequantize() - weight).square().mean() < plain


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_greedy_fit_has_the_papers_scales_and_the_nearest_codes(bits):
    """Equation 2 plane after plane; its own signs are never nearer, and the alternating fit is nearer than
    both."""
    weight = normal(6, 64, seed=bits)
    found, better = (
        run(weight, bits=bits, group_size=32, offset=False, fit=fit) for fit in ("greedy", "alternating")
    )
    for o, j in np.ndindex(6, 2):
        group = weight[o, 32 * j : 32 * j + 32].double().numpy()
        alpha = oracles.codes.greedy_planes(group, bits)
        assert np.allclose(found.alpha[:, o, j].numpy(), sorted(alpha, reverse=True), rtol=1e-3)
        rest = group.copy()
        for a in alpha:
            rest -= a * np.where(rest < 0, -1.0, 1.0)
        left = [
            ((p.dequantize()[o, 32 * j : 32 * j + 32].double().numpy() - group) ** 2).sum()
            for p in (found, better)
        ]
        assert left[1] <= left[0] * 1.001 and left[0] <= (rest**2).sum() * 1.001


def test_one_plane_without_an_offset_is_the_mean_and_the_sign():
    weight = normal()
    weight[:, ::7] = 0
    packed = run(weight, bits=1, group_size=16, offset=False)
    mean = weight.view(12, 5, 16).abs().mean(-1)
    assert torch.allclose(packed.alpha[0].float(), mean, rtol=1e-3) and packed.offset is None
    assert np.array_equal(signs_of(packed)[0], np.where(weight.numpy() < 0, -1.0, 1.0)), "sign(0) is +1"


def test_groups_with_nothing_to_fit():
    weight = torch.zeros(3, 48)
    weight[1], weight[2, ::2] = 0.75, 2.0  # zeros, one value, two values
    found = run(weight, bits=3, group_size=16).dequantize()
    assert bool(torch.isfinite(found).all()) and (found - weight).abs().amax() < 2e-3


def test_codes_are_the_nearest_for_the_scales_as_stored():
    groups = normal(20, 64)
    codes, alpha, offset = fit(groups, LutGemmParams(bits=3))
    levels = torch.cat([alpha, offset[:, None]], 1).double() @ combinations(3, True, groups.double()).T
    nearest = (groups.double()[:, :, None] - levels[:, None, :]).abs().amin(2)
    assert torch.allclose((groups.double() - levels.gather(1, codes.long())).abs(), nearest, atol=1e-12)


def test_bits_a_weight():
    weight = normal(32, 256)
    assert run(weight).bits_per_weight() == 3 + 4 * 16 / 128
    assert run(weight, offset=False).bits_per_weight() == 3 + 3 * 16 / 128
    converted = run(None, rounded(weight, 4, 64))
    promised = get("lut_gemm").converted_cost((32, 256), LutGemmParams(bits=4, group_size=64), 0)
    assert (
        converted.bits_per_weight() == 4 + (4 * 16 + 32) / 64 and converted.stored_bytes() == promised.bytes
    )

"""The Triton kernels: their products by Triton's interpreter, their compilation for cards that nobody here has, and their
products on a card where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from kernels import bench_gpu, binary_coded, codebook, columns, dense, gpu, grouped_int, low_rank, outliers, sparse
from kernels.bits import pack, unpack

ROOT = Path(__file__).parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}  # tolerance, relative to y's largest entry
TOLERANCE = {torch.float32: 1e-5} | HALF

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton isn't installed")
product = pytest.mark.skipif(
    not INTERPRETED and not (torch.cuda.is_available() and importlib.util.find_spec("triton")),
    reason="no card here; test_every_product_through_the_interpreter runs it in a process of its own",
)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """What two processes of their own say, run side by side: the tests below marked `product`, where Triton interprets (it must
    be told before it is imported), and the table of what was compiled, where it doesn't."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    clean |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "CUDA_VISIBLE_DEVICES": ""}
    tests = ["-m", "pytest", "-x", "-p", "no:cacheprovider", __file__, "-k", "product and not every"]
    started = {
        name: subprocess.Popen([sys.executable, *command], cwd=ROOT, env=clean | more, text=True, stdout=PIPE, stderr=PIPE)
        for name, command, more in (
            ("interpreted", tests, {"TRITON_INTERPRET": "1"}),
            ("compiled", ["-m", "kernels.gpu", "--json"], {}),
        )
    }
    told = {name: process.communicate() for name, process in started.items()}
    return {name: (process.returncode, *told[name]) for name, process in started.items()}


@needs_triton
def test_every_product_through_the_interpreter(apart):
    code, out, error = apart["interpreted"]
    assert code == 0, out[-4000:] + error[-2000:]


@needs_triton
def test_every_variant_compiles_without_spilling(apart):
    code, out, error = apart["compiled"]
    assert code == 0, error[-4000:]
    table = json.loads(out)
    assert {line["kernel"].split(".")[0] for line in table} == set(gpu.OPS)
    assert {line["target"] for line in table} == {"sm_80", "sm_90", "sm_120"}
    assert not (spilling := [line for line in table if line["spilled_bytes"]]), spilling
    tiled = [line for line in table if ".many" in line["kernel"] or ".product" in line["kernel"]]
    assert not (slow := [line for line in tiled if line["tensor_cores"] == "none" and "fp32" not in line["kernel"]]), slow


def test_importing_the_package_imports_no_triton():
    code = "import sys, kernels.gpu; assert not {'triton', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_file_is_listed():
    shared = {"__init__", "__main__", "decode", "sparse_cores"}
    assert {file.stem for file in Path(gpu.__file__).parent.glob("*.py")} - shared == set(gpu.OPS)


def test_it_serves_cards_and_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not gpu.serves(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.serves(torch.zeros(1))


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that was never written holds NaN (99 as an integer)."""
    real = torch.empty

    def empty(*size, **options):
        fresh = real(*size, **options)
        return fresh.fill_(float("nan") if fresh.is_floating_point() else 99)

    monkeypatch.setattr(torch, "empty", empty)


@pytest.fixture
def small_tiles(monkeypatch):
    """A word or a few at a time, so that small matrices take several turns of the loops (and the interpreter fewer programs)."""
    from kernels.gpu import binary_coded, codebook, decode, grouped_int

    for module in (binary_coded, codebook, grouped_int):
        monkeypatch.setattr(module, "few_tiles", lambda tokens: decode.few_tiles(tokens) | {"BN": 32, "BW": 8})
    monkeypatch.setattr(binary_coded, "FEW_ROWS", {})


def on_device(*operands):
    return tuple(o.to(DEVICE) if isinstance(o, torch.Tensor) else o for o in operands)


def check(op, x, weight, *operands, dtypes=tuple(TOLERANCE), tiled=False):
    """op(x, ...) is x W^T for every dtype of x, W [out, in] in float64."""
    for dtype in dtypes:
        if tiled and INTERPRETED and dtype == torch.bfloat16 and len(x) > 8:
            continue  # the interpreter's tl.dot multiplies the bit patterns of bfloat16
        given = x.to(dtype)
        expected = given.double() @ weight.T
        y = op(*on_device(given, *operands))
        assert y.shape == expected.shape and y.dtype == dtype
        if y.numel():
            assert (y.cpu().double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max(), (dtype, x.shape)


def half_of(case):
    """float32 and one of the 16-bit types: bfloat16 for every third case (the interpreter is slow)."""
    return torch.float32, torch.bfloat16 if hash(case) % 3 == 0 else torch.float16


def scales(out, n, group, g):
    return (0.01 + torch.rand(out, grouped_int.groups_of(n, group), generator=g)).half()


def grid(out, n, bits, group, seed=0):
    """The operands of a matrix of grouped integers, and the matrix."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**bits, (out, n), generator=g).to(torch.uint8)
    scale = scales(out, n, group, g)
    zero = torch.randint(0, 2**bits, scale.shape, generator=g).to(torch.uint8)
    spread = [grouped_int.spread(t.double(), n, group) for t in (scale, zero)]
    return (pack(q, bits), scale, zero, bits, group), spread[0] * (q.double() - spread[1])


def tokens_of(tokens, n, seed=1):
    return torch.randn(tokens, n, generator=torch.Generator().manual_seed(seed))


WIDE = tuple(
    (tokens, 9, 1100, bits, group) for tokens, bits, group in ((1, 4, 64), (4, 3, 128), (8, 8, -1), (9, 2, 32), (16, 6, 48))
)
SEVEN = ((1, 33, 80, 6, 32), (17, 33, 80, 7, 32), (5, 9, 45, 7, 16))


@product
@pytest.mark.parametrize("case", grouped_int.CASES + SEVEN)
def test_product_of_grouped_int(case, poisoned, small_tiles):
    tokens, out, n, bits, group = case
    operands, weight = grid(out, n, bits, group)
    from kernels.gpu.grouped_int import grouped_int as op

    check(op, tokens_of(tokens, n), weight, *operands, dtypes=half_of(case), tiled=True)


@product
@pytest.mark.parametrize("case", WIDE)
def test_product_of_grouped_int_as_it_is_tiled_for_use(case, poisoned):
    tokens, out, n, bits, group = case
    operands, weight = grid(out, n, bits, group)
    from kernels.gpu.grouped_int import grouped_int as op

    check(op, tokens_of(tokens, n), weight, *operands, tiled=True)


REAL = (*(case for case in grouped_int.CASES if case[3] in (3, 8)), (9, 17, 1100, 4, 48))


@product
@pytest.mark.parametrize("case", REAL)
def test_product_of_grouped_int_with_real_zeros(case, poisoned, small_tiles):
    tokens, out, n, bits, group = case
    (codes, scale, _, *rest), _ = grid(out, n, bits, group)
    zero = (2**bits * torch.rand(scale.shape, generator=torch.Generator().manual_seed(1))).half()
    spread = [grouped_int.spread(t.double(), n, group) for t in (scale, zero)]
    from kernels.gpu.grouped_int import grouped_int as op

    weight = spread[0] * (unpack(codes, bits, n).double() - spread[1])
    check(op, tokens_of(tokens, n), weight, codes, scale, zero, *rest, dtypes=half_of(case), tiled=True)


@product
@pytest.mark.parametrize(
    "case, level_bits", [*((case, 3) for case in REAL), *((case, bits) for case in REAL[-4:] for bits in (4, 5))]
)
def test_product_of_two_levels(case, level_bits, poisoned, small_tiles):
    """Runs of 16 rows share a grid for their scales and one for their zero points; the last run is short."""
    tokens, out, n, bits, group = case
    (codes, scale, *_), _ = grid(out, n, bits, group)
    g, groups, found, levels, stats = torch.Generator().manual_seed(level_bits), scale.shape[1], [], [], []
    for _ in range(2):
        level = torch.randint(0, 2**level_bits, (out, groups), generator=g).to(torch.uint8)
        stat = torch.rand(-(-out // 16), groups, 2, generator=g).div(16).half()
        step, base = stat.double()[torch.arange(out) // 16].unbind(-1)
        found.append(step * (level.double() - base))
        levels.append(pack(level.view(1, -1), level_bits)[0])
        stats.append(stat)
    spread = [grouped_int.spread(t, n, group) for t in found]
    from kernels.gpu.grouped_int import two_level_int as op

    def called(x, codes, *rest):
        return op(x, codes, rest[:2], rest[2:4], *rest[4:])

    weight = spread[0] * (unpack(codes, bits, n).double() - spread[1])
    operands = (codes, *levels, *stats, level_bits, bits, group)
    check(called, tokens_of(tokens, n), weight, *operands, dtypes=half_of(case), tiled=True)


@product
def test_product_of_what_is_not_contiguous_or_empty(poisoned):
    from kernels.gpu.grouped_int import grouped_int as op

    (codes, scale, zero, bits, group), weight = grid(24, 40, 4, 16)
    for tokens in (0, 3, 9):
        x = tokens_of(40, tokens).T
        check(op, x, weight, codes, scale, zero, bits, group, dtypes=(torch.float32,))
        check(op, x, weight[8:], codes[8:], scale[8:], zero[8:], bits, group, dtypes=(torch.float32,))
        check(op, x, weight[:0], codes[:0], scale[:0], zero[:0], bits, group, dtypes=(torch.float32,))


@product
@pytest.mark.parametrize("case", (*codebook.CASES, (8, 9, 1100, 64)))
def test_product_of_codebook(case, poisoned, small_tiles):
    tokens, out, n, group = case
    g = torch.Generator().manual_seed(out)
    q, table = torch.randint(0, 16, (out, n), generator=g), torch.randn(16, generator=g)
    scale = scales(out, n, group, g)
    weight = table.double()[q] * grouped_int.spread(scale.double(), n, group)
    from kernels.gpu.codebook import codebook as op

    check(op, tokens_of(tokens, n), weight, pack(q.to(torch.uint8), 4), scale, table, group, dtypes=half_of(case), tiled=True)


@product
@pytest.mark.parametrize("case", (*codebook.CASES, (8, 9, 1100, 64)))
def test_product_of_codebook_with_nested_scales(case, poisoned, small_tiles):
    tokens, out, n, group = case
    g = torch.Generator().manual_seed(out)
    q, table = torch.randint(0, 16, (out, n), generator=g), torch.randn(16, generator=g)
    nested = torch.randint(0, 256, (out, grouped_int.groups_of(n, group)), generator=g).to(torch.uint8)
    absmax, offset = torch.rand(-(-nested.numel() // 256), generator=g), torch.rand(1, generator=g)
    flat = torch.stack([codebook.dynamic_map()[int(k)] * absmax[i // 256] + offset[0] for i, k in enumerate(nested.flatten())])
    weight = table.double()[q] * grouped_int.spread(flat.view(nested.shape).double(), n, group)
    from kernels.gpu.codebook import codebook as op

    operands = (pack(q.to(torch.uint8), 4), nested, table, group, absmax, offset)
    check(op, tokens_of(tokens, n), weight, *operands, dtypes=half_of(case), tiled=True)


@product
@pytest.mark.parametrize("case", binary_coded.CASES)
def test_product_of_binary_coded(case, poisoned, small_tiles):
    tokens, out, n, bits, group = case
    has_offset = (tokens + bits) % 2 == 0
    g = torch.Generator().manual_seed(out + bits)
    b = torch.rand(bits, out, n, generator=g) > 0.5
    alpha = torch.stack([scales(out, n, group, g) for _ in range(bits)])
    offset = scales(out, n, group, g).to(torch.float32 if tokens % 2 else torch.float16) if has_offset else None
    weight = sum(grouped_int.spread(a.double(), n, group) * (2 * plane.double() - 1) for a, plane in zip(alpha, b, strict=True))
    if has_offset:
        weight = weight + grouped_int.spread(offset.double(), n, group)
    from kernels.gpu.binary_coded import binary_coded as op

    planes = torch.stack([sparse.mask_bits(plane) for plane in b])
    check(op, tokens_of(tokens, n), weight, planes, alpha, offset, group, dtypes=half_of(case), tiled=True)


@product
def test_product_of_binary_coded_as_it_is_tiled_for_use(poisoned):
    out, n = 5, 1100
    b, alpha = torch.rand(3, out, n, generator=torch.Generator().manual_seed(0)) > 0.5, torch.rand(3, out, 18).half()
    weight = sum(grouped_int.spread(a.double(), n, 64) * (2 * plane.double() - 1) for a, plane in zip(alpha, b, strict=True))
    from kernels.gpu.binary_coded import binary_coded as op

    check(op, tokens_of(2, n), weight, torch.stack([sparse.mask_bits(plane) for plane in b]), alpha, None, 64)


@product
@pytest.mark.parametrize("case", dense.CASES)
def test_product_of_dense(case, poisoned):
    tokens, out, n = case
    weight = torch.randn(out, n, generator=torch.Generator().manual_seed(n)).half()
    from kernels.gpu.dense import dense as op

    check(op, tokens_of(tokens, n), weight.double(), weight)
    if tokens > 1:  # a view with another stride
        x = tokens_of(tokens, 2 * n)[:, ::2]
        check(op, x, weight.double(), weight, dtypes=(torch.float32,))


@product
@pytest.mark.parametrize("case", low_rank.CASES)
def test_product_of_low_rank(case, poisoned):
    tokens, out, n, rank = case
    g = torch.Generator().manual_seed(rank)
    u, v = torch.randn(out, rank, generator=g).half(), torch.randn(rank, n, generator=g).half()
    from kernels.gpu.dense import low_rank as op

    check(op, tokens_of(tokens, n), u.double() @ v.double(), u, v)


SPARSE = (*sparse.CASES, (2, 9, 1100), (9, 3, 1100))


@product
@pytest.mark.parametrize("case", SPARSE)
def test_product_of_bitmask(case, poisoned, monkeypatch):
    tokens, out, n = case
    g = torch.Generator().manual_seed(n)
    keep = torch.rand(out, n, generator=g) > 0.5
    keep[out // 2] = False  # a row without any weight
    keep[-1] = True
    weight = torch.randn(out, n, generator=g).half() * keep
    starts = torch.cat([torch.zeros(1), keep.sum(1).cumsum(0)]).int()
    from kernels.gpu import sparse as ours

    monkeypatch.setattr(ours, "BLOCK", 3 * n)  # many tokens: blocks of three rows at most
    check(ours.bitmask, tokens_of(tokens, n), weight.double(), sparse.mask_bits(keep), weight[keep], starts, dtypes=half_of(case))


CODED = tuple(  # (tokens, out, in, bits, group_size)
    (tokens, out, n, bits, group)
    for bits, group in ((4, 32), (8, -1), (3, 16), (2, 64), (5, 48))
    for tokens, out, n in ((1, 9, 1100), (3, 50, 40), (17, 5, 64))
)


def levels_of(out, n, bits, group):
    """A grid of its own for every group."""
    g = torch.Generator().manual_seed(bits)
    scale = scales(out, n, group, g)
    return sparse.Levels(scale, torch.randint(0, 2**bits, scale.shape, generator=g).to(torch.uint8), bits, group)


def check_levels(op, x, weight, *operands, levels, case):
    """`check` for a launcher whose last operand is a grid."""
    there = sparse.Levels(*on_device(*levels))
    check(lambda x, *rest: op(x, *rest, there), x, weight, *operands, dtypes=half_of(case))


@product
@pytest.mark.parametrize("case", CODED)
def test_product_of_bitmask_codes(case, poisoned, monkeypatch):
    tokens, out, n, bits, group = case
    g = torch.Generator().manual_seed(n)
    keep = torch.rand(out, n, generator=g) > 0.5
    keep[out // 2] = False
    keep[-1] = True
    codes = torch.randint(0, 2**bits, (out, n), generator=g).to(torch.uint8)
    levels = levels_of(out, n, bits, group)
    scale, zero = (grouped_int.spread(t.double(), n, group) for t in levels[:2])
    starts = torch.cat([torch.zeros(1), keep.sum(1).cumsum(0)]).int()
    from kernels.gpu import sparse as ours

    monkeypatch.setattr(ours, "BLOCK", 3 * n)
    operands = (sparse.mask_bits(keep), pack(codes[keep][None], bits)[0], starts)
    check_levels(ours.bitmask, tokens_of(tokens, n), scale * (codes - zero) * keep, *operands, levels=levels, case=case)


@product
@pytest.mark.parametrize("case", CODED)
def test_product_of_two_four_codes(case, poisoned, monkeypatch):
    tokens, out, n, bits, group = case
    _, positions = pairs(out, n)
    codes = torch.randint(0, 2**bits, (out, n // 2), generator=torch.Generator().manual_seed(n)).to(torch.uint8)
    levels = levels_of(out, n, bits, group)
    scale, zero = (grouped_int.spread(t.double(), n, group) for t in levels[:2])
    keep = sparse.scatter_two_four(torch.ones_like(codes), positions).bool()
    weight = scale * (sparse.scatter_two_four(codes, positions) - zero) * keep
    from kernels.gpu import sparse as ours

    monkeypatch.setattr(ours, "BLOCK", 3 * n)
    check_levels(ours.two_four, tokens_of(tokens, n), weight, pack(codes, bits), pack(positions, 2), levels=levels, case=case)


def pairs(out, n):
    """values float16 [out, in/2] and positions of 2:4 weights."""
    g = torch.Generator().manual_seed(n)
    positions = torch.rand(out, n // 4, 4, generator=g).argsort(-1)[..., :2].sort(-1).values.reshape(out, -1).to(torch.uint8)
    return torch.randn(out, n // 2, generator=g).half(), positions


@product
@pytest.mark.parametrize("case", SPARSE)
def test_product_of_two_four(case, poisoned):
    tokens, out, n = case
    values, positions = pairs(out, n)
    weight = sparse.scatter_two_four(values, positions)
    from kernels.gpu.sparse import two_four, two_four_rows

    check(two_four, tokens_of(tokens, n), weight.double(), values, pack(positions, 2))
    given = on_device(values, pack(positions, 2))
    assert torch.equal(two_four_rows(*given, None, 0, out, n, torch.float16).cpu(), weight)


@product
def test_product_of_two_four_on_sparse_cores(monkeypatch):
    """Many tokens take cuSPARSELt on a card that has it, in blocks of a shape that it takes; elsewhere a stand-in shows the shapes."""
    from kernels.gpu import sparse as ours
    from kernels.gpu import sparse_cores

    tokens, out, n = sparse_cores.MANY if DEVICE == "cuda" else 20, 160, 128
    values, positions = pairs(out, n)
    shapes, real = [], torch.sparse.to_sparse_semi_structured
    if DEVICE == "cuda":
        if not torch.backends.cusparselt.is_available():
            pytest.skip("PyTorch has no cuSPARSELt here")
        assert not sparse_cores.why_not(torch.device("cuda", 0), torch.float16), "there, but refused or wrong"
    else:
        monkeypatch.setattr(sparse_cores, "serve", lambda x, out: x.dtype != torch.float32)
        real = lambda rows: rows  # noqa: E731
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda rows: (shapes.append(tuple(rows.shape)), real(rows))[1])
    monkeypatch.setattr(ours, "BLOCK", 70 * n)
    check(ours.two_four, tokens_of(tokens, n), sparse.scatter_two_four(values, positions).double(), values, pack(positions, 2))
    assert shapes == [(64, n), (64, n), (32, n)] * 2, "float16 and bfloat16; float32 has no sparse cores"


def test_sparse_cores_serve_what_fits_a_card_that_has_them(monkeypatch):
    from kernels.gpu import sparse_cores

    assert "cuSPARSELt" in sparse_cores.why_not(torch.device("cpu"), torch.float16)

    class OnCard:
        is_cuda, device = True, torch.device("cuda", 0)

        def __init__(self, tokens, n, dtype=torch.float16):
            self.shape, self.dtype = (tokens, n), dtype

        def __len__(self):
            return self.shape[0]

    monkeypatch.setattr(sparse_cores, "why_not", lambda device, dtype: "")
    assert sparse_cores.serve(OnCard(1024, 576), 1536)
    refused = ((1023, 576, 1536), (1024, 80, 1536), (1024, 576, 1550))  # tokens, in, out
    assert not any(sparse_cores.serve(OnCard(tokens, n), out) for tokens, n, out in refused)
    assert not sparse_cores.serve(OnCard(1024, 576, torch.float32), 1536)


@product
@pytest.mark.parametrize("case", (*outliers.CASES, (9, 5, 300, 400)))
def test_product_of_outliers(case, poisoned):
    tokens, out, n, count = case
    g = torch.Generator().manual_seed(count)
    weight = torch.zeros(out * n).half()
    weight[torch.randperm(out * n, generator=g)[:count]] = torch.randn(count, generator=g).half()
    weight = weight.view(out, n)
    rows, columns = weight.nonzero().T
    starts = torch.cat([torch.zeros(1), rows.bincount(minlength=out).cumsum(0)]).int()
    low = torch.where(columns < 32768, columns, columns - 65536).to(torch.int16)
    from kernels.gpu.outliers import outliers as op

    check(op, tokens_of(tokens, n), weight.double(), weight[rows, columns], low, starts, dtypes=half_of(case))


@product
@pytest.mark.parametrize("case", (*columns.CASES, (9, 20, 300, 40)))
def test_product_of_columns(case, poisoned):
    tokens, out, n, count = case
    g = torch.Generator().manual_seed(count)
    values, index = torch.randn(out, count, generator=g).half(), torch.randperm(n, generator=g)[:count].int()
    weight = torch.zeros(out, n).double()
    for k, column in enumerate(index.tolist()):
        weight[:, column] = values[:, k].double()
    from kernels.gpu.columns import columns as op

    check(op, tokens_of(tokens, n), weight, values, index, dtypes=half_of(case))


def rounded(x, top):
    """x on its int8 grid, float64."""
    step = x.float().abs().amax(1, keepdim=True) / top
    return (x.float() / step).round().double() * step.double()


@product
@pytest.mark.parametrize(
    "case", [(1, 64, 96, 127), (2, 33, 80, 7), (17, 5, 64, 127), (64, 70, 48, 127), (3, 50, 37, 127), (2, 5, 1500, 7)]
)
def test_product_in_int8(case, poisoned):
    tokens, out, n, top = case
    g = torch.Generator().manual_seed(n)
    q, scale = torch.randint(1, 256, (out, n), generator=g), scales(out, n, -1, g)
    zero, weight = torch.full((out, 1), 128, dtype=torch.uint8), (q.double() - 128) * scale.double()
    from kernels.gpu.int8 import int8_product

    for dtype, tolerance in TOLERANCE.items():
        x = tokens_of(tokens, n).to(dtype)
        x[-1] = 0 if tokens > 2 else x[-1]
        expected = torch.nan_to_num(rounded(x, top)) @ weight.T
        y = int8_product(*on_device(x, pack(q.to(torch.uint8), 8), scale, zero), -1, top)
        assert y.dtype == dtype and (y.cpu().double() - expected).abs().max() <= tolerance * expected.abs().max()


@product
@pytest.mark.parametrize(
    "case", [(1, 64, 96, 1.5), (2, 33, 80, 0.01), (17, 5, 64, 1.0), (70, 70, 48, 2.0), (3, 5, 1500, 2.0), (3, 20, 40, 9.0)]
)
@pytest.mark.parametrize("zero_point", [False, True])
def test_product_in_int8_with_large_inputs_exact(case, zero_point, poisoned):
    from compression.packed.activations import ActivationRule

    tokens, out, n, threshold = case
    g = torch.Generator().manual_seed(n)
    q, scale = torch.randint(1, 256, (out, n), generator=g), scales(out, n, -1, g)
    zero, weight = torch.full((out, 1), 128, dtype=torch.uint8), (q.double() - 128) * scale.double()
    from kernels.gpu.int8 import int8_product

    for dtype, tolerance in TOLERANCE.items():
        x = tokens_of(tokens, n).to(dtype)
        x[:, 3] = 8
        x[:, 5:9] = x[:, 5:9].abs() + 0.2 * threshold  # one side is larger
        assert (x.float().abs() >= threshold).any() or threshold == 9
        x[-1] = 0 if tokens > 2 else x[-1]
        large = x.float().abs() >= threshold
        calm = x.masked_fill(large, 0)
        rest = ActivationRule(zero_point=True)(calm.double()).double() if zero_point else torch.nan_to_num(rounded(calm, 127))
        expected = (rest + torch.where(large, x, 0).double()) @ weight.T
        y = int8_product(*on_device(x, pack(q.to(torch.uint8), 8), scale, zero), -1, 127, threshold, zero_point)
        assert y.dtype == dtype and (y.cpu().double() - expected).abs().max() <= tolerance * expected.abs().max()


@product
@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("threshold", [None, 2.0])
def test_product_in_int8_of_what_is_not_finite_stays_so(threshold, zero_point):
    from kernels.gpu.int8 import int8_product

    operands = (torch.full((8, 16), 200, dtype=torch.uint8), torch.ones(8, 1).half(), torch.full((8, 1), 128, dtype=torch.uint8))
    for bad in (float("nan"), float("inf")):
        x = torch.ones(3, 16)
        x[1, 5] = bad
        y = int8_product(*on_device(x, *operands), -1, 127, threshold, zero_point).cpu()
        assert not y[1].isfinite().any() and torch.allclose(y[[0, 2]], torch.full((2, 8), 16 * 72.0))


@product
def test_product_of_the_formats_by_their_rules(monkeypatch):
    """Through the formats: the kernel's name is Triton's, the numbers are the rule's; what Triton doesn't do isn't called so."""
    from compression.packed.activations import ActivationRule
    from kernels import cpu
    from tests.compression.test_packed import MADE

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
    for name in (*ours, *others):
        for words, rule in rules + shifted * (name in ("int8-row", "dense")):
            packed = MADE[name][0]().to(DEVICE)
            packed.activations = rule
            told = "(PyTorch)" if name in others else f"{words or 'exact activations'} (Triton)"
            assert packed.kernel.endswith(told), (name, packed.kernel)
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
        int8_product(*on_device(x, codes, torch.ones(8, 2).half(), torch.full((8, 2), 128, dtype=torch.uint8)), 4)


@product
def test_product_of_every_variant_that_the_bench_times():
    """Each row was verified by its reference first; what others' kernels can't do is told."""
    clock = lambda work: (work(), 1e-3)[1]  # noqa: E731
    table = bench_gpu.rows(list(bench_gpu.OPS), {"read": 1e9, "exact": 1e9}, clock, DEVICE, ((40, 128),), (1, 20))
    ours = [row for row in table if row["op"] != "others"]
    assert {row["op"] for row in ours} == set(bench_gpu.OPS) and not [row for row in ours if "failed" in row]
    assert len([row for row in ours if row["share_of_limit"]]) == len(ours) - 1, "int8 has no limit in float16 operations"
    assert all(row.keys() & {"failed", "microseconds"} for row in table) and len(table) > len(ours)

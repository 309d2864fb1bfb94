"""The C kernels: right in every format on every kind of processor, built once, cached, tested before use, and
never in the way when they can't serve."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import kernels
from kernels import cpu
from kernels.bits import pack, unpack
from kernels.cpu import plans, selftest
from kernels.grouped_int import grouped_int, groups_of, spread
from kernels.home import home
from kernels.sparse import mask_bits
from kernels.tensor_train import tensor_train_rows
from tests.kernels.cpu import kept_compiler

ROOT = Path(__file__).parents[3]
needs_compiler = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")
SHAPES = ((19, 75), (1, 16), (64, 576), (5, 17), (16, 32), (40, 1056))  # (out, in)
TOKENS = (1, 2, 5, 17, 64, 130)
QUICKLY = {"CFLAGS": "-O1"}  # a build of which only the way matters, or the numbers: half the time


@pytest.fixture(scope="session")
def quickly(tmp_path_factory):
    """The environment of a quick build: its compiler compiles nothing twice (kept_compiler.py)."""
    if (real := cpu.compiler()) is None:
        return QUICKLY
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", QUICKLY["CFLAGS"])
        kept = cpu._place("", real).with_suffix(".objects")
    return QUICKLY | {"CC": str(kept_compiler.script(tmp_path_factory.mktemp("compiler"), real, kept))}


@pytest.fixture
def fresh(monkeypatch, tmp_path, quickly):
    """A process that has built nothing yet, with a cache of its own."""
    cpu.forget()
    for name, value in ({"COMPRESSION_EXPLORER_HOME": str(tmp_path)} | quickly).items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    monkeypatch.undo()
    cpu.forget()


ALTERED = [  # one constant of the source, and another
    ("formats.h", "vi_splat(0x30303030), rest", "vi_splat(0x20202020), rest")
]


@pytest.fixture(scope="session")
def quick(quickly):
    """A library of a quick build, among the session's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in quickly.items():
            patch.setenv(name, value)
        return cpu._file("")


@pytest.fixture
def compiled(fresh, quick, monkeypatch):
    """The same, where building takes no time: for what happens before and after it.
    test_it_is_built_once_and_kept, the damaged library's and the two processes' tests compile."""

    def build(file, program, choices):
        file.parent.mkdir(exist_ok=True)
        shutil.copyfile(quick, file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)

    monkeypatch.setattr(cpu, "build", build)
    return fresh


LARGE = (1 << 30, 127, 1.5)  # a rule with a threshold


def operands(tokens, out, n, bits, group, rule=None, seed=0):
    """x, a plan, and the tensors that it was made of."""
    g = torch.Generator().manual_seed(seed)
    codes = pack(torch.randint(0, 2**bits, (out, n), generator=g).to(torch.uint8), bits)
    scale = (0.01 + torch.rand(out, groups_of(n, group), generator=g)).half()
    zero = torch.randint(0, 2**bits, scale.shape, generator=g).to(torch.uint8)
    stored = (codes, scale, zero, bits, group)
    return torch.randn(tokens, n, generator=g), plans.grouped_int(*stored, n, rule), stored


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_every_format_equals_its_formula(shape):
    """Against the dense product in 64 bits; what is written into is poisoned first."""
    c = cpu.wait()
    assert c is not None, cpu.status()
    for name, plan, weight in selftest.cases(*shape):
        for tokens in TOKENS:
            x = torch.randn(tokens, plan.shape[1], generator=torch.Generator().manual_seed(tokens))
            y = torch.full((tokens, shape[0]), float("nan"))
            assert c.product(plan.address, x.data_ptr(), y.data_ptr(), tokens, 2) == 0
            expected = selftest.rounded(x, plan.rule).double() @ weight.double().T
            size = x.abs() @ weight.abs().T
            assert (y - expected).abs().max() <= selftest.TOLERANCE * size.max(), f"{name}, {tokens} tokens"


@needs_compiler
@pytest.mark.parametrize("group", [32, 64, 96, 160, 512, -1])
@pytest.mark.parametrize("unit", [None, 32, 64, 96, 160, 512, 1 << 30])
def test_many_tokens_by_groups_and_units_of_any_width(group, unit):
    """The columns of one scale and those of one unit cut each other anywhere; of 608 columns neither divides
    all."""
    rule = unit and (unit, 127)
    for bits, symmetric in ((4, False), (8, False), (8, True)):
        x, plan, (codes, scale, zero, *_) = operands(37, 40, 608, bits, group, rule)
        if symmetric:
            plan, zero = plans.grouped_int(codes, scale, None, bits, group, 608, rule), None
        cpu.wait()
        weight = spread(scale.double(), 608, group) * (
            unpack(codes, bits, 608).double() - (128 if symmetric else spread(zero.double(), 608, group))
        )
        expected, size = selftest.rounded(x, rule).double() @ weight.T, x.abs().double() @ weight.abs().T
        assert (cpu.product(plan, x) - expected).abs().max() <= selftest.TOLERANCE * size.max(), (
            bits,
            symmetric,
        )


@needs_compiler
@pytest.mark.parametrize(
    "bits, group, offset", [(1, 64, False), (3, 48, True), (2, 32, True), (4, -1, False), (8, 64, True)]
)
@pytest.mark.parametrize("rule", [None, (64, 127), (1 << 30, 127)])
def test_sums_that_are_looked_up_are_those_of_whole_numbers(bits, group, offset, rule):
    """Against sums of +-x that Python adds: inputs that are codes already come out to the last bit, the
    largest sums too."""
    cpu.wait()
    out, n, g = 19, 64 if rule is None else 160, torch.Generator().manual_seed(bits)
    most = 127 * 65793 if rule is None else 127  # the largest code: three digits of 127, or one
    x = torch.randint(-most, most + 1, (n,), generator=g)
    x[::32] = most  # every unit is then 1
    signs = torch.rand(bits, out, n, generator=g) > 0.5
    signs[:, 0], signs[:, 1] = True, x < 0  # the row that adds all up, and the one with the least sums
    for case in (x, torch.full((n,), most), torch.full((n,), -most)):
        alpha = 2.0 ** -torch.arange(bits)[:, None, None].expand(bits, out, groups_of(n, group)).half()
        base = torch.full((out, groups_of(n, group)), 0.5) if offset else None
        plan = plans.binary_coded(
            torch.stack([mask_bits(s) for s in signs]), alpha, base, group, n, rule, looked_up=True
        )
        weight = sum((2 * s.double() - 1) / 2**k for k, s in enumerate(signs)) + (0.5 if offset else 0)
        expected = (weight @ case.double())[None]
        found = cpu.product(plan, case[None].float()).double()
        if rule is None and bits == 1:  # of one plane the sum is the result
            assert torch.equal(found, expected.float().double())
        else:  # sums of int8 codes fit into a float; those of 24 bits are rounded, once a plane
            assert (found - expected).abs().max() <= (2.0**-20 if rule is None else 0) * case.abs().sum()
        assert torch.equal(cpu.rows(plan, torch.arange(out)).double(), weight)


@needs_compiler
def test_the_faster_of_looking_up_and_adding_serves(monkeypatch):
    """One matrix in two layouts: the library says which, whoever asks may say otherwise, and the label
    tells."""
    cpu.wait()
    given = torch.zeros(2, 16, 4, dtype=torch.uint8), torch.ones(2, 16, 1).half(), None, -1, 32
    assert plans.binary_coded(*given).kind == ("LOOK" if cpu.look_up_pays() else "BITS")
    for pays, kind in ((True, "LOOK"), (False, "BITS")):
        monkeypatch.setattr(cpu, "look_up_pays", lambda pays=pays: pays)
        assert (
            plans.binary_coded(*given).kind == kind
            and plans.binary_coded(*given, looked_up=not pays).kind != kind
        )
        assert plans.binary_coded(*given).serves("binary_coded") == ("looked_up" if pays else "binary_coded")
    added, looked = (plans.binary_coded(*given, looked_up=how) for how in (False, True))
    assert added.bytes == looked.bytes


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    for tokens in (1, 33):
        x, plan, _ = operands(tokens, 200, 640, 3, 64, (32, 127))
        cpu.wait()
        assert torch.equal(cpu.product(plan, x, threads=threads), cpu.product(plan, x, threads=3))


@needs_compiler
@pytest.mark.parametrize(
    "path, name",
    [("avx512", "AVX-512 VNNI"), ("avx2", "AVX2"), ("avx2_vnni", "AVX2 VNNI"), ("portable", "portable C")],
)
def test_other_processors_paths(path, name, quickly, pytestconfig):
    """Forced: the self-test over every format, and the same decode step. The libraries are built among the
    session's own."""
    needed = {"avx512": "avx512_vbmi2", "avx2": "avx2", "avx2_vnni": "avx_vnni"}.get(path)
    if needed and needed not in cpu.flags():
        pytest.skip(f"this processor has no {needed}")
    if cpu.wait() is not None and cpu.instructions() == name and not pytestconfig.getoption("--all"):
        pytest.skip(f"{name} serves all other tests here; make test-all forces it too")
    code = f"""
from kernels import cpu; assert cpu.wait() is not None, cpu.status()
assert cpu.instructions() == {name!r}, cpu.instructions()
from tests.compression.test_engine import equals_transformers
equals_transformers("qwen3"); equals_transformers("gpt2")
from tests.compression.test_kv_cache import step_equals_loop
for bits in (8, 4): step_equals_loop("qwen3", bits)"""
    done = process(code, home(), COMPRESSION_EXPLORER_KERNELS=path, **quickly)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@needs_compiler
def test_sanitizers_find_nothing(tmp_path):
    """Addresses and undefined behaviour, over every format and a decode step."""
    library = tmp_path / "checked.so"
    flags = (
        "-O1",
        "-g",
        "-march=native",
        "-fopenmp",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    )
    runtime = subprocess.run(
        [cpu.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("the compiler brings no sanitizers")
    try:
        cpu.build(library, cpu.compiler(), (flags,))
    except OSError as error:
        pytest.skip(f"no sanitizers: {error}")
    code = f"""
from pathlib import Path
from kernels import cpu
cpu._file = lambda path: Path({str(library)!r})
assert cpu.wait() is not None, cpu.status()
from tests.compression.test_engine import equals_transformers
for family in ("llama", "opt-post-norm", "gpt_neox"): equals_transformers(family)
from tests.compression.test_kv_cache import step_equals_loop
for bits in (8, 4): step_equals_loop("llama", bits)
print("clean")"""
    done = process(
        code,
        tmp_path,
        LD_PRELOAD=runtime,
        ASAN_OPTIONS="detect_leaks=0:verify_asan_link_order=0",
        OMP_NUM_THREADS="2",
    )
    assert done.returncode == 0 and "clean" in done.stdout, (done.stdout + done.stderr)[-3000:]


def process(code, home, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COMPRESSION_EXPLORER_HOME": str(home)} | environment,
    )


def test_the_source_is_110_columns_wide():
    wide = [
        f"{file.name}:{number}"
        for file in (*cpu.SOURCES, *cpu.HEADERS)
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if len(line) > 110
    ]
    assert not wide


# --- building ---


@needs_compiler
def test_it_is_built_once_and_kept(fresh, monkeypatch):
    assert cpu.wait() is not None, cpu.status()
    files = sorted((fresh / "kernels").iterdir())
    assert [f.suffix for f in files] == [".passed", ".so"]
    stamp = files[1].stat().st_mtime_ns
    cpu.forget()
    monkeypatch.setattr(selftest, "failure", lambda library: "tested again")
    assert cpu.wait() is not None and files[1].stat().st_mtime_ns == stamp


@needs_compiler
def test_a_library_that_was_changed_is_tested_again(compiled, monkeypatch):
    assert cpu.wait() is not None
    next((compiled / "kernels").glob("*.passed")).write_text("the hash of another file")
    monkeypatch.setattr(selftest, "failure", lambda library: "wrong now")
    cpu.forget()
    assert cpu.wait() is None and "wrong now" in cpu.status()


@needs_compiler
def test_pytorch_serves_while_it_is_built(compiled, monkeypatch):
    from compression.packed.dense import Dense

    gate = threading.Event()
    real = cpu._tested
    monkeypatch.setattr(cpu, "_tested", lambda path: (gate.wait(900), real(path))[1])
    packed, x = Dense.encode(torch.randn(4, 8)), torch.randn(1, 8)
    assert cpu.library() is None and cpu.status() == "being built"
    early = packed.matmul(x)
    assert packed.kernel == kernels.name("dense")
    gate.set()
    assert cpu.wait() is not None and torch.allclose(packed.matmul(x), early, atol=1e-5)
    assert packed.kernel == f"dense weights, exact activations (C, {cpu.instructions()})"


@needs_compiler
def test_a_damaged_library_is_built_anew(compiled):
    assert cpu.wait() is not None
    file = next((compiled / "kernels").glob("*.so"))
    code = f"""
import pathlib; file = pathlib.Path({str(file)!r}); file.unlink(); file.write_bytes(b"not a library")  # this process has the old one open
from kernels import cpu; assert cpu.wait() is not None, cpu.status()"""
    done = process(code, compiled)
    assert done.returncode == 0, done.stderr


def served_by_pytorch(reason):
    from compression.packed.dense import Dense

    assert cpu.wait() is None and reason in cpu.status()
    packed = Dense.encode(torch.randn(4, 8))
    x = torch.randn(2, 8)
    assert packed.kernel == kernels.name("dense") and torch.allclose(packed.matmul(x), x @ packed.stored().T)
    x, _, stored = operands(2, 9, 40, 4, 16)
    assert grouped_int(x, *stored).shape == (2, 9)


def test_without_a_compiler_pytorch_serves_under_its_own_name(fresh, monkeypatch):
    monkeypatch.setattr(cpu, "compiler", lambda: None)
    served_by_pytorch("no C compiler")


@needs_compiler
def test_a_compiler_that_refuses_is_survived(fresh, monkeypatch):
    monkeypatch.setattr(cpu, "COMMON", ("-this-is-no-flag",))
    served_by_pytorch("refused")


@needs_compiler
def test_a_wrong_kernel_is_never_used(compiled, monkeypatch):
    monkeypatch.setattr(selftest, "failure", lambda library: "3 bits, 1 tokens")
    served_by_pytorch("self-test failed")
    assert not list((compiled / "kernels").iterdir())


@needs_compiler
def test_the_self_test_notices_a_wrong_product():
    library = cpu.wait()

    class Broken:
        plan_bytes = staticmethod(library.plan_bytes)

        def product(self, plan, x, y, tokens, threads):
            library.product(plan, x, y, tokens, threads)
            torch.frombuffer((__import__("ctypes").c_float * 1).from_address(y), dtype=torch.float32).add_(1)

    assert selftest.failure(library) == "" and "tokens" in selftest.failure(Broken())


@needs_compiler
@pytest.mark.parametrize("file, constant, instead", ALTERED)
def test_one_altered_constant_in_the_source_is_refused(
    fresh, tmp_path_factory, monkeypatch, file, constant, instead
):
    """So that a stored result never comes of a kernel that multiplies otherwise: the self-test stands
    between."""
    folder = tmp_path_factory.mktemp("altered")
    for source in (*cpu.SOURCES, *cpu.HEADERS):
        shutil.copy(source, folder)
    text = (folder / file).read_text()
    assert text.count(constant) == 1
    (folder / file).write_text(text.replace(constant, instead))
    monkeypatch.setattr(cpu, "SOURCES", sorted(folder.glob("*.c")))
    monkeypatch.setattr(cpu, "HEADERS", sorted(folder.glob("*.h")))
    served_by_pytorch("self-test failed")


def test_it_can_be_switched_off(fresh, monkeypatch):
    monkeypatch.setenv("COMPRESSION_EXPLORER_KERNELS", "pytorch")
    served_by_pytorch("switched off")


def test_a_path_that_is_none_is_told(fresh, monkeypatch):
    monkeypatch.setenv("COMPRESSION_EXPLORER_KERNELS", "sse9")
    served_by_pytorch("allowed: avx512, avx2_vnni, avx2, portable, pytorch")


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_obstacle(fresh):
    (fresh / "kernels").write_text("a file where the folder should be")
    assert cpu.wait() is not None, cpu.status()


@needs_compiler
def test_two_processes_may_build_at_once(fresh):
    code = "from kernels import cpu; assert cpu.wait() is not None, cpu.status()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(list((fresh / "kernels").glob("*.so"))) == 1


# --- use ---


@needs_compiler
def test_eight_threads_call_at_once():
    cpu.wait()
    cases = [operands(1 + i % 3, 64, 256, 2 + i % 7, 64, seed=i)[:2] for i in range(8)]
    expected, wrong = [cpu.product(plan, x) for x, plan in cases], []

    def work(i):
        for _ in range(50):
            if not torch.equal(cpu.product(cases[i][1], cases[i][0]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert wrong == []


@needs_compiler
@pytest.mark.parametrize("rule", [None, (32, 127), (1 << 30, 127), LARGE, (1 << 30, 127, 0.0, 0.02)])
@pytest.mark.parametrize("tokens", [1, 20])
def test_what_is_not_finite_stays_so(rule, tokens):
    """One bad activation spoils its token, and no other."""
    cpu.wait()
    for bad in (float("nan"), float("inf"), -float("inf")):
        x, plan, _ = operands(tokens, 9, 80, 8 if rule == LARGE else 4, 16, rule)
        clean = cpu.product(plan, x)
        x[0, 3] = bad
        found = cpu.product(plan, x)
        assert not bool(found[0].isfinite().any()) and torch.equal(found[1:], clean[1:])


@needs_compiler
@pytest.mark.parametrize(
    "name", ["levels of 3", "levels of 6", "real zeros", "codebook, torch.float32", "columns", "sum with"]
)
def test_what_is_not_finite_stays_so_in_every_grid(name):
    cpu.wait()
    chosen = [plan for told, plan, _ in selftest.cases(9, 80) if told.startswith(name)]
    assert len(chosen) >= 3
    for plan in chosen:
        for tokens in (1, 20):
            x = torch.randn(tokens, 80, generator=torch.Generator().manual_seed(0))
            clean = cpu.product(plan, x)
            x[0] = float("nan")
            found = cpu.product(plan, x)
            assert bool(found[0].isnan().all()) and torch.equal(found[1:], clean[1:])


@needs_compiler
@pytest.mark.parametrize("tokens", [1, 2, 20, 130])
@pytest.mark.parametrize("group, n", [(16, 75), (-1, 640)])
def test_activations_beyond_a_threshold_are_exact(tokens, group, n):
    """None, some, all of a token, and a whole column; those below are as without the others."""
    cpu.wait()
    x, plan, (codes, scale, zero, bits, _) = operands(tokens, 37, n, 8, group, (1 << 30, 127, 50.0))
    plain = plans.grouped_int(codes, scale, zero, bits, group, n, (1 << 30, 127))
    weight = cpu.rows(plan, torch.arange(37))
    assert torch.equal(cpu.product(plan, x), cpu.product(plain, x)), "none is large"
    for at in ((slice(None), 3), (0, slice(None)), (-1, n - 1)):
        y = x.clone()
        y[at] = 100 + 50 * torch.rand(y[at].shape)
        rest = y.masked_fill(y >= 50, 0)
        expected = (selftest.rounded(rest, (1 << 30, 127)) + (y - rest)).double() @ weight.double().T
        size = (y.abs() @ weight.abs().T).max()
        assert (cpu.product(plan, y) - expected).abs().max() <= selftest.TOLERANCE * size
        # a large one in every token: without the threshold it takes the others' precision
        if at == (slice(None), 3):
            exact = y.double() @ weight.double().T
            assert (cpu.product(plain, y) - exact).abs().max() > 5 * (
                cpu.product(plan, y) - exact
            ).abs().max()


@needs_compiler
@pytest.mark.parametrize("tokens", [1, 2, 20, 130])
@pytest.mark.parametrize("group, n", [(16, 75), (-1, 640)])
@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_codes_with_a_zero_point(tokens, group, n, threshold):
    """Tokens of both signs, of one, of nothing and of a number that isn't one; 0 is exact, and outliers
    are."""
    cpu.wait()
    rule = (1 << 30, 127, threshold, 0.0, True)
    x, plan, _ = operands(tokens, 37, n, 8, group, rule)
    weight = cpu.rows(plan, torch.arange(37)).double()
    for changed in (
        x,
        x.abs(),
        -x.abs(),
        x.abs() + 5,
        torch.zeros_like(x),
        torch.eye(1, n).expand(tokens, n).contiguous(),
    ):
        expected = selftest.rounded(changed, rule).double() @ weight.T
        size = (changed.abs().double() @ weight.abs().T).max()
        assert (cpu.product(plan, changed) - expected).abs().max() <= selftest.TOLERANCE * size
    x[0, 3] = float("nan")
    found = cpu.product(plan, x)
    assert bool(found[0].isnan().all()) and bool(found[1:].isfinite().all())


@needs_compiler
def test_codes_of_fewer_bits_refuse_a_threshold_and_a_zero_point_and_say_so():
    from compression.packed.activations import ActivationRule
    from tests.compression.packed.test_packed import grouped, two_four, weight

    cpu.wait()
    for rule in (ActivationRule(threshold=1.5), ActivationRule(zero_point=True)):
        for packed, served in (
            (grouped(8, 16, False), True),
            (grouped(4, 16, False), False),
            (two_four(weight()), True),
        ):
            packed.activations = rule
            assert (packed.plan() is not None) == served
            assert packed.kernel.endswith(f"(C, {cpu.instructions()})" if served else "(PyTorch)")
    packed = grouped(8, 16, False)
    packed.activations = ActivationRule(threshold=1.5)
    assert packed.kernel == f"grouped integers, int8 activations, outliers exact (C, {cpu.instructions()})"


def test_levels_of_scales_refuse_a_zero_point():
    """They keep no sums of rows."""
    codes, levels = (
        pack(torch.zeros(16, 32, dtype=torch.uint8), 8),
        pack(torch.zeros(1, 16, dtype=torch.uint8), 3)[0],
    )
    stats = torch.ones(1, 1, 2).half()
    for shifted in (False, True):
        plan = plans.two_level(
            codes, (levels, levels), (stats, stats), 3, 8, -1, 32, (1 << 30, 127, 0.0, 0.0, shifted)
        )
        assert plan.obeys is not shifted


@needs_compiler
def test_two_of_four_has_a_layout_of_its_own_and_one_weight_more_has_not():
    """Two bits a kept value instead of a bit a weight: the same bytes; both layouts give the same products
    and rows."""
    cpu.wait()
    g = torch.Generator().manual_seed(0)
    keep = torch.rand(48, 24, 4, generator=g).argsort(-1).argsort(-1).flatten(1) < 2
    more = keep.clone()
    more[5, int((~keep[5]).nonzero()[0])] = True
    weight, x = torch.randn(48, 96, generator=g).half(), torch.randn(9, 96, generator=g)
    two, masked = (plans.bitmask(mask_bits(mask), weight[mask], 96) for mask in (keep, more))
    assert (two.kind, masked.kind) == ("TWO_F16", "MASK_F16") and two.bytes <= masked.bytes
    for plan, mask in ((two, keep), (masked, more)):
        dense = weight.float() * mask
        assert torch.equal(cpu.rows(plan, torch.arange(48)), dense)
        for tokens in (1, 9):
            expected = x[:tokens].double() @ dense.double().T
            assert (cpu.product(plan, x[:tokens]) - expected).abs().max() <= selftest.TOLERANCE * (
                x.abs() @ dense.abs().T
            ).max()


@needs_compiler
def test_rows_of_thin_products_and_chains():
    """An embedding in these formats, in any order; as one row at a time, which the decode step asks for."""
    g, ids = torch.Generator().manual_seed(0), torch.tensor([36, 0, 17, 17, 15, 16])
    u, v = torch.randn(37, 21, generator=g).half(), torch.randn(21, 75, generator=g).half()
    cores = torch.randn(37, 2 * 3 + 3 * 4 * 2 + 2 * 10, generator=g).half()
    for plan, weight in (
        (plans.low_rank(u, v), u.float() @ v.float()),
        (
            plans.tensor_train(cores, (2, 4, 10), (1, 3, 2, 1), 75),
            tensor_train_rows(cores, (2, 4, 10), (1, 3, 2, 1), 75),
        ),
    ):
        found = torch.full((6, 75), float("nan"))
        assert cpu.wait().rows(plan.address, ids.data_ptr(), 6, found.data_ptr()) == 0
        assert torch.allclose(found, weight[ids], rtol=1e-4, atol=1e-4)
        assert torch.allclose(cpu.rows(plan, ids), weight[ids], rtol=1e-4, atol=1e-4)


@needs_compiler
def test_edges():
    cpu.wait()
    x, plan, _ = operands(4, 9, 40, 4, 16)
    assert cpu.product(plan, x[:0]).shape == (0, 9)
    assert cpu.product(plan, torch.zeros(2, 40)).abs().max() == 0
    nothing = plans.dense(torch.zeros(0, 40))
    assert cpu.product(nothing, x).shape == (4, 0)
    strided = torch.stack([x, x], 1)[:, 1]
    assert not strided.is_contiguous() and torch.equal(cpu.product(plan, strided), cpu.product(plan, x))
    half = cpu.product(plan, x.half())
    assert half.dtype == torch.float16 and torch.allclose(
        half.float(), cpu.product(plan, x.half().float()), rtol=1e-3
    )
    with pytest.raises(IndexError, match="9"):
        cpu.rows(plan, torch.tensor([9]))

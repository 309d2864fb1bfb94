"""TensorGPT against TT-SVD by its definition, its exact identities, the paper's ratios, and tables inside
models (section 7, H)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compression import arch, artifact, calibrate, get, sample
from compression.base import BadChain, BadParam, Cancelled, Context
from compression.low_rank import tensorgpt
from compression.low_rank.tensorgpt import (
    UNSEEN,
    TaughtTable,
    TensorGptParams,
    compress,
    control,
    damped,
    distillation_loss,
    factors,
    frequencies,
    padded,
    prime_factors,
    ranks_of,
    reads,
    second_moments,
    shape_of,
    square,
    svd_rank,
    table_cost,
    tensor_trains,
    tt_svd,
)
from compression.packed.linear import CompressedLinear, CompressedTable, TableHead
from compression.packed.low_rank import LowRank
from compression.packed.tensor_train import TensorTrain
from compression.recorder import Recorder
from compression.training import Course
from kernels.tensor_train import contract, values_per_row
from tests import oracles, tiny

SHAPES = [((2, 2, 2, 2, 3), 48), ((6, 8), 48), ((2,) * 6, 45), ((3, 5, 2), 30)]
P_OF_1024 = {1: 20, 2: 72, 3: 140, 4: 232, 5: 320, 6: 424, 8: 680, 12: 1128, 32: 2728}


def vectors(n, width, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def rebuilt(cores, width):
    return contract(cores).flatten(1)[:, :width]


def context(cancelled=lambda: False, events=None):
    return Context(None, Recorder((events if events is not None else []).append, cancelled))


def loud(family):
    """A tiny model with matrices five times as large, so that its logits are far from equal."""
    bundle = tiny.bundle(family)
    for p in bundle.module.parameters():
        p.data.mul_(5.0 if p.dim() > 1 else 1.0)
    return bundle


def compressed(family, *recipe, make=tiny.bundle, **more):
    bundle, events = make(family), []
    steps = tuple(
        (get(n), get(n).params.parse(p))
        for n, p in (recipe or (("tensorgpt", {"rank": 2, "head": "cores"}),))
    )
    outcome = calibrate.compress(bundle, steps, tiny.ids(8), recorder=Recorder(events.append), **more)
    return bundle, outcome


# --- the decomposition ---


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("modes, width", SHAPES)
def test_equals_the_oracle(modes, width, rank):
    x = vectors(7, width)
    cores, error = tt_svd(x, modes, ranks_of(modes, rank))
    found = rebuilt(cores, math.prod(modes)).numpy()
    for i, vector in enumerate(x.double().numpy()):
        expected, errors = oracles.low_rank.tensor_train(vector, modes, rank)
        assert [c.shape[1:] for c in cores] == [c.shape for c in expected]
        assert np.abs(found[i] - oracles.low_rank.entries(expected)).max() < 1e-9
        assert float(error[i]) == pytest.approx(sum(errors), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("modes, width", SHAPES)
def test_the_error_is_the_discarded_spectrum_and_cores_are_left_orthogonal(modes, width):
    """H: exact for sequential TT-SVD, whose cores but the last have orthonormal columns."""
    x = vectors(9, width, seed=1)
    cores, error = tt_svd(x, modes, ranks_of(modes, 2))
    whole = torch.nn.functional.pad(x.double(), (0, math.prod(modes) - width))
    lost = (whole - rebuilt(cores, math.prod(modes))).square().sum(1)
    assert torch.allclose(lost, error, rtol=1e-9)
    for core in cores[:-1]:
        flat = core.flatten(1, 2)
        assert torch.allclose(
            flat.mT @ flat, torch.eye(core.shape[3], dtype=torch.float64).expand(len(x), -1, -1), atol=1e-10
        )


@pytest.mark.parametrize("modes, width", [*SHAPES, ((2,) * 10, 768)])
def test_full_rank_rebuilds_exactly(modes, width):
    x = vectors(3, width)
    cores, error = tt_svd(x, modes, ranks_of(modes, 64))
    assert torch.allclose(rebuilt(cores, width), x.double(), atol=1e-10) and float(error.max()) < 1e-10


def test_kronecker_products_are_exact_at_rank_one():
    for modes in ((2,) * 8, (2, 3, 5, 2), (7, 9)):
        parts = [vectors(4, m, seed=m + i).double() for i, m in enumerate(modes)]
        x = parts[0]
        for part in parts[1:]:
            x = (x[:, :, None] * part[:, None, :]).flatten(1)
        cores, error = tt_svd(x, modes, ranks_of(modes, 1))
        assert torch.allclose(rebuilt(cores, x.shape[1]), x.double(), rtol=1e-9, atol=1e-12)
        packed = TensorTrain.encode(x.shape, cores)
        assert torch.allclose(packed.dequantize().double(), x, rtol=1e-3 * len(modes), atol=1e-6)


def test_two_sides_are_a_truncated_matrix_svd():
    x = vectors(5, 48)
    for rank in (1, 2, 4, 6):
        cores, _ = tt_svd(x, (6, 8), ranks_of((6, 8), rank))
        u, s, vt = np.linalg.svd(x.double().numpy().reshape(5, 6, 8), full_matrices=False)
        best = (u[:, :, :rank] * s[:, None, :rank]) @ vt[:, :rank]
        assert np.abs(rebuilt(cores, 48).numpy() - best.reshape(5, 48)).max() < 1e-10


@pytest.mark.parametrize("modes, expected", [(padded, 0.05), (prime_factors, 0.05), (square, 0.05)])
def test_the_mean_error_falls_with_the_rank(modes, expected):
    x = vectors(64, 96, seed=3)
    means = [float(tt_svd(x, modes(96), ranks_of(modes(96), r))[1].mean()) for r in range(1, 12)]
    assert all(b <= a + 1e-12 for a, b in zip(means, means[1:], strict=False))
    assert means[0] > 0.6 * 96 and means[-1] < expected * 96


@pytest.mark.parametrize(
    "rank, expected", [(1, 0.987), (2, 0.947), (3, 0.915), (4, 0.867), (5, 0.830), (6, 0.778), (8, 0.653)]
)
def test_an_unstructured_vector_loses_almost_all_of_its_length(rank, expected):
    """Section 7's table for 768 padded to 2^10."""
    x = vectors(200, 768, seed=rank)
    error = tt_svd(x, padded(768), ranks_of(padded(768), rank))[1].sum() / x.double().square().sum()
    assert float(error.sqrt()) == pytest.approx(expected, abs=0.02)  # one vector there, the mean of 200 here


# --- sizes ---


def test_numbers_a_token_and_the_papers_ratios():
    """P for 768 = 2^10 padded; 38.40x and 3.31x are in the paper's abstract. Without padding: section 7."""
    for rank, values in P_OF_1024.items():
        assert shape_of(768, TensorGptParams(rank=rank, modes="padded"))[2] == values
    assert round(768 / P_OF_1024[1], 2) == 38.40 and round(768 / P_OF_1024[4], 2) == 3.31
    assert shape_of(768, TensorGptParams(rank=1, modes="factors"))[2] == 19 and round(768 / 19, 2) == 40.42
    assert shape_of(768, TensorGptParams(rank=4, modes="square"))[0] == (24, 32)
    assert shape_of(768, TensorGptParams(rank=4, modes="square"))[2] == 224
    assert values_per_row((4, 4, 4, 4, 3), ranks_of((4, 4, 4, 4, 3), 2)) == 62


def test_sides_multiply_to_the_width():
    for width in (1, 2, 13, 36, 576, 768, 1024, 2048, 997):
        assert math.prod(prime_factors(width)) == width == math.prod(square(width))
        assert width <= math.prod(padded(width)) < 2 * max(width, 2)
    assert prime_factors(576) == (2,) * 6 + (3, 3) and padded(1024) == prime_factors(1024) == (2,) * 10


@pytest.mark.parametrize("modes", ["factors", "padded", "square"])
def test_stored_bytes_are_the_formula_and_an_svd_takes_no_more(modes):
    table = vectors(50, 48)
    for rank in range(1, 6):
        params = TensorGptParams(rank=rank, modes=modes, head="cores")
        sides, ranks, values = shape_of(48, params)
        packed = tensor_trains(table, sides, ranks, context())
        assert packed.stored_bytes() == 2 * 50 * values == 2 * packed.cores.numel()
        if values >= 48:
            assert table_cost((50, 48), params, True) is None
            continue
        assert table_cost((50, 48), params, True).bytes == packed.stored_bytes()
        assert (
            table_cost((50, 48), TensorGptParams(rank=rank, modes=modes, head="dense"), True).bytes
            == packed.stored_bytes() + 4800
        )
        assert (
            table_cost((50, 48), TensorGptParams(rank=rank, modes=modes, head="dense"), False).bytes
            == packed.stored_bytes()
        )
        svd = 2 * svd_rank((50, 48), values) * 98
        assert packed.stored_bytes() - 2 * 98 < svd <= packed.stored_bytes()
        assert table_cost((50, 48), TensorGptParams(rank=rank, modes=modes, kind="svd"), False).bytes == svd


# --- the format ---


def test_balanced_cores_stay_in_half_precision():
    """Loud and quiet tokens, and one of zeros: the last core alone would overflow or vanish."""
    table = vectors(6, 64) * torch.tensor([1e6, 1e3, 1.0, 1e-3, 1e-7, 0.0])[:, None]
    packed = tensor_trains(table, (2,) * 6, ranks_of((2,) * 6, 8), context())
    assert bool(packed.cores.isfinite().all())
    assert (
        torch.allclose(packed.dequantize(), table, rtol=1e-2, atol=0)
        or ((packed.dequantize() - table).norm(dim=1) <= 4e-3 * table.norm(dim=1)).all()
    )
    assert torch.equal(packed.dequantize()[5], torch.zeros(64))


def test_rows_and_logits_are_the_rebuilt_tables():
    table = vectors(5_000, 24, seed=2)  # more than a block of rows
    packed = tensor_trains(table, (2, 3, 4), (1, 2, 4, 1), context())
    whole, x = packed.dequantize(), vectors(3, 24, seed=5)
    ids = torch.tensor([4_999, 0, 2_048, 2_047, 0])
    assert torch.allclose(packed.rows(ids), whole[ids], atol=1e-5)
    assert torch.allclose(packed.matmul(x), x @ whole.T, atol=1e-4)
    expected = torch.stack(
        [torch.tensor(oracles.low_rank.entries([p[i].numpy() for p in parts_of(packed)])) for i in range(8)]
    )
    assert torch.allclose(whole[:8].double(), expected, atol=1e-5)


def parts_of(packed):
    from kernels.tensor_train import split

    return split(packed.cores, packed.modes, packed.ranks)


def test_cores_that_are_no_matrix_are_refused():
    with pytest.raises(ValueError, match="are no matrix"):
        TensorTrain((4, 9), torch.zeros(4, 8).half(), (2, 4), (1, 2, 1))


# --- in models ---


@pytest.mark.parametrize("kind", ["tensor_train", "svd"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_saves_loads_and_writes(family, kind, tmp_path):
    bundle, outcome = compressed(family, ("tensorgpt", {"rank": 2, "kind": kind, "head": "cores"}))
    table, head = arch.embedding(bundle.module)[1], arch.head(bundle.module)[1]
    assert isinstance(table, CompressedTable) and isinstance(
        table.packed, LowRank if kind == "svd" else TensorTrain
    )
    assert isinstance(head, TableHead if bundle.geometry.tied else torch.nn.Linear)
    size = artifact.save(bundle, tmp_path / "model", {})
    again = artifact.load(tmp_path / "model")
    assert (tiny.logits(again, tiny.ids(3)) - tiny.logits(bundle, tiny.ids(3))).abs().max() < 6e-3
    assert torch.equal(arch.embedding(again.module)[1].packed.dequantize(), table.packed.dequantize())
    assert artifact.stored_bytes(bundle) < size < artifact.stored_bytes(bundle) + 20_000
    before = artifact.stored_bytes(tiny.bundle(family))
    assert (
        before - artifact.stored_bytes(bundle)
        == 2 * bundle.geometry.table_parameters - table.packed.stored_bytes()
    )
    assert sample.complete(again, "The cat", 4) == sample.complete(bundle, "The cat", 4)
    row = outcome.layers[0]
    assert row["role"] == "embedding" and 0 < row["relative_error"] < 1
    assert row["bits_per_weight"] == 8 * table.packed.stored_bytes() / bundle.geometry.table_parameters


def test_the_logits_of_a_tied_model_are_those_of_the_rebuilt_table():
    bundle, _ = compressed("gpt2")
    plain, whole = tiny.bundle("gpt2"), arch.embedding(bundle.module)[1].packed.dequantize()
    arch.embedding(plain.module)[1].weight.data.copy_(whole)
    assert torch.equal(arch.head(plain.module)[1].weight, whole)
    assert torch.allclose(tiny.logits(bundle, tiny.ids(2)), tiny.logits(plain, tiny.ids(2)), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "opt-post-norm"])
def test_a_dense_head_is_told_and_the_file_grows(family, tmp_path):
    bundle, outcome = compressed(family, ("tensorgpt", {"rank": 2}))
    head, fresh = arch.head(bundle.module)[1], tiny.bundle(family)
    assert isinstance(head, CompressedLinear) and torch.equal(
        head.packed.weight, arch.head(fresh.module)[1].weight.half()
    )
    assert [n.code for n in outcome.notes] == ["head_kept"]
    assert artifact.stored_bytes(bundle) > artifact.stored_bytes(fresh)
    artifact.save(bundle, tmp_path / "model", {})
    assert (
        tiny.logits(artifact.load(tmp_path / "model"), tiny.ids(3)) - tiny.logits(bundle, tiny.ids(3))
    ).abs().max() < 6e-3


def test_learned_positions_are_left_alone():
    for family in ("opt", "gpt2"):
        path = arch.of(tiny.bundle(family).module).positions
        bundle, _ = compressed(family)
        assert torch.equal(
            bundle.module.get_submodule(path).weight, tiny.bundle(family).module.get_submodule(path).weight
        )


def test_a_rank_that_saves_nothing_leaves_the_table_and_says_so():
    bundle, outcome = compressed("llama", ("tensorgpt", {"rank": 8}))
    assert isinstance(arch.embedding(bundle.module)[1], torch.nn.Embedding) and outcome.layers == []
    note = outcome.notes[0]
    assert (note.code, note.facts["width"]) == ("rank_saves_nothing", 48) and note.facts["values"] >= 48


@pytest.mark.parametrize("order", [("gptq", "tensorgpt"), ("tensorgpt", "gptq")])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_it_chains_with_what_rounds_the_linears(family, order, tmp_path):
    values = {"gptq": {"bits": 4, "group_size": 16}, "tensorgpt": {"rank": 2, "head": "cores"}}
    bundle, outcome = compressed(family, *((name, values[name]) for name in order), table_bits=8)
    assert isinstance(arch.embedding(bundle.module)[1].packed, TensorTrain)
    formats = {bundle.module.get_submodule(path).packed.format for path, _, _ in arch.linears(bundle.module)}
    assert formats == {"grouped_int"} and {row["method"] for row in outcome.layers} == {"gptq", "tensorgpt"}
    assert [n.facts["bits"] for n in outcome.notes if n.code == "table_kept"] == [8]
    head = arch.head(bundle.module)[1]
    assert isinstance(head, TableHead) or head.packed.format == "grouped_int", (
        "a head of its own is rounded as always"
    )
    artifact.save(bundle, tmp_path / "model", {})
    assert (
        tiny.logits(artifact.load(tmp_path / "model"), tiny.ids(3)) - tiny.logits(bundle, tiny.ids(3))
    ).abs().max() < 2e-2


def test_a_table_is_stored_once():
    with pytest.raises(BadChain, match="both store the token embedding"):
        compressed("llama", ("tensorgpt", {"rank": 1}), ("tensorgpt", {"rank": 1}))


def test_cancel_is_heard_and_progress_told():
    bundle, events = tiny.bundle(), []
    compress(bundle, context(events=events), TensorGptParams(rank=1))
    assert [(e["stage"], e["done"], e["total"]) for e in events] == [("compress", 0, 1)]
    with pytest.raises(Cancelled):
        compress(bundle, context(lambda: True), TensorGptParams(rank=1))


def test_without_the_kernels_it_is_served_plainly_and_says_so(monkeypatch):
    from compression import engine
    from evaluation.measuring import memory
    from kernels import cpu

    with_c, ids = compressed("llama")[0], tiny.ids(2, 12)
    expected = tiny.logits(with_c, ids)
    monkeypatch.setattr(cpu, "library", lambda: None)
    monkeypatch.setattr(cpu, "wait", lambda: None)
    bundle = compressed("llama")[0]
    assert torch.allclose(tiny.logits(bundle, ids), expected, atol=1e-4)
    assert memory.kernels_used(bundle.module)[0].endswith("(PyTorch)")
    assert engine.serve(bundle) is None and "C kernels" in bundle.refused


# --- the SVD with weighted errors ---


def weights(n, width, seed):
    """(shares [n] that sum to 1, second moments [width, width] of correlated states)."""
    x = vectors(300, width, seed) @ vectors(width, width, seed + 1).double().float()
    shares = torch.rand(n, generator=torch.Generator().manual_seed(seed)).double() ** 4
    return shares / shares.sum(), (x.T @ x).double() / len(x)


@pytest.mark.parametrize("what", ["rows", "columns", "both"])
@pytest.mark.parametrize("rank", [1, 5])
def test_the_weighted_svd_equals_the_oracle(rank, what):
    table, (rows, columns) = vectors(40, 12), weights(40, 12, 3)
    rows = rows if what != "columns" else None
    columns = columns if what != "rows" else None
    found = factors(table, rank, rows, columns)
    expected = oracles.low_rank.weighted_svd(
        table.double().numpy(),
        rank,
        np.full(40, 1 / 40) if rows is None else rows.numpy(),
        np.eye(12) if columns is None else columns.numpy(),
    )
    assert np.abs(found.dequantize().double().numpy() - expected).max() < 5e-3 * np.abs(expected).max()


def test_equal_weights_are_the_plain_svd():
    table = vectors(2_100, 16)  # more than a chunk
    same = factors(table, 4, torch.full((2_100,), 1 / 2_100), 7 * torch.eye(16, dtype=torch.float64))
    assert torch.allclose(same.dequantize(), factors(table, 4).dequantize(), atol=6e-3)


def test_each_svd_wins_in_what_it_weighs():
    """A claim of the weights, with a margin: half of the plain SVD's error, or less."""
    table, (rows, columns) = vectors(400, 24), weights(400, 24, 8)

    def lost(packed):
        error = table.double() - packed.dequantize().double()
        return float((rows[:, None] * (error @ columns) * error).sum())

    assert lost(factors(table, 6, rows, columns)) < 0.5 * lost(factors(table, 6))
    assert lost(factors(table, 6, rows, columns)) < min(
        lost(factors(table, 6, rows)), lost(factors(table, 6, None, columns))
    )


def test_shares_count_every_token_and_a_little_those_that_never_occur():
    ids = torch.tensor([[0, 0, 0, 3], [0, 3, 1, 0]])
    found = frequencies(ids, 5)
    expected = [(1 - UNSEEN) * n / 8 + UNSEEN / 5 for n in (5, 1, 0, 2, 0)]
    assert found.tolist() == pytest.approx(expected) and float(found.sum()) == pytest.approx(1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt-post-norm"])
def test_moments_are_those_of_what_the_head_multiplies(family):
    bundle, ids = tiny.bundle(family), tiny.ids(3)
    seen = []
    handle = arch.head(bundle.module)[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tiny.logits(bundle, ids)
    handle.remove()
    states = torch.cat([x.flatten(0, -2) for x in seen]).double()
    found = second_moments(bundle, ids, context())
    assert torch.allclose(found, states.T @ states / len(states), rtol=1e-4, atol=1e-6)
    assert float(torch.linalg.eigvalsh(damped(found))[0]) > 0


@pytest.mark.parametrize("weighted", ["frequency", "states", "both"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_weighted_svd_in_a_model_is_that_of_its_text(family, weighted):
    recipe = ("tensorgpt", {"rank": 2, "kind": "svd", "head": "cores", "weighted": weighted})
    found = arch.embedding(compressed(family, recipe)[0].module)[1].packed
    plain, ids = tiny.bundle(family), tiny.ids(8)
    table = arch.embedding(plain.module)[1].weight.detach().float()
    rows = frequencies(ids, len(table)) if weighted != "states" else None
    columns = damped(second_moments(plain, ids, context())) if weighted != "frequency" else None
    expected = factors(table, found.u.shape[1], rows, columns)
    assert torch.equal(found.dequantize(), expected.dequantize())


@pytest.mark.parametrize("family, head", [("gpt_neox", "cores"), ("llama", "dense")])
def test_states_weigh_nothing_where_no_head_reads_the_table(family, head):
    with pytest.raises(BadParam, match="no head reads the stored table"):
        compressed(family, ("tensorgpt", {"rank": 2, "kind": "svd", "head": head, "weighted": "states"}))


# --- training what is stored ---

SHORT = {"rank": 2, "train_tokens": 1_024, "learning_rate": 0.01}


@pytest.mark.parametrize("kind", ["tensor_train", "svd"])
@pytest.mark.parametrize(
    "family, shared",
    [("llama", True), ("llama", False), ("gpt2", True), ("gpt2", False), ("gpt_neox", False)],
)
def test_the_loss_is_the_divergence_and_its_gradient_the_slope(family, shared, kind):
    """Of all logits at once, from the model with the rebuilt table in its place; the slope by differences."""
    bundle, ids = loud(family), tiny.ids(2)
    table = arch.embedding(bundle.module)[1].weight.detach().float()
    stored = (
        factors(table, 3)
        if kind == "svd"
        else tensor_trains(table, square(table.shape[1]), ranks_of(square(table.shape[1]), 2), context())
    )
    learner = TaughtTable(stored, torch.float32)

    def plainly():
        """Mean KL(p || q) of the logits in 64 bits."""
        p = tiny.logits(loud(family), ids).double().log_softmax(-1)
        student, whole = loud(family), learner.rows().detach()
        embedding, head = arch.embedding(student.module)[1], arch.head(student.module)[1]
        head.weight = torch.nn.Parameter((whole if shared else head.weight.detach()).clone())
        embedding.weight = torch.nn.Parameter(whole.clone())
        q = tiny.logits(student, ids).double().log_softmax(-1)
        return float((p.exp() * (p - q)).sum(-1).mean())

    loss = distillation_loss(bundle, learner, shared, ids)
    assert loss.item() == pytest.approx(plainly(), rel=1e-3)
    loss.backward()
    steepest = max(learner.numbers, key=lambda n: float(n.grad.abs().max()))
    place = int(steepest.grad.abs().argmax())
    around = []
    for step in (3e-3, -3e-3):
        with torch.no_grad():
            steepest.view(-1)[place] += step
            around.append(plainly())
            steepest.view(-1)[place] -= step
    slope = (around[0] - around[1]) / 6e-3
    assert float(steepest.grad.view(-1)[place]) == pytest.approx(slope, rel=0.02)
    assert arch.embedding(bundle.module)[1].weight.grad is None, "the model itself is frozen"


@pytest.mark.parametrize("head", ["dense", "cores"])
@pytest.mark.parametrize("kind", ["tensor_train", "svd"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt-post-norm"])
def test_training_lowers_the_divergence_and_keeps_the_form(family, kind, head, tmp_path):
    """The limit is the untrained table, in the same bytes. Chains lose a tenth of their divergence from the
    original; the SVD, which all tokens share, was near its best here and must not get worse."""
    chosen = {"kind": kind, "head": head}
    (bundle, outcome), (plain, _) = (
        compressed(family, ("tensorgpt", values | chosen), make=loud) for values in (SHORT, {"rank": 2})
    )
    ids = tiny.ids(8)
    p = tiny.logits(loud(family), ids).log_softmax(-1)

    def divergence(of):
        return float((p.exp() * (p - tiny.logits(of, ids).log_softmax(-1))).sum(-1).mean())

    assert divergence(bundle) < (0.9 if kind == "tensor_train" else 1.01) * divergence(plain)
    assert artifact.stored_bytes(bundle) == artifact.stored_bytes(plain)
    curve = outcome.series["training"]
    assert curve[-1][0] >= 1_024 and "trained" in [n.code for n in outcome.notes]
    for path, _, _ in arch.linears(bundle.module):
        weight = bundle.module.get_submodule(path).weight
        assert torch.equal(weight, loud(family).module.get_submodule(path).weight)
    artifact.save(bundle, tmp_path / "model", {})
    again = artifact.load(tmp_path / "model")
    assert (tiny.logits(again, ids) - tiny.logits(bundle, ids)).abs().max() < 0.02 * tiny.logits(
        bundle, ids
    ).abs().max()


@pytest.mark.parametrize(
    "first", [("gptq", {"bits": 4, "group_size": 16}), ("sparsegpt", {"pattern": "2:4"}), ("svd", {})]
)
def test_a_table_is_trained_through_whatever_stores_the_linears(first):
    """The teacher is the model that the step before left, so the table makes up for nothing but itself."""
    _, outcome = compressed("llama", first, ("tensorgpt", SHORT), make=loud)
    held_out = [row[2] for row in outcome.series["training"] if row[2] is not None]
    assert min(held_out) < 0.99 * held_out[0]


def test_a_training_that_gains_nothing_leaves_the_table_and_says_so(monkeypatch):
    def spoil(parameters, *args, **options):
        for p in parameters:
            p.data.zero_()
        return Course([[0, None, 1.0], [9, 1.0, 2.0]], tokens=9, before=1.0, best=1.0)

    monkeypatch.setattr(tensorgpt, "train", spoil)
    (bundle, outcome), (plain, _) = (
        compressed("llama", ("tensorgpt", SHORT | more)) for more in ({}, {"train_tokens": 0})
    )
    assert [n.code for n in outcome.notes] == ["trained", "training_no_gain", "head_kept"]
    tables = [arch.embedding(b.module)[1].packed.dequantize() for b in (bundle, plain)]
    assert torch.equal(*tables)


def test_what_it_reads_and_what_stands_beside_it():
    assert not reads(TensorGptParams()) and not reads(TensorGptParams(kind="svd"))
    assert not reads(TensorGptParams(weighted="both")), "a weight of the SVD alone"
    assert reads(TensorGptParams(kind="svd", weighted="frequency")) and reads(TensorGptParams(train_tokens=1))
    assert control(TensorGptParams()) is None and control(TensorGptParams(kind="svd", train_tokens=9)) is None
    method, values = control(TensorGptParams(train_tokens=9))
    assert (method, values) == ("tensorgpt", TensorGptParams(train_tokens=9, kind="svd").json())


def test_the_default_halves_the_table_of_an_untied_model():
    """Two sides, 6 threads: 24 x 24 -> 288 of 576 numbers a token, 2.00 times smaller. A head of its own stays;
    a shared one keeps the dense table, and the file grows by the chains."""
    assert 576 / shape_of(576, TensorGptParams())[2] == 2.0
    for family in ("gpt_neox", "llama"):
        fresh, (bundle, outcome) = tiny.bundle(family), compressed(family, ("tensorgpt", {"rank": 2}))
        chains = arch.embedding(bundle.module)[1].packed.stored_bytes()
        saved = artifact.stored_bytes(fresh) - artifact.stored_bytes(bundle)
        tied = fresh.geometry.tied
        assert (
            tied is (family == "llama")
            and saved == (0 if tied else 2 * fresh.geometry.table_parameters) - chains
        )
        assert [n.code for n in outcome.notes] == (["head_kept"] if tied else [])


# --- the claims ---


def test_an_svd_of_the_table_beats_chains_at_equal_bytes_where_tokens_share_directions():
    """Section 7 (e): a table with a falling spectrum, as trained ones have."""
    spectrum = torch.arange(1, 65).float() ** -0.7
    table = (vectors(400, 64) * spectrum) @ torch.linalg.qr(vectors(64, 64, seed=9)).Q
    errors = {}
    for kind in ("tensor_train", "svd"):
        params = TensorGptParams(rank=3, kind=kind)
        modes, ranks, values = shape_of(64, params)
        if kind == "svd":
            packed = factors(table, svd_rank(table.shape, values))
        else:
            packed = tensor_trains(table, modes, ranks, context())
        errors[kind] = float((packed.dequantize() - table).norm() / table.norm())
    assert errors["svd"] < 0.75 * errors["tensor_train"]


def test_svd_of_the_table_is_the_nearest_of_its_rank():
    table = vectors(90, 40)
    packed = factors(table, 11)
    s = torch.linalg.svdvals(table.double())
    assert float((packed.dequantize() - table).square().sum()) == pytest.approx(
        float(s[11:].square().sum()), rel=1e-4
    )

"""White-box distillation: divergences by hand, rollouts, the policy gradient by enumeration, and the orderings of a micro language."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import numpy as np
import pytest
import torch

from compression import arch, get, row_losses
from compression.base import BadParam, Cancelled, Context
from compression.bundle import Bundle
from compression.distillation import gkd, minillm, rollouts, students, white_box
from compression.distillation.divergences import between, forward_kl, jensen_shannon, logs, reverse_kl
from compression.distillation.rollouts import Sequences, distinct, draw, given
from compression.distillation.white_box import token_mean
from tests import chain_language as language
from tests import tiny

NO_END = frozenset()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def context(windows, teacher, seed=0, **more):
    fields = {"emit": lambda event: None, "cancelled": lambda: False} | more
    return Context(windows, seed=seed, teacher=teacher, **fields)


def facts(edit):
    return {note.code: note.facts for note in edit.notes}


# --- divergences ---


def test_directions_on_two_symbols_by_hand():
    p, q = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    covering = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    seeking = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    a, b = torch.tensor(p).log(), torch.tensor(q).log()
    assert float(forward_kl(a, b)) == pytest.approx(covering, rel=1e-9) != pytest.approx(seeking, rel=0.1)
    assert float(reverse_kl(a, b)) == pytest.approx(seeking, rel=1e-9)
    torch_says = torch.nn.functional.kl_div(b, a, log_target=True, reduction="sum")  # KL(target || input)
    assert float(forward_kl(a, b)) == pytest.approx(float(torch_says), rel=1e-9)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jensen_shannon_is_its_definition_and_bounded(beta):
    p, q = (torch.softmax(3 * torch.randn(5, 7, generator=seeded(s)).double(), -1).numpy() for s in (1, 2))
    m = beta * p + (1 - beta) * q
    expected = beta * (p * np.log(p / m)).sum(-1) + (1 - beta) * (q * np.log(q / m)).sum(-1)
    found = jensen_shannon(torch.tensor(p).log(), torch.tensor(q).log(), beta)
    assert np.allclose(found.numpy(), expected, rtol=1e-9)
    assert (found <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)).all()
    if beta == 0.5:
        assert np.allclose(found.numpy(), jensen_shannon(torch.tensor(q).log(), torch.tensor(p).log(), 0.5).numpy())
        apart = torch.tensor([[0.0, -1e9]]), torch.tensor([[-1e9, 0.0]])
        assert float(jensen_shannon(*apart, 0.5)) == pytest.approx(math.log(2))


def test_limits_are_the_two_directions():
    a, b = (torch.randn(4, 9, generator=seeded(s)).double() for s in (3, 4))
    assert torch.allclose(jensen_shannon(a, b, 1e-3) / 1e-3, forward_kl(a, b), rtol=0.01)
    assert torch.allclose(jensen_shannon(a, b, 1 - 1e-3) / 1e-3, reverse_kl(a, b), rtol=0.01)
    assert torch.equal(between(a, b, 0), forward_kl(a, b)) and torch.equal(between(a, b, 1), reverse_kl(a, b))
    assert torch.allclose(between(a, b, 0.5), 4 * jensen_shannon(a, b, 0.5))


@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_the_loss_and_its_gradient_are_those_of_trl(beta):
    """A well-kept implementation of the same paper; its own isn't divided by beta (1 - beta)."""
    from trl.experimental.gkd import GKDTrainer

    teacher, ours = torch.randn(7, 11, dtype=torch.float64), torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    found = between(teacher, ours, beta).sum() * (beta * (1 - beta) or 1)
    expected = GKDTrainer.generalized_jsd_loss(theirs, teacher, beta=beta, reduction="sum")
    found.backward(), expected.backward()
    assert found.item() == pytest.approx(expected.item()) and torch.allclose(ours.grad, theirs.grad)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_value_and_gradient_are_zero_where_both_agree_only(beta):
    a = torch.randn(3, 8, generator=seeded(5)).double()
    same, other = (a + 2.0).requires_grad_(True), (a + torch.randn(3, 8, generator=seeded(6))).requires_grad_(True)
    for q, none in ((same, True), (other, False)):
        value = between(a, q, beta).sum()
        value.backward()
        assert (abs(float(value.detach())) < 1e-12) is none and (float(q.grad.abs().max()) < 1e-9) is none


# --- samples ---


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_student_that_reads_its_cache_expects_what_it_expects_of_the_whole(family):
    teacher = tiny.bundle(family)
    student = students.keep_blocks(teacher, [0])
    assert student.module.config.num_hidden_layers == 1
    drawn = draw(student, teacher, tiny.ids(3, 6), 10, 0.3, NO_END, seeded())
    for bundle, kept in ((student, drawn.log_q), (teacher, drawn.log_p)):
        whole = logs(tiny.logits(bundle, drawn.ids))[:, 5:-1]
        at = whole.gather(2, drawn.ids[:, 6:, None])[..., 0]
        assert torch.allclose(at, kept, atol=1e-4)
    w = drawn.log_q.exp() / (0.3 * drawn.log_p.exp() + 0.7 * drawn.log_q.exp())
    assert torch.allclose(drawn.weights, w, rtol=1e-4)


def test_layers_that_stay_are_evenly_spaced_with_both_ends():
    assert students.spaced(30, 10) == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert students.spaced(2, 1) == [0] and students.spaced(5, 5) == [0, 1, 2, 3, 4]
    teacher = language.model(layers=4)
    student = students.make(teacher, gkd.GkdParams(kept=0.5))
    assert [block.self_attn.layer_idx for block in arch.blocks(student.module)] == [0, 1]
    for kept, own in zip((0, 3), arch.blocks(student.module), strict=True):
        pairs = zip(arch.blocks(teacher.module)[kept].parameters(), own.parameters(), strict=True)
        assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
    assert (
        len(arch.blocks(teacher.module)) == 4 and students.reshaped(teacher.geometry, gkd.GkdParams(kept=0.5)) == student.geometry
    )


class Fixed(torch.nn.Module):
    """A model that expects the same tokens everywhere."""

    def __init__(self, chances):
        super().__init__()
        self.chances = torch.tensor(chances)


def fixed(monkeypatch, **chances):
    """Bundles by name whose every next token has those chances."""
    found = {n: Bundle(Fixed(c), None, language.model(16, 1).geometry, n) for n, c in chances.items()}
    for bundle in found.values():
        bundle.geometry = type(bundle.geometry)("llama", 1, len(bundle.module.chances), 99, True, bundle.geometry.layers)
        bundle.module.register_parameter("none", torch.nn.Parameter(torch.zeros(1)))
    monkeypatch.setattr(rollouts, "transformers_stepper", lambda b: lambda ids: b.module.chances.log().expand(len(ids), -1))
    return found.values()


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_samples_come_from_the_mixture_and_weights_correct_it(monkeypatch, alpha):
    q, p = [0.7, 0.2, 0.1, 0.0], [0.1, 0.1, 0.1, 0.7]
    student, teacher = fixed(monkeypatch, q=q, p=p)
    drawn = draw(student, teacher, torch.zeros(400, 1, dtype=torch.long), 25, alpha, NO_END, seeded())
    seen = torch.bincount(drawn.ids[:, 1:].flatten(), minlength=4) / 10_000
    mixed = alpha * torch.tensor(p) + (1 - alpha) * torch.tensor(q)
    assert torch.allclose(seen, mixed, atol=0.02)
    if alpha == 0:
        assert (drawn.weights == 1).all()
    if alpha < 1:
        assert drawn.weights.max() <= 1 / (1 - alpha) + 1e-6
        for symbol, chance in enumerate(q):  # E[w 1{y}] under the mixture is the student's own chance
            hit = drawn.ids[:, 1:] == symbol
            assert float((drawn.weights * hit).mean()) == pytest.approx(chance, abs=0.02)


def test_a_sample_ends_at_its_first_end_token_which_counts(monkeypatch):
    student, teacher = fixed(monkeypatch, q=[0.5, 0.3, 0.2], p=[0.5, 0.3, 0.2])
    drawn = draw(student, teacher, torch.ones(64, 3, dtype=torch.long), 12, 0.0, frozenset({2}), seeded())
    for row, length in zip(drawn.ids[:, 3:].tolist(), drawn.lengths.tolist(), strict=True):
        end = row.index(2) + 1 if 2 in row else len(row)
        assert length == end
    assert drawn.scored.sum() == drawn.lengths.sum() == len(drawn.targets) == drawn.mask.sum()
    ended = drawn.mask & (drawn.ids[:, 3:] == 2)
    assert ended.sum(1).max() == 1 and ended.any(), "the end token carries loss, even where padding has the same id"
    assert drawn.numel() == 64 * 3 + int(drawn.lengths.sum())


def test_distinct_counts_sequences_of_four():
    ids = torch.tensor([[9, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 7]])
    assert distinct(Sequences(ids, 1, torch.tensor([5, 4]))) == 2 / 3


@pytest.mark.parametrize("method", ["gkd", "minillm"])
def test_what_stands_behind_the_end_never_changes_a_loss(method):
    teacher, student = language.model(seed=1), language.model(16, 1)
    drawn = draw(student, teacher, language.text(6, 1, window=5), 9, 0.2, frozenset({3, 4}), seeded())
    assert drawn.lengths.min() < drawn.lengths.max()
    places = torch.arange(drawn.ids.shape[1]) >= 5 + drawn.lengths[:, None]
    filled = copy.copy(drawn.__dict__) | {"ids": torch.where(places, 7, drawn.ids)}
    for name in ("log_q", "log_p", "weights"):
        filled[name] = torch.where(places[:, 5:], 123.0, getattr(drawn, name))
    lesson = lesson_of(method, student, teacher)
    loss = {"gkd": gkd, "minillm": minillm}[method].phase(lesson).loss
    with torch.no_grad():
        first, again = float(loss(drawn)), float(loss(Sequences(**filled)))
    assert first == pytest.approx(again, rel=1e-6)


def lesson_of(method, student, teacher, **values):
    params = get(method).params.parse({"prompt_tokens": 4, "response_tokens": 8} | values)
    return white_box.Lesson(student, teacher, language.text(16, 2), language.text(4, 3), params, 0, lambda: False)


# --- the policy gradient ---


def everything(seed=0, symbols=4, length=3):
    """Tables of logits for every prefix, of q and p, and all sequences."""
    sequences = list(itertools.product(range(symbols), repeat=length))
    prefixes = sorted({s[:t] for s in sequences for t in range(length)})
    q, p = (torch.randn(len(prefixes), symbols, generator=seeded(seed + i)).double() for i in (0, 1))
    where = torch.tensor([[prefixes.index(s[:t]) for t in range(length)] for s in sequences])
    return q.requires_grad_(True), p, torch.tensor(sequences), where


def chosen(table, sequences, where):
    return logs(table)[where].gather(2, sequences[..., None])[..., 0]


def surrogate(q, p, sequences, where, single_step, **switches):
    """Expectation over every sequence, each with its chance, of the sum of the method's token losses."""
    log_q, log_p = chosen(q, sequences, where), chosen(p, sequences, where)
    old = log_q.detach()
    switches = {"length_norm": False, "whiten": False} | switches
    weight = minillm.advantages(log_p - old, torch.ones_like(sequences, dtype=torch.bool), single_step=single_step, **switches)
    flat = where.flatten()
    losses = minillm.token_loss(logs(p)[flat], logs(q)[flat], sequences.flatten(), weight.flatten(), old.flatten(),
                                torch.ones(sequences.numel()).double(), single_step)  # fmt: skip
    return (old.sum(1).exp() * losses.view(sequences.shape).sum(1)).sum()


@pytest.mark.parametrize("single_step", [True, False])
def test_the_expected_gradient_is_that_of_the_sequences_reverse_kl(single_step):
    """All 64 sequences of 3 out of 4 symbols, without norm, mixing or clip."""
    q, p, sequences, where = everything()
    exact = (chosen(q, sequences, where).sum(1).exp() * (chosen(q, sequences, where) - chosen(p, sequences, where)).sum(1)).sum()
    (expected,) = torch.autograd.grad(exact, q)
    (found,) = torch.autograd.grad(surrogate(q, p, sequences, where, single_step), q)
    assert torch.allclose(found, expected, atol=1e-6) and expected.abs().max() > 1e-2


@pytest.mark.parametrize("length_norm", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_text_of_one_token_has_no_return(whiten, length_norm):
    rewards, mask = torch.randn(5, 1), torch.ones(5, 1, dtype=torch.bool)
    assert not minillm.advantages(rewards, mask, single_step=True, length_norm=length_norm, whiten=whiten).any()


def test_a_student_like_its_teacher_has_no_gradient():
    q, _, sequences, where = everything()
    for single_step in (True, False):
        (found,) = torch.autograd.grad(surrogate(q, q.detach(), sequences, where, single_step), q)
        assert found.abs().max() < 1e-9


def test_returns_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 99.0, 99.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])

    def made(**changed):
        switches = {"length_norm": False, "whiten": False, "single_step": True} | changed
        return minillm.advantages(rewards, mask, **switches).tolist()

    assert made() == [[14, 12, 8, 0], [5, 0, 0, 0]]
    assert made(length_norm=True) == [[7, 12, 8, 0], [5, 0, 0, 0]], "divisors max(1, T - t - 1) of T - t terms"
    assert made(single_step=False) == [[14, 13, 11, 7], [7, 4, 0, 0]]
    whitened = minillm.advantages(rewards, mask, single_step=True, length_norm=True, whiten=True)
    has = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert not whitened[~has].any() and abs(float(whitened[has].mean())) < 1e-6
    assert float(whitened[has].std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_the_ratio_is_clipped_where_it_would_be_rewarded():
    """PPO: a ratio beyond 1 +- 0.2 has no gradient in the direction of its advantage, and keeps it in the other."""
    for advantage, ratio, free in ((1.0, 1.3, False), (1.0, 0.7, True), (-1.0, 1.3, True), (-1.0, 0.7, False)):
        log_q = torch.zeros(1, 2).double().requires_grad_(True)
        out = minillm.token_loss(torch.zeros(1, 2).double(), torch.log_softmax(log_q, -1), torch.tensor([0]),
                                 torch.tensor([advantage]), torch.tensor([0.5]).log() - math.log(ratio), torch.ones(1), False)  # fmt: skip
        out.sum().backward()
        assert bool(log_q.grad.any()) is free


# --- the loss over a model ---


def test_the_mean_is_over_scored_tokens_and_chunks_change_nothing(monkeypatch):
    teacher, student = language.model(seed=1), language.model(16, 1)
    student.module.requires_grad_(True)
    batch = given(language.text(5, 4, window=12), 4)
    value = lambda p, q, rows: forward_kl(p, q)  # noqa: E731
    parameters = list(student.module.parameters())
    logits = student.module(input_ids=batch.ids, use_cache=False).logits
    expected = forward_kl(tiny.logits(teacher, batch.ids), logits)[:, 3:-1].mean()
    gradients = torch.autograd.grad(expected, parameters)
    for size in (row_losses.LOGITS_BYTES, 7 * 4 * language.LETTERS):
        monkeypatch.setattr(row_losses, "LOGITS_BYTES", size)
        loss = token_mean(student, teacher, batch, value)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        found = torch.autograd.grad(loss, parameters)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, gradients, strict=True))
    assert all(p.grad is None for p in teacher.module.parameters())


def test_padded_heads_are_cut_to_the_smaller_one():
    teacher, student = language.model(), language.model(16, 1)
    wide = torch.nn.Linear(64, language.LETTERS + 5, bias=False)
    with torch.no_grad():
        wide.weight[: language.LETTERS] = arch.head(teacher.module)[1].weight
    batch, value = given(language.text(3, 4), 1), lambda p, q, rows: reverse_kl(p, q)
    with torch.no_grad():
        narrow = float(token_mean(student, teacher, batch, value))
        teacher.module.lm_head, teacher.geometry = wide, copy.copy(teacher.geometry)
        object.__setattr__(teacher.geometry, "vocabulary", language.LETTERS + 5)
        assert float(token_mean(student, teacher, batch, value)) == pytest.approx(narrow, rel=1e-6)


@functools.cache
def short(name, **values):
    """`train_short`, each once a session."""
    return train_short(name, **values)


def train_short(name, seed=0, **values):
    """A short training of a fresh student beside a random teacher: (student's weights, edit)."""
    method, student = get(name), language.model(16, 1, seed)
    base = {"train_tokens": 1_500, "prompt_tokens": 4, "response_tokens": 12, "learning_rate": 0.01}
    edit = method.compress(student, context(language.text(32, 6), language.model(32, 1, 9)), method.params.parse(base | values))
    return torch.cat([p.flatten() for p in edit.bundle.module.parameters()]), edit


def test_lambda_zero_is_supervised_distillation_bit_for_bit():
    supervised, _ = short("gkd", objective="supervised", jsd_beta=0.3)
    assert torch.equal(short("gkd", on_policy=0.0, jsd_beta=0.3)[0], supervised)
    assert not torch.equal(short("gkd", on_policy=1.0, jsd_beta=0.3)[0], supervised)


def test_lambda_one_never_reads_the_texts_responses(monkeypatch):
    values = {"warm_up": 0.0, "on_policy": 1.0}
    first, _ = train_short("gkd", **values)
    real = rollouts.pieces

    def shuffled(windows, size):
        cut = real(windows, size)
        cut[:, 4:] = cut[torch.randperm(len(cut), generator=seeded(8)), 4:]
        return cut

    monkeypatch.setattr(rollouts, "pieces", shuffled)
    assert torch.equal(train_short("gkd", **values)[0], first)


def test_plain_fine_tuning_needs_no_teacher(monkeypatch):
    """Neither its loss nor its judge: the teacher is there to be measured against, and what it makes of the text is kept for that."""
    monkeypatch.setattr(white_box.Lesson, "measured", lambda self: {"length": 0.0, "distinct": 0.0})
    monkeypatch.setattr(white_box.Lesson, "aside", property(lambda self: given(self.held, 1)))
    student, method = language.model(16, 1), get("gkd")
    deaf = Bundle(None, None, language.model().geometry, "nobody")
    values = {"objective": "text", "train_tokens": 600, "prompt_tokens": 4, "response_tokens": 12}
    assert facts(method.compress(student, context(language.text(16, 6), deaf), method.params.parse(values)))["distilled"]["steps"]


@pytest.mark.parametrize("name", ["gkd", "minillm"])
def test_the_same_run_twice_is_the_same_student_and_its_teacher_is_untouched(name):
    teacher = language.model(32, 1, 9)
    first, edit = short(name)
    assert torch.equal(train_short(name)[0], first)
    assert all(
        torch.equal(a, b) for a, b in zip(language.model(32, 1, 9).module.parameters(), teacher.module.parameters(), strict=True)
    )
    told = facts(edit)
    assert told["distilled"]["best"] <= told["distilled"]["before"] and told["distilled"]["first_tokens"] >= 700
    assert {"text_forward_before", "own_reverse_after"} <= set(told["divergences"])
    assert 0 < told["samples"]["length"] <= 12 and 0 <= told["samples"]["distinct"] <= 1
    assert edit.series["warm_up"][0][2] > edit.series["warm_up"][-1][2]


@pytest.mark.parametrize(
    "values",
    [{"single_step": False}, {"teacher_mix": 0.0}, {"length_norm": False}, {"text_weight": 0.0}, {"whiten": False}, {"inner_epochs": 1}],
)  # fmt: skip
def test_every_repair_has_its_switch(values):
    curves = [short("minillm", train_tokens=3_000, warm_up=0.0, **v)[1].series["training"] for v in (values, {})]
    losses = [[row[1] for row in curve if row[2] is None] for curve in curves]
    assert losses[0] != losses[1] and min(map(len, losses)) > 1


def test_progress_is_one_course_over_both_phases():
    told = []
    method, student = get("gkd"), language.model(16, 1)
    params = method.params.parse({"train_tokens": 1_500, "prompt_tokens": 4, "response_tokens": 12})
    method.compress(student, context(language.text(32, 6), language.model(32, 1, 9), emit=told.append), params)
    done = [event["done"] for event in told]
    assert done == sorted(done) and done[0] == 0 and done[-1] == pytest.approx(1, abs=0.05)
    assert all(event["facts"]["budget"] == 1_500 for event in told)
    assert told[-1]["facts"]["tokens"] >= 1_500


@functools.cache
def fluent(seed):
    """A student of one block that knows the language as well as so small a model can."""
    return language.taught(language.model(16, 1, seed), 300, 1e-2, seed=50 + seed)


@functools.cache
def reverse_on_own_samples(name, **values):
    """KL(q || p) in nats on fresh samples of the student after the same number of tokens, mean of two seeds."""
    method, teacher, found = get(name), language.teacher(), []
    base = {"train_tokens": 60_000, "learning_rate": 3e-3, "warm_up": 0.0, "prompt_tokens": 4, "response_tokens": 12}
    for seed in (0, 1):
        start = fluent(seed)
        student = Bundle(copy.deepcopy(start.module), start.tokenizer, start.geometry, start.name)
        method.compress(student, context(language.text(512, 5 + seed), teacher, seed), method.params.parse(base | values))
        drawn = draw(student, None, language.text(1024, 77)[:, :4], 12, 0.0, NO_END, seeded(3))
        with torch.no_grad():
            found.append(float(token_mean(student, teacher, drawn, lambda p, q, _: reverse_kl(p, q))))
    return sum(found) / 2


@pytest.mark.parametrize(
    "name, values", [("gkd", {"on_policy": 1.0, "jsd_beta": 1.0}), ("minillm", {"text_weight": 0.0})]
)  # plain text would take tokens from samples
def test_own_samples_and_reverse_kl_beat_text_at_as_many_tokens(name, values, monkeypatch):
    """From a student that knows the language, in seconds; forward KL on text is no worse than plain text within 0.3 %."""
    monkeypatch.setattr(white_box, "SAMPLES", 256)
    supervised = reverse_on_own_samples("gkd", objective="supervised", jsd_beta=0.0)
    plain = reverse_on_own_samples("gkd", objective="text")
    own = reverse_on_own_samples(name, **values)
    assert own < supervised <= 1.003 * plain


@pytest.mark.parametrize("name", ["gkd", "minillm"])
def test_it_can_be_stopped_and_ended_early(name):
    method = get(name)
    params = method.params.parse({"train_tokens": 50_000, "prompt_tokens": 4, "response_tokens": 12})
    with pytest.raises(Cancelled):
        method.compress(
            language.model(16, 1), context(language.text(32, 6), language.model(32, 1, 9), cancelled=lambda: True), params
        )
    edit = method.compress(
        language.model(16, 1), context(language.text(32, 6), language.model(32, 1, 9), enough=lambda: True), params
    )
    assert "training_enough" in facts(edit)


def test_samples_longer_than_a_window_are_refused():
    with pytest.raises(BadParam, match="80 is more than a window of 32"):
        get("gkd").compress(language.model(16, 1), context(language.text(32, 6), language.model()), get("gkd").params())


def test_controls_are_the_same_training_with_the_method_off():
    for name in ("gkd", "minillm"):
        method = get(name)
        other, values = method.control(method.params.parse({"kept": 0.5, "train_tokens": 999, "learning_rate": 0.003}))
        params = get(other).params.parse(values)
        assert (other, params.objective, params.jsd_beta) == ("gkd", "supervised", 0.0)
        assert (params.kept, params.train_tokens, params.learning_rate) == (0.5, 999, 0.003)
        text, plain = get(other).control(params)
        assert plain["objective"] == "text" and get(text).control(get(text).params.parse(plain)) is None
        assert method.control(method.params.parse({"train_tokens": 0})) is None

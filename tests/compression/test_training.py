"""The training loop: budgets, the best state, how it ends; and the loss that it is given."""

from __future__ import annotations

import itertools
import math
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compression import likelihood, row_losses, training
from compression.base import CalibrationError, Cancelled
from compression.recorder import Recorder
from compression.training import Budget, from_text, hold_out, language_loss, train
from tests import chain_language, tiny

WINDOWS = torch.arange(24 * 64).view(24, 64) % 7


def quadratic(start=3.0):
    """A parameter and a loss whose minimum is at 1."""
    p = nn.Parameter(torch.full((4,), start))
    return p, lambda ids: (p - 1).square().sum()


def test_a_budget_of_tokens_is_kept_and_the_loss_falls():
    p, loss = quadratic()
    course = train([p], loss, *from_text(WINDOWS, loss, 0), Budget(20_480, 10), rate=0.2)
    assert course.ended == "tokens" and 20_480 <= course.tokens < 20_480 + training.TOKENS_PER_STEP
    assert (
        course.before == pytest.approx(16.0)
        and len([1 for row in course.curve if row[1] is not None]) >= course.steps
    )
    assert course.best < 0.5 * course.before
    held = [row[2] for row in course.curve if row[2] is not None]
    assert held[0] == course.before and min(held) == course.best and len(held) >= training.JUDGED
    assert float(loss(None)) == pytest.approx(course.best), "the parameters are those of the best state"


def test_the_same_seed_gives_the_same_course():
    def one():
        torch.manual_seed(1)
        p, w = nn.Parameter(torch.zeros(7)), torch.randn(7)

        def loss(ids):
            return (p[ids[:, :8]] - w[ids[:, :8]]).square().mean()

        course = train(
            [p], loss, *from_text(WINDOWS, loss, 5), Budget(8_192, 10), rate=0.1, recorder=Recorder(seed=5)
        )
        return p.detach(), course.curve

    (a, first), (b, second) = one(), one()
    assert torch.equal(a, b) and first == second


def test_the_first_step_is_adams_by_hand():
    """Adam's first step is the rate times the gradient's sign; the rate starts at a hundredth of its
    height."""
    p, loss = quadratic()
    train([p], loss, *from_text(WINDOWS, loss, 0), Budget(1, 10), rate=0.5)
    assert torch.allclose(p, torch.full((4,), 3.0 - 0.5 * 0.01), atol=1e-6)


def test_a_training_that_only_harms_ends_where_it_began():
    p = nn.Parameter(torch.ones(3))
    lies = iter(range(1000))

    def judged(ids):
        return -p.sum() if torch.is_grad_enabled() else p.sum() * 0 + next(lies)

    course = train([p], judged, *from_text(WINDOWS, judged, 0), Budget(8_192, 10), rate=1.0)
    assert torch.equal(p, torch.ones(3)) and course.best == course.before


def test_minutes_end_it_too_and_say_so():
    p, loss = quadratic()
    course = train([p], loss, *from_text(WINDOWS, loss, 0), Budget(10**9, 1e-4), rate=0.1)
    assert course.ended == "minutes" and course.tokens < 10**8
    assert "training_minutes" in {n.code for n in course.notes("x")}


@pytest.mark.parametrize(
    "tokens, minutes, done",
    [(0, 0, 0), (0, 0.1, 0), (0.5, 0.5, 0.5), (0.5, 0.55, 0.5), (0.2, 0.55, 0.5), (0.2, 1, 1), (1, 0, 1)],
)
def test_a_run_is_as_far_as_what_ends_it(tokens, minutes, done):
    assert training.over(tokens, minutes) == pytest.approx(done)


def rates_of(monkeypatch, seconds_a_step, minutes):
    """(rates of all steps, course) of a training whose clock goes on by so much with every look at it."""
    ticks = itertools.count(0.0, seconds_a_step)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    seen, (p, loss) = [], quadratic()

    def watched(parameters, rate):
        stepper = training.adamw(parameters, rate)
        stepper.register_step_pre_hook(lambda own, *_: seen.append(own.param_groups[0]["lr"]))
        return stepper

    budget = Budget(40 * 1_024, minutes)
    course = train([p], loss, *from_text(WINDOWS, loss, 0), budget, rate=1.0, optimizer=watched)
    return seen, course


def test_the_rate_falls_to_nothing_by_whichever_ends_the_run(monkeypatch):
    """A second a step: 61 steps by tokens, 20 by minutes."""
    by_tokens, course = rates_of(monkeypatch, 1.0, 10)
    taken = [row[0] for row in course.curve if row[1] is not None and row[2] is None]
    shares = [tokens / (40 * 1_024) for tokens in (0, *taken[:-1])]
    expected = [min(share / 0.1 + 0.01, (1 - share) / 0.9, 1) for share in shares]
    assert by_tokens == pytest.approx(expected) and course.ended == "tokens" and not course.hurried
    again, _ = rates_of(monkeypatch, 8.0, 10)
    assert again == by_tokens, "a slower machine, whose minutes still suffice, takes the same steps"
    by_minutes, course = rates_of(monkeypatch, 1.0, 20 / 60)
    assert course.ended == "minutes" and course.hurried and len(by_minutes) <= 20
    assert max(by_minutes) > 0.8 and by_minutes[-1] < 0.07
    assert "training_minutes" in {n.code for n in course.notes("x")}
    late, course = rates_of(monkeypatch, 1.0, 65 / 60)
    assert course.ended == "tokens" and not course.hurried and late == by_tokens


def test_a_run_whose_rate_followed_the_minutes_says_so():
    course = training.Course(hurried=True)
    assert [n.code for n in course.notes("x")] == ["trained", "training_hurried"]


def test_enough_keeps_the_best_state_and_cancel_gives_up():
    p, loss = quadratic()
    events = []
    course = train(
        [p],
        loss,
        *from_text(WINDOWS, loss, 0),
        Budget(10**6, 10),
        rate=0.2,
        recorder=Recorder(events.append, enough=lambda: len(events) > 30),
    )
    assert (
        course.ended == "enough"
        and course.best < course.before
        and float(loss(None)) == pytest.approx(course.best)
    )
    assert (
        events[-1]["stage"] == "train"
        and 0 < events[-1]["done"] < 1
        and events[-1]["facts"]["best"] <= course.before
    )
    with pytest.raises(Cancelled):
        train(
            [p],
            loss,
            *from_text(WINDOWS, loss, 0),
            Budget(10**6, 10),
            rate=0.2,
            recorder=Recorder(cancelled=lambda: True),
        )


def test_nothing_held_out_is_trained_on():
    seen = set()
    p = nn.Parameter(torch.zeros(1))
    windows = torch.arange(16 * 512).view(16, 512)

    def loss(ids):
        (seen if torch.is_grad_enabled() else set()).update(ids[:, 0].tolist())
        return p.square().sum()

    train([p], loss, *from_text(windows, loss, 0), Budget(512 * 64, 10), rate=0.1)
    taught, held = hold_out(windows)
    assert seen == set(taught[:, 0].tolist()) and not seen & set(held[:, 0].tolist()) and len(held) == 2


def test_what_can_not_be_trained_is_said():
    p, loss = quadratic()
    with pytest.raises(CalibrationError, match="at least 4"):
        train([p], loss, *from_text(WINDOWS[:3], loss, 0), Budget(10, 1), rate=0.1)
    with pytest.raises(CalibrationError, match="learning rate"):
        train([p], lambda ids: p.sum() / 0, *from_text(WINDOWS, loss, 0), Budget(10, 1), rate=0.1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_and_its_gradient_are_those_of_all_logits_at_once(family, monkeypatch):
    bundle, ids = tiny.bundle(family), tiny.ids(3)
    table = bundle.module.get_input_embeddings().weight.requires_grad_()
    logits = bundle.module(input_ids=ids, use_cache=False).logits[:, :-1]
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    (gradient,) = torch.autograd.grad(whole, table)
    assert float(whole) == pytest.approx(float(likelihood.losses(bundle, ids).mean()), rel=1e-5)
    for rows in (20, 1_000):
        monkeypatch.setattr(row_losses, "LOGITS_BYTES", 4 * tiny.VOCABULARY * rows)
        pieces = language_loss(bundle, ids)
        (found,) = torch.autograd.grad(pieces, table)
        assert float(pieces) == pytest.approx(float(whole), rel=1e-5)
        assert torch.allclose(found, gradient, atol=1e-6)
        with torch.no_grad():
            assert float(language_loss(bundle, ids)) == float(pieces)


@pytest.mark.alone
def test_a_step_costs_what_a_bare_loop_costs():
    """Side by side, the best of five to twelve rounds each; the goal is 10 %, and what is above it here is a
    busy machine's share."""
    windows, steps = chain_language.text(40, 3).repeat(8, 1), 12

    def bare(bundle):
        parameters = list(bundle.module.requires_grad_().parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
        for ids in windows.split(32)[:1] * steps:
            logits = bundle.module(input_ids=ids, use_cache=False).logits[:, :-1]
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def ours(bundle):
        supply = iter(windows.split(32)[:1] * (steps + 1))
        parameters = list(bundle.module.requires_grad_().parameters())
        course = train(
            parameters,
            lambda ids: language_loss(bundle, ids),
            supply,
            lambda: 0.0,
            Budget(steps * 1024, 10),
            rate=1e-4,
        )
        assert course.steps == steps

    def seconds(loop):
        start = time.process_time()
        loop(bundle)
        return time.process_time() - start

    bundle, best = chain_language.model(), {bare: math.inf, ours: math.inf}
    for i in range(12):  # what else runs only ever makes a round slower
        best |= {loop: min(known, seconds(loop)) for loop, known in best.items()}
        if i >= 4 and best[ours] < 1.2 * best[bare]:
            break
    assert best[ours] < 1.2 * best[bare]


@pytest.mark.slow
def test_the_teacher_that_is_kept_is_the_one_that_training_gives():
    """tests/chain_language.py: as near to the language's entropy, and of one mind on fresh texts."""
    kept, anew = chain_language.teacher(), chain_language.trained()
    assert chain_language.perplexity(kept) == pytest.approx(chain_language.perplexity(anew), rel=0.03)
    ids = chain_language.text(64, 11)
    top = [tiny.logits(bundle, ids).argmax(-1) for bundle in (kept, anew)]
    assert float((top[0] == top[1]).float().mean()) > 0.9

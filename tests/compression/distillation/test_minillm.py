"""MiniLLM's policy gradient: by enumeration over all short texts, and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from compression.distillation import minillm
from compression.divergences import logs
from tests.tiny import seeded


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
    weight = minillm.advantages(
        log_p - old, torch.ones_like(sequences, dtype=torch.bool), single_step=single_step, **switches
    )
    flat = where.flatten()
    losses = minillm.token_loss(
        logs(p)[flat],
        logs(q)[flat],
        sequences.flatten(),
        weight.flatten(),
        old.flatten(),
        torch.ones(sequences.numel()).double(),
        single_step,
    )
    return (old.sum(1).exp() * losses.view(sequences.shape).sum(1)).sum()


@pytest.mark.parametrize("single_step", [True, False])
def test_the_expected_gradient_is_that_of_the_sequences_reverse_kl(single_step):
    """All 64 sequences of 3 out of 4 symbols, without norm, mixing or clip."""
    q, p, sequences, where = everything()
    exact = (
        chosen(q, sequences, where).sum(1).exp()
        * (chosen(q, sequences, where) - chosen(p, sequences, where)).sum(1)
    ).sum()
    (expected,) = torch.autograd.grad(exact, q)
    (found,) = torch.autograd.grad(surrogate(q, p, sequences, where, single_step), q)
    assert torch.allclose(found, expected, atol=1e-6) and expected.abs().max() > 1e-2


@pytest.mark.parametrize("length_norm", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_text_of_one_token_has_no_return(whiten, length_norm):
    rewards, mask = torch.randn(5, 1), torch.ones(5, 1, dtype=torch.bool)
    assert not minillm.advantages(
        rewards, mask, single_step=True, length_norm=length_norm, whiten=whiten
    ).any()


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
    assert made(length_norm=True) == [[7, 12, 8, 0], [5, 0, 0, 0]], (
        "divisors max(1, T - t - 1) of T - t terms"
    )
    assert made(single_step=False) == [[14, 13, 11, 7], [7, 4, 0, 0]]
    whitened = minillm.advantages(rewards, mask, single_step=True, length_norm=True, whiten=True)
    has = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert not whitened[~has].any() and abs(float(whitened[has].mean())) < 1e-6
    assert float(whitened[has].std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_the_ratio_is_clipped_where_it_would_be_rewarded():
    """PPO: a ratio beyond 1 +- 0.2 has no gradient in the direction of its advantage, and keeps it in the
    other."""
    for advantage, ratio, free in (
        (1.0, 1.3, False),
        (1.0, 0.7, True),
        (-1.0, 1.3, True),
        (-1.0, 0.7, False),
    ):
        log_q = torch.zeros(1, 2).double().requires_grad_(True)
        out = minillm.token_loss(
            torch.zeros(1, 2).double(),
            torch.log_softmax(log_q, -1),
            torch.tensor([0]),
            torch.tensor([advantage]),
            torch.tensor([0.5]).log() - math.log(ratio),
            torch.ones(1),
            False,
        )
        out.sum().backward()
        assert bool(log_q.grad.any()) is free

"""Divergences of distillation: by hand, by definition, and by TRL's loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compression.divergences import between, forward_kl, jensen_shannon, reverse_kl
from tests.tiny import seeded


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
        assert np.allclose(
            found.numpy(), jensen_shannon(torch.tensor(q).log(), torch.tensor(p).log(), 0.5).numpy()
        )
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

    teacher, ours = (
        torch.randn(7, 11, dtype=torch.float64),
        torch.randn(7, 11, dtype=torch.float64, requires_grad=True),
    )
    theirs = ours.detach().clone().requires_grad_()
    found = between(teacher, ours, beta).sum() * (beta * (1 - beta) or 1)
    expected = GKDTrainer.generalized_jsd_loss(theirs, teacher, beta=beta, reduction="sum")
    found.backward(), expected.backward()
    assert found.item() == pytest.approx(expected.item()) and torch.allclose(ours.grad, theirs.grad)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_value_and_gradient_are_zero_where_both_agree_only(beta):
    a = torch.randn(3, 8, generator=seeded(5)).double()
    same, other = (
        (a + 2.0).requires_grad_(True),
        (a + torch.randn(3, 8, generator=seeded(6))).requires_grad_(True),
    )
    for q, none in ((same, True), (other, False)):
        value = between(a, q, beta).sum()
        value.backward()
        assert (abs(float(value.detach())) < 1e-12) is none and (float(q.grad.abs().max()) < 1e-9) is none

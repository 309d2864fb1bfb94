"""The next-token loss in pieces: PyTorch's own cross entropy and its autograd are the oracle."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compression import row_losses
from compression.row_losses import next_token_loss

WIDTH, VOCABULARY, ROWS = 6, 50, 23


def lesson(weighted: bool, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, WIDTH, generator=draw).requires_grad_()
    weights = torch.rand(ROWS, generator=draw) if weighted else None
    return hidden, torch.randint(0, VOCABULARY, (ROWS,), generator=draw), weights


@pytest.fixture
def head():
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_value_and_gradients_are_those_of_cross_entropy(head, rows, weighted, monkeypatch):
    monkeypatch.setattr(row_losses, "LOGITS_BYTES", 4 * VOCABULARY * rows)
    hidden, targets, weights = lesson(weighted)
    each = F.cross_entropy(head(hidden), targets, reduction="none")
    expected = (each if weights is None else each * weights).sum()
    found = next_token_loss(head, VOCABULARY, hidden, targets, weights)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    inputs = (hidden, head.weight, head.bias)
    for a, b in zip(
        torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_what_is_not_trained_gets_no_gradient(head):
    hidden, targets, _ = lesson(False)
    head.requires_grad_(False)
    next_token_loss(head, VOCABULARY, hidden, targets).backward()
    assert hidden.grad is not None and head.weight.grad is None
    head.requires_grad_(True)
    next_token_loss(head, VOCABULARY, hidden.detach(), targets).backward()
    assert head.weight.grad is not None and bool(head.weight.grad.any())


def test_a_target_that_seems_impossible_keeps_a_finite_loss():
    """A probability of exp(-200) is nothing in float32; its logarithm is not."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[200.0], [0.0]])
    loss = next_token_loss(head, 2, hidden, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(200.0) and hidden.grad.item() == pytest.approx(200.0)


def test_no_rows_lose_nothing(head):
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    loss = next_token_loss(head, VOCABULARY, hidden, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and hidden.grad.shape == hidden.shape

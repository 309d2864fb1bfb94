"""Losses of next-token logits for training, without ever holding all logits.

The logits of a few rows are computed at a time, and their gradient at once. A row's loss doesn't depend on
the other rows. So its gradient can go back through the head as soon as the loss is known, while the row's
logits are still in the cache. Only the gradient of the hidden states waits for the backward pass (and that of
the head, if the head is trained). For 1,024 tokens of SmolLM2-135M that is 2.4 MB, where the logits would
take 200 MB several times over. The idea is that of Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary
Language Models", arXiv 2411.09009, section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGITS_BYTES = 48_000_000  # float32 logits that are computed at a time; a loss holds a few such copies


def sum_over_rows(
    head: nn.Module, vocabulary: int, hidden: Tensor, value: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """Sum of `value` over the rows of hidden [n, width], float32.

    It can be differentiated once, by hidden and by the head's parameters.

    head: [m, width] -> logits [m, vocabulary]. value(logits of some rows, which rows) -> their losses [m].
    """
    trained = [p for p in head.parameters() if p.requires_grad]
    step = max(1, LOGITS_BYTES // (4 * vocabulary))
    return _SumOverRows.apply(torch.is_grad_enabled(), head, step, value, hidden, *trained)


def next_token_loss(
    head: nn.Module, vocabulary: int, hidden: Tensor, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Sum over rows of weight times negative log-likelihood, in nats.

    targets: token ids [n]. weights: [n], or None if each row counts 1.
    """

    def value(logits: Tensor, rows: slice) -> Tensor:
        lost = F.cross_entropy(logits.float(), targets[rows], reduction="none")
        return lost if weights is None else lost * weights[rows]

    return sum_over_rows(head, vocabulary, hidden, value)


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, differentiable: bool, head: nn.Module, step: int, value: Callable, hidden: Tensor, *trained
    ):
        total = hidden.new_zeros((), dtype=torch.float32)
        gradients = [torch.zeros_like(t) for t in (hidden, *trained)]
        for start in range(0, len(hidden), step):
            rows = slice(start, min(start + step, len(hidden)))
            states = hidden[rows].detach().requires_grad_(differentiable)
            with torch.set_grad_enabled(differentiable):
                lost = value(head(states), rows).sum()
            total += lost.detach()
            if differentiable:
                of_states, *of_head = torch.autograd.grad(lost, (states, *trained))
                gradients[0][rows] = of_states
                for gradient, more in zip(gradients[1:], of_head, strict=True):
                    gradient += more
        if differentiable:
            ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx, upstream: Tensor):
        return None, None, None, None, *(upstream.to(g.dtype) * g for g in ctx.saved_tensors)

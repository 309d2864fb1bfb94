"""The next-token loss for training, without ever holding all logits: a few rows' logits are made, and their gradient at once.

The gradient of a row's loss by its logits is softmax(logits) minus one at the target, known as soon as the logits are. So it
goes back through the head in the forward pass already, while the rows lie in the cache, and what waits for the backward pass
is the gradient of the hidden states (and of the head, where that is trained): 2.4 MB for 1,024 tokens of SmolLM2-135M, whose
logits would take 200 MB several times over. The idea is that of Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary
Language Models", arXiv 2411.09009, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOGITS_BYTES = 50_000_000  # of the rows that are made at a time, in float32


def next_token_loss(head: nn.Module, vocabulary: int, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over rows of weight times negative log-likelihood in nats, float32; differentiable, once, by hidden and by the head.

    head: hidden [n, width] -> logits [n, vocabulary]. targets: token ids [n]; weights [n] float32, or None where each counts 1.
    """
    trained = [p for p in head.parameters() if p.requires_grad]
    rows = max(1, LOGITS_BYTES // (4 * vocabulary))
    return _NextTokenLoss.apply(torch.is_grad_enabled(), head, rows, targets, weights, hidden, *trained)


class _NextTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, differentiable: bool, head, step: int, targets: Tensor, weights: Tensor | None, hidden: Tensor, *trained):
        loss, gradients = hidden.new_zeros((), dtype=torch.float32), [torch.zeros_like(t) for t in (hidden, *trained)]
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            rows, target = hidden[part].detach().requires_grad_(differentiable), targets[part, None]
            with torch.set_grad_enabled(differentiable):
                logits = head(rows)
            slope = torch.log_softmax(logits.detach().float(), -1)
            lost = -slope.gather(1, target).squeeze(1)
            loss += (lost if weights is None else lost * weights[part]).sum()
            if differentiable:
                slope.exp_().scatter_add_(1, target, slope.new_full(target.shape, -1.0))
                if weights is not None:
                    slope *= weights[part, None]
                of_rows, *of_head = torch.autograd.grad(logits, (rows, *trained), slope.to(logits.dtype))
                gradients[0][part] = of_rows
                for total, more in zip(gradients[1:], of_head, strict=True):
                    total += more
        if differentiable:
            ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, upstream: Tensor):
        return None, None, None, None, None, *(upstream.to(g.dtype) * g for g in ctx.saved_tensors)

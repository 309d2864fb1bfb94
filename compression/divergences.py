"""How far a student's next-token distribution q is from its teacher's p: forward KL, reverse KL, and between.

Forward KL(p || q) is large if the student leaves out what the teacher says, so the student covers everything.
Reverse KL(q || p) is large if the student says what the teacher wouldn't, so it seeks the modes. The
generalised Jensen-Shannon divergence of Agarwal et al. 2023 (arXiv 2306.13649) lies between: JSD_beta = beta
KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q. Towards both ends it goes to zero, like beta
KL(p || q) and (1 - beta) KL(q || p). `between` divides it by beta (1 - beta). So it is the forward KL at beta
0, the reverse KL at 1, and has the same scale in between.

All take log-probabilities or logits [..., vocabulary] of p and q, in that order, and give nats [...] in
float32 (float64 stays).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logs(x: Tensor) -> Tensor:
    """Logits or log-probabilities [..., vocabulary] as normalised log-probabilities in float32 or better."""
    return torch.log_softmax(x if x.dtype == torch.float64 else x.float(), -1)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of normalised log-probabilities."""
    return (first.exp() * (first - second)).sum(-1)


def forward_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q): the mean, over the teacher's choices, of how much less the student expects them."""
    return _kl(logs(p), logs(q))


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(q || p): the mean, over the student's choices, of how much less the teacher expects them."""
    return _kl(logs(q), logs(p))


def jensen_shannon(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """JSD_beta(p, q), 0 < beta < 1: at most the entropy of (beta, 1 - beta)."""
    p, q = logs(p), logs(q)
    m = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
    return beta * _kl(p, m) + (1 - beta) * _kl(q, m)


def between(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """JSD_beta / (beta (1 - beta)): forward KL at beta 0, reverse KL at 1."""
    if beta == 0:
        return forward_kl(p, q)
    return reverse_kl(p, q) if beta == 1 else jensen_shannon(p, q, beta) / (beta * (1 - beta))

"""How far the compressed model's next-token distributions are from the original's, as KL divergences.

Pure functions on logits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_divergence(original: Tensor, compressed: Tensor) -> Tensor:
    """KL(original || compressed) in nats for each row of float32 logits [n, vocabulary]: [n], at least 0."""
    log_p, log_q = torch.log_softmax(original, -1), torch.log_softmax(compressed, -1)
    # in place: allocating a new tensor of this size costs more than the arithmetic
    difference = log_q.neg_().add_(log_p)
    return log_p.exp_().mul_(difference).sum(-1).clamp_min(0)


def summary(kl: Tensor) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile and maximum of KL per token [n]."""
    kl = kl.double()
    median, p90, p99 = torch.quantile(kl, torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)).tolist()
    return {"mean": float(kl.mean()), "median": median, "p90": p90, "p99": p99, "max": float(kl.max())}

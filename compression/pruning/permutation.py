"""Reorders a matrix's input channels, so that a pattern such as 2:4 keeps more of what matters.

2:4 keeps two of every four neighbours. If three important channels stand in one group of four, every row
loses one of them. In another order they need not compete. Pool and Yu 2021, "Channel Permutations for N:M
Sparsity", NeurIPS, look for the order whose mask keeps the largest sum of scores: they swap channels of two
groups as long as the sum grows. Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method
for Large Language Models", ICLR, sort the channels by their sums and deal them out to the groups like cards.
Then they take one channel out of every group and put these channels back in the best way. We deal as they do,
and put channels back by the swaps of Pool and Yu.

If channel x is put into a group, the group's kept sum grows in each row by max(0, x - b), where b is the n-th
largest of the group's other m - 1 scores. So all swaps of a round need one table [channels, groups].

An order is free only where it can be folded into what makes the channels:

    down   the channels of the feed-forward: the rows of gate and up move with them
    o      the channels of a head's values: the rows of v move with them; heads that share v share the order

q, k, v, gate and up read the residual stream. All blocks share its order, so they stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 4  # at most this many times, the channels at each place of the groups are put back


def kept_sum(score: Tensor, kept: int, of: int) -> float:
    """What a pattern keeps: the sum of the `kept` largest of every `of` neighbours of score [rows, n]."""
    return float(score.view(len(score), -1, of).topk(kept, dim=2).values.double().sum())


def best_order(score: Tensor, kept: int, of: int) -> Tensor:
    """The order [n] of the columns of score [rows, n], n a multiple of `of`, that keeps more.

    It never keeps less than the order as it is, which is given back if nothing better is found.
    """
    n = score.shape[1]
    same = torch.arange(n, device=score.device)
    groups = n // of
    if groups < 2:
        return same
    # [group, place]: the loudest channels in different groups, then the next ones, ...
    dealt = torch.argsort(score.sum(0), descending=True, stable=True).view(of, groups).T.contiguous()
    for _ in range(ROUNDS):
        if not sum(_put_back(score, dealt, place, kept) for place in range(of)):
            break
    order = dealt.sort(dim=1).values.flatten()
    return order if kept_sum(score[:, order], kept, of) > kept_sum(score, kept, of) else same


def _put_back(score: Tensor, dealt: Tensor, place: int, kept: int) -> int:
    """Take the channel at `place` out of every group, and put these back better. Returns how many moved."""
    groups, of = dealt.shape
    others = score[:, torch.cat((dealt[:, :place], dealt[:, place + 1 :]), 1).flatten()]
    limit = others.view(len(score), groups, of - 1).topk(kept, dim=2).values[..., -1]  # [rows, groups]
    loose = score[:, dealt[:, place]]
    gain = torch.stack([(loose - limit[:, g : g + 1]).relu_().sum(0) for g in range(groups)], 1)
    order = exchange(gain)
    dealt[:, place] = dealt[order, place]
    return int((order != torch.arange(groups, device=order.device)).sum())


def exchange(gain: Tensor) -> Tensor:
    """The order [n] in which place g gets channel order[g], for a square table gain [channel, place].

    From channel g at place g on, two channels swap as long as the sum of gains grows.
    """
    order = torch.arange(len(gain), device=gain.device)
    least = 1e-6 * float(gain.abs().amax())
    while True:
        now = gain[order]  # [place, other place]: the gain if the channel at `place` stood at the other place
        won = now + now.T - now.diagonal()[:, None] - now.diagonal()[None]
        best, partner = won.max(1)
        places = torch.arange(len(order), device=gain.device)
        mutual = (best > least) & (partner[partner] == places)
        if not bool(mutual.any()):
            return order
        order = torch.where(mutual, order[partner], order)


def shared_lanes(score: Tensor, kv_heads: int, head_size: int) -> Tensor:
    """The columns of o [out, heads * head_size] by the values that they read.

    Gives [kv_heads, out * heads that share one, head_size]: a column of it is a channel of a value head.
    """
    out = len(score)
    by_head = score.view(out, kv_heads, -1, head_size)
    return by_head.permute(1, 2, 0, 3).reshape(kv_heads, -1, head_size)

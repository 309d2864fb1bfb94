"""Divides a budget of parameters among the matrices by what each truncation costs the model (ASVD's search).

Some matrices bear a low rank well, and others don't. Yuan et al. 2023, "ASVD: Activation-aware Singular Value
Decomposition for Compressing Large Language Models", arXiv 2312.05821, section 3.3 ("sensitivity-based
truncation rank searching") and the authors' code: each matrix alone is cut to each of a few shares of its
parameters, and the model's loss on calibration text is measured. All (matrix, share) pairs are sorted by this
loss. Every matrix then gets the smallest share whose loss lies below a threshold; a matrix without such a
share stays whole. Bisection finds the threshold with which the kept parameters fit the budget.

The blocks before the matrix compute the same every time, so their result is kept and a measurement begins at
the matrix's own block. That is exact, and halves the work.

Deviations: the loss is taken on 128 tokens where the authors take 65,536; the bisection ends at the
highest threshold that fits the budget (theirs may end one step above it).
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression import arch, likelihood
from compression.base import Context, Edit, Note, Plan, Planner, Stats, param
from compression.bundle import Bundle
from compression.depth import spread
from compression.inputs import capture, observed
from compression.low_rank.rank import rank_for
from compression.surgery import instead

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PART = 0.6  # share of a forward pass that a measurement takes: half of the blocks on average, and the head

# (weight [out, in] float64, its inputs, rank, params) -> an orthonormal basis [out, rank], best first
Basis = Callable[[Tensor, Stats, int, Any], Tensor]


def search_tokens_param():
    """How long the text is on which the search measures."""
    return param(
        128,
        "Tokens of the calibration text on which the search measures each truncation.",
        lo=16,
        hi=65_536,
        level="advanced",
        when={"allocation": "search"},
    )


def shares(removed: float) -> tuple[float, ...]:
    """The shares of its parameters to which each matrix is cut, rising.

    There are six from 0.4 on if at most half is removed, otherwise nine from 0.1 on. If less than the
    smallest is to stay, the asked share is added, so that the budget can be met.
    """
    found = SHARES[3:] if removed <= 0.5 else SHARES
    asked = 1 - removed
    return found if asked >= found[0] else (asked, *found)


def divide(
    losses: Mapping[str, Mapping[float, float]], sizes: Mapping[str, int], kept: float
) -> dict[str, float]:
    """Each matrix's share of its parameters, 1.0 for one that stays whole.

    losses: path -> share -> the model's loss with this matrix alone cut to this share. sizes: path -> number
    of the matrix's parameters. The shares keep at most `kept` of all parameters, unless even the smallest
    shares keep more.
    """
    ranked = sorted(
        (
            (loss if math.isfinite(loss) else math.inf, path, share)
            for path in losses
            for share, loss in losses[path].items()
        ),
        key=lambda entry: -entry[0],
    )
    total = sum(sizes.values())

    def allowed(skipped: int) -> dict[str, float]:
        """The shares if the `skipped` pairs of the highest losses are refused."""
        found = dict.fromkeys(sizes, 1.0)
        for _, path, share in ranked[skipped:]:
            found[path] = min(found[path], share)
        return found

    def size(skipped: int) -> float:
        found = allowed(skipped)
        return sum(sizes[path] * found[path] for path in sizes) / total

    # the more pairs are refused, the more is kept: the most refusals that still fit
    most = bisect_right(range(len(ranked) + 1), kept + 1e-9, key=size) - 1
    return allowed(max(most, 0))


@torch.no_grad()
def measure(
    bundle: Bundle, windows: Tensor, entering: list[Tensor], layer: int, linear: nn.Module, weight: Tensor
) -> float:
    """The model's mean loss in nats on windows [n, window], with another weight [out, in] in one linear.

    entering: what enters block `layer`, which holds the linear, in the batches of `likelihood`.
    """
    blocks = list(arch.blocks(bundle.module))
    waiting = iter(entering)

    def resume(*args, **kwargs):
        return next(waiting)

    def passed_on(*args, **kwargs):
        return args[0] if args else kwargs["hidden_states"]

    with ExitStack() as stack:
        for number, block in enumerate(blocks[:layer]):
            stack.enter_context(instead(block, passed_on if number else resume))
        weight = weight.to(linear.weight)
        stack.enter_context(instead(linear, lambda x: F.linear(x, weight, linear.bias)))
        return float(likelihood.losses(bundle, windows).double().mean())


def planner(names: frozenset[str], basis: Basis) -> Planner:
    """The planner of a method whose factors are those of `basis`, from the statistics `names`."""

    def find(bundle: Bundle, context: Context, params) -> Plan:
        assert context.windows is not None
        recorder, module = context.recorder, bundle.module
        few = spread(context.windows, params.search_tokens)[:, : params.search_tokens]
        here, total = capture(bundle, few), len(bundle.geometry.layers)
        losses: dict[str, dict[float, float]] = {}
        sizes: dict[str, int] = {}
        tried = shares(params.removed)
        everything = observed(bundle, context.windows, names, lambda: recorder.check("searching ranks"))
        for layer, groups, stats in everything:
            recorder.progress("compress", layer, total)
            for group, own in zip(groups, stats, strict=True):
                for path, _ in group:
                    linear = module.get_submodule(path)
                    weight = linear.weight.detach().double()
                    ranks = {share: rank_for(tuple(weight.shape), 1 - share) for share in tried}
                    best = basis(weight, own, max(ranks.values()), params)
                    losses[path], sizes[path] = {}, weight.numel()
                    for share, rank in ranks.items():
                        recorder.check("searching ranks")
                        cut = best[:, :rank] @ (best[:, :rank].T @ weight)
                        losses[path][share] = measure(bundle, few, here.batches, layer, linear, cut)
            here.advance(arch.blocks(module)[layer])
        found = divide(losses, sizes, 1 - params.removed)
        whole = sum(share == 1.0 for share in found.values())
        facts = {"least": 100 * min(found.values()), "whole": whole, "count": len(found)}
        return Plan(
            params={path: dataclasses.replace(params, removed=1 - share) for path, share in found.items()},
            edit=Edit(notes=(Note("ranks_searched", facts),)),
        )

    def tokens(params, linears: int, tokens: int) -> float:
        return tokens + PART * linears * len(shares(params.removed)) * min(params.search_tokens, tokens)

    return Planner(
        find=find, tokens=tokens, wanted=lambda params: params.allocation == "search" and params.removed > 0
    )

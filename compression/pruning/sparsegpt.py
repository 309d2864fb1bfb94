"""SparseGPT: remove weights one input after another, and let the weights of later inputs make up for it.

Wanda looks at how loud an input is. It does not see that two inputs may carry much the same, so that one can
stand for the other. SparseGPT does: when a weight is removed, the weights of the inputs after it change so
that the layer's output changes least. The weights to remove are chosen on the way, after the earlier removals
have changed them. At 50 % SparseGPT is about as good as Wanda on large models and better on small ones. With
a fixed pattern (2:4), or if more is removed, it is better by far. The same step can round the kept weights to
a few bits, and the later inputs then make up for both errors: half of the weights at 4 bits take some 3.3
bits a weight.

Frantar, Alistarh 2023, arXiv 2301.00774, algorithm 1, and the authors' code. With U the upper Cholesky factor
of the inverse of the damped H = X^T X,
    score[i, c] = w[i, c]^2 / U[c, c]^2
and in every block of 128 inputs the lowest floor(sparsity * out * 128) of all rows' scores are removed, so
rows may keep unequal numbers. n:m: where a group of m inputs begins, the m - n lowest of each row are
removed. Input c is stored as w', which is 0 at removed places. Its error is e = (w_c - w') / U[c, c], and the
inputs after it change by -e U[c, c+1:], as in GPTQ.

`allocation` owl lets blocks lose different shares (Yin et al. 2023, OWL, arXiv 2310.05175). The more entries
|W[i, j]| ||X_j|| of a block lie above `outlier_factor` times their mean, the more of the block stays. The
shares of two blocks differ by at most twice `spread`, and their mean is the asked share. `permute` reorders
channels before n of m are kept (Pool and Yu 2021). It reorders the feed-forward's channels, by the rows of
gate and up, and the channels of a head's values, by the rows of v. The model computes the same as before, in
the same time. All blocks share the channels of the residual stream, so the inputs of q, k, v, gate and up
keep their order.

Deviations. (1) The authors remove all scores not above the threshold, at least one weight a block even at 0
%. We remove an exact number; of equal scores the earlier is removed. (2) The authors set the weights of an
input that never fires to zero, and don't count them. Here the score of such a weight is 0: it is removed
before all others, and it counts. (3) The authors' grid has one scale a row. Ours has groups of 64 as GPTQ's
default, and `group_size` -1 gives the authors' grid. Both are fitted to the weights before anything is
removed. (4) If H is not positive definite, damping rises tenfold until it is, and a note says so. (5) H comes
from the block as pruned so far, group by group (the authors' true sequential).

Stored as one bit a place and the kept weights in 16 bits or as codes on a grid (2:4: two bits a kept weight),
and 32 bits a row that tell where its weights begin: 9 bits a weight at 50 %. Smaller is not faster by itself:
it takes a kernel that reads this layout.

Cost: GPTQ's, in^3 operations a matrix for the factor and out * in^2 for the columns; memory for one H. One
forward pass more with `allocation` owl or `permute`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import Cost, Edit, LinearMethod, Site, Stats, param
from compression.edits import damping_note, short_group_note, stored
from compression.grids import encode, fit, grid_bytes
from compression.packed.grid import Grid
from compression.pruning import patterns
from compression.pruning.patterns import PatternParams, kept_of, lowest, lowest_in_groups, store
from compression.pruning.planning import PLANNER
from compression.second_order import compensate, inverse_factor, output_error
from kernels.bits import row_bytes

BLOCK = 128  # columns whose updates of later blocks wait, if the pattern doesn't set the block's size


@dataclass(frozen=True)
class SparsegptParams(PatternParams):
    """How much is removed, in which pattern, and how the kept weights are stored."""

    quantize: bool = param(False, "Round the weights that stay in the same step; off keeps them in 16 bits.")
    bits: int = param(
        4, "Bits each weight that stays takes.", lo=2, hi=8, step=1, unit="bits", when={"quantize": True}
    )
    group_size: int = param(
        64,
        "Weights that share one scale; a multiple of 16, or -1 for a whole row.",
        lo=-1,
        hi=4096,
        step=16,
        suggest=(-1, 32, 64, 128),
        when={"quantize": True},
    )
    symmetric: bool = param(
        False, "No zero point: the ruler is centred on zero.", level="advanced", when={"quantize": True}
    )
    mask_block: int = param(
        128,
        "Inputs among whose weights the lowest are chosen together.",
        lo=1,
        hi=4096,
        suggest=(1, 32, 128, 512, 4096),
        level="advanced",
        when={"pattern": "unstructured"},
    )
    damping: float = param(
        0.01, "Share of the mean diagonal that is added to H.", lo=0.0001, hi=1.0, level="advanced"
    )


def nothing_to_remove(params: SparsegptParams) -> bool:
    """Whether every weight stays."""
    return params.pattern == "unstructured" and params.sparsity == 0


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of the mask, the rows' starts and the kept values or codes.

    Operations of GPTQ, and of the choice of the mask.
    """
    out, n = shape
    plain = patterns.cost(shape, params, tokens)
    flops, peak = 2.0 * tokens * n * n + 2.0 * n**3 + 2.0 * out * n * n, 24 * n * n + 16 * out * n
    if nothing_to_remove(params) and not params.quantize:
        return plain
    places, values, grid = out * -(-n // 8), plain.bytes - out * -(-n // 8), 0
    if nothing_to_remove(params):
        places, values = 0, 2 * out * n
    elif params.pattern == "unstructured":
        places += 4 * (out + 1)
    if params.quantize:
        values = row_bytes(values // 2, params.bits) if places else out * row_bytes(n, params.bits)
        grid = grid_bytes(shape, params.bits, params.group_size, params.symmetric)
    return Cost(bytes=places + values + grid, flops=flops + 60.0 * out * n, peak_bytes=peak)


def lowest_of_all(score: Tensor, count: int) -> Tensor:
    """bool, True at exactly the `count` lowest scores; of equal scores the first. Faster than sorting."""
    if not count:
        return torch.zeros_like(score, dtype=torch.bool)
    flat = score.flatten()
    limit = flat.kthvalue(count).values
    chosen = flat < limit
    equal = (flat == limit).nonzero()[: count - int(chosen.sum())]
    chosen[equal] = True
    return chosen.view_as(score)


def sparsegpt(
    weight: Tensor, gram: Tensor, params: SparsegptParams, pruned: Tensor | None = None
) -> tuple[Tensor, Tensor, Grid | None, float, float]:
    """(the final weight [out, in], removed places bool [out, in], grid, sum of e^2, damping used).

    pruned: bool [out, in], the places to remove; None: it chooses them. The sum equals tr(D H D^T) for the
    final difference D and the damped H. If weights are rounded, the grid holds every number of the result.
    """
    n = weight.shape[1]
    free, fixed = params.pattern == "unstructured", pruned is not None
    step = params.mask_block if free else kept_of(params.pattern)[1]
    factor, damping = inverse_factor(gram, params.damping)
    factor = factor.to(weight.dtype)
    worth = torch.where(gram.diagonal() == 0, 0, 1 / factor.diagonal()).square()[:, None].to(weight.dtype)
    live = weight.T.contiguous()  # [in, out]: a column of the weight is a contiguous row here
    gone = pruned.T.contiguous() if fixed else torch.zeros_like(live, dtype=torch.bool)
    grid = fit(weight.float(), params.bits, params.group_size, params.symmetric) if params.quantize else None
    if grid is not None:
        scale, zero = (t.T.to(weight.dtype).contiguous() for t in grid.columns())
        top = 2**params.bits - 1

    def mark(columns: slice) -> None:
        score = live[columns].square().mul_(worth[columns]).T.contiguous()
        if free:
            gone[columns] = lowest_of_all(score, int(params.sparsity * score.numel())).T
        else:
            kept, of = kept_of(params.pattern)
            gone[columns] = lowest(score, of - kept).T

    def choose(c: int, errors: Tensor) -> Tensor:
        if not fixed and c % step == 0:
            mark(slice(c, min(c + step, n)))
        if grid is None:
            return live[c].masked_fill(gone[c], 0)
        s, z = scale[c], zero[c]
        return torch.div(live[c], s).round_().add_(z).clamp_(0, top).sub_(z).mul_(s).masked_fill_(gone[c], 0)

    total = compensate(live, factor, range(0, n, step if free else BLOCK), choose)
    return live.T.contiguous(), gone.T.contiguous(), grid, total, damping


def compress(site: Site, stats: Stats, params: SparsegptParams) -> Edit:
    """Prune the weight [out, in] of one linear by its inputs' Gram matrix; round what stays if asked."""
    if nothing_to_remove(params) and not params.quantize:
        return Edit()
    if params.pattern != "unstructured":
        # raises if the width isn't a whole number of groups
        lowest_in_groups(site.weight[:1], params.pattern, site.path)
    new, pruned, grid, _, damping = sparsegpt(site.weight, stats.gram, params)
    error = output_error(site.weight, new, stats.gram)
    edit = store(dataclasses.replace(site, weight=new), pruned, output_error=error)
    notes = damping_note(site, params.damping, damping)
    if grid is not None:
        notes = short_group_note(site, params.group_size) + notes
        edit = stored(site, encode(edit.linears.get(site.path), grid.round(new), grid), output_error=error)
    return dataclasses.replace(edit, notes=notes)


METHOD = LinearMethod(
    name="sparsegpt",
    title="SparseGPT",
    family="pruning",
    paper="https://arxiv.org/abs/2301.00774",
    params=SparsegptParams,
    compress=compress,
    cost=cost,
    stores="bitmask",
    kept_share=patterns.kept_share,
    planner=PLANNER,
    stats=frozenset({"gram"}),
    after=frozenset({"dense"}),
    identity={"sparsity": 0.0},
    essay=__doc__,
)

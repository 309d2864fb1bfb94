"""AWQ: protect the channels that carry large activations, then round.

A weight matters as much as the inputs that it meets. Some input channels of a matrix have large activations,
on average over a calibration text. Before rounding, AWQ multiplies their weights by a factor above 1, so that
they are rounded in finer steps, and divides the activations by the same factor. The division is folded into
the norm or the matrix before, so that it costs nothing. One exponent for each group of matrices decides how
far to go, and a small search tries twenty exponents on the error of the outputs. A second search clips the
largest weights of each group where that lowers the error. Nothing is trained.

Paper: Lin et al. 2023, arXiv 2306.00978. With X the inputs, s_X the mean |x| of each channel and Q rounding
in groups,
    s = s_X^a, divided by sqrt(max s * min s)                                             (eq. 5)
    a = argmin over 0, 0.05, ... 0.95 of sum over the matrices ||Q(W diag(s)) diag(s)^-1 X - W X||^2   (eq. 4)
a = 0 is plain rounding, so the search never ends above it. Inputs come from the uncompressed model, and all
searches of a block see the block before any factor was applied, as in the authors' code. Clipping: for each
row and group the limit m = (1 - k/20) max|w|, k = 0 ... 9, with the least error of that group's outputs; the
queries and keys are left out. Quantizer: the authors', in which a group's range need not contain zero: scale
= (max - min) / (2^bits - 1), zero = round(-min / scale) kept within 0 ... 2^bits - 1.

Deviations: the authors' code measures the error of q, k and v after the whole attention and that of gate and
up after the whole feed-forward. We measure it at the outputs of the matrices, as the paper's equation does,
with the Gram matrix X^T X of all calibration tokens instead of a sample, for clipping too. `loss_at` "module"
is the authors' way for matrices that share their inputs (the other matrices they measure as we do), on at
most 8 of the calibration windows. If several query heads share a key head, the factor of the attention's
output matrix still goes into v: channels that share a row of v get their mean factor. The authors skip this
case. A factor without an exact fold is left out, with a note: OPT-350M's norms feed the residual too. After a
GELU the division is kept as a multiplication at run time (the authors' ScaledActivation). With `rounding` off
only the factors are applied, and a next step may round (GPTQ).

Cost: one forward pass over the calibration tokens, 20 products of W with X^T X for the search. `loss_at`
"module" takes 20 forward passes of attention and feed-forward over the 8 windows instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import Block, BlockMethod, Cost, Edit, Group, Params, param
from compression.edits import short_group_note
from compression.grids import grid_bytes
from compression.packed.grid import Grid, store_scale
from compression.packed.grouped_int import GroupedInt
from compression.quantization.folding import folded, skipped
from compression.second_order import output_error
from kernels.bits import row_bytes

EXPONENTS = tuple(k / 20 for k in range(20))
LIMITS = tuple(1 - k / 20 for k in range(10))
UNCLIPPED = ("q", "k")
WINDOWS = 8  # calibration windows, evenly spaced, on which the error of a module's outputs is measured
WINDOW = 512  # tokens in a window, for the estimate


@dataclass(frozen=True)
class AwqParams(Params):
    """The grid, and what is searched for."""

    bits: int = param(
        4,
        "Bits each weight takes.",
        lo=2,
        hi=8,
        step=1,
        unit="bits",
        main=True,
        ends=("tiny, worse", "large, same"),
    )
    group_size: int = param(
        128,
        "Weights that share one scale; a multiple of 16, or -1 for a whole row.",
        lo=-1,
        hi=4096,
        step=16,
        suggest=(-1, 32, 64, 128),
    )
    clip: bool = param(
        True,
        "Cut the largest weights of a group where that lowers the error.",
        level="advanced",
        when={"rounding": True},
    )
    loss_at: str = param(
        "matrix",
        "Where the search measures its error: at the matrices, or behind the whole attention or "
        "feed-forward.",
        choices=("matrix", "module"),
        level="advanced",
    )
    rounding: bool = param(True, "Off: only move the factors, for a next step to round.", level="advanced")


def cost(shape: tuple[int, int], params, tokens: int, role: str = "up") -> Cost:
    """Bytes as stored; the Gram matrix and the searches in operations."""
    out, n = shape
    size = out * row_bytes(n, params.bits) + grid_bytes(
        shape, params.bits, params.group_size, symmetric=False
    )
    per_exponent = 2.0 * out * n * (n if params.loss_at == "matrix" else WINDOWS * WINDOW)
    flops = 2.0 * tokens * n * n + len(EXPONENTS) * per_exponent
    return Cost(
        bytes=size if params.rounding else 2 * out * n, flops=flops, peak_bytes=8 * n * n + 24 * out * n
    )


def awq_grid(weight: Tensor, bits: int, group_size: int) -> Grid:
    """The authors' min-max grid of weight [out, in]; zero need not lie in a group's range."""
    out, n = weight.shape
    size = n if group_size == -1 else group_size
    short = -n % size
    whole = torch.cat([weight, weight[:, -1:].expand(out, short)], 1) if short else weight
    groups = whole.reshape(out, -1, size)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = store_scale((high - low).clamp_min(1e-5) / (2**bits - 1))
    zero = torch.round(-low / scale.float()).clamp_(0, 2**bits - 1)
    return Grid.make(weight.shape, bits, group_size, scale, zero)


def rounded(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """weight [out, in] on its own grid, float32."""
    grid = awq_grid(weight, bits, group_size)
    return grid.decode(grid.round(weight))


def loss(weights: list[Tensor], s: Tensor, gram: Tensor, quantize: Callable[[Tensor], Tensor]) -> float:
    """Sum over `weights` [out, in] of ||(Q(W s) / s - W) X||^2 (eq. 4), from gram = X^T X [in, in]."""
    total = 0.0
    for weight in weights:
        difference = quantize(weight * s) / s - weight
        total += float(((difference @ gram) * difference).sum(dtype=torch.float64))
    return total


def module_error(
    block: Block, group: Group, quantize: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], float] | None:
    """The authors' loss of factors s, on WINDOWS windows.

    It is a function s [in] -> the mean squared difference in the outputs of the module that holds the group's
    matrices, when Q(W s) / s replaces each W. None if the group has one matrix, or if only the block holds
    them all.
    """
    passage, names = block.inputs, [site.path.split(f".{block.layer}.", 1)[1] for site in group.sites]
    around = {name.split(".")[0] for name in names}  # the part of the block: attention or feed-forward
    if len(names) == 1 or len(around) > 1:
        return None
    part = around.pop()
    module, called, given = passage.block.get_submodule(part), [], []
    hooks = (
        module.register_forward_pre_hook(
            lambda m, args, kwargs: called.append((args, kwargs)), with_kwargs=True
        ),
        module.register_forward_hook(lambda m, args, out: given.append(_first(out))),
    )
    windows = torch.cat(list(passage.inputs))
    chosen = torch.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).round().long()
    try:
        for i in chosen.tolist():
            passage.run(windows[i : i + 1], {})
    finally:
        for hook in hooks:
            hook.remove()

    def error(s: Tensor) -> float:
        tried = {}
        for name, site in zip(names, group.sites, strict=True):
            inside = name.removeprefix(f"{part}.")
            tried[f"{inside}.weight"] = (quantize(site.weight * s) / s).to(
                module.get_submodule(inside).weight
            )
        total = 0.0
        for (args, kwargs), target in zip(called, given, strict=True):
            out = _first(torch.func.functional_call(module, tried, args, kwargs))
            total += float((out.float() - target.float()).square().mean(dtype=torch.float64))
        return total / len(called)

    return error


def _first(out) -> Tensor:
    """The hidden states in what a module returned."""
    return out[0] if isinstance(out, tuple) else out


def search(
    weights: list[Tensor],
    mean_abs: Tensor,
    gram: Tensor,
    quantize: Callable[[Tensor], Tensor],
    shared: Callable[[Tensor], Tensor] = lambda s: s,
    error: Callable[[Tensor], float] | None = None,
) -> tuple[Tensor, list[float]]:
    """(s [in], the loss of each exponent): the factors with the least loss.

    Of equal losses the smaller exponent wins. shared: gives channels that can't differ one value
    (arch.Fold.shared). error: s -> loss; None for eq. 4.
    """
    best, losses = torch.ones_like(mean_abs), []
    for a in EXPONENTS:
        s = shared(mean_abs.pow(a).clamp_min(1e-4))
        s = s / (s.max() * s.min()).sqrt()
        losses.append(loss(weights, s, gram, quantize) if error is None else error(s))
        if losses[-1] < min(losses[:-1], default=float("inf")):
            best = s
    return best, losses


def clipped(weight: Tensor, gram: Tensor, bits: int, group_size: int) -> Tensor:
    """weight [out, in], each group of each row clipped to the best limit of LIMITS.

    The best has the least error in the group's own outputs.
    """
    n = weight.shape[1]
    size = n if group_size == -1 else group_size
    result = weight.clone()
    for start in range(0, n, size):
        columns = slice(start, min(start + size, n))
        w, g = weight[:, columns], gram[columns, columns]
        most = w.abs().amax(1, keepdim=True)
        least = torch.full_like(most, float("inf"))
        for share in LIMITS:
            cut = torch.minimum(torch.maximum(w, -share * most), share * most)
            difference = rounded(cut, bits, -1) - w
            error = ((difference @ g) * difference).sum(1, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            result[:, columns] = torch.where(better, cut, result[:, columns])
    return result


def compress(block: Block, params: AwqParams) -> Edit:
    """Scale, clip and round the linears of one block."""

    def quantize(w: Tensor) -> Tensor:
        return rounded(w, params.bits, params.group_size)

    fixed = [
        i
        for i, g in enumerate(block.groups)
        if g.fold is None and (g.unfoldable != "activation" or not params.rounding)
    ]
    factors = {}
    for i, group in enumerate(block.groups):
        if i not in fixed:
            shared = group.fold.shared if group.fold is not None else (lambda s: s)
            own = [site.weight for site in group.sites]
            error = module_error(block, group, quantize) if params.loss_at == "module" else None
            factors[i], _ = search(own, group.stats.mean_abs, group.stats.gram, quantize, shared, error)
    weights, tensors = folded(block, factors)
    notes = skipped(block, fixed)
    if not params.rounding:
        return Edit(tensors=tensors | {f"{path}.weight": w for path, w in weights.items()}, notes=notes)
    linears, figures = {}, {}
    for i, group in enumerate(block.groups):
        s = factors.get(i)
        gram = group.stats.gram if s is None else group.stats.gram / (s[:, None] * s)
        for site in group.sites:
            weight = weights[site.path]
            cut = (
                clipped(weight, gram, params.bits, params.group_size)
                if params.clip and site.role not in UNCLIPPED
                else weight
            )
            grid = awq_grid(cut, params.bits, params.group_size)
            linears[site.path] = GroupedInt.encode(grid.round(cut), grid)
            figures[site.path] = {"output_error": output_error(weight, linears[site.path].dequantize(), gram)}
            notes += short_group_note(site, params.group_size)
    return Edit(linears, tensors, notes=notes, figures=figures)


METHOD = BlockMethod(
    name="awq",
    title="AWQ",
    family="quantization",
    paper="https://arxiv.org/abs/2306.00978",
    params=AwqParams,
    compress=compress,
    cost=cost,
    stores="grouped_int",
    stats=frozenset({"gram", "mean_abs"}),
    tiny={"bits": 4, "group_size": 16},
    essay=__doc__,
)

"""LLM-Pruner: remove whole attention heads and whole channels of the feed-forward.

Zeros scattered over a matrix need a special format and a kernel that skips them. LLM-Pruner removes
structures instead: a head with its rows of q, k, v and its columns of o, a channel with its rows of gate and
up and its column of down. What is left is an ordinary model with smaller matrices, so it is smaller on disk
and in memory and faster on every machine, and its key-value cache shrinks with the key-value heads. The price
is quality: far more is lost than by rounding to the same size, and much of it comes back only with training
afterwards.

Ma, Fang, Wang 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models", arXiv 2305.11627. How
much a structure matters is read from the gradient g of the language-model loss on a few short texts
(equations 3 to 5), for each weight w

    vector    g w            summed over a row or column, then its absolute value
    element1  |g w|          summed; first order
    element2  F w^2          summed; second order, F the mean over the texts of the squared gradient
    mixed     |g w - F w^2 / 2|

and added up over all matrices of the structure. Each block ranks its own heads and channels. The first and
last blocks are the sensitive ones and stay whole. Granularity "channel" removes channels of the residual
stream instead: an entry of the embedding and of every norm, and a row or column of every matrix of the model.
They are ranked once, and the paper finds this far worse. `ranking` global ranks the heads of all unprotected
blocks together, and their channels together. Blocks then lose different numbers, and the file is as large as
with equal shares. The paper has this ranking too and finds it a little worse on LLaMA-7B. With `prune_steps`
above 1 the share rises in equal steps, and before each step the gradient is taken anew on the model without
the removed structures (the authors' iterative steps). `l2` (small weights go) and `random` are the controls;
chance beats l2, in the paper too.

Deviations: (1) the share of heads is rounded to the nearest whole number and at least one stays. The authors
round down, so a model of few heads keeps all of them. (2) If queries share keys, whole groups go, as with the
authors. If a model has three such groups or fewer, the same number of query heads leaves each group, and keys
and values stay. A query head is paired with the keys that it really uses. (3) The protected blocks are shares
of the depth (LLaMA-7B: the first 4 and last 2 of 32, as published). (4) Biases go with their rows, norms with
their channels, and neither is scored. (5) `ranking` global compares heads with heads and channels with
channels, and one of each stays in every block; the authors have one list. (6) Training afterwards is a step
of its own.

Cost: one forward and backward pass for each text and step; gradients of the pruned blocks' matrices in 32
bits (mixed: twice that).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compression import arch
from compression.base import Context, Cost, Edit, ModelMethod, Note, param
from compression.bundle import Bundle, Geometry
from compression.pruning import structured
from compression.pruning.gradients import Gradients, gradients, texts
from compression.pruning.structured import (
    StructuredParams,
    choose,
    forgotten,
    highest,
    note_of_cut,
    ranked_together,
)
from compression.structure import AXES, WIDTH_AXES, Kept, lanes

# measures that need the gradient; measures that need its square
FIRST, SECOND = ("vector", "element1", "mixed"), ("element2", "mixed")
TAYLOR = ("vector", "element1", "element2", "mixed")


@dataclass(frozen=True)
class LlmPrunerParams(StructuredParams):
    """How much is removed, from where, and by which measure."""

    granularity: str = param(
        "block",
        "Heads and feed-forward channels of each block, or channels of the whole model's width.",
        choices=("block", "channel"),
        label="choice",
    )
    importance: str = param(
        "element1",
        "How much a head or channel matters: a Taylor expansion of the loss, or a control.",
        choices=(*TAYLOR, "l2", "random"),
        label="choice",
    )
    ranking: str = param(
        "block",
        "Each block loses the same share of its heads and channels, or those of all blocks are ranked "
        "together.",
        choices=("block", "global"),
        level="advanced",
        when={"granularity": "block"},
    )
    prune_steps: int = param(
        1,
        "Steps in which the share is reached; the gradient is taken anew before each.",
        lo=1,
        hi=20,
        level="advanced",
        when={"granularity": "block"},
    )
    samples: int = param(10, "Texts whose gradients are taken.", lo=1, hi=512, level="advanced")
    sample_tokens: int = param(64, "Tokens of each text.", lo=2, hi=2_048, level="advanced")


# --- scores ---


def scores(
    importance: str, weight: Tensor, axis: int, g: Tensor | None = None, f: Tensor | None = None
) -> Tensor:
    """The score of each row (axis 0) or column (axis 1) of weight [out, in].

    g, f: mean over the texts of the gradient and of the squared gradient [out, in] (the table in the essay).
    """
    weight, along = weight.float(), 1 - axis
    if importance == "vector":
        return (g * weight).sum(along).abs()
    if importance == "element1":
        return (g * weight).abs().sum(along)
    if importance == "element2":
        return (f * weight.square()).sum(along)
    if importance == "mixed":
        assert g is not None and f is not None
        return (g * weight - 0.5 * f * weight.square()).abs().sum(along)
    return weight.square().sum(along)  # l2


# --- texts ---


def sampled(windows: Tensor, params: LlmPrunerParams) -> Tensor:
    """The texts [samples, sample_tokens] whose gradients are taken, of windows [n, window]."""
    return texts(windows, params.samples, params.sample_tokens)


def check_windows(params: LlmPrunerParams, windows: Tensor) -> None:
    """ModelMethod.fits of this method."""
    if params.importance in TAYLOR:
        sampled(windows, params)


def taken(bundle: Bundle, paths: list[str], context: Context, params: LlmPrunerParams) -> Gradients | None:
    """The gradients that the measure needs; None for a control."""
    if params.importance not in TAYLOR:
        return None
    assert context.windows is not None, "ModelMethod.reads_windows asks for them"
    first, second = params.importance in FIRST, params.importance in SECOND
    return gradients(bundle, paths, sampled(context.windows, params), context, first=first, second=second)


# --- the method ---


def reshaped(geometry: Geometry, params: LlmPrunerParams) -> Geometry:
    """The model's sizes after pruning.

    Of the channels of the width, floor((1 - removed) width) stay, at least one.
    """
    if params.granularity == "channel":
        return replace(geometry, hidden=max(1, math.floor(geometry.hidden * (1 - params.removed) + 1e-9)))
    return structured.reshaped(geometry, params)


def compress(bundle: Bundle, context: Context, params: LlmPrunerParams) -> Edit:
    """Choose which heads and channels of which blocks stay, or which channels of the whole width."""
    if params.granularity == "channel":
        return narrowed(bundle, context, params)
    geometry = bundle.geometry
    promised = reshaped(geometry, params)
    layers = [i for i, sizes in enumerate(geometry.layers) if promised.layers[i] != sizes]
    if not layers:
        return Edit()
    roles = {
        i: {role: path for group in arch.groups(bundle.module, i) for path, role in group} for i in layers
    }
    kept: dict[int, Kept] = {}
    for step in range(1, params.prune_steps + 1):
        part = replace(params, removed=params.removed * step / params.prune_steps)
        kept = chosen(bundle, roles, context, part, kept)
    after = list(geometry.layers)
    for i, own in kept.items():
        after[i] = replace(
            after[i], heads=len(own.heads), kv_heads=len(own.kv_heads), feed_forward=len(own.channels)
        )
    note = note_of_cut(geometry, replace(geometry, layers=tuple(after)), layers)
    return Edit(kept=kept, notes=(note,))


def chosen(
    bundle: Bundle,
    roles: Mapping[int, Mapping[str, str]],
    context: Context,
    params: LlmPrunerParams,
    before: Mapping[int, Kept],
) -> dict[int, Kept]:
    """The heads and channels of each block that stay at the share of `params`, out of those that are left.

    roles: block -> role -> path. before: the parts that stayed so far; the scores are taken from the model
    with these parts alone.
    """
    with silenced(bundle, roles, before):
        found = taken(bundle, [path for own in roles.values() for path in own.values()], context, params)
    score = scorer(bundle, found, params, context.seed)
    sizes = bundle.geometry.layers
    scores = {
        layer: forgotten(
            {role: score(path, AXES[role][1]) for role, path in paths.items()},
            before.get(layer),
            sizes[layer],
        )
        for layer, paths in roles.items()
    }
    then = ranked_together(scores, sizes, params) if params.ranking == "global" else {}
    return {
        layer: choose(by_role, sizes[layer], params, then.get(layer)) for layer, by_role in scores.items()
    }


@contextmanager
def silenced(
    bundle: Bundle, roles: Mapping[int, Mapping[str, str]], kept: Mapping[int, Kept]
) -> Iterator[None]:
    """Within this context, the model computes as if only the parts in `kept` were left.

    The inputs of o and down that come from other heads and channels are 0.
    """
    with ExitStack() as stack:
        for layer, own in kept.items():
            for role in ("o", "down"):
                linear = bundle.module.get_submodule(roles[layer][role])
                index = torch.tensor(getattr(own, AXES[role][0]))
                index = index if role == "down" else lanes(index, bundle.geometry.layers[layer].head_size)
                shown = torch.zeros(linear.in_features).index_fill_(0, index, 1.0).to(linear.weight)
                hook = linear.register_forward_pre_hook(lambda m, args, shown=shown: (args[0] * shown,))
                stack.callback(hook.remove)
        yield


def narrowed(bundle: Bundle, context: Context, params: LlmPrunerParams) -> Edit:
    """Choose the channels of the residual stream that stay, by one ranking over all their matrices."""
    now, then = bundle.geometry.hidden, reshaped(bundle.geometry, params).hidden
    if now == then:
        return Edit()
    axes = {path: WIDTH_AXES[role] for path, role, _ in arch.linears(bundle.module)}
    if not bundle.geometry.embedding:  # otherwise the table has a width of its own
        tables = (
            arch.embedding(bundle.module)[0],
            *(() if bundle.geometry.tied else (arch.head(bundle.module)[0],)),
        )
        axes |= dict.fromkeys(tables, 1)
    found = taken(bundle, list(axes), context, params)
    score = scorer(bundle, found, params, context.seed)
    total = sum(score(path, axis) for path, axis in axes.items())
    return Edit(
        width=tuple(highest(total, then)), notes=(Note("width_removed", {"width": now, "left": then}),)
    )


def scorer(
    bundle: Bundle, found: Gradients | None, params: LlmPrunerParams, seed: int
) -> Callable[[str, int], Tensor]:
    """A function from (path, axis) to the scores of that weight's rows or columns.

    It frees gradients as they are used.
    """
    generator = torch.Generator().manual_seed(seed)

    def score(path: str, axis: int) -> Tensor:
        weight = bundle.module.get_submodule(path).weight.detach()
        if params.importance == "random":
            return torch.rand(weight.shape[axis], generator=generator)
        g, f = (found.first.pop(path, None), found.second.pop(path, None)) if found else (None, None)
        return scores(params.importance, weight, axis, g, f).cpu()

    return score


def cost(shape: tuple[int, int], params: LlmPrunerParams, tokens: int) -> Cost:
    """The cost of one matrix before pruning.

    Its gradients, and forward and backward passes over the texts; stored in 16 bits.
    """
    out, n = shape
    if params.removed == 0 or params.importance not in TAYLOR:
        return Cost(bytes=2 * out * n, flops=0.0)
    passes = params.prune_steps if params.granularity == "block" else 1
    kinds = (params.importance in FIRST) + (params.importance in SECOND)
    return Cost(
        bytes=2 * out * n,
        flops=6.0 * out * n * params.samples * params.sample_tokens * passes,
        peak_bytes=4 * out * n * kinds,
    )


METHOD = ModelMethod(
    name="llm_pruner",
    title="LLM-Pruner",
    family="pruning",
    paper="https://arxiv.org/abs/2305.11627",
    params=LlmPrunerParams,
    compress=compress,
    cost=cost,
    reads_windows=True,
    fits=check_windows,
    reshaped=reshaped,
    identity={"removed": 0.0},
    tiny={"protect_first": 0.0, "protect_last": 0.0, "samples": 4, "sample_tokens": 16},
    essay=__doc__,
)

"""Chooses how many and which heads and channels leave a model. The structured pruning methods share it.

A block loses whole attention heads and whole feed-forward channels (compression/structure.py cuts them out).
The methods differ only in how they score a structure. Counting, ranking and protecting blocks are the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compression import arch
from compression.base import BadParam, Note, Params, param
from compression.bundle import Geometry, LayerGeometry
from compression.structure import AXES, Kept, lanes

FEW_GROUPS = 3  # up to this many key-value heads, all of them stay


@dataclass(frozen=True)
class StructuredParams(Params):
    """How much is removed, and from where."""

    removed: float = param(
        0.25,
        "Share of the heads and of the feed-forward channels that is removed from every block that isn't "
        "protected. The share of the whole model is smaller.",
        lo=0.0,
        hi=0.8,
        step=0.05,
        main=True,
        ends=("nothing removed, same", "almost all removed, worse"),
    )
    protect_first: float = param(
        0.1,
        "Share of the blocks at the start that stay whole, rounded up.",
        lo=0.0,
        hi=0.9,
        step=0.05,
        level="advanced",
        when={"granularity": "block"},
    )
    protect_last: float = param(
        0.05,
        "Share of the blocks at the end that stay whole, rounded up.",
        lo=0.0,
        hi=0.9,
        step=0.05,
        level="advanced",
        when={"granularity": "block"},
    )
    heads: str = param(
        "auto",
        "Where queries share keys: whole groups go, or queries within each group; auto: groups if there are "
        "more than three.",
        choices=("auto", "groups", "queries"),
        level="advanced",
        when={"granularity": "block"},
    )


def pruned_layers(layers: int, params: StructuredParams) -> range:
    """The blocks that aren't protected. Raises BadParam if there are none."""
    start, end = (math.ceil(share * layers - 1e-9) for share in (params.protect_first, params.protect_last))
    if start + end >= layers:
        raise BadParam(
            f"protect_first = {params.protect_first} and protect_last = {params.protect_last} protect all "
            f"{layers} blocks ({start} and {end}); lower one of them",
            name="protect_first",
            got=params.protect_first,
            allowed=f"what leaves one of {layers} blocks",
        )
    return range(start, layers - end)


def by_queries(sizes: LayerGeometry, params: StructuredParams) -> bool:
    """Whether only query heads are removed and every key-value head stays."""
    if sizes.heads == sizes.kv_heads:
        return False
    return params.heads == "queries" or (params.heads == "auto" and sizes.kv_heads <= FEW_GROUPS)


def shrunk(sizes: LayerGeometry, params: StructuredParams) -> LayerGeometry:
    """A block's sizes after pruning.

    Heads are rounded to the nearest whole number; floor((1 - removed) channels) stay; at least one of each.
    """
    serves = sizes.heads // sizes.kv_heads

    def stay(n):
        return max(1, n - math.floor(n * params.removed + 0.5))

    channels = max(1, math.floor(sizes.feed_forward * (1 - params.removed) + 1e-9))
    if by_queries(sizes, params):
        return dataclasses.replace(sizes, heads=stay(serves) * sizes.kv_heads, feed_forward=channels)
    groups = stay(sizes.kv_heads)
    return dataclasses.replace(sizes, heads=groups * serves, kv_heads=groups, feed_forward=channels)


def reshaped(geometry: Geometry, params: StructuredParams) -> Geometry:
    """The model's sizes after pruning."""
    if params.removed == 0:
        return geometry
    chosen = pruned_layers(len(geometry.layers), params)
    layers = (shrunk(sizes, params) if i in chosen else sizes for i, sizes in enumerate(geometry.layers))
    return dataclasses.replace(geometry, layers=tuple(layers))


def choose(
    by_role: Mapping[str, Tensor],
    sizes: LayerGeometry,
    params: StructuredParams,
    then: LayerGeometry | None = None,
) -> Kept:
    """What stays of a block.

    by_role: role -> the score of each of its rows or columns that belongs to a structure. then: the block's
    sizes afterwards, `shrunk` if they aren't given.
    """
    then = then or shrunk(sizes, params)
    queries, wholes, channels = by_structure(by_role, sizes)
    serves = queries.shape[1]
    groups: Sequence[int]
    if by_queries(sizes, params):
        groups = range(sizes.kv_heads)
        heads = [j * serves + i for j in groups for i in highest(queries[j], then.heads // then.kv_heads)]
    else:
        groups = highest(wholes, then.kv_heads)
        heads = [j * serves + i for j in groups for i in range(serves)]
    return Kept(tuple(heads), tuple(groups), tuple(highest(channels, then.feed_forward)))


def by_structure(by_role: Mapping[str, Tensor], sizes: LayerGeometry) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of a block's structures, from those of its rows and columns.

    They are those of query heads [key-value heads, query heads of each], of whole groups [key-value heads],
    and of channels.
    """
    per_head = {role: by_role[role].view(-1, sizes.head_size).sum(1) for role in ("q", "k", "v", "o")}
    queries = (per_head["q"] + per_head["o"]).view(sizes.kv_heads, -1)
    channels = torch.stack([by_role[role] for role in ("gate", "up", "down") if role in by_role]).sum(0)
    return queries, queries.sum(1) + per_head["k"] + per_head["v"], channels


def ranked_together(
    scores: Mapping[int, Mapping[str, Tensor]], layers: Sequence[LayerGeometry], params: StructuredParams
) -> dict[int, LayerGeometry]:
    """The sizes of each block afterwards if the structures of all blocks are ranked together.

    scores: block -> role -> scores as in `choose`. As many heads and channels go as with equal shares; heads
    compete with heads, and channels with channels. At least one of each stays in every block. If only query
    heads go, every key-value head must lose equally many. So heads then compete in units: a block's first
    unit has the best query head of each key-value head, its second unit the second best, and so on.
    """
    heads: dict[int, Tensor] = {}
    channels: dict[int, Tensor] = {}
    for layer, by_role in scores.items():
        queries, wholes, own = by_structure(by_role, layers[layer])
        units = (
            queries.sort(1, descending=True).values.sum(0) if by_queries(layers[layer], params) else wholes
        )
        heads[layer], channels[layer] = (t.sort(descending=True).values for t in (units, own))
    then = {layer: shrunk(layers[layer], params) for layer in scores}
    kept_heads = highest_together(
        heads,
        sum(
            g.heads // g.kv_heads if by_queries(layers[layer], params) else g.kv_heads
            for layer, g in then.items()
        ),
    )
    kept_channels = highest_together(channels, sum(g.feed_forward for g in then.values()))
    found = {}
    for layer, count in kept_heads.items():
        sizes = layers[layer]
        queries = by_queries(sizes, params)
        found[layer] = dataclasses.replace(
            sizes,
            heads=count * (sizes.kv_heads if queries else sizes.heads // sizes.kv_heads),
            kv_heads=sizes.kv_heads if queries else count,
            feed_forward=kept_channels[layer],
        )
    return found


def highest_together(scores: Mapping[int, Tensor], count: int) -> dict[int, int]:
    """How many of each block's scores [n], falling, are among the `count` highest of all blocks.

    The first of every block always is.
    """
    rest = sorted(
        ((float(score), -layer) for layer, own in scores.items() for score in own[1:]), reverse=True
    )
    found = dict.fromkeys(scores, 1)
    for _, layer in rest[: count - len(scores)]:
        found[-layer] += 1
    return found


def forgotten(scores: Mapping[str, Tensor], kept: Kept | None, sizes: LayerGeometry) -> dict[str, Tensor]:
    """The scores of a block's roles, with -1 for every row or column that was removed before."""
    if kept is None:
        return dict(scores)
    out = {}
    for role, score in scores.items():
        what, _ = AXES[role]
        stays = torch.tensor(getattr(kept, what))
        stays = stays if what == "channels" else lanes(stays, sizes.head_size)
        gone = torch.ones_like(score, dtype=torch.bool).index_fill_(0, stays, False)
        out[role] = score.masked_fill(gone, -1.0)
    return out


def highest(score: Tensor, count: int) -> list[int]:
    """The places of the `count` highest scores, in rising order; of equal scores the earlier stay."""
    return sorted(torch.argsort(score, descending=True, stable=True)[:count].tolist())


def note_of_cut(geometry: Geometry, after: Geometry, layers: list[int]) -> Note:
    """What was removed, in numbers. The first pruned block stands for all, unless they differ."""

    def count(g):
        return sum(math.prod(shape) for _, _, shape in arch.linear_shapes(g))

    before, now = geometry.layers[layers[0]], after.layers[layers[0]]
    left = [after.layers[layer] for layer in layers]
    percent = 100 * (1 - count(after) / count(geometry))
    if any(sizes != now for sizes in left):
        return Note(
            "structures_ranked",
            {
                "blocks": len(layers),
                "of": len(geometry.layers),
                "heads": before.heads,
                "heads_least": min(sizes.heads for sizes in left),
                "heads_most": max(sizes.heads for sizes in left),
                "channels": before.feed_forward,
                "channels_least": min(sizes.feed_forward for sizes in left),
                "channels_most": max(sizes.feed_forward for sizes in left),
                "percent": percent,
            },
        )
    return Note(
        "structures_removed",
        {
            "blocks": len(layers),
            "of": len(geometry.layers),
            "first": layers[0],
            "last": len(geometry.layers) - 1 - layers[-1],
            "heads": before.heads,
            "heads_left": now.heads,
            "channels": before.feed_forward,
            "channels_left": now.feed_forward,
            "percent": percent,
        },
    )

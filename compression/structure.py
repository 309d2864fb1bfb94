"""Cuts heads and channels out of blocks, channels out of the whole model's width, or whole blocks out of it.

The matrices really shrink. A head is its rows of q, k, v and its columns of o. A channel of the feed-forward
is its rows of gate and up and its column of down. Rows take their bias along. Attention needs whole groups:
every key-value head that stays serves the same number of query heads, which stand in the order of the
key-value heads. The size of a head never changes, because rotary positions and per-head norms depend on it.

A channel of the width (the residual stream) is an entry of the embedding and of every norm, and a row or
column of every matrix. A norm then simply has fewer channels, and nothing makes up for the missing ones, as
in the authors' code.

A block that moves up gets a new number, by which attention finds its keys and values in the cache.

A block's sizes are read from its matrices (arch.geometry). So the cache, the decode step and the saved file
follow by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression import arch
from compression.architectures import Architecture
from compression.base import UnsupportedLayer
from compression.bundle import LayerGeometry

AXES = {  # role -> (what its structures are, the axis of its weight [out, in] that they lie on)
    "q": ("heads", 0), "k": ("kv_heads", 0), "v": ("kv_heads", 0), "o": ("heads", 1),
    "gate": ("channels", 0), "up": ("channels", 0), "down": ("channels", 1),
}  # fmt: skip
# role -> the axis of its weight that lies along the width
WIDTH_AXES = {"q": 1, "k": 1, "v": 1, "o": 0, "gate": 1, "up": 1, "down": 0}
# sizes that a block's modules hold as attributes (Architecture.attributes has their names)
SIZES: dict[str, Callable[[LayerGeometry], int]] = {
    "heads": lambda g: g.heads,
    "queries": lambda g: g.heads * g.head_size,
    "served": lambda g: g.heads // g.kv_heads,  # query heads of each key-value head
    "feed_forward": lambda g: g.feed_forward,
}


@dataclass(frozen=True)
class Kept:
    """The parts of one block that stay: numbers of query heads, key-value heads and channels.

    Each list of numbers rises.
    """

    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    channels: tuple[int, ...]


def first(now: LayerGeometry, then: LayerGeometry) -> Kept:
    """Keep the first heads and channels, so that sizes `now` become `then`.

    Undefined weights get the shapes of a cut model this way.
    """
    serves, each = now.heads // now.kv_heads, then.heads // then.kv_heads
    heads = tuple(kv * serves + i for kv in range(then.kv_heads) for i in range(each))
    return Kept(heads, tuple(range(then.kv_heads)), tuple(range(then.feed_forward)))


def cut(module: nn.Module, kept: Mapping[int, Kept]) -> None:
    """Keep only these parts of each block (layer -> Kept), in place.

    Raises UnsupportedLayer if attention couldn't run with them.
    """
    geometry = arch.geometry(module)
    for layer, parts in kept.items():
        sizes = geometry.layers[layer]
        _check(layer, sizes, parts)
        for group in arch.groups(module, layer):
            for path, role in group:
                what, axis = AXES[role]
                index = torch.tensor(getattr(parts, what))
                narrow(
                    module.get_submodule(path),
                    index if what == "channels" else lanes(index, sizes.head_size),
                    axis,
                )
        _tell(
            arch.of(module),
            arch.blocks(module)[layer],
            LayerGeometry(len(parts.heads), len(parts.kv_heads), sizes.head_size, len(parts.channels)),
        )


def cut_width(module: nn.Module, kept: Sequence[int]) -> None:
    """Keep only these channels of the residual stream (numbers in rising order), in place.

    Raises UnsupportedLayer if nothing would stay.
    """
    if not kept:
        raise UnsupportedLayer("no channel of the width would stay; at least one must")
    index, row = torch.tensor(kept), arch.of(module)
    for path, role, _ in arch.linears(module):
        narrow(module.get_submodule(path), index, WIDTH_AXES[role])
    for norm in arch.norms(module):
        _narrow_norm(norm, index)
    into, out = arch.projections(module)
    tables = [module.get_submodule(row.positions)] if row.positions else []
    # the table has a width of its own, and so has the head
    if into is not None:
        narrow(into, index, 0)
        narrow(out, index, 1)
    else:
        tables.append(arch.embedding(module)[1])
        if arch.head(module)[1].weight is not tables[-1].weight:
            narrow(arch.head(module)[1], index, 1)
    for table in tables:
        table.weight = nn.Parameter(
            table.weight.detach().index_select(1, index.to(table.weight.device)), requires_grad=False
        )
        table.embedding_dim = len(kept)
    head = arch.head(module)[1]
    if arch.geometry_of(module.config).tied:
        head.weight = arch.embedding(module)[1].weight
        head.in_features = arch.embedding(module)[1].weight.shape[1]


def cut_depth(module: nn.Module, kept: Sequence[int]) -> None:
    """Keep only those decoder blocks, numbers in rising order, in place; the config follows.

    Raises UnsupportedLayer where nothing would stay.
    """
    if not kept:
        raise UnsupportedLayer("no block would stay; at least one must")
    blocks = arch.blocks(module)
    module.set_submodule(arch.of(module).blocks, nn.ModuleList(blocks[i] for i in kept))
    renumber(module, kept)


def renumber(module: nn.Module, before: Sequence[int]) -> None:
    """Give the blocks of a cut model their new numbers, so that each computes the same as before.

    before: the number that each block had in the deeper model.
    """
    config, row = module.config, arch.of(module)
    config.num_hidden_layers = len(before)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in before]
    for number, (old, block) in enumerate(zip(before, arch.blocks(module), strict=True)):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
        if row.by_depth and getattr(config, row.by_depth):
            _at_depth(module, block, old, number)


def _at_depth(module: nn.Module, block: nn.Module, old: int, number: int) -> None:
    """If scores are divided by the block's number, scale the queries to make up for the new number."""
    query, moved = block.get_submodule(arch.of(module).roles["q"]), (number + 1) / (old + 1)
    arch.attention(module, block).scaling /= moved
    query.weight = nn.Parameter(query.weight.detach() * moved, requires_grad=False)
    if query.bias is not None:
        query.bias = nn.Parameter(query.bias.detach() * moved, requires_grad=False)


def _narrow_norm(norm: nn.Module, index: Tensor) -> None:
    for name in ("weight", "bias"):
        if (old := getattr(norm, name, None)) is not None:
            setattr(
                norm,
                name,
                nn.Parameter(old.detach().index_select(0, index.to(old.device)), requires_grad=False),
            )
    if hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (len(index),)


def lanes(heads: Tensor, size: int) -> Tensor:
    """Rows of q (or columns of o) of heads [n], head by head: [n * size]."""
    return (heads[:, None] * size + torch.arange(size)).flatten()


def narrow(linear: nn.Linear, index: Tensor, axis: int) -> None:
    """Keep the rows (axis 0, with their biases) or columns (axis 1) `index` of a linear, in place."""
    index = index.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(axis, index), requires_grad=False)
    linear.out_features, linear.in_features = linear.weight.shape
    if axis == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, index), requires_grad=False)


def _check(layer: int, sizes: LayerGeometry, kept: Kept) -> None:
    served = [head * sizes.kv_heads // sizes.heads for head in kept.heads]
    each, rest = divmod(len(kept.heads), max(len(kept.kv_heads), 1))
    if not kept.channels or not each or rest or served != [kv for kv in kept.kv_heads for _ in range(each)]:
        raise UnsupportedLayer(
            f"block {layer}: query heads {kept.heads} of {sizes.heads} with key-value heads {kept.kv_heads} "
            f"of {sizes.kv_heads} and {len(kept.channels)} channels; every key-value head must keep equally "
            "many of its own query heads, and something must stay",
            layer=layer,
        )


def _tell(row: Architecture, block: nn.Module, sizes: LayerGeometry) -> None:
    """The block's modules learn their new sizes."""
    for module in block.modules():
        for name, size in row.attributes:
            if hasattr(module, name):
                setattr(module, name, SIZES[size](sizes))
        if isinstance(module, arch.Joined) and module.heads is not None:
            module.heads = sizes.heads

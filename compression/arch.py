"""Where the parts of a loaded model are, and the normal form that every model is brought into at load.

The places come from the table of architectures (compression/architectures). In the normal form every block
holds exactly the linears q k v o (gate) up down, each as nn.Linear. Two architectures need work for that.
GPT-2 stores [in, out] `Conv1D` layers and one fused q|k|v; GPT-NeoX fuses q, k, v interleaved head by head. A
fused layer becomes a `Joined`: three linears whose outputs are put back in the order that the attention
expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compression.architectures import ARCHITECTURES, Architecture
from compression.base import UnsupportedLayer, UnsupportedModel
from compression.bundle import Geometry


class Joined(nn.Module):
    """Three linears q, k and v in the place of a fused layer. Forward returns what the fused layer did."""

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear, heads: int | None):
        super().__init__()
        self.q, self.k, self.v = q, k, v
        self.heads = heads  # None: outputs are [q | k | v]; else they are interleaved over this many heads

    def forward(self, x: Tensor) -> Tensor:
        return join([self.q(x), self.k(x), self.v(x)], self.heads)


def join(parts: list[Tensor], heads: int | None) -> Tensor:
    """Three tensors [..., n] in the fused layer's order along the last axis, [..., 3n]. Also joins biases."""
    if heads is None:
        return torch.cat(parts, -1)
    by_head = [p.unflatten(-1, (heads, -1)) for p in parts]
    return torch.stack(by_head, -2).flatten(-3)


def split(fused: Tensor, heads: int | None) -> list[Tensor]:
    """The inverse of `join` along the first axis: rows [3n, ...] -> three [n, ...]."""
    if heads is None:
        return list(fused.chunk(3, 0))
    return [part.flatten(0, 1) for part in fused.unflatten(0, (heads, 3, -1)).unbind(1)]


def file_linears(config) -> Iterator[tuple[str, list[str]]]:
    """(path of a block's linear as transformers names it, our paths for it: one, or q, k and v)."""
    row = of_config(config)
    for layer in range(config.num_hidden_layers):
        held: dict[str, list[str]] = {}
        for path in row.roles.values():
            in_fused = row.fused is not None and path.startswith(f"{row.fused.path}.")
            held.setdefault(row.fused.path if in_fused else path, []).append(path)
        prefix = f"{row.blocks}.{layer}."
        yield from ((prefix + path, [prefix + part for part in parts]) for path, parts in held.items())


def from_file(row: Architecture, name: str) -> str:
    """A tensor's name in a file -> its name in the model: "embed_out.weight" -> "lm_head.weight"."""
    return next((ours + name.removeprefix(own) for own, ours in row.renamed if name.startswith(own)), name)


def to_file(row: Architecture, name: str) -> str:
    """The inverse of `from_file`."""
    return next((own + name.removeprefix(ours) for own, ours in row.renamed if name.startswith(ours)), name)


def fused_heads(config) -> int | None:
    """Over how many heads the rows of a fused q, k and v are interleaved; None: they are [q | k | v]."""
    fused = of_config(config).fused
    return config.num_attention_heads if fused and fused.by_head else None


def of_config(config) -> Architecture:
    """The table's row for a transformers config. Raises UnsupportedModel, which names what is supported."""
    if config.model_type not in ARCHITECTURES:
        raise UnsupportedModel(
            f"architecture {config.model_type!r} ({', '.join(config.architectures or ['?'])}) is not "
            "supported; "
            f"supported: {', '.join(ARCHITECTURES)}. Choose a model of one of these architectures.",
            got=config.model_type,
            allowed=", ".join(ARCHITECTURES),
        )
    return ARCHITECTURES[config.model_type]


def of(module: nn.Module) -> Architecture:
    """The table's row for a model."""
    return of_config(module.config)


def normalise(module: nn.Module) -> None:
    """Bring a transformers causal LM into the normal form, in place. Its outputs stay the same.

    Raises UnsupportedLayer if a part with weights isn't named by the table's row, or is of another class than
    the row says; UnsupportedModel if there is no row.
    """
    row, heads = of(module), fused_heads(module.config)
    sizes = geometry_of(module.config).layers[0]
    if row.fused and sizes.heads != sizes.kv_heads:
        raise UnsupportedLayer(
            f"{row.fused.path!r} fuses {sizes.heads} query heads with {sizes.kv_heads} of keys and values; "
            "only a layer of equal parts can be taken apart",
            got=f"{sizes.heads} and {sizes.kv_heads} heads",
            allowed="as many of each",
        )
    for block in blocks(module):
        for path, child in list(block.named_modules()):
            if type(child).__name__ == "Conv1D":
                block.set_submodule(path, _linear(child.weight.detach().T, child.bias))
        if row.fused and not isinstance(fused := block.get_submodule(row.fused.path), Joined):
            weights = split(fused.weight.detach(), heads)
            biases = split(fused.bias.detach(), heads) if fused.bias is not None else [None] * 3
            q, k, v = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
            block.set_submodule(row.fused.path, Joined(q, k, v, heads))
    _check_parts(module)


def _check_parts(module: nn.Module) -> None:
    """Raise UnsupportedLayer unless the table's row names every part that holds weights, and its class."""
    row = of(module)
    table = embedding(module)[1]
    named = {id(part) for part in (table, head(module)[1], *projections(module), *all_norms(module))}
    named |= {id(module.get_submodule(path)) for path, _, _ in linears(module)}
    if row.positions:
        named.add(id(module.get_submodule(row.positions)))
    for path, part in module.named_modules():
        if any(True for _ in part.parameters(recurse=False)) and id(part) not in named:
            known = ", ".join(sorted({*row.roles.values(), *filter(None, row.norms)}))
            raise UnsupportedLayer(
                f"{path!r} of type {type(part).__name__} holds weights, and the table of {row.name!r} "
                f"doesn't name it; known in a block: {known}",
                got=path,
                allowed=known,
            )
    for norm in all_norms(module):
        if class_path(norm) != row.norm.path:
            raise UnsupportedLayer(
                f"a norm of class {class_path(norm)} is not in the table of {row.name!r}; known: "
                f"{row.norm.path}",
                got=class_path(norm),
                allowed=row.norm.path,
            )
    if type(table) is not nn.Embedding and not row.embedding_scale:
        raise UnsupportedLayer(
            f"an embedding of class {class_path(table)} is not in the table of {row.name!r}; known: "
            f"{nn.Embedding.__name__}",
            got=class_path(table),
            allowed=nn.Embedding.__name__,
        )


def class_path(part: nn.Module) -> str:
    """Module and name of a part's class, written as in the table."""
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """weight [out, in]. Tensors are copied, so that no two linears share storage."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


def blocks(module: nn.Module) -> nn.ModuleList:
    """The decoder blocks in order."""
    return module.get_submodule(of(module).blocks)


def groups(module: nn.Module, layer: int) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Block `layer`'s linears as ((full path, role), ...) for each shared input, in data-flow order."""
    row = of(module)
    return tuple(
        tuple((f"{row.blocks}.{layer}.{path}", role) for path, role in group) for group in row.groups
    )


@dataclass(frozen=True)
class Fold:
    """Where a factor 1/s on a group's input channels can go without changing the model.

    It goes into the norm or the linear that computes these channels.
    """

    path: str
    weight: Tensor  # float32: a norm's factors [in], or a linear's weight [rows, the linear's own in]
    bias: Tensor | None
    row: Tensor  # [in]: for each channel, the entry (norm) or row (linear) of `weight` that computes it
    added: float = 0.0  # `weight` is the sum of this number and of what a norm stores (declare.Norm)

    def shared(self, s: Tensor) -> Tensor:
        """s float32 [in] with one value, the mean, for all channels that the same row computes.

        In grouped-query attention several query heads read one row of v.
        """
        total = s.new_zeros(self.weight.shape[0]).index_add_(0, self.row, s)
        return (total / torch.bincount(self.row, minlength=len(total)))[self.row]

    def rows(self, s: Tensor) -> Tensor:
        """The divisor of each row [rows]; s must come from `shared`."""
        return s.new_ones(self.weight.shape[0]).index_put_((self.row,), s)


def fold(module: nn.Module, layer: int, group: int) -> tuple[Fold | None, str]:
    """(where a factor on the inputs of a group can go, "") or (None, why it can't).

    norm -> linears: exact if the norm has a weight and feeds only these linears. OPT-350M's norms stand after
    the sum, so they feed the residual too, and no factor can go there.
    v -> o: exact, since attention mixes tokens and never channels.
    up -> down: exact through a gate's product or a ReLU, not through GELU.
    """
    architecture, config = of(module), module.config
    block, prefix = blocks(module)[layer], f"{architecture.blocks}.{layer}."
    roles = architecture.roles
    path, role = architecture.groups[group][0]
    width = block.get_submodule(path).in_features
    norm = architecture.norms[group]
    if norm is not None:
        if not norm_first(module):
            return None, "post_norm"
        path, row = norm, torch.arange(width)
    elif role == "o":
        made = block.get_submodule(roles["v"]).out_features
        size = geometry(module).layers[layer].head_size
        row = torch.arange(made).view(-1, size).repeat_interleave(width // made, 0).flatten()
        path = roles["v"]
    elif "gate" in roles or getattr(config, architecture.activation) == "relu":
        path, row = roles["up"], torch.arange(width)
    else:
        return None, "activation"
    source = block.get_submodule(path)
    if source.weight is None:
        return None, "no_weight"
    bias, added = getattr(source, "bias", None), architecture.norm.added if norm is not None else 0.0
    return Fold(
        prefix + path,
        source.weight.detach().float() + added,
        None if bias is None else bias.detach().float(),
        row.to(source.weight.device),
        added,
    ), ""


def linears(module: nn.Module) -> list[tuple[str, str, int]]:
    """(full path, role, layer) of every linear in a block."""
    return [(p, r, i) for i in range(len(blocks(module))) for group in groups(module, i) for p, r in group]


def norms(module: nn.Module) -> list[nn.Module]:
    """Every norm over the model's width: those of the blocks in order, then the one before the head."""
    found = [block.get_submodule(path) for block in blocks(module) for path in of(module).norms if path]
    last = final_norm(module)
    return found if last is None else [*found, last]


def final_norm(module: nn.Module) -> nn.Module | None:
    """The norm before the head; None if the config leaves it out (some of OPT)."""
    parent, _, name = of(module).final.rpartition(".")
    return getattr(module.get_submodule(parent), name)


def head_norms(module: nn.Module, block: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The norms over each head's queries and keys; None if the architecture has none."""
    query, key = of(module).head_norms or (None, None)
    return query and block.get_submodule(query), key and block.get_submodule(key)


def all_norms(module: nn.Module) -> list[nn.Module]:
    """Every norm: over a head, and over the model's width."""
    heads = [norm for block in blocks(module) for norm in head_norms(module, block) if norm is not None]
    return [*heads, *norms(module)]


def projections(module: nn.Module) -> tuple[nn.Linear | None, nn.Linear | None]:
    """The linear into the width after the embedding, and the one out of it before the head, or None."""
    paths = of(module).projections
    if paths is None:
        return None, None
    places = (path.rpartition(".") for path in paths)
    into, out = (getattr(module.get_submodule(parent), name, None) for parent, _, name in places)
    return into, out


def norm_first(module: nn.Module) -> bool:
    """Whether norms stand before attention and feed-forward; otherwise they stand after the sum."""
    flag = of(module).norm_first
    return not flag or bool(getattr(module.config, flag))


def attention(module: nn.Module, block: nn.Module) -> nn.Module:
    """The part of a block that multiplies queries and keys."""
    return block.get_submodule(of(module).attention)


def backbone(module: nn.Module) -> nn.Module:
    """The part whose last_hidden_state feeds the head.

    That is after the final norm, and in OPT after the output projection.
    """
    return module.get_submodule(of(module).backbone)


def changing_angles(module: nn.Module) -> nn.Module | None:
    """The rotary module, if its angles depend on how long the text has become; else None.

    Its `inv_freq` holds the angles of its last call.
    """
    row = of(module).rotary
    rotary = module.get_submodule(row.path) if row else None
    return rotary if getattr(rotary, "rope_type", "default") in ("dynamic", "longrope") else None


def embedding(module: nn.Module) -> tuple[str, nn.Module]:
    """(path, module) of the token embedding."""
    path = of(module).embedding
    return path, module.get_submodule(path)


def embedding_scale(module: nn.Module) -> float:
    """The factor on the embedding's rows; 1 if there is none."""
    part, name = embedding(module)[1], of(module).embedding_scale
    if not name:
        return 1.0
    return float(getattr(part, name) if isinstance(part, nn.Embedding) else part.scale)  # else it is stored


def head(module: nn.Module) -> tuple[str, nn.Module]:
    """(path, module) of the output head."""
    path = of(module).head
    return path, module.get_submodule(path)


def geometry(module: nn.Module) -> Geometry:
    """The sizes of a model in the normal form: each block's from its matrices, the rest from the config."""
    described = geometry_of(module.config)
    width = module.get_submodule(linears(module)[0][0]).in_features
    paths = of(module).roles
    layers = []
    for block, sizes in zip(blocks(module), described.layers, strict=True):
        q, k, up = (block.get_submodule(paths[role]).out_features for role in ("q", "k", "up"))
        layers.append(
            replace(sizes, heads=q // sizes.head_size, kv_heads=k // sizes.head_size, feed_forward=up)
        )
    return replace(described, hidden=width, layers=tuple(layers))


def geometry_of(config) -> Geometry:
    """The sizes that a transformers config describes."""
    return of_config(config).geometry(lambda name: getattr(config, name, None) if name else None)


def linear_shapes(geometry: Geometry) -> list[tuple[str, int, tuple[int, int]]]:
    """(role, layer, (out, in)) of every block linear, from the sizes alone."""
    roles = ARCHITECTURES[geometry.architecture].roles
    out = []
    for i, g in enumerate(geometry.layers):
        h, q, kv, ff = geometry.hidden, g.heads * g.head_size, g.kv_heads * g.head_size, g.feed_forward
        shapes = {
            "q": (q, h),
            "k": (kv, h),
            "v": (kv, h),
            "o": (h, q),
            "up": (ff, h),
            "down": (h, ff),
            "gate": (ff, h),
        }
        out += [(role, i, shape) for role, shape in shapes.items() if role in roles]
    return out

"""What is where in a model: one table row a family, and the normal form that every family is brought into at
load.

In the normal form every block holds exactly the linears q k v o (gate) up down as nn.Linear. Two families
need work: GPT-2 stores [in, out] `Conv1D` layers and one fused q|k|v; GPT-NeoX fuses q, k, v interleaved head
by head. A fused layer becomes a `Joined`, three linears whose outputs are put back in the order that the
attention expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compression.base import UnsupportedLayer, UnsupportedModel
from compression.bundle import Geometry, LayerGeometry


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts. Paths in `groups` and `norms` are relative to a block."""

    backbone: str  # the module whose last hidden state feeds the head
    blocks: str
    embedding: str
    head: str
    # ((path, role), ...) for each shared input, in data-flow order
    groups: tuple[tuple[tuple[str, str], ...], ...]
    # the norm whose output is exactly that group's input, None if there is none
    norms: tuple[str | None, ...]
    final: str  # the norm before the head
    rotary: str | None = None  # the module that gives cosines and sines, None for learned positions
    positions: str | None = None  # the table of learned positions
    activation: str = "hidden_act"  # the config's name for the feed-forward's activation
    fused: str | None = None  # path of the fused q, k, v layer
    fused_by_head: bool = False  # rows [head][q, k, v][head_size] instead of [q | k | v]
    prefix: str = "model."  # what the names in a file of the backbone alone leave out
    renamed: tuple[tuple[str, str], ...] = ()  # (a name's start in some files, what it stands for)
    # (pattern of a whole name, what it is) of tensors that some published files carry and that follow from
    # the config: "mask" of past and future, "floor" that a mask writes, "angles" per position, "version" of
    # the program that wrote it
    recomputed: tuple[tuple[str, str], ...] = ()


_LLAMA_GROUPS = (
    (("self_attn.q_proj", "q"), ("self_attn.k_proj", "k"), ("self_attn.v_proj", "v")),
    (("self_attn.o_proj", "o"),),
    (("mlp.gate_proj", "gate"), ("mlp.up_proj", "up")),
    (("mlp.down_proj", "down"),),
)
_LLAMA = Family(
    "model",
    "model.layers",
    "model.embed_tokens",
    "lm_head",
    _LLAMA_GROUPS,
    ("input_layernorm", None, "post_attention_layernorm", None),
    "model.norm",
    rotary="model.rotary_emb",
    recomputed=((r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "angles"),),
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "opt": Family(
        "model",
        "model.decoder.layers",
        "model.decoder.embed_tokens",
        "lm_head",
        (
            (("self_attn.q_proj", "q"), ("self_attn.k_proj", "k"), ("self_attn.v_proj", "v")),
            (("self_attn.out_proj", "o"),),
            (("fc1", "up"),),
            (("fc2", "down"),),
        ),
        ("self_attn_layer_norm", None, "final_layer_norm", None),
        "model.decoder.final_layer_norm",
        positions="model.decoder.embed_positions",
        activation="activation_function",
        recomputed=((r"model\.decoder\.version", "version"),),
    ),
    "gpt2": Family(
        "transformer",
        "transformer.h",
        "transformer.wte",
        "lm_head",
        (
            (("attn.c_attn.q", "q"), ("attn.c_attn.k", "k"), ("attn.c_attn.v", "v")),
            (("attn.c_proj", "o"),),
            (("mlp.c_fc", "up"),),
            (("mlp.c_proj", "down"),),
        ),
        ("ln_1", None, "ln_2", None),
        "transformer.ln_f",
        positions="transformer.wpe",
        activation="activation_function",
        fused="attn.c_attn",
        prefix="transformer.",
        recomputed=(
            (r"transformer\.h\.\d+\.attn\.bias", "mask"),
            (r"transformer\.h\.\d+\.attn\.masked_bias", "floor"),
        ),
    ),
    "gpt_neox": Family(
        "gpt_neox",
        "gpt_neox.layers",
        "gpt_neox.embed_in",
        "lm_head",
        (
            (
                ("attention.query_key_value.q", "q"),
                ("attention.query_key_value.k", "k"),
                ("attention.query_key_value.v", "v"),
            ),
            (("attention.dense", "o"),),
            (("mlp.dense_h_to_4h", "up"),),
            (("mlp.dense_4h_to_h", "down"),),
        ),
        ("input_layernorm", None, "post_attention_layernorm", None),
        "gpt_neox.final_layer_norm",
        rotary="gpt_neox.rotary_emb",
        fused="attention.query_key_value",
        fused_by_head=True,
        prefix="gpt_neox.",
        renamed=(("embed_out.", "lm_head."),),
        recomputed=(
            (r"gpt_neox\.layers\.\d+\.attention\.bias", "mask"),
            (r"gpt_neox\.layers\.\d+\.attention\.masked_bias", "floor"),
            (r"gpt_neox\.(layers\.\d+\.attention\.)?rotary_emb\.inv_freq", "angles"),
        ),
    ),
}


class Joined(nn.Module):
    """q, k and v as linears of their own behind the fused layer's place; forward returns what the fused layer
    did."""

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear, heads: int | None):
        super().__init__()
        self.q, self.k, self.v = q, k, v
        self.heads = heads  # None: [q | k | v]; else interleaved over so many heads

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
    """(path of a block's linear as transformers names it, paths of ours that it holds: one, or q, k and
    v)."""
    family = FAMILIES[family_of(config)]
    for layer in range(config.num_hidden_layers):
        held: dict[str, list[str]] = {}
        for path, _ in (linear for group in family.groups for linear in group):
            fused = family.fused and path.startswith(f"{family.fused}.")
            held.setdefault(family.fused if fused else path, []).append(path)
        prefix = f"{family.blocks}.{layer}."
        yield from ((prefix + path, [prefix + part for part in parts]) for path, parts in held.items())


def fused_heads(config) -> int | None:
    """Over how many heads the rows of fused q, k and v are interleaved; None: [q | k | v]."""
    return config.num_attention_heads if FAMILIES[family_of(config)].fused_by_head else None


def family_of(config) -> str:
    """The table's key for a transformers config. Raises UnsupportedModel naming what is supported."""
    if config.model_type not in FAMILIES:
        raise UnsupportedModel(
            f"architecture {config.model_type!r} ({', '.join(config.architectures or ['?'])}) is not "
            "supported; "
            f"supported: {', '.join(FAMILIES)}. Choose a model of one of these families.",
            got=config.model_type,
            allowed=", ".join(FAMILIES),
        )
    return config.model_type


def table(module: nn.Module) -> Family:
    """The table's row for a model."""
    return FAMILIES[family_of(module.config)]


def normalise(module: nn.Module) -> None:
    """Bring a transformers causal LM into the normal form, in place. Its outputs stay the same.

    Raises UnsupportedModel, or UnsupportedLayer if a block holds a linear that the table doesn't name.
    """
    family, heads = table(module), fused_heads(module.config)
    for block in blocks(module):
        for path, child in list(block.named_modules()):
            if type(child).__name__ == "Conv1D":
                block.set_submodule(path, _linear(child.weight.detach().T, child.bias))
        if family.fused and not isinstance(block.get_submodule(family.fused), Joined):
            fused = block.get_submodule(family.fused)
            weights = split(fused.weight.detach(), heads)
            biases = split(fused.bias.detach(), heads) if fused.bias is not None else [None] * 3
            parts = [_linear(w, b) for w, b in zip(weights, biases, strict=True)]
            block.set_submodule(family.fused, Joined(*parts, heads))
        known = {path for group in family.groups for path, _ in group}
        for path, child in block.named_modules():
            if isinstance(child, nn.Linear) and path not in known:
                raise UnsupportedLayer(
                    f"block layer {path!r} of type {type(child).__name__} is not in the table of "
                    f"{module.config.model_type!r}; known: {', '.join(sorted(known))}",
                    got=path,
                    allowed=", ".join(sorted(known)),
                )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """weight [out, in]. Tensors are copied, so that no two linears share storage."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


def joined_weight(joined: Joined) -> tuple[Tensor, Tensor | None]:
    """The fused weight [3n, in] and bias of a Joined in the family's own row order, for export."""
    parts = [joined.q, joined.k, joined.v]
    weight = join([p.weight.T for p in parts], joined.heads).T
    bias = join([p.bias for p in parts], joined.heads) if parts[0].bias is not None else None
    return weight, bias


def blocks(module: nn.Module) -> nn.ModuleList:
    """The decoder blocks in order."""
    return module.get_submodule(table(module).blocks)


def groups(module: nn.Module, layer: int) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Block `layer`'s linears as ((full path, role), ...) for each shared input, in data-flow order."""
    family = table(module)
    return tuple(
        tuple((f"{family.blocks}.{layer}.{path}", role) for path, role in group) for group in family.groups
    )


@dataclass(frozen=True)
class Fold:
    """Where 1/s on a group's input channels goes without changing the model: the norm or the linear that
    makes them."""

    path: str
    weight: Tensor  # of a norm [in], of a linear [rows, its in], float32
    bias: Tensor | None
    row: Tensor  # [in] the entry (norm) or row (linear) of `weight` that makes each channel

    def shared(self, s: Tensor) -> Tensor:
        """s [in] float32 with one value for the channels that one row makes (grouped-query attention repeats
        v): their mean."""
        total = s.new_zeros(self.weight.shape[0]).index_add_(0, self.row, s)
        return (total / torch.bincount(self.row, minlength=len(total)))[self.row]

    def rows(self, s: Tensor) -> Tensor:
        """The divisor of each row [rows]; s must be `shared`."""
        return s.new_ones(self.weight.shape[0]).index_put_((self.row,), s)


def fold(module: nn.Module, layer: int, group: int) -> tuple[Fold | None, str]:
    """(where a factor on the inputs of that group can go, "") or (None, why it can't).

    norm -> linears: exact where the norm feeds these linears only; in OPT-350M (norm after the sum) it feeds
    the residual too, and where it has a weight. v -> o: attention mixes tokens, never channels. up -> down:
    through a gate's product or a ReLU; not through GELU.
    """
    family, config = table(module), module.config
    block, prefix = blocks(module)[layer], f"{family.blocks}.{layer}."
    roles = {role: path for g in family.groups for path, role in g}
    role = family.groups[group][0][1]
    width = block.get_submodule(family.groups[group][0][0]).in_features
    if family.norms[group] is not None:
        if not getattr(config, "do_layer_norm_before", True):
            return None, "post_norm"
        path, row = family.norms[group], torch.arange(width)
    elif role == "o":
        made = block.get_submodule(roles["v"]).out_features
        size = geometry(module).layers[layer].head_size
        row = torch.arange(made).view(-1, size).repeat_interleave(width // made, 0).flatten()
        path = roles["v"]
    elif "gate" in roles or getattr(config, family.activation) == "relu":
        path, row = roles["up"], torch.arange(width)
    else:
        return None, "activation"
    source = block.get_submodule(path)
    if source.weight is None:
        return None, "no_weight"
    bias = getattr(source, "bias", None)
    row = row.to(source.weight.device)
    return Fold(
        prefix + path, source.weight.detach().float(), None if bias is None else bias.detach().float(), row
    ), ""


def linears(module: nn.Module) -> list[tuple[str, str, int]]:
    """(full path, role, layer) of every linear in a block."""
    return [(p, r, i) for i in range(len(blocks(module))) for group in groups(module, i) for p, r in group]


def norms(module: nn.Module) -> list[nn.Module]:
    """Every norm over the model's width: those of the blocks in order, then the one before the head if there
    is one."""
    family = table(module)
    found = [block.get_submodule(path) for block in blocks(module) for path in family.norms if path]
    parent, _, name = family.final.rpartition(".")
    last = getattr(module.get_submodule(parent), name)
    return found if last is None else [*found, last]


def backbone(module: nn.Module) -> nn.Module:
    """The part whose last_hidden_state, after the final norm (and OPT's output projection), feeds the
    head."""
    return module.get_submodule(table(module).backbone)


def changing_angles(module: nn.Module) -> nn.Module | None:
    """The rotary module where its angles depend on how long the text has become (`inv_freq` holds what it
    gave last)."""
    path = table(module).rotary
    rotary = module.get_submodule(path) if path else None
    return rotary if getattr(rotary, "rope_type", "default") in ("dynamic", "longrope") else None


def embedding(module: nn.Module) -> tuple[str, nn.Module]:
    """(path, module) of the token embedding."""
    path = table(module).embedding
    return path, module.get_submodule(path)


def head(module: nn.Module) -> tuple[str, nn.Module]:
    """(path, module) of the output head."""
    path = table(module).head
    return path, module.get_submodule(path)


def geometry(module: nn.Module) -> Geometry:
    """The sizes of a model in the normal form: each block's from its matrices, the rest from the config."""
    described = geometry_of(module.config)
    width = module.get_submodule(linears(module)[0][0]).in_features
    paths = {role: path for group in table(module).groups for path, role in group}
    layers = []
    for block, sizes in zip(blocks(module), described.layers, strict=True):
        q, k, up = (block.get_submodule(paths[role]).out_features for role in ("q", "k", "up"))
        layers.append(
            replace(sizes, heads=q // sizes.head_size, kv_heads=k // sizes.head_size, feed_forward=up)
        )
    return replace(described, hidden=width, layers=tuple(layers))


def geometry_of(config) -> Geometry:
    """The sizes that a transformers config describes."""
    family, c = family_of(config), config
    heads = c.num_attention_heads
    grouped = c if FAMILIES[family] is _LLAMA else None  # the others take no notice of such names
    head_size = getattr(grouped, "head_dim", None) or c.hidden_size // heads
    feed_forward = {"opt": "ffn_dim", "gpt2": "n_inner"}.get(family, "intermediate_size")
    layer = LayerGeometry(
        heads=heads,
        kv_heads=getattr(grouped, "num_key_value_heads", None) or heads,
        head_size=head_size,
        feed_forward=getattr(c, feed_forward, None) or 4 * c.hidden_size,
    )
    projected = getattr(c, "word_embed_proj_dim", None) or c.hidden_size
    return Geometry(
        family,
        c.hidden_size,
        c.vocab_size,
        c.max_position_embeddings,
        bool(c.tie_word_embeddings),
        (layer,) * c.num_hidden_layers,
        projected if projected != c.hidden_size else 0,
    )


def linear_shapes(geometry: Geometry) -> list[tuple[str, int, tuple[int, int]]]:
    """(role, layer, (out, in)) of every block linear, from the sizes alone."""
    gated = FAMILIES[geometry.family] is _LLAMA
    out = []
    for i, g in enumerate(geometry.layers):
        h, q, kv, ff = geometry.hidden, g.heads * g.head_size, g.kv_heads * g.head_size, g.feed_forward
        shapes = {"q": (q, h), "k": (kv, h), "v": (kv, h), "o": (h, q), "up": (ff, h), "down": (h, ff)}
        if gated:
            shapes["gate"] = (ff, h)
        out += [(role, i, shape) for role, shape in shapes.items()]
    return out

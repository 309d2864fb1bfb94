"""From a model to the flat description that the one-call decode step reads (kernels/cpu/step.py).

Every linear goes in with the format it has; one that isn't compressed goes in as 16-bit weights (the type that its
publisher used, float16 where that was 32 bits), as the saved file would hold it, or in the type that is asked for. What the
step can't run is refused with the reason, and the model then runs through transformers' own loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression import arch
from compression.bundle import Bundle
from compression.packed.linear import CompressedLinear, CompressedTable, TableHead
from kernels import cpu
from kernels.cpu import plans
from kernels.cpu.step import Decoder, Layer, Linear, Model, Norm

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu",
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip
CHANGING = ("dynamic", "longrope")  # rotary angles that depend on how long the text has become


class CannotServe(Exception):
    """The decode step can't run this model; the message says why."""


def serve(bundle: Bundle) -> Decoder | None:
    """The bundle's decoder, made at the first call; None where the step can't run it (`reason` says why).

    Whoever changes the module's weights calls `forget` first.
    """
    if bundle.decoder is None and not bundle.refused:
        try:
            bundle.decoder = decoder(bundle)
        except CannotServe as why:
            bundle.refused = str(why)
    return bundle.decoder


def serve_alone(bundle: Bundle) -> Decoder | None:
    """`serve`, and then give up the module's own weights: from here on the bundle can only be asked for tokens."""
    found = serve(bundle)
    if found is not None:
        bundle.module.to("meta")
    return found


def forget(bundle: Bundle) -> None:
    """The module changes: what was made from it is of no use any more."""
    bundle.decoder, bundle.refused = None, ""


def storage_dtype(bundle: Bundle) -> torch.dtype:
    """The 16-bit type of whatever isn't compressed: bfloat16 where the publisher used it, else float16."""
    return torch.bfloat16 if bundle.source.get("dtype") == "bfloat16" else torch.float16


def prepare(bundle: Bundle) -> None:
    """Keep only the tiles of every compressed matrix (a saved model that will be served, not changed)."""
    for module in bundle.module.modules():
        if isinstance(module, (CompressedLinear, CompressedTable)):
            module.packed.prepare()


def decoder(bundle: Bundle, dtype: torch.dtype | None = None) -> Decoder:
    """A decoder for the model as it is now. dtype: of the matrices that aren't compressed. Raises CannotServe."""
    module, config = bundle.module, bundle.module.config
    if cpu.wait() is None:
        raise CannotServe(f"the C kernels don't serve: {cpu.status()}")
    if bundle.device.type != "cpu" or module.training:
        raise CannotServe("the model is being trained" if module.training else f"the model is on {bundle.device.type}")
    family, g = arch.table(module), bundle.geometry
    if bundle.cache_bits == 4 and (odd := [sizes.head_size for sizes in g.layers if sizes.head_size % 2]):
        raise CannotServe(f"a key-value cache in 4 bits holds two neighbours a byte; a head has {odd[0]}")
    name = getattr(config, family.activation, "")
    if name not in ACTIVATIONS:
        raise CannotServe(f"activation {name!r}; the step has {', '.join(ACTIVATIONS)}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise CannotServe("some layers look at a sliding window only")
    make = _Maker(module, dtype or storage_dtype(bundle))
    # the largest first, while little else takes memory
    table, head = make.table(arch.embedding(module)[1]), make.linear(arch.head(module)[1])
    blocks = arch.blocks(module)
    layers = tuple(_layer(make, module, i, block, g.layers[i]) for i, block in enumerate(blocks))
    scalings = {_attention(block).scaling for block in blocks}
    first_norm, eps = blocks[0].get_submodule(family.norms[0]), set()
    for norm in _norms(module):
        eps.add(getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None))
    if len(scalings) > 1 or len(eps) > 1:
        raise CannotServe("layers differ in the scale of their attention or in the epsilon of their norms")
    parent = module.get_submodule(family.final.rpartition(".")[0])
    positions = module.get_submodule(family.positions) if family.positions else None
    cosine, sine = _angles(module, family, g.positions) if family.rotary else (None, None)
    return Decoder(Model(
        layers, table, head, make.norm(getattr(parent, family.final.rpartition(".")[2])),
        hidden=g.hidden, vocabulary=g.vocabulary, limit=g.positions, scaling=scalings.pop(), eps=eps.pop(),
        rms=not isinstance(first_norm, nn.LayerNorm), activation=ACTIVATIONS[name],
        parallel=bool(getattr(config, "use_parallel_residual", False)), post_norm=getattr(config, "do_layer_norm_before", True) is False,
        project_in=make.linear(getattr(parent, "project_in", None)), project_out=make.linear(getattr(parent, "project_out", None)),
        cosine=cosine, sine=sine, positions=None if positions is None else positions.weight.detach().float().contiguous(),
        offset=getattr(positions, "offset", 0), cache_bits=bundle.cache_bits,
    ))  # fmt: skip


class _Maker:
    """Parts of a model as the step takes them; a tied matrix is made once."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        self.module, self.dtype, self.dense = module, dtype, {}

    def matrix(self, weight: Tensor) -> plans.Plan:
        key = weight.data_ptr()
        if key not in self.dense:
            self.dense[key] = plans.dense(plans.to_range(weight.detach(), self.dtype))
        return self.dense[key]

    def linear(self, part: nn.Module | None) -> Linear:
        if part is None:
            return Linear()
        if isinstance(part, TableHead):
            return Linear(self._packed(part.table.packed))
        floats = lambda t: None if t is None else t.detach().float().contiguous()  # noqa: E731
        if isinstance(part, CompressedLinear):
            return Linear(self._packed(part.packed), floats(part.bias), floats(part.input_scale))
        if isinstance(part, nn.Linear):
            return Linear(self.matrix(part.weight), floats(part.bias))
        raise CannotServe(f"a linear of type {type(part).__name__}")

    def table(self, part: nn.Module) -> plans.Plan:
        if isinstance(part, CompressedTable):
            return self._packed(part.packed)
        return self.matrix(part.weight)

    def norm(self, part: nn.Module | None) -> Norm:
        if part is None or getattr(part, "weight", None) is None:
            return Norm()
        bias = getattr(part, "bias", None)
        return Norm(part.weight.detach().float().contiguous(), None if bias is None else bias.detach().float().contiguous())

    def _packed(self, packed) -> plans.Plan:
        plan = packed.plan()
        if plan is None:
            raise CannotServe(f"no C kernel takes {packed.format} as it is stored here")
        return plan


def _layer(make: _Maker, module: nn.Module, number: int, block: nn.Module, sizes) -> Layer:
    family, attention = arch.table(module), _attention(block)
    linears = {role: make.linear(module.get_submodule(path)) for group in arch.groups(module, number) for path, role in group}
    before = [make.norm(block.get_submodule(path)) for path in (family.norms[0], family.norms[2])]
    heads = [make.norm(getattr(attention, name, None)) for name in ("q_norm", "k_norm")]
    return Layer(*before, *heads, linears, sizes.heads, sizes.kv_heads, sizes.head_size)


def _attention(block: nn.Module) -> nn.Module:
    return next(m for m in block.modules() if hasattr(m, "scaling"))


def _norms(module: nn.Module) -> list[nn.Module]:
    """Every norm: over the width and over a head."""
    names = ("q_norm", "k_norm")
    found = [norm for block in arch.blocks(module) for name in names if (norm := getattr(_attention(block), name, None))]
    return [*found, *arch.norms(module)]


def _angles(module: nn.Module, family: arch.Family, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, rotary / 2] as transformers computes them, any scaling included."""
    rotary = module.get_submodule(family.rotary)
    if any(word in str(getattr(rotary, "rope_type", "")) for word in CHANGING):
        raise CannotServe("rotary angles that change with the length of the text")
    with torch.no_grad():
        cosine, sine = rotary(torch.zeros(1, dtype=torch.float32), torch.arange(positions)[None])
    half = cosine.shape[-1] // 2
    return cosine[0, :, :half].float().contiguous(), sine[0, :, :half].float().contiguous()

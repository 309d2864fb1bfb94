"""Turns a model into the flat description that the one-call decode step reads (kernels/cpu/step.py).

A compressed linear keeps its format. Any other linear goes in as 16-bit weights, as the saved file would hold
it (in its publisher's type, or in float16 if that has 32 bits), or in the type that the caller asks for.

A model that the step doesn't know (known.py) is refused with the reason, and then runs through transformers'
own loop. Every new decoder is tried on a few tokens. If its logits aren't those of the model's own forward
pass, the model is refused too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from compression import arch, known
from compression.architectures.declare import Rotary
from compression.bundle import Bundle
from compression.packed.linear import CompressedLinear, CompressedTable, TableHead
from compression.surgery import instead
from kernels import cpu
from kernels.cpu import plans
from kernels.cpu.step import Decoder, Layer, Linear, Model, Norm, Session

# a new decoder is tried on TRIED tokens: AT_ONCE of them in one call, the others one by one
TRIED, AT_ONCE = 8, 5
# The most by which its logits may differ from the model's (`deviation`). Float32 sums in another order give
# 1e-6 to 1e-5; a wrong epsilon, scale, angle or activation gives 1e-3 and more.
EXACT = 3e-4
# With rounded activations, a value halfway between two codes may be rounded the other way, and then all later
# values differ by their own rounding. So ROUNDED is allowed for each block (30 blocks of 8-bit activations
# gave 0.13), but never more than MOST: two models that have nothing in common give 1 and more.
ROUNDED, MOST = 0.05, 0.7
ANGLES_AT_ONCE = 1 << 14  # positions whose angles are computed at once
HALF_ERROR = 2.0**-11  # the error of rounding to float16, relative to the value
NORMAL = 2.0**-14  # the smallest value that float16 holds with all its digits
_one_at_a_time = threading.Lock()


class CannotServe(Exception):
    """The decode step can't run this model; the message says why."""


def serve(bundle: Bundle) -> Decoder | None:
    """The bundle's decoder, made and tried at the first call; None if the step can't run the model.

    `bundle.refused` then says why. Call `forget` before changing the module's weights.
    """
    with _one_at_a_time:  # the trial replaces parts of the module for a moment
        if bundle.decoder is None and not bundle.refused:
            try:
                bundle.decoder = _tried(bundle)
            except CannotServe as why:
                bundle.refused = str(why)
    return bundle.decoder


def serve_alone(bundle: Bundle) -> Decoder | None:
    """`serve`, and then give up the module's own weights.

    From here on the bundle can only be asked for tokens.
    """
    found = serve(bundle)
    if found is not None:
        bundle.module.to("meta")
    return found


def forget(bundle: Bundle) -> None:
    """The module is about to change: drop everything that was made from it."""
    bundle.decoder, bundle.refused = None, ""


def storage_dtype(bundle: Bundle) -> torch.dtype:
    """The 16-bit type of what isn't compressed: bfloat16 if the publisher used it, else float16."""
    return torch.bfloat16 if bundle.source.get("dtype") == "bfloat16" else torch.float16


def stored_as(tensor: Tensor, storage: torch.dtype) -> torch.dtype:
    """The type that a tensor is stored in: `storage`, or float32 if float16 can't hold its values.

    Float16 can't if a value lies beyond 65504, or if many rows consist of values below 2^-14, for which
    float16 has few digits. "Many" means that more than one row in a hundred loses more than rounding to
    float16 costs elsewhere. A single such row, e.g. of a token that no text has and that training moved a
    little, doesn't double a table's size.
    """
    if storage is not torch.float16 or not tensor.numel():
        return storage
    low, high = tensor.detach().aminmax()
    if max(-float(low), float(high)) > torch.finfo(torch.float16).max:
        return torch.float32
    rows = (
        tensor.detach().reshape(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.detach().reshape(1, -1)
    )
    size = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    small = rows[
        size < NORMAL * rows.shape[1] ** 0.5
    ].float()  # in any other row, values below float16's normal range don't matter
    unit = small.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    lost, whole = (((part / unit) ** 2).sum(1) for part in (small - small.half().float(), small))
    poor = int((lost > HALF_ERROR**2 * whole).sum())
    return storage if poor <= len(rows) // 100 else torch.float32


def prepare(bundle: Bundle) -> None:
    """Keep only the tiles of every compressed matrix, for a saved model that is run and not changed."""
    for module in bundle.module.modules():
        if isinstance(module, (CompressedLinear, CompressedTable)):
            module.packed.prepare()


def decoder(bundle: Bundle, dtype: torch.dtype | None = None) -> Decoder:
    """A decoder for the model as it is now; it isn't tried.

    dtype: the type of matrices that aren't compressed. Raises CannotServe.
    """
    return _made(bundle, _Maker(bundle.module, dtype or storage_dtype(bundle)))


def _made(bundle: Bundle, make: _Maker) -> Decoder:
    module = bundle.module
    if cpu.wait() is None:
        raise CannotServe(f"the C kernels don't serve: {cpu.status()}")
    if bundle.device.type != "cpu" or module.training:
        raise CannotServe(
            "the model is being trained" if module.training else f"the model is on {bundle.device.type}"
        )
    if unknown := known.refusal(module):
        raise CannotServe(unknown)
    row, g = arch.of(module), bundle.geometry
    if bundle.attention:
        raise CannotServe("attention multiplies 8-bit integers, which the step doesn't do")
    if bundle.cache_bits < 16 and bundle.cache_keys == "channel":
        raise CannotServe("the key-value cache has scales by channel, which the step doesn't keep")
    if bundle.cache_bits == 4 and (odd := [sizes.head_size for sizes in g.layers if sizes.head_size % 2]):
        raise CannotServe(f"a key-value cache in 4 bits holds two neighbours a byte; a head has {odd[0]}")
    # the largest matrices first, while little else takes memory
    table, head = make.table(arch.embedding(module)[1]), make.linear(arch.head(module)[1])
    blocks = arch.blocks(module)
    layers = tuple(_layer(make, module, i, block, g.layers[i]) for i, block in enumerate(blocks))
    into, out = arch.projections(module)
    positions = module.get_submodule(row.positions) if row.positions else None
    cosine, sine = _angles(module, row.rotary, g.positions) if row.rotary else (None, None)
    model = Model(
        layers,
        table,
        head,
        make.norm(arch.final_norm(module)),
        hidden=g.hidden,
        vocabulary=g.vocabulary,
        limit=g.positions,
        scaling=arch.attention(module, blocks[0]).scaling,
        eps=known.epsilon(module, arch.all_norms(module)[0]),
        rms=row.norm.rms,
        activation=known.activation(module),
        parallel=known.parallel(module, blocks[0]),
        post_norm=not arch.norm_first(module),
        project_in=make.linear(into),
        project_out=make.linear(out),
        cosine=cosine,
        sine=sine,
        positions=None if positions is None else positions.weight.detach().float().contiguous(),
        offset=getattr(positions, "offset", 0),
        embedding_scale=arch.embedding_scale(module),
        cache_bits=bundle.cache_bits,
    )
    if wrong := misfit(model):
        raise CannotServe(wrong)
    return Decoder(model)


class _Maker:
    """Makes the parts of a model as the step takes them; a tied matrix is made once."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        self.module, self.dtype = module, dtype
        self.dense: dict[int, plans.Plan] = {}

    def matrix(self, weight: Tensor) -> plans.Plan:
        key = weight.data_ptr()
        if key not in self.dense:
            self.dense[key] = plans.dense(plans.to_range(weight.detach(), stored_as(weight, self.dtype)))
        return self.dense[key]

    def linear(self, part: nn.Module | None) -> Linear:
        if part is None:
            return Linear()
        if isinstance(part, TableHead):
            return Linear(self._packed(part.table.packed))

        def floats(t):
            return None if t is None else t.detach().float().contiguous()

        if isinstance(part, CompressedLinear):
            return Linear(self._packed(part.packed), floats(part.bias), floats(part.input_scale))
        if type(part) is nn.Linear:
            return Linear(self.matrix(part.weight), floats(part.bias))
        raise CannotServe(f"a linear of type {type(part).__name__}")

    def table(self, part: nn.Module) -> plans.Plan:
        if isinstance(part, CompressedTable):
            return self._packed(part.packed)
        return self.matrix(part.weight)

    def norm(self, part: nn.Module | None) -> Norm:
        if part is None:
            return Norm()
        if part.weight is None:
            return Norm(torch.ones(part.normalized_shape), None)
        bias, added = getattr(part, "bias", None), arch.of(self.module).norm.added
        return Norm(
            (part.weight.detach().float() + added).contiguous(),
            None if bias is None else bias.detach().float().contiguous(),
        )

    def _packed(self, packed) -> plans.Plan:
        if packed.activations is not None and packed.activations.looks_at_call:
            raise CannotServe(
                "a token's inputs are rounded by the other tokens of the call, and the step reads a text in "
                "other pieces"
            )
        plan = packed.plan()
        if plan is None:
            raise CannotServe(f"no C kernel takes {packed.format} as it is stored here")
        return plan


def _layer(make: _Maker, module: nn.Module, number: int, block: nn.Module, sizes) -> Layer:
    row = arch.of(module)
    linears = {
        role: make.linear(module.get_submodule(path))
        for group in arch.groups(module, number)
        for path, role in group
    }
    before, between = (make.norm(block.get_submodule(path)) for path in row.norms if path)
    query, key = (make.norm(norm) for norm in arch.head_norms(module, block))
    return Layer(before, between, query, key, linears, sizes.heads, sizes.kv_heads, sizes.head_size)


def _angles(module: nn.Module, row: Rotary, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, rotary / 2] as transformers computes them, any scaling included."""
    rotary = module.get_submodule(row.path)
    if getattr(rotary, "rope_type", None) not in known.STEADY:
        raise CannotServe(
            f"rotary angles of the kind {getattr(rotary, 'rope_type', None)!r}, which may change with "
            "the length of the text"
        )
    found = []
    with torch.no_grad():
        for start in range(0, positions, ANGLES_AT_ONCE):
            places = torch.arange(start, min(start + ANGLES_AT_ONCE, positions))
            angles = rotary(torch.zeros(1, dtype=torch.float32), places[None])
            found.append([part[0, :, : part.shape[-1] // 2].float() for part in angles])
    return tuple(torch.cat(parts).contiguous() for parts in zip(*found, strict=True))


def misfit(model: Model) -> str:
    """The first part whose size isn't the model's, in words; "" if all fit.

    This must be checked, because the step reads memory by these sizes.
    """
    h, head = model.hidden, model.head.plan.shape
    width = model.embedding.shape[1]
    wanted: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "the embedding": (
            model.embedding.shape,
            (model.vocabulary, h if model.project_in.plan is None else width),
        ),
        "the head": (head, (model.vocabulary, h if model.project_out.plan is None else width)),
    }
    for name, part, shape in (
        ("project_in", model.project_in, (h, width)),
        ("project_out", model.project_out, (width, h)),
    ):
        if part.plan is not None:
            wanted[name] = part.plan.shape, shape
    for i, layer in enumerate(model.layers):
        q = layer.heads * layer.head_size
        kv = layer.kv_heads * layer.head_size
        ff = layer.linears["up"].plan.shape[0]
        if layer.kv_heads < 1 or layer.heads % layer.kv_heads:
            return f"block {i} has {layer.heads} query heads for {layer.kv_heads} of keys and values"
        shapes = {
            "q": (q, h),
            "k": (kv, h),
            "v": (kv, h),
            "o": (h, q),
            "gate": (ff, h),
            "up": (ff, h),
            "down": (h, ff),
        }
        wanted |= {f"{role} of block {i}": (x.plan.shape, shapes[role]) for role, x in layer.linears.items()}
        norms = {"attention": h, "feed_forward": h, "q_norm": layer.head_size, "k_norm": layer.head_size}
        found = {name: getattr(layer, name).weight for name in norms}
        wanted |= {
            f"{name} norm of block {i}": (tuple(w.shape), (norms[name],))
            for name, w in found.items()
            if w is not None
        }
    if model.final.weight is not None:
        wanted["the last norm"] = tuple(model.final.weight.shape), (h,)
    if model.positions is not None:
        wanted["the table of positions"] = tuple(model.positions.shape), (model.limit + model.offset, h)
    if model.cosine is not None and 2 * model.cosine.shape[1] > min(
        layer.head_size for layer in model.layers
    ):
        return f"rotary angles for {2 * model.cosine.shape[1]} dimensions; a head has fewer"
    return next(
        (
            f"{name} is {tuple(a)}; its place is {tuple(b)}"
            for name, (a, b) in wanted.items()
            if tuple(a) != tuple(b)
        ),
        "",
    )


# --- the trial ---


@torch.no_grad()
def _tried(bundle: Bundle) -> Decoder:
    """A decoder whose logits on a few tokens agree with the model's own forward pass. Raises CannotServe.

    Both use the decoder's matrices and keep keys and values in float32, so that only an error of the step
    makes a difference. A quantized cache would make others: a value halfway between two codes may be rounded
    the other way, and then all later values differ by their own rounding.
    """
    make = _Maker(bundle.module, storage_dtype(bundle))
    made = _made(bundle, make)
    count = min(TRIED, bundle.geometry.positions)
    ids = torch.linspace(0, bundle.geometry.vocabulary - 1, count).long()[None]
    prompt = min(AT_ONCE, count)
    expected = _own_logits(bundle, make, ids)[prompt - 1 :]
    session = Session(replace(made.model, cache_bits=16), 1, count)
    found = torch.cat(
        [session.run(part) for part in (ids[:, :prompt], *ids[:, prompt:].split(1, 1)) if part.numel()]
    )
    off, bound = deviation(found, expected), _allowed(bundle)
    if not off <= bound:  # written this way so that NaN is refused too
        raise CannotServe(
            f"on {count} tokens its logits differ from the model's by {off:.2g} of their spread; "
            f"allowed: {bound:.2g}"
        )
    return made


def _own_logits(bundle: Bundle, make: _Maker, ids: Tensor) -> Tensor:
    """The model's logits [t, vocabulary] for ids [1, t], with dense matrices as the decoder holds them."""
    table = arch.embedding(bundle.module)[1]
    with ExitStack() as stack:
        for part in bundle.module.modules():
            if type(part) is nn.Linear:
                stack.enter_context(instead(part, _product_by(make.matrix(part.weight), part.bias)))
        if isinstance(table, nn.Embedding):
            plan, scale = make.matrix(table.weight), arch.embedding_scale(bundle.module)

            def rows(ids):
                return scale * cpu.rows(plan, ids.flatten()).view(*ids.shape, -1)

            stack.enter_context(instead(table, rows))
        states = arch.backbone(bundle.module)(input_ids=ids, use_cache=False).last_hidden_state
        return arch.head(bundle.module)[1](states)[0].float()


def _product_by(plan: plans.Plan, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        y = cpu.product(plan, x)
        return y if bias is None else y + bias

    return forward


def deviation(found: Tensor, expected: Tensor) -> float:
    """How far logits [tokens, vocabulary] are from the expected ones, for the worst token.

    It is the root mean square of the differences, divided by that of the expected logits about their mean.
    """
    spread = (expected - expected.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    return float(((found - expected).square().mean(-1).sqrt() / spread.clamp_min(1e-30)).max())


def _allowed(bundle: Bundle) -> float:
    """The largest `deviation` that a correct decoder may have."""
    packed = [m.packed for m in bundle.module.modules() if isinstance(m, (CompressedLinear, CompressedTable))]
    rounds = any(p.activations is not None for p in packed)
    return min(MOST, ROUNDED * len(bundle.geometry.layers)) if rounds else EXACT

"""ZeroQuant: weights in groups, activations token by token, and each block taught by its own original.

There are three ideas for a model whose weights and activations are both rounded. A weight matrix is cut into
groups, each with a scale of its own, so that one large weight spoils only its group. Every token's
activations get a scale of their own, so that a loud token does not spoil the quiet ones. If four bits are too
few, layer-by-layer distillation repairs the damage block by block: the rounded block gets the inputs of the
original block and is trained for a few steps to give the original's outputs. This needs no labels, and memory
for one block only.

Paper: Yao et al. 2022, arXiv 2206.01861, sections 4 and 5; defaults of the authors' code. Weights: G groups a
matrix, cut row by row; symmetric, scale = 2 max|w| / 2^bits, codes clamped to -2^(bits-1) ... 2^(bits-1) - 1,
which cuts the positive extreme by one step. The authors' other choice is asymmetric (`symmetric` off): scale
= (max - min) / 2^bits and a whole zero point, 2^bits codes from there, which cuts the positive extreme as
well. Activations: one group a token, as 8-bit integers, max |x| / 127 (below). In the mixed setting of the
paper ("W4/8") the feed-forward's matrices have the chosen bits and attention's have 8. In "A8/16" the inputs
of queries, keys and values stay as they are (`qkv_inputs`). Distillation: input and target of block l are the
original model's hidden states before and after it; the loss is their mean squared difference; the gradient
passes through the rounding as if it were not there; AdamW over everything in the block. A step takes
`distill_batch` windows, 1 by default; the authors take 32 of 128 tokens.

Deviations: activations are rounded to max |x| / 127 and not to 2 max |x| / 256, so that the largest stays
exact and the integers are symmetric. The authors use 5e-6 as the learning rate for every block of BERT;
losses of a decoder's blocks differ by orders of magnitude, so we scale it by the size of the block's weights,
keep the best state on windows that are not trained on (a quarter of them), and keep the block as it was if
training does not help there. A scale that several rows share is stored once a row (16 bits a row). An
asymmetric group's range always includes zero, so its zero point is one of the codes; the authors' zero point
may lie beyond them.

Cost: one forward pass over the calibration tokens; each step of the distillation is a forward and a backward
pass of its windows through one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.base import Block, BlockMethod, Cost, Edit, Params, param
from compression.grids import grid_bytes
from compression.packed.activations import ActivationRule
from compression.packed.grid import Grid, store_scale
from compression.packed.grouped_int import GroupedInt
from compression.second_order import output_error
from kernels.bits import row_bytes

ATTENTION, QKV = ("q", "k", "v", "o"), ("q", "k", "v")
HELD_OUT, MOST_JUDGES = 4, 8  # every fourth window is held out to judge, eight at most
WINDOW = 512  # tokens of a training step, for the estimate


@dataclass(frozen=True)
class ZeroQuantParams(Params):
    """Bits, groups and the distillation."""

    bits: int = param(
        8,
        "Bits of the feed-forward's weights.",
        lo=3,
        hi=8,
        step=1,
        unit="bits",
        main=True,
        ends=("tiny, worse", "large, same"),
    )
    attention_bits: int = param(
        8,
        "Bits of the attention's weights.",
        label="named",
        lo=3,
        hi=8,
        step=1,
        unit="bits",
        level="advanced",
    )
    groups: int = param(
        64,
        "Groups that each matrix is cut into, row by row; 0: one a row.",
        lo=0,
        hi=65536,
        step=1,
        suggest=(0, 1, 48, 64),
        label="named",
        level="advanced",
    )
    symmetric: bool = param(True, "No zero point: the ruler is centred on zero.", level="advanced")
    activations: str = param(
        "int8",
        "How inputs are multiplied: rounded token by token, or as they are.",
        choices=("int8", "exact"),
        label="named",
        level="advanced",
    )
    qkv_inputs: str = param(
        "int8",
        "The inputs of queries, keys and values: rounded like the others, or as they are.",
        choices=("int8", "exact"),
        label="named",
        level="advanced",
        when={"activations": "int8"},
    )
    distill_steps: int = param(
        0,
        "Training steps of each block (the authors take up to 100); 0: none.",
        lo=0,
        hi=1000,
        step=10,
        suggest=(0, 50, 100),
    )
    distill_batch: int = param(
        1,
        "Windows that each of these steps takes.",
        lo=1,
        hi=256,
        step=1,
        suggest=(1, 4, 8),
        level="advanced",
    )
    learning_rate: float = param(
        1e-3,
        "Size of a training step, as a share of the weights' own size.",
        lo=1e-6,
        hi=0.1,
        level="advanced",
    )


def cost(shape: tuple[int, int], params, tokens: int, role: str = "up") -> Cost:
    """Bytes of codes and scales; operations of the figures' Gram matrix and of the distillation."""
    out, n = shape
    bits = bits_of(role, params)
    size = out * row_bytes(n, bits) + grid_bytes(
        shape, bits, columns_of(shape, params.groups), params.symmetric
    )
    training = 6.0 * WINDOW * params.distill_steps * params.distill_batch * out * n
    return Cost(bytes=size, flops=2.0 * tokens * n * n + training, peak_bytes=8 * n * n + 40 * out * n)


def bits_of(role: str, params: ZeroQuantParams) -> int:
    """Bits of a matrix: attention and feed-forward may differ."""
    return params.attention_bits if role in ATTENTION else params.bits


def columns_of(shape: tuple[int, int], groups: int) -> int:
    """Columns that share a scale if [out, in] is cut row by row into `groups` parts.

    -1 if a part is a row or more.
    """
    out, n = shape
    return -1 if groups <= out else min(n, max(16, -(-n * out // groups) // 16 * 16))


def rule_of(role: str, params: ZeroQuantParams) -> ActivationRule | None:
    """How the inputs of a matrix are rounded; None if they aren't."""
    exact = params.activations == "exact" or (role in QKV and params.qkv_inputs == "exact")
    return None if exact else ActivationRule(bits=8)


def group_grid(weight: Tensor, bits: int, groups: int, symmetric: bool = True) -> Grid:
    """The grid of weight [out, in] in each of `groups` parts; 0: in each row.

    Symmetric: scale = 2 max|w| / 2^bits. Otherwise scale = (max - min) / 2^bits and zero = round(-min /
    scale), with 0 within the range. These are DeepSpeed's quantizers.
    """
    out, n = weight.shape
    columns = columns_of((out, n), groups)
    size = n if columns == -1 else columns

    def most(values: Tensor) -> Tensor:  # the largest of 0 and each part, [out, groups of columns]
        largest = nn.functional.pad(values, (0, -n % size)).view(out, -1, size).amax(-1).clamp_min(0)
        if 0 < groups < out:
            rows = -(-out // groups)
            parts = nn.functional.pad(largest[:, 0], (0, -out % rows)).view(-1, rows).amax(1)
            largest = parts.repeat_interleave(rows)[:out, None]
        return largest

    if symmetric:
        return Grid.make(weight.shape, bits, columns, store_scale(2 * most(weight.abs()) / 2**bits), None)
    high, low = most(weight), -most(-weight)
    scale = store_scale((high - low) / 2**bits)
    return Grid.make(
        weight.shape, bits, columns, scale, torch.round(-low / scale.float()).clamp_(0, 2**bits - 1)
    )


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of `exact`."""
    return exact + (rounded - exact).detach()


def distill(block: Block, params: ZeroQuantParams) -> tuple[dict[str, Tensor], float, float]:
    """(tensors of the block by their names in it, error before, error after).

    They are the state with the least error on held-out windows. The error is the mean squared difference of
    the block's outputs, divided by the mean square of the original's.
    """
    passage = block.inputs
    windows, targets = (torch.cat(list(part)) for part in (passage.inputs, passage.targets))
    held = torch.arange(len(windows)) % HELD_OUT == HELD_OUT - 1
    if not bool(held.any()) or bool(held.all()):
        held = torch.arange(len(windows)) == len(windows) - 1
    judges = held.nonzero().flatten()[:MOST_JUDGES].tolist()
    taught = (~held).nonzero().flatten().tolist() or [0]
    roles = {name_in_block(s.path, block.layer): s.role for s in block.sites}
    masters = {
        name: p.detach().float().clone().requires_grad_() for name, p in passage.block.named_parameters()
    }
    optimizer = torch.optim.AdamW(
        [
            {"params": [m], "lr": params.learning_rate * max(float(m.detach().abs().mean()), 1e-3)}
            for m in masters.values()
        ],
        weight_decay=0.0,
    )

    def error(chosen: list[int]) -> Tensor:
        state = {}
        for name, master in masters.items():
            role = roles.get(name.removesuffix(".weight"))
            if role is not None and name.endswith(".weight"):
                grid = group_grid(master.detach(), bits_of(role, params), params.groups, params.symmetric)
                state[name] = straight_through(master, grid.decode(grid.round(master.detach())))
            else:
                state[name] = master
        kinds = {name: p.dtype for name, p in passage.block.named_parameters()}
        out = passage.run(windows[chosen], {name: t.to(kinds[name]) for name, t in state.items()})
        target = targets[chosen].float()
        return (out.float() - target).square().mean() / target.square().mean().clamp_min(1e-30)

    def judged() -> float:
        with torch.no_grad():
            return sum(float(error([i])) for i in judges) / len(judges)

    hooks = [
        passage.block.get_submodule(name).register_forward_pre_hook(
            lambda m, args, r=rule: (straight_through(args[0], r(args[0])),)
        )
        for name, role in roles.items()
        if (rule := rule_of(role, params)) is not None
    ]
    try:
        before = least = judged()
        best = {name: m.detach().clone() for name, m in masters.items()}
        order = block.recorder.generator()
        for step in range(params.distill_steps):
            block.recorder.check("distilling")
            with torch.enable_grad():
                error(
                    [taught[i] for i in torch.randint(len(taught), (params.distill_batch,), generator=order)]
                ).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 9 or step == params.distill_steps - 1:
                now = judged()
                if now < least:
                    least, best = now, {name: m.detach().clone() for name, m in masters.items()}
    finally:
        for hook in hooks:
            hook.remove()
    return best, before, least


def name_in_block(path: str, layer: int) -> str:
    """ "model.layers.3.mlp.up_proj" -> "mlp.up_proj"."""
    return path.split(f".{layer}.", 1)[1]


def compress(block: Block, params: ZeroQuantParams) -> Edit:
    """Round the linears of one block, after distilling it if asked."""
    weights, tensors, more = {s.path: s.weight for s in block.sites}, {}, {}
    if params.distill_steps:
        best, before, after = distill(block, params)
        prefix = block.sites[0].path.removesuffix(name_in_block(block.sites[0].path, block.layer))
        tensors = {prefix + name: tensor for name, tensor in best.items()}
        weights = {path: tensors.pop(f"{path}.weight") for path in weights}
        more = {"block_error_before": before, "block_error": after}
    linears, figures = {}, {}
    for group in block.groups:
        for site in group.sites:
            weight = weights[site.path]
            grid = group_grid(weight, bits_of(site.role, params), params.groups, params.symmetric)
            packed = GroupedInt.encode(grid.round(weight), grid)
            packed.activations = rule_of(site.role, params)
            linears[site.path] = packed
            figures[site.path] = {
                "output_error": output_error(site.weight, packed.dequantize(), group.stats.gram)
            } | more
    return Edit(linears, tensors, figures=figures)


METHOD = BlockMethod(
    name="zeroquant",
    title="ZeroQuant",
    family="quantization",
    paper="https://arxiv.org/abs/2206.01861",
    params=ZeroQuantParams,
    compress=compress,
    cost=cost,
    stores="grouped_int",
    stats=frozenset({"gram"}),
    tiny={"bits": 4, "groups": 0},
    # up to 100 steps of 32 x 128 tokens a block; ours take the calibration windows
    full={"distill_steps": 100},
    essay=__doc__,
)

"""PEQA: round once, freeze the integers, and train only the scales, so that many tasks share one set of
integers.

A rounded matrix consists of codes, zero points and scales. The codes are nearly all of it and can't be
trained in small steps. The scales are real numbers, one a row. PEQA trains the scales alone. So the model
keeps its integer form and its size, and there is no adapter to add at run time. A task takes one number a
row: some hundred kilobytes for a model of a hundred million weights. On text like the model's training text
the scales win back a part of the quality that rounding lost, more of it at fewer bits. On text of another
domain they are a fine-tuning.

Every run saves its scales beside the model as `task.safetensors`. Another run on the same weights with the
same bits and groups has the same codes, so its file can be loaded into this model in place
(compression/task_files.py, `python -m evaluation task-files`). After a step that stores integers on a grid
(`gptq`, `awq`, `rtn`) PEQA keeps this step's codes, zero points, bits and groups, and starts from its scales.

Kim et al. 2023, "Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit Integer
Quantization", arXiv 2305.14152, equations 1 and 2: W0 = clamp(round(W / s0) + z0, 0, 2^b - 1) - z0 is frozen,
the weight is (s0 + Ds) W0. With one scale a row y = s * (W0 x), so the scale's gradient is the sum over
tokens of dL/dy times W0 x, and no gradient of a dense matrix is needed. With a scale for each group of a row
it is needed.

Deviations. (1) As a first step s0 and z0 are those of plain rounding (`rtn`), which span the smallest to the
largest weight; the paper takes those nearest to the weights. (2) We train d in s = s0 exp(d), which is s0 +
s0 d while d is small: the step size is a share of the scale, and no scale crosses zero. (3) The forward pass
sees the scale rounded to 16 bits as it is stored, the gradient passes as if it were not. (4) Norms, biases,
the embedding and the head stay as they are, a tied head too. (5) The authors' step size could not be
verified; ours is for some ten thousand tokens. The best state on held-out windows is kept, which may be the
plain rounding.

The control (`round` off) trains the same factors, one for each row or group, on weights that were not
rounded. It shows how much of a gain comes from more training and isn't recovery. Its result is dense. The
control must be a first step: for a chain it leaves out the step whose integers the chain keeps.

Cost: a training step takes two forward passes of the linears and one product for their inputs' gradients;
with groups, one product more. Only the scales have moments. The integers are held as 32-bit floats while
training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression import arch, task_files
from compression.base import (
    BUDGET_MINUTES,
    BadChain,
    Context,
    Cost,
    Edit,
    Note,
    Params,
    Site,
    TrainingMethod,
    param,
)
from compression.bundle import Bundle
from compression.edits import short_group_note
from compression.grids import fit, grid_bytes
from compression.packed.grid import Grid, store_scale
from compression.packed.grouped_int import GroupedInt
from compression.packed.linear import CompressedLinear
from compression.training import Budget, from_text, language_loss, train
from kernels.bits import row_bytes, unpack
from kernels.grouped_int import groups_of, spread


@dataclass(frozen=True)
class PeqaParams(Params):
    """The grid, and the training of its scales. After another quantization step, it decides the grid."""

    bits: int = param(
        4,
        "Bits each weight takes.",
        lo=2,
        hi=8,
        step=1,
        unit="bits",
        main=True,
        ends=("tiny, worse", "large, same"),
        when={"round": True},
    )
    group_size: int = param(
        -1,
        "Weights that share one scale; a multiple of 16, or -1 for a whole row.",
        lo=-1,
        hi=4096,
        step=16,
        suggest=(-1, 32, 64, 128),
    )
    round: bool = param(
        True,
        "Round the weights. Off is the control: the same factors of unrounded weights are trained.",
        level="advanced",
    )
    train_tokens: int = param(
        32_768, "Training ends after this many tokens.", label="always", lo=0, hi=100_000_000
    )
    train_minutes: float = param(
        10.0, "Or after this many minutes, whichever comes first.", lo=0.1, hi=10_000.0
    )
    learning_rate: float = param(1e-3, "Highest step size of AdamW.", lo=1e-7, hi=1.0, level="advanced")


class Scaled(nn.Module):
    """A linear whose matrix [out, in] is frozen, and trained only by a factor for each group.

    y = (s exp(d) * frozen) x + bias. frozen: the matrix that the factors multiply, float32. It is codes less
    their zero points, with the scales `start` [out, groups]; or the weight itself, without scales. index
    [in]: the group of each column, if groups are not runs of `group_size` columns.
    """

    def __init__(
        self,
        base: nn.Linear | CompressedLinear,
        frozen: Tensor,
        start: Tensor | None,
        group_size: int,
        index: Tensor | None = None,
    ):
        super().__init__()
        self.base, self.group_size = base, group_size
        self.register_buffer("index", None if index is None else index.long(), persistent=False)
        self.register_buffer("frozen", frozen, persistent=False)
        self.register_buffer("start", start, persistent=False)
        sizes = frozen.shape[0], groups_of(frozen.shape[1], group_size)
        self.log_factor = nn.Parameter(torch.zeros(sizes, device=frozen.device))

    def scales(self) -> Tensor:
        """The factors of the frozen matrix, [out, groups].

        They are rounded as they are stored, with the gradient of the exact product.
        """
        factor = self.log_factor.exp()
        if self.start is None:
            return factor
        exact = self.start * factor
        return exact + (store_scale(exact).float() - exact).detach()

    def dense(self) -> Tensor:
        """The matrix with its factors, float32 [out, in]; differentiable."""
        scales = self.scales()
        spread_out = (
            spread(scales, self.frozen.shape[1], self.group_size)
            if self.index is None
            else scales[:, self.index]
        )
        return self.frozen * spread_out

    def forward(self, x: Tensor) -> Tensor:
        factor = getattr(self.base, "input_scale", None)
        if factor is not None:
            x = x * factor.to(x.dtype)
        if self.log_factor.shape[1] == 1:
            y = F.linear(x, self.frozen.to(x.dtype)) * self.scales()[:, 0].to(x.dtype)
        else:
            y = F.linear(x, self.dense().to(x.dtype))
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)


def rounded(weight: Tensor, params: PeqaParams) -> GroupedInt:
    """The matrix [out, in] on the grid of plain rounding. It is frozen, and its scales are the start."""
    grid = fit(weight, params.bits, params.group_size, symmetric=False)
    return GroupedInt.encode(grid.round(weight), grid)


def kept(path: str, packed: GroupedInt, params: PeqaParams) -> GroupedInt:
    """The form that an earlier step stored, whose scales are trained. Raises BadChain if they can't be."""
    if not params.round:
        raise BadChain(
            f"{path} is rounded already, and with `round` off the factors of unrounded weights are trained. "
            "Turn `round` on, or drop the step before.",
            method="peqa",
            format=packed.format,
        )
    if packed.activations is not None:
        raise BadChain(
            f"{path}: the step before rounds activations to {packed.activations.bits} bits; the scales are "
            "trained with exact ones. Choose a step that rounds weights only.",
            method="peqa",
            format=packed.format,
        )
    return packed


def integers(packed: GroupedInt) -> Tensor:
    """Codes less their zero points, float32 [out, in]."""
    grid = packed.grid
    return unpack(packed.codes, grid.bits, packed.shape[1]).float() - grid.columns()[1]


def with_scales(packed: GroupedInt, scale: Tensor) -> GroupedInt:
    """The same codes and zero points with other scales [out, groups]."""
    old = packed.grid
    grid = Grid(packed.shape, old.bits, old.group_size, store_scale(scale), old.zero, old.group_index)
    return GroupedInt(packed.codes, grid)


def adapt(
    bundle: Bundle, params: PeqaParams
) -> tuple[dict[str, Scaled], dict[str, GroupedInt], tuple[Note, ...]]:
    """Put a Scaled at every linear of the blocks, in place. `release` undoes it.

    Gives path -> Scaled, path -> its stored form at the start ({} if nothing is rounded), and notes.
    """
    scaled, stored, layers = {}, {}, len(arch.blocks(bundle.module))
    notes: tuple[Note, ...] = ()
    for path, role, layer in list(arch.linears(bundle.module)):
        base = bundle.module.get_submodule(path)
        packed = getattr(base, "packed", None)
        weight = (base.weight if packed is None else packed.dequantize()).detach().float()
        if isinstance(packed, GroupedInt):
            stored[path] = kept(path, packed, params)
        else:
            notes += short_group_note(Site(path, role, layer, layers, weight, None, None), params.group_size)
            stored |= {path: rounded(weight, params)} if params.round else {}
        if params.round:
            grid = stored[path].grid
            scaled[path] = Scaled(
                base, integers(stored[path]), grid.scale.float(), grid.group_size, grid.group_index
            )
        else:
            scaled[path] = Scaled(base, weight, None, params.group_size)
        bundle.module.set_submodule(path, scaled[path])
    return scaled, stored, notes


def release(bundle: Bundle, scaled: dict[str, Scaled]) -> None:
    """Put the linears back in their places, unchanged."""
    for path, layer in scaled.items():
        bundle.module.set_submodule(path, layer.base)


def compress(bundle: Bundle, context: Context, params: PeqaParams) -> Edit:
    """Round every linear that no earlier step rounded, and train the scales.

    They are trained on context.windows [n, window]; the integers stay the same. Raises BadChain.
    """
    if not params.round and params.train_tokens == 0:
        return Edit()
    scaled, stored, notes = adapt(bundle, params)
    series, gained = {}, False

    def loss(ids):
        return language_loss(bundle, ids)

    try:
        if params.train_tokens:
            course = train(
                [layer.log_factor for layer in scaled.values()],
                loss,
                *from_text(context.windows, loss, context.seed),
                Budget(params.train_tokens, params.train_minutes),
                rate=params.learning_rate,
                recorder=context.recorder,
            )
            gained = course.best < course.before
            notes += course.notes("peqa") + (
                () if gained else (Note("training_no_gain", {"method": "peqa"}),)
            )
            series = {"training": course.curve}
    finally:
        release(bundle, scaled)
    with torch.no_grad():
        if not params.round:
            return Edit(tensors=_multiplied(scaled) if gained else {}, notes=notes, series=series)
        linears = {path: with_scales(packed, scaled[path].scales()) for path, packed in stored.items()}
    return Edit(linears, notes=notes, series=series, files={task_files.FILE: task_files.encode(linears)})


def _multiplied(scaled: dict[str, Scaled]) -> dict[str, Tensor]:
    """The control's weights, multiplied by their factors."""
    return {f"{path}.weight": s.dense() for path, s in scaled.items()}


def cost(shape: tuple[int, int], params: PeqaParams, tokens: int) -> Cost:
    """Bytes of codes and grid, or of the dense matrix.

    Two products a step, and one more if groups need a dense gradient.
    """
    out, n = shape
    a_row = groups_of(n, params.group_size) == 1
    size = (
        out * row_bytes(n, params.bits) + grid_bytes(shape, params.bits, params.group_size, False)
        if params.round
        else 2 * out * n
    )
    flops = (4.0 if a_row else 6.0) * params.train_tokens * out * n + 8.0 * out * n
    return Cost(bytes=size, flops=flops, peak_bytes=(4 if a_row else 12) * out * n)


def control(params: PeqaParams) -> tuple[str, dict]:
    """The same training of the same factors, on a model that wasn't rounded."""
    return "peqa", params.json() | {"round": False}


METHOD = TrainingMethod(
    name="peqa",
    title="PEQA",
    family="quantization",
    paper="https://arxiv.org/abs/2305.14152",
    params=PeqaParams,
    compress=compress,
    cost=cost,
    stores="grouped_int",
    after=frozenset({"dense", "grouped_int"}),
    inherits=("bits", "group_size"),
    control=control,
    compresses=True,
    identity={"round": False, "train_tokens": 0},
    tiny={"group_size": 16, "train_tokens": 256, "learning_rate": 0.01},
    # there is no code of the authors: 15 passes over the 2.4 million tokens of WikiText-2; the step size, a
    # share of each scale, is ours
    full={"learning_rate": 1e-4, "train_tokens": 36_000_000, "train_minutes": BUDGET_MINUTES},
    essay=__doc__,
)

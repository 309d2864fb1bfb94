"""The base class of every format. Shapes are (out_features, in_features); x is [..., in], y is [..., out].

There are three ways to multiply a format, and each gives rule(x) W^T. On a processor the C kernels do it,
from tiles that are made once (`plan`). On a GPU Triton does it, from the stored tensors. Otherwise PyTorch
does it, a block of rows at a time. `product` computes the last two ways.
"""

from __future__ import annotations

from dataclasses import asdict
from types import EllipsisType
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

import kernels
from compression.packed import FORMATS
from compression.packed.activations import ActivationRule
from kernels import cpu, gpu
from kernels.cpu.plans import traced_product, traced_rows

if TYPE_CHECKING:
    from compression.packed.grid import Grid
    from compression.packed.real_grid import RealGrid, TwoLevelGrid


class Packed(nn.Module):
    """A stored weight matrix. Its buffers are what is saved, counted and multiplied; there is no other copy.

    Subclasses set `format` and implement `config`, `from_config`, `stored`, `product`, `tiles`.
    """

    format: ClassVar[str]  # its key in FORMATS
    activations: ActivationRule | None = None  # part of the format: saved with it, used by every kernel
    _plan = None
    # the rule that the plan was made for; ...: there is no plan yet
    _plan_rule: ActivationRule | EllipsisType | None = ...

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        self.shape = cast(tuple[int, int], tuple(shape))
        # for a format of codes: scales and zero points (grid.py, real_grid.py)
        self.grid: Grid | RealGrid | TwoLevelGrid | None = None

    @property
    def op(self) -> str:
        """The key in kernels.OPS of the op that multiplies it."""
        op = FORMATS[self.format].op
        assert op is not None  # a format without one overrides this
        return op

    @property
    def whole_columns(self) -> Tensor | None:
        """For a format of whole 16-bit columns: their numbers, [k]."""
        return None

    @property
    def exact_columns(self) -> Tensor | None:
        """The numbers of the matrix's columns that a part of it stores as whole 16-bit columns, or None."""
        return None

    def config(self) -> dict:
        """The JSON from which the empty format is made: {"format": name, "shape": [out, in], ...}."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict) -> Packed:
        """The empty format (buffers of the right shapes and dtypes, values undefined)."""
        raise NotImplementedError

    def stored(self) -> Tensor:
        """The weight that the stored tensors stand for, float32 [out, in]."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """x [tokens, in] -> x @ dequantize().T [tokens, out] in x's dtype, by Triton or PyTorch.

        It is computed from the stored tensors.
        """
        raise NotImplementedError

    def tiles(self, rule):
        """The matrix for the C kernels (kernels/cpu/plans.py); None if they can't multiply it."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """The weight that this format stands for, float32 [out, in]."""
        return self._from_tiles() if self.prepared else self.stored()

    def _from_tiles(self) -> Tensor:
        return cpu.rows(self._plan, torch.arange(self.shape[0]))

    def rows(self, ids: Tensor) -> Tensor:
        """The rows whose numbers are ids [n], as float32 [n, in]."""
        plan = self.plan()
        if plan is None:
            return self.dequantize()[ids]
        return (
            traced_rows(ids, plan.handle, self.shape[1])
            if torch.compiler.is_compiling()
            else cpu.rows(plan, ids)
        )

    def matmul(self, x: Tensor) -> Tensor:
        """rule(x) @ dequantize().T [..., out]; the rule is `activations`, and None leaves x as it is."""
        rule = self.activations
        if rule is None or not rule.looks_at_call or not x.numel():
            return self.multiplied(x)
        if rule.per_tensor:
            scale = rule.scale_of(x)
            return (self.multiplied(x.float() * (1 / scale)) * scale).to(x.dtype)
        flat = x.reshape(-1, self.shape[1])
        exact = (flat.detach().float().abs() >= rule.threshold).any(0)
        if self.exact_columns is not None:  # a rule by column never rounds the inputs of these columns
            exact[self.exact_columns.long()] = True
        y = self.multiplied(flat.masked_fill(exact, 0))
        if bool(exact.any()):
            ids = exact.nonzero().flatten()
            y = y + flat[:, ids] @ self.columns_of(ids).to(flat.dtype).T
        return y.view(*x.shape[:-1], self.shape[0])

    def columns_of(self, ids: Tensor) -> Tensor:
        """The columns whose numbers are ids [k], as float32 [out, k]."""
        return self.dequantize()[:, ids]

    def multiplied(self, x: Tensor) -> Tensor:
        """`matmul` with the part of the rule that looks at each token alone (`of_the_rest`)."""
        if torch.compiler.is_compiling() and self._plan is not None and x.device.type == "cpu":
            return traced_product(x, self._plan.handle, self.shape[0])
        if torch.is_grad_enabled() and x.requires_grad:
            return _Differentiable.apply(x, self)
        plan = self.plan() if x.device.type == "cpu" else None
        if plan is not None:
            return cpu.product(plan, x)
        rule, flat = self.activations and self.activations.of_the_rest, x.reshape(-1, self.shape[1])
        plain = rule is None or not (rule.threshold or rule.static or rule.zero_point)
        y = self.rounded_product(flat) if plain else self.ruled_product(flat)
        return y.view(*x.shape[:-1], self.shape[0])

    def rounded_product(self, x: Tensor) -> Tensor:
        """`product` of rule(x). A format whose kernel multiplies integers overrides this."""
        return self.product(self.activations.of_the_rest(x) if self.activations else x)

    def ruled_product(self, x: Tensor) -> Tensor:
        """`product` of rule(x), for a rule with a threshold, a fixed scale or a zero point.

        `rounded_product` is for all other rules.
        """
        return self.product(self.activations.of_the_rest(x))

    def plan(self):
        """The matrix as the C kernels read it, made at the first call; None if they can't serve it."""
        if self._plan_rule == self.activations:
            return self._plan
        if (
            self.prepared
            or cpu.library() is None
            or any(t.device.type != "cpu" for t in self.buffers())
            or self._trained()
        ):
            return None
        rule = self.activations.kernel if self.activations else None
        made = self.tiles(rule)
        self._plan, self._plan_rule = made if made is not None and made.obeys else None, self.activations
        return self._plan

    def prepare(self) -> bool:
        """Keep only the tiles and give up the stored tensors, so that it can't be saved any more.

        Returns False if C can't serve the matrix, and for a rule by column, which reads single columns.
        """
        if self.plan() is None or (self.activations is not None and self.activations.by_column):
            return False
        kept = {id(t) for t in self._plan.all_tensors()}
        for module in self.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and id(buffer) not in kept:
                    module._buffers[name] = buffer.to("meta")
        return True

    @property
    def prepared(self) -> bool:
        """True when only the tiles are left."""
        return any(t.is_meta for t in self.buffers())

    def _trained(self) -> bool:
        return any(p.requires_grad for p in self.parameters())

    def _apply(self, *args, **kwargs):
        self._plan, self._plan_rule = None, ...
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self._plan, self._plan_rule = None, ...
        return super()._load_from_state_dict(*args, **kwargs)

    def _save_to_state_dict(self, *args, **kwargs):
        if self.prepared:
            raise RuntimeError(
                "this matrix was prepared for serving and keeps only its tiles; load the model again "
                "to save it"
            )
        return super()._save_to_state_dict(*args, **kwargs)

    def mask(self) -> Tensor | None:
        """Pruned positions [out, in] bool (True: always zero); None for a format that prunes nothing."""
        return None

    def encode_like(self, dense: Tensor) -> Packed:
        """`dense` [out, in] stored with the same mask and the same grid. Raises BadChain if that can't be."""
        raise NotImplementedError

    @property
    def kernel(self) -> str:
        """The label of the kernel that serves `matmul` here.

        E.g. "grouped integers, exact activations (C, AVX2)".
        """
        by = f"C, {cpu.instructions()}" if self.plan() is not None else ""
        if not by and self.in_triton and gpu.serves(next(self.buffers())):
            by = "Triton"
        int8 = self.activations is not None and (not by or self._plan is None or self._plan.in_int8)
        op = self._plan.serves(self.op) if by.startswith("C") else self.op
        return kernels.name(op, by, int8, int8 and self.activations.threshold is not None)

    @property
    def in_triton(self) -> bool:
        """Whether Triton computes `product` on a card.

        PyTorch multiplies scattered groups, and ops without a Triton kernel.
        """
        return bool(kernels.OPS[self.op].triton) and getattr(self.grid, "group_index", None) is None

    def full_config(self) -> dict:
        """`config()` with the activation rule; an artifact's manifest has it for each matrix."""
        rule = asdict(self.activations) if self.activations else {}
        return self.config() | {
            "activations": {k: v for k, v in rule.items() if v not in (None, False)} or None
        }

    def stored_bytes(self) -> int:
        """Bytes of the canonical layout. The file holds as many for this matrix."""
        return sum(t.numel() * t.element_size() for t in (*self.buffers(), *self.parameters()))

    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes() / (self.shape[0] * self.shape[1])

    def extra_repr(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]}, {self.bits_per_weight():.3f} bits a weight"


class _Differentiable(torch.autograd.Function):
    """A kernel's product whose gradient goes to x. The backward pass rebuilds the weight and drops it."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        with torch.no_grad():
            if x.dtype == torch.bfloat16 and packed.activations is None and packed.plan() is not None:
                # for many tokens, PyTorch's bfloat16 product is faster
                return x @ packed._from_tiles().to(x.dtype).T
            return packed.multiplied(x.detach())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        packed = ctx.packed
        # reading the weight from the tiles is eight times faster
        weight = packed.stored() if packed._plan is None else packed._from_tiles()
        return grad @ weight.to(grad.dtype), None


def to_storage(t: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Cast to the 16-bit storage dtype, clamped to its finite range: overflow would give infinity."""
    limit = torch.finfo(dtype).max
    return t.clamp(-limit, limit).to(dtype).contiguous()

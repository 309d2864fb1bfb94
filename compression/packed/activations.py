"""How inputs are rounded before they are multiplied: a part of a format, saved with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.cpu import plans


@dataclass(frozen=True)
class ActivationRule:
    """How a format rounds its input before multiplying: symmetric, scale = max|x| / (2^(bits-1) - 1), one scale a token or
    one for every `group` neighbouring inputs of a token (a multiple of 32). With a threshold (LLM.int8()) inputs of that
    size or larger stay as they are and don't count for the scale. static: one fixed scale for all tokens instead; what lies
    beyond the largest code is cut. zero_point: the codes of a token run from its least to its largest input, 0 among them,
    scale = (max - min) / (2^bits - 2), with a whole number z that stands for 0."""

    bits: int = 8
    group: int | None = None
    threshold: float | None = None  # above 0
    static: float | None = None  # the scale itself
    zero_point: bool = False

    def __post_init__(self):
        for name in ("threshold", "static"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} = {value}; allowed: above 0, or None for a rule without one")
        if self.zero_point and (self.group or self.static):
            raise ValueError(f"zero_point with group = {self.group}, static = {self.static}; allowed: None, a scale a token")

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> the same values on the integer grid, in x's dtype."""
        if self.threshold is not None:
            exact = x.float().abs() >= self.threshold
            return torch.where(exact, x, replace(self, threshold=None)(x.masked_fill(exact, 0)))
        top = 2 ** (self.bits - 1) - 1
        if self.zero_point:
            wide = x.float()
            least, most = wide.amin(-1, keepdim=True).clamp_max(0), wide.amax(-1, keepdim=True).clamp_min(0)
            scale = (most - least).clamp_min(1e-30) / (2 * top)
            zero = (-top - least * (1 / scale)).round()
            return ((((wide * (1 / scale)).round() + zero).clamp(-top, top) - zero) * scale).to(x.dtype)
        if self.static is not None:
            return ((x.float() * (1 / self.static)).round().clamp(-top, top) * self.static).to(x.dtype)
        if self.group is None or self.group >= x.shape[-1]:
            wide = x.float()
            scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-30) / top
            return ((wide * (1 / scale)).round() * scale).to(x.dtype)
        return torch.cat([ActivationRule(self.bits)(part) for part in x.split(self.group, -1)], -1)

    @property
    def kernel(self) -> plans.Rule:
        """The same as kernels/cpu/plans.py takes it."""
        top = 2 ** (self.bits - 1) - 1
        return plans.Rule(self.group or 1 << 30, top, self.threshold or 0.0, self.static or 0.0, self.zero_point)

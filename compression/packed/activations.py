"""How inputs are rounded before they are multiplied: a part of a format, saved with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActivationRule:
    """How a format rounds its input before multiplying: symmetric, scale = max|x| / (2^(bits-1) - 1), one scale a token or
    one for every `group` neighbouring inputs of a token (a multiple of 32)."""

    bits: int = 8
    group: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> the same values on the integer grid, in x's dtype."""
        top = 2 ** (self.bits - 1) - 1
        if self.group is None or self.group >= x.shape[-1]:
            wide = x.float()
            scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-30) / top
            return ((wide * (1 / scale)).round() * scale).to(x.dtype)
        return torch.cat([ActivationRule(self.bits)(part) for part in x.split(self.group, -1)], -1)

    @property
    def kernel(self) -> tuple[int, int]:
        """(columns that share a scale, largest code), as kernels/cpu/plans.py takes it."""
        return self.group or 1 << 30, 2 ** (self.bits - 1) - 1

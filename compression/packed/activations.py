"""How a matrix's inputs are rounded before they are multiplied. The rule is saved with the format."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.cpu import plans


@dataclass(frozen=True)
class ActivationRule:
    """How a format rounds its inputs before it multiplies them.

    The rounding is symmetric: scale = max|x| / (2^(bits-1) - 1). There is one scale for each token, or one
    for every `group` neighbouring inputs of a token (a multiple of 32).

    threshold (LLM.int8()): inputs of that size or larger stay as they are and don't count for the scale.
    static: one fixed scale for all tokens instead; values beyond the largest code are clipped.
    zero_point: a token's codes run from its least to its largest input (0 is among them), with scale = (max -
    min) / (2^bits - 2) and a whole number z that stands for 0.

    Two rules look at all tokens of one call, so a token's result depends on the tokens beside it. With one
    token at a time both are the rule of that token.
    per_tensor: one scale for the whole call (dynamic, per tensor).
    by_column: with a threshold; as soon as one token's input reaches it, this input stays as it is for all
    tokens (LLM.int8(), eq. 8).
    """

    bits: int = 8
    group: int | None = None
    threshold: float | None = None  # above 0
    static: float | None = None  # the scale itself
    zero_point: bool = False
    per_tensor: bool = False
    by_column: bool = False

    def __post_init__(self):
        for name in ("threshold", "static"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} = {value}; allowed: above 0, or None for a rule without one")
        if self.zero_point and (self.group or self.static):
            raise ValueError(
                f"zero_point with group = {self.group}, static = {self.static}; allowed: None, a "
                "scale a token"
            )
        if self.per_tensor and (self.group or self.static or self.threshold or self.zero_point):
            raise ValueError(
                f"per_tensor beside {self}; allowed: bits alone, one symmetric scale for the call"
            )
        if self.by_column and (self.threshold is None or self.group or self.static):
            raise ValueError(
                f"by_column with threshold = {self.threshold}, group = {self.group}, static = {self.static}; "
                "allowed: a threshold, and a scale a token"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> the same values rounded to the integer grid, in x's dtype."""
        if self.threshold is not None:
            exact = x.float().abs() >= self.threshold
            if self.by_column:
                exact = exact.flatten(0, -2).any(0).expand_as(x)
            return torch.where(
                exact, x, replace(self, threshold=None, by_column=False)(x.masked_fill(exact, 0))
            )
        if self.per_tensor:
            scale = self.scale_of(x)
            return (self.of_the_rest(x.float() * (1 / scale)) * scale).to(x.dtype)
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
    def looks_at_call(self) -> bool:
        """Whether a token's rounding depends on the other tokens of the call."""
        return self.per_tensor or self.by_column

    @property
    def of_the_rest(self) -> ActivationRule:
        """The rule that remains for each token alone, after the call as a whole was looked at.

        With per_tensor it is for inputs that were divided by the call's scale; with by_column, for the
        columns in which no token has an outlier. Any other rule is returned unchanged.
        """
        if self.per_tensor:
            return replace(self, per_tensor=False, static=1.0)
        return replace(self, by_column=False, threshold=None) if self.by_column else self

    def scale_of(self, x: Tensor) -> Tensor:
        """The one scale of a call x [..., in] with per_tensor, float32: max|x| / (2^(bits-1) - 1)."""
        return x.detach().float().abs().amax().clamp_min(1e-30) / (2 ** (self.bits - 1) - 1)

    @property
    def kernel(self) -> plans.Rule:
        """`of_the_rest` in the form that kernels/cpu/plans.py takes."""
        rule = self.of_the_rest
        top = 2 ** (rule.bits - 1) - 1
        return plans.Rule(
            rule.group or 1 << 30, top, rule.threshold or 0.0, rule.static or 0.0, rule.zero_point
        )

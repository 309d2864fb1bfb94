"""What every format offers. Shapes are (out_features, in_features); x is [..., in], y is [..., out]."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ActivationRule:
    """How a format rounds its input before multiplying: symmetric, one scale per token, scale = max|x| / (2^(bits-1) - 1)."""

    bits: int = 8

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> the same values on the token's integer grid, in x's dtype."""
        top = 2 ** (self.bits - 1) - 1
        scale = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / top
        return (x / scale).round() * scale


class Packed(nn.Module):
    """A stored weight matrix. Its buffers are what is saved, counted and multiplied; nothing else exists.

    Subclasses set `format` and implement `config`, `from_config`, `dequantize`, `product`, `kernel`.
    """

    format: ClassVar[str]
    activations: ActivationRule | None = None  # part of the format: saved with it, used by every kernel

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        self.shape = tuple(shape)

    def config(self) -> dict:
        """JSON that rebuilds the empty format: {"format": name, "shape": [out, in], ...}."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict) -> Packed:
        """The empty format (buffers of the right shapes and dtypes, values undefined)."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """The weight that this format stands for, [out, in] float32."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """x [..., in] -> x @ dequantize().T [..., out] in x's dtype, by the kernel for this format."""
        raise NotImplementedError

    def matmul(self, x: Tensor) -> Tensor:
        """rule(x) @ dequantize().T [..., out], where the rule is `activations` (None: x as it is)."""
        return self.product(self.activations(x) if self.activations else x)

    def mask(self) -> Tensor | None:
        """Pruned positions [out, in] bool (True: always zero), or None for a format that prunes nothing."""
        return None

    def encode_like(self, dense: Tensor) -> Packed:
        """`dense` [out, in] stored with the same mask and the same grid. Raises BadChain if the format can't."""
        raise NotImplementedError

    @property
    def kernel(self) -> str:
        """The name of the kernel that serves `matmul` here, e.g. "dequantise-then-multiply (PyTorch)"."""
        raise NotImplementedError

    def full_config(self) -> dict:
        """`config()` with the activation rule: what an artifact writes."""
        return self.config() | {"activations": asdict(self.activations) if self.activations else None}

    def stored_bytes(self) -> int:
        """Bytes of the canonical layout: what the file holds for this matrix."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes() / (self.shape[0] * self.shape[1])

    def extra_repr(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]}, {self.bits_per_weight():.3f} bits a weight"


def to_storage(t: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Cast to the 16-bit storage dtype, clamped to its finite range (a float16 overflow would be infinite)."""
    limit = torch.finfo(dtype).max
    return t.clamp(-limit, limit).to(dtype).contiguous()

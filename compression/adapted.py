"""A frozen linear with a thin trained correction beside it: the layer of LoRA, QLoRA and LoRAPrune."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression import arch
from compression.bundle import Bundle
from compression.packed.base import Packed
from compression.packed.dense import Dense
from compression.packed.linear import CompressedLinear
from compression.packed.low_rank import LowRank
from compression.packed.sum import Sum

# formats to which another matrix can be added without rounding it; if they hold a grid, it can't
TAKES_IT = ("dense", "bitmask", "two_four")


class Adapted(nn.Module):
    """A frozen linear with an adapter: y = W x + scale B A x + bias.

    If `keep` [out, in] is given, it masks the product B A. During training, the adapter doesn't see a random
    share `dropout` of x, and the rest of x is divided by 1 - dropout.
    """

    def __init__(
        self,
        base: nn.Linear | CompressedLinear,
        rank: int,
        scale: float,
        masked: bool,
        generator: torch.Generator,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        out, n = base.out_features, base.in_features
        device = next(iter((*base.parameters(), *base.buffers()))).device
        bound = 1 / math.sqrt(n)  # Kaiming's bound for a slope of sqrt(5)
        drawn = torch.rand(rank, n, generator=generator).mul_(2 * bound).sub_(bound)
        self.a, self.b = nn.Parameter(drawn.to(device)), nn.Parameter(torch.zeros(out, rank, device=device))
        self.packed: Packed | None = getattr(base, "packed", None)
        mask = self.packed.mask() if masked and self.packed is not None else None
        self.keep = None if mask is None else ~mask
        self.frozen = None if mask is None else self.packed.dequantize()

    def delta(self) -> Tensor:
        """The matrix that the adapter adds to the weight, float32 [out, in]."""
        product = self.scale * (self.b @ self.a)
        return product if self.keep is None else product * self.keep

    def forward(self, x: Tensor) -> Tensor:
        factor = getattr(self.base, "input_scale", None)
        if factor is not None:
            x = x * factor.to(x.dtype)
        rule = self.packed.activations if self.packed is not None else None
        seen = x if rule is None else x + (rule(x) - x).detach()
        drops = self.dropout > 0 and torch.is_grad_enabled()
        heard = F.dropout(seen, self.dropout) if drops else seen  # what the adapter gets
        if self.keep is not None and not drops:
            y = F.linear(seen, (self.frozen + self.delta()).to(x.dtype))
        elif self.keep is not None:
            y = F.linear(seen, self.frozen.to(x.dtype)) + F.linear(heard, self.delta().to(x.dtype))
        else:
            y = F.linear(x, self.base.weight) if self.packed is None else self.packed.matmul(x)
            thin = F.linear(heard, self.a.to(x.dtype)).mul(self.scale).flatten(0, -2)
            y = torch.addmm(y.flatten(0, -2), thin, self.b.T.to(x.dtype)).view_as(y)
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)

    def stored(self, merge: bool) -> Tensor | Packed:
        """The weight with the adapter: a dense matrix [out, in], or the format that holds both."""
        with torch.no_grad():
            if merge and takes_it(self.base):
                if self.packed is None:
                    return self.base.weight.float() + self.delta()
                return self.packed.encode_like(self.packed.dequantize() + self.delta())
            # each factor takes half of the scale, so that neither leaves float16's range
            u, v = math.sqrt(self.scale) * self.b, math.sqrt(self.scale) * self.a
            if isinstance(self.packed, LowRank):
                both = LowRank.encode(
                    torch.cat([self.packed.u.float(), u], 1), torch.cat([self.packed.v.float(), v], 0)
                )
            else:
                first = Dense.encode(self.base.weight.float()) if self.packed is None else self.packed
                both = Sum(first, LowRank.encode(u, v))
            both.activations = self.packed.activations if self.packed is not None else None
            return both


def takes_it(linear: nn.Linear | CompressedLinear) -> bool:
    """Whether another matrix can be added to the stored one without rounding it to a grid."""
    packed = getattr(linear, "packed", None)
    return packed is None or (packed.format in TAKES_IT and getattr(packed, "grid", None) is None)


def adapt(
    bundle: Bundle,
    rank: int,
    scale: float,
    seed: int,
    *,
    roles: Collection[str] | None = None,
    masked: bool = True,
    dropout: float = 0.0,
) -> dict[str, Adapted]:
    """Put an adapter at every linear of `roles` (None: all), in place; returns path -> Adapted.

    masked: put it under the mask of a format to which the product can be added. `release` undoes it.
    """
    generator, out = torch.Generator().manual_seed(seed), {}
    for path, role, _ in arch.linears(bundle.module):
        if roles is None or role in roles:
            base = bundle.module.get_submodule(path)
            out[path] = Adapted(base, rank, scale, masked and takes_it(base), generator, dropout)
            bundle.module.set_submodule(path, out[path])
    return out


def release(bundle: Bundle, adapters: dict[str, Adapted]) -> None:
    """Put the frozen linears back in their places."""
    for path, adapter in adapters.items():
        bundle.module.set_submodule(path, adapter.base)

"""Computes the two products inside attention with 8-bit integers (SmoothQuant, Xiao et al. 2022).

arXiv 2211.10438, section 4. Queries, keys and values are rounded to -127 .. 127 where they are multiplied,
after the rotary positions; probabilities are rounded to 0 .. 127. `shared` says what shares a scale:

- "tensor": all queries of a block have one fixed scale, all keys one, and all values one (the authors' int8
  attention);
- "dynamic_tensor": the same three scales, computed anew in each call from all its tokens. So a token's result
  depends on the tokens after it, and changes when the text is read token by token;
- "token": each token and head has a scale of its own. The sum over the tokens needs one common scale, so a
  value's scale is multiplied into its probability before the probability is rounded: w_t = p_t s_t, codes
  w_t / (max w / 127), one scale for each query.

The codes are whole numbers, held, multiplied and summed in float32. A sum is exact up to 2^24, which takes
more than 1,040 products of the largest codes; a larger sum is rounded. This is no faster than attention in
floats. transformers finds this attention by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compression import arch

SHARED = ("token", "dynamic_tensor", "tensor")
TOP = 127
SCORES = 1 << 24  # scores that are held at a time
_NAME, _WATCHED = "int8_products", "watched_"


@dataclass(frozen=True)
class Int8Attention:
    """How one block's attention rounds.

    static: the scales of queries, keys and values, if `shared` is "tensor".
    """

    shared: str
    static: tuple[float, float, float] | None = None

    def __post_init__(self):
        fixed = (
            isinstance(self.static, tuple)
            and len(self.static) == 3
            and all(type(s) is float and 0 < s < 1e30 for s in self.static)
        )
        if self.shared not in SHARED or (not fixed if self.shared == "tensor" else self.static is not None):
            raise ValueError(
                f"{self!r}; allowed: shared = {', '.join(SHARED)}; static = three positive scales "
                "if shared is 'tensor', else None"
            )

    def scales(self, *parts: Tensor) -> list[Tensor]:
        """The scale of each of query, key and value [b, heads, t, size]: a number, or [b, heads, t, 1]."""
        if self.shared == "tensor":
            return [parts[0].new_tensor(s) for s in self.static]
        largest = (lambda x: x.amax(-1, keepdim=True)) if self.shared == "token" else (lambda x: x.amax())
        return [largest(x.abs()).clamp_min(1e-30) / TOP for x in parts]


def products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, rule: Int8Attention
) -> Tensor:
    """softmax(Q K^T * scaling + mask) V [b, heads, t, size] in float32, both products of integers.

    query [b, heads, t, size]; key, value [b, kv heads, all, size]; mask [b or 1, 1, t, all], added to the
    scores; None: causal.
    """
    parts = [x.float() for x in (query, key, value)]
    scales = rule.scales(*parts)
    codes = [(x * (1 / s)).round().clamp(-TOP, TOP) for x, s in zip(parts, scales, strict=True)]
    serves = query.shape[1] // key.shape[1]
    (q, k, v), (of_q, of_k, of_v) = (
        [x if x.dim() < 4 or not i else x.repeat_interleave(serves, 1) for i, x in enumerate(three)]
        for three in (codes, scales)
    )
    t, total = q.shape[2], k.shape[2]
    if mask is None:
        mask = torch.full((t, total), -torch.inf, device=q.device).triu(total - t + 1)[None, None]
    out, step = torch.empty_like(q), max(1, SCORES // max(1, q.shape[0] * q.shape[1] * total))
    for rows in (slice(start, start + step) for start in range(0, t, step)):
        of_rows = of_q[:, :, rows] if of_q.dim() else of_q
        scores = (
            (q[:, :, rows] @ k.transpose(2, 3))
            * of_rows
            * (of_k.transpose(2, 3) if of_k.dim() else of_k)
            * scaling
        )
        chances = torch.softmax(scores + mask[:, :, rows, :total].float(), -1)
        if of_v.dim():
            weights = chances * of_v.transpose(2, 3)
            unit = weights.amax(-1, keepdim=True).clamp_min(1e-30) / TOP
        else:
            weights, unit = chances * of_v, of_v / TOP
        out[:, :, rows] = ((weights * (1 / unit)).round() @ v) * unit
    return out


def install(module: nn.Module, rules: Sequence[Int8Attention]) -> None:
    """Make the attention of each block round by its rule, in place. Without rules nothing changes."""
    if not rules:
        return
    for block, rule in zip(arch.blocks(module), rules, strict=True):
        _attention(block).rounding = rule
    module.config._attn_implementation = _NAME


@contextmanager
def watched(block: nn.Module, see: Callable[[Tensor, Tensor, Tensor], None]) -> Iterator[None]:
    """Within this context, every call of the block's attention passes query, key and value to `see`.

    They are [b, heads, t, size].
    """
    part = _attention(block)
    before = part.config._attn_implementation
    part.watcher, part.config._attn_implementation = see, _WATCHED + before
    try:
        yield
    finally:
        part.config._attn_implementation = before
        del part.watcher


def _attention(block: nn.Module) -> nn.Module:
    return next(part for part in block.modules() if hasattr(part, "scaling"))


def _int8(module, query, key, value, attention_mask, scaling=None, **kwargs) -> tuple[Tensor, None]:
    found = products(
        query, key, value, attention_mask, module.scaling if scaling is None else scaling, module.rounding
    )
    return found.to(query.dtype).transpose(1, 2).contiguous(), None


def _watching(name: str) -> Callable:
    def forward(module, query, key, value, *args, **kwargs):
        if see := getattr(module, "watcher", None):  # other blocks share this config and aren't watched
            see(query, key, value)
        return ALL_ATTENTION_FUNCTIONS[name](module, query, key, value, *args, **kwargs)

    return forward


AttentionInterface.register(_NAME, _int8)
AttentionMaskInterface.register(_NAME, eager_mask)
for _name in ("sdpa", _NAME):
    AttentionInterface.register(_WATCHED + _name, _watching(_name))

"""The key-value cache in few bits: what attention remembers of the text so far.

Keys and values of one token and one head are rounded together as they enter the cache, to 2^bits - 1 levels symmetric about
zero: scale = max|x| / (2^(bits - 1) - 1), kept in 16 bits (LLM-QAT, Liu et al. 2023, arXiv 2305.17888, section 2.2, rounds
before the rotary positions with one scale over all heads of a token; here it is after them and head by head, which is what a
cache holds). No token's codes depend on another token, so text that is read at once and text that is read token by token
leave the same cache, and a pass without one can be made to see exactly what a cache would have given (`round_trip`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BITS = (16, 8, 4)


def encode(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [..., size] -> (codes, scale [..., 1] float16); codes are int8 [..., size], of 4 bits two a byte, uint8 [..., size / 2]."""
    top = 2 ** (bits - 1) - 1
    scale = (x.detach().float().abs().amax(-1, keepdim=True) / top).half()
    codes = (x.detach().float() / torch.where(scale == 0, 1, scale).float()).round().clamp(-top, top)
    if bits == 8:
        return codes.to(torch.int8), scale
    low, high = (codes + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return low | high << 4, scale


def decode(codes: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The values [..., size] of codes and scale in `dtype`."""
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).to(torch.int8) - 8
    return (codes.float() * scale.float()).to(dtype)


def round_trip(x: Tensor, bits: int) -> Tensor:
    """x [..., size] as a cache of so many bits gives it back; its gradient passes straight through."""
    return x + (decode(*encode(x, bits), bits, x.dtype) - x).detach()


class QuantizedLayer(DynamicLayer):
    """One block's keys and values, stored as codes; `update` returns what was stored, never what came in."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits, self.stored = bits, []  # [codes of keys, their scales, codes of values, their scales], each [b, heads, t, ...]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if torch.is_grad_enabled() and key_states.requires_grad:  # a training pass: all of the text at once, nothing to keep
            return round_trip(key_states, self.bits), round_trip(value_states, self.bits)
        new = [*encode(key_states, self.bits), *encode(value_states, self.bits)]
        self.stored = [torch.cat(pair, -2) for pair in zip(self.stored, new, strict=True)] if self.stored else new
        keys, key_scale, values, value_scale = self.stored
        return decode(keys, key_scale, self.bits, key_states.dtype), decode(values, value_scale, self.bits, value_states.dtype)

    def get_seq_length(self) -> int:
        return self.stored[0].shape[-2] if self.stored else 0


class QuantizedCache(DynamicCache):
    """A cache whose every layer is a QuantizedLayer."""

    def __init__(self, layers: int, bits: int):
        super().__init__()
        self.layers = [QuantizedLayer(bits) for _ in range(layers)]
        self.layer_class_to_replicate = None

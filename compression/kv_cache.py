"""The quantized key-value cache: attention keeps the keys and values of the text so far in few bits.

There are two forms. In the first, the numbers of one token and one head share a scale. They are rounded as
they enter the cache, to 2^bits - 1 levels symmetric about zero: scale = max|x| / (2^(bits - 1) - 1), kept in
16 bits. (LLM-QAT, Liu et al. 2023, arXiv 2305.17888, section 2.2, rounds before the rotary positions, with
one scale over all heads of a token. Here it is after them and head by head, which is what a cache holds.) No
token's codes depend on another token. So text that is read at once and text that is read token by token leave
the same cache, and a pass without a cache can be made to see exactly what a cache would have given
(`round_trip`).

The second form is that of KIVI (Liu et al. 2024, arXiv 2402.02750, section 3, algorithm 1). Some channels of
the keys are large for every token. So in a key, 32 neighbouring tokens share a scale in each channel; in a
value, 32 neighbouring channels share a scale in each token. Codes run from a group's least to its largest
value: q = round((x - least) / scale), scale = (largest - least) / (2^bits - 1), with scale and least in 16
bits.

In this form a group must be full before it is rounded, so the latest tokens wait in 16 bits. When 128 tokens
wait, all of them become codes. (The authors round the values one token at a time, so that the last 128 are
always in 16 bits; here values are rounded together with the keys.) A token attends in 16 bits to the tokens
that were read in the same piece and to the tokens that wait; it attends to all earlier tokens as codes. So
reading a text in pieces that end at multiples of 128 (`read`) gives the same as reading it token by token.
The authors read a prompt in one piece, all of it in 16 bits.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

BITS = (16, 8, 4)  # allowed for a cache with a scale for each token and head
GROUP, RECENT = 32, 128  # tokens or channels that share a scale; the most tokens that wait in 16 bits
LARGEST = 65_504.0  # the largest number that float16 holds


def encode(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [..., size] -> (codes, scale [..., 1] float16).

    Codes of 8 bits are int8 [..., size]. Codes of 4 bits share a byte in pairs: uint8 [..., size / 2].
    """
    top = 2 ** (bits - 1) - 1
    scale = (x.detach().float().abs().amax(-1, keepdim=True) / top).half()
    codes = (x.detach().float() / torch.where(scale == 0, 1, scale).float()).round().clamp(-top, top)
    if bits == 8:
        return codes.to(torch.int8), scale
    low, high = (codes + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return low | high << 4, scale


def decode(codes: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The values [..., size] that codes and scale stand for, in `dtype`."""
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).to(torch.int8) - 8
    return (codes.float() * scale.float()).to(dtype)


def round_trip(x: Tensor, bits: int) -> Tensor:
    """x [..., size] as a cache of `bits` gives it back. Its gradient passes straight through."""
    return x + (decode(*encode(x, bits), bits, x.dtype) - x).detach()


class QuantizedLayer(DynamicLayer):
    """One block's keys and values, stored as codes. `update` returns what was stored, never what came in."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        # [codes of keys, their scales, codes of values, their scales], each [b, heads, t, ...]
        self.stored: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        # a training pass reads all of the text at once and keeps nothing
        if torch.is_grad_enabled() and key_states.requires_grad:
            return round_trip(key_states, self.bits), round_trip(value_states, self.bits)
        new = [*encode(key_states, self.bits), *encode(value_states, self.bits)]
        self.stored = (
            [torch.cat(pair, -2) for pair in zip(self.stored, new, strict=True)] if self.stored else new
        )
        keys, key_scale, values, value_scale = self.stored
        return decode(keys, key_scale, self.bits, key_states.dtype), decode(
            values, value_scale, self.bits, value_states.dtype
        )

    def get_seq_length(self) -> int:
        return self.stored[0].shape[-2] if self.stored else 0


def pack(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers [..., n] of 8, 4 or 2 bits as uint8 [..., ceil(n bits / 8)].

    The first number is in the lowest bits of its byte.
    """
    each = 8 // bits
    codes = F.pad(codes.to(torch.uint8), (0, -codes.shape[-1] % each)).unflatten(-1, (-1, each))
    out = codes[..., 0].clone()
    for i in range(1, each):
        out |= codes[..., i] << bits * i
    return out


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The uint8 codes [..., n] of `pack`."""
    places = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
    return (packed[..., None] >> places & 2**bits - 1).flatten(-2)[..., :n]


def encode_groups(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., n] -> (packed codes, scale, least), the last two float16 [..., ceil(n / GROUP)].

    Each run of GROUP has its least value, and the step that divides the range to its largest value into
    2^bits - 1 parts.
    """
    n, short = x.shape[-1], -x.shape[-1] % GROUP
    x = x.detach().float().clamp(-LARGEST, LARGEST)
    runs = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], short)], -1).unflatten(
        -1, (-1, GROUP)
    )  # a short run repeats its last value
    least = runs.amin(-1, keepdim=True)
    scale = ((runs.amax(-1, keepdim=True) - least) / (2**bits - 1)).half()
    least = least.half()
    codes = ((runs - least.float()) / torch.where(scale == 0, 1, scale).float()).round().clamp(0, 2**bits - 1)
    return pack(codes.flatten(-2)[..., :n], bits), scale[..., 0], least[..., 0]


def decode_groups(codes: Tensor, scale: Tensor, least: Tensor, bits: int, n: int) -> Tensor:
    """The float32 values [..., n] that `encode_groups` stored."""

    def wide(t):
        return t.float().repeat_interleave(GROUP, -1)[..., :n]

    return torch.addcmul(wide(least), unpack(codes, bits, n).float(), wide(scale))


def channel_bytes(size: int, tokens: int, bits: int) -> int:
    """Bytes of one head's keys and values of `size` channels after `tokens` tokens in KIVI's form.

    The tokens that wait in 16 bits are included.
    """
    old, row = tokens - tokens % RECENT, -(-size * bits // 8)
    keys, values = size * (old * bits // 8 + 4 * old // GROUP), old * (row + 4 * -(-size // GROUP))
    return keys + values + 2 * 2 * size * (tokens - old)


def usual_length(window: int) -> int:
    """The text length for which the bytes of a cache by channel are counted.

    It is about the window's length, chosen so that the average number of tokens waits in 16 bits.
    """
    return max(1, window - window % RECENT - RECENT // 2) if window > RECENT else window


class ChannelLayer(DynamicLayer):
    """One block's keys and values in KIVI's form.

    `update` returns earlier tokens as they were stored, and new ones in 16 bits.
    """

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        # codes, scales, least of keys [b, heads, size, t], then of values
        self.old: list[Tensor] = []
        self.stored: list[Tensor] = []
        self.recent: list[Tensor] = []  # keys and values [b, heads, t, size] float16

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and key_states.requires_grad:
            raise ValueError(
                "a cache with keys by channel takes no gradient; train with a cache of a scale for each token"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = [x.clamp(-LARGEST, LARGEST).half() for x in (key_states, value_states)]
        recent = [torch.cat(pair, -2) for pair in zip(self.recent, new, strict=True)] if self.recent else new
        size, count = key_states.shape[-1], recent[0].shape[-2]
        seen = [x.to(key_states.dtype) for x in recent]
        if self.old:
            codes, scale, least = self.old[:3]
            keys = decode_groups(codes, scale, least, self.bits, self.get_old_length()).transpose(-1, -2)
            codes, scale, least = self.old[3:]
            values = decode_groups(codes, scale, least, self.bits, size)
            seen = [
                torch.cat([x.to(key_states.dtype), y], -2) for x, y in zip((keys, values), seen, strict=True)
            ]
        if full := count - count % RECENT:
            keys, values = (x[..., :full, :] for x in recent)
            moved = [*encode_groups(keys.transpose(-1, -2), self.bits), *encode_groups(values, self.bits)]
            along = (-1, -1, -1, -2, -2, -2)  # the axis of the tokens
            self.old = (
                [torch.cat([a, b], d) for a, b, d in zip(self.old, moved, along, strict=True)]
                if self.old
                else moved
            )
            recent = [x[..., full:, :].clone() for x in recent]
        self.recent, self.stored = recent, [*self.old, *recent]
        return seen[0], seen[1]

    def get_old_length(self) -> int:
        """How many tokens are stored as codes."""
        return self.old[3].shape[-2] if self.old else 0

    def get_seq_length(self) -> int:
        return self.get_old_length() + (self.recent[0].shape[-2] if self.recent else 0)


LAYERS = {"token": QuantizedLayer, "channel": ChannelLayer}


def handed(module: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """The arguments that give a transformers module its cache.

    Newer versions of transformers call the cache `cache`; from 5.40 on they take no other name. Older ones
    call it `past_key_values`.
    """
    newer = "cache" in inspect.signature(module.forward).parameters
    return {"cache" if newer else "past_key_values": cache, "use_cache": cache is not None}


def read(backbone: nn.Module, ids: Tensor, cache: Cache | None) -> Tensor:
    """Final hidden states [b, t, hidden] of ids [b, t] that follow the text in the cache.

    They are the same as if the text had been read token by token.
    """
    if not isinstance(cache, QuantizedCache) or cache.keys == "token":
        return backbone(input_ids=ids, **handed(backbone, cache)).last_hidden_state
    first = RECENT - cache.get_seq_length() % RECENT
    parts = [part for part in (ids[:, :first], *ids[:, first:].split(RECENT, 1)) if part.shape[1]]
    states = [backbone(input_ids=part, **handed(backbone, cache)).last_hidden_state for part in parts]
    return torch.cat(states, 1)


class QuantizedCache(DynamicCache):
    """A cache whose every layer is one of LAYERS."""

    def __init__(self, layers: int, bits: int, keys: str = "token"):
        super().__init__()
        self.keys = keys
        self.layers = [LAYERS[keys](bits) for _ in range(layers)]
        self.layer_class_to_replicate = None

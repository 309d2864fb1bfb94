"""A loaded model: its module, its tokenizer, its sizes and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LayerGeometry:
    """One decoder block's sizes."""

    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int


@dataclass(frozen=True)
class Geometry:
    """The model's sizes. After structured pruning, `layers` may differ from block to block."""

    architecture: str  # key of ARCHITECTURES: llama, qwen2, qwen3, opt, gpt2, gpt_neox
    hidden: int
    vocabulary: int
    positions: int  # longest context
    tied: bool  # embedding and head share one table
    layers: tuple[LayerGeometry, ...]
    embedding: int = 0  # width of the token embedding if it isn't `hidden` (OPT-350M projects it), else 0

    @property
    def table_parameters(self) -> int:
        """Parameters of one token table."""
        return self.vocabulary * (self.embedding or self.hidden)

    def kv_cache_bytes_per_token(self, bits: int = 16, keys: str = "token", window: int = 512) -> int:
        """Bytes of keys and values of one token over all blocks, with the scales of a quantized cache.

        keys "channel": the average over a text about as long as the window, since the latest tokens wait in
        16 bits (compression/kv_cache.py).
        """
        if keys == "channel" and bits < 16:
            from compression.kv_cache import channel_bytes, usual_length

            tokens = usual_length(window)
            return sum(g.kv_heads * channel_bytes(g.head_size, tokens, bits) for g in self.layers) // tokens
        return sum(2 * g.kv_heads * (g.head_size * bits // 8 + (2 if bits < 16 else 0)) for g in self.layers)


@dataclass
class Bundle:
    """A loaded model. `module` is a transformers causal LM in the normal form (arch.py)."""

    module: nn.Module
    tokenizer: Any
    geometry: Geometry
    name: str  # catalogue name, hub id or folder as the user gave it
    source: dict = field(default_factory=dict)
    # source: {"kind": hub|folder|package|artifact, "id", "revision", "licence", "weights_hash", "folder",
    #          "publisher_bytes", "rounded": None | "Q4_1", "chat": bool}
    decoder: Any = None  # made by engine.serve from the module as it is
    refused: str = ""  # why there is no decoder
    cache_bits: int = 16  # of the key-value cache: 16, 8, 4 or, with keys by channel, 2
    cache_keys: str = "token"  # which of its keys share a scale: "token", or "channel" (kv_cache.py)
    attention: tuple = ()  # an attention.Int8Attention for each block; () if attention multiplies floats

    @property
    def device(self):
        return next(p for p in self.module.parameters()).device

    def new_cache(self):
        """An empty key-value cache for this model: in its compute dtype, or in `cache_bits` bits."""
        from transformers import DynamicCache

        if self.cache_bits < 16:
            from compression.kv_cache import QuantizedCache

            return QuantizedCache(len(self.geometry.layers), self.cache_bits, self.cache_keys)
        return DynamicCache(config=self.module.config)

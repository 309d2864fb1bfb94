"""Qwen 2 and 2.5: Llama's plan, with biases on q, k and v, and with sliding windows in some blocks."""

from __future__ import annotations

from dataclasses import replace

from compression.architectures.declare import HEADS, KINDS, POSITIONS, WIDTH, Field, flag, size
from compression.architectures.llama import GATED, LLAMA, classes, rms_norm

FIELDS = GATED | {
    "max_position_embeddings": size(POSITIONS, 32_768),
    "num_key_value_heads": size(HEADS, 32, empty=True),
    "use_sliding_window": flag(False),
    "sliding_window": size(POSITIONS, 4_096, empty=True),
    "max_window_layers": Field("int", 28, 0, POSITIONS),
    "layer_types": Field("kinds", None, choices=KINDS, empty=True),
}

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    classes=classes("qwen2", "Qwen2"),
    norm=rms_norm("qwen2", "Qwen2"),
    fields=FIELDS | {"head_dim": size(WIDTH, None, empty=True)},
    sizes=replace(LLAMA.sizes, free_heads=True),
)

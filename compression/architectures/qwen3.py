"""Qwen 3: Qwen 2 without the biases on q, k and v, and with norms over each head's queries and keys."""

from __future__ import annotations

from dataclasses import replace

from compression.architectures.declare import WIDTH, flag, size
from compression.architectures.llama import classes, rms_norm
from compression.architectures.qwen2 import FIELDS, QWEN2

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    classes=classes("qwen3", "Qwen3"),
    norm=rms_norm("qwen3", "Qwen3"),
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
    fields=FIELDS | {"head_dim": size(WIDTH, 128), "attention_bias": flag(False)},
)

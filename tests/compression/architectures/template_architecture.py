"""Gemma: Llama's plan with norms that multiply by 1 + their weight, and rows of the embedding times a factor.

A file like this one, in compression/architectures/, is all that a new architecture needs beside its line in
`ARCHITECTURES` and a tiny configuration in tests/tiny.py. test_new_architecture.py runs this row through the
program as it stands.
"""

from __future__ import annotations

from dataclasses import replace

from compression.architectures.declare import (
    HEADS,
    POSITIONS,
    WIDTH,
    Norm,
    activation,
    flag,
    own_classes,
    size,
    token,
)
from compression.architectures.llama import GATED, LLAMA, classes

(NORM,) = own_classes("gemma", "GemmaRMSNorm")

GEMMA = replace(
    LLAMA,
    name="gemma",
    classes=classes("gemma", "Gemma") | own_classes("gemma", "GemmaTextScaledWordEmbedding"),
    norm=Norm(NORM, rms=True, epsilon="eps", added=1.0),
    embedding_scale="scalar_embed_scale",
    fields=GATED
    | {
        "hidden_act": activation("gelu_pytorch_tanh"),
        "max_position_embeddings": size(POSITIONS, 8_192),
        "num_key_value_heads": size(HEADS, 16),
        "head_dim": size(WIDTH, 256),
        "attention_bias": flag(False),
        "tie_word_embeddings": flag(True),
        "pad_token_id": token(0),
        "bos_token_id": token(2),
        "eos_token_id": token(1),
    },
    sizes=replace(LLAMA.sizes, free_heads=True),
)

TINY = dict(
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=256,
)

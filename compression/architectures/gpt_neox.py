"""GPT-NeoX (Pythia): q, k and v in one layer, head by head; layer norms.

Attention and feed-forward are in parallel. A quarter of each head's channels is rotated. Its files call the
head `embed_out`.
"""

from __future__ import annotations

from compression.architectures.declare import (
    COMMON,
    HEADS,
    LAYER_NORM,
    LAYERS,
    POSITIONS,
    WIDE,
    WIDTH,
    Architecture,
    Fused,
    Rotary,
    activation,
    epsilon,
    flag,
    own_classes,
    size,
    token,
    trained,
)

GPT_NEOX = Architecture(
    "gpt_neox",
    backbone="gpt_neox",
    blocks="gpt_neox.layers",
    embedding="gpt_neox.embed_in",
    head="lm_head",
    final="gpt_neox.final_layer_norm",
    groups=(
        (
            ("attention.query_key_value.q", "q"),
            ("attention.query_key_value.k", "k"),
            ("attention.query_key_value.v", "v"),
        ),
        (("attention.dense", "o"),),
        (("mlp.dense_h_to_4h", "up"),),
        (("mlp.dense_4h_to_h", "down"),),
    ),
    norms=("input_layernorm", None, "post_attention_layernorm", None),
    attention="attention",
    classes=own_classes(
        "gpt_neox",
        "GPTNeoXForCausalLM GPTNeoXModel GPTNeoXLayer GPTNeoXAttention GPTNeoXMLP GPTNeoXRotaryEmbedding",
    ),
    norm=LAYER_NORM,
    fields=COMMON
    | {
        "hidden_size": size(WIDTH),
        "num_hidden_layers": size(LAYERS),
        "num_attention_heads": size(HEADS),
        "intermediate_size": size(WIDE),
        "hidden_act": activation("gelu"),
        "max_position_embeddings": size(POSITIONS, 2_048),
        "layer_norm_eps": epsilon(1e-5),
        "use_parallel_residual": flag(True),
        "attention_bias": flag(True),
        "tie_word_embeddings": flag(False),
        "initializer_range": trained(0.02),
        "attention_dropout": trained(0.0),
        "hidden_dropout": trained(0.0),
        "classifier_dropout": trained(0.1),
        "bos_token_id": token(0),
        "eos_token_id": token(2),
    },
    rotary=Rotary(
        "gpt_neox.rotary_emb", theta="rotary_emb_base", share="rotary_pct", default_share=0.25, whole=False
    ),
    parallel="use_parallel_residual",
    idle=frozenset(("is_decoder",)),
    fused=Fused("attention.query_key_value", by_head=True),
    prefix="gpt_neox.",
    renamed=(("embed_out.", "lm_head."),),
    recomputed=(
        (r"gpt_neox\.layers\.\d+\.attention\.bias", "mask"),
        (r"gpt_neox\.layers\.\d+\.attention\.masked_bias", "floor"),
        (r"gpt_neox\.(layers\.\d+\.attention\.)?rotary_emb\.inv_freq", "angles"),
    ),
)

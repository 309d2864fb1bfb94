"""GPT-2: layers stored [in, out], q, k and v in one of them, layer norms first, learned positions, GELU."""

from __future__ import annotations

from compression.architectures.declare import (
    COMMON,
    HEADS,
    LAYER_NORM,
    LAYERS,
    MASKED,
    WIDE,
    WIDTH,
    Architecture,
    Fused,
    Sizes,
    activation,
    epsilon,
    flag,
    own_classes,
    size,
    token,
    trained,
)

GPT2 = Architecture(
    "gpt2",
    backbone="transformer",
    blocks="transformer.h",
    embedding="transformer.wte",
    head="lm_head",
    final="transformer.ln_f",
    groups=(
        (("attn.c_attn.q", "q"), ("attn.c_attn.k", "k"), ("attn.c_attn.v", "v")),
        (("attn.c_proj", "o"),),
        (("mlp.c_fc", "up"),),
        (("mlp.c_proj", "down"),),
    ),
    norms=("ln_1", None, "ln_2", None),
    attention="attn",
    classes=own_classes("gpt2", "GPT2LMHeadModel GPT2Model GPT2Block GPT2Attention GPT2MLP"),
    norm=LAYER_NORM,
    fields=COMMON
    | {
        "n_embd": size(WIDTH, also=("hidden_size",)),
        "n_layer": size(LAYERS, also=("num_hidden_layers",)),
        "n_head": size(HEADS, also=("num_attention_heads",)),
        "n_positions": size(MASKED, 1_024, also=("max_position_embeddings",)),
        "n_inner": size(WIDE, None, empty=True),
        "activation_function": activation("gelu_new"),
        "layer_norm_epsilon": epsilon(1e-5),
        "scale_attn_weights": flag(True),
        "scale_attn_by_inverse_layer_idx": flag(False),
        "reorder_and_upcast_attn": flag(False),
        "tie_word_embeddings": flag(True),
        "resid_pdrop": trained(0.1),
        "embd_pdrop": trained(0.1),
        "attn_pdrop": trained(0.1),
        "initializer_range": trained(0.02),
        "bos_token_id": token(50_256),
        "eos_token_id": token(50_256),
    },
    sizes=Sizes(
        hidden="n_embd", layers="n_layer", heads="n_head", feed_forward="n_inner", positions="n_positions"
    ),
    positions="transformer.wpe",
    activation="activation_function",
    by_depth="scale_attn_by_inverse_layer_idx",
    idle=frozenset(
        (
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
            "add_cross_attention",  # transformers' class has it; configs.py refuses a config that asks for it
        )
    ),
    fused=Fused("attn.c_attn"),
    transposed=True,
    prefix="transformer.",
    recomputed=(
        (r"transformer\.h\.\d+\.attn\.bias", "mask"),
        (r"transformer\.h\.\d+\.attn\.masked_bias", "floor"),
    ),
    attributes=(("num_heads", "heads"), ("split_size", "queries")),
)

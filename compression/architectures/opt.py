"""OPT: layer norms (in OPT-350M after the sum, elsewhere first), learned positions, ReLU, biases everywhere.

OPT-350M also projects a narrower embedding into its width, and back before the head.
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
    Sizes,
    activation,
    flag,
    own_classes,
    size,
    token,
    trained,
)

OPT = Architecture(
    "opt",
    backbone="model",
    blocks="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    head="lm_head",
    final="model.decoder.final_layer_norm",
    groups=(
        (("self_attn.q_proj", "q"), ("self_attn.k_proj", "k"), ("self_attn.v_proj", "v")),
        (("self_attn.out_proj", "o"),),
        (("fc1", "up"),),
        (("fc2", "down"),),
    ),
    norms=("self_attn_layer_norm", None, "final_layer_norm", None),
    attention="self_attn",
    classes=own_classes(
        "opt", "OPTForCausalLM OPTModel OPTDecoder OPTDecoderLayer OPTAttention OPTLearnedPositionalEmbedding"
    ),
    norm=LAYER_NORM,
    fields=COMMON
    | {
        "hidden_size": size(WIDTH),
        "num_hidden_layers": size(LAYERS),
        "num_attention_heads": size(HEADS),
        "ffn_dim": size(WIDE),
        "max_position_embeddings": size(POSITIONS, 2_048),
        "word_embed_proj_dim": size(WIDTH, None, empty=True),
        "activation_function": activation("relu"),
        "do_layer_norm_before": flag(True),
        "_remove_final_layer_norm": flag(False),
        "enable_bias": flag(True),
        "layer_norm_elementwise_affine": flag(True),
        "tie_word_embeddings": flag(True),
        "dropout": trained(0.1),
        "attention_dropout": trained(0.0),
        "layerdrop": trained(0.0),
        "init_std": trained(0.02),
        "pad_token_id": token(1),
        "bos_token_id": token(2),
        "eos_token_id": token(2),
    },
    sizes=Sizes(feed_forward="ffn_dim", embedding="word_embed_proj_dim"),
    positions="model.decoder.embed_positions",
    projections=("model.decoder.project_in", "model.decoder.project_out"),
    activation="activation_function",
    norm_first="do_layer_norm_before",
    idle=frozenset(("initializer_range",)),
    recomputed=((r"model\.decoder\.version", "version"),),
    attributes=(("num_heads", "heads"),),
)

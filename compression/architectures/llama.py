"""Llama, and the models that follow its plan: Qwen 2 and 3 differ only in some columns.

RMS norms first, rotary positions on every channel, grouped queries, a gated feed-forward, no fused layers.
"""

from __future__ import annotations

from compression.architectures.declare import (
    COMMON,
    HEADS,
    LAYERS,
    POSITIONS,
    WIDE,
    WIDTH,
    Architecture,
    Field,
    Norm,
    Rotary,
    Sizes,
    activation,
    epsilon,
    flag,
    own_classes,
    size,
    token,
    trained,
)

GATED = COMMON | {
    "hidden_size": size(WIDTH),
    "num_hidden_layers": size(LAYERS),
    "num_attention_heads": size(HEADS),
    "intermediate_size": size(WIDE),
    "hidden_act": activation("silu"),
    "rms_norm_eps": epsilon(1e-6),
    "initializer_range": trained(0.02),
    "attention_dropout": trained(0.0),
    "tie_word_embeddings": flag(False),
}


def classes(name: str, prefix: str) -> frozenset[str]:
    """ "qwen2", "Qwen2" -> the classes in that file, without its norm."""
    kinds = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RotaryEmbedding")
    return own_classes(name, " ".join(prefix + kind for kind in kinds))


def rms_norm(name: str, prefix: str) -> Norm:
    """The norm in that file."""
    (path,) = own_classes(name, f"{prefix}RMSNorm")
    return Norm(path, rms=True, epsilon="variance_epsilon")


LLAMA = Architecture(
    "llama",
    backbone="model",
    blocks="model.layers",
    embedding="model.embed_tokens",
    head="lm_head",
    final="model.norm",
    groups=(
        (("self_attn.q_proj", "q"), ("self_attn.k_proj", "k"), ("self_attn.v_proj", "v")),
        (("self_attn.o_proj", "o"),),
        (("mlp.gate_proj", "gate"), ("mlp.up_proj", "up")),
        (("mlp.down_proj", "down"),),
    ),
    norms=("input_layernorm", None, "post_attention_layernorm", None),
    attention="self_attn",
    classes=classes("llama", "Llama"),
    norm=rms_norm("llama", "Llama"),
    fields=GATED
    | {
        "max_position_embeddings": size(POSITIONS, 2_048),
        "num_key_value_heads": size(HEADS, None, empty=True),
        "head_dim": size(WIDTH, None, empty=True),
        "attention_bias": flag(False),
        "mlp_bias": flag(False),
        # how training was cut into parts; the sums are the same
        "pretraining_tp": Field("int", 1, 0, 1_024, empty=True, forward=False),
        "bos_token_id": token(1),
        "eos_token_id": token(2),
    },
    sizes=Sizes(kv_heads="num_key_value_heads", head_size="head_dim"),
    rotary=Rotary("model.rotary_emb"),
    recomputed=((r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "angles"),),
    attributes=(("num_key_value_groups", "served"), ("intermediate_size", "feed_forward")),
)

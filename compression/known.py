"""What the decode step knows: it runs a model of these parts and settings, and no other.

The step is written for the code of six families. A part of another class, or a setting that came with a later
version of that code, may compute anything; so what isn't listed here is declined, and the model runs through
transformers' own loop.
"""

from __future__ import annotations

import dataclasses

from torch import nn
from transformers import PreTrainedConfig

from compression import arch

ACTIVATIONS = {  # class -> the step's name (kernels/cpu/step.py)
    "torch.nn.modules.activation.SiLU": "silu",
    "transformers.activations.SiLUActivation": "silu",
    "torch.nn.modules.activation.ReLU": "relu",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.FastGELUActivation": "gelu_tanh",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.AccurateGELUActivation": "gelu_tanh",
}
ANYWHERE = {
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.sparse.Embedding",
    "compression.arch.Joined",
    *ACTIVATIONS,
}
LAYER_NORM = "torch.nn.modules.normalization.LayerNorm"
# rotary angles that don't depend on the text's length
STEADY = ("default", "linear", "yarn", "llama3", "proportional")


def _names(text: str, prefix: str = "") -> frozenset[str]:
    return frozenset(prefix + name for name in text.split())


_USUAL = _names(
    "vocab_size tie_word_embeddings use_cache initializer_range bos_token_id eos_token_id pad_token_id"
)
_LLAMA = _USUAL | _names(
    """hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act
    max_position_embeddings rms_norm_eps rope_parameters attention_bias attention_dropout mlp_bias
    head_dim pretraining_tp"""
)
_QWEN = _LLAMA | _names("use_sliding_window sliding_window max_window_layers layer_types")


@dataclasses.dataclass(frozen=True)
class Known:
    """One family's code as the step was written for it."""

    parts: frozenset[str]  # classes beside ANYWHERE
    # of its config: carried out at any value, declined by `refusal`, or of no effect on a forward pass
    settings: frozenset[str]
    norm: str  # the class of its norms
    head_norms: bool = False  # norms over each head's queries and keys


def _own(family: str, names: str) -> frozenset[str]:
    """Classes of the family's own file."""
    return _names(names, f"transformers.models.{family}.modeling_{family}.")


def _rms(family: str, name: str, settings: frozenset[str], head_norms: bool = False) -> Known:
    suffixes = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
    parts = _own(family, " ".join(name + suffix for suffix in suffixes))
    return Known(parts, settings, next(iter(_own(family, f"{name}RMSNorm"))), head_norms)


FAMILIES: dict[str, Known] = {
    "llama": _rms("llama", "Llama", _LLAMA),
    "qwen2": _rms("qwen2", "Qwen2", _QWEN),
    "qwen3": _rms("qwen3", "Qwen3", _QWEN, head_norms=True),
    "opt": Known(
        _own(
            "opt",
            "OPTForCausalLM OPTModel OPTDecoder OPTDecoderLayer OPTAttention OPTLearnedPositionalEmbedding",
        )
        | {LAYER_NORM},
        _USUAL
        | _names(
            """hidden_size num_hidden_layers ffn_dim max_position_embeddings do_layer_norm_before
    _remove_final_layer_norm word_embed_proj_dim dropout attention_dropout num_attention_heads
    activation_function layerdrop init_std enable_bias layer_norm_elementwise_affine"""
        ),
        LAYER_NORM,
    ),
    "gpt2": Known(
        _own("gpt2", "GPT2LMHeadModel GPT2Model GPT2Block GPT2Attention GPT2MLP") | {LAYER_NORM},
        _USUAL
        | _names(
            """n_positions n_embd n_layer n_head n_inner activation_function resid_pdrop embd_pdrop attn_pdrop
    layer_norm_epsilon summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn
    add_cross_attention"""
        ),
        LAYER_NORM,
    ),
    "gpt_neox": Known(
        _own(
            "gpt_neox",
            "GPTNeoXForCausalLM GPTNeoXModel GPTNeoXLayer GPTNeoXAttention GPTNeoXMLP GPTNeoXRotaryEmbedding",
        )
        | {LAYER_NORM},
        _USUAL
        | _names(
            """hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
    attention_dropout hidden_dropout classifier_dropout max_position_embeddings layer_norm_eps
    use_parallel_residual
    rope_parameters attention_bias is_decoder"""
        ),
        LAYER_NORM,
    ),
}


def path_of(part: nn.Module) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def refusal(module: nn.Module) -> str:
    """What of the model the step doesn't know, in words; "" if it knows all of it."""
    family, config = arch.family_of(module.config), module.config
    known, blocks = FAMILIES[family], arch.blocks(module)
    for name, part in module.named_modules():
        path = path_of(part)
        # formats answer for themselves
        if path not in ANYWHERE | known.parts and not path.startswith("compression.packed."):
            return f"{name or 'the model'} is of the class {type(part).__name__}, which the step doesn't know"
        if "forward" in vars(part):
            return f"{name or 'the model'} computes by a function of its own"
        if getattr(part, "max_norm", None) is not None:
            return f"{name} bounds the norm of what it looks up"
    for field in dataclasses.fields(config):
        if field.name not in known.settings | _GENERAL and getattr(config, field.name, None) != _default(
            field
        ):
            return f"the config's {field.name} = {getattr(config, field.name)!r}, which the step doesn't know"
    if not getattr(config, "is_causal", True):
        return "attention isn't causal"
    if config.num_hidden_layers != len(blocks):
        return f"{len(blocks)} blocks, of which the model runs {config.num_hidden_layers}"
    sliding = [
        name for name, part in module.named_modules() if getattr(part, "sliding_window", None) is not None
    ]
    if sliding or (family in ("qwen2", "qwen3") and set(config.layer_types) != {"full_attention"}):
        return "some layers look at a sliding window only"
    for what, values in _of_all_blocks(module).items():
        if len(values) > 1:
            return f"layers differ in {what}: {', '.join(sorted(map(str, values)))}"
    return ""


_GENERAL = frozenset(field.name for field in dataclasses.fields(PreTrainedConfig))


def _default(field: dataclasses.Field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _of_all_blocks(module: nn.Module) -> dict[str, set]:
    """What the step holds once for all layers -> the values that the layers have."""
    blocks = arch.blocks(module)
    return {
        "the scale of their attention": {attention(block).scaling for block in blocks},
        "the epsilon of their norms": {epsilon(norm) for norm in all_norms(module)},
        "their activation": {
            ACTIVATIONS[path_of(part)]
            for block in blocks
            for part in block.modules()
            if path_of(part) in ACTIVATIONS
        },
        "whether attention and feed-forward stand side by side": {
            getattr(block, "use_parallel_residual", False) for block in blocks
        },
        "whether norms come first": {getattr(block, "do_layer_norm_before", True) for block in blocks},
    }


def attention(block: nn.Module) -> nn.Module:
    """The block's attention."""
    return next(part for part in block.modules() if hasattr(part, "scaling"))


def head_norms(module: nn.Module, block: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The norms over each head's queries and keys, None where the family has none."""
    if not FAMILIES[arch.family_of(module.config)].head_norms:
        return None, None
    return attention(block).q_norm, attention(block).k_norm


def all_norms(module: nn.Module) -> list[nn.Module]:
    """Every norm: over the width and over a head."""
    heads = [norm for block in arch.blocks(module) for norm in head_norms(module, block) if norm is not None]
    return [*heads, *arch.norms(module)]


def epsilon(norm: nn.Module) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def activation(module: nn.Module) -> str:
    """The step's name for the activation of all blocks."""
    return next(
        ACTIVATIONS[path_of(part)]
        for part in arch.blocks(module)[0].modules()
        if path_of(part) in ACTIVATIONS
    )

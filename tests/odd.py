"""Members of each family that differ from their siblings: in some layers only, without a part, or with a
setting seldom used."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compression import arch
from compression.bundle import Bundle
from tests import tiny

WINDOW = 8
# a text as it is written: within a window, more than a window at once, single tokens
PARTS = [6, 20, 1, 12, 1]
PLACES = [5, 25, 26, 38, 39]  # the last token of each part


def _rope(kind, **settings):
    return dict(rope_parameters=dict(rope_theta=100.0, rope_type=kind, **settings))


_WINDOWS = dict(use_sliding_window=True, sliding_window=WINDOW)
_TURNS = ["sliding_attention", "full_attention"]
ODD = {  # name -> (family of tiny.CONFIGS, other settings, why the decode step declines it or "")
    "one head of keys": ("llama", dict(num_key_value_heads=1), ""),
    "wide heads": ("llama", dict(num_key_value_heads=4, head_dim=32, tie_word_embeddings=False), ""),
    "biases": ("llama", dict(attention_bias=True, mlp_bias=True), ""),
    "linear": ("llama", _rope("linear", factor=4.0), ""),
    "dynamic": ("llama", dict(max_position_embeddings=64) | _rope("dynamic", factor=4.0), "'dynamic'"),
    "yarn": ("llama", _rope("yarn", factor=4.0, original_max_position_embeddings=64), ""),
    "llama3": (
        "llama",
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        "",
    ),
    "longrope": (
        "llama",
        _rope(
            "longrope",
            factor=4.0,
            short_factor=[1.0] * 6,
            long_factor=[1.0, 2, 3, 4, 5, 6],
            original_max_position_embeddings=26,
        ),
        "'longrope'",
    ),
    "proportional": ("llama", _rope("proportional", partial_rotary_factor=0.5), ""),
    "names that Llama's code doesn't read": (
        "llama",
        dict(
            sliding_window=WINDOW, use_parallel_residual=True, do_layer_norm_before=False, layer_types=_TURNS
        ),
        "",
    ),
    "ReLU behind a gate": ("llama", dict(hidden_act="relu"), ""),
    "a window from the second layer on": ("qwen2", _WINDOWS | dict(max_window_layers=1), "sliding window"),
    "a window of one token": (
        "qwen3",
        _WINDOWS | dict(sliding_window=1, max_window_layers=1),
        "sliding window",
    ),
    "windows in turns": (
        "qwen3",
        _WINDOWS | dict(num_hidden_layers=4, layer_types=_TURNS * 2),
        "sliding window",
    ),
    "a window that isn't used": ("qwen2", dict(use_sliding_window=False, sliding_window=WINDOW), ""),
    "biases beside norms over heads": ("qwen3", dict(attention_bias=True), ""),
    "no last norm": ("opt", dict(_remove_final_layer_norm=True), ""),
    "no biases": ("opt", dict(enable_bias=False, activation_function="gelu"), ""),
    "norms without weights": ("opt", dict(layer_norm_elementwise_affine=False, word_embed_proj_dim=32), ""),
    "norms without weights, after the sum": ("opt-post-norm", dict(layer_norm_elementwise_affine=False), ""),
    "names that OPT's code doesn't read": ("opt", dict(head_dim=8, num_key_value_heads=2), ""),
    "attention unscaled": ("gpt2", dict(scale_attn_weights=False, n_inner=80, tie_word_embeddings=False), ""),
    "attention scaled by the layer": (
        "gpt2",
        dict(scale_attn_by_inverse_layer_idx=True),
        "differ in the scale",
    ),
    "attention upcast": ("gpt2", dict(reorder_and_upcast_attn=True), ""),
    "ReLU squared": ("gpt2", dict(activation_function="relu2"), "ReLUSquared"),
    "names that GPT-2's code doesn't read": (
        "gpt2",
        dict(head_dim=6, num_key_value_heads=2, sliding_window=WINDOW),
        "",
    ),
    "one after the other": (
        "gpt_neox",
        dict(use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True),
        "",
    ),
    "all of a head turns": ("gpt_neox", dict(rotary_pct=1.0), ""),
    "an odd part of a head turns": ("gpt_neox", dict(rotary_pct=0.3), ""),
    "nothing turns": ("gpt_neox", dict(rotary_pct=0.0), ""),
}


@dataclass(frozen=True)
class Made:
    """A model through the project's normal form, and what plain transformers says of it."""

    bundle: Bundle
    ids: torch.Tensor  # [5, 40]
    # [5, places, vocabulary], of each text up to there: eager attention, float32, no cache
    logits: torch.Tensor


@functools.cache
def made(name: str) -> Made:
    """The model of that name, for all tests that leave it as it is."""
    return fresh(*ODD[name][:2])


@torch.no_grad()
def fresh(family: str, settings: dict) -> Made:
    kind = family.removesuffix("-post-norm")
    special = dict(bos_token_id=256, eos_token_id=257, pad_token_id=257)
    config = AutoConfig.for_model(
        kind, vocab_size=tiny.VOCABULARY, **special, **tiny.CONFIGS[family] | settings
    )
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(
        config, attn_implementation="sdpa", trust_remote_code=False
    ).eval()
    module.requires_grad_(False)
    for at, p in module.named_parameters():
        if p.dim() == 1:
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(at))))
        else:
            p.mul_(4)  # so that attention prefers some tokens, and which it sees matters
    plain, ids = copy.deepcopy(module), tiny.ids(5, 40)
    plain.set_attn_implementation("eager")
    logits = torch.stack(
        [plain(input_ids=ids[:, : place + 1], use_cache=False).logits[:, -1] for place in PLACES], 1
    )
    arch.normalise(module)
    return Made(Bundle(module, tiny.tokenizer(), arch.geometry(module), "odd"), ids, logits)

"""Tiny random models of every supported family, saved as a hub folder would be, and a byte tokenizer for
them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import tempfile
from pathlib import Path

import torch

VOCABULARY = 260  # 256 bytes and a few special tokens
# family -> overrides of the smallest model with every trait: GQA, biases, odd widths, tied and untied heads
CONFIGS = {
    "llama": dict(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    ),
    "qwen2": dict(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    ),
    "qwen3": dict(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    ),
    "opt": dict(
        hidden_size=48,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=48,
    ),
    "opt-post-norm": dict(
        hidden_size=48,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=32,
        do_layer_norm_before=False,
    ),
    "gpt2": dict(n_embd=48, n_layer=2, n_head=4, n_positions=256),
    "gpt_neox": dict(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    ),
}
FAMILIES = tuple(CONFIGS)


def pairs(names) -> list[tuple[str, str]]:
    """Each name with two families, each family with many names: for what sees one matrix after the other and
    no family."""
    return [(name, FAMILIES[(i + k) % len(FAMILIES)]) for i, name in enumerate(names) for k in (0, 3)]


@functools.cache
def original(family: str):
    """A transformers model as it comes, weights from a fixed seed, float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = family.removesuffix("-post-norm")
    special = dict(bos_token_id=256, eos_token_id=257, pad_token_id=257)
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **special, **CONFIGS[family])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:  # biases start at 0 and norms at 1: give both something to get wrong
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def tokenizer():
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {"<s>": 256, "</s>": 257}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@functools.cache
def folder(family: str) -> str:
    """The model on disk: config, safetensors, tokenizer."""
    place = Path(tempfile.mkdtemp(prefix=f"tiny-{family}-", dir=os.environ["COMPRESSION_EXPLORER_TESTS"]))
    original(family).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return str(place)


@functools.cache
def _loaded(family: str):
    from compression import models

    return models.load(folder(family))


def bundle(family: str = "llama"):
    """A fresh Bundle, a copy of what the project's own loader gave once."""
    found = _loaded(family)
    module, tokenizer, source = (copy.deepcopy(x) for x in (found.module, found.tokenizer, found.source))
    return dataclasses.replace(found, module=module, tokenizer=tokenizer, source=source)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(count: int = 6, window: int = 32, seed: int = 0) -> torch.Tensor:
    """Random token ids [count, window]."""
    return torch.randint(0, 256, (count, window), generator=torch.Generator().manual_seed(seed))


def logits(bundle, tokens: torch.Tensor) -> torch.Tensor:
    """All logits [n, window, vocabulary]."""
    with torch.no_grad():
        return bundle.module(input_ids=tokens, use_cache=False).logits

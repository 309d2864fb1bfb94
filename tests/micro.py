"""A small untrained Llama over bytes, and contexts for the black-box methods: what their claims are tested on in seconds."""

from __future__ import annotations

import torch

from compression import arch
from compression.base import Context
from compression.bundle import Bundle
from tests import tiny


class Stub:
    """A teacher of strings and nothing else: any attribute but `ask` and its counters is an error."""

    __slots__ = ("answer", "calls", "hits", "tokens")

    def __init__(self, answer):
        """answer: prompt -> text."""
        self.answer, self.calls, self.tokens, self.hits = answer, 0, 0, 0

    def ask(self, prompts, count=1, temperature=0.0, new_tokens=64, seed=0, cancelled=lambda: False):
        assert all(type(p) is str for p in prompts)
        self.calls += len(prompts)
        return [[self.answer(p)] * count for p in prompts]


def model(hidden: int = 64, layers: int = 2, seed: int = 0) -> Bundle:
    """Untrained, heads of 16, a tied table, no chat template."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", vocab_size=tiny.VOCABULARY, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 16, num_key_value_heads=hidden // 16, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=256, eos_token_id=257, pad_token_id=257,
    )  # fmt: skip
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").requires_grad_(False).eval()
    return Bundle(module, tiny.tokenizer(), arch.geometry(module), "micro", {"weights_hash": "micro"})


def context(teacher=None, seed: int = 0, **more) -> Context:
    """Nothing to read, nobody to tell."""
    return Context(
        None, more.pop("emit", lambda event: None), more.pop("cancelled", lambda: False), seed, teacher=teacher, **more
    )


def facts(edit, code: str) -> dict:
    """The facts of an edit's first note of that code."""
    return dict(next(n.facts for n in edit.notes if n.code == code))

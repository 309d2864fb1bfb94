"""A small untrained Llama over bytes, and contexts for the black-box methods: what their claims are tested on
in seconds."""

from __future__ import annotations

import torch

from compression import arch
from compression.base import Context
from compression.bundle import Bundle
from compression.judged import Judged
from compression.recorder import QUIET, Recorder
from tests import tiny


class Stub:
    """A teacher of strings and nothing else: any attribute but `ask` and its counters is an error."""

    __slots__ = ("answer", "calls", "hits", "tokens")

    def __init__(self, answer):
        """answer: prompt -> text."""
        self.answer, self.calls, self.tokens, self.hits = answer, 0, 0, 0

    def ask(self, prompts, count=1, temperature=0.0, new_tokens=64, seed=0, recorder=QUIET):
        assert all(type(p) is str for p in prompts)
        self.calls += len(prompts)
        return [[self.answer(p)] * count for p in prompts]


def model(hidden: int = 64, layers: int = 2, seed: int = 0, tokenizer=None) -> Bundle:
    """Untrained, heads of 16, a tied table, no chat template; over bytes if no tokenizer is given."""
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = max(tokenizer.get_vocab().values()) + 1 if tokenizer else tiny.VOCABULARY
    tokenizer = tokenizer or tiny.tokenizer()
    stop = tokenizer.eos_token_id
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop,
        pad_token_id=stop,
    )
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").requires_grad_(False).eval()
    return Bundle(module, tokenizer, arch.geometry(module), "micro", {"weights_hash": "micro"})


def tokenizer_of(words):
    """One token a word, words apart by spaces; a line's end is a token too."""
    from tokenizers import Tokenizer, models
    from tokenizers.pre_tokenizers import Sequence, Split
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(("<s>", "</s>", "\n", *words)))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = Sequence([Split(" ", "removed"), Split("\n", "isolated")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def context(teacher=None, seed: int = 0, windows=None, **more) -> Context:
    """Nothing to read unless windows [n, window] are given, and nobody to tell."""
    return Context(windows, Recorder(seed=seed, **more), teacher)


def judged(edit, measure: str) -> Judged:
    """By what an edit's method was judged in this measure."""
    return next(one for one in edit.judged if one.measure == measure)


def facts(edit, code: str) -> dict:
    """The facts of an edit's first note of that code."""
    return dict(next(n.facts for n in edit.notes if n.code == code))

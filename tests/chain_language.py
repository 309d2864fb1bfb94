"""A micro language with a known entropy, and small transformers for it: what training methods are judged on
in seconds.

Each of 16 letters follows the two before it with chances drawn once (a Markov chain of order 2). A teacher of
two blocks comes close to the chain's entropy in 20 seconds of one fast thread, or in a minute of a slow one,
which the orderings need: beside a teacher far from it they blur. So it is trained once and kept
(chain_teacher.safetensors); `make test-all` trains it anew and holds the two beside each other.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compression import arch
from compression.bundle import Bundle
from compression.training import language_loss

LETTERS, WINDOW = 16, 32
STEPS, BATCH = 500, 64  # of the teacher
TEACHER = Path(__file__).with_name("chain_teacher.safetensors")
SHARPNESS = 1.8  # spread of the chain's log-chances; as a perplexity its entropy is then 5.8


def chain(dialect: int = 0) -> Tensor:
    """Chances [16, 16, 16] of the next letter after two."""
    generator = torch.Generator().manual_seed(100 + dialect)
    return torch.softmax(SHARPNESS * torch.randn(LETTERS, LETTERS, LETTERS, generator=generator), -1)


def text(windows: int, seed: int, dialect: int = 0, window: int = WINDOW) -> Tensor:
    """Token ids [windows, window] drawn from the chain."""
    chances, generator = chain(dialect), torch.Generator().manual_seed(seed)
    ids = torch.randint(0, LETTERS, (windows, 2), generator=generator)
    for _ in range(window - 2):
        ids = torch.cat([ids, torch.multinomial(chances[ids[:, -2], ids[:, -1]], 1, generator=generator)], 1)
    return ids


def entropy(dialect: int = 0) -> float:
    """Nats a letter under the chain's stationary distribution of pairs."""
    chances = chain(dialect)
    pairs = torch.full((LETTERS, LETTERS), 1 / LETTERS**2)
    for _ in range(200):
        pairs = torch.einsum("ab,abc->bc", pairs, chances)
    return float(-(pairs[..., None] * chances * chances.log()).sum())


def model(hidden: int = 64, layers: int = 2, seed: int = 0) -> Bundle:
    """An untrained Llama over the letters: heads of 16, a tied table."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=LETTERS,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 16,
        max_position_embeddings=4 * WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return Bundle(module, tokenizer(), arch.geometry(module), "chain")


@functools.cache
def tokenizer():
    """One token a letter, "a" to "p": as many as the model's table has rows."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {chr(ord("a") + i): i for i in range(LETTERS)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=letters, merges=[])))


def taught(bundle: Bundle, steps: int, rate: float = 5e-3, seed: int = 1, dialect: int = 0) -> Bundle:
    """The model after so many steps of 64 windows of the language; the rate falls to nothing. For frozen use
    afterwards."""
    parameters = list(bundle.module.requires_grad_(True).train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for windows in text(BATCH * steps, seed, dialect).split(BATCH):
        language_loss(bundle, windows).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
    bundle.module.requires_grad_(False).eval()
    return bundle


def trained() -> Bundle:
    """The teacher as `python -m tests.chain_language` trains it and TEACHER keeps it, in 16 bits."""
    return taught(model(), STEPS)


@functools.cache
def _teacher() -> Bundle:
    found, kept = model(), load_file(TEACHER)
    kept["lm_head.weight"] = kept["model.embed_tokens.weight"]
    found.module.load_state_dict({name: t.float() for name, t in kept.items()})
    found.module.requires_grad_(False).eval()
    return found


def teacher() -> Bundle:
    """A copy of the trained teacher, as it is kept."""
    found = _teacher()
    return Bundle(
        copy.deepcopy(found.module), found.tokenizer, found.geometry, found.name, {"weights_hash": "chain"}
    )


@torch.no_grad()
def perplexity(bundle: Bundle, windows: Tensor | None = None, dialect: int = 0) -> float:
    """On 256 fresh windows, unless others are given."""
    windows = text(256, 9, dialect) if windows is None else windows
    return float(language_loss(bundle, windows).exp())


if __name__ == "__main__":
    parameters = dict(trained().module.named_parameters())  # a tied table once
    save_file({name: p.detach().half().contiguous() for name, p in parameters.items()}, TEACHER)

"""Generation without a page: one loop for chat, latency and the check of generated text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compression import arch
from compression.bundle import Bundle


@torch.no_grad()
def generate(bundle: Bundle, ids: Tensor, new_tokens: int, temperature: float = 0.0, seed: int = 0) -> Iterator[Tensor]:
    """Yield the next token ids [b] up to `new_tokens` times, after a prompt ids [b, t] of equal lengths.

    temperature 0 takes the most likely token; else samples from softmax(logits / temperature) with its own
    random stream, so that two models asked with one seed draw from equal randomness. Stops at the model's limit.
    """
    generator = torch.Generator().manual_seed(seed)
    backbone, head = arch.backbone(bundle.module), arch.head(bundle.module)[1]
    cache = bundle.new_cache()
    step = ids.to(bundle.device)
    room = bundle.geometry.positions - ids.shape[1]
    for _ in range(min(new_tokens, room)):
        states = backbone(input_ids=step, past_key_values=cache, use_cache=True).last_hidden_state
        logits = head(states[:, -1].contiguous())  # of the last position only; a strided batch would copy the whole head
        if temperature > 0:
            chances = torch.softmax(logits.float().cpu() / temperature, -1)
            chosen = torch.multinomial(chances, 1, generator=generator).squeeze(-1).to(step.device)
        else:
            chosen = logits.argmax(-1)
        yield chosen.cpu()
        step = chosen[:, None]


def stop_ids(bundle: Bundle) -> frozenset[int]:
    """Token ids that end an answer: the config's, the generation config's and the tokenizer's."""
    found = set()
    for source in (bundle.module.config, getattr(bundle.module, "generation_config", None), bundle.tokenizer):
        value = getattr(source, "eos_token_id", None)
        found |= set(value) if isinstance(value, (list, tuple)) else {value}
    return frozenset(found - {None})


def chat_ids(bundle: Bundle, messages: Sequence[dict]) -> Tensor:
    """Messages [{"role", "content"}] as a prompt [1, t]: by the chat template, or as plain text for a base model.

    Raises ValueError when the prompt leaves no room for an answer.
    """
    tokenizer = bundle.tokenizer
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    else:
        text = "\n".join(m["content"] for m in messages)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if ids.shape[1] >= bundle.geometry.positions:
        raise ValueError(f"the prompt has {ids.shape[1]} tokens; the model reads {bundle.geometry.positions}. Shorten it.")
    return ids


def complete(bundle: Bundle, text: str, new_tokens: int = 64) -> str:
    """`text` continued by the model, greedily."""
    ids = bundle.tokenizer(text, return_tensors="pt")["input_ids"]
    out, stops = [], stop_ids(bundle)
    for token in generate(bundle, ids, new_tokens):
        if int(token) in stops:
            break
        out.append(int(token))
    return text + bundle.tokenizer.decode(out)

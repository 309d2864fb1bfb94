"""Generation without a page: one loop for chat, latency and the check of generated text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from compression import arch, engine
from compression.base import CompressionError
from compression.bundle import Bundle
from compression.kv_cache import read as read_on


@torch.no_grad()
def generate(
    bundle: Bundle, ids: Tensor, new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Iterator[Tensor]:
    """Yield the next token ids [b] up to `new_tokens` times, after a prompt ids [b, t] of equal lengths.

    temperature 0 takes the most likely token; any other samples from softmax(logits / temperature). Sampling
    has its own random stream, so two models that get one seed draw from equal randomness. It stops at the
    model's limit of positions.
    """
    generator = torch.Generator().manual_seed(seed)
    room = min(new_tokens, bundle.geometry.positions - ids.shape[1])
    if room <= 0:
        return
    forward = stepper(bundle, len(ids), ids.shape[1] + room)
    step = ids
    for _ in range(room):
        logits = forward(step)
        if temperature > 0:
            chances = torch.softmax(logits.float().cpu() / temperature, -1)
            chosen = torch.multinomial(chances, 1, generator=generator).squeeze(-1)
        else:
            chosen = logits.argmax(-1).cpu()
        yield chosen
        step = chosen[:, None]


def fitted(positions: int, available: int, prompt: int, new_tokens: int) -> tuple[int, int]:
    """(prompt tokens, new tokens) that fit into a model of `positions`, from `available` tokens of text.

    If both don't fit as they are asked for, at least half of the room is for the new tokens.
    """
    new_tokens = min(new_tokens, max(positions // 2, positions - prompt))
    return min(prompt, available, positions - new_tokens), new_tokens


def stepper(bundle: Bundle, sequences: int, positions: int) -> Callable[[Tensor], Tensor]:
    """A function that appends ids [sequences, t] to the text so far.

    It returns the last tokens' logits [sequences, vocabulary]. It runs whole layers in C if the decode step
    serves the model (compression/engine.py), else transformers' loop.
    """
    if decoder := engine.serve(bundle):
        return decoder.session(sequences, positions).run
    return transformers_stepper(bundle)


def transformers_stepper(bundle: Bundle) -> Callable[[Tensor], Tensor]:
    """The same by transformers' own forward pass.

    The cache keeps every token, and the masks alone say which of them a block sees. If the rotary angles
    change with the text's length, the whole text is read again when they do, because the keys in the cache
    were rotated by the old angles.
    """
    backbone = arch.backbone(bundle.module)
    head = arch.head(bundle.module)[1]
    rotary = arch.changing_angles(bundle.module)
    cache, angles, read = new_cache(bundle), None, []

    @torch.no_grad()
    def forward(ids: Tensor) -> Tensor:
        nonlocal cache, angles
        ids = ids.to(bundle.device)
        states = read_on(backbone, ids, cache)
        if rotary is not None:
            read.append(ids)
            if angles is not None and not torch.equal(angles, rotary.inv_freq):
                cache = new_cache(bundle)
                states = read_on(backbone, torch.cat(read, 1), cache)
            angles = rotary.inv_freq.clone()
        # of the last position only; a strided batch would copy the whole head
        return head(states[:, -1].contiguous())

    return forward


def new_cache(bundle: Bundle) -> Cache:
    """An empty key-value cache that keeps every token, in the model's compute dtype or in `cache_bits` bits.

    The cache that a config asks for would drop tokens that a sliding window has passed. It would do so even
    if only the config names a window (a Llama's code has none), or if the window is a single token.
    """
    return bundle.new_cache() if bundle.cache_bits < 16 else DynamicCache()


class PromptRefused(CompressionError, ValueError):
    """A prompt that the model can't answer."""

    code = "prompt_too_long"


def stop_ids(bundle: Bundle) -> frozenset[int]:
    """Token ids that end an answer, from the config, the generation config and the tokenizer.

    Each of the three names one id, a list of ids, or none. An id that the model doesn't have (-1 in some
    configs) stops nothing.
    """
    found = set()
    for source in (bundle.module.config, getattr(bundle.module, "generation_config", None), bundle.tokenizer):
        value = getattr(source, "eos_token_id", None)
        found |= {i for i in (value if isinstance(value, (list, tuple)) else [value]) if type(i) is int}
    return frozenset(i for i in found if 0 <= i < bundle.geometry.vocabulary)


def stop_like(bundle: Bundle, other: Bundle) -> None:
    """Let a model end its answers where `other`, which has the same tokenizer, ends them."""
    bundle.tokenizer = other.tokenizer
    bundle.module.config.eos_token_id = other.module.config.eos_token_id
    bundle.module.generation_config = copy.deepcopy(other.module.generation_config)


def chat_ids(bundle: Bundle, messages: Sequence[dict]) -> Tensor:
    """Messages [{"role", "content"}] as a prompt [1, t].

    The chat template writes it; for a base model it is plain text. Raises PromptRefused if the template
    refuses the messages, if the prompt is empty, or if it leaves no room for an answer.
    """
    tokenizer = bundle.tokenizer
    if not tokenizer.chat_template:
        return _room(bundle, tokenizer("\n".join(m["content"] for m in messages))["input_ids"])
    return _room(bundle, tokenizer(templated(tokenizer, messages), add_special_tokens=False)["input_ids"])


def templated(tokenizer, messages: Sequence[dict]) -> str:
    """Messages as the tokenizer's chat template writes them, up to where the answer begins.

    Raises PromptRefused if the template refuses the messages.
    """
    try:
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        text.encode()  # a template may write half a character, which no tokenizer reads
    except Exception as error:  # a template is a program that came with the model: it may raise anything
        reason = f"{type(error).__name__}: {error}"[:300]
        raise PromptRefused(
            f"the model's chat template refuses this conversation ({reason}); begin a new one, or leave out "
            "the system message",
            code="chat_template",
            reason=reason,
        ) from None
    return text


def _room(bundle: Bundle, ids: list[int]) -> Tensor:
    """The prompt [1, t], if there is one and an answer has room behind it."""
    if not ids:
        raise PromptRefused("the prompt is empty; write something", code="empty_prompt")
    if len(ids) >= bundle.geometry.positions:
        raise PromptRefused(
            f"the prompt has {len(ids)} tokens; the model reads {bundle.geometry.positions}. Shorten it.",
            got=len(ids),
            allowed=bundle.geometry.positions,
        )
    return torch.tensor([ids])


def complete(bundle: Bundle, text: str, new_tokens: int = 64) -> str:
    """`text` continued by the model, greedily. Raises PromptRefused."""
    ids = _room(bundle, bundle.tokenizer(text)["input_ids"])
    out, stops = [], stop_ids(bundle)
    for token in generate(bundle, ids, new_tokens):
        if int(token) in stops:
            break
        out.append(int(token))
    return text + bundle.tokenizer.decode(out, clean_up_tokenization_spaces=False)

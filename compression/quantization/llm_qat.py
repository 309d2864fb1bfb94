"""LLM-QAT: train the weights while they are being rounded, on text that the model writes itself.

Rounding after training takes the weights as they are. Quantization-aware training rounds while the model can
still adapt. Every forward pass multiplies rounded weights with rounded inputs and reads keys and values back
from a rounded cache. Every backward pass treats the rounding as if it weren't there ("straight through"). So
the unrounded weights move until the rounded ones work well. For language models two things were missing, and
the model itself supplies both. Its training text is not available, so it writes its own. The next words alone
teach little in a short training, so the label is the original's whole distribution over next words. W-A-KV
names the bits of weights, of inputs (activations), and of keys and values.

Paper: Liu et al. 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", arXiv
2305.17888. The quantizer (section 2.2) is symmetric min-max with nothing cut off, because outliers carry what
these models know:
    a = max |x| / (2^(b-1) - 1),    x^ = a round(x / a)
with one a for each output channel of a weight and for each token of an input. a takes no gradient, and dL/dx
= dL/dx^. The loss is the cross-entropy of the rounded model under the original's probabilities. Here the
original's entropy is subtracted, which gives KL(original || rounded) and the same gradient. Text (section
2.1): the first token is any token of the vocabulary. Until the text has 3, 4 or 5 tokens, the likeliest token
follows. From there on tokens are drawn at random, with temperature 1. Without the likeliest tokens at the
beginning the texts are poor; without randomness they repeat themselves.

What is stored is exactly what was trained: integers, a 16-bit scale a row, the rule for the inputs, the
cache's bits. The seven matrices of a block are rounded and trained; tables, head, norms and biases stay as
they are. `train_tokens` 0 rounds only: the comparison.

Deviations. (1) Keys and values are rounded as our cache stores them: head by head and after the rotary
positions; the paper rounds all heads of a token together and before them. (2) The authors' code stops
gradients of everything whose size is 2 or more; here they pass everywhere, as in the paper. (3) Scales are
rounded to 16 bits in training too. (4) There are 128 texts of 128 tokens, each read once, instead of 100,000
of 2,048, and the rate is higher (1e-4 in place of 2e-5) for so few steps. (5) A text goes on after an end
token. (6) Eight more texts are kept aside, and the state that is best on them is kept, which may be the
rounded start. (7) With `symmetric` off each row has a zero point, and its grid runs from its least to its
largest weight. With few bits the training then starts much nearer to the original: at 4 bits the symmetric
grid has 15 values, and a skewed row uses only a part of them. Zero points take no gradient either.

Cost: beside the writing, a training token takes four forward passes. The training takes 20 bytes of memory
for each weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression import arch, engine, sample
from compression.base import BUDGET_MINUTES, Context, Cost, Edit, Note, Params, TrainingMethod, param
from compression.bundle import Bundle
from compression.divergences import forward_kl
from compression.grids import grid_bytes, minmax_asym
from compression.kv_cache import BITS
from compression.likelihood import final_states
from compression.packed.activations import ActivationRule
from compression.packed.grid import Grid, store_scale
from compression.packed.grouped_int import GroupedInt
from compression.row_losses import sum_over_rows
from compression.training import Budget, batches, mean_loss, train
from kernels.bits import row_bytes

SURE = (3, 4, 5)  # how many of a text's first tokens are the likeliest ones; the others are drawn
KEPT_ASIDE = 8  # texts that are held out to judge the training
TOKENS_PER_STEP = 256
WRITTEN_AT_ONCE = 32  # texts that are written at once


@dataclass(frozen=True)
class LlmQatParams(Params):
    """The bits of weights, activations and key-value cache, and the training."""

    bits: int = param(
        4,
        "Bits each weight takes.",
        lo=2,
        hi=8,
        step=1,
        unit="bits",
        main=True,
        ends=("tiny, worse", "large, same"),
    )
    activation_bits: int = param(
        8, "Bits of each matrix's inputs, token by token; 16: as they are.", choices=(4, 8, 16)
    )
    symmetric: bool = param(
        True, "No zero point: each row's ruler is centred on zero, as in the paper.", level="advanced"
    )
    kv_bits: int = param(8, "Bits of the keys and values in the cache; 16: as they are.", choices=BITS)
    train_tokens: int = param(
        16_384, "Training ends after this many tokens; 0: round only.", label="always", lo=0, hi=1_000_000_000
    )
    train_minutes: float = param(
        20.0, "Or after this many minutes, whichever comes first.", lo=0.1, hi=10_000.0
    )
    learning_rate: float = param(1e-4, "Highest step size of AdamW.", lo=1e-7, hi=1.0, level="advanced")
    own_texts: int = param(
        128,
        "Texts that the model writes to train on, at most; they are read again after that.",
        lo=1,
        hi=1_000_000,
        level="advanced",
    )
    own_tokens: int = param(128, "Tokens of each text.", lo=16, hi=8_192, level="advanced")


def row_grid(weight: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """(scale [out, 1] float16, integer zero point [out, 1] or None) of weight [out, in] float32.

    Symmetric: eq. 2 of the paper. Otherwise the range is from the least to the largest weight of each row.
    """
    if symmetric:
        return store_scale(weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)), None
    return minmax_asym(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), bits)


def row_codes(weight: Tensor, bits: int, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Codes [out, in] as whole floats, counted from the zero point."""
    codes = torch.round(weight / scale.float())
    return codes if zero is None else torch.maximum(torch.minimum(codes, 2**bits - 1 - zero), -zero)


def rounded(weight: Tensor, bits: int, symmetric: bool = True) -> Tensor:
    """The values [out, in] that weight [out, in] float32 is stored as."""
    scale, zero = row_grid(weight, bits, symmetric)
    return row_codes(weight, bits, scale, zero).mul_(scale.float())


def store(weight: Tensor, bits: int, rule: ActivationRule | None, symmetric: bool = True) -> GroupedInt:
    """weight [out, in] float32 as integers, with one scale a row, and one zero point unless symmetric."""
    scale, zero = row_grid(weight, bits, symmetric)
    codes = row_codes(weight, bits, scale, zero) + (2 ** (bits - 1) if zero is None else zero)
    packed = GroupedInt.encode(codes.to(torch.uint8), Grid.make(weight.shape, bits, -1, scale, zero))
    packed.activations = rule
    return packed


class _StraightThrough(torch.autograd.Function):
    """rule(x) rounded(W)^T with the gradients of a plain product at the rounded values.

    The rounded values are computed anew on the way back.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bits: int, symmetric: bool, rule: ActivationRule | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.grid, ctx.rule = (bits, symmetric), rule
        return F.linear(x if rule is None else rule(x), rounded(weight, *ctx.grid).to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        seen = x if ctx.rule is None else ctx.rule(x)
        towards_weight = grad.flatten(0, -2).T @ seen.flatten(0, -2)
        return (
            grad @ rounded(weight, *ctx.grid).to(grad.dtype),
            towards_weight.to(weight.dtype),
            None,
            None,
            None,
        )


class FakeQuant(nn.Module):
    """A linear in training: the original `base`, and float32 weights that are rounded at every use."""

    def __init__(self, base: nn.Linear, bits: int, rule: ActivationRule | None, symmetric: bool = True):
        super().__init__()
        self.base, self.bits, self.symmetric, self.rule = base, bits, symmetric, rule
        self.latent = nn.Parameter(base.weight.detach().float().clone())
        self.original = False  # True: multiply as the original linear does

    def forward(self, x: Tensor) -> Tensor:
        if self.original:
            return self.base(x)
        y = _StraightThrough.apply(x, self.latent, self.bits, self.symmetric, self.rule)
        return y if self.base.bias is None else y + self.base.bias

    def stored(self) -> GroupedInt:
        """The weights in the form that is saved."""
        return store(self.latent.detach(), self.bits, self.rule, self.symmetric)


@contextmanager
def fake_quantised(bundle: Bundle, params: LlmQatParams) -> Iterator[dict[str, FakeQuant]]:
    """Inside, the model computes as its stored form will, and its FakeQuants can be trained.

    Gives path -> FakeQuant.
    """
    rule, layers, cache_bits = rule_of(params), {}, bundle.cache_bits
    try:
        for path, _, _ in arch.linears(bundle.module):
            layers[path] = FakeQuant(bundle.module.get_submodule(path), params.bits, rule, params.symmetric)
            bundle.module.set_submodule(path, layers[path])
        bundle.cache_bits = params.kv_bits
        yield layers
    finally:
        bundle.cache_bits = cache_bits
        for path, layer in layers.items():
            bundle.module.set_submodule(path, layer.base)


@contextmanager
def as_original(bundle: Bundle, layers: dict[str, FakeQuant]) -> Iterator[None]:
    """Inside, the model computes as it did before it was rounded, so it is the teacher."""
    cache_bits, bundle.cache_bits = bundle.cache_bits, 16
    for layer in layers.values():
        layer.original = True
    try:
        yield
    finally:
        bundle.cache_bits = cache_bits
        for layer in layers.values():
            layer.original = False


def rule_of(params: LlmQatParams) -> ActivationRule | None:
    """How inputs are rounded; None if they aren't."""
    return ActivationRule(params.activation_bits) if params.activation_bits < 16 else None


def distillation_loss(bundle: Bundle, layers: dict[str, FakeQuant], ids: Tensor) -> Tensor:
    """Mean KL(original || rounded) for each token of texts [b, length]; differentiable."""
    ids, head = ids.to(bundle.device), arch.head(bundle.module)[1]
    with torch.no_grad(), as_original(bundle, layers):
        taught = final_states(bundle, ids).flatten(0, 1)
    hidden = final_states(bundle, ids).flatten(0, 1)

    def lost(logits, rows):
        return forward_kl(head(taught[rows]), logits)

    return sum_over_rows(head, bundle.geometry.vocabulary, hidden, lost) / len(hidden)


def beginnings(bundle: Bundle, count: int, seed: int) -> list[tuple[int, int]]:
    """(first token, how many tokens are the likeliest ones) for `count` texts.

    They are drawn without repetition from all tokens that are text and all such numbers; when all are used,
    it starts over.
    """
    vocabulary, tokenizer, out = bundle.geometry.vocabulary, bundle.tokenizer, []
    known, special = min(vocabulary, len(tokenizer)), set(tokenizer.all_special_ids)
    order = torch.randperm(known * len(SURE), generator=torch.Generator().manual_seed(seed))
    for number in itertools.cycle(order.tolist()):
        token, sure = number // len(SURE), SURE[number % len(SURE)]
        if token not in special and tokenizer.decode([token]).strip():
            out.append((token, sure))
        if len(out) == count:
            break
    return out


def write(bundle: Bundle, count: int, length: int, context: Context) -> Tensor:
    """`count` texts [count, length] of token ids that the model writes by itself. Raises Cancelled."""
    starts = beginnings(bundle, count, context.seed)
    texts = torch.empty(count, length, dtype=torch.long)
    done, together = 0, []
    for sure in SURE:
        rows = [i for i, (_, own) in enumerate(starts) if own == sure]
        together += [(sure, rows[i : i + WRITTEN_AT_ONCE]) for i in range(0, len(rows), WRITTEN_AT_ONCE)]
    for number, (sure, rows) in enumerate(together):
        ids = torch.tensor([[starts[i][0]] for i in rows])
        for until, temperature in ((sure, 0.0), (length, 1.0)):
            steps = []
            for token in sample.generate(
                bundle, ids, until - ids.shape[1], temperature, context.seed + 7_919 * number
            ):
                context.recorder.check("the model writes")
                steps.append(token)
                done += len(rows)
                context.recorder.progress("write", done, count * (length - 1))
            ids = torch.cat([ids, torch.stack(steps, 1)], 1)
        texts[rows] = ids
    engine.forget(bundle)  # the decoder that wrote the texts has the weights before training
    return texts


def compress(bundle: Bundle, context: Context, params: LlmQatParams) -> Edit:
    """Train the model's linears under their rounding and return them rounded."""
    if params.train_tokens == 0:
        weights = {
            path: bundle.module.get_submodule(path).weight.detach().float()
            for path, _, _ in arch.linears(bundle.module)
        }
        stored = {
            path: store(w, params.bits, rule_of(params), params.symmetric) for path, w in weights.items()
        }
        return Edit(stored, cache_bits=params.kv_bits)
    length = min(params.own_tokens, bundle.geometry.positions)
    count = min(params.own_texts, -(-params.train_tokens // length))
    texts = write(bundle, count + KEPT_ASIDE, length, context)
    aside = texts[count:]
    with fake_quantised(bundle, params) as layers:

        def loss(ids):
            return distillation_loss(bundle, layers, ids)

        course = train(
            [layer.latent for layer in layers.values()],
            loss,
            batches(texts[:count], context.seed, TOKENS_PER_STEP),
            lambda: mean_loss(aside, loss),
            Budget(params.train_tokens, params.train_minutes),
            rate=params.learning_rate,
            recorder=context.recorder,
        )
        results = {path: layer.stored() for path, layer in layers.items()}
    notes = course.notes("llm_qat")
    if course.best >= course.before:
        notes += (Note("training_no_gain", {"method": "llm_qat"}),)
    return Edit(results, notes=notes, series={"training": course.curve}, cache_bits=params.kv_bits)


def cost(shape: tuple[int, int], params: LlmQatParams, tokens: int) -> Cost:
    """Bytes of codes and row scales.

    Operations: writing the texts, the teacher's forward pass, the student's forward and backward pass. In
    memory: weights, gradients, two moments and the best state.
    """
    out, n = shape
    return Cost(
        bytes=out * row_bytes(n, params.bits) + grid_bytes(shape, params.bits, -1, params.symmetric),
        flops=(8.0 + 10.0 * params.train_tokens) * out * n,
        peak_bytes=(20 if params.train_tokens else 2) * out * n,
    )


METHOD = TrainingMethod(
    name="llm_qat",
    title="LLM-QAT",
    family="quantization",
    paper="https://arxiv.org/abs/2305.17888",
    params=LlmQatParams,
    compress=compress,
    cost=cost,
    stores="grouped_int",
    cache_bits=lambda params: params.kv_bits,
    text_tokens=lambda params: 0,
    compresses=True,
    tiny={"train_tokens": 128, "own_texts": 4, "own_tokens": 16, "learning_rate": 1e-3},
    # one pass over 96,000 texts of 2,048 tokens that the model writes itself
    full={
        "own_texts": 96_000,
        "own_tokens": 2_048,
        "learning_rate": 2e-5,
        "train_tokens": 196_608_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)

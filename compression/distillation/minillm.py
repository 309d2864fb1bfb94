"""MiniLLM: the student lowers the reverse KL of whole texts, so that it says nothing that its teacher
wouldn't.

A small student can't say everything its teacher says. Forward KL, the usual distillation, makes it cover
everything, and so it also says what the teacher never would. MiniLLM minimises KL(q || p) of whole sequences
(p the teacher, q the student). The expectation is over the student's own texts, so its gradient is a policy
gradient, with reward r_t = log p(y_t) - log q(y_t) for each token and R_t = r_t + ... + r_T:

    grad KL(q || p) = - E[y ~ q] sum_t (R_t - 1) grad log q(y_t)

This estimate is noisy. It also rewards tricks: texts that are short or repeat themselves have a low reverse
KL. So there are three repairs, each with its switch:

    single-step       the token's own part of R_t is an exact sum over the vocabulary: grad KL(q(.|y<t) ||
        p(.|y<t))
    teacher mixing    texts are drawn from q~ = alpha p + (1 - alpha) q, so that they stay readable, and each
        token has the weight w = q / q~
    length norm       R_{t+1} is divided by the number of tokens that it sums, so that no length is rewarded

A loss on plain text is added (`text_weight`), so that the student doesn't unlearn the language.

Gu et al. 2023, "MiniLLM: Knowledge Distillation of Large Language Models", arXiv 2306.08543. Its equation 3
splits R_t into the token's own part and the part of the tokens after it. The ratio of the student's
probability now to that of the student that drew the text, times w, is clipped to 1 +- 0.2 as in PPO. The
divisor of the length norm is the paper's T - t - 1, at least 1. No token follows the last one, so its return
is 0.

A student trained by reverse KL drops what it has no capacity for. So its perplexity is often higher than
after the usual distillation, although its teacher finds its texts likelier. Perplexity alone would rank the
two the wrong way round. So the student is judged by the reverse KL on its own samples, in nats a token, and
its perplexity is reported beside it. There are 200 samples after the warm-up and 200 at the end. The control
continues the same prompts, so it is compared sample by sample. The length and variety of the samples and both
divergences on text are reported too.

Deviations. Returns are whitened over the tokens of the batch that have a return. The authors' code does so
too, the paper doesn't; `whiten` switches it off. Rewards are not scaled or clipped. The single-step part
isn't weighted by w: given the text so far, w is 1 on average and would only add noise. The student is here
the teacher with fewer layers (or another model with the same tokenizer), and half of the budget warms it up
by supervised forward KL. The paper fine-tunes a student that was trained as a language model before. The
warm-up has a step size of its own: the paper's 5e-6 is for the phase on own samples, and would hardly move a
student that lost layers. Prompts are beginnings of the calibration text, where the paper has instructions.
The plain text is the calibration text too (one piece to four samples), where the paper has a text of its own.
The budget is minutes on a processor, where the paper trains for thousands of steps of 64 texts on graphics
cards. So the numbers are this run's, not the paper's.

Layers: the run's text goes through the model once, and the layers that turn its hidden states least go
(block influence, Men et al. 2024, arXiv 2403.03853). `layers` has two other choices: a run of neighbours, and
evenly spaced ones.

Control: the same student, warm-up, tokens and seed, by supervised forward KL on the text alone (method GKD,
objective "supervised").

What was measured: a student of one block on a small artificial language, in the tests. Its reverse KL on own
samples is lower than its control's at as many tokens (mean of two seeds, without the loss on plain text). On
a pretrained model it was not measured yet.

Cost: every text is drawn token by token by both models, then used `inner_epochs` times. A step costs a pass
of the teacher and three of the student. The student's weights, gradients and moments are held in 32 bits:
about 20 bytes for each weight.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import BUDGET_MINUTES, Context, Cost, Edit, StudentMethod, param
from compression.bundle import Bundle
from compression.distillation import gkd, students
from compression.distillation import white_box as shared
from compression.distillation.rollouts import Sequences, given
from compression.distillation.white_box import Lesson, Phase, WhiteBoxParams, distil, text_loss, token_mean
from compression.divergences import logs, reverse_kl

CLIP = 0.2
TEXT_SHARE = 4  # there is one piece of plain text for this many samples


@dataclass(frozen=True)
class MinillmParams(WhiteBoxParams):
    """The student, its budget, and the repairs of the policy gradient."""

    single_step: bool = param(
        True, "Take a token's own part of the reward as an exact sum over the vocabulary."
    )
    teacher_mix: float = param(
        0.2, "Share of the teacher in what the texts are drawn from; 0: the student alone.", lo=0.0, hi=1.0
    )
    length_norm: bool = param(True, "Divide what is still to come by its number of tokens.")
    text_weight: float = param(0.3, "Weight of the loss on plain text beside it; 0: none.", lo=0.0, hi=10.0)
    whiten: bool = param(True, "Bring the returns of a batch to mean 0 and spread 1.", level="advanced")
    inner_epochs: int = param(
        2, "Steps that each batch of texts is used for.", lo=1, hi=8, step=1, level="advanced"
    )


def advantages(
    rewards: Tensor, mask: Tensor, *, single_step: bool, length_norm: bool, whiten: bool
) -> Tensor:
    """The factor of grad log q(y_t), [b, T], from rewards r_t [b, T] where `mask` [b, T] holds; 0 elsewhere.

    single_step: R_{t+1}, the return after the token (the token's own part is computed exactly); else R_t - 1.
    length_norm: R divided by its number of terms less one, at least 1. whiten: over the tokens that have a
    return.
    """
    rewards = torch.where(mask, rewards, 0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    terms = mask.flip(1).cumsum(1).flip(1)
    if single_step:
        to_go, terms = to_go - rewards, terms - mask.long()
    has = terms > 0
    if length_norm:
        to_go = to_go / (terms - 1).clamp(min=1)
    value = to_go if single_step else to_go - 1
    if whiten and bool(has.any()):
        value = (value - value[has].mean()) / (value[has].std(correction=0) + 1e-8)
    return torch.where(has, value, 0)


def token_loss(
    log_p: Tensor,
    log_q: Tensor,
    targets: Tensor,
    advantage: Tensor,
    old: Tensor,
    weights: Tensor,
    single_step: bool,
) -> Tensor:
    """The loss of each token [n] whose gradient is that of the sequence's reverse KL.

    log_p, log_q: [n, vocabulary]. targets [n]: the drawn tokens. advantage, old (log q when the token was
    drawn) and weights (q / q~ at that time): [n].
    """
    ratio = (log_q.gather(1, targets[:, None])[:, 0] - old).exp() * weights
    long = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
    return long + reverse_kl(log_p, log_q) if single_step else long


def phase(lesson: Lesson[MinillmParams]) -> Phase:
    """Texts that are drawn from student and teacher, and the loss on them."""
    params, student, teacher = lesson.params, lesson.student, lesson.teacher
    generator = lesson.recorder.generator(3)

    def loss(batch: Sequences) -> Tensor:
        assert batch.log_p is not None and batch.log_q is not None and batch.weights is not None
        mask, targets = batch.mask, batch.targets
        advantage = advantages(
            batch.log_p - batch.log_q,
            mask,
            single_step=params.single_step,
            length_norm=params.length_norm,
            whiten=params.whiten,
        )[mask]
        old, weights = batch.log_q[mask], batch.weights[mask]
        out = token_mean(
            student,
            teacher,
            batch,
            lambda p, q, rows: token_loss(
                p, logs(q), targets[rows], advantage[rows], old[rows], weights[rows], params.single_step
            ),
        )
        return (
            out if batch.text is None else out + params.text_weight * text_loss(student, given(batch.text, 1))
        )

    def supply():
        for ids in lesson.texts():
            drawn = lesson.sample(ids[:, : params.prompt_tokens], generator, params.teacher_mix, teacher)
            beside = ids[: max(1, len(ids) // TEXT_SHARE)] if params.text_weight else None
            for _ in range(params.inner_epochs):
                yield dataclasses.replace(drawn, text=beside)

    def judge() -> float:
        return float(token_mean(student, teacher, lesson.own(), lambda p, q, _: reverse_kl(p, q)))

    return Phase(loss, supply(), judge)


def compress(bundle: Bundle, context: Context, params: MinillmParams) -> Edit:
    """Train the student `bundle` on continuations of context.windows [n, window] beside context.teacher."""
    return distil("minillm", bundle, context, params, phase)


def cost(shape: tuple[int, int], params: MinillmParams, tokens: int, role: str) -> Cost:
    """Bytes of the student; the passes of both models. Plain text takes its part of the tokens."""
    own = (TEXT_SHARE / (TEXT_SHARE + 1) if params.text_weight else 1.0) / params.inner_epochs
    return shared.cost(shape, params, tokens, samples=own, teacher_steps=True, role=role)


def control(params: MinillmParams) -> tuple[str, dict] | None:
    """The usual distillation of the same student on the same number of tokens."""
    same = {f.name: getattr(params, f.name) for f in dataclasses.fields(WhiteBoxParams)}
    return ("gkd", same | {"objective": "supervised", "jsd_beta": 0.0}) if params.train_tokens else None


METHOD = StudentMethod(
    name="minillm",
    title="MiniLLM",
    family="distillation",
    paper="https://arxiv.org/abs/2306.08543",
    params=MinillmParams,
    compress=compress,
    cost=cost,
    trains_table=True,
    student=students.make,
    measures=students.measures,
    teacher="model",
    fits=shared.check_windows,
    reshaped=students.reshaped,
    control=control,
    compresses=True,
    identity={"kept": 1.0, "train_tokens": 0},
    tiny=gkd.METHOD.tiny,
    # 5,000 steps of 16 texts of 512 tokens, each used four times; the plain text's loss has the weight 1
    full={
        "prompt_tokens": 256,
        "response_tokens": 256,
        "learning_rate": 5e-6,
        "inner_epochs": 4,
        "text_weight": 1.0,
        "warm_up": 0.2,
        "warm_up_rate": 2e-4,
        "train_tokens": 40_960_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)

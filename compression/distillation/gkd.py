"""GKD: the student learns on its own mistakes, with the teacher's whole next-token distribution as the label.

Supervised distillation trains on texts that somebody else wrote. When the student then writes by itself, it
meets beginnings that it never trained on. Generalised knowledge distillation lets the student write, asks the
teacher for its distribution over the next token after each token of that text, and lowers the divergence
between the two models. One loss covers fixed text, own text, and every divergence between forward and reverse
KL:

    L = (1 - lambda) E[text] D(p || q) + lambda E[y ~ q] D(p || q),   averaged over tokens

There is no gradient through the sampling. `on_policy` is lambda: the chance that a batch is the student's own
continuations of text rather than the text. `jsd_beta` chooses D. At 0 it is the forward KL (cover all that
the teacher says), at 1 the reverse KL (say nothing that the teacher wouldn't), and in between the generalised
Jensen-Shannon divergence.

Agarwal et al. 2023, "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", arXiv
2306.13649. p is the teacher, which is the model before this step, and q the student. Sampling is at
temperature 1 without filters, up to the first end token, which is scored too.

A student trained by reverse KL drops what it has no capacity for. So its perplexity is often higher than
after forward KL, although its teacher finds its texts likelier. Perplexity alone would rank the two the wrong
way round. So the student is judged by the reverse KL on its own samples, in nats a token, and its perplexity
is reported beside it. There are 200 samples after the warm-up and 200 at the end. The control continues the
same prompts, so it is compared sample by sample. Both divergences on text are reported too.

Deviations. The divergence is divided by beta (1 - beta), because the paper's own goes to zero at both ends
and the step size would have to follow. Lambda decides about a whole batch. The student is here the teacher
with fewer layers (or another model with the same tokenizer), and half of the budget warms it up by supervised
forward KL. The paper begins with a student that was fine-tuned before. The warm-up has a step size of its
own, because a student that lost layers needs larger steps than one that knows the language. Prompts are
beginnings of the calibration text, not instructions. The budget is minutes on a processor, where the paper
trains for tens of thousands of steps. So the numbers are this run's, not the paper's. By default lambda and
beta are 0.5, as in TRL's trainer: half of the batches are own samples, and the divergence lies in the middle.
With both at 1, so short a training makes the student worse on plain text.

Layers: the run's text goes through the model once, and the layers that turn its hidden states least go
(block influence, Men et al. 2024, arXiv 2403.03853). `layers` has two other choices: a run of neighbours, and
evenly spaced ones.

Controls: the same student, warm-up, tokens and seed with `objective` "supervised" (forward KL on the text
alone) or "text" (plain fine-tuning, no teacher at all).

What was measured: SmolLM2-135M-Instruct with 20 of its 30 layers, evenly spaced, 49,152 tokens, one seed.
From one warmed-up student the reverse KL on own samples fell from 1.31 nats a token to 0.96 by GKD and to
1.25 by supervised training; the perplexity was then 185 and 147 (the original's is 29). Not measured yet:
students whose layers are chosen by influence, and more than one seed.

Cost: a token of text costs a pass of the teacher and three of the student. Tokens that the student writes
must be drawn first, one at a time. The student's weights, gradients and moments are held in 32 bits: about 20
bytes for each weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import BUDGET_MINUTES, Context, Cost, Edit, StudentMethod, param
from compression.bundle import Bundle
from compression.distillation import students
from compression.distillation import white_box as shared
from compression.distillation.rollouts import Sequences, given
from compression.distillation.white_box import Lesson, Phase, WhiteBoxParams, distil, text_loss, token_mean
from compression.divergences import between

OBJECTIVES = ("on-policy", "supervised", "text")


@dataclass(frozen=True)
class GkdParams(WhiteBoxParams):
    """The student, its budget, the texts that it learns on, and the divergence."""

    objective: str = param(
        "on-policy",
        "What the student learns on: its own samples, the text beside its teacher, or the text "
        "alone. The last two are controls.",
        choices=OBJECTIVES,
        label="choice",
    )
    on_policy: float = param(
        0.5,
        "Lambda: chance that a batch is the student's own samples.",
        lo=0.0,
        hi=1.0,
        when={"objective": "on-policy"},
    )
    jsd_beta: float = param(
        0.5, "The divergence: 0 forward KL, 1 reverse KL, between them Jensen-Shannon.", lo=0.0, hi=1.0
    )

    @property
    def share(self) -> float:
        """Lambda; 0 for the controls."""
        return self.on_policy if self.objective == "on-policy" else 0.0


def phase(lesson: Lesson[GkdParams]) -> Phase:
    """Batches of text or of the student's own samples, and the divergence on them."""
    params, prompt = lesson.params, lesson.params.prompt_tokens
    chance = lesson.recorder.generator(2)
    generator = lesson.recorder.generator(3)

    def loss(batch: Sequences) -> Tensor:
        if params.objective == "text":
            return text_loss(lesson.student, batch)
        return token_mean(
            lesson.student, lesson.teacher, batch, lambda p, q, _: between(p, q, params.jsd_beta)
        )

    def supply():
        for ids in lesson.texts():
            own = params.share == 1 or (
                params.share > 0 and float(torch.rand((), generator=chance)) < params.share
            )
            yield lesson.sample(ids[:, :prompt], generator) if own else given(ids, prompt)

    def judge() -> float:
        text = float(loss(lesson.aside)) if params.share < 1 else 0.0
        own = float(loss(lesson.own())) if params.share > 0 else 0.0
        return (1 - params.share) * text + params.share * own

    return Phase(loss, supply(), judge)


def compress(bundle: Bundle, context: Context, params: GkdParams) -> Edit:
    """Train the student `bundle` on context.windows [n, window] beside context.teacher."""
    return distil("gkd", bundle, context, params, phase, plain=params.objective == "text")


def cost(shape: tuple[int, int], params: GkdParams, tokens: int, role: str) -> Cost:
    """Bytes of the student; the passes of both models."""
    return shared.cost(shape, params, tokens, samples=params.share, teacher_steps=False, role=role)


def control(params: GkdParams) -> tuple[str, dict] | None:
    """GKD's control is the usual distillation. The control of that is plain fine-tuning, which has none."""
    if params.train_tokens == 0 or params.objective == "text":
        return None
    if params.objective == "on-policy" and params.share > 0:
        return "gkd", params.json() | {"objective": "supervised", "jsd_beta": 0.0}
    return "gkd", params.json() | {"objective": "text"}


METHOD = StudentMethod(
    name="gkd",
    title="GKD",
    family="distillation",
    paper="https://arxiv.org/abs/2306.13649",
    params=GkdParams,
    compress=compress,
    cost=cost,
    shown_first=True,
    trains_table=True,
    student=students.make,
    measures=students.measures,
    teacher="model",
    fits=shared.check_windows,
    reshaped=students.reshaped,
    control=control,
    compresses=True,
    identity={"kept": 1.0, "train_tokens": 0},
    tiny={
        "kept": 0.5,
        "train_tokens": 512,
        "prompt_tokens": 4,
        "response_tokens": 8,
        "learning_rate": 0.001,
        "warm_up_rate": 0.001,
    },
    # the paper's 40,000 steps, every batch the student's own; the paper's step size is for Adafactor, so this
    # one is ours
    full={
        "prompt_tokens": 256,
        "response_tokens": 128,
        "on_policy": 1.0,
        "learning_rate": 1e-5,
        "warm_up": 0.2,
        "warm_up_rate": 2e-4,
        "train_tokens": 40_960_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)

"""Lessons whose label is the teacher's whole next-token distribution, beside the right token.

A teacher that is loaded here shows more than its words: for every token that is learnt, how likely it finds
each token of the vocabulary in that place. One share weighs the two losses of a place:

    a CE(right token) + (1 - a) KL(p || q),   p the teacher's distribution, q the student's

A step's places and their weights are those of `black_box.Step`, so the same places count with and without a
teacher. Both models must have the same tokenizer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compression import arch
from compression.bundle import Bundle
from compression.distillation.black_box import Step
from compression.divergences import forward_kl
from compression.likelihood import final_states
from compression.row_losses import sum_over_rows


def loss(student: Bundle, teacher: Bundle, batch: Step, gold: float) -> Tensor:
    """Sum over places of weight times (gold CE + (1 - gold) KL(p || q)), nats; differentiable in the student.

    gold: the share of the right token, 0 to 1. If the two heads have different widths (padding of one
    vocabulary), both are cut to the smaller width.
    """
    width = min(student.geometry.vocabulary, teacher.geometry.vocabulary)
    head, out = arch.head(student.module)[1], torch.zeros((), device=student.device)
    for piece in batch.parts:
        ids, weights = piece.ids.to(student.device), piece.weights.to(student.device)[:, 1:]
        counted = weights > 0
        targets, own = ids[:, 1:][counted], weights[counted]
        with torch.no_grad():
            taught = final_states(teacher, ids)[:, :-1][counted]

        def lost(
            q: Tensor, rows: slice, taught: Tensor = taught, targets: Tensor = targets, own: Tensor = own
        ) -> Tensor:
            p = arch.head(teacher.module)[1](taught[rows])[:, :width]
            right = F.cross_entropy(q[:, :width].float(), targets[rows], reduction="none")
            return own[rows] * (gold * right + (1 - gold) * forward_kl(p, q[:, :width]))

        states = final_states(student, ids)[:, :-1][counted]
        out = out + sum_over_rows(head, student.geometry.vocabulary, states, lost)
    return out

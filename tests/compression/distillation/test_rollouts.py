"""Samples of a student: what they are drawn from, where they end, and their weights."""

from __future__ import annotations

import pytest
import torch

from compression.bundle import Bundle
from compression.distillation import rollouts, students
from compression.distillation.rollouts import Sequences, distinct, draw
from compression.divergences import logs
from tests import chain_language as language
from tests import tiny
from tests.tiny import seeded

NO_END = frozenset()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_student_that_reads_its_cache_expects_what_it_expects_of_the_whole(family):
    teacher = tiny.bundle(family)
    student = students.keep_blocks(teacher, [0])
    assert student.module.config.num_hidden_layers == 1
    drawn = draw(student, teacher, tiny.ids(3, 6), 10, 0.3, NO_END, seeded())
    for bundle, kept in ((student, drawn.log_q), (teacher, drawn.log_p)):
        whole = logs(tiny.logits(bundle, drawn.ids))[:, 5:-1]
        at = whole.gather(2, drawn.ids[:, 6:, None])[..., 0]
        assert torch.allclose(at, kept, atol=1e-4)
    w = drawn.log_q.exp() / (0.3 * drawn.log_p.exp() + 0.7 * drawn.log_q.exp())
    assert torch.allclose(drawn.weights, w, rtol=1e-4)


class Fixed(torch.nn.Module):
    """A model that expects the same tokens everywhere."""

    def __init__(self, chances):
        super().__init__()
        self.chances = torch.tensor(chances)


def fixed(monkeypatch, **chances):
    """Bundles by name whose every next token has those chances."""
    found = {n: Bundle(Fixed(c), None, language.model(16, 1).geometry, n) for n, c in chances.items()}
    for bundle in found.values():
        bundle.geometry = type(bundle.geometry)(
            "llama", 1, len(bundle.module.chances), 99, True, bundle.geometry.layers
        )
        bundle.module.register_parameter("none", torch.nn.Parameter(torch.zeros(1)))
    monkeypatch.setattr(
        rollouts, "transformers_stepper", lambda b: lambda ids: b.module.chances.log().expand(len(ids), -1)
    )
    return found.values()


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_samples_come_from_the_mixture_and_weights_correct_it(monkeypatch, alpha):
    q, p = [0.7, 0.2, 0.1, 0.0], [0.1, 0.1, 0.1, 0.7]
    student, teacher = fixed(monkeypatch, q=q, p=p)
    drawn = draw(student, teacher, torch.zeros(400, 1, dtype=torch.long), 25, alpha, NO_END, seeded())
    seen = torch.bincount(drawn.ids[:, 1:].flatten(), minlength=4) / 10_000
    mixed = alpha * torch.tensor(p) + (1 - alpha) * torch.tensor(q)
    assert torch.allclose(seen, mixed, atol=0.02)
    if alpha == 0:
        assert (drawn.weights == 1).all()
    if alpha < 1:
        assert drawn.weights.max() <= 1 / (1 - alpha) + 1e-6
        for symbol, chance in enumerate(q):  # E[w 1{y}] under the mixture is the student's own chance
            hit = drawn.ids[:, 1:] == symbol
            assert float((drawn.weights * hit).mean()) == pytest.approx(chance, abs=0.02)


def test_a_sample_ends_at_its_first_end_token_which_counts(monkeypatch):
    student, teacher = fixed(monkeypatch, q=[0.5, 0.3, 0.2], p=[0.5, 0.3, 0.2])
    drawn = draw(student, teacher, torch.ones(64, 3, dtype=torch.long), 12, 0.0, frozenset({2}), seeded())
    for row, length in zip(drawn.ids[:, 3:].tolist(), drawn.lengths.tolist(), strict=True):
        end = row.index(2) + 1 if 2 in row else len(row)
        assert length == end
    assert drawn.scored.sum() == drawn.lengths.sum() == len(drawn.targets) == drawn.mask.sum()
    ended = drawn.mask & (drawn.ids[:, 3:] == 2)
    assert ended.sum(1).max() == 1 and ended.any(), (
        "the end token carries loss, even where padding has the same id"
    )
    assert drawn.numel() == 64 * 3 + int(drawn.lengths.sum())


def test_distinct_counts_sequences_of_four():
    ids = torch.tensor([[9, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 7]])
    assert distinct(Sequences(ids, 1, torch.tensor([5, 4]))) == 2 / 3

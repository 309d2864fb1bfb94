"""Reads the texts of a run, and checks whether they are long enough for it.

It needs only the spec, the model's config and the texts. So a run that can't work fails before its weights
are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compression import texts
from compression.base import ModelMethod, Note, StudentMethod, TrainingMethod
from compression.bundle import Geometry
from compression.texts import Role, Text, Windows
from evaluation.spec import RunSpec


@dataclass(frozen=True)
class Reading:
    """The windows of each role, and what their reader must know about them."""

    evaluation: Windows
    calibration: Tensor | None  # ids [n, window] int64
    training: Tensor | None
    notes: tuple[Note, ...]
    template: str = ""  # hash of the text that the model's chat template made of a dialogue


def read(
    spec: RunSpec,
    tokenizer,
    geometry: Geometry,
    positions: int,
    text: Text,
    calibration: Text | None,
    timings: bool,
) -> Reading:
    """Cut the texts for a model of these sizes; its recipe reads at most `positions` tokens at a time.

    Raises TextUnavailable, BadParam or CalibrationError if the text, or a window of it, is too short for the
    recipe.
    """
    from evaluation.measuring import latency, measure

    window = min(spec.window, positions)
    notes = [Note("window_shortened", {"asked": spec.window, "used": window})] if window < spec.window else []
    cut = texts.windows(text, tokenizer, spec.protocol, window, spec.tokens, "evaluation")
    found: dict[Role, Windows] = {"evaluation": cut}
    asked: tuple[tuple[Role, int], ...] = (
        ("calibration", spec.calibration_tokens),
        ("training", spec.training_tokens),
    )
    for role, tokens in asked:
        if calibration and tokens:
            found[role] = texts.windows(
                calibration, tokenizer, spec.protocol, window, tokens, role, spec.seed
            )
    notes += [note for windows in found.values() for note in windows.notes]
    notes += measure.left_out(positions, cut)
    if timings:
        notes += latency.left_out(positions, cut.ids.numel())
    calibrates, trains = (found[role].ids if role in found else None for role in ("calibration", "training"))
    _check(spec, geometry, calibrates, trains)
    written = (
        [found[role].text_hash for role in found if role != "evaluation"]
        if isinstance(calibration, texts.Dialogue)
        else []
    )
    return Reading(
        cut,
        calibrates,
        trains,
        tuple({repr(note.json()): note for note in notes}.values()),
        "".join(dict.fromkeys(written)),
    )


def _check(spec: RunSpec, geometry: Geometry, windows: Tensor | None, training: Tensor | None) -> None:
    """Raises early what a method would raise after the model is loaded and the original measured."""
    from compression.training import hold_out

    for method, params in spec.methods:
        if not (isinstance(method, StudentMethod) and params.student):
            geometry = method.geometry_after(geometry, params)
        if not isinstance(method, ModelMethod):
            continue
        read = windows if not isinstance(method, TrainingMethod) or training is None else training
        if isinstance(method, TrainingMethod) and method.reads_tokens(params) and read is not None:
            hold_out(read)
        if method.fits and read is not None:
            method.fits(params, read)

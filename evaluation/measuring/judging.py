"""Compares runs by the quantities that their methods optimise: a figure for each run, and a verdict.

A run carries a `Judged` for each measure (compression/judged.py). The mean after the training is a figure of
the run, with its standard error over questions. For the verdict a run is compared, question by question, with
the control that was trained in the same run, or with a control that is a run of its own and got the same
questions. Pure, and without torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from compression.judged import MEASURES, Judged
from evaluation.spec import Result
from evaluation.verdict import Difference, paired


def figures(judged: Iterable[Judged]) -> dict[str, float]:
    """For each measure its mean after the training, and the standard error as `<measure>_stderr`.

    There is no error if all questions belong together.
    """
    found = {}
    for one in judged:
        spread = against(one, 0.0).stderr
        found[one.measure] = statistics.fmean(one.after)
        found |= {} if math.isnan(spread) else {f"{one.measure}_stderr": spread}
    return found


def of(result: Result) -> dict[str, Judged]:
    """measure -> the run's values. {} for a run whose method has no measure."""
    return {one.measure: one for one in map(Judged.parse, result.judged)}


def against(one: Judged, level: float) -> Difference:
    """The values after the training beside a fixed level, for example the chance level."""
    return _paired(one, [level] * len(one.after))


def within(measure: str, ours: Sequence[Result]) -> Difference | None:
    """A recipe, measured with one seed or several, beside the controls that were trained in the same runs.

    None if a run has none.
    """
    found = [of(result).get(measure) for result in ours]
    return _compared([(one, one.control) for one in found if one and one.control], len(ours))


def beside(measure: str, ours: Sequence[Result], control: Sequence[Result]) -> Difference | None:
    """A recipe beside its control, which is a recipe of its own, each measured with the same seeds.

    None if the two can't be paired: a side has no values, was asked something else, or has other seeds.
    """
    if len(ours) != len(control):
        return None
    pairs = [(of(a).get(measure), _of_control(b, measure)) for a, b in zip(ours, control, strict=True)]
    return _compared([(a, b.after) for a, b in pairs if a and b and a.asked == b.asked], len(ours))


def _of_control(result: Result, measure: str) -> Judged | None:
    found = of(result)
    return found.get(measure) or found.get(MEASURES[measure].instead)


def _compared(pairs: Sequence[tuple[Judged, Sequence[float]]], seeds: int) -> Difference | None:
    """One seed: question by question. Several: seed by seed, by the means. None if a seed is missing."""
    if len(pairs) != seeds or not pairs:
        return None
    if seeds == 1:
        return _paired(*pairs[0])
    ours, control = (
        [statistics.fmean(values) for values in side]
        for side in zip(*((one.after, other) for one, other in pairs), strict=True)
    )
    return paired(ours, control, higher_is_better=_higher(pairs[0][0]))


def _paired(one: Judged, other: Sequence[float]) -> Difference:
    return paired(one.after, other, one.clusters or None, higher_is_better=_higher(one))


def _higher(one: Judged) -> bool:
    return MEASURES[one.measure].better == "high"

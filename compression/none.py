"""The original model, unchanged.

Every other point is compared with this one. It is measured by the same program, in the same protocol, with
the same window, tokens and arithmetic as the compressed models, so that a difference is the method's and not
the ruler's.

Its weights count 16 bits each, which is how publishers ship them; where the program computes in 32 bits (on a
processor without fast 16-bit arithmetic) the memory in use is larger than the file, and both figures are
shown.

A model that its publisher has already rounded (the offline model comes as Q4_1, 4 bits in groups of 32) says
so on its card: what is called "the original" is then that rounded model.

Cost: none beyond measuring it once; every later run in the same protocol reuses the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from compression.base import Cost, Edit, ModelMethod, Params


@dataclass(frozen=True)
class NoneParams(Params):
    """No knobs."""


def keep(bundle, context, params: NoneParams) -> Edit:
    """Change nothing."""
    return Edit()


METHOD = ModelMethod(
    name="none",
    title="Original",
    family="original",
    paper="",
    params=NoneParams,
    compress=keep,
    cost=lambda shape, params, tokens: Cost(bytes=2 * shape[0] * shape[1], flops=0.0),
    identity={},
    essay=__doc__,
)

"""The original model, unchanged.

Every compressed model is compared with this one. It is measured by the same program, in the same protocol,
with the same window, tokens and arithmetic as the compressed models. So a difference comes from the method
and not from the measurement.

Its weights count 16 bits each, because publishers ship them so. If the program computes in 32 bits (on a
processor without fast 16-bit arithmetic), the memory in use is larger than the file, and both figures are
shown.

If the publisher has already rounded a model, its card says so, and "the original" means this rounded model.
For example, the offline model comes as Q4_1: 4 bits in groups of 32.

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

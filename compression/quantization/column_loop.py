"""The loop at the heart of GPTQ's descendants: store one input after another, let those to come make up for
each error.

With U the upper Cholesky factor of the inverse of the damped H = X^T X, storing input c as w' leaves the
scaled error e = (w_c - w') / U[c, c], and the inputs after it change by -e U[c, c+1:] (Frantar et al. 2022,
2210.17323, equations 2 and 3). What w' is, a method decides: a mark of a grid, a 16-bit value, either.
Whatever it is, the sum of all e^2 equals tr(D H D^T) for the final difference D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def compensate(live: Tensor, factor: Tensor, starts: Sequence[int], choose: Callable[[int], Tensor]) -> float:
    """Replace the inputs of live [in, out] in turn by what choose(c) [out] stores for them; returns the sum
    of e^2.

    factor float32 upper [in, in]. starts: where each block of inputs begins; updates of later blocks wait
    until a block is through. Within a block, `live` holds at c's turn what c and all inputs after it should
    be by then.
    """
    n, total = len(live), 0.0
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        errors = torch.empty_like(live[start:stop])
        for c in range(start, stop):
            value = choose(c)
            error = (live[c] - value).div_(factor[c, c])
            live[c] = value
            errors[c - start] = error
            if c + 1 < stop:
                live[c + 1 : stop].addr_(factor[c, c + 1 : stop], error, alpha=-1)
        if stop < n:
            live[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        total += float(errors.double().square().sum())
    return total

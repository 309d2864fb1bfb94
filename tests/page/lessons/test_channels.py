"""The factors in the browser are those of compression/quantization/smoothquant.py."""

from __future__ import annotations

import pytest
import torch

from compression.quantization.smoothquant import smoothing

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 0.8, 1])
def test_smoothing(lesson, alpha):
    drawn = torch.Generator().manual_seed(0)
    loud, weight = torch.rand(40, generator=drawn) * 10, torch.randn(6, 40, generator=drawn)
    loud[3], weight[:, 5] = 0, 0  # a silent channel, and one without weights
    expected = smoothing(loud, [weight], alpha)
    got = lesson("channels", "smoothing", loud.tolist(), weight.abs().amax(0).tolist(), alpha)
    torch.testing.assert_close(torch.tensor(got), expected, rtol=1e-5, atol=1e-7)


def test_half_and_half_makes_both_sides_equally_loud(lesson):
    """Xiao et al. 2022, section 4: with alpha 0.5 a channel's two maxima are equal."""
    loud, weights = [12.0, 0.5, 3.0], [0.2, 1.5, 0.9]
    s = lesson("channels", "smoothing", loud, weights, 0.5)
    for x, w, f in zip(loud, weights, s, strict=True):
        assert x / f == pytest.approx(w * f)

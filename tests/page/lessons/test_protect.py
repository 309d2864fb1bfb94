"""What a choice of columns removes, in the browser, is the change of the outputs' error."""

from __future__ import annotations

import pytest
import torch

from evaluation.learning.lessons import protect

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("kept", [[], [2], [0, 3, 5], [5, 4, 3, 2, 1, 0]])
def test_removed(lesson, kept):
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=drawn, dtype=torch.float64) @ torch.randn(6, 6, generator=drawn).double()
    difference = torch.randn(7, 6, generator=drawn, dtype=torch.float64)
    whole, left = difference @ x.T, difference.index_fill(1, torch.tensor(kept, dtype=torch.long), 0) @ x.T
    expected = 100 * (1 - float(left.square().sum() / whole.square().sum()))

    products = (x.T @ x) * (difference.T @ difference)
    products = 100 * products / products.sum()
    assert protect.removed(products, kept) == pytest.approx(expected, abs=1e-9)
    triangle = [float(products[i, j]) for i in range(6) for j in range(i + 1)]
    full = lesson("protect", "square", triangle, 6)
    torch.testing.assert_close(torch.tensor(full, dtype=torch.float64), products)
    assert lesson("protect", "removed", full, kept) == pytest.approx(expected, abs=1e-9)

"""What several of these files read."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an evaluation and a calibration text."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "test.txt").write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(200)))
    (folder / "valid.txt").write_text("".join(f"other words {i}, {i**3} of them\n" for i in range(200)))
    return folder

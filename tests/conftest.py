"""Every test session works in a home of its own, so that nothing of the user's is read or written."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

_home = tempfile.mkdtemp(prefix="compression-explorer-tests-")
os.environ["COMPRESSION_EXPLORER_HOME"] = _home
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the hub says so itself


@pytest.fixture(scope="session")
def offline_model():
    """The name of the real model that comes by pip; converted once a session."""
    from compression import models
    from compression.catalogue import OFFLINE_MODEL

    models.prepare(OFFLINE_MODEL)
    return OFFLINE_MODEL


def pytest_sessionfinish():
    shutil.rmtree(_home, ignore_errors=True)

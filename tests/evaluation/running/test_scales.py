"""Hub models on a public page: weighed before they are fetched, within a time, whatever other visitors
ask."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from compression.base import ModelUnavailable
from compression.catalogue import CATALOGUE, OFFLINE_MODEL
from evaluation.running import scales
from evaluation.running.estimate import estimate
from evaluation.running.scales import Scales
from evaluation.spec import RunSpec

GEOMETRY = CATALOGUE[OFFLINE_MODEL].geometry


def test_what_is_weighed_can_be_estimated_and_what_is_too_large_is_refused():
    asked = []
    sizes = {"owner/small": 10**9, "owner/large": 10**11}
    it = Scales(
        lambda name: asked.append(name) or SimpleNamespace(geometry=GEOMETRY, bytes=sizes[name], here=False)
    )
    spec = RunSpec("owner/small", (("rtn", {"bits": 4}),))
    with pytest.raises(ModelUnavailable):
        estimate(spec)
    for _ in range(2):
        it.check("owner/small")
    assert asked == ["owner/small"] and estimate(spec).file_bytes > 0
    with pytest.raises(ModelUnavailable) as refused:
        it.check("owner/large")
    assert refused.value.code == "too_large_here" and refused.value.facts["need_bytes"] == 10**11


def test_a_silent_hub_holds_up_nobody(monkeypatch):
    silent = threading.Event()
    monkeypatch.setattr(scales, "WAIT_SECONDS", 0.05)
    it = Scales(lambda name: silent.wait(120) and SimpleNamespace(geometry=GEOMETRY, bytes=1, here=False))
    for n in range(scales.IN_LINE + 3):
        with pytest.raises(ModelUnavailable) as refused:
            it.check(f"owner/{n}")
        assert refused.value.code == "hub_slow"
    assert len(it._asked) == scales.IN_LINE
    silent.set()
    monkeypatch.setattr(scales, "WAIT_SECONDS", 60)
    it.check("owner/0")


def test_a_refusal_is_told_again():
    def no(name):
        raise ModelUnavailable("gone", code="hub_refused", name=name)

    it = Scales(no)
    for _ in range(2):
        with pytest.raises(ModelUnavailable) as refused:
            it.check("owner/none")
        assert refused.value.code == "hub_refused"

"""Which stored runs the first screen opens with.

They are declared in evaluation/benches/points.py; assets/points.json has the names of those that are stored.
"""

from __future__ import annotations

import functools
import json

from evaluation import ROOT

FILE = ROOT / "assets" / "points.json"


@functools.cache
def names() -> frozenset[str]:
    """Ids of the stored runs that are drawn without being asked for."""
    return frozenset(json.loads(FILE.read_text("utf-8")))

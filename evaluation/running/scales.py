"""Asks the hub how large a model is, for a public page, before a byte of its weights is fetched.

    scales = Scales()
    scales.check("owner/name")      # a few seconds at most

`check` raises ModelUnavailable if the model is too large, or if its size can't be known now. Other visitors
aren't held up meanwhile.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError

from compression import models
from compression.base import ModelUnavailable
from evaluation.running import estimate

BYTES = 8_000_000_000  # the largest model that a public page fetches
WAIT_SECONDS = 10  # for the hub's answer
AT_ONCE, IN_LINE = 3, 8  # questions that the hub is asked at once; questions that may wait
KEPT, KEPT_SECONDS = 256, 600  # how many answers are remembered, refusals included, and for how long


class Scales:
    """Asks the hub in threads of its own, so that a slow answer to one visitor holds up nobody else."""

    def __init__(self, look_up: Callable = models.sizes_before_download):
        self._look_up = look_up
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="scales")
        self._asked: collections.OrderedDict[str, tuple[float, Future]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def check(self, name: str) -> None:
        """Let the estimate know a model's sizes. Raises what models.sizes_before_download raises.

        Raises ModelUnavailable too if the model is too large (too_large_here), or if the hub is slow or has
        been asked too much (hub_slow).
        """
        found = self.ask(name)
        if found.bytes > BYTES and not found.here:
            raise ModelUnavailable(
                f"{name} has {found.bytes / 1e9:.1f} GB; this page fetches models up to {BYTES / 1e9:.0f} GB",
                code="too_large_here",
                name=name,
                need_bytes=found.bytes,
                limit_bytes=BYTES,
            )
        estimate.remember(name, found.geometry)

    def ask(self, name: str) -> models.Weight:
        """A model's sizes, however large it is. Raises as `check` does, but never too_large_here."""
        try:
            return self._answer(name).result(WAIT_SECONDS)
        except TimeoutError:
            raise ModelUnavailable(
                f"the hub says nothing about {name} yet; try again in a moment", code="hub_slow", name=name
            ) from None

    def _answer(self, name: str) -> Future:
        now = time.monotonic()
        with self._lock:
            while self._asked and (
                len(self._asked) > KEPT or now - next(iter(self._asked.values()))[0] > KEPT_SECONDS
            ):
                self._asked.popitem(last=False)
            if name not in self._asked:
                if sum(not future.done() for _, future in self._asked.values()) >= IN_LINE:
                    raise ModelUnavailable(
                        "the hub is being asked about many models; try again in a moment",
                        code="hub_slow",
                        name=name,
                    )
                self._asked[name] = now, self._pool.submit(self._look_up, name)
            return self._asked[name][1]

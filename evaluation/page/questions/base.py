"""What the questions of all panels share: the store, the runner, the estimate, and answers that are kept.

`_keep` remembers an answer, such as a run's card, until the store changes.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import compression
from compression.base import CompressionError
from evaluation import host
from evaluation.declared import methods
from evaluation.running import deaths
from evaluation.running.freshness import answers
from evaluation.running.scales import Scales
from evaluation.spec import RunSpec

KEPT_ANSWERS = 64

log = logging.getLogger(__name__)


def failure(error: Exception) -> dict:
    """An exception as the page's error.

    An error that a visitor or this system causes goes by its code. Any other goes by its message, with a line
    in the log.
    """
    described = deaths.describe(error)
    if described["code"] == "error":
        place = traceback.extract_tb(error.__traceback__)[-1]
        log.error("%s: %.300s (%s, line %s)", type(error).__name__, error, place.filename, place.lineno)
        described["message"] = described["message"][:500]
    return described


class Panel:
    """A panel's questions. Each is a method with the name that stands in requests.QUESTIONS."""

    def __init__(
        self,
        store,
        runner,
        chat=None,
        estimate: Callable | None = None,
        path: Callable | None = None,
        public: bool = False,
    ):
        self.store, self.runner, self.chat, self.public = store, runner, chat, public
        self._estimate, self._path = estimate, path
        self.methods = [{k: v for k, v in m.items() if k != "essay"} for m in methods().values()]
        self._scales = Scales()
        self._keeping = threading.Lock()
        # remembered answers; the one that was asked for last is at the end
        self._kept: OrderedDict[tuple, Any] = OrderedDict()

    def _keep(self, key: tuple, make: Callable):
        """The result of `make`, kept while the store stays as it is.

        `key` holds everything else that the result depends on.
        """
        key = (key, host.threads(), self.store.stamp())
        with self._keeping:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._keeping:
            self._kept[key] = made
            if len(self._kept) > KEPT_ANSWERS:
                self._kept.popitem(last=False)
        return made

    def _loading(self, spec: RunSpec) -> bool:
        """Whether the run's methods aren't imported yet, which takes seconds: with the first comes torch."""
        return not compression.loaded(*(name for name, _ in spec.recipe))

    def rows(self) -> list[dict]:
        """All runs, with those that wait or run according to their record.

        Several answers read this list, and none may change it.
        """
        return self._keep(("rows",), self.store.rows)

    def _stored(self, spec: RunSpec) -> str:
        """Id of the newest answer to the same request, own before shipped; "" if there is none."""
        wanted = spec.identity()
        own = self.store.find(wanted)
        found = (own if own and answers(own, self.store) else None) or next(
            (r for r in self.store.shipped() if r.status == "ok" and r.spec.identity() == wanted), None
        )
        return found.id if found else ""

    def _seconds(self, spec: RunSpec) -> float | None:
        """How long the run would take here; None where nothing says so, or while its methods are loading."""
        if self._estimate is None or self._loading(spec):
            return None
        try:
            return self._estimate(spec).seconds
        except CompressionError:
            return None

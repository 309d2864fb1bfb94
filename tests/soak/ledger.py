"""How the tries of a part ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

OUTCOMES = ("survived", "wrong", "lost", "hung", "traceback", "stopped")
"""survived: as it should be. wrong: an answer, a message or a file that isn't right. lost: a result or a record is gone. hung: no
answer in the time that is allowed. traceback: the server's log shows one. stopped: ended by somebody who must not end it."""
SHOWN = 12  # defects of one outcome that are told; the rest are only counted


@dataclass
class Ledger:
    """Counts of one part, with the defects in words."""

    part: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    tried: int = 0
    defects: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, outcome: str = "survived", what: str = "", tries: int = 1) -> None:
        """One try has ended. what: the defect in words, with what it takes to see it again."""
        with self._lock:
            self.tried += tries
            self._add(outcome, what)

    def check(self, right: bool, what: str, outcome: str = "wrong") -> bool:
        """A try that survives if `right`, and is the defect `what` otherwise. Returns `right`."""
        self.count("survived" if right else outcome, "" if right else what)
        return right

    def judge(self, right: bool, what: str, outcome: str = "wrong") -> None:
        """`check` as the last word on a try."""
        self.check(right, what, outcome)

    def note(self, text: str) -> None:
        with self._lock:
            if text not in self.notes:
                self.notes.append(text)

    def figure(self, name: str, value: float) -> None:
        """A measured number for the table's notes."""
        with self._lock:
            self.figures[name] = value

    def found(self, outcome: str, what: str) -> None:
        """A defect seen beside the tries, e.g. a traceback in the log."""
        with self._lock:
            self._add(outcome, what)

    def _add(self, outcome: str, what: str) -> None:
        self.counts[outcome] += 1
        if outcome != "survived" and sum(d.startswith(outcome) for d in self.defects) < SHOWN:
            self.defects.append(f"{outcome}: {what[:600]}")
            print(f"    {self.part}: {self.defects[-1][:400]}", flush=True)

    def json(self) -> dict:
        return {
            "part": self.part,
            "tried": self.tried,
            **self.counts,
            "figures": self.figures,
            "notes": self.notes,
            "defects": self.defects,
        }

"""Classes: a code that many phones join, and their guesses, which are gone after a day.

    code, key = classes.open()                       the teacher's browser keeps the key
    classes.guess(code, member, "rounding", 38.0)    a phone's guess; a later one replaces it
    classes.look(code, "rounding", key)              what all guessed, for whoever may see it

There are no names and no accounts. A member is a random token of a browser, of which a hash is kept. All of
it stands in memory only, and everything is bounded. Before the teacher shows an answer, only the teacher sees
the guesses.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from compression.base import CompressionError

LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"  # without those that look alike
LENGTH = 6
DAY = 24 * 3600.0
CLASSES, MEMBERS, LESSONS = 200, 120, 40

Guess = float | int | list[int]


class ClassError(CompressionError):
    """A class that isn't there or is full, or an action that only its teacher may take."""

    code = "class_unknown"


@dataclass
class _Class:
    key: str  # a hash of the teacher's
    ends: float
    lesson: str = ""
    shown: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    guesses: dict[str, dict[str, Guess]] = field(default_factory=dict)  # lesson -> member -> guess


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Classes:
    """All classes of this server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._classes: dict[str, _Class] = {}

    def open(self) -> tuple[str, str]:
        """(code, key) of a new class. Raises ClassError if there are too many."""
        with self._lock:
            now = self._clock()
            self._classes = {code: c for code, c in self._classes.items() if c.ends > now}
            if len(self._classes) >= CLASSES:
                raise ClassError(
                    f"{CLASSES} classes are open on this server; try again later",
                    code="classes_full",
                    most=CLASSES,
                )
            code = _new_code(self._classes)
            key = secrets.token_urlsafe(24)
            self._classes[code] = _Class(_hash(key), now + DAY)
            return code, key

    def look(self, code: str, lesson: str = "", key: str = "", member: str = "") -> dict[str, Any]:
        """{"lesson", "shown", "members", "guesses"}: where the class is.

        "guesses" are those of `lesson`, empty unless the answer was shown or `key` is the teacher's. A member
        that looks counts as one of the class.
        """
        with self._lock:
            found = self._find(code)
            if member:
                self._admit(found, member)
            may = lesson in found.shown or self._leads(found, key)
            return {
                "lesson": found.lesson,
                "shown": sorted(found.shown),
                "members": len(found.members),
                "guesses": list(found.guesses.get(lesson, {}).values()) if may else [],
            }

    def guess(self, code: str, member: str, lesson: str, value: Guess) -> None:
        """Keep a member's guess of a lesson; after the answer was shown nothing is taken any more."""
        with self._lock:
            found = self._find(code)
            name = self._admit(found, member)
            if lesson in found.shown:
                return
            if lesson not in found.guesses and len(found.guesses) >= LESSONS:
                raise ClassError(f"a class has at most {LESSONS} lessons", code="classes_full", most=LESSONS)
            found.guesses.setdefault(lesson, {})[name] = value

    def lead(self, code: str, key: str, lesson: str = "", show: bool = False, close: bool = False) -> None:
        """What only the teacher does: bring all to a lesson, show its answer, end the class."""
        with self._lock:
            found = self._find(code)
            if not self._leads(found, key):
                raise ClassError("only the teacher who opened this class may do that", code="class_key")
            if close:
                del self._classes[code]
                return
            if lesson:
                found.lesson = lesson
            if show and len(found.shown) < LESSONS:
                found.shown.add(lesson)

    def _find(self, code: str) -> _Class:
        found = self._classes.get(code)
        if found is None or found.ends <= self._clock():
            self._classes.pop(code, None)
            raise ClassError(f"there is no class {code[:12]!r}; ask for its code again", name=code[:12])
        return found

    @staticmethod
    def _admit(found: _Class, member: str) -> str:
        name = _hash(member)
        if name not in found.members and len(found.members) >= MEMBERS:
            raise ClassError(f"a class has at most {MEMBERS} members", code="class_full", most=MEMBERS)
        found.members.add(name)
        return name

    @staticmethod
    def _leads(found: _Class, key: str) -> bool:
        return bool(key) and secrets.compare_digest(found.key, _hash(key))


def _new_code(taken: dict[str, _Class]) -> str:
    while (code := "".join(secrets.choice(LETTERS) for _ in range(LENGTH))) in taken:
        pass
    return code

"""Answers what the page asks its server, as plain functions from JSON to JSON; app.py connects them.

Nothing here knows the UI's framework. Every answer is built in the language that the request names. An answer
that can fail for a visitor's reason comes back as an error card, never as an exception.

`Page` has all of them. Each panel's stand in a file of their own: figure.py, runs.py (cards and the table),
files.py (records and archives), plan.py, running.py (a run from its cost to its end), talk.py (the chat) and
classroom.py (Learn's classes).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from compression.architectures import ARCHITECTURES
from compression.catalogue import CATALOGUE, OFFLINE_MODEL
from evaluation import host
from evaluation.choosing import planner
from evaluation.measuring import metrics
from evaluation.page import cards, requests
from evaluation.page.questions.base import failure
from evaluation.page.questions.classroom import Classroom
from evaluation.page.questions.figure import Figure
from evaluation.page.questions.files import Files
from evaluation.page.questions.plan import Plan
from evaluation.page.questions.running import Running
from evaluation.page.questions.runs import Runs
from evaluation.page.questions.talk import Talk
from evaluation.page.words import LANGUAGES, Words, shown
from evaluation.spec import CALIBRATIONS, PRESETS, TEXTS
from evaluation.spec import FIRST as FIRST_SETTINGS

FIRST = ("gptq", {"bits": 4})  # what the knobs show on a first visit
PLANNED = {"model": "llama-3.1-8b-instruct", "machine": "m2"}  # what the plan shows on a first visit


class Page(Figure, Runs, Files, Plan, Running, Talk, Classroom):
    """The page's questions to store, runner, chat and estimate."""

    def boot(self) -> dict:
        """Everything that stays the same while the page is open.

        Words in both languages, methods, models, and this machine.
        """
        models = [
            {
                k: entry.describe()[k]
                for k in (
                    "name",
                    "title",
                    "series",
                    "hub_id",
                    "parameters",
                    "chat",
                    "gated",
                    "offline",
                    "rounded",
                )
            }
            for entry in CATALOGUE.values()
        ]
        return {
            "words": {language: shown(language) for language in LANGUAGES},
            "methods": self.methods,
            "models": models,
            "offline": OFFLINE_MODEL,
            "presets": PRESETS,
            "texts": list(TEXTS),
            "calibrations": list(CALIBRATIONS),
            "axes": list(metrics.AXES),
            "machines": [dataclasses.asdict(machine) for machine in planner.MACHINES],
            "architectures": list(ARCHITECTURES),
            "plan": PLANNED,
            "view": {"x": metrics.DEFAULT_X, "y": metrics.DEFAULT_Y},
            "first": {
                "model": OFFLINE_MODEL,
                "method": FIRST[0],
                "values": FIRST[1],
                "settings": FIRST_SETTINGS,
            },
            "processor": host.processor(),
            "threads": host.threads(),
            "public": self.public,
            "read_only": self.store.read_only,
        }

    def answer(self, question: str, ask: Any, address: str = "") -> dict:
        """The answer to one of requests.QUESTIONS. Never raises.

        If something goes wrong, "error" in the answer is a card in words.
        """
        words = Words(requests.language(ask))
        try:
            return getattr(self, question)(requests.take(question, ask, address))
        except Exception as error:
            empty, told = requests.QUESTIONS[question].empty, failure(error)
            return empty | {"error": cards.error_card(words, told, act="dismiss"), "code": told["code"]}

"""The questions of a class (evaluation/page/classes.py): to open one, to look, to guess, and to lead."""

from __future__ import annotations

from evaluation.page import requests
from evaluation.page.classes import Classes
from evaluation.page.questions.base import Panel


class Classroom(Panel):
    """Learn's questions. They come by /learn/ask, since a phone in a class loads Learn alone."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.classes = Classes()

    def class_open(self, ask: requests.Ask) -> dict:
        """A new class: its code, and the key that its teacher's browser keeps."""
        code, key = self.classes.open()
        return {"code": code, "key": key}

    def class_look(self, ask: requests.ClassLook) -> dict:
        """Where the class is, and the guesses of a lesson for whoever may see them."""
        return self.classes.look(ask.code, ask.lesson, ask.key, ask.member or "")

    def class_guess(self, ask: requests.ClassGuess) -> dict:
        """Keep a member's guess; it answers as `class_look` does."""
        self.classes.guess(ask.code, ask.member, ask.lesson, ask.guess)
        return self.classes.look(ask.code, ask.lesson)

    def class_lead(self, ask: requests.ClassLead) -> dict:
        """Move the class, show an answer, or end it; it answers as `class_look` does, {} at the end."""
        self.classes.lead(ask.code, ask.key, ask.lesson, ask.show, ask.close)
        return {} if ask.close else self.classes.look(ask.code, ask.lesson, ask.key)

    def class_code(self, ask: requests.ClassCode) -> dict:
        """A QR code of a class's address, as a drawing."""
        import segno

        return {"svg": segno.make(ask.link, error="m").svg_inline(scale=5, border=2, light="#ffffff")}

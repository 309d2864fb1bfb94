"""An answer of the chat without its process: what a stored run says, for tests to which the way isn't the
point (tests/evaluation/running/test_chat.py has the process)."""

from __future__ import annotations

import threading

from evaluation.running import chat
from evaluation.store import Store


def said(store: Store, result_id: str, words: str, **settings) -> list[dict]:
    """The events of both sides, made as the worker makes them."""
    question = {"max_tokens": 128, "temperature": 0.0, "seed": 0} | settings
    question |= chat.Chat(store).request(result_id) | {"messages": [{"role": "user", "content": words}]}
    return [e for e in chat.answer(chat._load({}, question), question, threading.Event()) if "side" in e]

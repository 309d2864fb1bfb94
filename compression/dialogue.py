"""Conversations as a calibration text: read from JSON lines, and written the way the model itself reads them.

Each line is one conversation:

    {"messages": [{"role": "user", "content": "Hello"},
                  {"role": "assistant", "content": "Hello! What can I do for you?"}]}

A model that was tuned for chat meets special tokens, a system message and short turns. Plain text has none of
them. The model's own chat template writes them, so that it is calibrated on what it meets in use. The
conversations follow each other as the template ends them, with nothing in between.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from compression.base import TextUnavailable

Conversation = tuple[dict[str, str], ...]  # its messages {"role", "content"}, in order
ROLES = ("system", "user", "assistant")
FORM = '{"messages": [{"role": "user", "content": "..."}, ...]}'


def parse(content: str, name: str) -> tuple[Conversation, ...]:
    """The conversations of a file in JSON lines; blank lines are skipped.

    Raises TextUnavailable with the number of a line that is no conversation.
    """
    found = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _no_dialogue(name, number, f"it is no JSON: {str(error)[:100]}") from None
        if (
            not isinstance(values, dict)
            or not isinstance(values.get("messages"), list)
            or not values["messages"]
        ):
            raise _no_dialogue(name, number, 'it has no list of "messages"')
        found.append(tuple(_message(m, name, number) for m in values["messages"]))
    return tuple(found)


def _message(message, name: str, number: int) -> dict[str, str]:
    role, content = (message.get(k) if isinstance(message, dict) else None for k in ("role", "content"))
    if role not in ROLES:
        raise _no_dialogue(
            name, number, f"a message's role is {str(role)[:40]!r}; allowed: {', '.join(ROLES)}"
        )
    if not isinstance(content, str) or not content.strip():
        raise _no_dialogue(name, number, "a message's content is no text")
    if any("\ud800" <= letter <= "\udfff" for letter in content):
        raise _no_dialogue(name, number, "a message holds half a character, \\ud800 to \\udfff")
    return {"role": role, "content": content}


def _no_dialogue(name: str, line: int, reason: str) -> TextUnavailable:
    return TextUnavailable(
        f"line {line} of {name} is no conversation: {reason}; write one like {FORM} on each line, "
        "or name a plain text .txt",
        code="not_dialogue",
        name=name,
        line=line,
        reason=reason,
    )


def written(name: str, conversations: Sequence[Conversation], tokenizer, enough: int | None = None) -> str:
    """The conversations one after the other, as the tokenizer's chat template writes them.

    It stops when there are `enough` characters. Raises TextUnavailable if there is no template, if it refuses
    a conversation, or if a message holds the letters of a special token. With these a message could end
    itself or speak for somebody else.
    """
    if not tokenizer.chat_template:
        raise TextUnavailable(
            f"{name} is a dialogue, and this model has no chat template, which says how it reads one; choose "
            "a model that is tuned for chat, or a plain text",
            code="no_chat_template",
            name=name,
        )
    special = sorted(
        {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        | set(tokenizer.all_special_tokens)
    )
    parts, letters = [], 0
    for number, messages in enumerate(conversations, 1):
        if spelled := next((s for m in messages for s in special if s in m["content"]), ""):
            raise TextUnavailable(
                f"conversation {number} of {name} holds the letters of the special token {spelled!r}, which "
                "would end a message or change who speaks; take them out",
                code="special_in_dialogue",
                name=name,
                number=number,
                token=spelled,
            )
        try:
            parts.append(tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False))
            parts[-1].encode()  # a template may write half a character, which no tokenizer reads
        except Exception as error:  # a template is a program that came with the model: it may raise anything
            reason = f"{type(error).__name__}: {error}"[:300]
            raise TextUnavailable(
                f"the model's chat template refuses conversation {number} of {name} ({reason}); leave it "
                "out, or let user and assistant take turns",
                code="dialogue_refused",
                name=name,
                number=number,
                reason=reason,
            ) from None
        letters += len(parts[-1])
        if enough is not None and letters >= enough:
            break
    return "".join(parts)

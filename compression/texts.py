"""Texts for measuring and for calibrating, and the token windows that are cut from them.

There are two protocols. `raw` tokenises the file as it is. `paper` joins the text's rows with blank lines and
tokenises once, as the papers do with WikiText-2: in the hub's rows a blank line is the empty string, and any
other line keeps its newline. Windows don't overlap; the tail that fills no window is dropped. The only token
that is added is the one that the tokenizer puts at the very start; an end token is left out. If the letters
of a special token (`<|im_end|>`) stand in a text, they are read as letters, as in llama.cpp's perplexity. So
a text can't end itself or change who speaks.

Evaluation takes the first windows in order, exactly as many as are asked for. Calibration and training take
windows of the calibration text, chosen by the seed: as many as are asked for, or all if there are fewer, and
a note says how many. If few tokens are asked for of a text of more than PART characters, only its beginning
is read. Evaluation never shares text with calibration or training: the named texts have a split for each, and
files are compared (overlap.py).

`unicode` is a domain for fine-tuning: a table whose form and vocabulary a language model hardly knows. It is
the same on every machine.

A dialogue (`dialogue`, or a file in JSON lines, dialogue.py) goes through the model's own chat template,
whose special tokens are read as tokens. It is for calibration and training; nothing is measured on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from compression import dialogue
from compression.base import Note, TextUnavailable
from compression.overlap import in_common

Role = Literal["evaluation", "calibration", "training"]
MAX_FILE_BYTES = 50_000_000
# characters of a long text that are read, and the least number of them for each token that is asked for
PART, LONG_TOKEN = 4_000_000, 32
SHARED_CHARACTERS, SHARED_PART = 200, 0.01  # the most that two texts may share: a heading, a quotation
MARKS = {
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
    b"\x00\x00\xfe\xff": "UTF-32",
}  # byte order marks at the start of a file
# what the lengths of a text's tokens may lack or have too much: a blank that is put before the first word,
# characters that a normalizer composes
SPARE_BYTES, SPARE_PART = 4, 0.001
RUN = 16  # neighbouring rows of `unicode` that go to the same role
BUILTIN, WIKITEXT, UNICODE, DIALOGUE = "builtin", "wikitext-2", "unicode", "dialogue"
DIALOGUE_FILE = Path(__file__).parent.parent / "assets" / "dialogue.jsonl"
DIALOGUE_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Text:
    """A text as rows, each with its own newline if it has one."""

    name: str
    rows: tuple[str, ...]
    source: str  # where it came from; no paths

    @property
    def raw(self) -> str:
        return "".join(row if row.endswith("\n") else row + "\n" for row in self.rows)

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.raw.encode()).hexdigest()

    @property
    def listed(self) -> str:
        """The name by which the raw protocol lists it."""
        return self.name


@dataclass(frozen=True)
class Dialogue(Text):
    """Conversations. Its rows are the contents of their messages."""

    conversations: tuple[dialogue.Conversation, ...] = ()

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.conversations, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Windows:
    """Token windows of one text in one protocol."""

    ids: Tensor  # [n, window] int64
    protocol_id: str  # names everything that decides the numbers; results of two ids are never compared
    text_hash: str  # for a dialogue: the hash of the text that the chat template made of it
    scored_bytes: int  # UTF-8 bytes of the tokens that are predicted (all but each window's first)
    notes: tuple[Note, ...] = ()  # what a reader must know about how the text was read


def load_text(name: str, role: Role, allow_paths: bool = True) -> Text:
    """A named text, or a local file. Raises TextUnavailable."""
    if name in NAMED:
        return NAMED[name](role)
    if not ("/" in name or "\\" in name or Path(name).suffix or Path(name[:255]).is_file()):
        raise TextUnavailable(
            f"unknown text {name!r}; give {', '.join(map(repr, NAMED))} or the path of a text file",
            code="unknown_text",
            name=name,
        )
    if not allow_paths:
        raise TextUnavailable(
            "files of the server are not allowed on a public Space; choose a named text", code="path_refused"
        )
    return _file(name, role)


def _file(name: str, role: Role) -> Text:
    try:
        path = Path(name).expanduser()
        if not path.is_file():
            raise TextUnavailable(f"no file at {name!r}", code="no_file", name=path.name)
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TextUnavailable(
                f"{path.name} has {size / 1e6:.0f} MB; at most {MAX_FILE_BYTES / 1e6:.0f} MB are read",
                code="text_too_big",
                name=path.name,
                bytes=size,
                limit=MAX_FILE_BYTES,
            )
        data = path.read_bytes()
    # no permission, no such user, or a name that no file can have
    except (OSError, RuntimeError, ValueError) as error:
        raise TextUnavailable(
            f"the file {Path(name).name!r} can't be read: {error}; check its name and who may read it",
            code="text_unreadable",
            name=Path(name).name,
        ) from None
    if encoding := next((found for mark, found in MARKS.items() if data.startswith(mark)), ""):
        raise TextUnavailable(
            f"{path.name} is a text in {encoding}; save it in UTF-8 and try again",
            code="text_encoding",
            name=path.name,
            encoding=encoding,
        )
    try:
        content = data.decode("utf-8").lstrip("\ufeff")  # a byte order mark is not part of the text
    except UnicodeDecodeError:
        content = "\0"
    if "\0" in content:
        raise TextUnavailable(
            f"{path.name} is no text in UTF-8; save it as plain text in UTF-8 and try again",
            code="not_text",
            name=path.name,
        )
    if not content.strip():
        raise TextUnavailable(
            f"{path.name} is empty; give a text of at least a few thousand words",
            code="empty_text",
            name=path.name,
        )
    if path.suffix.lower() == DIALOGUE_SUFFIX:
        return _talk(path.name, content, f"file {path.name}, through the chat template", role)
    lines = content.split("\n")
    rows = tuple("" if not line.strip() else line + "\n" for line in lines)
    return _FileText(path.name, rows, f"file {path.name}", content)


@dataclass(frozen=True)
class _FileText(Text):
    """A file keeps its exact content for the raw protocol."""

    content: str = ""

    @property
    def raw(self) -> str:
        return self.content


def _builtin(role: Role) -> Text:
    """The help topics of Python's standard library, sorted: even ones to evaluate, odd ones to calibrate.

    Topics quote each other. So calibration leaves out every line that also stands in the evaluated half.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    halves = [
        [line for name in half for line in topics[name].split("\n")] for half in (names[0::2], names[1::2])
    ]
    evaluated = {line for line in halves[0] if line.strip()}
    lines = halves[0] if role == "evaluation" else [line for line in halves[1] if line not in evaluated]
    rows = tuple(line + "\n" if line.strip() else "" for line in lines)
    version = ".".join(map(str, sys.version_info[:3]))
    return Text(BUILTIN, rows, f"help topics of Python {version} ({role} half)")


def _wikitext(role: Role) -> Text:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    split = "test" if role == "evaluation" else "validation"
    _refused.discard(WIKITEXT)
    where = (WIKITEXT_HUB, f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet")
    try:
        path = hf_hub_download(*where, repo_type="dataset", etag_timeout=5)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        _refused.add(WIKITEXT)
        raise TextUnavailable(
            f"WikiText-2 can't be fetched from the hub now ({type(error).__name__}); check the network, "
            "choose the built-in text, or give the path of a text file",
            code="text_unreachable",
            name=WIKITEXT,
        ) from None
    import pandas

    rows = tuple(pandas.read_parquet(path, columns=["text"])["text"])
    return _WikiText(WIKITEXT, rows, f"WikiText-2 raw, {split} split", f"wiki.{split[:5]}.raw")


@dataclass(frozen=True)
class _WikiText(Text):
    """WikiText-2 from the hub, which in the raw protocol is the file of its publishers, letter for letter.

    The file has a blank in each empty line, and the hub's rows have lost it. `file` is the file's name, by
    which that protocol lists it: what was measured on the file may stand beside what is measured on the rows.
    """

    file: str = ""

    @property
    def raw(self) -> str:
        return "".join(row or " \n" for row in self.rows)

    @property
    def listed(self) -> str:
        return self.file


WIKITEXT_HUB = "Salesforce/wikitext"
_refused: set[str] = set()  # named texts that the hub didn't give when they were asked for last


def refused(name: str) -> bool:
    """Whether a named text was asked for in this process in vain, and isn't on this disk since."""
    return name in _refused and not _on_disk()


def _on_disk() -> bool:
    """Whether WikiText-2 is in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    files = (f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet" for split in ("test", "validation"))
    return all(
        isinstance(try_to_load_from_cache(WIKITEXT_HUB, file, repo_type="dataset"), str) for file in files
    )


def fetch(name: str) -> None:
    """Bring a named text onto this disk if it can be had; `refused` tells whether it could.

    The hub is asked once, for a few seconds. A download would try five times before it gives up.
    """
    _fetched.clear()
    try:
        if name == WIKITEXT and not _within_reach():
            _refused.add(name)
            return
        for role in ("evaluation", "calibration"):
            if name not in _refused:
                with contextlib.suppress(TextUnavailable):
                    load_text(name, role)  # type: ignore[arg-type]
    finally:
        _fetched.set()


def _within_reach() -> bool:
    """Whether WikiText-2 is on this disk, or the hub answers."""
    from huggingface_hub import HfApi

    if _on_disk():
        return True
    try:
        HfApi().dataset_info(WIKITEXT_HUB, timeout=5)
    except Exception:  # whatever the library underneath raises where there is no network
        return False
    return True


_fetched = threading.Event()  # no text is being fetched
_fetched.set()


def wait_for_fetch(seconds: float) -> bool:
    """Wait until a text that is being fetched is here or refused. False if that takes longer."""
    return _fetched.wait(seconds)


def _unicode(role: Role) -> Text:
    """The characters of Unicode 3.2 that have a name of their own, one a row as in UnicodeData.txt.

    Fields that Python's table lacks stay empty. Every eighth run of RUN rows is for evaluation, the others
    are for calibration.
    """
    from unicodedata import ucd_3_2_0 as table  # the one version that every Python has

    rows = []
    for code in range(sys.maxunicode + 1):
        sign = chr(code)
        name = table.name(sign, "")
        # characters that are named by a rule, tens of thousands of them, are left out
        if name and not name.startswith(("CJK ", "HANGUL SYLLABLE ")):
            number = table.numeric(sign, None)
            fields = (
                f"{code:04X}",
                name,
                table.category(sign),
                table.combining(sign),
                table.bidirectional(sign),
                table.decomposition(sign),
                table.decimal(sign, ""),
                table.digit(sign, ""),
                "" if number is None else f"{number:g}",
                "Y" if table.mirrored(sign) else "N",
                *[""] * 5,
            )
            rows.append(";".join(map(str, fields)) + "\n")
    evaluates = [i // RUN % 8 == 7 for i in range(len(rows))]
    chosen = tuple(row for row, mine in zip(rows, evaluates, strict=True) if mine is (role == "evaluation"))
    return Text(
        UNICODE,
        chosen,
        f"characters of Unicode 3.2 ({'evaluation' if role == 'evaluation' else 'calibration'} part)",
    )


def _dialogue(role: Role) -> Text:
    """Conversations that were written for this program: questions, facts, code, lists and small talk.

    A few of them are in Chinese.
    """
    return _talk(
        DIALOGUE, DIALOGUE_FILE.read_text("utf-8"), "short conversations, through the chat template", role
    )


def _talk(name: str, content: str, source: str, role: Role) -> Dialogue:
    if role == "evaluation":
        raise TextUnavailable(
            f"{name} is a dialogue, which is for calibration and training; choose a plain text to measure on",
            code="dialogue_measured",
            name=name,
        )
    conversations = dialogue.parse(content, name)
    return Dialogue(
        name, tuple(m["content"] for messages in conversations for m in messages), source, conversations
    )


NAMED: dict[str, Callable[[Role], Text]] = {
    BUILTIN: _builtin,
    WIKITEXT: _wikitext,
    UNICODE: _unicode,
    DIALOGUE: _dialogue,
}


def check_disjoint(evaluation: Text, calibration: Text) -> None:
    """Raises TextUnavailable if both roles would read the same text, or much of it.

    The splits of a named text have nothing in common.
    """
    shared = 1.0
    if evaluation.hash != calibration.hash:
        if evaluation.name == calibration.name and evaluation.name in NAMED:
            return
        common, size = in_common(evaluation.raw, calibration.raw)
        if common <= max(SHARED_PART * size, min(SHARED_CHARACTERS, size / 2)):
            return
        shared = min(common / size, 1.0)
    percent = max(round(100 * shared), 1)
    raise TextUnavailable(
        f"{evaluation.name} can't be used for calibration and evaluation both: {percent} % of "
        f"{calibration.name} and it are the same, "
        "and the result would be flattered; choose another calibration text, or take the common part out",
        code="same_text",
        name=evaluation.name,
        percent=percent,
    )


def windows(
    text: Text, tokenizer, protocol: str, window: int, tokens: int | None, role: Role, seed: int = 0
) -> Windows:
    """Cut `tokens` tokens (None: all there are) into windows [n, window].

    Raises TextUnavailable if there are too few: for evaluation, fewer than asked for; for the other roles,
    not even one window. A dialogue is written by the chat template in every protocol.
    """
    talk, most = isinstance(text, Dialogue), None if tokens is None else max(PART, LONG_TOKEN * tokens)
    if isinstance(text, Dialogue):
        content = dialogue.written(text.name, text.conversations, tokenizer, most)
    else:
        content = text.raw if protocol == "raw" else "\n\n".join(text.rows)
    before, after = ([], []) if talk else _added(tokenizer)
    part = content[:most]
    ids = _encode(tokenizer, part, before, split=not talk)
    if tokens is not None and len(ids) < tokens and len(part) < len(content):
        part, ids = content, _encode(tokenizer, content, before, split=not talk)
    available = len(ids) // window
    asked = available if tokens is None else tokens // window
    wanted = asked if role == "evaluation" else min(max(asked, 1), available)
    if available == 0:
        raise TextUnavailable(
            f"{text.name} has {len(ids)} tokens, less than one window of {window}; give a longer text "
            "or a shorter window",
            code="text_too_short",
            name=text.name,
            tokens=len(ids),
            need=window,
        )
    if wanted == 0 or wanted > available:
        raise TextUnavailable(
            f"{text.name} has {available * window} tokens in whole windows of {window}; {tokens} were asked "
            f"for. Ask for {window} to {available * window}, or give a longer text.",
            code="text_too_short",
            name=text.name,
            tokens=available * window,
            need=tokens,
        )
    chosen = torch.arange(wanted)
    if role != "evaluation":
        chosen = (
            torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:wanted].sort().values
        )
    cut = ids[: available * window].view(available, window)[chosen]
    start = ("start token once" if before else "no start token") + (", end token left out" if after else "")
    spelled = [] if talk else sorted(token for token in _special(tokenizer) if token in part)
    notes = (
        [Note("special_tokens_as_text", {"name": text.name, "tokens": ", ".join(spelled[:5])})]
        if spelled
        else []
    )
    if wanted < asked:
        notes.append(
            Note(f"{role}_shortened", {"name": text.name, "asked": asked * window, "used": wanted * window})
        )
    form = "chat template" if talk else protocol
    listed = text.listed if form == "raw" else text.name
    protocol_id = (
        f"{listed} {text.hash[:8]} · {form} · window {window} · {cut.numel()} tokens · {start} · "
        f"{'special tokens as text · ' if spelled else ''}tokenizer {tokenizer_hash(tokenizer)[:8]}"
    )
    if talk:  # nothing is measured on it
        return Windows(
            cut.contiguous(), protocol_id, hashlib.sha256(part.encode()).hexdigest(), 0, tuple(notes)
        )
    scored = _scored_bytes(tokenizer, ids, cut, chosen, part, len(before))
    return Windows(cut.contiguous(), protocol_id, text.hash, scored, tuple(notes))


def _added(tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds by itself (before, after) a text."""
    found = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = found["input_ids"], found["special_tokens_mask"]
    first = next((i for i, added in enumerate(mask) if not added), len(mask))
    last = next((i for i in range(len(mask), first, -1) if not mask[i - 1]), len(mask))
    return ids[:first], ids[last:]


def _encode(tokenizer, content: str, before: list[int], split: bool) -> Tensor:
    """Token ids int64 [n] of a text, after the ids that come before every text.

    split: the letters of a special token are read as letters.
    """
    found = tokenizer(content, add_special_tokens=False, split_special_tokens=split, verbose=False)[
        "input_ids"
    ]
    return torch.tensor([*before, *found], dtype=torch.int64)


def _special(tokenizer) -> set[str]:
    """The spellings of the tokenizer's special tokens."""
    return {t.content for t in tokenizer.added_tokens_decoder.values() if t.special} | set(
        tokenizer.all_special_tokens
    )


def _scored_bytes(tokenizer, ids: Tensor, cut: Tensor, chosen: Tensor, content: str, before: int) -> int:
    """UTF-8 bytes of what is predicted: all tokens but the first of each window [n, window].

    `chosen` says which windows of the text, whose ids are `ids`, these are. If a token always stands for the
    same bytes, its length is known: a character that is cut in two then belongs to both sides. These lengths
    must add up to the text; a token for what is unknown, or a normalizer, spoils that. Otherwise the
    tokenizer says which characters of the text a token covers. If a tokenizer in Python knows neither, its
    tokens are written out again.
    """
    lengths, text = _lengths(tokenizer), torch.ones_like(cut, dtype=torch.bool)
    text.view(-1)[:before] = bool(chosen[0] > 0)  # a start token stands for no text
    text[:, 0] = False
    if lengths is not None:
        whole = len(content.encode())
        if abs(int(lengths[ids[before:]].sum()) - whole) <= max(SPARE_BYTES, whole * SPARE_PART):
            return int(lengths[cut[text]].sum())
    if not tokenizer.is_fast:
        shown = tokenizer.batch_decode(
            cut[:, 1:].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return sum(len(s.encode()) for s in shown)
    places = tokenizer(
        content,
        add_special_tokens=False,
        split_special_tokens=True,
        verbose=False,
        return_offsets_mapping=True,
    )
    ends = [0] * before + [end for _, end in places["offset_mapping"]]
    window = cut.shape[1]
    return sum(len(content[ends[i * window] : ends[(i + 1) * window - 1]].encode()) for i in chosen.tolist())


def _lengths(tokenizer) -> Tensor | None:
    """UTF-8 bytes of each id's text, int64 [largest id + 1]; None if an id alone doesn't determine them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    decoder = json.loads(backend.decoder.__getstate__())
    kinds = {part["type"] for part in decoder.get("decoders", [decoder])}
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    if "ByteLevel" in kinds:
        size = len  # each letter stands for a byte
    elif "ByteFallback" in kinds:

        def size(piece):
            return 1 if re.fullmatch("<0x[0-9A-F]{2}>", piece) else len(piece.replace("▁", " ").encode())

    else:
        return None
    vocabulary = tokenizer.get_vocab()
    lengths = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.int64)
    for piece, i in vocabulary.items():
        lengths[i] = len(added[i].encode()) if i in added else size(piece)
    return lengths


def tokenizer_hash(tokenizer) -> str:
    """Hash of the vocabulary and of how it is applied; only equal tokenizers share a protocol."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(described.encode()).hexdigest()

"""Texts for measuring and for calibrating, and the token windows cut from them.

Two protocols. `raw` tokenises the file as it is. `paper` joins the text's rows with blank lines and tokenises once,
as the papers do with WikiText-2: in the hub's rows a blank line is the empty string and any other line keeps its
newline. Windows don't overlap; the tail that fills no window is dropped. No token is added but what the tokenizer
adds once at the very start.

Evaluation takes the first windows in order. Calibration takes windows chosen by the seed, and so does training, from the
calibration text: as many as it asks for or as there are. Evaluation never shares text with the other two: the named texts
have a split for each, and one file can't serve both.

`unicode` is a domain to fine-tune to: a table whose form and vocabulary a language model hardly knows, on every machine alike.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from compression.base import TextUnavailable

Role = Literal["evaluation", "calibration", "training"]
MAX_FILE_BYTES = 50_000_000
RUN = 16  # rows of `unicode` that go to one role together
BUILTIN, WIKITEXT, UNICODE = "builtin", "wikitext-2", "unicode"


@dataclass(frozen=True)
class Text:
    """A text as rows, each with its own newline if it has one."""

    name: str
    rows: tuple[str, ...]
    source: str  # where it came from, without paths

    @property
    def raw(self) -> str:
        return "".join(row if row.endswith("\n") else row + "\n" for row in self.rows)

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.raw.encode()).hexdigest()


@dataclass(frozen=True)
class Windows:
    """Token windows of one text in one protocol."""

    ids: Tensor  # [n, window] int64
    protocol_id: str  # names everything that decides the numbers; two different ids never share an axis
    text_hash: str
    scored_bytes: int  # UTF-8 bytes of the tokens that are predicted (all but each window's first)


def load_text(name: str, role: Role, allow_paths: bool = True) -> Text:
    """A named text, or a local file. Raises TextUnavailable."""
    if name in NAMED:
        return NAMED[name](role)
    path = Path(name).expanduser()
    looks_like_path = path.exists() or "/" in name or "\\" in name or path.suffix
    if not looks_like_path:
        raise TextUnavailable(f"unknown text {name!r}; give {', '.join(map(repr, NAMED))} or the path of a text file",
                              code="unknown_text", name=name)  # fmt: skip
    if not allow_paths:
        raise TextUnavailable("files of the server are not allowed on a public Space; choose a named text",
                              code="path_refused")  # fmt: skip
    return _file(path)


def _file(path: Path) -> Text:
    if not path.is_file():
        raise TextUnavailable(f"no file at {str(path)!r}", code="no_file", name=path.name)
    size = path.stat().st_size
    if size == 0:
        raise TextUnavailable(f"{path.name} is empty; give a text of at least a few thousand words",
                              code="empty_text", name=path.name)  # fmt: skip
    if size > MAX_FILE_BYTES:
        raise TextUnavailable(f"{path.name} has {size / 1e6:.0f} MB; at most {MAX_FILE_BYTES / 1e6:.0f} MB are read",
                              code="text_too_big", name=path.name, bytes=size, limit=MAX_FILE_BYTES)  # fmt: skip
    data = path.read_bytes()
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError:
        content = "\0"
    if "\0" in content:
        raise TextUnavailable(f"{path.name} is no text in UTF-8; save it as plain text in UTF-8 and try again",
                              code="not_text", name=path.name)  # fmt: skip
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
    """The help topics of Python's standard library: sorted, the even ones to evaluate, the odd ones to calibrate.
    Topics quote each other, so calibration leaves out every line that stands in the evaluated half."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    halves = [[line for name in half for line in topics[name].split("\n")] for half in (names[0::2], names[1::2])]
    evaluated = {line for line in halves[0] if line.strip()}
    lines = halves[0] if role == "evaluation" else [line for line in halves[1] if line not in evaluated]
    rows = tuple(line + "\n" if line.strip() else "" for line in lines)
    version = ".".join(map(str, sys.version_info[:3]))
    return Text(BUILTIN, rows, f"help topics of Python {version} ({role} half)")


def _wikitext(role: Role) -> Text:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    split = "test" if role == "evaluation" else "validation"
    where = ("Salesforce/wikitext", f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet")
    try:
        path = hf_hub_download(*where, repo_type="dataset", etag_timeout=5)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise TextUnavailable(
            f"WikiText-2 can't be fetched from the hub now ({type(error).__name__}); check the network, choose the "
            f"built-in text, or give the path of a text file",
            code="text_unreachable", name=WIKITEXT,
        ) from None  # fmt: skip
    import pandas

    rows = tuple(pandas.read_parquet(path, columns=["text"])["text"])
    return Text(WIKITEXT, rows, f"WikiText-2 raw, {split} split")


def _unicode(role: Role) -> Text:
    """The characters of Unicode 3.2 that have a name of their own, a row each as in UnicodeData.txt (fields that Python's table
    lacks stay empty). Every eighth run of RUN rows evaluates, the others calibrate."""
    from unicodedata import ucd_3_2_0 as table  # the one version that every Python has

    rows = []
    for code in range(sys.maxunicode + 1):
        sign = chr(code)
        name = table.name(sign, "")
        if name and not name.startswith(("CJK ", "HANGUL SYLLABLE ")):  # named by a rule, ten thousands of them
            number = table.numeric(sign, None)
            fields = (f"{code:04X}", name, table.category(sign), table.combining(sign), table.bidirectional(sign),
                      table.decomposition(sign), table.decimal(sign, ""), table.digit(sign, ""),
                      "" if number is None else f"{number:g}", "Y" if table.mirrored(sign) else "N", *[""] * 5)  # fmt: skip
            rows.append(";".join(map(str, fields)) + "\n")
    evaluates = [i // RUN % 8 == 7 for i in range(len(rows))]
    chosen = tuple(row for row, mine in zip(rows, evaluates, strict=True) if mine is (role == "evaluation"))
    return Text(UNICODE, chosen, f"characters of Unicode 3.2 ({'evaluation' if role == 'evaluation' else 'calibration'} part)")


NAMED: dict[str, Callable[[Role], Text]] = {BUILTIN: _builtin, WIKITEXT: _wikitext, UNICODE: _unicode}


def check_disjoint(evaluation: Text, calibration: Text) -> None:
    """Raises TextUnavailable when both roles would read the same text."""
    if evaluation.hash == calibration.hash:
        raise TextUnavailable(
            f"{evaluation.name} can't be used for calibration and evaluation both: the result would be flattered; "
            f"choose another calibration text",
            code="same_text", name=evaluation.name,
        )  # fmt: skip


def windows(text: Text, tokenizer, protocol: str, window: int, tokens: int | None, role: Role, seed: int = 0) -> Windows:
    """Cut `tokens` tokens (None: all there are) into windows [n, window]. Raises TextUnavailable if there are too few."""
    content = text.raw if protocol == "raw" else "\n\n".join(text.rows)
    ids = torch.tensor(tokenizer(content, verbose=False)["input_ids"], dtype=torch.int64)
    available = len(ids) // window
    wanted = available if tokens is None else tokens // window
    if role == "training":
        wanted = min(max(wanted, 1), available)
    if available == 0:
        raise TextUnavailable(
            f"{text.name} has {len(ids)} tokens, less than one window of {window}; give a longer text or a shorter window",
            code="text_too_short", name=text.name, tokens=len(ids), need=window,
        )  # fmt: skip
    if wanted == 0 or wanted > available:
        raise TextUnavailable(
            f"{text.name} has {available * window} tokens in whole windows of {window}; {tokens} were asked for. "
            f"Ask for {window} to {available * window}, or give a longer text.",
            code="text_too_short", name=text.name, tokens=available * window, need=tokens,
        )  # fmt: skip
    cut = ids[: available * window].view(available, window)
    if role != "evaluation":
        order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:wanted]
        cut = cut[order.sort().values]
    else:
        cut = cut[:wanted]
    added = len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"])
    start = "start token once" if added else "no start token"
    protocol_id = (f"{text.name} {text.hash[:8]} · {protocol} · window {window} · {cut.numel()} tokens · {start} · "
                   f"tokenizer {tokenizer_hash(tokenizer)[:8]}")  # fmt: skip
    scored = sum(len(s.encode()) for s in tokenizer.batch_decode(cut[:, 1:].tolist(), skip_special_tokens=False))
    return Windows(cut.contiguous(), protocol_id, text.hash, scored)


def tokenizer_hash(tokenizer) -> str:
    """Hash of the vocabulary and how it is applied, so that only equal tokenizers share a protocol."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(described.encode()).hexdigest()

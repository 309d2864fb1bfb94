"""Says why a process ended, in words for the visitor: out of memory, a full disk, a missing instruction.

`of_exit` is for a worker that left no result, `describe` for an exception inside a run. Both give
{"code", "message", "facts"}; the words for these codes stand in assets/i18n. A full disk can kill a process
without an exception, if a file that is mapped into memory finds no room.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from compression.base import Cancelled, CompressionError
from evaluation import limits
from evaluation.spec import Status

Error = dict  # {"code", "message", "facts"}

MEMORY_WORDS = (  # what libraries, C++ and the system (error 12) say when memory runs out, in small letters
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "memoryerror",
    "unable to allocate",
    "memory allocation",
    "can't start new thread",
)
DISK_WORDS = ("no space left on device", "not enough free disk space", "disk quota exceeded")

# signal's name -> (status, code, message): the signals that the system or a person sends, and what they mean
SIGNALS: dict[str, tuple[Status, str, str]] = {
    "SIGKILL": ("oom", "worker_killed", "the system ended the run, most likely because memory ran out"),
    "SIGBUS": (
        "failed",
        "worker_bus",
        "a file that the run had open could not be read or written: the disk is full, or the file "
        "was cut short",
    ),
    "SIGSEGV": (
        "failed",
        "worker_crashed",
        "the run's process crashed: a fault in the program or in one of its libraries",
    ),
    "SIGABRT": ("failed", "worker_crashed", "a library ended the run's process: a fault in it"),
    "SIGFPE": ("failed", "worker_crashed", "the run's process crashed in a computation"),
    "SIGILL": ("failed", "worker_instruction", "this processor lacks an instruction that a library uses"),
    "SIGTERM": (
        "failed",
        "worker_ended",
        "something asked the run's process to end: the system is going down, or somebody stopped it",
    ),
    "SIGINT": ("failed", "worker_ended", "something interrupted the run's process"),
    "SIGHUP": ("failed", "worker_ended", "the run's terminal was closed"),
    "SIGXCPU": ("failed", "worker_ended", "the run used up the processor time that this system allows"),
}
ERRNOS = {  # errno of an OSError -> code, message
    errno.EROFS: ("not_writable", "a folder that the program writes to is read-only"),
    errno.EACCES: ("not_writable", "the program may not write to or read from a folder that it needs"),
    errno.EPERM: ("not_writable", "the program may not write to or read from a folder that it needs"),
    errno.EIO: ("disk_broken", "the disk gave an error while it was read or written"),
    errno.ESTALE: ("disk_broken", "the disk is gone"),
    errno.EFBIG: ("file_limit", "a file grew larger than this system allows"),
    errno.EMFILE: ("too_many_open", "the program has as many files open as this system allows"),
    errno.ENFILE: ("too_many_open", "this system has as many files open as it can"),
}


def of_exit(code: int, said: str = "", kills: int | None = None) -> tuple[Status, Error]:
    """(status, error) of a process that ended without a result.

    code: as subprocess gives it (minus the signal's number) or as a shell does (128 plus that number). said:
    the last that it wrote to its standard error. kills: what `limits.oom_kills` counted before it began.
    """
    number = -code if code < 0 else code - 128 if 128 < code < 192 else 0
    name = signal.Signals(number).name if number in {int(s) for s in signal.Signals} else ""
    more = limits.oom_kills()
    if (name == "SIGKILL" and kills is not None and more is not None and more > kills) or (
        _any(MEMORY_WORDS, said) and name != "SIGTERM"
    ):
        return "oom", _out_of_memory()
    if name in SIGNALS:
        ended, kind, message = SIGNALS[name]
        return ended, {"code": kind, "message": message, "facts": {"signal": name}}
    if _any(DISK_WORDS, said):
        return "failed", _disk_full()
    last = said.strip().splitlines()[-1:] or [""]
    return "failed", {
        "code": "worker_died",
        "message": f"the run's process ended with code {code}. {last[0][:300]}".strip(),
        "facts": {"code": code},
    }


def status(error: BaseException) -> Status:
    """The status of a run that ended by an exception."""
    return (
        "cancelled"
        if isinstance(error, Cancelled)
        else "oom"
        if describe(error)["code"] == "out_of_memory"
        else "failed"
    )


def describe(error: BaseException, place: Path | None = None) -> Error:
    """An exception as the record and the page show it.

    Libraries wrap what the system said, so the exceptions behind this one count too. place: the file that was
    written, where the error doesn't name it.
    """
    if isinstance(error, CompressionError):
        return {"code": error.code, "message": str(error), "facts": error.facts}
    for e in _behind(error):
        words, number = f"{type(e).__name__}: {e}".lower(), _number(e)
        if isinstance(e, CompressionError):
            return {"code": e.code, "message": str(e), "facts": e.facts}
        if isinstance(e, MemoryError) or number == errno.ENOMEM or _tells(e, MEMORY_WORDS, words):
            return _out_of_memory()
        if number in (errno.ENOSPC, errno.EDQUOT) or _tells(e, DISK_WORDS, words):
            return _disk_full(getattr(e, "filename", None) or place)
        if number in ERRNOS:
            code, message = ERRNOS[number]
            reason = os.strerror(number)
            return {"code": code, "message": f"{message} ({reason})", "facts": {"reason": reason}}
    return {
        "code": "error",
        "message": f"{type(error).__name__}: {error}"[:1000],
        "facts": {"type": type(error).__name__},
    }


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An exception, then those that it was raised from or during, the outermost first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _number(error: BaseException) -> int | None:
    """The errno of an exception; libraries in Rust give it only in their message."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return error.errno if isinstance(error, OSError) else int(found[1]) if found else None


def _tells(error: BaseException, words: tuple[str, ...], text: str) -> bool:
    """Whether an error of a library uses such words.

    Mistakes in a program never count: a wrong value, key, type or attribute.
    """
    return not isinstance(error, ValueError | KeyError | TypeError | AttributeError) and _any(words, text)


def _any(words: tuple[str, ...], text: str) -> bool:
    text = text.lower()
    return any(word in text for word in words)


def _out_of_memory() -> Error:
    facts = {"limit_bytes": limits.memory_bytes()}
    return {
        "code": "out_of_memory",
        "message": f"memory ran out: this program may use {facts['limit_bytes'] / 1e9:.1f} GB",
        "facts": facts,
    }


def _disk_full(place: Path | str | None = None) -> Error:
    from compression.disk import free_bytes
    from kernels.home import home

    facts = {"free_bytes": free_bytes(place or home())}
    return {
        "code": "disk_full",
        "message": f"the disk is full: {facts['free_bytes'] / 1e6:,.1f} MB are free; free some space "
        "and run again",
        "facts": facts,
    }

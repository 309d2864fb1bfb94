"""Names this program by a hash, and starts it again in UTF-8 mode where file names need that.

The hash is over its sources and the versions of the libraries that compute. A stored answer carries it: an
answer of the same program holds.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import sys

from evaluation import ROOT

FOLDERS, ENDINGS = ("compression", "kernels", "evaluation"), {".py", ".c", ".h"}
LIBRARIES = ("torch", "transformers", "tokenizers")


@functools.cache
def code() -> str:
    """Hash of all source files, whatever their paths, and of the versions of the libraries that compute."""
    files = sorted(f for folder in FOLDERS for f in (ROOT / folder).rglob("*") if f.suffix in ENDINGS)
    found = hashlib.sha256(
        "".join(f"{name} {importlib.metadata.version(name)}\n" for name in LIBRARIES).encode()
    )
    for content in sorted(f.read_bytes() for f in files):  # a file that moved counts as the same
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()[:20]


def in_utf8() -> None:
    """Start this process again in Python's UTF-8 mode, if names of files aren't read as UTF-8.

    In another encoding a name may hold surrogates, which the libraries that write files refuse. The first
    thing that an entrance calls; the processes that it starts inherit the mode.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

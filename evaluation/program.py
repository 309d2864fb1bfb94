"""The name of this program: a hash of its sources and of the libraries that compute."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata

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

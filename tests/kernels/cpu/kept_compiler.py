"""A C compiler that compiles the same thing once: it keeps object files, and hands them out again.

    CC="a script that calls this file" python -m kernels...

What it is asked for besides (linking, its version) the real compiler does. An object is the same while its
source, the headers beside it, the options and the compiler are: so a test of how a library is built, found,
lost and built again takes the time of one compilation.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def script(place: Path, compiler: str, kept: Path) -> Path:
    """The compiler as a file that $CC can name, in the folder `place`; objects are kept in `kept`."""
    kept.mkdir(exist_ok=True)
    file = place / "cc"
    file.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -I "{__file__}" "{compiler}" "{kept}" "$@"\n', "utf-8"
    )
    file.chmod(0o755)
    return file


def compile_once(compiler: str, kept: Path, words: list[str]) -> int:
    """Run the compiler with these words, or copy what it made of the same before; its exit status."""
    if "-c" not in words:
        return subprocess.call([compiler, *words])
    source, out = Path(words[words.index("-c") + 1]), words[words.index("-o") + 1]
    about = [subprocess.run([compiler, "--version"], capture_output=True).stdout]
    about += [word.encode() for word in words if word not in (str(source), out)]
    about += [file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
    file = kept / f"{source.stem}-{hashlib.sha256(b'|'.join(about)).hexdigest()[:16]}.o"
    if not file.is_file():
        if status := subprocess.call([compiler, *words]):
            return status
        part = file.with_suffix(f".{os.getpid()}")
        shutil.copyfile(out, part)
        os.replace(part, file)  # whole or not at all: two may compile at once
    shutil.copyfile(file, out)
    return 0


if __name__ == "__main__":
    sys.exit(compile_once(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))

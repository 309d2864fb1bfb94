"""C kernels for processors: one source an op, compiled on first use and cached, tested against the reference, then used.

`library()` gives the loaded library or None; `status()` says in words what serves and why. Nothing is built at import.
The cache's key is the source, the compiler and the processor's flags, so a changed one builds anew; a library that
can't be built, loaded or that fails its self-test is never used, and PyTorch serves in its place under its own name.
COMPRESSION_EXPLORER_KERNELS=pytorch switches the C kernels off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
COMMON = ("-O3", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
FLAGS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",))  # the first that works
BUILD_SECONDS = 60
_reason = ["not built yet"]


def cache() -> Path:
    """Where built libraries lie."""
    home = os.environ.get("COMPRESSION_EXPLORER_HOME") or Path.home() / ".cache" / "compression-explorer"
    return Path(home) / "kernels"


def compiler() -> str | None:
    """The C compiler's path: $CC, else cc, gcc or clang; None if there is none."""
    return next((path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None)


def _told(*names: str) -> str:
    """What the system says of the processor under the first of these names that it has, "" if under none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def processor() -> str:
    """The processor's name, without anything that names the machine."""
    return _told("model name") or platform.processor() or platform.machine()


@functools.cache
def flags() -> frozenset[str]:
    """What the processor can do, as the system names it."""
    return frozenset(_told("flags", "Features").split())


def instructions() -> str:
    """The vector instructions that the kernels use, for labels."""
    return "AVX-512"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C kernels, ready and tested, or None. Builds at the first call (about a second)."""
    if os.environ.get("COMPRESSION_EXPLORER_KERNELS", "").lower() == "pytorch":
        return _none("switched off by COMPRESSION_EXPLORER_KERNELS")
    if "avx512f" not in flags():  # 64-byte vectors split in halves are slower than PyTorch: 15 ms instead of 0.4 (AVX2, 4096^2)
        return _none("written for AVX-512, which this processor hasn't")
    try:
        file = _built()
        loaded = _loaded(file) or _loaded(file := _built())  # a damaged file is built anew, once
    except (OSError, subprocess.SubprocessError) as error:
        return _none(f"{type(error).__name__}: {error}")
    if loaded is None:
        return _none("the built library can't be loaded")
    from kernels.cpu.selftest import failure

    if wrong := failure(loaded):
        file.unlink(missing_ok=True)
        return _none(f"self-test failed: {wrong}")
    _reason[0] = f"built for {instructions()}"
    return loaded


def _loaded(file: Path) -> ctypes.CDLL | None:
    """The library in a file; a file that isn't one is removed."""
    try:
        found = ctypes.CDLL(str(file))
        return found if hasattr(found, "grouped_int_product") else None
    except OSError:
        file.unlink(missing_ok=True)
        return None


def status() -> str:
    """Why the C kernels serve or don't."""
    return _reason[0]


def _none(reason: str) -> None:
    _reason[0] = reason
    return None


def _built() -> Path:
    """The library's file, built if it isn't there. Raises OSError or SubprocessError."""
    program = compiler()
    if program is None:
        raise FileNotFoundError("no C compiler (cc, gcc or clang)")
    about = subprocess.run([program, "--version"], capture_output=True, timeout=10).stdout
    parts = [about, " ".join(sorted(flags())).encode(), repr((COMMON, FLAGS)).encode(), *(f.read_bytes() for f in SOURCES)]
    name = f"kernels-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    place = cache()
    try:
        place.mkdir(parents=True, exist_ok=True)
        writable = os.access(place, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        place = Path(tempfile.mkdtemp(prefix="kernels-"))
    if (place / name).is_file():
        return place / name
    temporary = place / f".{uuid.uuid4().hex}.so"  # two processes may build at once: each its own, the rename is atomic
    try:
        for extra in FLAGS:
            command = [program, *COMMON, *extra, "-o", str(temporary), *map(str, SOURCES)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
            if done.returncode == 0:
                os.replace(temporary, place / name)
                return place / name
        raise OSError(f"the compiler refused the kernels: {done.stderr.strip()[-300:]}")
    finally:
        temporary.unlink(missing_ok=True)

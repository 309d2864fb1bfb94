"""C kernels for processors: compiled on first use, cached, tested against the references, then used.

plan.h        what a stored matrix is to all of these files; plans.py makes it from the stored tensors
vectors.h     16 lanes for three kinds of processor: AVX-512, AVX2, plain C
matrix.h      the matrix unit of some processors (AMX)
formats.h     how each kind of matrix is decoded; chain.h: tensor trains
loops.h       what the stages of a product hand to each other
  input.c     prepares the activations
  token.c     multiplies one token
  panel.c     multiplies many tokens; matrix.c: by the matrix unit
  product.c   whole matrices: chooses a way for each and adds up the parts
step.c        whole decoder layers in one call
team.c        the threads

`library()` gives the loaded library or None. The first call begins to build it in the background; until it is
ready, PyTorch multiplies, and the label says so. `wait()` waits for the build; call it before you measure.
`status()` says in words whether C or PyTorch multiplies, and why. Nothing is built at import.

Built libraries are cached by their source, the compiler and the processor's flags. A library that can't be
built or loaded, or that fails its self-test, is never used. A library that passed isn't tested again.

COMPRESSION_EXPLORER_KERNELS = pytorch switches the C kernels off; = avx512, avx2_vnni, avx2 or portable
forces that path. $CFLAGS come after our flags.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import threading
from pathlib import Path

from kernels.home import home, scratch, usable

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("*.c"))
HEADERS = sorted(HERE.glob("*.h"))
COMMON = ("-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-std=gnu11")
NATIVE = ("-march=native", "-mprefer-vector-width=512")
FLAGS = {  # value of $COMPRESSION_EXPLORER_KERNELS -> sets of compiler flags; the first that works is taken
    "": (
        (*NATIVE, "-fopenmp"),
        ("-march=native", "-fopenmp"),
        ("-mcpu=native", "-fopenmp"),
        ("-march=native",),
        (),
    ),
    # an old compiler doesn't know the matrix unit
    "avx512": ((*NATIVE, "-mno-amx-tile", "-fopenmp"), (*NATIVE, "-fopenmp")),
    "avx2_vnni": (("-march=x86-64-v3", "-mavxvnni", "-fopenmp"),),
    "avx2": (("-march=x86-64-v3", "-fopenmp"), ("-mavx2", "-mfma", "-mf16c", "-fopenmp")),
    "portable": (("-fopenmp",), ()),
}
BUILD_SECONDS = 120
_lock = threading.Lock()
_built_in: threading.Thread | None = None
_library: ctypes.CDLL | None = None
_reason = "not built yet"


def cache() -> Path:
    """The folder of built libraries: in the home, or a temporary one if this folder can't be written."""
    return usable(home() / "kernels")


def compiler() -> str | None:
    """The C compiler's path: $CC, else cc, gcc or clang; None if there is none."""
    return next(
        (
            path
            for name in (os.environ.get("CC"), "cc", "gcc", "clang")
            if name and (path := shutil.which(name))
        ),
        None,
    )


def _system_entry(*names: str) -> str:
    """The system's entry on the processor under the first of `names` that it has; "" if it has none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def processor() -> str:
    """The processor's name, without anything that names the machine."""
    return _system_entry("model name") or platform.processor() or platform.machine()


@functools.cache
def flags() -> frozenset[str]:
    """What the processor can do, as the system names it."""
    return frozenset(_system_entry("flags", "Features").split())


def instructions() -> str:
    """The vector instructions that the loaded library uses, for labels; "" without a library."""
    c = library()
    return c.instructions().decode() if c is not None else ""


def library() -> ctypes.CDLL | None:
    """The C kernels, ready and tested, or None. The first call begins to build them in the background."""
    global _built_in
    if _built_in is None:
        with _lock:
            if _built_in is None:
                _built_in = threading.Thread(target=_build, daemon=True)
                _built_in.start()
    return _library


def wait() -> ctypes.CDLL | None:
    """The C kernels, ready and tested, or None; waits until the build has ended."""
    library()
    _built_in.join()
    return _library


def forget() -> None:
    """Start over: the next call builds or loads again. Needed after a change of the environment."""
    global _built_in, _library, _reason
    if _built_in is not None:
        _built_in.join()
    _built_in, _library, _reason = None, None, "not built yet"


def status() -> str:
    """Why the C kernels serve, or why they don't."""
    return "being built" if _built_in is not None and _built_in.is_alive() else _reason


def _build() -> None:
    global _library, _reason
    try:
        loaded, _reason = _tested(os.environ.get("COMPRESSION_EXPLORER_KERNELS", "").lower())
    except Exception as error:  # whatever happens here: PyTorch serves, and `status` gives the reason
        loaded, _reason = None, f"{type(error).__name__}: {error}"
    _library = loaded


def _tested(path: str) -> tuple[ctypes.CDLL | None, str]:
    """(the library in a file, or None; why)."""
    if path == "pytorch":
        return None, "switched off by COMPRESSION_EXPLORER_KERNELS"
    if path not in FLAGS:
        return (
            None,
            f"COMPRESSION_EXPLORER_KERNELS = {path!r}; allowed: {', '.join(filter(None, FLAGS))}, pytorch",
        )
    file = _file(path)
    loaded = _loaded(file) or _loaded(file := _file(path))  # a damaged file is built anew, once
    if loaded is None:
        return None, "the built library can't be loaded"
    passed, digest = file.with_suffix(".passed"), hashlib.sha256(file.read_bytes()).hexdigest()
    if not passed.is_file() or passed.read_text("utf-8") != digest:
        from kernels.cpu.selftest import failure

        if wrong := failure(loaded):
            file.unlink(missing_ok=True)
            return None, f"self-test failed: {wrong}"
        try:
            passed.write_text(digest, "utf-8")  # this file needn't be tested again
        except OSError:
            pass
    return loaded, f"built for {loaded.instructions().decode()}"


def _loaded(file: Path) -> ctypes.CDLL | None:
    """Load the library in a file. A file that is no library is removed."""
    try:
        found = ctypes.CDLL(str(file))
        found.instructions.restype = ctypes.c_char_p
        found.plan_bytes.restype = ctypes.c_int64
        found.product.argtypes = (
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int,
        )
        found.takes_matrix.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        found.step.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        found.cache_encode.argtypes = (
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_int64,
        )
        found.cache_encode.restype = ctypes.c_uint16
        for limit in (found.limit_int8, found.limit_float):
            limit.argtypes, limit.restype = (ctypes.c_int64, ctypes.c_int), ctypes.c_int64
        found.rows.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
        return found
    except (OSError, AttributeError):
        file.unlink(missing_ok=True)
        return None


def is_built() -> bool:
    """Whether no build is outstanding: the library is on this disk, or it can't or needn't be built."""
    path = os.environ.get("COMPRESSION_EXPLORER_KERNELS", "").lower()
    program = compiler()
    if _library is not None or program is None or path not in FLAGS:
        return True
    try:
        return _place(path, program).is_file()
    except (OSError, subprocess.SubprocessError):
        return True


def _file(path: str) -> Path:
    """The library's file, built if it isn't there. Raises OSError or SubprocessError."""
    program = compiler()
    if program is None:
        raise FileNotFoundError("no C compiler (cc, gcc or clang)")
    file = _place(path, program)
    if not file.is_file():
        build(file, program, FLAGS[path])
    return file


def _place(path: str, program: str) -> Path:
    """Where the library of these sources, this compiler and this processor lies."""
    about = subprocess.run([program, "--version"], capture_output=True, timeout=10).stdout
    parts = [about, " ".join(sorted(flags())).encode(), repr((COMMON, FLAGS[path], _openmp())).encode()]
    parts += [os.environ.get("CFLAGS", "").encode(), *(file.read_bytes() for file in (*SOURCES, *HEADERS))]
    return cache() / f"kernels-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"


def build(file: Path, program: str, choices: tuple[tuple[str, ...], ...]) -> None:
    """Compile the sources side by side and link them into `file`.

    `choices` are sets of flags, tried in turn. Raises OSError if the compiler refuses all of them.
    """
    with scratch(file.parent) as folder:  # another process may build at the same time, in its own folder
        for extra in choices:
            objects = [folder / f"{source.stem}.o" for source in SOURCES]
            options = [*COMMON, *extra, *os.environ.get("CFLAGS", "").split()]
            commands = [
                [program, *options, "-c", str(s), "-o", str(o)] for s, o in zip(SOURCES, objects, strict=True)
            ]
            running = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
            said = [p.communicate(timeout=BUILD_SECONDS)[1] for p in running]
            if not any(p.returncode for p in running):
                temporary = folder / "kernels.so"
                threads = _openmp() if "-fopenmp" in extra else []
                rest = [f for f in extra if not (threads and f == "-fopenmp")]
                link = [program, *rest, "-shared", "-o", str(temporary), *map(str, objects), *threads, "-lm"]
                done = subprocess.run(link, capture_output=True, text=True, timeout=BUILD_SECONDS)
                said = [done.stderr]
                if done.returncode == 0:
                    os.replace(temporary, file)  # whole or not at all
                    return
        raise OSError(f"the compiler refused the kernels: {' '.join(said).strip()[-300:]}")


def _openmp() -> list[str]:
    """The flags for PyTorch's own thread library, so that both share one team; [] if PyTorch has none."""
    import torch

    folder = Path(torch.__file__).parent
    found = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    return [str(found[0])] if found else []


def product(plan, x, threads: int | None = None):
    """x [..., in] times the transpose of a plan's matrix -> [..., out] in x's dtype; computed in float32."""
    import torch

    out, n = plan.shape
    flat = x.detach()
    if flat.dtype is not torch.float32 or not flat.is_contiguous():
        flat = flat.to(torch.float32).contiguous()
    tokens = flat.numel() // n if n else 0
    y = torch.empty((*x.shape[:-1], out))
    if _library.product(
        plan.address, flat.data_ptr(), y.data_ptr(), tokens, threads or torch.get_num_threads()
    ):
        raise MemoryError("out of memory in a product")
    return y if x.dtype is torch.float32 else y.to(x.dtype)


def look_up_pays() -> bool:
    """Whether looking up a token's sums over binary-coded planes is faster here than adding (vectors.h)."""
    return _library is not None and bool(_library.look_up_pays())


def takes_matrix(plan, tokens: int) -> bool:
    """Whether the processor's matrix unit multiplies `tokens` tokens by a plan's matrix."""
    return bool(_library.takes_matrix(plan.address, tokens))


def rows(plan, ids):
    """Rows ids [n] of a plan's matrix as float32 [n, in]."""
    import torch

    ids = ids.reshape(-1).to(torch.int64).contiguous()
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < plan.shape[0]):
        raise IndexError(f"got rows {int(ids.min())} to {int(ids.max())}; the matrix has {plan.shape[0]}")
    if plan.kind == "LOW_RANK":
        v, u = plan.parts
        return rows(u, ids) @ rows(v, torch.arange(v.shape[0]))
    if plan.kind == "SUM":
        return rows(plan.parts[0], ids) + rows(plan.parts[1], ids)
    if plan.adds:
        return plan.matrix()[ids]
    out = torch.empty(len(ids), plan.shape[1])
    if _library.rows(plan.address, ids.data_ptr(), len(ids), out.data_ptr()):
        raise MemoryError("out of memory while rows are decoded")
    return out

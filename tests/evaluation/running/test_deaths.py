"""How processes and runs end, told as what it was; the limits of memory and processors that this system
sets."""

from __future__ import annotations

import errno
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compression.base import CompressionError, ModelUnavailable
from compression.disk import DiskFull, check_room
from evaluation import host, limits
from evaluation.page.words import LANGUAGES, Words
from evaluation.running import deaths


def raised(work) -> BaseException:
    with pytest.raises(Exception) as caught:
        work()
    return caught.value


def wrapped(error: BaseException, other: BaseException) -> BaseException:
    """`other`, raised while `error` was handled: as libraries do."""
    try:
        try:
            raise error
        except BaseException:
            raise other  # noqa: B904
    except BaseException as both:
        return both


MEMORY = {
    "python": lambda: MemoryError(),
    "numpy": lambda: raised(lambda: np.empty(1 << 60, np.uint8)),
    "torch": lambda: raised(lambda: torch.empty(1 << 60, dtype=torch.uint8)),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cublas": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"
    ),
    "C++": lambda: RuntimeError("std::bad_alloc"),
    "a system call": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    "safetensors": lambda: _safetensors(
        "Error while serializing: I/O error: Cannot allocate memory (os error 12)"
    ),
    "a thread": lambda: RuntimeError("can't start new thread"),
    "an import": lambda: ImportError(
        "libx.so: failed to map segment from shared object: Cannot allocate memory"
    ),
    "behind another": lambda: wrapped(MemoryError(), RuntimeError("the layer could not be read")),
}
FULL = {
    "a write": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "a quota": lambda: OSError(errno.EDQUOT, "Disk quota exceeded"),
    "safetensors": lambda: _safetensors(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),
    "torch": lambda: RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0: No space left on device"
    ),
    "the hub": lambda: OSError("Not enough free disk space to download the file."),
    "behind another": lambda: wrapped(
        OSError(errno.ENOSPC, "No space left on device"), RuntimeError("could not save")
    ),
    "asked before": lambda: raised(lambda: check_room("/", 1 << 62)),
}


def _safetensors(words: str) -> Exception:
    from safetensors import SafetensorError

    return SafetensorError(words)


@pytest.mark.parametrize("kind", MEMORY)
def test_memory_that_ran_out_is_told_as_that(kind):
    error = MEMORY[kind]()
    told = deaths.describe(error)
    assert (
        told["code"] == "out_of_memory"
        and deaths.status(error) == "oom"
        and told["facts"]["limit_bytes"] > 1e8
    )


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_is_told_as_that_and_how_much_is_free(kind):
    error = FULL[kind]()
    told = deaths.describe(error)
    assert (
        told["code"] == "disk_full" and deaths.status(error) == "failed" and told["facts"]["free_bytes"] > 0
    )
    said = Words("en").error(told)["what"]
    assert "are free" in said and "?" not in said and (("are needed" in said) is isinstance(error, DiskFull))


@pytest.mark.parametrize(
    "number, code",
    [
        (errno.EROFS, "not_writable"),
        (errno.EACCES, "not_writable"),
        (errno.EIO, "disk_broken"),
        (errno.EFBIG, "file_limit"),
        (errno.EMFILE, "too_many_open"),
        (errno.ENOENT, "error"),
    ],
)
def test_other_errors_of_the_system(number, code):
    assert deaths.describe(OSError(number, os.strerror(number)))["code"] == code


def test_real_writing_beyond_a_limit_is_told(tmp_path):
    """What the real libraries say, in a process of its own whose files may hold little."""
    import resource

    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            codes = []
            for write in (
                lambda: (tmp_path / "a").write_bytes(bytes(9000)),
                lambda: save_file({"a": torch.zeros(9000)}, tmp_path / "b"),
            ):
                try:
                    write()
                    codes.append("written")
                except Exception as error:
                    codes.append(deaths.describe(error)["code"])
            os._exit(0 if codes == ["file_limit", "file_limit"] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(
    "error, code",
    [
        (ModelUnavailable("out of memory is its name", code="unknown_model"), "unknown_model"),
        (ValueError("no space left on device"), "error"),
        (KeyError("out of memory"), "error"),
        (RuntimeError("shapes differ"), "error"),
        (wrapped(DiskFull("full", free_bytes=1), RuntimeError("while saving")), "disk_full"),
    ],
)
def test_nothing_else_is_taken_for_it(error, code):
    assert deaths.describe(error)["code"] == code


@pytest.mark.parametrize(
    "name, status, code",
    [
        ("SIGKILL", "oom", "worker_killed"),
        ("SIGBUS", "failed", "worker_bus"),
        ("SIGSEGV", "failed", "worker_crashed"),
        ("SIGABRT", "failed", "worker_crashed"),
        ("SIGFPE", "failed", "worker_crashed"),
        ("SIGILL", "failed", "worker_instruction"),
        ("SIGTERM", "failed", "worker_ended"),
        ("SIGINT", "failed", "worker_ended"),
        ("SIGHUP", "failed", "worker_ended"),
    ],
)
def test_each_death_has_its_own_words_in_every_language(name, status, code):
    number = int(signal.Signals[name])
    for shown in (-number, 128 + number):  # as Python gives it, and as a shell does
        found, error = deaths.of_exit(shown)
        assert (found, error["code"]) == (status, code)
        for language in LANGUAGES:
            words = Words(language).error(error)
            assert (
                words["what"] != Words(language)("error.error.what")
                and "?" not in words["what"].replace("？", "")
                and words["do"]
            )


@pytest.mark.parametrize(
    "code, said, expected",
    [
        (
            -6,
            "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n",
            ("oom", "out_of_memory"),
        ),
        (1, "Traceback\nMemoryError\n", ("oom", "out_of_memory")),
        (1, "OSError: [Errno 28] No space left on device\n", ("failed", "disk_full")),
        (
            1,
            "ImportError: libtorch.so: failed to map segment: Cannot allocate memory\n",
            ("oom", "out_of_memory"),
        ),
        (1, "ModuleNotFoundError: No module named 'x'\n", ("failed", "worker_died")),
        (0, "", ("failed", "worker_died")),
        (-15, "warning: out of memory is near\n", ("failed", "worker_ended")),
    ],
)
def test_what_it_said_last_counts(code, said, expected):
    status, error = deaths.of_exit(code, said)
    assert (status, error["code"]) == expected


def test_the_systems_own_count_makes_it_certain(monkeypatch):
    monkeypatch.setattr(limits, "oom_kills", lambda: 4)
    assert (
        deaths.of_exit(-9, kills=3)[1]["code"] == "out_of_memory"
        and deaths.of_exit(137, kills=3)[1]["code"] == "out_of_memory"
    )
    assert (
        deaths.of_exit(-9, kills=4)[1]["code"] == "worker_killed"
        and deaths.of_exit(-9, kills=None)[1]["code"] == "worker_killed"
    )


# --- limits ---


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files of a control group tree: {path: content}."""
    monkeypatch.setattr(limits, "PROC", tmp_path / "proc")
    monkeypatch.setattr(limits, "TREE", tmp_path / "tree")

    def write(files: dict[str, str]):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)

    return write


def test_version_2_the_least_of_all_groups_above_counts(tree):
    tree(
        {
            "proc/self/cgroup": "0::/a/b\n",
            "tree/a/b/memory.max": "max\n",
            "tree/a/b/memory.current": "900000\n",
            "tree/a/b/cpu.max": "150000 100000\n",
            "tree/a/memory.max": "3000000\n",
            "tree/a/memory.current": "1500000\n",
            "tree/a/memory.stat": "anon 1\ninactive_file 500000\n",
            "tree/a/cpu.max": "50000 100000\n",
            "tree/a/b/memory.events": "low 0\noom 3\noom_kill 2\n",
            "tree/cpu.max": "max 100000",
        }
    )
    assert limits.memory_bytes() == 3_000_000 and limits.available_bytes() == 2_000_000, (
        "what is only kept at hand isn't used"
    )
    assert limits.processors() == 1 and limits.oom_kills() == 2 and host.threads() == 1


def test_version_1_and_a_container_that_sees_its_own_group_as_the_root(tree):
    tree(
        {
            "proc/self/cgroup": "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n1:name=systemd:/\n",
            "tree/memory/memory.limit_in_bytes": "2000000\n",
            "tree/memory/memory.usage_in_bytes": "2500000\n",
            "tree/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "tree/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "tree/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        }
    )
    assert limits.memory_bytes() == 2_000_000 and limits.available_bytes() == 0
    assert limits.processors() == 1 and limits.oom_kills() == 1


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n"},
        {"proc/self/cgroup": "0::/../..\n", "tree/memory.max": "max\n"},
        {
            "proc/self/cgroup": "4:memory:/\n",
            "tree/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "tree/memory/memory.usage_in_bytes": "5\n",
        },
        {"proc/self/cgroup": "0::/x\n", "tree/x/memory.max": "many\n", "tree/x/cpu.max": "-1 100000\n"},
    ],
)
def test_no_limit_is_the_machine(tree, files):
    import psutil

    tree(files)
    assert limits.memory_bytes() == psutil.virtual_memory().total and limits.oom_kills() is None
    assert limits.processors() == len(os.sched_getaffinity(0))


def test_a_process_limit_counts_too(monkeypatch):
    import resource

    monkeypatch.setattr(
        resource,
        "getrlimit",
        lambda kind: (1_000_000, 2_000_000) if kind == resource.RLIMIT_AS else (resource.RLIM_INFINITY,) * 2,
    )
    assert limits.memory_bytes() == limits.available_bytes() == 1_000_000


def test_a_speed_that_was_remembered_wrongly_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSION_EXPLORER_HOME", str(tmp_path))
    monkeypatch.setattr(host, "_gflops", lambda: 5.0)
    monkeypatch.setattr(host, "_gbytes_per_second", lambda: 6.0)
    name = f'{{"processor": "{host.processor()}", "threads": {host.threads()}, '
    for content in (
        "",
        "[]",
        name + '"gflops": "fast", "gbytes_per_second": 1, "memory_bytes": 1}',
        name + '"gflops": NaN, "gbytes_per_second": 1, "memory_bytes": 1}',
    ):
        (tmp_path / "host.json").write_text(content)
        assert host.profile().gflops == 5.0
    for content in ("", "nan", "-3", "1e9", "\x00"):
        (tmp_path / "pace.txt").write_text(content)
        assert host.pace() == 1.0


def test_a_timing_lock_that_cannot_be_had_here_is_that_of_the_temporary_folder(tmp_path, monkeypatch):
    import tempfile

    (tmp_path / "tmp").mkdir()
    (tmp_path / "home" / "timing.lock").mkdir(parents=True)
    monkeypatch.setenv("COMPRESSION_EXPLORER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with host.timing_lock(0.1) as alone:
        assert alone
    import filelock

    for error in (NotImplementedError("no locks here"), OSError(errno.ENOLCK, "No locks available")):
        monkeypatch.setattr(filelock.FileLock, "acquire", lambda *a, e=error, **k: (_ for _ in ()).throw(e))
        with host.timing_lock(0.1) as alone:
            assert not alone, "nobody can tell"


def test_a_stable_code_for_each():
    assert all(issubclass(e, CompressionError) for e in (DiskFull,))
    for codes in (
        {s[1] for s in deaths.SIGNALS.values()},
        {c for c, _ in deaths.ERRNOS.values()},
        {"out_of_memory", "disk_full", "figure_not_finite"},
    ):
        assert all(
            Words(language).has(f"error.{code}.{part}")
            for code in codes
            for part in ("what", "means", "do")
            for language in LANGUAGES
        )

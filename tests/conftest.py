"""Every test session works in a home of its own, so that nothing of the user's is read or written.

The workers of `make test` are one session. Each has its own home and one thread; the kernels and the offline
model are made once for all of them. A test marked `alone` runs while no other worker runs a test.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from tests import tiers

# pytest rewrites every assert; a collection of garbage among the libraries' objects would take most of the time
gc.disable()
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
GIGABYTES_PER_WORKER = 3
# a minute or more each, the longest first: begun last, they would end alone
FIRST = tuple(
    f"test_{name}.py"
    for name in (
        *("gpu", "variants", "cpu", "gates", "witness", "progress", "results", "explore", "runner", "late"),
        *("llm_qat", "qlora", "command", "export", "chat_and_reach", "plan", "app", "likelihood", "peqa"),
        *("chat", "distillation", "engine", "models"),
    )
)
# a worker, or a test's own process, lives in the session's folder
_outer = os.environ.get("COMPRESSION_EXPLORER_TESTS")
_session = Path(_outer or tempfile.mkdtemp(prefix="compression-explorer-tests-"))
_home = Path(tempfile.mkdtemp(prefix="home-", dir=_session))
os.environ |= {"COMPRESSION_EXPLORER_TESTS": str(_session), "COMPRESSION_EXPLORER_HOME": str(_home)}
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the hub says so itself
if WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One worker for each core that this process may use, as far as memory reaches."""
    from evaluation import host

    return max(1, min(host.threads(), int(host.available_bytes() / 1e9 / GIGABYTES_PER_WORKER), 8))


def pytest_configure(config):
    """Built kernels are kept from session to session: a library's name is the hash of all that it is made
    of."""
    kept = _session / "kernels"
    if os.access(config.rootpath, os.W_OK) and hasattr(config, "cache"):
        kept = config.cache.mkdir("kernels")
    kept.mkdir(exist_ok=True)
    (_home / "kernels").symlink_to(kept.resolve())


def pytest_sessionstart(session):
    """The first worker builds the kernels, the others wait for them."""
    if hasattr(session.config, "workerinput"):
        from kernels import cpu

        with FileLock(_session / "kernels.lock"):
            cpu.wait()


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="slow tests and whole products too (make test-all)")
    parser.addoption("--quick", action="store_true", help="a few short cases of each test (make quick)")


def pytest_collection_modifyitems(config, items):
    """The longest files first, the others as they come; what `make test-all` alone runs is left out."""
    place = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(FIRST)))
    if config.getoption("--all"):
        return
    named = {argument.split("::")[-1].partition("[")[0] for argument in config.args if "::" in argument}
    leave = tiers.not_quick if config.getoption("--quick") else tiers.left_out
    left = {id(item) for item in leave(items) if item.originalname not in named}
    if left:
        config.hook.pytest_deselected(items=[item for item in items if id(item) in left])
        items[:] = [item for item in items if id(item) not in left]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What is imported stays; from here on only what tests make is looked through for garbage."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """A turnstile and a room: who waits for an empty room holds the turnstile, so that nobody enters
    meanwhile."""
    if not hasattr(item.config, "workerinput"):
        yield
        return
    import fcntl

    with open(_session / "turnstile", "w") as turnstile, open(_session / "room", "w") as room:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield
        fcntl.flock(room, fcntl.LOCK_UN)


@pytest.fixture(scope="session")
def offline_model():
    """The name of the real model that comes by pip; converted once a session, each home's files are links to
    the same ones."""
    from compression import models
    from compression.catalogue import OFFLINE_MODEL

    first = _session / "offline-model"
    with FileLock(_session / "offline-model.lock"):
        if not first.is_dir():
            shutil.copytree(models.prepare(OFFLINE_MODEL), first, copy_function=os.link)
    if models.on_disk(OFFLINE_MODEL) is None:
        shutil.copytree(first, _home / "models" / OFFLINE_MODEL, copy_function=os.link)
    return OFFLINE_MODEL


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    gc.unfreeze()  # else libraries tell of leaks
    shutil.rmtree(_home if _outer else _session, ignore_errors=True)

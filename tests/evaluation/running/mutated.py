"""Asks copies of the program whether the shipped results are still fresh: `python mutated.py < jobs.json >
verdicts.json`.

A job is {"root": a copy's folder, "files": names of results}, its verdict {name: what differs}. Each job runs
in a process of its own, forked from one that has loaded the libraries and nothing of the program. But it has
compiled the first copy's files, and most files of the others are the same.
"""

import functools
import json
import os
import sys
import warnings
from importlib.machinery import SourceFileLoader
from pathlib import Path

import torch
import transformers.models.llama.modeling_llama  # noqa: F401

warnings.filterwarnings("ignore")


@functools.cache
def compiled(source: bytes):
    """Code of a file's content, wherever the file lies."""
    return compile(source, "a copy", "exec", dont_inherit=True)


def verdict(job: dict) -> dict:
    sys.path[0] = job["root"]
    torch.set_num_threads(1)
    from evaluation.benches import shipped

    return {name: shipped.why_stale(shipped.stored(shipped.RESULTS / name)) for name in job["files"]}


def apart(job: dict) -> dict:
    """The verdict of a job, found in a child."""
    read, write = os.pipe()
    if not os.fork():
        os.close(read)
        try:
            found = verdict(job)
        except Exception as error:
            found = {"error": [f"{type(error).__name__}: {error}"]}
        with os.fdopen(write, "w") as end:
            json.dump(found, end)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as end:
        found = json.load(end)
    os.wait()
    return found


if __name__ == "__main__":
    jobs = json.load(sys.stdin)
    sys.dont_write_bytecode = True
    SourceFileLoader.source_to_code = lambda self, source, *where, **how: compiled(bytes(source))
    for file in Path(jobs[0]["root"]).rglob("*.py"):
        compiled(file.read_bytes())
    json.dump([apart(job) for job in jobs], sys.stdout)

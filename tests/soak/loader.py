"""Loads folders, each in a process of its own that has the imports behind it: `python -m tests.soak.loader`.

in    {"kind": "model", "artifact" or "oracle", "folder": "...", "seconds": 25, "bytes": 9e9} as a JSON line
out   {"loaded": true, "logits": hash, "tokens": hash, "finite": true}, {"refused": code, "error": ...,
      "ours": true},
      {"hung": true} or {"died": exit code}, with "said" (what was printed to stdout) and "seconds"

The process that loads has "y" and a line's end on its standard input and no more memory than it is given.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

SAMPLE = "line 7 of a small text, 49"
STDOUT = 1


def load(kind: str, folder: str) -> dict:
    """What loading a folder gives, as JSON."""
    import torch

    from compression import artifact, models
    from compression.base import CompressionError

    try:
        bundle = models.load(folder) if kind == "model" else artifact.load(folder)
        ids = torch.arange(24)[None] % bundle.geometry.vocabulary
        with torch.no_grad():
            logits = bundle.module(input_ids=ids, use_cache=False).logits.float()
        tokens = bundle.tokenizer(SAMPLE)["input_ids"]
        return {
            "loaded": True,
            "finite": bool(torch.isfinite(logits).all()),
            "logits": logits.flatten()[::7].tolist(),
            "tokens": tokens,
        }
    except CompressionError as error:
        return {"refused": error.code, "error": str(error)[:300], "ours": True}
    except Exception as error:  # what the campaign looks for: an error that isn't ours
        return {"refused": "", "error": f"{type(error).__name__}: {error}"[:300], "ours": False}


def attempt(job: dict) -> dict:
    """Fork, load there, wait no longer than the job allows."""
    answer_in, answer_out = os.pipe()
    keys_in, keys_out = os.pipe()
    os.write(keys_out, b"y\n")
    os.close(keys_out)
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            os.dup2(keys_in, 0)
            os.dup2(said.fileno(), STDOUT)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            resource.setrlimit(resource.RLIMIT_AS, (int(job["bytes"]),) * 2)
            found = oracle(job["folder"]) if job["kind"] == "oracle" else load(job["kind"], job["folder"])
            sys.stdout.flush()
            os.write(answer_out, json.dumps(found).encode())
            os._exit(0)
        os.close(keys_in)
        os.close(answer_out)
        answered = bool(select.select([answer_in], [], [], job["seconds"])[0])
        text = _all(answer_in) if answered else b""
        if not answered:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(answer_in)
        said.seek(0)
        found = (
            json.loads(text)
            if text
            else {"died": os.waitstatus_to_exitcode(status)}
            if answered
            else {"hung": True}
        )
        return found | {
            "said": said.read(500).decode("utf-8", "replace"),
            "seconds": round(time.monotonic() - start, 1),
        }


def _all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def oracle(folder: str) -> dict:
    """What plain transformers makes of a folder: the same figures, or why it wouldn't take every tensor."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        module, told = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        ids = torch.arange(24)[None] % module.config.vocab_size
        with torch.no_grad():
            logits = module.eval()(input_ids=ids, use_cache=False).logits.float()
        return {
            "loaded": not any(
                told[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if k in told
            ),
            "logits": logits.flatten()[::7].tolist(),
        }
    except Exception as error:
        return {"loaded": False, "error": f"{type(error).__name__}: {error}"[:200]}


def serve() -> None:
    """Import what loading imports, so that each child begins with it; then take jobs."""
    import importlib

    import transformers

    import compression.artifact
    import compression.models  # noqa: F401

    for family in ("llama", "qwen2", "qwen3", "opt", "gpt2", "gpt_neox"):
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    for name in (
        "AutoModelForCausalLM",
        "AutoTokenizer",
        "AutoConfig",
        "PreTrainedTokenizerFast",
        "GenerationConfig",
    ):
        getattr(transformers, name)  # these come on demand
    importlib.import_module("transformers.modeling_rope_utils")
    importlib.import_module("torch._dynamo")
    transformers.utils.logging.set_verbosity_error()
    out = os.fdopen(os.dup(STDOUT), "w", buffering=1)
    os.dup2(2, STDOUT)
    for line in sys.stdin:
        job = json.loads(line)
        out.write(json.dumps(attempt(job)) + "\n")


if __name__ == "__main__":
    Path(os.environ["COMPRESSION_EXPLORER_HOME"]).mkdir(parents=True, exist_ok=True)
    serve()

"""Swaps task files into one compressed model, and compares the results.

    python -m evaluation task-files FOLDER a/task.safetensors b/task.safetensors --text a.txt --prompt "The"

FOLDER is what a run of `peqa` saved, or its name in the store. The model is loaded once. There is one row for
the scales that it came with, and one for each file in turn: the milliseconds of the swap, the perplexity on
the text, and how the prompt goes on. It prints one JSON object. Exit code 0; 1 if a file belongs to other
integers; 2 for a bad argument.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from compression import artifact, sample, task_files, texts
from compression.base import CompressionError
from compression.bundle import Bundle
from compression.likelihood import losses
from compression.texts import Windows
from evaluation.measuring.perplexity import perplexity
from evaluation.spec import BUILTIN_TEXT, TEXT_CHOICES
from evaluation.store import Store


def compare(
    bundle: Bundle, files: list[Path], windows: Windows | None, prompt: str = "", new_tokens: int = 32
) -> list[dict]:
    """A row for the model as it is (file None), then one for each task file, swapped in in this order.

    Raises TaskRefused.
    """
    rows = []
    for file in (None, *files):
        row: dict[str, Any] = {"file": file and str(file)}
        if file is not None:
            start = time.perf_counter()
            task_files.load(bundle, file)
            row["swap_ms"] = round(1e3 * (time.perf_counter() - start), 1)
        if windows is not None:
            row["perplexity"] = perplexity(losses(bundle, windows.ids))[0]
        if prompt:
            row["text"] = sample.complete(bundle, prompt, new_tokens)
        rows.append(row)
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation task-files", description=__doc__.split("\n")[0]
    )
    parser.add_argument("artifact", help="folder of a compressed model, or its name in the store")
    parser.add_argument("files", nargs="+", type=Path, help="task files")
    parser.add_argument("--text", default=BUILTIN_TEXT, help=f"text to measure on: {TEXT_CHOICES}")
    parser.add_argument("--tokens", type=int, default=4_096, help="tokens to measure on; 0: don't measure")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--prompt", default="", help="a text that each task goes on with")
    own = parser.parse_args(argv)
    try:
        source = Path(own.artifact) if Path(own.artifact).is_dir() else Store().artifact_folder(own.artifact)
        bundle, windows = artifact.load(source), None
        if own.tokens:
            windows = texts.windows(
                texts.load_text(own.text, "evaluation"),
                bundle.tokenizer,
                "raw",
                own.window,
                own.tokens,
                "evaluation",
            )
        rows = compare(bundle, own.files, windows, own.prompt)
    except (CompressionError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"protocol": windows and windows.protocol_id, "tasks": rows}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Write a compressed model for other programs, read it back, and measure both on the same windows.

    python -m evaluation export ARTIFACT OUT --format gptq_v2

ARTIFACT is a folder that a run saved, or its name in the store (`artifact` in the run's result). It prints
one JSON object: the file's bytes, notes, and both perplexities. (An adapter for PEFT has none, because its
base is not in the folder.) Exit code 0; 1 if the model can't be exported, or if what is read back doesn't
predict the same; 2 for a bad argument.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from compression import adapter, artifact, export, texts
from compression.base import CannotExport, CompressionError
from compression.folder import Folder
from compression.likelihood import losses
from compression.texts import Windows
from evaluation.measuring.perplexity import perplexity, ratio
from evaluation.spec import BUILTIN_TEXT, TEXT_CHOICES
from evaluation.store import Store

# relative difference of two perplexities that still counts as the same: tables are written back in 16 bits,
# and sums are taken in another order
SAME = 1e-3


def export_and_measure(source: Path, out: Path, form: str, windows: Windows | None) -> dict:
    """Export the artifact in `source` to `out`.

    With windows, also give the perplexity before, and that of the model that was read back.
    """
    label = json.loads((source / artifact.MANIFEST).read_text("utf-8"))["about"].get("label", "compressed")
    bundle = artifact.load(source)
    size, notes = export.write(bundle, out, form, label)
    found: dict[str, Any] = {"format": form, "bytes": size, "notes": [note.json() for note in notes]}
    if windows is None:
        return found
    before, after = losses(bundle, windows.ids), losses(export.read(out), windows.ids)
    found |= {
        "protocol": windows.protocol_id,
        "perplexity": perplexity(before)[0],
        "perplexity_read_back": perplexity(after)[0],
    }
    found |= {"ratio": ratio(after, before)[0]}
    for name in ("perplexity", "perplexity_read_back", "ratio"):
        if not math.isfinite(found[name]):
            raise CannotExport(
                f"{name} = {found[name]}: the model that "
                f"{'the artifact holds' if name == 'perplexity' else 'was read back'} "
                "doesn't predict; some weight is beyond the range of the type that it is stored in"
            )
    return found


def _tokenizer(source: Path):
    from compression import configs, tokenizer

    folder = Folder(source)
    described = configs.read(folder)
    return tokenizer.load(folder, described.architecture, described.geometry.vocabulary)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation export", description=__doc__.split("\n")[0])
    parser.add_argument("artifact", help="folder of a compressed model, or its name in the store")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--format", choices=export.FORMS, default="gptq_v2")
    parser.add_argument("--text", default=BUILTIN_TEXT, help=f"text to measure on: {TEXT_CHOICES}")
    parser.add_argument("--tokens", type=int, default=4_096, help="tokens to measure on; 0: don't measure")
    parser.add_argument("--window", type=int, default=512)
    own = parser.parse_args(argv)
    try:
        source = Path(own.artifact) if Path(own.artifact).is_dir() else Store().artifact_folder(own.artifact)
        windows = None
        if own.tokens and own.format != adapter.FORM:
            text = texts.load_text(own.text, "evaluation")
            windows = texts.windows(text, _tokenizer(source), "raw", own.window, own.tokens, "evaluation")
        found = export_and_measure(source, own.out, own.format, windows)
    except (CompressionError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, ensure_ascii=False, allow_nan=False))
    if abs(found.get("ratio", 1.0) - 1) > SAME:
        print("error: what is read back predicts differently", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What fits into a memory, in a terminal; nothing is downloaded but a hub model's config.

python -m evaluation plan llama-3.1-8b-instruct --memory 8 --context 8192
"""

from __future__ import annotations

import argparse

from compression import models
from compression.base import CompressionError, ModelUnavailable
from evaluation.choosing.planner import MACHINES, Need, plan
from evaluation.page.words import Words
from evaluation.running.estimate import geometry_for
from evaluation.store import Store


def main(argv: list[str]) -> int:
    """Exit code 0 if something fits, 1 if nothing does, 2 for a model or number that can't be used."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation plan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="a catalogue name, a hub id or a folder")
    parser.add_argument("--memory", type=float, metavar="GB", help="memory in GB (1e9 bytes)")
    parser.add_argument(
        "--machine", choices=[m.key for m in MACHINES], help="its memory, and a limit of its speed"
    )
    parser.add_argument("--context", type=int, default=4_096, metavar="TOKENS")
    parser.add_argument("--cache_bits", type=int, choices=(16, 8, 4), default=16)
    asked = parser.parse_args(argv)
    if (asked.memory is None) == (asked.machine is None):
        parser.error("give one of --memory and --machine")
    if asked.context < 1 or (asked.memory is not None and not asked.memory > 0):
        parser.error("--memory and --context are above 0")
    machine = next((m for m in MACHINES if m.key == asked.machine), None)
    need = Need(
        machine.memory_bytes if machine else asked.memory * 1e9,
        asked.context,
        asked.cache_bits,
        machine.bandwidth if machine else 0.0,
    )
    try:
        geometry = _geometry(asked.model)
    except CompressionError as error:
        parser.error(str(error))
    store, words = Store(), Words("en")
    found = plan(geometry, need, asked.model, [*store.shipped(), *store.own()])
    print(f"{'way':<34}{'file':>10}{'memory':>10}  {'fits':<6}{'perplexity':<12}")
    for option in found:
        known = option.known
        quality = "" if known is None else f"{known.ratio:.2f}x  {known.kind} {known.where} {known.source}"
        print(
            f"{words.recipe(option.recipe, True):<34}{words.size(option.file_bytes):>10}"
            f"{words.size(option.need_bytes):>10}  {'yes' if option.fits else 'no':<6}{quality.rstrip()}"
        )
    return 0 if found[0].fits else 1


def _geometry(model: str):
    """A model's sizes; a hub model's config is asked for if it isn't here."""
    try:
        return geometry_for(model)
    except ModelUnavailable as error:
        if error.code != "size_unknown":
            raise
        return models.sizes_before_download(model).geometry

"""Measures how much two texts have in common, however they are laid out.

Line ends, white space, letter case and the order of lines don't matter. Two texts share a passage if RUN
characters in a row are equal, without white space. They share a line if a whole line of at least LINE
characters is equal, wherever it stands. Both are counted in characters of the distinct passages or lines, so
a text that repeats itself counts once. Common short lines (headings, "Yes.") don't count.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np

RUN, LINE = 100, 40  # characters without white space
FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
# soft hyphens, zero-width characters, marks of direction and of byte order
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
# how many passages of a text are compared; of a longer text only some are, chosen by their own content
KEPT = 250_000
BLOCK = 1 << 20  # characters hashed at a time


def in_common(a: str, b: str) -> tuple[int, int]:
    """(characters that both texts hold, characters of the text that has fewer).

    They are counted over distinct passages or over distinct lines, whichever gives more.
    """
    plain = [INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold() for text in (a, b)]
    lines = [_lines(text) for text in plain]
    solid = ["".join(text.split()) for text in plain]
    run = max(1, min(RUN, *map(len, solid)))
    every = max(1, max(map(len, solid)) // KEPT)
    marks = [_marks(text, run, every) for text in solid]
    by_run = len(np.intersect1d(marks[0], marks[1], assume_unique=True)) * every, min(map(len, marks)) * every
    by_line = sum(map(len, lines[0] & lines[1])), min(sum(map(len, own)) for own in lines)
    return max(by_run, by_line, key=lambda pair: pair[0] / max(pair[1], 1))


def _lines(text: str) -> set[str]:
    """Distinct lines of at least LINE characters, without white space."""
    solid = ("".join(line.split()) for line in text.splitlines())
    return {line for line in solid if len(line) >= LINE}


def _marks(text: str, run: int, every: int) -> np.ndarray:
    """Hashes uint64 [n], distinct and sorted, of passages of `run` characters.

    Only passages whose hash is a multiple of `every` are kept.

    A passage from i on is sum_j c[i + j] f^j modulo 2^64: a difference of two running sums over c[k] f^k,
    divided by f^i.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(BLOCK + run, FACTOR, dtype=np.uint64))
        inverse = np.cumprod(np.full(BLOCK + run, pow(FACTOR, -1, 1 << 64), dtype=np.uint64))
        found = []
        for start in range(0, max(len(codes) - run + 1, 0), BLOCK):
            part = codes[start : start + BLOCK + run - 1].astype(np.uint64) + np.uint64(1)
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(part * powers[: len(part)])])
            hashes = (sums[run:] - sums[:-run]) * inverse[: len(sums) - run]
            hashes ^= hashes >> np.uint64(31)  # mixes the high bits of a product into its low bits
            hashes *= np.uint64(0xBF58476D1CE4E5B9)
            hashes ^= hashes >> np.uint64(29)
            found.append(hashes[hashes % np.uint64(every) == 0])
    marks = np.sort(np.concatenate(found)) if found else np.zeros(0, np.uint64)
    # np.unique would take ten times as long
    return marks[np.concatenate([np.ones(1, bool), marks[1:] != marks[:-1]])[: len(marks)]]

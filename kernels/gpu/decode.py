"""Code that the Triton kernels share: reading packed codes (kernels/bits.py), and the sizes of tiles.

Eight codes of b bits fill b whole bytes. So a row is a sequence of words of 8 codes, and no code crosses a
word. A word of 2, 4 or 8 bytes is read as one integer (`as_words`; rows are whole words, so it is aligned);
any other word is read byte by byte.

A kernel for few tokens gives each thread one word of a row. All threads decode lane j (code j of their word)
at once, for j = 0 .. 7. The kernel's integer arguments are not specialised: if Triton knew that a row is a
multiple of 16 words, each thread would read four words, and every lane of x would be shuffled through shared
memory to meet them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW_TOKENS = 8  # up to here a product is bound by the weights' bytes and needs no tensor cores
SIZES = ["tokens", "out", "n", "words", "groups", "group"]  # a kernel's integers
# the integers among SIZES that are often no multiple of 16; the others tell Triton how x is aligned
ODD = ["tokens", "out", "words", "groups"]
# a product and the addition after it round once; Triton's default is about to change
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_words(codes: Tensor, bits: int) -> Tensor:
    """uint8 [out, words * bits] -> [out, words] integers of 8 codes each.

    If no integer type has the width of a word, the codes are returned as they are.
    """
    return codes.view(WORDS[bits]) if bits in WORDS else codes


def columns_of(n: int, group_size: int) -> int:
    """Columns in a group, the whole row rounded up to full words."""
    return -(-n // 8) * 8 if group_size == -1 else group_size


def few_tiles(tokens: int) -> dict:
    """The tile of a kernel for few tokens (all of them, BN rows, BW words) and how it is launched."""
    return {"BM": triton.next_power_of_2(tokens), "BN": 8 if tokens <= 2 else 4, "BW": 128} | LAUNCH


def many_tiles(tokens: int, dtype: torch.dtype) -> dict:
    """The tile of a kernel for many tokens, and how it is launched.

    Float32 is multiplied exactly, without tensor cores, in small tiles.
    """
    if dtype == torch.float32:
        return {"BM": 16, "BN": 32, "BK": 32} | LAUNCH
    if tokens <= 16:
        return {"BM": 16, "BN": 64, "BK": 64} | LAUNCH
    # with 4 warps, decoding bit planes spills registers
    return {"BM": 64, "BN": 64, "BK": 64} | LAUNCH | {"num_warps": 8}


@triton.jit
def eight_codes(codes, at, inside, BITS: tl.constexpr):
    """Words `at` (int64, any shape): int32 up to 4 bits, int64 above. Bits above 8 BITS may be set."""
    if BITS == 2 or BITS == 4 or BITS == 8:
        word = tl.load(codes + at, inside, 0)
        if BITS == 2:
            word = word.to(tl.int32)
    else:
        word = tl.load(codes + at * BITS, inside, 0).to(tl.int32 if BITS < 4 else tl.int64)
        for k in tl.static_range(1, BITS):
            word |= tl.load(codes + at * BITS + k, inside, 0).to(word.dtype) << (8 * k)
    return word


@triton.jit
def lane(word, J: tl.constexpr, BITS: tl.constexpr):
    """Code J of each word as float32, times 2 ** (BITS * J % 16). The caller divides x by the same factor.

    The code's bits are put into the mantissa of 2^23 where they stand, and 2^23 is subtracted. This is exact
    and takes one logical operation and one addition. Shifting, masking and converting would take three, and
    one of them is slow.
    """
    part = (word >> (BITS * J // 16 * 16)).to(tl.int32)
    code = (part & (((1 << BITS) - 1) << (BITS * J % 16))) | 0x4B000000
    return code.to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def code_at(codes, place, inside, BITS: tl.constexpr):
    """Code number `place` (int64) of a stream packed to BITS, as int32; read only where `inside`."""
    byte, shift = place * BITS // 8, (place * BITS % 8).to(tl.int32)
    word = tl.load(codes + byte, inside, 0).to(tl.int32)
    if 8 % BITS != 0:  # a code may go on in the next byte
        word |= tl.load(codes + byte + 1, inside & (shift + BITS > 8), 0).to(tl.int32) << 8
    return (word >> shift) & ((1 << BITS) - 1)


@triton.jit
def level_at(codes, stats, row, group, groups, inside, BITS: tl.constexpr):
    """A scale or zero point that is a code itself.

    codes: packed to BITS row by row; stats: float16 [runs of 16 rows, groups, 2], their scale and zero.
    """
    code = code_at(codes, row * groups + group, inside, BITS)
    at = (row // 16 * groups + group) * 2
    zero = tl.load(stats + at + 1, inside, 0.0).to(tl.float32)
    return tl.load(stats + at, inside, 0.0).to(tl.float32) * (code.to(tl.float32) - zero)


@triton.jit
def grid_at(scale, zero, scale_stats, zero_stats, row, group, groups, inside, LEVEL: tl.constexpr):
    """(scale, zero point) of row [BN, 1] (int64) and group [1, words], float32.

    LEVEL: the bits of their own codes; 0 if they are stored as numbers.
    """
    if LEVEL:
        s = level_at(scale, scale_stats, row, group, groups, inside, LEVEL)
        z = level_at(zero, zero_stats, row, group, groups, inside, LEVEL)
    else:
        s = tl.load(scale + row * groups + group, inside, 0.0).to(tl.float32)
        z = tl.load(zero + row * groups + group, inside, 0).to(tl.float32)
    return s, z


@triton.jit
def lane_of_x(x, token, word, tokens, n, J: tl.constexpr):
    """Column 8 w + J of every word w: float32 [tokens, words], zero outside of x [tokens, n]."""
    column = word[None, :] * 8 + J
    return tl.load(x + token[:, None] * n + column, (token[:, None] < tokens) & (column < n), 0.0).to(
        tl.float32
    )


@triton.jit
def tile_of_x(x, token, column, tokens, n):
    """x at token [BM], column [BK]: [BM, BK], zero outside of x [tokens, n]."""
    at = token[:, None].to(tl.int64) * n + column[None, :]
    return tl.load(x + at, (token[:, None] < tokens) & (column[None, :] < n), 0.0)


@triton.jit
def store_y(y, sums, token, row, tokens, out):
    """sums [BM, BN] to y [tokens, out] at token [BM], row [BN]."""
    at = token[:, None].to(tl.int64) * out + row[None, :]
    tl.store(y + at, sums.to(y.dtype.element_ty), (token[:, None] < tokens) & (row[None, :] < out))

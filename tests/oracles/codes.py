"""Codes as they are stored and looked up: packed bits, code books, binary planes."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np


def pack_bits(values, bits):
    """A row as one long integer, value k shifted by k * bits, cut into bytes; padded to a multiple of 8
    values."""
    whole = sum(int(v) << (bits * k) for k, v in enumerate(values))
    return list(whole.to_bytes(-(-len(values) // 8) * bits, "little"))


def nf4_table():
    """QLoRA's 16 quantiles: 8 of the upper half, zero, 7 of the lower half of a normal distribution, from the
    offset 1 - (1/32 + 1/30) / 2 to the middle, the largest scaled to 1."""
    quantile, offset = NormalDist().inv_cdf, 1 - (1 / 32 + 1 / 30) / 2
    upper = [quantile(offset + (0.5 - offset) * k / 8) for k in range(8)]
    lower = [-quantile(offset + (0.5 - offset) * k / 7) for k in range(7)]
    return np.array(sorted([*lower, 0.0, *upper])) / max(upper)


def code_book(weight, table, group_size):
    """Every weight over its group's largest |weight| (in half precision) to the nearest value, a tie to the
    lower one."""
    result = np.zeros(weight.shape)
    for r in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group_size):
            group = weight[r, start : start + group_size]
            scale = float(np.float16(np.abs(group).max()))
            for c, w in enumerate(group):
                result[r, start + c] = scale * min(table, key=lambda value: (abs(value - w / scale), value))
    return result


def dynamic_map():
    """bitsandbytes' 256 signed 8-bit values: after i zeros of seven the middles of 2^(6 - i) equal parts of
    0.1 to 1 times 10^-i, both signs, and 0 and 1."""
    values = [0.0, 1.0]
    for zeros in range(7):
        parts = 2 ** (6 - zeros)
        middles = [10.0**-zeros * (0.1 + 0.9 * (k + 0.5) / parts) for k in range(parts)]
        values += middles + [-m for m in middles]
    return sorted(values)


def double_quantized(weight, table, group_size):
    """(place in the table of every weight, code of every group's scale, what that code stands for) of QLoRA's
    double quantization: each weight over its group's largest |weight| to the nearest value; then the largest,
    less their mean over the matrix, over the largest of 256 in turn to the nearest of the dynamic map. Ties
    go to the lower value."""

    def nearest(x, values):
        return min(range(len(values)), key=lambda i: (abs(values[i] - x), values[i]))

    groups = weight.reshape(-1, group_size)
    largest = np.abs(groups).max(1)
    places = np.array(
        [[nearest(w / m, table) for w in group] for group, m in zip(groups, largest, strict=True)]
    )
    entries, rest = dynamic_map(), largest - largest.mean()
    codes, stood_for = [], []
    for start in range(0, len(rest), 256):
        run = rest[start : start + 256]
        codes += [nearest(r / np.abs(run).max(), entries) for r in run]
        stood_for += [entries[c] * np.abs(run).max() + largest.mean() for c in codes[start:]]
    return places.reshape(weight.shape), np.array(codes), np.array(stood_for)


def uniform_planes(codes, scale, zero, bits):
    """(signs [bits, out, in], alpha [bits], offset) of s (q - z): q = sum 2^k c_k, b_k = 2 c_k - 1."""
    signs = np.array([2 * ((codes.astype(int) >> k) & 1) - 1 for k in range(bits)])
    return signs, np.array([scale * 2.0 ** (k - 1) for k in range(bits)]), scale * ((2**bits - 1) / 2 - zero)


def greedy_planes(group, bits):
    """Park et al., equation 2: b = sign(r), alpha = mean |r|, plane after plane; sign(0) is +1."""
    rest, alpha = np.array(group, dtype=np.float64), []
    for _ in range(bits):
        alpha.append(np.abs(rest).mean())
        rest = rest - alpha[-1] * np.where(rest < 0, -1.0, 1.0)
    return alpha


def binary_codes(group, alpha, offset=None, rounds=15):
    """(alpha, offset or None, squared error after every round): for each weight the best of all 2^q sums, a
    tie to the larger; then the least-squares scales for these codes."""
    codes = list(itertools.product((-1.0, 1.0), repeat=len(alpha)))
    scales = [*alpha] + ([] if offset is None else [offset])
    history = []
    for k in range(rounds + 1):
        design, error = [], 0.0
        for w in group:
            rows = [[*code] + ([] if offset is None else [1.0]) for code in codes]
            sums = [float(np.dot(row, scales)) for row in rows]
            best = min(range(len(codes)), key=lambda i: (abs(w - sums[i]), -sums[i]))
            design.append(rows[best])
            error += (w - sums[best]) ** 2
        history.append(error)
        if k < rounds:
            scales = list(np.linalg.lstsq(np.array(design), np.array(group, dtype=np.float64), rcond=None)[0])
    return (
        sorted(map(abs, scales[: len(alpha)]), reverse=True),
        None if offset is None else scales[-1],
        history,
    )


def look_up_table(x):
    """T[key] for 8 inputs: the sum of +-x that the bits of the key say, each from a smaller key."""
    table = np.zeros(256)
    table[0] = -x.sum()
    for t in range(8):
        for key in range(2**t):
            table[key + 2**t] = table[key] + 2 * x[t]
    return table


def look_up_product(x, signs, alpha, offset, group_size):
    """y [out] for one token x [in]: each plane's byte looks its sum up; signs [q, out, in] +-1, alpha [q,
    out, groups], offset [out, groups]. Groups are multiples of 8 inputs; the row is filled up with zeros."""
    planes, out, n = signs.shape
    x = np.pad(np.asarray(x, dtype=np.float64), (0, -n % 8))
    signs = np.pad(signs, ((0, 0), (0, 0), (0, -n % 8)), constant_values=1)
    y = np.zeros(out)
    for chunk in range(0, len(x), 8):
        table, group = look_up_table(x[chunk : chunk + 8]), chunk // group_size
        for o in range(out):
            for k in range(planes):
                key = sum(1 << t for t in range(8) if signs[k, o, chunk + t] > 0)
                y[o] += alpha[k, o, group] * table[key]
            y[o] += offset[o, group] * table[255]
    return y

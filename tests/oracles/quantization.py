"""Grids, roundings and what is folded or kept aside: GPTQ, AWQ, OWQ, SpQR, SmoothQuant, ZeroQuant,
LLM.int8(), HQQ, LLM-QAT."""

from __future__ import annotations

import numpy as np


def gptq_columns(weight, hessian, scale, zero, top, order, finish=()):
    """GPTQ as optimal brain quantization column by column: after each column the inverse of the REMAINING
    damped Hessian is computed anew, and the remaining weights move by -(w - q) / [H^-1]_cc * [H^-1]_c,: (eq.
    2 and 3).

    weight [out, in]; hessian [in, in] damped; scale, zero [out, in] fixed grids; order: the columns in turn;
    finish: those that come last and are left as they are by then. Returns (codes, dequantized).
    """
    live = np.array(weight, dtype=np.float64)
    codes, result = np.zeros_like(live), np.zeros_like(live)
    remaining = [*order, *finish]
    while len(remaining) > len(finish):
        c = remaining[0]
        inverse = np.linalg.inv(hessian[np.ix_(remaining, remaining)])
        code = np.clip(np.round(live[:, c] / scale[:, c]) + zero[:, c], 0, top)
        codes[:, c], result[:, c] = code, scale[:, c] * (code - zero[:, c])
        error = (live[:, c] - result[:, c]) / inverse[0, 0]
        live[:, remaining] -= np.outer(error, inverse[0])
        remaining = remaining[1:]
    result[:, remaining] = live[:, remaining]
    return codes, result


def minmax_asym(row, bits):
    """(scale in half precision, zero) of one group by the definition."""
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    if low == high == 0.0:
        low, high = -1.0, 1.0
    scale = float(np.float16(max((high - low) / (2**bits - 1), np.finfo(np.float16).tiny)))
    return scale, float(np.clip(np.round(-low / scale), 0, 2**bits - 1))


def rtn(weight, bits, group_size):
    """(codes, dequantized) of round-to-nearest, weight by weight."""
    codes, result = np.zeros(weight.shape), np.zeros(weight.shape)
    size = weight.shape[1] if group_size == -1 else group_size
    for r in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            scale, zero = minmax_asym(weight[r, start : start + size], bits)
            for c in range(start, min(start + size, weight.shape[1])):
                codes[r, c] = min(max(round(float(weight[r, c]) / scale) + zero, 0), 2**bits - 1)
                result[r, c] = scale * (codes[r, c] - zero)
    return codes, result


def hqq(group, bits, iterations=20, p=0.7, beta=10.0, kappa=1.01):
    """(scale, zero, zeros tried) of one group: shrink the errors, then take the zero point that fits what is
    left; the zero point with the smallest sum of |error|^p is kept. Scale and zero in half precision."""
    low, high = float(group.min()), float(group.max())
    scale = float(np.float16((high - low) / (2**bits - 1)))
    zero = float(np.float16(-low / scale))
    tried = []
    for k in range(iterations + 1):
        codes = [min(max(float(np.round(w / scale + zero)), 0.0), 2.0**bits - 1) for w in group]
        errors = [w - scale * (q - zero) for w, q in zip(group, codes, strict=True)]
        tried.append((sum(abs(e) ** p for e in errors), zero))
        kept = [
            np.sign(e) * max(abs(e) - abs(e) ** (p - 1) / (beta * kappa**k), 0.0) if e else 0.0
            for e in errors
        ]
        zero = float(
            np.float16(np.mean([q - (w - e) / scale for w, q, e in zip(group, codes, kept, strict=True)]))
        )
    return scale, min(tried, key=lambda found: found[0])[1], tried


def llm_int8(x, weight, threshold, zero_point=False):
    """y [tokens, out]: token by token, values of at least `threshold` times the dequantized int8 weights, the
    others in int8 with one scale a token (the largest of the others / 127) and one an output row, summed as
    integers. zero_point: the others from their least (or 0) to their largest (or 0) fill the codes -127 to
    127, and the code z of 0 is taken off again."""
    scale = np.array([float(np.float16(np.abs(row).max() / 127)) for row in weight])
    codes = np.array([[int(np.round(w / s)) for w in row] for row, s in zip(weight, scale, strict=True)])
    y = np.zeros((len(x), len(weight)))
    for t, token in enumerate(x):
        large = np.abs(token) >= threshold
        least, most = token[~large].min(initial=0.0), token[~large].max(initial=0.0)
        step = ((most - least) / 254 if zero_point else max(most, -least) / 127) or 1.0
        z = int(np.round(-127 - least / step)) if zero_point else 0
        codes_of_x = [z if big else int(np.round(v / step)) + z for v, big in zip(token, large, strict=True)]
        assert all(-127 <= c <= 127 for c in codes_of_x)
        integers = np.array(codes_of_x) - z
        for o in range(len(weight)):
            total = sum(int(a) * int(b) for a, b in zip(integers, codes[o], strict=True))
            y[t, o] = total * step * scale[o] + sum(
                v * c * scale[o] for v, c in zip(token[large], codes[o][large], strict=True)
            )
    return y


def symmetric_minmax(row, bits, half=False):
    """(whole codes, values) of numbers that share one scale a = max |x| / (2^(bits-1) - 1), x^ = a round(x /
    a) (2305.17888, equations 1 and 2, one number at a time); half: a is kept in 16 bits."""
    a = max(abs(float(x)) for x in row) / (2 ** (bits - 1) - 1)
    a = float(np.float16(a)) if half else a
    codes = [float(np.round(float(x) / a)) if a else 0.0 for x in row]
    return np.array(codes), a * np.array(codes)


def straight_through(weight, x, probe, bits, activation_bits, symmetric=True):
    """(y, dL/dW, dL/dx) of L = sum(y * probe), y = x^ W^^T, rows of W and tokens of x rounded, gradients as
    if they were not: the plain product's, at the rounded values."""
    w = (
        np.stack([symmetric_minmax(row, bits, half=True)[1] for row in weight])
        if symmetric
        else rtn(weight, bits, -1)[1]
    )
    seen = (
        np.stack([symmetric_minmax(token, activation_bits)[1] for token in x])
        if activation_bits < 16
        else np.array(x, float)
    )
    y, towards_weight, towards_x = np.zeros((len(x), len(w))), np.zeros(w.shape), np.zeros(seen.shape)
    for t in range(len(x)):
        for i in range(len(w)):
            for j in range(w.shape[1]):
                y[t, i] += w[i, j] * seen[t, j]
                towards_weight[i, j] += float(probe[t][i]) * seen[t, j]
                towards_x[t, j] += float(probe[t][i]) * w[i, j]
    return y, towards_weight, towards_x


def awq_asym(group, bits):
    """(scale in half precision, zero) of one group by AWQ's definition: the range need not contain zero."""
    scale = float(np.float16(max(group.max() - group.min(), 1e-5) / (2**bits - 1)))
    return scale, float(np.clip(np.round(-group.min() / scale), 0, 2**bits - 1))


def awq_rtn(weight, bits, group_size):
    """Dequantized weight [out, in], group by group."""
    result = np.zeros(weight.shape)
    size = weight.shape[1] if group_size == -1 else group_size
    for r in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            group = weight[r, start : start + size]
            scale, zero = awq_asym(group, bits)
            result[r, start : start + size] = scale * (
                np.clip(np.round(group / scale) + zero, 0, 2**bits - 1) - zero
            )
    return result


def awq_search(weights, inputs, bits, group_size, exponents):
    """(s, losses) of AWQ's eq. 4 and 5 on the inputs themselves: the squared difference of outputs, summed
    over matrices."""
    inputs = inputs.astype(np.float64)
    loudness, losses, factors = np.abs(inputs).mean(0), [], []
    for a in exponents:
        s = np.maximum(loudness**a, 1e-4)
        s = s / np.sqrt(s.max() * s.min())
        factors.append(s)
        total = 0.0
        for weight in weights:
            outputs = (inputs / s) @ awq_rtn((weight * s).astype(np.float32), bits, group_size).T
            total += ((outputs - inputs @ weight.T.astype(np.float64)) ** 2).sum()
        losses.append(total)
    return factors[int(np.argmin(losses))], losses


def smoothing(inputs, weights, alpha):
    """SmoothQuant's s by eq. 4, channel by channel."""
    return np.array(
        [
            max(np.abs(inputs[:, j]).max(), 1e-5) ** alpha
            / max(max(np.abs(w[:, j]).max() for w in weights), 1e-5) ** (1 - alpha)
            for j in range(inputs.shape[1])
        ]
    )


def zeroquant(weight, bits, groups):
    """Dequantized weight: the matrix as one row of numbers, cut into equal parts, each rounded
    symmetrically."""
    parts = []
    for part in weight.astype(np.float64).reshape(groups, -1):
        scale = float(np.float16(2 * np.abs(part).max() / 2**bits))
        parts.append(scale * np.clip(np.round(part / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    return np.stack(parts).reshape(weight.shape)


def zeroquant_asym(weight, bits, groups):
    """The same with a zero point: scale = (max - min) / 2^bits, codes 0 to 2^bits - 1 counted from round(min
    / scale); 0 is in every range and its code at most the last one."""
    parts = []
    for part in weight.astype(np.float64).reshape(groups, -1):
        low, high = min(part.min(), 0.0), max(part.max(), 0.0)
        scale = float(np.float16((high - low) / 2**bits))
        start = max(np.round(low / scale), -(2.0**bits - 1))
        parts.append(scale * (np.clip(np.round(part / scale - start), 0, 2**bits - 1) + start))
    return np.stack(parts).reshape(weight.shape)


def cheapest_range(row, bits, ranges=40, power=2.4):
    """(scale in half precision, zero, error) of a row by OWQ's search: every k / ranges of (max - min), every
    zero point."""
    low, high, top = min(row.min(), 0.0), max(row.max(), 0.0), 2**bits - 1
    best = (None, None, np.inf)
    for k in range(1, ranges + 1):
        scale = float(np.float16((high - low) * k / ranges / top))
        for zero in range(top + 1):
            error = (
                np.abs(row - scale * (np.clip(np.round(row / scale) + zero, 0, top) - zero)) ** power
            ).sum()
            if error < best[2]:
                best = (scale, zero, error)
    return best


def owq(weight, hessian, loudness, ranked_on, fit, top, count, act_order):
    """(result, weak columns): the `count` columns of the largest H_jj ||W_j - Q_j||^2 come last and are never
    rounded to a grid; the others are rounded in turn, each time with the inverse of the REMAINING damped
    Hessian.

    loudness [in]: the diagonal of the undamped H; ranked_on: W rounded row by row; fit(rest) -> scale, zero
    [out, in], rest: the columns that the grid is for.
    """
    n = weight.shape[1]
    score = [loudness[j] * ((weight[:, j] - ranked_on[:, j]) ** 2).sum() for j in range(n)]
    ranking = sorted(range(n), key=lambda j: -(score[j] if count else loudness[j]))
    weak, rest = ranking[:count], ranking[count:]
    scale, zero = fit(rest)
    _, result = gptq_columns(
        weight, hessian, scale, zero, top, rest if act_order else sorted(rest), finish=weak
    )
    return result, sorted(weak)


def real_grid(values, bits):
    """(scale, real zero) from the smallest to the largest value; to 0 where all are equal."""
    low, high = values.min(), values.max()
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1) or 1.0
    return scale, -low / scale


def on_real_grid(values, scale, zero, bits):
    """(codes, what they stand for): rounded after the zero is added."""
    codes = np.clip(np.round(values / scale + zero), 0, 2**bits - 1)
    return codes, scale * (codes - zero)


def second_level(values, bits):
    """SpQR: 16 neighbouring rows' values on a grid of their own, its scale and zero in half precision: (code,
    scale, zero) a row."""
    rows = []
    for start in range(0, len(values), 16):
        run = values[start : start + 16]
        scale = float(np.float16(real_grid(run, bits)[0]))
        zero = float(np.float16(-run.min() / scale))
        rows += [(int(on_real_grid(v, scale, zero, bits)[0]), scale, zero) for v in run]
    return rows


def leave_one_out(group, root, bits):
    """Fall of sum(((w - w') / U_cc)^2) for each weight of one group [size] when it is left out of fit and
    sum."""

    def error(w, u):
        return (((w - on_real_grid(w, *real_grid(w, bits), bits)[1]) / u) ** 2).sum()

    return np.array(
        [error(group, root) - error(np.delete(group, j), np.delete(root, j)) for j in range(len(group))]
    )


def spqr(weight, hessian, groups, bits, level_bits, limit, leave_out, search):
    """(codes, result, outliers bool): SpQR with groups [list of columns, in the order of rounding], all as
    the paper says and with the inverse of the REMAINING damped Hessian at every column. An outlier keeps its
    value of that moment: what the code of 0 stands for and, in half precision, the rest. search: of each
    scale's and zero's nearest code and the two beside it the pair with the least error of the group, likely
    outliers left aside."""
    live, remaining = np.array(weight, dtype=np.float64), [c for group in groups for c in group]
    codes, result, outliers = np.zeros_like(live), np.zeros_like(live), np.zeros(live.shape, dtype=bool)
    root = {}  # U_cc, the square root of what the remaining inverse has at c when its turn comes
    for k, c in enumerate(remaining):
        root[c] = np.sqrt(np.linalg.inv(hessian[np.ix_(remaining[k:], remaining[k:])])[0, 0])
    for group in groups:
        roots, fits, likely = (
            np.array([root[c] for c in group]),
            [],
            np.zeros((len(live), len(group)), dtype=bool),
        )
        for r, row in enumerate(live[:, group]):
            if leave_out and np.isfinite(limit):
                likely[r] = leave_one_out(row, roots, bits) > limit
            fits.append(
                real_grid(np.where(likely[r], row[~likely[r]].sum() / max(1, (~likely[r]).sum()), row), bits)
            )
        scale, zero = np.array(fits).T
        if level_bits < 16:
            rows = zip(second_level(scale, level_bits), second_level(zero, level_bits), strict=True)
            for r, ((a, a_scale, a_zero), (b, b_scale, b_zero)) in enumerate(rows):
                pairs = [(a, b)] + [(i, j) for i in (a, a - 1, a + 1) for j in (b, b - 1, b + 1) if search]
                grids = [
                    (a_scale * (i - a_zero), b_scale * (j - b_zero))
                    for i, j in np.clip(pairs, 0, 2**level_bits - 1)
                ]
                off = [live[r, group] - on_real_grid(live[r, group], *g, bits)[1] for g in grids]
                errors = [(((e / roots) ** 2)[~likely[r]]).sum() for e in off]
                scale[r], zero[r] = grids[int(np.argmin(errors))]
        else:
            scale, zero = (t.astype(np.float16).astype(np.float64) for t in (scale, zero))
        for c in group:
            inverse = np.linalg.inv(hessian[np.ix_(remaining, remaining)])
            codes[:, c], result[:, c] = on_real_grid(live[:, c], scale, zero, bits)
            outliers[:, c] = ((live[:, c] - result[:, c]) / root[c]) ** 2 > limit
            code, base = on_real_grid(np.zeros(len(live)), scale, zero, bits)
            kept = base + (live[:, c] - base).astype(np.float16)
            codes[:, c], result[:, c] = np.where(outliers[:, c], (code, kept), (codes[:, c], result[:, c]))
            live[:, remaining] -= np.outer((live[:, c] - result[:, c]) / inverse[0, 0], inverse[0])
            remaining = remaining[1:]
    return codes, result, outliers


def w8a8(x, weight, activation_scale, weight_scale):
    """y [tokens, out] of symmetric 8-bit products as in SmoothQuant's eq. 2 and table 2: integers of x
    [tokens, in] by its scale (a number, or one a token), of weight [out, in] by its (a number, or one a row),
    cut at 127; sums of integers."""

    def whole(t, s):
        return np.clip(np.rint(t / s), -127, 127).astype(np.int64)

    sums = whole(x, activation_scale) @ whole(weight, weight_scale).T
    return sums * activation_scale * np.broadcast_to(weight_scale, (len(weight), 1)).T


def alpha_search(x, max_abs, weights, alphas, product):
    """The first alpha with the least squared error of all matrices' outputs; product(x, weight) rounds
    both."""

    def lost(alpha):
        s = [
            max(m, 1e-5) ** alpha / max(max(np.abs(w[:, j]).max() for w in weights), 1e-5) ** (1 - alpha)
            for j, m in enumerate(max_abs)
        ]
        return sum(np.square(product(x / s, w * s) - x @ w.T).sum() for w in weights)

    return min(alphas, key=lost)


def int8_attention(query, key, value, scaling, shared, static=None):
    """Causal attention of one sequence, head by head and query by query, both products sums of integers.
    query [heads, t, size], key and value [kv heads, all, size], the last t of which are the queries' own
    tokens; static: the three scales of "tensor"."""
    heads, t, size = query.shape
    total = key.shape[1]
    out = np.zeros((heads, t, size))

    def most(z):
        return max(np.abs(z).max(), 1e-30) / 127

    fixed = (
        static
        if shared == "tensor"
        else [most(z) for z in (query, key, value)]
        if shared == "dynamic_tensor"
        else None
    )

    def whole(z, s):
        return np.clip(np.rint(z / s), -127, 127).astype(np.int64)

    for h in range(heads):
        kv = h * key.shape[0] // heads
        for i in range(t):
            reach = total - t + i + 1
            sq = fixed[0] if fixed else most(query[h, i])
            sk = [fixed[1] if fixed else most(key[kv, j]) for j in range(reach)]
            sv = [fixed[2] if fixed else most(value[kv, j]) for j in range(reach)]
            scores = (
                np.array(
                    [whole(query[h, i], sq) @ whole(key[kv, j], sk[j]) * sq * sk[j] for j in range(reach)]
                )
                * scaling
            )
            chances = np.exp(scores - scores.max())
            chances /= chances.sum()
            weighted = chances * sv
            unit = weighted.max() / 127 if fixed is None else fixed[2] / 127
            out[h, i] = unit * sum(
                whole(weighted[j], unit) * whole(value[kv, j], sv[j]) for j in range(reach)
            )
    return out


def kivi(keys, values, bits, group, recent):
    """KIVI's cache (algorithm 1) of one head as the newest token sees it: keys, values [t, size]. All tokens
    but the last 1 to `recent` are codes, in blocks of `recent`; a group is `group` tokens of a channel of the
    keys, `group` channels of a token of the values. All wait in half precision first."""

    def half(v):
        return float(np.float16(v))

    def of_group(part):
        least, scale = half(part.min()), half((part.max() - part.min()) / (2**bits - 1))
        return [least + scale * min(max(np.rint((v - least) / (scale or 1)), 0), 2**bits - 1) for v in part]

    t, size = keys.shape
    old = (t - 1) // recent * recent
    keys, values = (np.array(x, np.float16).astype(float) for x in (keys, values))
    seen = [keys.copy(), values.copy()]
    for start in range(0, old, group):
        for c in range(size):
            seen[0][start : start + group, c] = of_group(keys[start : start + group, c])
    for row in range(old):
        for start in range(0, size, group):
            seen[1][row, start : start + group] = of_group(values[row, start : start + group])
    return seen


def llm_int8_by_column(x, weight, threshold, kept=()):
    """Eq. 8 of LLM.int8(), absmax: O are the columns in which any token of x [tokens, in] reaches the
    threshold, and those `kept` in half precision. Y = X_O W_O + diag(c_x) (int8 X int8 W) diag(c_w), the
    scales those of what is left; W_O of columns that aren't kept comes from the int8 weights."""
    kept = list(kept)
    rest = np.array(weight, float)
    rest[:, kept] = 0
    of_w = np.array([float(np.float16(np.abs(row).max() / 127)) or 1.0 for row in rest])
    whole = np.rint(rest / of_w[:, None])
    outliers = [j for j in range(x.shape[1]) if j in kept or any(abs(v) >= threshold for v in x[:, j])]
    inside = [j for j in range(x.shape[1]) if j not in outliers]
    y = np.zeros((len(x), len(weight)))
    for t, token in enumerate(x):
        of_x = np.abs(token[inside]).max(initial=0) / 127 or 1.0
        y[t] = of_x * of_w * (whole[:, inside] @ np.rint(token[inside] / of_x))
        for j in outliers:
            y[t] += token[j] * (np.float16(weight[:, j]).astype(float) if j in kept else of_w * whole[:, j])
    return y

"""Masks and importance: Wanda, SparseGPT, LLM-Pruner, LoRAPrune."""

from __future__ import annotations

import itertools

import numpy as np


def wanda_mask(weight, inputs, sparsity):
    """Removed places by the definition: in each row the lowest |w| * ||x||_2, floor(sparsity * in) of
    them."""
    norms = np.sqrt((inputs.astype(np.float64) ** 2).sum(0))
    removed = np.zeros(weight.shape, dtype=bool)
    count = int(np.floor(sparsity * weight.shape[1]))
    for r in range(weight.shape[0]):
        scores = [(abs(float(weight[r, c])) * norms[c], c) for c in range(weight.shape[1])]
        for _, c in sorted(scores)[:count]:
            removed[r, c] = True
    return removed


def sparsegpt(weight, hessian, dead, removed_of, runs, stored=lambda values, column: values):
    """(removed bool, result): optimal brain surgery one column at a time, the inverse of the REMAINING damped
    Hessian computed anew at each. runs: lists of neighbouring columns whose removals are chosen together,
    before their first column's turn, by removed_of(scores [out, len(run)]) -> bool; score = w^2 /
    [H_remaining^-1]_cc with the columns before c remaining no more, 0 where the input is dead. stored(values
    [out], column): what is stored of weights that stay.
    """
    live, n = np.array(weight, dtype=np.float64), weight.shape[1]
    removed, result = np.zeros(live.shape, dtype=bool), np.zeros_like(live)
    for run in runs:
        own = [np.linalg.inv(hessian[c:, c:])[0, 0] for c in run]
        scores = np.stack(
            [0 * live[:, c] if dead[c] else live[:, c] ** 2 / d for c, d in zip(run, own, strict=True)], 1
        )
        removed[:, run] = removed_of(scores)
        for c in run:
            inverse, remaining = np.linalg.inv(hessian[c:, c:]), list(range(c, n))
            result[:, c] = np.where(removed[:, c], 0.0, stored(live[:, c], c))
            live[:, remaining] -= np.outer((live[:, c] - result[:, c]) / inverse[0, 0], inverse[0])
    return removed, result


def lowest_scores(scores, count):
    """bool: the `count` lowest of all, the earlier row and column on a tie."""
    ranked = sorted((float(s), place) for place, s in np.ndenumerate(scores))
    chosen = np.zeros(scores.shape, dtype=bool)
    for _, place in ranked[:count]:
        chosen[place] = True
    return chosen


def resolved_in_turn(weight, hessian, removed):
    """Each row by itself: whenever a column is set to zero, the columns after it are solved for anew, those
    up to it fixed."""
    result = np.array(weight, dtype=np.float64)
    for r, row in enumerate(np.array(weight, dtype=np.float64)):
        for c in np.flatnonzero(removed[r]):
            result[r, c] = 0.0
            past, rest = slice(0, c + 1), slice(c + 1, None)
            moved = np.linalg.solve(hessian[rest, rest], hessian[rest, past] @ (row[past] - result[r, past]))
            result[r, rest] = row[rest] + moved
    return result


def masked_least_squares(weight, hessian, removed):
    """The best weights with these places zero: of each row, those that stay are solved for at once."""
    result = np.zeros(weight.shape)
    for r, row in enumerate(np.array(weight, dtype=np.float64)):
        stay = np.flatnonzero(~removed[r])
        result[r, stay] = np.linalg.solve(hessian[np.ix_(stay, stay)], hessian[stay] @ row)
    return result


def structure_importance(form, rows, texts):
    """LLM-Pruner's score of one structure, weight by weight. rows: the rows or columns [n] of matrices that
    make it; texts: for each text the gradients of its loss at the same places."""
    total = 0.0
    for r, row in enumerate(rows):
        inner = 0.0
        for i, w in enumerate(row):
            g = sum(text[r][i] for text in texts) / len(texts)
            f = sum(text[r][i] ** 2 for text in texts) / len(texts)
            term = {
                "vector": g * w,
                "element1": g * w,
                "element2": f * w * w,
                "mixed": g * w - f * w * w / 2,
                "l2": w * w,
            }[form]
            inner += term if form == "vector" else abs(term)
        total += abs(inner)
    return total


def lora_descent(a, b, da, db):
    """What one step of descent by (da, db) does to the product b a, with the sign turned (2305.18403), entry
    by entry."""
    out, n, rank = len(b), len(a[0]), len(a)
    moved = np.zeros((out, n))
    for i in range(out):
        for j in range(n):
            before = sum(float(b[i][k]) * float(a[k][j]) for k in range(rank))
            after = sum(
                (float(b[i][k]) - float(db[i][k])) * (float(a[k][j]) - float(da[k][j])) for k in range(rank)
            )
            moved[i, j] = before - after
    return moved


def lora_prune_importance(weight, a, b, da, db, scale, axis, size):
    """|G (W + c B A)| summed over each row (axis 0) or column (axis 1), divided by the length of the
    structures' sums, where `size` neighbouring rows or columns make a structure."""
    gradient = lora_descent(a, b, da, db)
    sums = [0.0] * weight.shape[axis]
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            whole = weight[i, j] + scale * sum(b[i, k] * a[k, j] for k in range(len(a)))
            sums[i if axis == 0 else j] += abs(gradient[i, j] * whole)
    structures = [sum(sums[k : k + size]) for k in range(0, len(sums), size)]
    length = sum(s * s for s in structures) ** 0.5
    return np.array(sums) / length


def owl(scores, factor, spread, sparsity):
    """OWL (2310.05175) by its definition. scores: for each block a list of matrices A. Gives the share that
    each block loses; blocks of one size."""
    shares = []
    for matrices in scores:
        entries = [float(a) for matrix in matrices for row in matrix for a in row]
        mean = sum(entries) / len(entries)
        shares.append(100 * sum(a > factor * mean for a in entries) / len(entries))
    kept = [2 * spread * (d - min(shares)) / (max(shares) - min(shares)) for d in shares]
    return [1 - (k - sum(kept) / len(kept) + 1 - sparsity) for k in kept]


def most_kept(scores, kept, of):
    """The largest sum that any order of the columns lets a pattern keep: every way to part them in groups."""
    columns = tuple(range(scores.shape[1]))

    def of_group(group):
        return sum(sum(sorted(row)[-kept:]) for row in scores[:, list(group)].tolist())

    def best(left):
        if not left:
            return 0.0
        first, rest = left[0], left[1:]
        return max(
            of_group((first, *others)) + best(tuple(c for c in rest if c not in others))
            for others in itertools.combinations(rest, of - 1)
        )

    return best(columns)

"""Factors: SVD-LLM, ASVD, PCA, NMF, LoRA, tensor trains."""

from __future__ import annotations

import numpy as np


def svd_llm(weight, inputs, rank):
    """The paper's form: whiten with the Cholesky factor of X^T X, truncate, multiply by its inverse."""
    gram = inputs.T @ inputs
    lower = np.linalg.cholesky(gram)
    u, s, vt = np.linalg.svd(weight @ lower, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank] @ np.linalg.inv(lower), s


def asvd(weight, inputs, rank, alpha):
    """The paper's form: the SVD of W S cut to `rank`, its right factor divided by S = mean|x|^alpha + 1e-6
    again."""
    scale = np.abs(inputs).mean(0) ** alpha + 1e-6
    u, s, vt = np.linalg.svd(weight @ np.diag(scale), full_matrices=False)
    return (u[:, :rank] * np.sqrt(s[:rank])) @ ((np.sqrt(s[:rank])[:, None] * vt[:rank]) @ np.diag(1 / scale))


def pca(weight, bias, inputs, rank):
    """(W', b', spectrum): the outputs themselves, their mean, the eigenvectors of their covariance; then the
    projection y' = m + U U^T (y - m) written as a linear layer."""
    outputs = np.array([weight @ x + bias for x in inputs])
    mean = outputs.mean(0)
    covariance = sum(np.outer(y - mean, y - mean) for y in outputs) / len(outputs)
    values, vectors = np.linalg.eigh(covariance)
    kept = vectors[:, np.argsort(values)[::-1][:rank]]
    projection = kept @ kept.T
    return projection @ weight, projection @ bias + mean - projection @ mean, np.sort(values)[::-1]


def hals(data, u, v, rounds, signed):
    """Entry by entry: each entry of V, then of U, becomes the minimiser of the squared error with all others
    fixed; entries of one row do not meet in the error, so a row at once is the same."""
    u, v = u.copy(), v.copy()
    for _ in range(rounds):
        for k in range(v.shape[0]):
            rest = data - u @ v + np.outer(u[:, k], v[k])
            v[k] = [max(0.0, u[:, k] @ rest[:, j] / (u[:, k] @ u[:, k])) for j in range(v.shape[1])]
        for k in range(v.shape[0]):
            rest = data - u @ v + np.outer(u[:, k], v[k])
            best = [rest[i] @ v[k] / (v[k] @ v[k]) for i in range(u.shape[0])]
            u[:, k] = best if signed else [max(0.0, b) for b in best]
    return u, v


def lora(weight, a, b, scale, x, probe, keep=None):
    """(y, d sum(y * probe) / dB) of y = (W + scale B A) x, numpy float64, one number at a time (2106.09685,
    equation 3); keep [out, in]: where the product may touch the weight."""
    out, n, rank = len(b), len(a[0]), len(a)
    y, towards = np.zeros((len(x), out)), np.zeros((out, rank))
    for i in range(out):
        for j in range(n):
            allowed = 1.0 if keep is None or keep[i][j] else 0.0
            w = float(weight[i][j]) + allowed * scale * sum(
                float(b[i][k]) * float(a[k][j]) for k in range(rank)
            )
            for t in range(len(x)):
                y[t, i] += w * float(x[t][j])
                for k in range(rank):
                    towards[i, k] += allowed * scale * float(probe[t][i]) * float(a[k][j]) * float(x[t][j])
    return y, towards


def tensor_train(vector, modes, rank):
    """(cores, errors): TT-SVD of one vector by its definition: fold the rest, cut its SVD to `rank` threads,
    go on with Sigma V^T. errors: the sum of squares of the singular values that each step drops."""
    rest = np.zeros(int(np.prod(modes)))
    rest[: len(vector)] = vector
    cores, errors, threads = [], [], 1
    for mode in modes[:-1]:
        u, s, vt = np.linalg.svd(rest.reshape(threads * mode, -1), full_matrices=False)
        kept = min(rank, len(s))
        cores.append(u[:, :kept].reshape(threads, mode, kept))
        errors.append((s[kept:] ** 2).sum())
        rest, threads = s[:kept, None] * vt[:kept], kept
    return [*cores, rest.reshape(threads, modes[-1], 1)], errors


def entries(cores):
    """A tensor train's vector, entry by entry: the product of one matrix of each core."""
    found = []
    for place in np.ndindex(*(core.shape[1] for core in cores)):
        chain = np.ones((1, 1))
        for core, i in zip(cores, place, strict=True):
            chain = chain @ core[:, i, :]
        found.append(chain[0, 0])
    return np.array(found)


def weighted_svd(table, rank, rows, columns):
    """The matrix of `rank` that minimises sum of rows[t] (e_t - e'_t) columns (e_t - e'_t)^T: a truncated SVD
    of diag(rows)^(1/2) E L, where columns = L L^T by Cholesky, and both factors undone again."""
    left, right = np.diag(np.sqrt(rows)), np.linalg.cholesky(columns)
    u, s, vt = np.linalg.svd(left @ table @ right, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return np.linalg.inv(left) @ best @ np.linalg.inv(right)


def divided(losses, sizes, kept):
    """ASVD's search (2312.05821) by trying every threshold, the strictest first: a matrix takes its smallest
    share whose loss is not above it; the first threshold with which the budget is met. losses: {(matrix,
    share): loss}, all different."""
    for threshold in [-np.inf, *sorted(losses.values())]:
        found = {
            m: min([1.0, *(s for (k, s), loss in losses.items() if k == m and loss <= threshold)])
            for m in sizes
        }
        if sum(sizes[m] * found[m] for m in sizes) <= kept * sum(sizes.values()) + 1e-9:
            return found
    raise ValueError("even the smallest shares are above the budget")


def updated(weight, inputs, moved, rank):
    """SVD-LLM's closed-form update (2403.07378, first version): V from the original inputs, then the left
    factor by least squares on the moved inputs, [tokens, in] each."""
    first, _ = svd_llm(weight, inputs, rank)
    right = np.linalg.svd(first)[2][:rank]  # any basis of the rows of W'
    solution, *_ = np.linalg.lstsq(moved @ right.T, moved @ weight.T, rcond=None)
    return solution.T @ right


def shares_of_v2(losses, removed):
    """SVD-LLM V2 (2503.12340, algorithm 1): one role's shares from its losses, all above e."""
    weights = [1 / np.log(loss) for loss in losses]
    return [len(losses) * removed * w / sum(weights) for w in weights]

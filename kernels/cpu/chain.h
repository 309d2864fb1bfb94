/* How tensor trains become rows: 16 at a time, one a lane.

   A chain is cut in the middle. Its left half is contracted from the left, its right half from the right, and then both are put
   together, which takes rank multiplications a column; every step before works on about the root of the columns. */

#ifndef CHAIN_H
#define CHAIN_H

#include "plan.h"

typedef struct {
    int64_t count, middle;
    const int32_t *modes, *ranks; /* core k: [ranks[k]][modes[k]][ranks[k + 1]] */
} chain;

INLINE chain chain_of(const plan *p)
{
    const int32_t *shape = p->starts;
    return (chain){shape[0], shape[0] / 2, shape + 1, shape + 1 + shape[0]};
}

INLINE int64_t core_size(const chain *c, int64_t k) { return (int64_t)c->ranks[k] * c->modes[k] * c->ranks[k + 1]; }

/* Values of the widest half on its way, for one row. */
INLINE int64_t widest_half(const chain *c)
{
    int64_t most = 1, columns = 1;
    for (int64_t k = 0; k < c->middle; k++) {
        columns *= c->modes[k];
        if (columns * c->ranks[k + 1] > most) most = columns * c->ranks[k + 1];
    }
    columns = 1;
    for (int64_t k = c->count - 1; k >= c->middle; k--) {
        columns *= c->modes[k];
        if (columns * c->ranks[k] > most) most = columns * c->ranks[k];
    }
    return most;
}

/* Floats that `contract` works in: the columns of 16 rows, and each half twice. */
INLINE int64_t chain_room(const plan *p)
{
    const chain c = chain_of(p);
    return 512 * blocks_of(p) + 64 * widest_half(&c);
}

INLINE vf lanes(const void *of, int64_t place, const int half)
{
    return half ? vf_half((const uint16_t *)of + 16 * place) : vf_load((const float *)of + 16 * place);
}

/* `width` neighbours of what `mixed` makes: sums that don't wait for each other. */
INLINE void mixed_at(float *to, const void *by, int64_t count, const void *rows, int64_t stride, int64_t b, const int halves, const int width)
{
    vf sum[8];
    UNROLL(8) for (int j = 0; j < width; j++) sum[j] = vf_zero();
    for (int64_t t = 0; t < count; t++) {
        const vf weight = lanes(by, t, halves & 1);
        UNROLL(8) for (int j = 0; j < width; j++) sum[j] = vf_fma(weight, lanes(rows, t * stride + b + j, halves & 2), sum[j]);
    }
    UNROLL(8) for (int j = 0; j < width; j++) vf_store(to + 16 * (b + j), sum[j]);
}

/* to[b] = sum of by[t] rows[t][b] over `count` rows, for b below n; 16 lanes each. halves: 1 if `by` is of halves, 2 if `rows` are. */
INLINE void mixed(float *to, const void *by, int64_t count, const void *rows, int64_t stride, int64_t n, const int halves)
{
    int64_t b = 0;
    for (; b + 8 <= n; b += 8) mixed_at(to, by, count, rows, stride, b, halves, 8);
    for (; b + 2 <= n; b += 2) mixed_at(to, by, count, rows, stride, b, halves, 2);
    if (b < n) mixed_at(to, by, count, rows, stride, b, halves, 1);
}

/* The rows of a tile as floats [column][16], zeros beyond n, at the beginning of `room`. */
static void contract(const plan *p, int64_t tile, float *room)
{
    const chain c = chain_of(p);
    const int64_t step = 16 * widest_half(&c), end = 32 * blocks_of(p);
    float *left = room + 16 * end, *other = left + step, *right = other + step, *spare = right + step, *done;
    int64_t values = 0, before = 1, after = 1; /* columns of each half */
    for (int64_t k = 0; k < c.count; k++) values += core_size(&c, k);
    const uint16_t *cores = (const uint16_t *)p->values + 16 * tile * values, *core = cores;
    vf_store(left, vf_splat(1)), vf_store(right, vf_splat(1));
    for (int64_t k = 0; k < c.middle; k++) {
        const int64_t wide = c.modes[k] * c.ranks[k + 1];
        for (int64_t a = 0; a < before; a++) mixed(other + 16 * a * wide, left + 16 * a * c.ranks[k], c.ranks[k], core, wide, wide, 2);
        core += 16 * core_size(&c, k), before *= c.modes[k];
        done = other, other = left, left = done;
    }
    core = cores + 16 * values;
    for (int64_t k = c.count - 1; k >= c.middle; k--) {
        core -= 16 * core_size(&c, k);
        for (int64_t q = 0; q < c.ranks[k] * c.modes[k]; q++)
            mixed(spare + 16 * q * after, core + 16 * q * c.ranks[k + 1], c.ranks[k + 1], right, after, after, 1);
        after *= c.modes[k];
        done = spare, spare = right, right = done;
    }
    const int64_t rank = c.ranks[c.middle];
    for (int64_t a = 0; a * after < p->n; a++)
        mixed(room + 16 * a * after, left + 16 * a * rank, rank, right, after, p->n - a * after < after ? p->n - a * after : after, 0);
    memset(room + 16 * p->n, 0, 64 * (end - p->n));
}

#endif

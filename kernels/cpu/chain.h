/* How tensor trains become rows: 16 rows at a time, one row in each lane.

   A chain is cut in the middle. Its left half is contracted from the left end and its right half from the
   right end. Each half then has about the square root of the row's columns. Putting the halves together
   takes as many multiplications for each column as the rank between them. */

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

INLINE int64_t core_size(const chain *c, int64_t k)
{
    return (int64_t)c->ranks[k] * c->modes[k] * c->ranks[k + 1];
}

/* The most values that a half takes while it is contracted, for one row. */
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

/* The sum over t of weights[t] times row t: `count` weights, and as many rows that begin `stride` entries
   from each other. Every entry has 16 lanes. */
typedef struct {
    const void *weights;
    int64_t count;
    const void *rows;
    int64_t stride;
} mixture;

/* Which part of a mixture is stored as 16-bit halves; the other part is in floats. */
enum { NO_HALVES, HALF_WEIGHTS, HALF_ROWS };

/* Entries [b, b + width) of the sum: neighbours, whose additions don't wait for each other. */
INLINE void mix_some(float *to, const mixture m, int64_t b, const int halves, const int width)
{
    vf sum[8];
    UNROLL(8)
    for (int j = 0; j < width; j++) sum[j] = vf_zero();
    for (int64_t t = 0; t < m.count; t++) {
        const vf weight = lanes(m.weights, t, halves == HALF_WEIGHTS);
        UNROLL(8)
        for (int j = 0; j < width; j++)
            sum[j] = vf_fma(weight, lanes(m.rows, t * m.stride + b + j, halves == HALF_ROWS), sum[j]);
    }
    UNROLL(8)
    for (int j = 0; j < width; j++) vf_store(to + 16 * (b + j), sum[j]);
}

/* The first n entries of the sum. */
INLINE void mix(float *to, const mixture m, int64_t n, const int halves)
{
    int64_t b = 0;
    for (; b + 8 <= n; b += 8) mix_some(to, m, b, halves, 8);
    for (; b + 2 <= n; b += 2) mix_some(to, m, b, halves, 2);
    if (b < n) mix_some(to, m, b, halves, 1);
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
        for (int64_t a = 0; a < before; a++) {
            const mixture m = {left + 16 * a * c.ranks[k], c.ranks[k], core, wide};
            mix(other + 16 * a * wide, m, wide, HALF_ROWS);
        }
        core += 16 * core_size(&c, k), before *= c.modes[k];
        done = other, other = left, left = done;
    }
    core = cores + 16 * values;
    for (int64_t k = c.count - 1; k >= c.middle; k--) {
        core -= 16 * core_size(&c, k);
        for (int64_t q = 0; q < c.ranks[k] * c.modes[k]; q++) {
            const mixture m = {core + 16 * q * c.ranks[k + 1], c.ranks[k + 1], right, after};
            mix(spare + 16 * q * after, m, after, HALF_WEIGHTS);
        }
        after *= c.modes[k];
        done = spare, spare = right, right = done;
    }
    const int64_t rank = c.ranks[c.middle];
    for (int64_t a = 0; a * after < p->n; a++) {
        const mixture m = {left + 16 * a * rank, rank, right, after};
        const int64_t columns = p->n - a * after < after ? p->n - a * after : after;
        mix(room + 16 * a * after, m, columns, NO_HALVES);
    }
    memset(room + 16 * p->n, 0, 64 * (end - p->n));
}

#endif

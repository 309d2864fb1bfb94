/* How each kind is decoded: 16 rows of one column as floats (`column`), or 16 rows of four columns as
   bytes (`quad`).

   `kind` and `bits` are constants wherever these functions are called, so every branch in them folds away.
   LOOPS at the end lists the loops that are compiled with them. */

#ifndef FORMATS_H
#define FORMATS_H

#include "plan.h"

/* What codes stand for, whatever the bits above them are. */
static const float CODES_4[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const float CODES_3[16] = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7};
static const float CODES_2[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};

typedef struct {
    const uint8_t *values, *mask; /* of the columns that come next */
    vi raw[16];                   /* the block's words */
    vi otherwise;                 /* MASK_INT: the zero point, which is the code of a removed weight */
    int64_t first;                /* MASK_INT: how many codes the first of two quads keeps that share bytes */
    const float *table;
} reader;

INLINE int is_coded(const int kind) { return kind == INT || kind == MASK_INT; }

INLINE int64_t tile_bytes(const plan *p, const int kind, const int bits)
{
    const int64_t columns = blocks_of(p) * 32;
    if (kind == F32) return columns * 64;
    if (kind == F16 || kind == BF16) return columns * 32;
    if (kind == TWO_F16) return columns * 16;
    return columns * 2 * (kind == BOOK ? 4 : bits);
}

INLINE reader open_tile(const plan *p, int64_t tile, const int kind, const int bits)
{
    reader r;
    const int masked = kind == MASK_F16 || kind == MASK_INT, mask = masked || kind == TWO_F16;
    const int64_t at = masked ? ((const int64_t *)p->starts)[tile] : tile * tile_bytes(p, kind, bits);
    r.values = (const uint8_t *)p->values + at;
    r.mask = mask ? (const uint8_t *)p->mask + tile * blocks_of(p) * 64 : 0;
    r.table = kind == BOOK ? p->table : bits == 2 ? CODES_2 : bits == 3 ? CODES_3 : CODES_4;
    r.otherwise = vi_zero();
    return r;
}

/* Cache lines are prefetched this many blocks before they are read. With masks the processor can't read
   ahead by itself: where a block's kept values begin is known only when the masks before it have arrived.
   Without masks it doesn't read far ahead either, since one block of codes fills much of its window. */
#define AHEAD 16

/* Read the words of the next 32 columns. */
INLINE void next_block(reader *r, const int kind, const int bits)
{
    const int coded = kind == INT || kind == BITS ? bits : 0;
    const int words = kind == BF16 ? 16 : kind == TWO_F16 ? 8 : kind == BOOK ? 4 : coded;
    const int masked = kind == MASK_F16 || kind == MASK_INT;
    const int half = kind == MASK_INT && bits <= 4 ? 3 : 8; /* lines that half of a block's weights take */
    const int lines = masked ? half : kind == BF16 ? 0 : words;
    if (masked) __builtin_prefetch(r->mask + 64 * AHEAD);
    UNROLL(8)
    for (int i = 0; i < lines; i++) __builtin_prefetch(r->values + 64 * (lines * AHEAD + i));
    for (int i = 0; i < words; i++) r->raw[i] = vi_load(r->values + 64 * i);
    if (kind == TWO_F16) { /* raw[8]: the values' columns % 4 */
        __builtin_prefetch(r->mask + 64 * AHEAD);
        r->raw[8] = vi_load(r->mask), r->mask += 64;
    }
    r->values += 64 * words;
    if (kind == INT && bits == 3) { /* the last eight columns' codes stand in the words' upper two bits */
        const vi first = vi_and(vi_shr(r->raw[0], 6), vi_splat(0x03030303));
        const vi rest = vi_and_or(vi_shr(r->raw[1], 4), vi_splat(0x0c0c0c0c), first);
        r->raw[3] = vi_and_or(vi_shr(r->raw[2], 2), vi_splat(0x30303030), rest);
    }
}

INLINE vi moved(vi a, const int right)
{
    return right > 0 ? vi_shr(a, right) : right < 0 ? vi_shl(a, -right) : a;
}

/* Columns 4 j to 4 j + 3 of the block as bytes. Masked formats must be asked for j = 0, 1, 2, ... in turn. */
INLINE vi quad(reader *r, const int j, const int kind, const int bits)
{
    if (kind == MASK_INT) {
        uint64_t mask;
        memcpy(&mask, r->mask, 8);
        const int64_t count = __builtin_popcountll(mask);
        const vi q = bits <= 4 ? vi_expand_nibbles(mask, r->values, 4 * (j % 2), r->otherwise)
                               : vi_expand_bytes(mask, r->values, r->otherwise);
        r->mask += 8;
        if (bits > 4) r->values += count;
        else if (j % 2 == 0) r->first = count;
        else r->values += count > r->first ? count : r->first;
        return q;
    }
    if (bits == 8) return r->raw[j];
    if (bits == 3) return vi_and(moved(r->raw[j / 2], 3 * (j % 2)), vi_splat(0x07070707));
    /* The planes of 2 bits and of 1 bit: each one's first word, and the place of its bits in the code. */
    const int two = bits & 4 ? 4 : 0, one = two + (bits & 2 ? 2 : 0);
    vi q = vi_zero();
    if (bits & 1) q = vi_and(moved(r->raw[one], j - one), vi_splat(0x01010101 << one));
    if (bits & 2) {
        const vi part = moved(r->raw[two + j / 4], 2 * (j % 4) - two), mask = vi_splat(0x03030303 << two);
        q = bits & 1 ? vi_and_or(part, mask, q) : vi_and(part, mask);
    }
    if (bits & 4) {
        const vi part = moved(r->raw[j / 2], 4 * (j % 2)), mask = vi_splat(0x0f0f0f0f);
        q = bits & 3 ? vi_and_or(part, mask, q) : vi_and(part, mask);
    }
    return q;
}

/* If a half's bits are shifted to their places in a float, the float is the half's value times 2^-112, also
   for subnormal halves. The shift is three operations cheaper than the processor's own conversion. MASK_F16
   and TWO_F16 give their columns this way. To make up for 2^-112, x is multiplied by 2^100 before and the
   sum by 2^12 after, so that neither leaves the range of floats. */
#define HALF_BITS_UP 0x1p112f
#define X_UP 0x1p100f
#define SUM_UP 0x1p12f

INLINE int is_moved(const int kind) { return kind == MASK_F16 || kind == TWO_F16; }
INLINE vi moved_half(vi pair, const int upper)
{
    return vi_and(upper ? vi_sar(pair, 3) : vi_sar_low(pair, 3), vi_splat(0x8fffe000));
}

/* Column j of the block as floats; of codes the numbers themselves, without zero point and scale. The
   columns must be asked for in turn, with the same q. */
INLINE vf column(reader *r, const int j, vi *q, const int kind, const int bits)
{
    if (kind == F32 || kind == F16) {
        const vf v = kind == F32 ? vf_load((const float *)r->values) : vf_half((const uint16_t *)r->values);
        r->values += kind == F32 ? 64 : 32;
        return v;
    }
    if (kind == BF16)
        return vf_bits(j % 2 ? vi_and(r->raw[j / 2], vi_splat(0xffff0000)) : vi_shl(r->raw[j / 2], 16));
    if (kind == MASK_F16) { /* two columns at a time, one in the lanes' lower and one in their upper halves */
        if (j % 2 == 0) {
            uint32_t mask;
            memcpy(&mask, r->mask, 4);
            *q = vi_expand_halves(mask, (const uint16_t *)r->values);
            r->mask += 4, r->values += 2 * (uint64_t)__builtin_popcountll(mask);
        }
        return vf_bits(moved_half(*q, j % 2));
    }
    if (kind == TWO_F16) {
        const vi pair = r->raw[j / 4], first = vi_placed(moved_half(pair, 0), r->raw[8], j / 4 * 4, j % 4);
        if (j % 4 == 0) return vf_bits(first); /* the second value is never in column 0 of its four */
        const vi second = vi_placed(moved_half(pair, 1), r->raw[8], j / 4 * 4 + 2, j % 4);
        return vf_bits(j % 4 == 3 ? second : vi_or(first, second));
    }
    const int byte = 8 * (j % 4);
    if (kind == INT && bits == 3) return vf_lookup(r->table, vi_shr(r->raw[j / 8], byte + 3 * (j / 4 % 2)));
    if (kind == BOOK || (kind == INT && bits == 4))
        return vf_lookup(r->table, vi_shr(r->raw[j / 8], byte + 4 * (j / 4 % 2)));
    if (kind == INT && bits == 2) return vf_lookup(r->table, vi_shr(r->raw[j / 16], byte + 2 * (j / 4 % 4)));
    if (j % 4 == 0) *q = quad(r, j / 4, kind, bits);
    const vi shifted = j % 4 ? vi_shr(*q, byte) : *q;
    if (kind == MASK_INT && bits == 4) return vf_lookup(r->table, shifted);
    return vf_of(j % 4 == 3 ? shifted : vi_and(shifted, vi_splat(255)));
}

/* Scale and zero point of a group, each of 16 rows. */
typedef struct { vf scale, zero; } grid;

INLINE grid grid_of(const plan *p, int64_t tile, int64_t group, reader *r, const int kind)
{
    const int64_t at = (tile * p->groups + group) * 16;
    if ((kind == INT || kind == BOOK) && p->grids != WHOLE) {
        if (kind == BOOK) return (grid){vf_load((const float *)p->scale + at), vf_zero()};
        if (p->grids == FLOATS)
            return (grid){vf_load((const float *)p->scale + at), vf_load((const float *)p->zero + at)};
        if (p->grids == REAL)
            return (grid){vf_half((const uint16_t *)p->scale + at), vf_half((const uint16_t *)p->zero + at)};
        const uint8_t *codes = (const uint8_t *)p->scale + 2 * at;
        const float *level = (const float *)(codes + 16);
        const vi both = vi_bytes(codes);
        return (grid){vf_fma(vf_of(vi_and(both, vi_splat(15))), vf_splat(level[0]), vf_splat(level[1])),
                      vf_fma(vf_of(vi_shr(both, 4)), vf_splat(level[2]), vf_splat(level[3]))};
    }
    grid g = {vf_half((const uint16_t *)p->scale + at), vf_zero()};
    if (is_coded(kind)) {
        const vi zero = p->zero ? vi_bytes((const uint8_t *)p->zero + at) : vi_splat(1 << (p->bits - 1));
        g.zero = vf_of(zero);
        if (kind == MASK_INT) r->otherwise = vi_fourfold(zero);
    }
    return g;
}

/* The loops that are compiled, LOOP(kind, bits, by): `by` names the functions of token.c and panel.c that
   they are made of. A plan takes the first loop of its kind that has at least its bits; 0: the loop serves
   any number of bits. A new kind is decoded above and has a line here. */
#define LOOPS(LOOP) \
    LOOP(F32, 0, FLOAT) \
    LOOP(F16, 0, FLOAT) \
    LOOP(BF16, 0, FLOAT) \
    LOOP(MASK_F16, 0, FLOAT) \
    LOOP(TWO_F16, 0, TWO) \
    LOOP(BOOK, 4, ENTRY) \
    LOOP(INT, 2, CODE) \
    LOOP(INT, 3, CODE) \
    LOOP(INT, 4, CODE) \
    LOOP(INT, 5, CODE) \
    LOOP(INT, 6, CODE) \
    LOOP(INT, 7, CODE) \
    LOOP(INT, 8, CODE) \
    LOOP(MASK_INT, 4, CODE) \
    LOOP(MASK_INT, 8, CODE) \
    LOOP(BITS, 1, PLANE) \
    LOOP(BITS, 2, PLANE) \
    LOOP(BITS, 3, PLANE) \
    LOOP(BITS, 4, PLANE) \
    LOOP(BITS, 5, PLANE) \
    LOOP(BITS, 6, PLANE) \
    LOOP(BITS, 7, PLANE) \
    LOOP(BITS, 8, PLANE) \
    LOOP(LOOK, 0, LOOKED)

/* Which of LOOPS serves a plan: its place in the list. */
static int loop_of(const plan *p)
{
#define KIND_AND_BITS(kind, bits, by) {kind, bits},
    static const uint8_t of[][2] = {LOOPS(KIND_AND_BITS)};
    int i = 0;
    while (of[i][0] != p->kind || (of[i][1] && of[i][1] < p->bits)) i++;
    return i;
}

#endif

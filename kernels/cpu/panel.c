/* Multiplies many tokens: a panel of a tile's columns is decoded once, to floats or to codes, and multiplied
   by all tokens. */

#include "loops.h"

#define NEAR 32 /* tokens whose codes and sums stay in the nearest cache while a panel's blocks pass */

/* ---- decoding ---- */

INLINE void sixteen_on(cursor *c)
{
    if ((c->left -= 16) <= 0) c->left = c->p->group, c->group += c->group + 1 < c->p->groups;
}

/* Weights of binary-coded planes. */
INLINE void decode_planes(cursor *c, int64_t blocks, float *panel, const int kind, const int bits)
{
    const plan *p = c->p;
    for (int64_t b = 0; b < blocks; b++, panel += 512) {
        const uint8_t *words = c->r.values;
        if (kind == BITS) next_block(&c->r, kind, bits);
        else c->r.values += 64 * bits;
        for (int half = 0; half < 2; half++, sixteen_on(c)) {
            const int64_t at = c->tile * p->groups + c->group;
            const uint16_t *scale = (const uint16_t *)p->scale + at * bits * 16;
            vf base = p->offset ? vf_load((const float *)p->offset + at * 16) : vf_zero();
            for (int k = 0; k < bits; k++) base = vf_sub(base, vf_half(scale + 16 * k));
            for (int j = 16 * half; j < 16 * half + 16; j++) {
                vf w = base;
                for (int k = 0; k < bits; k++) {
                    const vf s = vf_half(scale + 16 * k), twice = vf_add(s, s);
                    if (kind == BITS) w = vf_add_where(w, c->r.raw[k], 8 * (j % 4) + j / 4, twice);
                    else {
                        const vi nibbles = vi_bytes(words + 64 * k + j / 4 % 4 * 16);
                        w = vf_add_where(w, nibbles, 4 * half + j % 4, twice);
                    }
                }
                vf_store(panel + 16 * j, w);
            }
        }
    }
}

/* Weights of every other kind. */
INLINE void decode_floats(cursor *c, int64_t blocks, float *panel, const int kind, const int bits)
{
    const plan *p = c->p;
    const int64_t tile = c->tile;
    const int scaled = kind != F32 && kind != F16 && kind != BF16 && !is_moved(kind);
    vi q = vi_zero();
    for (int64_t b = 0; b < blocks; b++, panel += 512) {
        grid g = scaled ? grid_of(p, tile, c->group, &c->r, kind) : (grid){vf_zero(), vf_zero()};
        next_block(&c->r, kind, bits);
        UNROLL(32)
        for (int j = 0; j < 32; j++) {
            if (scaled && j == 16) {
                sixteen_on(c);
                g = grid_of(p, tile, c->group, &c->r, kind);
            }
            vf w = column(&c->r, j, &q, kind, bits);
            if (is_coded(kind)) w = vf_sub(w, g.zero);
            if (scaled) w = vf_mul(w, g.scale);
            if (is_moved(kind)) w = vf_mul(w, vf_splat(HALF_BITS_UP));
            vf_store(panel + 16 * j, w);
        }
        if (scaled) sixteen_on(c);
    }
}

/* Codes, bytes [column / 4][16][4]. A removed weight's code is its zero point, so a masked kind looks up the
   zero points here. */
INLINE void decode_bytes(cursor *c, int64_t blocks, uint8_t *panel, const int kind, const int bits)
{
    for (int64_t b = 0; b < blocks; b++, panel += 512) {
        if (kind == MASK_INT) grid_of(c->p, c->tile, c->group, &c->r, kind);
        next_block(&c->r, kind, bits);
        UNROLL(8)
        for (int j = 0; j < 8; j++) {
            if (kind == MASK_INT && j == 4) {
                sixteen_on(c);
                grid_of(c->p, c->tile, c->group, &c->r, kind);
            }
            const vi q = quad(&c->r, j, kind, bits);
            memcpy(panel + 64 * j, &q, 64);
        }
        if (kind == MASK_INT) sixteen_on(c);
    }
}

#define DECODED(kind, bits, loop) \
    static void floats_##kind##_##bits(cursor *c, int64_t n, float *w) { loop; }
#define FLOAT_LOOPS(kind, bits) DECODED(kind, bits, decode_floats(c, n, w, kind, bits))
#define TWO_LOOPS FLOAT_LOOPS
#define ENTRY_LOOPS FLOAT_LOOPS
#define CODE_LOOPS(kind, bits) \
    FLOAT_LOOPS(kind, bits) \
    static void bytes_##kind##_##bits(cursor *c, int64_t n, uint8_t *w) { decode_bytes(c, n, w, kind, bits); }
#define PLANE_LOOPS(kind, bits) DECODED(kind, bits, decode_planes(c, n, w, kind, bits))
#define LOOKED_LOOPS(kind, any) DECODED(kind, any, decode_planes(c, n, w, kind, c->p->bits))

#define FLOAT_ROW(kind, bits) {floats_##kind##_##bits, 0}
#define TWO_ROW FLOAT_ROW
#define ENTRY_ROW FLOAT_ROW
#define CODE_ROW(kind, bits) {floats_##kind##_##bits, bytes_##kind##_##bits}
#define PLANE_ROW FLOAT_ROW
#define LOOKED_ROW FLOAT_ROW

#define MADE(kind, bits, by) by##_LOOPS(kind, bits)
#define ROW(kind, bits, by) by##_ROW(kind, bits),
#define BITS_OF(kind, bits, by) bits,

LOOPS(MADE)

const decoder *decoder_of(const plan *p)
{
    static const decoder decoders[] = {LOOPS(ROW)};
    return decoders + loop_of(p);
}

cursor begin_tile(const plan *p, int64_t tile)
{
    static const uint8_t bits[] = {LOOPS(BITS_OF)};
    const int of_loop = bits[loop_of(p)];
    return (cursor){p, tile, 0, p->group, open_tile(p, tile, p->kind, of_loop ? of_loop : p->bits)};
}

/* ---- multiplying ---- */

/* The sums of `m` tokens by `tiles` tiles, both constants, stay in registers while the panels' columns
   pass. An activation is brought to all lanes once for all tiles. */
INLINE void floats_times(const job j, const float *panel, float *sum, const int tiles, const int m)
{
    const int64_t ld = j.in->ld, columns = 32 * j.blocks;
    const float *x = j.in->x + j.token * ld + 32 * j.first;
    vf acc[TILES][TOGETHER];
    UNROLL(2)
    for (int t = 0; t < tiles; t++) {
        UNROLL(16)
        for (int i = 0; i < m; i++) acc[t][i] = vf_load(sum + 16 * (TOKENS * t + i));
    }
    for (int64_t k = 0; k < columns; k++) {
        vf w[TILES];
        UNROLL(2)
        for (int t = 0; t < tiles; t++) w[t] = vf_load(panel + 16 * (PANEL * t + k));
        UNROLL(16)
        for (int i = 0; i < m; i++) {
            const vf v = vf_splat(x[i * ld + k]);
            UNROLL(2)
            for (int t = 0; t < tiles; t++) acc[t][i] = vf_fma(w[t], v, acc[t][i]);
        }
    }
    UNROLL(2)
    for (int t = 0; t < tiles; t++) {
        UNROLL(16)
        for (int i = 0; i < m; i++) vf_store(sum + 16 * (TOKENS * t + i), acc[t][i]);
    }
}

/* Codes of at most `bits` bits. Here a block's codes stay in registers while the tokens pass. narrow:
   groups may end in the middle of a block, so that its halves go one after the other. */
INLINE void bytes_times(const job j, const uint8_t *panel, float *sum, const int tiles, const int narrow,
                        const int bits)
{
    const plan *p = j.p;
    const int64_t ld = j.in->ld, m = j.m;
    const int quads = narrow ? 4 : 8;
    int64_t group = 32 * j.first / p->group, left = p->group - (32 * j.first - group * p->group);
    for (int64_t b = j.first; b < j.first + j.blocks; b++)
        for (int half = 0; half < 1 + narrow; half++) {
            vf scale[TILES], lifted[TILES];
            vi q[TILES][8];
            UNROLL(2)
            for (int t = 0; t < tiles; t++) {
                /* INT, also of MASK_INT: its removed weights have their codes already */
                const grid g = grid_of(p, j.tile + t, group, 0, INT);
                const uint8_t *codes = panel + PANEL_BYTES * t + 512 * (b - j.first) + 256 * half;
                scale[t] = g.scale, lifted[t] = vf_mul(g.scale, g.zero);
                UNROLL(8)
                for (int i = 0; i < quads; i++) q[t][i] = vi_load(codes + 64 * i);
            }
            const int8_t *k = j.in->q + j.token * ld + 32 * b + 16 * half;
            const float *sums = j.in->sums + j.token * ld / 16 + 2 * b;
            const float *unit = j.in->unit + j.token * ld / 32 + b;
            for (int64_t i = 0; i < m; i++, k += ld, sums += ld / 16, unit += ld / 32) {
                const vf units = vf_splat(*unit);
                const vf all = vf_splat((narrow ? sums[half] : sums[0] + sums[1]) * *unit);
                vi dot[TILES];
                UNROLL(2)
                for (int t = 0; t < tiles; t++) dot[t] = vi_zero();
                UNROLL(8)
                for (int n = 0; n < quads; n++) {
                    UNROLL(2)
                    for (int t = 0; t < tiles; t++) dot[t] = vi_dot(dot[t], q[t][n], k + 4 * n, bits);
                }
                UNROLL(2)
                for (int t = 0; t < tiles; t++) {
                    float *to = sum + 16 * (TOKENS * t + i);
                    const vf more = vf_fma(vf_mul(scale[t], units), vf_of(dot[t]), vf_load(to));
                    vf_store(to, vf_fnma(lifted[t], all, more));
                }
            }
            if ((left -= narrow ? 16 : 32) <= 0) left = p->group, group += group + 1 < p->groups;
        }
}

INLINE void all_bytes(job j, const uint8_t *panel, float *sum, const int tiles)
{
    const int64_t end = j.token + j.m;
    for (; j.token < end; j.token += NEAR, sum += 16 * NEAR) {
        j.m = end - j.token < NEAR ? end - j.token : NEAR;
        if (j.p->group % 32) bytes_times(j, panel, sum, tiles, 1, 8);
        else if (SEVEN_PAY && j.p->bits < 8) bytes_times(j, panel, sum, tiles, 0, 7);
        else bytes_times(j, panel, sum, tiles, 0, 8);
    }
}

INLINE void all_floats(job j, const float *panel, float *sum, const int tiles)
{
    const int64_t end = j.token + j.m;
    for (; j.token + TOGETHER <= end; j.token += TOGETHER, sum += 16 * TOGETHER)
        floats_times(j, panel, sum, tiles, TOGETHER);
    for (; j.token + 4 <= end; j.token += 4, sum += 16 * 4) floats_times(j, panel, sum, tiles, 4);
    for (; j.token + 2 <= end; j.token += 2, sum += 16 * 2) floats_times(j, panel, sum, tiles, 2);
    if (j.token < end) floats_times(j, panel, sum, tiles, 1);
}

void panel_times(const job *j, const float *panel, float *sum, int as_bytes, int tiles)
{
    const uint8_t *codes = (const uint8_t *)panel;
    if (tiles == 1) as_bytes ? all_bytes(*j, codes, sum, 1) : all_floats(*j, panel, sum, 1);
#if TILES > 1
    else as_bytes ? all_bytes(*j, codes, sum, TILES) : all_floats(*j, panel, sum, TILES);
#endif
}

/* y = x W^T for every format: one loop for a single token, straight from the stored bits, and one for many tokens, in which
   a tile's columns are decoded once for up to TOKENS of them. With a rule activations are int8 codes k, one unit for 32 columns
   b or more, and integers are multiplied:

       y = sum_b unit_b scale_g (sum_i q_i k_i - zero_g sum_i k_i)

   Exact activations of one token take the same way as three digits to base 256: 24 bits below the largest of 64 neighbours, no
   less than a float32 sum keeps, and cheaper than turning every code into a float. Weights that are floats are multiplied as
   floats, and so is everything for many exact tokens. */

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

#include "chain.h"
#include "formats.h"
#include "matrix.h"
#include "team.h"

#define TOKENS 128 /* that share one decoding of a tile */
#define PANEL (512 / TILES) /* columns of a tile decoded at once: 32 kB as floats */
#define PANEL_BYTES (16 * PANEL) /* the same as codes */
#define NEAR 32 /* tokens whose codes and sums stay in the nearest cache while a panel's blocks pass */
#define MATRIX_INT8 12 /* so many tokens, and the matrix unit is faster: int8 */
#define MATRIX_EXACT 3 /* and exact ones */
#define DIGITS_UNIT 64 /* columns of exact activations that share a unit: a line of codes */

/* ---- one token ---- */

/* Weights that are floats, or a book's entries. */
INLINE vf float_token(const plan *p, int64_t tile, const input *in, const int kind, const int bits)
{
    reader r = open_tile(p, tile, kind, bits);
    const int scaled = kind == BOOK, narrow = p->group % 32 != 0; /* narrow: a group may end in the middle of a block */
    const int64_t blocks = blocks_of(p);
    int64_t group = 0, left = p->group;
    vf total = vf_zero(), part[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    vi q = vi_zero();
    for (int64_t b = 0; b < blocks; b++) {
        const float *x = in->x + 32 * b;
        next_block(&r, kind, bits);
        for (int half = 0; half < 2; half++) {
            if (half == 0) UNROLL(16)
                for (int j = 0; j < 16; j++) part[j % 4] = vf_fma(column(&r, j, &q, kind, bits), vf_splat(x[j]), part[j % 4]);
            else UNROLL(16)
                for (int j = 16; j < 32; j++) part[j % 4] = vf_fma(column(&r, j, &q, kind, bits), vf_splat(x[j]), part[j % 4]);
            if (!scaled || (half == 0 && !narrow)) continue;
            const vf sum = vf_add(vf_add(part[0], part[1]), vf_add(part[2], part[3]));
            total = vf_fma(grid_of(p, tile, group, &r, kind).scale, sum, total);
            part[0] = part[1] = part[2] = part[3] = vf_zero();
            if ((left -= narrow ? 16 : 32) <= 0) left = p->group, group += group + 1 < p->groups;
        }
    }
    if (scaled) return total;
    const vf sum = vf_add(vf_add(part[0], part[1]), vf_add(part[2], part[3]));
    return is_moved(kind) ? vf_mul(sum, vf_splat(SUM_UP)) : sum;
}

/* Two of four: each value picks its activation. */
INLINE vf two_token(const plan *p, int64_t tile, const input *in)
{
    reader r = open_tile(p, tile, TWO_F16, 0);
    vf part[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    for (int64_t b = 0; b < blocks_of(p); b++) {
        next_block(&r, TWO_F16, 0);
        UNROLL(8)
        for (int g = 0; g < 8; g++) UNROLL(2)
            for (int k = 0; k < 2; k++) {
                const vf x = vf_pick(in->x + 32 * b + 4 * g, vi_shr(r.raw[8], 4 * g + 2 * k));
                part[2 * (g % 2) + k] = vf_fma(vf_bits(moved_half(r.raw[g], k)), x, part[2 * (g % 2) + k]);
            }
    }
    return vf_mul(vf_add(vf_add(part[0], part[1]), vf_add(part[2], part[3])), vf_splat(SUM_UP));
}

/* A code book in 16 bits: entry = worth (256 high + low - 32768); plans.py has made the bytes. */
INLINE vi book_sum(vi low, vi high, float sum) { return vi_add(vi_add(low, vi_shl(high, 8)), vi_splat(-32768 * (int32_t)sum)); }

/* Sums of one digit each, put together, the lower two exactly: over 64 columns they stay below 64 x 255 x 128 x 257 < 2^30. */
INLINE vf join_digits(const vi *d, const int digits)
{
    return digits == 1 ? vf_of(d[0]) : vf_fma(vf_of(d[0]), vf_splat(65536), vf_of(vi_add(vi_shl(d[1], 8), d[2])));
}

/* Codes, or a book's entries, times int8 codes (one digit) or 24-bit integers (three), whose sums stay integers for two blocks where
   these share scale and unit. */
INLINE vf code_token(const plan *p, int64_t tile, const input *in, const int kind, const int bits, const int digits)
{
    reader r = open_tile(p, tile, kind, bits);
    const int narrow = p->group % 32 != 0, pairs = digits == 3 && p->group % 64 == 0;
    const int64_t blocks = blocks_of(p), ld = in->ld;
    int64_t group = 0, left = p->group;
    vf total = vf_zero();
    grid g = {vf_zero(), vf_zero()};
    const uint8_t *low = (const uint8_t *)p->offset, *high = low + 16;
    vi acc[3][2], top[2] = {vi_zero(), vi_zero()};
    for (int d = 0; d < digits; d++) acc[d][0] = acc[d][1] = vi_zero();
    float all = 0;
    for (int64_t b = 0; b < blocks; b++) {
        const int8_t *k = in->q + 32 * b;
        const float *sums = in->sums + 2 * b;
        const int whole = !pairs || b % 2 || b + 1 == blocks; /* whether the sums end with this block */
        if (left == p->group && !(pairs && b % 2)) g = grid_of(p, tile, group, &r, kind);
        next_block(&r, kind, bits);
        UNROLL(8)
        for (int j = 0; j < 8; j++) {
            const vi q = quad(&r, j, kind == BOOK ? INT : kind, bits);
            const int chain = digits == 1 ? j % 2 : 0;
            UNROLL(3)
            for (int d = 0; d < digits; d++)
                acc[d][chain] = vi_dot(acc[d][chain], kind == BOOK ? vi_lookup_bytes(low, q) : q, k + d * ld + 4 * j, kind == BOOK ? 8 : bits);
            if (kind == BOOK) top[chain] = vi_dot(top[chain], vi_lookup_bytes(high, q), k + 4 * j, 8);
            if (j % 4 == 3) all += sums[j / 4];
            if ((j == 7 && whole) || (j == 3 && narrow)) {
                vi sum[3];
                UNROLL(3)
                for (int d = 0; d < digits; d++) {
                    sum[d] = digits == 1 ? vi_add(acc[d][0], acc[d][1]) : acc[d][0];
                    acc[d][0] = acc[d][1] = vi_zero();
                }
                if (kind == BOOK) sum[0] = book_sum(sum[0], vi_add(top[0], top[1]), all);
                const vf joined = join_digits(sum, digits), lifted = kind == BOOK ? joined : vf_fnma(g.zero, vf_splat(all), joined);
                total = vf_fma(vf_mul(g.scale, vf_splat(in->unit[b])), lifted, total);
                top[0] = top[1] = vi_zero(), all = 0;
                if ((left -= narrow ? 16 : pairs ? 64 : 32) <= 0) left = p->group, group += group + 1 < p->groups;
                if (j == 3) g = grid_of(p, tile, group, &r, kind);
            }
        }
    }
    return kind == BOOK ? vf_mul(total, vf_splat(p->table[16])) : total;
}

/* Binary-coded planes: every plane has its own scale. */
INLINE vf planes_token(const plan *p, int64_t tile, const input *in, const int bits, const int digits)
{
    reader r = open_tile(p, tile, BITS, bits);
    const int narrow = p->group % 32 != 0;
    const int64_t blocks = blocks_of(p), ld = in->ld;
    int64_t group = 0, left = p->group;
    const uint16_t *scale = (const uint16_t *)p->scale + tile * p->groups * bits * 16;
    const float *offset = p->offset ? (const float *)p->offset + tile * p->groups * 16 : 0;
    vf total = vf_zero();
    for (int64_t b = 0; b < blocks; b++) {
        const int8_t *k = in->q + 32 * b;
        next_block(&r, BITS, bits);
        for (int half = narrow ? 0 : 1; half < 2; half++) { /* a whole block, or its halves */
            const float *s = in->sums + 2 * b;
            const vf all = vf_splat(narrow ? s[half] : s[0] + s[1]);
            vf part = vf_zero();
            UNROLL(8)
            for (int i = 0; i < bits; i++) { /* twice the sum over columns whose bit is set, less the sum of all */
                vi acc[3] = {vi_zero(), vi_zero(), vi_zero()};
                if (!(narrow && half)) UNROLL(4)
                    for (int j = 0; j < 4; j++) {
                        const vi ones = vi_and(moved(r.raw[i], j), vi_splat(0x01010101));
                        for (int d = 0; d < digits; d++) acc[d] = vi_dot(acc[d], ones, k + d * ld + 4 * j, 1);
                    }
                if (half) UNROLL(4)
                    for (int j = 4; j < 8; j++) {
                        const vi ones = vi_and(moved(r.raw[i], j), vi_splat(0x01010101));
                        for (int d = 0; d < digits; d++) acc[d] = vi_dot(acc[d], ones, k + d * ld + 4 * j, 1);
                    }
                const vf twice = join_digits(acc, digits);
                part = vf_fma(vf_half(scale + (group * bits + i) * 16), vf_sub(vf_add(twice, twice), all), part);
            }
            if (offset) part = vf_fma(vf_load(offset + group * 16), all, part);
            total = vf_fma(part, vf_splat(in->unit[b]), total);
            if ((left -= narrow ? 16 : 32) <= 0) left = p->group, group += group + 1 < p->groups;
        }
    }
    return total;
}

/* The same planes by look-up (T-MAC, Wei et al. 2024; LUT-GEMM's own idea with tables in registers). Four inputs have 16 sums of
   +-x; a plane's four bits, a nibble, say which. A byte shuffle looks 64 of them up at once: 16 rows by 16 columns, four tables.

   Where T-MAC rounds its tables to a byte, these hold the sums as they are, as whole numbers cut into bytes: two for int8 codes (a sum
   is below 2^9), four for 24-bit integers (below 2^25), of which the lower two make 13 bits without a sign and the upper two the rest.
   So up to four of each are added in 16 bits without a carry lost: 4 x 8191 < 2^15. */
#define LOOKED_BITS 13

/* tables [columns / 16][parts][4][16] of one token's codes q. Lane e of a sum has +x[i] where bit i of e is set, else -x[i]. */
static void make_tables(const int8_t *q, int64_t apart, int64_t columns, const int digits, uint8_t *tables)
{
    static const int32_t masks[4][16] = {{0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1}, {0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1},
                                         {0, 0, 0, 0, -1, -1, -1, -1, 0, 0, 0, 0, -1, -1, -1, -1}, {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1}};
    const int parts = digits == 1 ? 2 : 4;
    for (int64_t k = 0; k < columns; k += 4, q += 4) {
        uint8_t *to = tables + 64 * parts * (k / 16) + 16 * (k / 4 % 4);
        vi sum = vi_zero();
        int32_t all = 0;
        for (int i = 0; i < 4; i++) {
            const int32_t x = digits == 1 ? q[i] : (q[i] * 256 + q[i + apart]) * 256 + q[i + 2 * apart];
            all += x, sum = vi_add(sum, vi_and(vi_splat(2 * x), vi_load(masks[i])));
        }
        sum = vi_add(sum, vi_splat(-all));
        vi_to_bytes(to, sum);
        if (digits == 1) vi_to_bytes(to + 64, vi_shr(sum, 8));
        else {
            vi_to_bytes(to + 64, vi_and(vi_shr(sum, 8), vi_splat((1 << (LOOKED_BITS - 8)) - 1)));
            vi_to_bytes(to + 128, vi_shr(sum, LOOKED_BITS));
            vi_to_bytes(to + 192, vi_shr(sum, LOOKED_BITS + 8));
        }
    }
}

/* 16 rows' sums of one plane over `count` x 16 columns. words: the plane's 64 bytes of the first block, `apart` from the next one's;
   upper: the columns are the block's last 16 (count 1). */
INLINE vi looked_up(const uint8_t *words, int64_t apart, const uint8_t *tables, const int count, const int upper, const int parts)
{
    vi low[2] = {vi_zero(), vi_zero()}, high[2] = {vi_zero(), vi_zero()};
    UNROLL(4)
    for (int i = 0; i < count; i++, tables += 64 * parts) {
        const vi word = vi_load(words + i / 2 * apart), nibble = vi_and(i % 2 || upper ? vi_shr(word, 4) : word, vi_splat(0x0f0f0f0f));
        const vi a = vi_look(tables, nibble), b = vi_look(tables + 64, nibble);
        low[0] = vi_add_first(low[0], a, b), low[1] = vi_add_last(low[1], a, b);
        if (parts == 4) {
            const vi c = vi_look(tables + 128, nibble), d = vi_look(tables + 192, nibble);
            high[0] = vi_add_first(high[0], c, d), high[1] = vi_add_last(high[1], c, d);
        }
    }
    return parts == 4 ? vi_sum_runs(low[0], high[0], low[1], high[1]) : vi_sum_low_runs(low[0], low[1]);
}

INLINE vf look_token(const plan *p, int64_t tile, const input *in, const int digits)
{
    const int parts = digits == 1 ? 2 : 4, bits = p->bits;
    const int64_t sixteens = 2 * blocks_of(p), apart = 64 * bits;
    const int64_t shared = p->groups == 1 ? 64 : p->group, unit = digits == 3 || p->rule >= p->n ? 64 : p->rule;
    const int most = shared % 64 == 0 && unit % 64 == 0 ? 4 : shared % 32 == 0 ? 2 : 1; /* sixteens that share scales and a unit */
    const uint8_t *values = (const uint8_t *)p->values + tile * tile_bytes(p, LOOK, bits), *tables = in->tables;
    const uint16_t *scale = (const uint16_t *)p->scale + tile * p->groups * bits * 16;
    const float *offset = p->offset ? (const float *)p->offset + tile * p->groups * 16 : 0;
    int64_t group = 0, left = p->group;
    vf total = vf_zero();
    for (int64_t h = 0, count; h < sixteens; h += count, tables += 64 * parts * count) {
        const uint8_t *words = values + h / 2 * apart;
        count = sixteens - h < most ? sixteens - h : most;
        float all = 0;
        for (int64_t i = 0; i < count; i++) all += in->sums[h + i];
        vf part = offset ? vf_mul(vf_load(offset + group * 16), vf_splat(all)) : vf_zero();
        for (int64_t i = 0; i < bits * count; i += 2) __builtin_prefetch(words + AHEAD * apart + 32 * i);
        for (int k = 0; k < bits; k++) {
            const vi sum = count == 4   ? looked_up(words + 64 * k, apart, tables, 4, 0, parts)
                           : count == 2 ? looked_up(words + 64 * k, apart, tables, 2, 0, parts)
                           : h % 2      ? looked_up(words + 64 * k, apart, tables, 1, 1, parts)
                                        : looked_up(words + 64 * k, apart, tables, 1, 0, parts);
            part = vf_fma(vf_half(scale + (group * bits + k) * 16), vf_of(sum), part);
        }
        total = vf_fma(part, vf_splat(in->unit[h / 2]), total);
        if ((left -= 16 * count) <= 0) left = p->group, group += group + 1 < p->groups;
    }
    return total;
}

/* ---- many tokens ---- */

typedef struct {
    reader r;
    int64_t group, left; /* where the columns stand in the groups */
} cursor;

/* The next `blocks` blocks of a tile as weights, float [column][16]. */
INLINE void decode_floats(const plan *p, int64_t tile, cursor *c, int64_t blocks, float *panel, const int kind, const int width)
{
    const int bits = kind == LOOK ? p->bits : width;
    const int scaled = kind != F32 && kind != F16 && kind != BF16 && !is_moved(kind);
    vi q = vi_zero();
    for (int64_t b = 0; b < blocks; b++, panel += 512) {
        if (kind == BITS || kind == LOOK) {
            const uint8_t *words = c->r.values;
            if (kind == BITS) next_block(&c->r, kind, bits);
            else c->r.values += 64 * bits;
            for (int half = 0; half < 2; half++) {
                const uint16_t *scale = (const uint16_t *)p->scale + (tile * p->groups + c->group) * bits * 16;
                vf base = p->offset ? vf_load((const float *)p->offset + (tile * p->groups + c->group) * 16) : vf_zero();
                for (int k = 0; k < bits; k++) base = vf_sub(base, vf_half(scale + 16 * k));
                for (int j = 16 * half; j < 16 * half + 16; j++) {
                    vf w = base;
                    for (int k = 0; k < bits; k++) {
                        const vf s = vf_half(scale + 16 * k);
                        if (kind == BITS) w = vf_add_where(w, c->r.raw[k], 8 * (j % 4) + j / 4, vf_add(s, s));
                        else w = vf_add_where(w, vi_bytes(words + 64 * k + j / 4 % 4 * 16), 4 * half + j % 4, vf_add(s, s));
                    }
                    vf_store(panel + 16 * j, w);
                }
                if ((c->left -= 16) <= 0) c->left = p->group, c->group += c->group + 1 < p->groups;
            }
            continue;
        }
        grid g = scaled ? grid_of(p, tile, c->group, &c->r, kind) : (grid){vf_zero(), vf_zero()};
        next_block(&c->r, kind, bits);
UNROLL(32)
        for (int j = 0; j < 32; j++) {
            if (scaled && j == 16) {
                if ((c->left -= 16) <= 0) c->left = p->group, c->group += c->group + 1 < p->groups;
                g = grid_of(p, tile, c->group, &c->r, kind);
            }
            vf w = column(&c->r, j, &q, kind, bits);
            if (is_coded(kind)) w = vf_sub(w, g.zero);
            vf_store(panel + 16 * j, scaled ? vf_mul(w, g.scale) : is_moved(kind) ? vf_mul(w, vf_splat(HALF_BITS_UP)) : w);
        }
        if (scaled && (c->left -= 16) <= 0) c->left = p->group, c->group += c->group + 1 < p->groups;
    }
}

/* The same as codes, bytes [column / 4][16][4]. */
INLINE void decode_bytes(const plan *p, int64_t tile, cursor *c, int64_t blocks, uint8_t *panel, const int kind, const int bits)
{
    for (int64_t b = 0; b < blocks; b++, panel += 512) {
        if (kind == MASK_INT) grid_of(p, tile, c->group, &c->r, kind);
        next_block(&c->r, kind, bits);
UNROLL(8)
        for (int j = 0; j < 8; j++) {
            if (kind == MASK_INT && j == 4) {
                if ((c->left -= 16) <= 0) c->left = p->group, c->group += c->group + 1 < p->groups;
                grid_of(p, tile, c->group, &c->r, kind);
            }
            const vi q = quad(&c->r, j, kind, bits);
            memcpy(panel + 64 * j, &q, 64);
        }
        if (kind == MASK_INT && (c->left -= 16) <= 0) c->left = p->group, c->group += c->group + 1 < p->groups;
    }
}

/* The sums of `m` tokens by `tiles` tiles, both constants, stay in registers while the panels' columns pass; an activation is
   brought to all lanes once for all tiles. panel [tiles][PANEL][16], sum [tiles][TOKENS][16]. */
INLINE void floats_times(const float *panel, int64_t columns, const float *x, int64_t ld, float *sum, const int tiles, const int m)
{
    vf acc[TILES][TOGETHER];
UNROLL(2)
    for (int t = 0; t < tiles; t++) UNROLL(16)
        for (int i = 0; i < m; i++) acc[t][i] = vf_load(sum + 16 * (TOKENS * t + i));
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
    for (int t = 0; t < tiles; t++) UNROLL(16)
        for (int i = 0; i < m; i++) vf_store(sum + 16 * (TOKENS * t + i), acc[t][i]);
}

/* Codes of `bits` bits or fewer. Here a block's codes stay in registers while the tokens pass. panel [tiles][PANEL_BYTES], sum as above. */
INLINE void bytes_times(const plan *p, int64_t tile, const uint8_t *panel, int64_t first, int64_t blocks, const input *in, int64_t token,
                        int64_t m, float *sum, const int tiles, const int narrow, const int bits)
{
    const int64_t ld = in->ld;
    const int quads = narrow ? 4 : 8;
    int64_t group = 32 * first / p->group, left = p->group - (32 * first - group * p->group);
    for (int64_t b = first; b < first + blocks; b++)
        for (int half = 0; half < 1 + narrow; half++) {
            vf scale[TILES], lifted[TILES];
            vi q[TILES][8];
UNROLL(2)
            for (int t = 0; t < tiles; t++) {
                const grid g = grid_of(p, tile + t, group, 0, INT); /* MASK_INT's removed weights have their codes already */
                scale[t] = g.scale, lifted[t] = vf_mul(g.scale, g.zero);
UNROLL(8)
                for (int j = 0; j < quads; j++) q[t][j] = vi_load(panel + PANEL_BYTES * t + 512 * (b - first) + 64 * (j + 4 * half));
            }
            const int8_t *k = in->q + token * ld + 32 * b + 16 * half;
            const float *sums = in->sums + token * ld / 16 + 2 * b, *unit = in->unit + token * ld / 32 + b;
            for (int64_t i = 0; i < m; i++, k += ld, sums += ld / 16, unit += ld / 32) {
                const vf units = vf_splat(*unit), all = vf_splat((narrow ? sums[half] : sums[0] + sums[1]) * *unit);
                vi dot[TILES];
UNROLL(2)
                for (int t = 0; t < tiles; t++) dot[t] = vi_zero();
UNROLL(8)
                for (int j = 0; j < quads; j++) UNROLL(2)
                    for (int t = 0; t < tiles; t++) dot[t] = vi_dot(dot[t], q[t][j], k + 4 * j, bits);
UNROLL(2)
                for (int t = 0; t < tiles; t++) {
                    float *to = sum + 16 * (TOKENS * t + i);
                    vf_store(to, vf_fnma(lifted[t], all, vf_fma(vf_mul(scale[t], units), vf_of(dot[t]), vf_load(to))));
                }
            }
            if ((left -= narrow ? 16 : 32) <= 0) left = p->group, group += group + 1 < p->groups;
        }
}

/* How the matrix unit takes the columns: pieces in which the weights' scale doesn't change, none beyond its panel, cut into spans in
   which the activations' unit doesn't change either. */
typedef struct {
    int32_t blocks, group;
} piece;
typedef struct {
    int64_t blocks, span;       /* of all columns; of a span */
    int one_unit;               /* a token's sums are multiplied by its only unit in the end */
    float *unit, *all;          /* [block][TOKENS]: the unit; of a piece, at its first block, what the zero point takes off */
    piece *piece;               /* at its first block */
} cut;

/* Blocks of a span: all spans of a piece begin where a unit or the piece begins. */
static int64_t span_of(const plan *p, const input *in)
{
    const int64_t panel = PANEL / 32, group = p->group / 32, unit = in->digits == 3 ? DIGITS_UNIT / 32 : p->rule / 32, span = unit % panel ? unit : panel;
    return panel % span == 0 && (group % span == 0 || span % group == 0) ? span : 1;
}

static void cut_columns(const plan *p, const input *in, int64_t token, int64_t m, const cut *c)
{
    const int64_t group_blocks = p->group / 32, panel = PANEL / 32;
    for (int64_t b = 0, end; b < c->blocks; b = end) {
        const int64_t group = b / group_blocks < p->groups ? b / group_blocks : p->groups - 1;
        end = group < p->groups - 1 ? (group + 1) * group_blocks : c->blocks;
        if (end > b + panel - b % panel) end = b + panel - b % panel;
        c->piece[b].blocks = end - b, c->piece[b].group = group;
        for (int64_t i = 0; i < m; i++) {
            const float *sums = in->sums + (token + i) * in->ld / 16, *unit = in->unit + (token + i) * in->ld / 32;
            float all = 0;
            for (int64_t k = b; k < end; k++) {
                const float worth = c->one_unit ? 1 : unit[k];
                all += (sums[2 * k] + sums[2 * k + 1]) * worth, c->unit[TOKENS * k + i] = worth;
            }
            c->all[TOKENS * b + i] = all;
        }
    }
}

/* acc += a piece's part of sixteen tokens' sums, from the dots of its spans. unit, all: of these tokens. */
INLINE void add_piece(vf *acc, const int32_t *dots, const float *scale, const float *unit, const float *all, int64_t spans, int64_t span, const int digits,
                      const int one_unit, const int centred)
{
    const vf up = vf_load(scale), lifted = vf_load(scale + PANEL / 2);
UNROLL(16)
    for (int j = 0; j < 16; j++) {
        vf sum = vf_zero();
UNROLL(2)
        for (int64_t k = 0; k < spans; k++) {
            vi part[3];
            for (int d = 0; d < digits; d++) part[d] = vi_load(dots + 256 * (digits * k + d) + 16 * j);
            const vf joined = join_digits(part, digits);
            sum = one_unit ? joined : k ? vf_fma(joined, vf_splat(unit[TOKENS * span * k + j]), sum) : vf_mul(joined, vf_splat(unit[j]));
        }
        acc[j] = vf_fma(up, sum, acc[j]);
        if (!centred) acc[j] = vf_fnma(lifted, vf_splat(all[j]), acc[j]);
    }
}

/* sum += `blocks` decoded blocks of one tile, from block `first` on, times `m` tokens from `token` on, by the matrix unit. A piece's dots
   are written while those before are added, since what has just been written can't be read at once. each, span: blocks of every piece
   and of every span, constants where they are known. */
INLINE void matrix_times(const uint8_t *codes, int64_t first, int64_t blocks, const input *in, int64_t token, int64_t m, float *sum, const cut *c,
                         const float *scale, const int64_t each, const int64_t span, const int digits, const int one_unit, const int centred)
{
    int32_t dots[2][PANEL / 32 * 3 * 256 + 256] __attribute__((aligned(64))); /* the two don't share their places in the cache */
    const int64_t apart = in->rows * in->ld;
    for (int64_t i = 0; i < m; i += 16, sum += 256) {
        const int8_t *q = in->q + (token + i) * in->ld;
        vf acc[16];
        int64_t before = -1;
        int turn = 0;
UNROLL(16)
        for (int j = 0; j < 16; j++) acc[j] = vf_load(sum + 16 * j);
        for (int64_t b = first, count; b < first + blocks; b += count, turn ^= 1) {
            count = each ? each : c->piece[b].blocks;
            for (int64_t k = 0; k < count; k += span)
                matrix_dot(q, apart, codes + 512 * (b + k - first), b + k, b + (count - k < span ? count : k + span), dots[turn] + 256 * digits * (k / span), digits, each == 2 && span == 2);
            if (before >= 0)
                add_piece(acc, dots[turn ^ 1], scale + 16 * (before - first), c->unit + TOKENS * before + i, c->all + TOKENS * before + i,
                          ((each ? each : c->piece[before].blocks) + span - 1) / span, span, digits, one_unit, centred);
            before = b;
        }
        add_piece(acc, dots[turn ^ 1], scale + 16 * (before - first), c->unit + TOKENS * before + i, c->all + TOKENS * before + i,
                  ((each ? each : c->piece[before].blocks) + span - 1) / span, span, digits, one_unit, centred);
UNROLL(16)
        for (int j = 0; j < 16; j++) vf_store(sum + 16 * j, acc[j]);
    }
}

/* The codes are made signed first: less the zero point, where that is a whole number and the difference a byte, or half their range. */
static void by_matrix(const plan *p, int64_t tile, uint8_t *codes, int64_t first, int64_t blocks, const input *in, int64_t token, int64_t m, float *sum, const cut *c)
{
    const int centred = p->grids == WHOLE && (!p->zero || p->bits < 8), usual = centred && p->group == 64 && blocks % 2 == 0;
    const vf half = vf_splat(1 << (p->bits - 1));
    float scale[2 * PANEL / 2];
    for (int64_t b = first; b < first + blocks; b += c->piece[b].blocks) {
        const grid g = grid_of(p, tile, c->piece[b].group, 0, INT); /* MASK_INT's removed weights have their codes already */
        const vf taken = centred ? g.zero : half;
        const vi four = vi_fourfold(vf_to_vi(taken));
        uint8_t *at = codes + 512 * (b - first);
        for (int64_t k = 0; k < 8 * c->piece[b].blocks; k++, at += 64) vi_store(at, vi_sub_bytes(vi_load(at), four));
        vf_store(scale + 16 * (b - first), g.scale), vf_store(scale + PANEL / 2 + 16 * (b - first), vf_mul(g.scale, vf_sub(g.zero, taken)));
    }
    if (in->digits == 3 && usual && c->span == 2) matrix_times(codes, first, blocks, in, token, m, sum, c, scale, 2, 2, 3, 0, 1);
    else if (in->digits == 3) matrix_times(codes, first, blocks, in, token, m, sum, c, scale, 0, c->span, 3, 0, 0);
    else if (c->one_unit && usual) matrix_times(codes, first, blocks, in, token, m, sum, c, scale, 2, 2, 1, 1, 1);
    else if (c->one_unit) matrix_times(codes, first, blocks, in, token, m, sum, c, scale, 0, PANEL / 32, 1, 1, 0);
    else if (c->span == 1 && usual) matrix_times(codes, first, blocks, in, token, m, sum, c, scale, 2, 1, 1, 0, 1);
    else matrix_times(codes, first, blocks, in, token, m, sum, c, scale, 0, c->span, 1, 0, 0);
}

/* sum += `blocks` decoded blocks of `tiles` tiles, a constant, from block `first` on, times `m` tokens from `token` on. */
INLINE void panel_times(const plan *p, int64_t tile, const float *panel, int64_t first, int64_t blocks, const input *in, int64_t token,
                        int64_t m, float *sum, int as_bytes, const int tiles)
{
    if (as_bytes) {
        for (int64_t i = 0; i < m; i += NEAR) {
            const int64_t more = m - i < NEAR ? m - i : NEAR;
            const uint8_t *codes = (const uint8_t *)panel;
            if (p->group % 32) bytes_times(p, tile, codes, first, blocks, in, token + i, more, sum + 16 * i, tiles, 1, 8);
            else if (SEVEN_PAY && p->bits < 8) bytes_times(p, tile, codes, first, blocks, in, token + i, more, sum + 16 * i, tiles, 0, 7);
            else bytes_times(p, tile, codes, first, blocks, in, token + i, more, sum + 16 * i, tiles, 0, 8);
        }
        return;
    }
    const float *x = in->x + token * in->ld + 32 * first;
    int64_t i = 0;
    for (; i + TOGETHER <= m; i += TOGETHER) floats_times(panel, 32 * blocks, x + i * in->ld, in->ld, sum + 16 * i, tiles, TOGETHER);
    for (; i + 4 <= m; i += 4) floats_times(panel, 32 * blocks, x + i * in->ld, in->ld, sum + 16 * i, tiles, 4);
    for (; i + 2 <= m; i += 2) floats_times(panel, 32 * blocks, x + i * in->ld, in->ld, sum + 16 * i, tiles, 2);
    if (i < m) floats_times(panel, 32 * blocks, x + i * in->ld, in->ld, sum + 16 * i, tiles, 1);
}

static void one_tile(const plan *p, int64_t t, const float *w, int64_t b, int64_t n, const input *in, int64_t token, int64_t m, float *s, int as_bytes)
{
    panel_times(p, t, w, b, n, in, token, m, s, as_bytes, 1);
}
static void all_tiles(const plan *p, int64_t t, const float *w, int64_t b, int64_t n, const input *in, int64_t token, int64_t m, float *s, int as_bytes)
{
    panel_times(p, t, w, b, n, in, token, m, s, as_bytes, TILES);
}

/* ---- which loop serves which format ---- */

typedef vf one_token(const plan *, int64_t, const input *);
typedef void next_floats(const plan *, int64_t, cursor *, int64_t, float *);
typedef void next_bytes(const plan *, int64_t, cursor *, int64_t, uint8_t *);
typedef struct {
    one_token *exact, *int8;
    next_floats *floats;
    next_bytes *bytes;
} route;

#define TOKEN(name, kind, bits, loop) \
    static vf name##_##kind##_##bits(const plan *p, int64_t t, const input *in) { return loop; }
#define FLOATS_OF(kind, bits) \
    static void floats_##kind##_##bits(const plan *p, int64_t t, cursor *c, int64_t n, float *w) { decode_floats(p, t, c, n, w, kind, bits); }
#define FLOAT_LOOPS(kind, bits) FLOATS_OF(kind, bits) TOKEN(exact, kind, bits, float_token(p, t, in, kind, bits))
#define BOOK_LOOPS(kind, bits) FLOAT_LOOPS(kind, bits) TOKEN(int8, kind, bits, code_token(p, t, in, kind, bits, 1))
#define PLANE_LOOPS(kind, bits) \
    FLOATS_OF(kind, bits) TOKEN(exact, kind, bits, planes_token(p, t, in, bits, 3)) TOKEN(int8, kind, bits, planes_token(p, t, in, bits, 1))
#define CODE_LOOPS(kind, bits) \
    FLOATS_OF(kind, bits) TOKEN(exact, kind, bits, code_token(p, t, in, kind, bits, 3)) TOKEN(int8, kind, bits, code_token(p, t, in, kind, bits, 1)) \
    static void bytes_##kind##_##bits(const plan *p, int64_t t, cursor *c, int64_t n, uint8_t *w) { decode_bytes(p, t, c, n, w, kind, bits); }

FLOAT_LOOPS(F32, 0) FLOAT_LOOPS(F16, 0) FLOAT_LOOPS(BF16, 0) FLOAT_LOOPS(MASK_F16, 0)
FLOATS_OF(TWO_F16, 0) TOKEN(exact, TWO_F16, 0, two_token(p, t, in))
BOOK_LOOPS(BOOK, 4)
CODE_LOOPS(INT, 2) CODE_LOOPS(INT, 3) CODE_LOOPS(INT, 4) CODE_LOOPS(INT, 5) CODE_LOOPS(INT, 6) CODE_LOOPS(INT, 7) CODE_LOOPS(INT, 8)
CODE_LOOPS(MASK_INT, 4) CODE_LOOPS(MASK_INT, 8)
PLANE_LOOPS(BITS, 1) PLANE_LOOPS(BITS, 2) PLANE_LOOPS(BITS, 3) PLANE_LOOPS(BITS, 4) PLANE_LOOPS(BITS, 5) PLANE_LOOPS(BITS, 6) PLANE_LOOPS(BITS, 7) PLANE_LOOPS(BITS, 8)
FLOATS_OF(LOOK, 0) TOKEN(exact, LOOK, 0, look_token(p, t, in, 3)) TOKEN(int8, LOOK, 0, look_token(p, t, in, 1)) /* any number of planes */

#define FLOAT_ROUTE(kind, bits) {exact_##kind##_##bits, 0, floats_##kind##_##bits, 0}
#define TOKEN_ROUTE(kind, bits) {exact_##kind##_##bits, int8_##kind##_##bits, floats_##kind##_##bits, 0}
#define CODE_ROUTE(kind, bits) {exact_##kind##_##bits, int8_##kind##_##bits, floats_##kind##_##bits, bytes_##kind##_##bits}

static const route *route_of(const plan *p)
{
    static const route dense[] = {FLOAT_ROUTE(F32, 0), FLOAT_ROUTE(F16, 0), FLOAT_ROUTE(BF16, 0)}, sparse = FLOAT_ROUTE(MASK_F16, 0), two = FLOAT_ROUTE(TWO_F16, 0),
                       book = TOKEN_ROUTE(BOOK, 4), look = TOKEN_ROUTE(LOOK, 0), nibbles = CODE_ROUTE(MASK_INT, 4), bytes = CODE_ROUTE(MASK_INT, 8);
    static const route ints[] = {CODE_ROUTE(INT, 2), CODE_ROUTE(INT, 3), CODE_ROUTE(INT, 4), CODE_ROUTE(INT, 5), CODE_ROUTE(INT, 6), CODE_ROUTE(INT, 7), CODE_ROUTE(INT, 8)};
    static const route planes[] = {TOKEN_ROUTE(BITS, 1), TOKEN_ROUTE(BITS, 2), TOKEN_ROUTE(BITS, 3), TOKEN_ROUTE(BITS, 4), TOKEN_ROUTE(BITS, 5), TOKEN_ROUTE(BITS, 6), TOKEN_ROUTE(BITS, 7), TOKEN_ROUTE(BITS, 8)};
    switch (p->kind) {
    case INT: return ints + p->bits - 2;
    case BOOK: return &book;
    case BITS: return planes + p->bits - 1;
    case LOOK: return &look;
    case MASK_F16: return &sparse;
    case TWO_F16: return &two;
    case MASK_INT: return p->bits <= 4 ? &nibbles : &bytes;
    default: return dense + p->kind;
    }
}

static cursor begin(const plan *p, int64_t tile)
{
    const int bits = p->kind == MASK_INT ? (p->bits <= 4 ? 4 : 8) : p->bits;
    cursor c = {open_tile(p, tile, p->kind, bits), 0, p->group};
    return c;
}

/* ---- whole matrices ---- */

/* sum + what the codes of a token leave out, for INT weights of 8 bits: its shift times the sum of each row, and the activations
   that a threshold keeps apart, each times its column. */
static vf with_rest(const plan *p, int64_t tile, const input *in, int64_t token, vf sum)
{
    if (in->shift) sum = vf_fma(vf_load((const float *)p->offset + 16 * tile), vf_splat(in->shift[token]), sum);
    if (!in->large) return sum;
    const uint8_t *codes = (const uint8_t *)p->values + tile * tile_bytes(p, INT, 8);
    const large *l = in->large + token * in->ld;
    for (int64_t i = 0; i < in->larges[token]; i++, l++) {
        const int64_t block = l->column / 32, place = l->column % 32;
        const vi four = vi_load(codes + 512 * block + 64 * (place / 4));
        const vf code = vf_of(vi_and(vi_shr(four, 8 * (place % 4)), vi_splat(255)));
        const grid g = grid_of(p, tile, l->column / p->group, 0, INT);
        sum = vf_fma(vf_mul(vf_sub(code, g.zero), g.scale), vf_splat(l->x), sum);
    }
    return sum;
}

static void write_rows(const plan *p, int64_t tile, const float *sixteen, float *y)
{
    const int64_t left = p->out - 16 * tile;
    memcpy(y + 16 * tile, sixteen, 4 * (left < 16 ? left : 16));
}

static void multiply_tiles(member *me, const plan *p, const input *in, float *y, int64_t ld)
{
    const route *to = route_of(p);
    const int64_t blocks = blocks_of(p);
    const int tiled = matrix_ready() && in->tiled && to->bytes, as_bytes = tiled || (in->digits == 1 && to->bytes && p->rule);
    const int rest = (in->large || in->shift) && p->kind == INT; /* others read x, which has it */
    int64_t first, last;
    share(me, tiles_of(p), &first, &last);
    if (in->m == 1) {
        input lifted = *in;
        if (is_moved(p->kind)) {
            float *x = (float *)me->own;
            for (int64_t k = 0; k < 32 * blocks; k++) x[k] = in->x[k] * X_UP;
            lifted.x = x, in = &lifted;
        }
        one_token *token = in->digits == 1 && p->rule && to->int8 ? to->int8 : to->exact;
        for (int64_t t = first; t < last; t++) {
            vf v = token(p, t, in);
            if (rest) v = with_rest(p, t, in, 0, v);
            if (16 * t + 16 <= p->out) vf_store(y + 16 * t, v);
            else {
                float sixteen[16];
                vf_store(sixteen, v);
                write_rows(p, t, sixteen, y);
            }
        }
        return;
    }
    float *sum = (float *)me->own, *panel = sum + 16 * TILES * TOKENS, *units = panel + 16 * TILES * PANEL, *alls = units + TOKENS * blocks;
    const cut cut = {blocks, span_of(p, in), in->digits == 1 && p->rule >= p->n, units, alls, (piece *)(alls + TOKENS * blocks)};
    if (tiled) matrix_begin();
    for (int64_t token = 0; token < in->m; token += TOKENS) {
        const int64_t m = in->m - token < TOKENS ? in->m - token : TOKENS;
        if (tiled) cut_columns(p, in, token, m, &cut);
        for (int64_t t = first; t < last; t += TILES) {
            const int tiles = last - t < TILES ? 1 : TILES;
            cursor c[TILES];
            for (int j = 0; j < tiles; j++) c[j] = begin(p, t + j), memset(sum + 16 * TOKENS * j, 0, 64 * m);
            for (int64_t b = 0; b < blocks; b += PANEL / 32) {
                const int64_t count = blocks - b < PANEL / 32 ? blocks - b : PANEL / 32;
                for (int j = 0; j < tiles; j++)
                    if (as_bytes) to->bytes(p, t + j, c + j, count, (uint8_t *)panel + PANEL_BYTES * j);
                    else to->floats(p, t + j, c + j, count, panel + 16 * PANEL * j);
                if (!tiled) (tiles == TILES ? all_tiles : one_tile)(p, t, panel, b, count, in, token, m, sum, as_bytes);
                for (int j = 0; tiled && j < tiles; j++) by_matrix(p, t + j, (uint8_t *)panel + PANEL_BYTES * j, b, count, in, token, m, sum + 16 * TOKENS * j, &cut);
            }
            for (int64_t i = 0; i < m; i++)
                for (int j = 0; j < tiles; j++) {
                    float *own = sum + 16 * (TOKENS * j + i);
                    if (tiled && cut.one_unit) vf_store(own, vf_mul(vf_load(own), vf_splat(in->unit[(token + i) * in->ld / 32])));
                    if (rest) vf_store(own, with_rest(p, t + j, in, token + i, vf_load(own)));
                    write_rows(p, t + j, own, y + (token + i) * ld);
                }
        }
    }
    if (tiled) matrix_end();
}

/* From four tokens on they go sixteen at a time, one a lane, their activations turned once: [column][16]. */
static void add_outliers(member *me, const plan *p, const input *in, float *y, int64_t ld)
{
    const uint16_t *values = p->values, *columns = p->mask;
    const int32_t *starts = p->starts;
    float *turned = (float *)me->own, sums[16];
    int64_t first, last;
    share(me, tiles_of(p), &first, &last); /* rows of whole tiles, as every other format, so that a thread adds to its own rows */
    const int64_t from = 16 * first, to = 16 * last < p->out ? 16 * last : p->out;
    if (in->m < 4) {
        for (int64_t o = from; o < to; o++)
            for (int64_t i = 0; i < in->m; i++) {
                float s = 0;
                for (int64_t k = starts[o]; k < starts[o + 1]; k++) s += half_to_float(values[k]) * in->x[i * in->ld + columns[k]];
                y[i * ld + o] += s;
            }
        return;
    }
    for (int64_t i = 0; i < in->m; i += 16) {
        const int64_t m = in->m - i < 16 ? in->m - i : 16;
        for (int64_t k = 0; k < p->n; k++)
            for (int64_t j = 0; j < 16; j++) turned[16 * k + j] = j < m ? in->x[(i + j) * in->ld + k] : 0;
        for (int64_t o = from; o < to; o++) {
            vf s = vf_zero();
            for (int64_t k = starts[o]; k < starts[o + 1]; k++) s = vf_fma(vf_splat(half_to_float(values[k])), vf_load(turned + 16 * columns[k]), s);
            vf_store(sums, s);
            for (int64_t j = 0; j < m; j++) y[(i + j) * ld + o] += sums[j];
        }
    }
}

static void add_columns(member *me, const plan *p, const input *in, float *y, int64_t ld)
{
    const int32_t *columns = p->starts;
    int64_t first, last;
    share(me, tiles_of(p), &first, &last);
    for (int64_t t = first; t < last; t++) {
        const uint16_t *values = (const uint16_t *)p->values + t * p->groups * 16;
        const int64_t rows = p->out - 16 * t < 16 ? p->out - 16 * t : 16;
        for (int64_t i = 0; i < in->m; i++) {
            float sixteen[16] = {0}, *to = y + i * ld + 16 * t;
            memcpy(sixteen, to, 4 * rows);
            vf s = vf_load(sixteen);
            for (int64_t k = 0; k < p->groups; k++) s = vf_fma(vf_half(values + 16 * k), vf_splat(in->x[i * in->ld + columns[k]]), s);
            vf_store(sixteen, s);
            memcpy(to, sixteen, 4 * rows);
        }
    }
}

/* Kinds that add to what is there. */
static int is_added(const plan *p) { return p->kind == OUTLIERS || p->kind == COLUMNS; }

static void add(member *me, const plan *p, const input *in, float *y, int64_t ld)
{
    (p->kind == OUTLIERS ? add_outliers : add_columns)(me, p, in, y, ld);
}

/* Tensor trains: a tile's rows are made once for all tokens. */
static void multiply_chains(member *me, const plan *p, const input *in, float *y, int64_t ld)
{
    float *panel = (float *)me->own, sixteen[64];
    const int64_t columns = 32 * blocks_of(p);
    int64_t first, last;
    share(me, tiles_of(p), &first, &last);
    for (int64_t t = first; t < last; t++) {
        contract(p, t, panel);
        for (int64_t i = 0; i < in->m; i += 4) {
            const int64_t more = in->m - i < 4 ? in->m - i : 4;
            vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
            const float *x = in->x + i * in->ld;
            if (more == 4)
                for (int64_t k = 0; k < columns; k++) UNROLL(4)
                    for (int j = 0; j < 4; j++) sum[j] = vf_fma(vf_load(panel + 16 * k), vf_splat(x[j * in->ld + k]), sum[j]);
            else
                for (int64_t j = 0; j < more; j++) {
                    vf part[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
                    for (int64_t k = 0; k < columns; k += 4) UNROLL(4)
                        for (int q = 0; q < 4; q++) part[q] = vf_fma(vf_load(panel + 16 * (k + q)), vf_splat(x[j * in->ld + k + q]), part[q]);
                    sum[j] = vf_add(vf_add(part[0], part[1]), vf_add(part[2], part[3]));
                }
            for (int64_t j = 0; j < more; j++) {
                vf_store(sixteen + 16 * j, sum[j]);
                write_rows(p, t, sixteen + 16 * j, y + (i + j) * ld);
            }
        }
    }
}

int64_t own_bytes(const plan *p)
{
    int64_t most = 64 * TILES * (TOKENS + PANEL) + (matrix_ready() ? (8 * TOKENS + (int64_t)sizeof(piece)) * blocks_of(p) : 0);
    const int64_t columns = 32 * blocks_of(p) * (p->kind == OUTLIERS ? 64 : 4); /* of sixteen tokens, or of one */
    if (columns > most) most = columns;
    if (p->kind == TRAIN && 4 * chain_room(p) > most) most = 4 * chain_room(p);
    const int64_t first = p->first ? own_bytes(p->first) : 0, second = p->second ? own_bytes(p->second) : 0;
    if (first > most) most = first;
    return second > most ? second : most;
}

int64_t shared_bytes(const plan *p, int64_t m)
{
    if (p->kind != SUM) return 0;
    if (is_added(p->second)) return shared_bytes(p->first, m);
    const int64_t a = shared_bytes(p->first, m), b = shared_bytes(p->second, m);
    return 4 * m * 16 * tiles_of(p) + 64 + (a > b ? a : b);
}

int64_t middle_bytes(const plan *p, int64_t m)
{
    if (p->kind == LOW_RANK) return (4 * m * width_of(p->second->n) + 63) & ~(int64_t)63;
    if (p->kind != SUM) return 0;
    const int64_t a = middle_bytes(p->first, m), b = middle_bytes(p->second, m);
    return a > b ? a : b;
}

uint8_t *next_middle(member *me)
{
    me->turn ^= 1;
    return me->middle[me->turn];
}

void low_rank_first(member *me, const plan *p, const input *in, float *middle)
{
    const int64_t width = width_of(p->second->n), rank = p->first->out;
    int64_t first, last;
    share(me, in->m, &first, &last);
    multiply(me, p->first, in, middle, width);
    for (int64_t i = first; i < last; i++) memset(middle + i * width + rank, 0, 4 * (width - rank));
}

void low_rank_second(member *me, const plan *p, const float *middle, int64_t m, float *y, int64_t ld)
{
    const input in = {.x = middle, .m = m, .ld = width_of(p->second->n)};
    multiply(me, p->second, &in, y, ld);
}

void multiply(member *me, const plan *p, const input *in, float *y, int64_t ld)
{
    if (p->kind == LOW_RANK) {
        float *middle = (float *)next_middle(me);
        low_rank_first(me, p, in, middle);
        wait_for_all(me);
        low_rank_second(me, p, middle, in->m, y, ld);
    } else if (p->kind == SUM) {
        if (is_added(p->second)) {
            multiply(me, p->first, in, y, ld);
            add(me, p->second, in, y, ld);
            return;
        }
        member below = *me;
        float *other = (float *)me->shared;
        const int64_t width = 16 * tiles_of(p);
        below.shared += 4 * in->m * width + 64;
        multiply(&below, p->first, in, y, ld);
        multiply(&below, p->second, in, other, width);
        me->turn = below.turn;
        int64_t first, last;
        share(me, tiles_of(p), &first, &last);
        for (int64_t i = 0; i < in->m; i++)
            for (int64_t o = 16 * first; o < 16 * last && o < p->out; o++) y[i * ld + o] += other[i * width + o];
    } else if (is_added(p)) {
        int64_t first, last;
        share(me, tiles_of(p), &first, &last);
        for (int64_t i = 0; i < in->m; i++)
            for (int64_t o = 16 * first; o < 16 * last && o < p->out; o++) y[i * ld + o] = 0;
        add(me, p, in, y, ld);
    } else if (p->kind == TRAIN)
        multiply_chains(me, p, in, y, ld);
    else
        multiply_tiles(me, p, in, y, ld);
}

int64_t panel_bytes(const plan *p)
{
    if (p->kind == TRAIN) return 4 * chain_room(p);
    if (p->kind != LOW_RANK) return 2048 * blocks_of(p);
    const int64_t a = panel_bytes(p->first), b = panel_bytes(p->second);
    return 64 * tiles_of(p->first) + (a > b ? a : b);
}

/* The rows of a tile as floats [column][16], in the order of the tile's columns. */
static void decode_tile(const plan *p, int64_t tile, float *panel)
{
    if (p->kind == TRAIN) {
        contract(p, tile, panel);
        return;
    }
    cursor c = begin(p, tile);
    route_of(p)->floats(p, tile, &c, blocks_of(p), panel);
}

/* Rows of (second first): a row of the second times all of the first. */
static void decode_products(const plan *p, const int64_t *ids, int64_t count, float *into, float *panel)
{
    const plan *v = p->first;
    float *row = panel, *rest = panel + 16 * tiles_of(v); /* the row padded to whole tiles of v */
    for (int64_t i = 0; i < count; i++, into += p->n) {
        memset(row, 0, 64 * tiles_of(v));
        memset(into, 0, 4 * p->n);
        decode_rows(p->second, ids + i, 1, row, rest);
        for (int64_t t = 0; t < tiles_of(v); t++) {
            decode_tile(v, t, rest);
            const vf sixteen = vf_load(row + 16 * t);
            for (int64_t k = 0; k < p->n; k++) into[k] += vf_sum(vf_mul(sixteen, vf_load(rest + 16 * k)));
        }
    }
}

void decode_rows(const plan *p, const int64_t *ids, int64_t count, float *into, float *panel)
{
    if (p->kind == LOW_RANK) {
        decode_products(p, ids, count, into, panel);
        return;
    }
    int64_t had = -1;
    for (int64_t i = 0; i < count; i++) {
        const int64_t tile = ids[i] / 16, lane = ids[i] % 16;
        if (tile != had) decode_tile(p, tile, panel);
        had = tile;
        for (int64_t k = 0; k < p->n; k++) into[i * p->n + (p->order ? p->order[k] : k)] = panel[16 * k + lane];
    }
}

/* ---- activations ---- */

int multiplies_integers(const plan *p)
{
    if (p->kind == SUM) return multiplies_integers(p->first) || multiplies_integers(p->second);
    return p->kind == INT || p->kind == MASK_INT || p->kind == BITS || p->kind == LOOK;
}

int looks_up(const plan *p)
{
    return p->kind == SUM ? looks_up(p->first) || looks_up(p->second) : p->kind == LOOK;
}

/* Parts that read codes, and parts that can't let the matrix unit read them. */
static int reads_codes(const plan *p, int but_no_matrix)
{
    if (p->kind == SUM) return reads_codes(p->first, but_no_matrix) || reads_codes(p->second, but_no_matrix);
    return (p->kind == INT || p->kind == MASK_INT) && !(but_no_matrix && p->group % 32 == 0);
}

int takes_matrix(const plan *p, int64_t m)
{
    return matrix_ready() && m >= (p->rule ? MATRIX_INT8 : MATRIX_EXACT) && reads_codes(p, 0) && !reads_codes(p, 1);
}

int64_t input_bytes(int64_t n, int64_t m)
{
    const int64_t ld = width_of(n), digits = m == 1 || matrix_ready() ? 3 : 1;
    const int64_t codes = m * (4 * ld + digits * ld + ld / 4 + ld / 8) + digits * 15 * ld; /* the matrix unit has room for whole sixteens */
    const int64_t tables = m == 1 ? 16 * ld : 0;
    return codes + tables + m * (8 * ld + 8 + 4) + 8 * 64; /* all activations may be large */
}

static uint8_t *room_for(uint8_t **room, int64_t bytes)
{
    uint8_t *here = *room;
    *room += (bytes + 63) & ~(int64_t)63;
    return here;
}

/* int8 codes of columns [from, to) of one token with a common unit, their sums by 16, and x on that grid unless only codes
   are read. A value that is not finite makes the unit NaN. jump: from 64 codes to the next. shifted: the codes are those of
   x - the number that is returned, a multiple of the unit (so that 0 stays exact); of n columns, the others' codes are 0. */
static float to_int8(float *x, int8_t *q, int64_t jump, float *unit, float *sums, int64_t from, int64_t to, int top, float fixed, int floats, int shifted, int64_t n)
{
    vf largest = vf_zero(), least = vf_zero(), spoiled = vf_zero();
    for (int64_t k = from; k < to; k += 16) {
        const vf v = vf_load(x + k);
        largest = vf_max(largest, shifted ? v : vf_abs(v));
        if (shifted) least = vf_min(least, v);
        spoiled = vf_fma(v, vf_zero(), spoiled); /* 0 x inf and 0 x NaN are NaN */
    }
    const float low = shifted ? -vf_top(vf_sub(vf_zero(), least)) : 0, bad = vf_sum(spoiled);
    const float most = shifted ? vf_top(largest) - low : vf_top(largest);
    const float u = bad != 0 ? NAN : fixed ? fixed : (most > 1e-30f ? most : 1e-30f) / (shifted ? 2 * top : top);
    const float zero = shifted && bad == 0 && most > 1e-30f ? rintf(-top - low * (1 / u)) : 0;
    const vf up = vf_splat(1 / u), highest = vf_splat(top), lowest = vf_splat(-top);
    for (int64_t k = from; k < to; k += 16) {
        const vf whole = vf_add(vf_round(vf_mul(vf_load(x + k), up)), vf_splat(zero));
        const vf code = bad == 0 ? vf_max(lowest, vf_min(highest, whole)) : vf_zero();
        vf_to_bytes(q + k / 64 * jump + k % 64, code);
        sums[k / 16] = vf_sum(code);
        if (floats) vf_store(x + k, vf_mul(vf_sub(code, vf_splat(zero)), vf_splat(u)));
    }
    for (int64_t k = from; k < to; k += 32) unit[k / 32] = u;
    for (int64_t k = n; zero != 0 && k < to; k++) { /* a code that stands for 0 isn't 0 */
        sums[k / 16] -= zero;
        q[k / 64 * jump + k % 64] = 0;
    }
    return bad == 0 ? -zero * u : NAN;
}

/* DIGITS_UNIT values of one token as 24-bit integers of a common unit, in three digits from -128 to 127, the highest first, and their
   sums by 16. All numbers are whole and below 2^24, so that floats hold them exactly; v / 256 + 1 / 512 rounds to the quotient that
   leaves such a digit. A value that is not finite makes the unit NaN. apart: from digit to digit. */
INLINE void to_digits(const float *x, int8_t *q, int64_t apart, float *unit, float *sums)
{
    const int columns = DIGITS_UNIT;
    const vf step = vf_splat(0x1p-8f), half = vf_splat(0x1p-9f), base = vf_splat(256);
    vf top = vf_zero(), spoiled = vf_zero();
    for (int k = 0; k < columns; k += 16) top = vf_max(top, vf_abs(vf_load(x + k))), spoiled = vf_fma(vf_load(x + k), vf_zero(), spoiled);
    const float largest = vf_top(top), bad = vf_sum(spoiled);
    const float most_code = 127 * 65536 + 127 * 256 + 127, most = largest > 1e-30f ? largest : 1e-30f;
    const vf up = vf_splat(most_code / most), highest = vf_splat(most_code), lowest = vf_splat(-most_code);
    const float worth = bad == 0 ? most / most_code : NAN;
    for (int k = 0; k < columns; k += 32) unit[k / 32] = worth;
    for (int k = 0; k < columns; k += 16) {
        const vf v = bad == 0 ? vf_max(lowest, vf_min(highest, vf_round(vf_mul(vf_load(x + k), up)))) : vf_zero();
        const vf rest = vf_round(vf_fma(v, step, half)), high = vf_round(vf_fma(rest, step, half));
        const vf digit[3] = {high, vf_fnma(high, base, rest), vf_fnma(rest, base, v)};
        for (int d = 0; d < 3; d++) vf_to_bytes(q + d * apart + k, digit[d]);
        sums[k / 16] = vf_sum(v);
    }
}

/* Take the activations of the threshold's size or larger out of one token; returns how many. */
static int64_t take_large(float *x, int64_t n, float threshold, large *into)
{
    int64_t count = 0;
    for (int64_t k = 0; k < n; k++)
        if (fabsf(x[k]) >= threshold) into[count++] = (large){k, x[k]}, x[k] = 0;
    return count;
}

void prepare_input(input *in, const plan *p, const float *x, int64_t ldx, const float *scale, int64_t m, int64_t first, int64_t last, uint8_t *room)
{
    const int64_t n = p->n, ld = width_of(n);
    float *to = (float *)room_for(&room, 4 * m * ld);
    const int floats = p->kind != INT && p->kind != MASK_INT; /* these read codes only */
    const int tiled = takes_matrix(p, m), digits = p->rule ? 1 : tiled || (m == 1 && multiplies_integers(p)) ? 3 : 0;
    const int64_t rows = tiled ? (m + 15) / 16 * 16 : m, jump = tiled ? 16 * 64 : 64;
    int8_t *q = (int8_t *)room_for(&room, digits * rows * ld);
    float *sums = (float *)room_for(&room, m * ld / 4), *unit = (float *)room_for(&room, m * ld / 8);
    large *kept = p->threshold ? (large *)room_for(&room, 8 * m * ld) : 0;
    int64_t *counts = p->threshold ? (int64_t *)room_for(&room, 8 * m) : 0;
    float *shift = p->shifted ? (float *)room_for(&room, 4 * m) : 0;
    uint8_t *tables = m == 1 && looks_up(p) ? room_for(&room, 16 * ld) : 0;
    for (int64_t i = first; i < last; i++) {
        float *mine = to + (p->rule && !floats ? first : i) * ld; /* floats that nobody reads needn't leave the cache */
        int8_t *codes = tiled ? q + i / 16 * 16 * ld + i % 16 * 64 : q + i * ld;
        if (scale || p->order)
            for (int64_t k = 0; k < n; k++) {
                const int64_t from = p->order ? p->order[k] : k;
                mine[k] = x[i * ldx + from] * (scale ? scale[from] : 1);
            }
        else
            memcpy(mine, x + i * ldx, 4 * n);
        memset(mine + n, 0, 4 * (ld - n));
        if (kept) counts[i] = take_large(mine, n, p->threshold, kept + i * ld);
        if (p->rule) {
            const int64_t step = p->rule < n ? p->rule : ld;
            for (int64_t k = 0; k < ld; k += step) {
                const float above = to_int8(mine, codes, jump, unit + i * ld / 32, sums + i * ld / 16, k, k + step < ld ? k + step : ld, p->top, p->fixed, floats, p->shifted, n);
                if (shift) shift[i] = above; /* one step: a shifted rule has one unit a token */
            }
        } else if (digits == 3) {
            float *units = unit + i * ld / 32, *all = sums + i * ld / 16;
            for (int64_t k = 0; k < ld; k += DIGITS_UNIT) to_digits(mine + k, codes + k / DIGITS_UNIT * jump, rows * ld, units + k / 32, all + k / 16);
        }
        for (int64_t k = 0; floats && kept && k < counts[i]; k++) mine[kept[i * ld + k].column] = kept[i * ld + k].x;
    }
    if (tables) make_tables(q, rows * ld, 32 * blocks_of(p), digits, tables);
    *in = (input){to, q, sums, unit, m, rows, ld, digits, tiled, kept, counts, shift, tables};
}

/* ---- what Python calls ---- */

const char *instructions(void) { return matrix_ready() ? INSTRUCTIONS ", AMX" : INSTRUCTIONS; }
int look_up_pays(void) { return LOOK_UP_PAYS; }
int64_t plan_bytes(void) { return sizeof(plan); }

/* y [m, out] = x [m, n] W^T by up to `threads` threads. Returns 0, or 1 without memory. */
int product(const plan *p, const float *x, float *y, int64_t m, int threads)
{
    if (m == 0 || p->out == 0) return 0;
    const int64_t tiles = tiles_of(p->kind == LOW_RANK ? p->first : p);
    if (threads > tiles) threads = tiles > 0 ? tiles : 1;
    if (m * p->out * p->n < 20000) threads = 1; /* waking a thread costs more */
    const int alone = m == 1; /* every thread prepares its own copy of a single token */
    const int64_t own = own_bytes(p) + (alone ? input_bytes(p->n, 1) : 0), inputs = alone ? 0 : input_bytes(p->n, m);
    const int64_t apart = (own + 63) & ~(int64_t)63;
    const int64_t middle = middle_bytes(p, m), shared = (shared_bytes(p, m) + 63) & ~(int64_t)63;
    uint8_t *memory = team_begin(apart * threads + inputs + 64 + shared + 2 * middle + 256);
    if (!memory) return 1;
    struct barrier barrier = {0};
#pragma omp parallel num_threads(threads)
    {
        const int id = omp_get_thread_num(), count = omp_get_num_threads();
        uint8_t *rest = memory + apart * threads, *all = rest + ((inputs + 63) & ~(int64_t)63), *middles = all + shared;
        member me = {id, count, &barrier, memory + apart * id, all, {middles, middles + middle}, 0};
        input in;
        if (alone)
            prepare_input(&in, p, x, p->n, 0, 1, 0, 1, me.own + own_bytes(p));
        else {
            int64_t first, last;
            share(&me, m, &first, &last);
            prepare_input(&in, p, x, p->n, 0, m, first, last, rest);
            wait_for_all(&me);
        }
        multiply(&me, p, &in, y, p->out);
    }
    team_end();
    return 0;
}

/* Rows ids[0..count) of W as floats [count][n]. Returns 0, or 1 without memory. */
int rows(const plan *p, const int64_t *ids, int64_t count, float *into)
{
    float *panel = (float *)team_begin(panel_bytes(p) + 64);
    if (!panel) return 1;
    decode_rows(p, ids, count, into, panel);
    team_end();
    return 0;
}

/* One token, straight from the stored bits. Each loop sums 16 rows of a tile over all columns.

   Under a rule activations are int8 codes k. Their unit is shared by 32 columns b or more, and integers
   are multiplied:

       y = sum_b unit_b scale_g (sum_i q_i k_i - zero_g sum_i k_i)

   Exact activations are multiplied in the same way, as three digits to base 256. They then have 24 bits,
   counted from the largest of 64 neighbours. This is no less than a float32 sum keeps, and it is cheaper
   than turning every code into a float. Weights that are floats are multiplied as floats. */

#include "loops.h"

/* Weights that are floats, or a book's entries. */
INLINE vf float_token(const plan *p, int64_t tile, const input *in, const int kind, const int bits)
{
    reader r = open_tile(p, tile, kind, bits);
    const int scaled = kind == BOOK;
    const int narrow = p->group % 32 != 0; /* a group may end in the middle of a block */
    const int64_t blocks = blocks_of(p);
    int64_t group = 0, left = p->group;
    vf total = vf_zero(), part[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    vi q = vi_zero();
    for (int64_t b = 0; b < blocks; b++) {
        const float *x = in->x + 32 * b;
        next_block(&r, kind, bits);
        for (int half = 0; half < 2; half++) {
            if (half == 0) {
                UNROLL(16)
                for (int j = 0; j < 16; j++)
                    part[j % 4] = vf_fma(column(&r, j, &q, kind, bits), vf_splat(x[j]), part[j % 4]);
            } else {
                UNROLL(16)
                for (int j = 16; j < 32; j++)
                    part[j % 4] = vf_fma(column(&r, j, &q, kind, bits), vf_splat(x[j]), part[j % 4]);
            }
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
        for (int g = 0; g < 8; g++) {
            UNROLL(2)
            for (int k = 0; k < 2; k++) {
                const vf x = vf_pick(in->x + 32 * b + 4 * g, vi_shr(r.raw[8], 4 * g + 2 * k));
                part[2 * (g % 2) + k] = vf_fma(vf_bits(moved_half(r.raw[g], k)), x, part[2 * (g % 2) + k]);
            }
        }
    }
    return vf_mul(vf_add(vf_add(part[0], part[1]), vf_add(part[2], part[3])), vf_splat(SUM_UP));
}

/* A book's entry is worth (256 high + low - 32768) table[16]; `sum` is that of the activations' codes. */
INLINE vi book_sum(vi low, vi high, float sum)
{
    return vi_add(vi_add(low, vi_shl(high, 8)), vi_splat(-32768 * (int32_t)sum));
}

/* Codes, or a book's entries, times int8 codes (one digit) or 24-bit integers (three digits). The sums
   stay integers for two blocks where both blocks share a scale and a unit. */
INLINE vf code_token(const plan *p, int64_t tile, const input *in, const int kind, const int bits,
                     const int digits)
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
            const int chain = digits == 1 ? j % 2 : 0, width = kind == BOOK ? 8 : bits;
            UNROLL(3)
            for (int d = 0; d < digits; d++) {
                const vi codes = kind == BOOK ? vi_lookup_bytes(low, q) : q;
                acc[d][chain] = vi_dot(acc[d][chain], codes, k + d * ld + 4 * j, width);
            }
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
                const vf joined = join_digits(sum, digits);
                const vf lifted = kind == BOOK ? joined : vf_fnma(g.zero, vf_splat(all), joined);
                total = vf_fma(vf_mul(g.scale, vf_splat(in->unit[b])), lifted, total);
                top[0] = top[1] = vi_zero(), all = 0;
                left -= narrow ? 16 : pairs ? 64 : 32;
                if (left <= 0) left = p->group, group += group + 1 < p->groups;
                if (j == 3) g = grid_of(p, tile, group, &r, kind);
            }
        }
    }
    return kind == BOOK ? vf_mul(total, vf_splat(p->table[16])) : total;
}

/* Binary-coded planes, added: every plane has its own scale. */
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
        for (int half = narrow ? 0 : 1; half < 2; half++) { /* each half, or once the whole block */
            const float *s = in->sums + 2 * b;
            const vf all = vf_splat(narrow ? s[half] : s[0] + s[1]);
            vf part = vf_zero();
            UNROLL(8)
            for (int i = 0; i < bits; i++) { /* twice the columns whose bit is set, less all columns */
                vi acc[3] = {vi_zero(), vi_zero(), vi_zero()};
                if (!(narrow && half)) {
                    UNROLL(4)
                    for (int j = 0; j < 4; j++) {
                        const vi ones = vi_and(moved(r.raw[i], j), vi_splat(0x01010101));
                        for (int d = 0; d < digits; d++) acc[d] = vi_dot(acc[d], ones, k + d * ld + 4 * j, 1);
                    }
                }
                if (half) {
                    UNROLL(4)
                    for (int j = 4; j < 8; j++) {
                        const vi ones = vi_and(moved(r.raw[i], j), vi_splat(0x01010101));
                        for (int d = 0; d < digits; d++) acc[d] = vi_dot(acc[d], ones, k + d * ld + 4 * j, 1);
                    }
                }
                const vf set = join_digits(acc, digits), plane = vf_sub(vf_add(set, set), all);
                part = vf_fma(vf_half(scale + (group * bits + i) * 16), plane, part);
            }
            if (offset) part = vf_fma(vf_load(offset + group * 16), all, part);
            total = vf_fma(part, vf_splat(in->unit[b]), total);
            if ((left -= narrow ? 16 : 32) <= 0) left = p->group, group += group + 1 < p->groups;
        }
    }
    return total;
}

/* ---- binary-coded planes, looked up ----

   T-MAC (Wei et al. 2024) does this with tables in registers, and LUT-GEMM is the idea's source. Four
   inputs have 16 sums of +-x. A plane's four bits, a nibble, say which sum it is. A byte shuffle looks 64
   of them up at once: 16 rows by 16 columns, with four tables.

   T-MAC rounds its tables to a byte. Ours hold the sums as they are, as whole numbers cut into bytes. The
   sum of int8 codes is below 2^9 and takes two bytes. The sum of 24-bit integers is below 2^25 and takes
   four: the lower two are 13 bits without a sign, the upper two are the rest. So up to four of each can be
   added in 16 bits without losing a carry: 4 x 8191 < 2^15. */
#define LOOKED_BITS 13

/* Lane e of a sum has +x[i] where bit i of e is set, else -x[i]. */
void make_tables(const int8_t *q, int64_t apart, int64_t columns, int digits, uint8_t *tables)
{
    static const int32_t masks[4][16] = {{0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1},
                                         {0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1},
                                         {0, 0, 0, 0, -1, -1, -1, -1, 0, 0, 0, 0, -1, -1, -1, -1},
                                         {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1}};
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

/* 16 rows' sums of one plane over `count` x 16 columns. words: the plane's 64 bytes of the first block;
   those of the next block follow after `apart` bytes. upper: the columns are the last 16 of their block
   (then count is 1). */
INLINE vi looked_up(const uint8_t *words, int64_t apart, const uint8_t *tables, const int count,
                    const int upper, const int parts)
{
    vi low[2] = {vi_zero(), vi_zero()}, high[2] = {vi_zero(), vi_zero()};
    UNROLL(4)
    for (int i = 0; i < count; i++, tables += 64 * parts) {
        const vi word = vi_load(words + i / 2 * apart);
        const vi nibble = vi_and(i % 2 || upper ? vi_shr(word, 4) : word, vi_splat(0x0f0f0f0f));
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
    const int64_t shared = p->groups == 1 ? 64 : p->group;
    const int64_t unit = digits == 3 || p->rule >= p->n ? 64 : p->rule;
    /* how many sixteens share their scales and their unit */
    const int most = shared % 64 == 0 && unit % 64 == 0 ? 4 : shared % 32 == 0 ? 2 : 1;
    const uint8_t *values = (const uint8_t *)p->values + tile * tile_bytes(p, LOOK, bits);
    const uint8_t *tables = in->tables;
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

/* ---- which loop serves which plan ---- */

#define TOKEN(name, kind, bits, loop) \
    static vf name##_##kind##_##bits(const plan *p, int64_t t, const input *in) { return loop; }

#define FLOAT_LOOPS(kind, bits) TOKEN(exact, kind, bits, float_token(p, t, in, kind, bits))
#define TWO_LOOPS(kind, bits) TOKEN(exact, kind, bits, two_token(p, t, in))
#define ENTRY_LOOPS(kind, bits) \
    FLOAT_LOOPS(kind, bits) TOKEN(int8, kind, bits, code_token(p, t, in, kind, bits, 1))
#define CODE_LOOPS(kind, bits) \
    TOKEN(exact, kind, bits, code_token(p, t, in, kind, bits, 3)) \
    TOKEN(int8, kind, bits, code_token(p, t, in, kind, bits, 1))
#define PLANE_LOOPS(kind, bits) \
    TOKEN(exact, kind, bits, planes_token(p, t, in, bits, 3)) \
    TOKEN(int8, kind, bits, planes_token(p, t, in, bits, 1))
#define LOOKED_LOOPS(kind, bits) \
    TOKEN(exact, kind, bits, look_token(p, t, in, 3)) TOKEN(int8, kind, bits, look_token(p, t, in, 1))

#define FLOAT_ROW(kind, bits) {exact_##kind##_##bits, 0}
#define TWO_ROW FLOAT_ROW
#define ENTRY_ROW(kind, bits) {exact_##kind##_##bits, int8_##kind##_##bits}
#define CODE_ROW ENTRY_ROW
#define PLANE_ROW ENTRY_ROW
#define LOOKED_ROW ENTRY_ROW

#define MADE(kind, bits, by) by##_LOOPS(kind, bits)
#define ROW(kind, bits, by) by##_ROW(kind, bits),

LOOPS(MADE)

one_token *token_loop(const plan *p, int int8)
{
    static one_token *const loops[][2] = {LOOPS(ROW)};
    return loops[loop_of(p)][int8];
}

/* Activations, made ready for a plan: padded to whole blocks, as floats, int8 codes or digits. */

#include "loops.h"
#include "matrix.h"

#define MATRIX_INT8 12 /* from this many tokens on, the matrix unit is faster for int8 codes */
#define MATRIX_EXACT 3 /* from this many tokens on, it is faster for exact activations */

int multiplies_integers(const plan *p)
{
    if (p->kind == SUM) return multiplies_integers(p->first) || multiplies_integers(p->second);
    return multiplied(p) == BY_INTEGERS;
}

int looks_up(const plan *p)
{
    return p->kind == SUM ? looks_up(p->first) || looks_up(p->second) : p->kind == LOOK;
}

/* Whether a part of p reads codes; with but_no_matrix, only parts whose codes the matrix unit can't read. */
static int reads_codes(const plan *p, int but_no_matrix)
{
    if (p->kind == SUM) return reads_codes(p->first, but_no_matrix) || reads_codes(p->second, but_no_matrix);
    return is_coded(p->kind) && !(but_no_matrix && p->group % 32 == 0);
}

int takes_matrix(const plan *p, int64_t m)
{
    const int64_t enough = p->rule ? MATRIX_INT8 : MATRIX_EXACT;
    return matrix_ready() && m >= enough && reads_codes(p, 0) && !reads_codes(p, 1);
}

int64_t input_bytes(int64_t n, int64_t m)
{
    const int64_t ld = width_of(n), digits = m == 1 || matrix_ready() ? 3 : 1;
    const int64_t whole = digits * 15 * ld; /* the matrix unit reads whole sixteens of tokens */
    const int64_t codes = m * (4 * ld + digits * ld + ld / 4 + ld / 8) + whole;
    const int64_t tables = m == 1 ? 16 * ld : 0;
    return codes + tables + m * (8 * ld + 8 + 4) + 8 * 64; /* all activations may be large */
}

static uint8_t *room_for(uint8_t **room, int64_t bytes)
{
    uint8_t *here = *room;
    *room += (bytes + 63) & ~(int64_t)63;
    return here;
}

/* Where the prepared activations of one token go. */
typedef struct {
    float *x;      /* [ld] */
    int8_t *q;     /* codes: 64 of them stand together */
    int64_t jump;  /* from 64 codes to the next 64 */
    int64_t apart; /* from a digit to the next digit */
    float *unit;   /* [ld / 32] */
    float *sums;   /* [ld / 16] */
} line;

/* int8 codes of the columns [from, to), which share a unit, and their sums. If `floats`, x becomes the
   values that the codes stand for. A value that is not finite makes the unit NaN. Under a shifted rule
   x - shift is coded. The shift is returned; it is a multiple of the unit, so that 0 stays exact. Columns
   beyond n have the code 0. */
static float to_int8(const plan *p, const line l, int64_t from, int64_t to, int floats)
{
    const int top_code = p->top, shifted = p->shifted;
    vf largest = vf_zero(), least = vf_zero(), spoiled = vf_zero();
    for (int64_t k = from; k < to; k += 16) {
        const vf v = vf_load(l.x + k);
        largest = vf_max(largest, shifted ? v : vf_abs(v));
        if (shifted) least = vf_min(least, v);
        spoiled = vf_fma(v, vf_zero(), spoiled); /* 0 x inf and 0 x NaN are NaN */
    }
    const float low = shifted ? -vf_top(vf_sub(vf_zero(), least)) : 0;
    const float bad = vf_sum(spoiled), fixed = p->fixed;
    const float most = shifted ? vf_top(largest) - low : vf_top(largest);
    const float reach = (most > 1e-30f ? most : 1e-30f) / (shifted ? 2 * top_code : top_code);
    const float u = bad != 0 ? NAN : fixed ? fixed : reach;
    const float zero = shifted && bad == 0 && most > 1e-30f ? rintf(-top_code - low * (1 / u)) : 0;
    const vf up = vf_splat(1 / u), highest = vf_splat(top_code), lowest = vf_splat(-top_code);
    for (int64_t k = from; k < to; k += 16) {
        const vf whole = vf_add(vf_round(vf_mul(vf_load(l.x + k), up)), vf_splat(zero));
        const vf code = bad == 0 ? vf_max(lowest, vf_min(highest, whole)) : vf_zero();
        vf_to_bytes(l.q + k / 64 * l.jump + k % 64, code);
        l.sums[k / 16] = vf_sum(code);
        if (floats) vf_store(l.x + k, vf_mul(vf_sub(code, vf_splat(zero)), vf_splat(u)));
    }
    for (int64_t k = from; k < to; k += 32) l.unit[k / 32] = u;
    for (int64_t k = p->n; zero != 0 && k < to; k++) { /* a code that stands for 0 isn't 0 */
        l.sums[k / 16] -= zero;
        l.q[k / 64 * l.jump + k % 64] = 0;
    }
    return bad == 0 ? -zero * u : NAN;
}

/* DIGITS_UNIT columns from `from` on as 24-bit integers of a common unit, and their sums. Each is three
   digits from -128 to 127, the highest first. All numbers here are whole and below 2^24, so that floats
   hold them exactly, and v / 256 + 1 / 512 rounds to the quotient that leaves such a digit. A value that
   is not finite makes the unit NaN. */
INLINE void to_digits(const line l, int64_t from)
{
    const float *x = l.x + from;
    float *unit = l.unit + from / 32, *sums = l.sums + from / 16;
    int8_t *q = l.q + from / DIGITS_UNIT * l.jump;
    const vf step = vf_splat(0x1p-8f), half = vf_splat(0x1p-9f), base = vf_splat(256);
    vf top = vf_zero(), spoiled = vf_zero();
    for (int k = 0; k < DIGITS_UNIT; k += 16) {
        top = vf_max(top, vf_abs(vf_load(x + k)));
        spoiled = vf_fma(vf_load(x + k), vf_zero(), spoiled);
    }
    const float largest = vf_top(top), bad = vf_sum(spoiled);
    const float most_code = 127 * 65536 + 127 * 256 + 127, most = largest > 1e-30f ? largest : 1e-30f;
    const vf up = vf_splat(most_code / most), highest = vf_splat(most_code), lowest = vf_splat(-most_code);
    const float worth = bad == 0 ? most / most_code : NAN;
    for (int k = 0; k < DIGITS_UNIT; k += 32) unit[k / 32] = worth;
    for (int k = 0; k < DIGITS_UNIT; k += 16) {
        const vf nearest = vf_round(vf_mul(vf_load(x + k), up));
        const vf v = bad == 0 ? vf_max(lowest, vf_min(highest, nearest)) : vf_zero();
        const vf rest = vf_round(vf_fma(v, step, half)), high = vf_round(vf_fma(rest, step, half));
        const vf digit[3] = {high, vf_fnma(high, base, rest), vf_fnma(rest, base, v)};
        for (int d = 0; d < 3; d++) vf_to_bytes(q + d * l.apart + k, digit[d]);
        sums[k / 16] = vf_sum(v);
    }
}

/* Take the activations of the threshold's size or larger out of one token; returns how many they are. */
static int64_t take_large(float *x, int64_t n, float threshold, large *into)
{
    int64_t count = 0;
    for (int64_t k = 0; k < n; k++)
        if (fabsf(x[k]) >= threshold) into[count++] = (large){k, x[k]}, x[k] = 0;
    return count;
}

/* Token i as it comes, scaled, in the order of the plan's columns, and zeros up to its whole width. */
static void copy_token(const plan *p, const source *from, int64_t i, float *to, int64_t ld)
{
    const float *x = from->x + i * from->ld;
    if (from->scale || p->order)
        for (int64_t k = 0; k < p->n; k++) {
            const int64_t column = p->order ? p->order[k] : k;
            to[k] = x[column] * (from->scale ? from->scale[column] : 1);
        }
    else memcpy(to, x, 4 * p->n);
    memset(to + p->n, 0, 4 * (ld - p->n));
}

void prepare_input(input *in, const plan *p, const source *from, int64_t first, int64_t last, uint8_t *room)
{
    const int64_t n = p->n, m = from->m, ld = width_of(n);
    float *x = (float *)room_for(&room, 4 * m * ld);
    const int floats = !is_coded(p->kind); /* codes are multiplied by codes only */
    const int tiled = takes_matrix(p, m), as_digits = tiled || (m == 1 && multiplies_integers(p));
    const int digits = p->rule ? 1 : as_digits ? 3 : 0;
    const int64_t rows = tiled ? (m + 15) / 16 * 16 : m, jump = tiled ? 16 * 64 : 64;
    int8_t *q = (int8_t *)room_for(&room, digits * rows * ld);
    float *sums = (float *)room_for(&room, m * ld / 4), *unit = (float *)room_for(&room, m * ld / 8);
    large *kept = p->threshold ? (large *)room_for(&room, 8 * m * ld) : 0;
    int64_t *counts = p->threshold ? (int64_t *)room_for(&room, 8 * m) : 0;
    float *shift = p->shifted ? (float *)room_for(&room, 4 * m) : 0;
    uint8_t *tables = m == 1 && looks_up(p) ? room_for(&room, 16 * ld) : 0;
    for (int64_t i = first; i < last; i++) {
        /* floats that nobody reads needn't leave the cache */
        float *mine = x + (p->rule && !floats ? first : i) * ld;
        int8_t *codes = tiled ? q + i / 16 * 16 * ld + i % 16 * 64 : q + i * ld;
        const line l = {mine, codes, jump, rows * ld, unit + i * ld / 32, sums + i * ld / 16};
        copy_token(p, from, i, mine, ld);
        if (kept) counts[i] = take_large(mine, n, p->threshold, kept + i * ld);
        if (p->rule) {
            const int64_t step = p->rule < n ? p->rule : ld;
            for (int64_t k = 0; k < ld; k += step) {
                const float above = to_int8(p, l, k, k + step < ld ? k + step : ld, floats);
                if (shift) shift[i] = above; /* a shifted rule has one unit a token, so there is one step */
            }
        } else if (digits == 3)
            for (int64_t k = 0; k < ld; k += DIGITS_UNIT) to_digits(l, k);
        if (floats && kept)
            for (const large *k = kept + i * ld; k < kept + i * ld + counts[i]; k++) mine[k->column] = k->x;
    }
    if (tables) make_tables(q, rows * ld, 32 * blocks_of(p), digits, tables);
    *in = (input){x, q, sums, unit, m, rows, ld, digits, tiled, kept, counts, shift, tables};
}

/* Many tokens by the matrix unit: the decoded codes of one tile at a time. */

#include "matrix.h"
#include "loops.h"

int64_t cut_bytes(const plan *p) { return (8 * TOKENS + (int64_t)sizeof(piece)) * blocks_of(p); }

/* Blocks of a span, so that in every piece a span begins where the piece begins or a unit does. */
static int64_t span_of(const plan *p, const input *in)
{
    const int64_t panel = PANEL / 32, group = p->group / 32;
    const int64_t unit = in->digits == 3 ? DIGITS_UNIT / 32 : p->rule / 32;
    const int64_t span = unit % panel ? unit : panel;
    return panel % span == 0 && (group % span == 0 || span % group == 0) ? span : 1;
}

cut begin_cut(const plan *p, const input *in, float *room)
{
    const int64_t blocks = blocks_of(p), numbers = TOKENS * blocks;
    const int one_unit = in->digits == 1 && p->rule >= p->n;
    return (cut){blocks, span_of(p, in), one_unit, room, room + numbers, (piece *)(room + 2 * numbers)};
}

void cut_columns(const plan *p, const input *in, int64_t token, int64_t m, const cut *c)
{
    const int64_t group_blocks = p->group / 32, panel = PANEL / 32;
    for (int64_t b = 0, end; b < c->blocks; b = end) {
        const int64_t group = b / group_blocks < p->groups ? b / group_blocks : p->groups - 1;
        end = group < p->groups - 1 ? (group + 1) * group_blocks : c->blocks;
        if (end > b + panel - b % panel) end = b + panel - b % panel;
        c->piece[b].blocks = end - b, c->piece[b].group = group;
        for (int64_t i = 0; i < m; i++) {
            const int64_t at = (token + i) * in->ld;
            const float *sums = in->sums + at / 16, *unit = in->unit + at / 32;
            float all = 0;
            for (int64_t k = b; k < end; k++) {
                const float worth = c->one_unit ? 1 : unit[k];
                all += (sums[2 * k] + sums[2 * k + 1]) * worth, c->unit[TOKENS * k + i] = worth;
            }
            c->all[TOKENS * b + i] = all;
        }
    }
}

/* The sums of a piece that has been multiplied, and the factors that turn them into a product. */
typedef struct {
    const int32_t *dots; /* [span][digits][16 tokens][16 rows] */
    const float *scale;  /* of the rows; PANEL / 2 further the same times what is left of the zero point */
    const float *unit;   /* [block][TOKENS]: of the tokens */
    const float *all;    /* [16 tokens]: the sums of the activations */
    int64_t spans, span;
} product_of_piece;

/* acc += a piece's part of sixteen tokens' sums. */
INLINE void add_piece(vf *acc, const product_of_piece d, const known k)
{
    const vf up = vf_load(d.scale), lifted = vf_load(d.scale + PANEL / 2);
    UNROLL(16)
    for (int j = 0; j < 16; j++) {
        vf sum = vf_zero();
        UNROLL(2)
        for (int64_t s = 0; s < d.spans; s++) {
            vi part[3];
            for (int i = 0; i < k.digits; i++) part[i] = vi_load(d.dots + 256 * (k.digits * s + i) + 16 * j);
            const vf joined = join_digits(part, k.digits);
            if (k.one_unit) sum = joined;
            else if (s) sum = vf_fma(joined, vf_splat(d.unit[TOKENS * d.span * s + j]), sum);
            else sum = vf_mul(joined, vf_splat(d.unit[j]));
        }
        acc[j] = vf_fma(up, sum, acc[j]);
        if (!k.centred) acc[j] = vf_fnma(lifted, vf_splat(d.all[j]), acc[j]);
    }
}

/* sum += the job's blocks times its tokens. One piece's dots are written while the dots of the piece before
   are added, because memory that has just been written can't be read at once. */
INLINE void pieces_times(const job j, const uint8_t *codes, const float *scale, float *sum, const cut *c,
                         const known k)
{
    /* the two arrays don't fall into the same places of the cache */
    int32_t dots[2][PANEL / 32 * 3 * 256 + 256] __attribute__((aligned(64)));
    const int64_t apart = j.in->rows * j.in->ld, span = k.span ? k.span : c->span;
    for (int64_t i = 0; i < j.m; i += 16, sum += 256) {
        const sixteen tokens = {j.in->q + (j.token + i) * j.in->ld, apart};
        vf acc[16];
        int64_t before = -1;
        int turn = 0;
#define DONE \
    (product_of_piece){dots[turn ^ 1], \
                       scale + 16 * (before - j.first), \
                       c->unit + TOKENS * before + i, \
                       c->all + TOKENS * before + i, \
                       ((k.each ? k.each : c->piece[before].blocks) + span - 1) / span, \
                       span}
        UNROLL(16)
        for (int n = 0; n < 16; n++) acc[n] = vf_load(sum + 16 * n);
        for (int64_t b = j.first, count; b < j.first + j.blocks; b += count, turn ^= 1) {
            count = k.each ? k.each : c->piece[b].blocks;
            for (int64_t s = 0; s < count; s += span) {
                const int64_t end = b + (count - s < span ? count : s + span);
                int32_t *into = dots[turn] + 256 * k.digits * (s / span);
                matrix_dot(tokens, codes + 512 * (b + s - j.first), b + s, end, into, k);
            }
            if (before >= 0) add_piece(acc, DONE, k);
            before = b;
        }
        add_piece(acc, DONE, k);
#undef DONE
        UNROLL(16)
        for (int n = 0; n < 16; n++) vf_store(sum + 16 * n, acc[n]);
    }
}

/* The unit multiplies signed bytes, so the codes are made signed first. If all zero points are whole numbers
   and every code less its zero point fits into a signed byte, the zero points are subtracted. Otherwise half
   of the codes' range is subtracted. */
void matrix_times(const job *at, uint8_t *codes, float *sum, const cut *c)
{
    if (!matrix_ready()) return; /* so that none of this is compiled where there is no such unit */
    const job j = *at;
    const plan *p = j.p;
    const int centred = p->grids == WHOLE && (!p->zero || p->bits < 8);
    const int usual = centred && p->group == 64 && j.blocks % 2 == 0;
    const vf half = vf_splat(1 << (p->bits - 1));
    float scale[2 * PANEL / 2];
    for (int64_t b = 0, count; b < j.blocks; b += count) {
        /* INT, also of MASK_INT: its removed weights have their codes already */
        const grid g = grid_of(p, j.tile, c->piece[j.first + b].group, 0, INT);
        const vf taken = centred ? g.zero : half;
        const vi four = vi_fourfold(vf_to_vi(taken));
        count = c->piece[j.first + b].blocks;
        uint8_t *of = codes + 512 * b;
        for (int64_t k = 0; k < 8 * count; k++, of += 64) vi_store(of, vi_sub_bytes(vi_load(of), four));
        vf_store(scale + 16 * b, g.scale);
        vf_store(scale + PANEL / 2 + 16 * b, vf_mul(g.scale, vf_sub(g.zero, taken)));
    }
#define TIMES(each, span, digits, one_unit, centred) \
    pieces_times(j, codes, scale, sum, c, (known){each, span, digits, one_unit, centred})
    if (j.in->digits == 3 && usual && c->span == 2) TIMES(2, 2, 3, 0, 1);
    else if (j.in->digits == 3) TIMES(0, 0, 3, 0, 0);
    else if (c->one_unit && usual) TIMES(2, 2, 1, 1, 1);
    else if (c->one_unit) TIMES(0, PANEL / 32, 1, 1, 0);
    else if (c->span == 1 && usual) TIMES(2, 1, 1, 0, 1);
    else TIMES(0, 0, 1, 0, 0);
}

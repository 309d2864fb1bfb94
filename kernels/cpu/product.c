/* y = x W^T for every kind of matrix. It walks the tiles, adds the few weights of OUTLIERS and COLUMNS, and
   combines the two matrices of LOW_RANK and SUM. Python calls the functions at the end. loops.h says how the
   work is divided. */

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

#include "chain.h"
#include "loops.h"
#include "matrix.h"
#include "team.h"

/* ---- tiles ---- */

/* `sum` plus the parts of the product that the token's codes leave out: its shift times the sum of each row,
   and each activation that a threshold keeps apart times its column. For INT weights of 8 bits. */
static vf with_rest(const plan *p, int64_t tile, const input *in, int64_t token, vf sum)
{
    const float *row_sums = (const float *)p->offset + 16 * tile;
    if (in->shift) sum = vf_fma(vf_load(row_sums), vf_splat(in->shift[token]), sum);
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

static void token_times_tiles(member *me, const plan *p, const input *in, float *y)
{
    const int rest = (in->large || in->shift) && p->kind == INT; /* other kinds read x, which has it */
    int64_t first, last;
    share(me, tiles_of(p), &first, &last);
    input lifted = *in;
    if (is_moved(p->kind)) {
        float *x = (float *)me->own;
        for (int64_t k = 0; k < 32 * blocks_of(p); k++) x[k] = in->x[k] * X_UP;
        lifted.x = x, in = &lifted;
    }
    one_token *loop = in->digits == 1 && p->rule ? token_loop(p, 1) : 0;
    if (!loop) loop = token_loop(p, 0);
    for (int64_t t = first; t < last; t++) {
        vf v = loop(p, t, in);
        if (rest) v = with_rest(p, t, in, 0, v);
        if (16 * t + 16 <= p->out) vf_store(y + 16 * t, v);
        else {
            float sixteen[16];
            vf_store(sixteen, v);
            write_rows(p, t, sixteen, y);
        }
    }
}

/* A thread's scratch for many tokens, and how it multiplies them. */
typedef struct {
    float *sum;   /* [TILES][TOKENS][16] */
    float *panel; /* [TILES][PANEL][16], or codes [TILES][PANEL_BYTES] */
    const decoder *decode;
    int tiled, as_bytes; /* tiled: by the matrix unit */
    cut cut;             /* for the matrix unit */
} desk;

static desk begin_desk(const plan *p, const input *in, uint8_t *own)
{
    const decoder *decode = decoder_of(p);
    const int tiled = matrix_ready() && in->tiled && decode->bytes;
    const int as_bytes = tiled || (in->digits == 1 && decode->bytes && p->rule);
    float *sum = (float *)own, *panel = sum + 16 * TILES * TOKENS, *rest = panel + 16 * TILES * PANEL;
    return (desk){sum, panel, decode, tiled, as_bytes, tiled ? begin_cut(p, in, rest) : (cut){0}};
}

/* Multiply the tokens of job j by `tiles` tiles, beginning at j's tile; the products go to d->sum. */
static void sum_tiles(const desk *d, job j, int tiles)
{
    const int64_t blocks = blocks_of(j.p), first_tile = j.tile;
    cursor c[TILES];
    for (int t = 0; t < tiles; t++) {
        c[t] = begin_tile(j.p, first_tile + t);
        memset(d->sum + 16 * TOKENS * t, 0, 64 * j.m);
    }
    for (j.first = 0; j.first < blocks; j.first += PANEL / 32) {
        j.blocks = blocks - j.first < PANEL / 32 ? blocks - j.first : PANEL / 32;
        for (int t = 0; t < tiles; t++)
            if (d->as_bytes) d->decode->bytes(c + t, j.blocks, (uint8_t *)d->panel + PANEL_BYTES * t);
            else d->decode->floats(c + t, j.blocks, d->panel + 16 * PANEL * t);
        if (!d->tiled) {
            panel_times(&j, d->panel, d->sum, d->as_bytes, tiles);
            continue;
        }
        for (int t = 0; t < tiles; t++) {
            j.tile = first_tile + t;
            matrix_times(&j, (uint8_t *)d->panel + PANEL_BYTES * t, d->sum + 16 * TOKENS * t, &d->cut);
        }
    }
}

static void tokens_times_tiles(member *me, const plan *p, const input *in, float *y, int64_t ld)
{
    const int rest = (in->large || in->shift) && p->kind == INT; /* other kinds read x, which has it */
    const desk d = begin_desk(p, in, me->own);
    int64_t first, last;
    share(me, tiles_of(p), &first, &last);
    if (d.tiled) matrix_begin();
    for (int64_t token = 0; token < in->m; token += TOKENS) {
        const int64_t m = in->m - token < TOKENS ? in->m - token : TOKENS;
        if (d.tiled) cut_columns(p, in, token, m, &d.cut);
        for (int64_t t = first; t < last; t += TILES) {
            const int tiles = last - t < TILES ? 1 : TILES;
            sum_tiles(&d, (job){.p = p, .in = in, .tile = t, .token = token, .m = m}, tiles);
            for (int64_t i = 0; i < m; i++)
                for (int k = 0; k < tiles; k++) {
                    float *sum = d.sum + 16 * (TOKENS * k + i);
                    const float *unit = in->unit + (token + i) * in->ld / 32;
                    if (d.tiled && d.cut.one_unit) vf_store(sum, vf_mul(vf_load(sum), vf_splat(*unit)));
                    if (rest) vf_store(sum, with_rest(p, t + k, in, token + i, vf_load(sum)));
                    write_rows(p, t + k, sum, y + (token + i) * ld);
                }
        }
    }
    if (d.tiled) matrix_end();
}

/* ---- other kinds ---- */

/* Up to three tokens are multiplied one by one. More are multiplied sixteen at a time, one token in each
   lane, after their activations were transposed to [column][16]. */
static void add_outliers(member *me, const plan *p, const input *in, float *y, int64_t ld)
{
    const uint16_t *values = p->values, *columns = p->mask;
    const int32_t *starts = p->starts;
    float *turned = (float *)me->own, sums[16];
    int64_t first, last;
    share(me, tiles_of(p), &first, &last); /* whole tiles: a thread adds to rows that it has written */
    const int64_t from = 16 * first, to = 16 * last < p->out ? 16 * last : p->out;
    if (in->m < 4) {
        for (int64_t o = from; o < to; o++)
            for (int64_t i = 0; i < in->m; i++) {
                float s = 0;
                for (int64_t k = starts[o]; k < starts[o + 1]; k++)
                    s += half_to_float(values[k]) * in->x[i * in->ld + columns[k]];
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
            for (int64_t k = starts[o]; k < starts[o + 1]; k++)
                s = vf_fma(vf_splat(half_to_float(values[k])), vf_load(turned + 16 * columns[k]), s);
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
            for (int64_t k = 0; k < p->groups; k++)
                s = vf_fma(vf_half(values + 16 * k), vf_splat(in->x[i * in->ld + columns[k]]), s);
            vf_store(sixteen, s);
            memcpy(to, sixteen, 4 * rows);
        }
    }
}

static int is_added(const plan *p) { return multiplied(p) == BY_ADDING; }

/* y += x W^T. */
static void add(member *me, const plan *p, const input *in, float *y, int64_t ld)
{
    (p->kind == OUTLIERS ? add_outliers : add_columns)(me, p, in, y, ld);
}

/* Tensor trains: a tile's rows are rebuilt once for all tokens. */
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
                for (int64_t k = 0; k < columns; k++) {
                    UNROLL(4)
                    for (int j = 0; j < 4; j++)
                        sum[j] = vf_fma(vf_load(panel + 16 * k), vf_splat(x[j * in->ld + k]), sum[j]);
                }
            else
                for (int64_t j = 0; j < more; j++) {
                    vf part[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
                    const float *own = x + j * in->ld;
                    for (int64_t k = 0; k < columns; k += 4) {
                        UNROLL(4)
                        for (int q = 0; q < 4; q++)
                            part[q] = vf_fma(vf_load(panel + 16 * (k + q)), vf_splat(own[k + q]), part[q]);
                    }
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
    int64_t most = 64 * TILES * (TOKENS + PANEL) + (matrix_ready() ? cut_bytes(p) : 0);
    const int64_t tokens = p->kind == OUTLIERS ? 16 : 1, columns = 4 * tokens * 32 * blocks_of(p);
    if (columns > most) most = columns;
    if (p->kind == TENSOR_TRAIN && 4 * chain_room(p) > most) most = 4 * chain_room(p);
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
            for (int64_t o = 16 * first; o < 16 * last && o < p->out; o++)
                y[i * ld + o] += other[i * width + o];
    } else if (is_added(p)) {
        int64_t first, last;
        share(me, tiles_of(p), &first, &last);
        for (int64_t i = 0; i < in->m; i++)
            for (int64_t o = 16 * first; o < 16 * last && o < p->out; o++) y[i * ld + o] = 0;
        add(me, p, in, y, ld);
    } else if (p->kind == TENSOR_TRAIN) multiply_chains(me, p, in, y, ld);
    else if (in->m == 1) token_times_tiles(me, p, in, y);
    else tokens_times_tiles(me, p, in, y, ld);
}

int64_t panel_bytes(const plan *p)
{
    if (p->kind == TENSOR_TRAIN) return 4 * chain_room(p);
    if (p->kind != LOW_RANK) return 2048 * blocks_of(p);
    const int64_t a = panel_bytes(p->first), b = panel_bytes(p->second);
    return 64 * tiles_of(p->first) + (a > b ? a : b);
}

/* The rows of a tile as floats [column][16], in the order of the tiles' columns. */
static void decode_tile(const plan *p, int64_t tile, float *panel)
{
    if (p->kind == TENSOR_TRAIN) {
        contract(p, tile, panel);
        return;
    }
    cursor c = begin_tile(p, tile);
    decoder_of(p)->floats(&c, blocks_of(p), panel);
}

/* Rows of a low-rank product: a row of the second matrix times all of the first. */
static void decode_products(const plan *p, const int64_t *ids, int64_t count, float *into, float *panel)
{
    const plan *v = p->first;
    float *row = panel, *rest = panel + 16 * tiles_of(v); /* row: padded to whole tiles of v */
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
        for (int64_t k = 0; k < p->n; k++)
            into[i * p->n + (p->order ? p->order[k] : k)] = panel[16 * k + lane];
    }
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
    /* every thread prepares its own copy of a single token */
    const int alone = m == 1;
    const int64_t own = own_bytes(p) + (alone ? input_bytes(p->n, 1) : 0);
    const int64_t inputs = alone ? 0 : input_bytes(p->n, m);
    const int64_t apart = (own + 63) & ~(int64_t)63;
    const int64_t middle = middle_bytes(p, m), shared = (shared_bytes(p, m) + 63) & ~(int64_t)63;
    uint8_t *memory = team_begin(apart * threads + inputs + 64 + shared + 2 * middle + 256);
    if (!memory) return 1;
    const source from = {x, m, p->n, 0};
    struct barrier barrier = {0};
#pragma omp parallel num_threads(threads)
    {
        const int id = omp_get_thread_num(), count = omp_get_num_threads();
        uint8_t *rest = memory + apart * threads, *all = rest + ((inputs + 63) & ~(int64_t)63);
        uint8_t *middles = all + shared;
        member me = {id, count, &barrier, memory + apart * id, all, {middles, middles + middle}, 0};
        input in;
        if (alone) prepare_input(&in, p, &from, 0, 1, me.own + own_bytes(p));
        else {
            int64_t first, last;
            share(&me, m, &first, &last);
            prepare_input(&in, p, &from, first, last, rest);
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

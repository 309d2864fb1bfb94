/* Runs whole decoder layers in one call. m tokens of one or several sequences go in, the logits of the wanted
   tokens come out, and the key-value cache grows. A call of one token is a decode step, a call of many tokens
   is a prefill.

   Llama, Qwen2, Qwen3, OPT, GPT-2 and GPT-NeoX differ in the norms, the positions (rotary or learned), the
   activation, and in whether attention and feed-forward run one after the other or side by side. Each linear
   may have a format of its own.

   keys    [sequence][kv head][position / 16][head size][16]    16 scores at once, without a sum over lanes
   values  [sequence][kv head][position][head size]             head size rounded up to 16 with zeros
   scales  [sequence][kv head][position]                        16 bits each, for keys and for values

   A cache of 8 or 4 bits holds codes (compression/kv_cache.py says which). A code of 8 bits takes a byte. Of
   4 bits, two neighbours of a head share a byte, the first in the low half, and the head size is rounded up
   to 32. Codes become floats in registers; a position's scale multiplies its score, or its share of the sum.

   All members (threads) run the same code. A barrier stands wherever a member reads memory that another one
   has written. For a single token every member makes the norm and the int8 codes for itself, which costs less
   than waiting. */

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

#include "team.h"

enum { SILU, GELU, GELU_TANH, RELU };

typedef struct {
    const plan *w;
    const float *bias, *input_scale; /* [out], [n]; NULL: none */
} linear;

typedef struct { const float *weight, *bias; } norm; /* no weight: no norm */

typedef struct {
    norm attention, feed_forward, q_norm, k_norm;
    linear q, k, v, o, gate, up, down;
    int64_t heads, kv_heads, head_size, width; /* width: of the feed-forward */
    void *keys, *values;                       /* float, or codes */
    uint16_t *key_scales, *value_scales;       /* half; of codes only */
} layer;

typedef struct {
    int64_t layers, hidden, capacity; /* capacity: positions in a sequence's cache, a multiple of 16 */
    int64_t rotary, offset;           /* dimensions that turn; first row of `positions` */
    int32_t rms, parallel, post_norm, activation;
    int32_t cache_bits;                  /* 8 or 4: codes; else floats */
    float eps, scaling, embedding_scale; /* what scores, and rows of the embedding, are multiplied by */
    linear embedding, project_in, project_out, head;
    norm final;
    const float *positions, *cosine, *sine; /* [rows][hidden]; [position][rotary / 2] */
    const layer *layer;
} model;

typedef struct {
    member me;
    const model *m;
    const int64_t *ids;
    const int32_t *sequence, *position;
    int64_t tokens, first, last; /* first, last: the tokens that this member prepares */
    float *h, *q, *k, *v, *mixed, *wide, *wide2, *normed, *scores, *turned, *panel;
    int64_t deep;             /* room for one token's scores */
    uint8_t *room, *own_room; /* of the prepared input: of all tokens, or of a single one */
    float *own_normed;
} work;

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static void normalise(const float *x, float *y, const norm *w, int64_t n, int rms, float eps)
{
    vf sum = vf_zero(), squares = vf_zero();
    int64_t k = 0;
    float s = 0, s2 = 0;
    for (; k + 16 <= n; k += 16) sum = vf_add(sum, vf_load(x + k));
    s = vf_sum(sum);
    for (; k < n; k++) s += x[k];
    const float mean = rms ? 0 : s / n;
    const vf middle = vf_splat(mean);
    for (k = 0; k + 16 <= n; k += 16) {
        const vf d = vf_sub(vf_load(x + k), middle);
        squares = vf_fma(d, d, squares);
    }
    s2 = vf_sum(squares);
    for (; k < n; k++) s2 += (x[k] - mean) * (x[k] - mean);
    const float r = 1 / sqrtf(s2 / n + eps);
    if (w->bias)
        for (k = 0; k < n; k++) y[k] = (x[k] - mean) * r * w->weight[k] + w->bias[k];
    else
        for (k = 0; k < n; k++) y[k] = (x[k] - mean) * r * w->weight[k];
}

INLINE vf activated(vf x, const int activation)
{
    const vf one = vf_splat(1);
    if (activation == RELU) return vf_max(vf_zero(), x);
    if (activation == SILU) return vf_div(x, vf_add(one, vf_exp(vf_sub(vf_zero(), x))));
    if (activation == GELU_TANH) { /* x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3) */
        const vf u = vf_mul(vf_splat(1.5957691216f), vf_fma(vf_mul(vf_mul(x, x), x), vf_splat(0.044715f), x));
        return vf_div(x, vf_add(one, vf_exp(vf_sub(vf_zero(), u))));
    }
    /* x (1 + erf(x / sqrt 2)) / 2; erf by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7 */
    const vf z = vf_mul(vf_abs(x), vf_splat(0.70710678f));
    const vf t = vf_div(one, vf_fma(vf_splat(0.3275911f), z, one));
    vf p = vf_fma(vf_splat(1.061405429f), t, vf_splat(-1.453152027f));
    p = vf_fma(p, t, vf_splat(1.421413741f));
    p = vf_fma(p, t, vf_splat(-0.284496736f));
    p = vf_mul(vf_fma(p, t, vf_splat(0.254829592f)), t);
    const vf bell = vf_exp(vf_sub(vf_zero(), vf_mul(z, z)));
    const vf tail = vf_mul(vf_splat(0.5f), vf_mul(p, bell)); /* half of 1 - erf(z) */
    return vf_sub(vf_max(vf_zero(), x), vf_mul(vf_abs(x), tail));
}

static void activate(float *x, const float *gate, int64_t n, int activation)
{
    for (int64_t k = 0; k < n; k += 16) {
        float a[16] = {0}, g[16] = {0};
        const int64_t count = n - k < 16 ? n - k : 16;
        memcpy(a, x + k, 4 * count);
        if (gate) memcpy(g, gate + k, 4 * count);
        const vf v = vf_load(gate ? g : a);
        vf y = activation == SILU        ? activated(v, SILU)
               : activation == GELU      ? activated(v, GELU)
               : activation == GELU_TANH ? activated(v, GELU_TANH)
                                         : activated(v, RELU);
        if (gate) y = vf_mul(y, vf_load(a));
        vf_store(a, y);
        memcpy(x + k, a, 4 * count);
    }
}

/* The tokens that this member prepares: its share, or the only one. */
static void take_share(work *w, int64_t tokens)
{
    w->tokens = tokens;
    if (tokens == 1) w->first = 0, w->last = 1;
    else share(&w->me, tokens, &w->first, &w->last);
}

/* x [tokens][ld] as it is before a linear: normed first if there is a norm. */
typedef struct {
    const float *x;
    int64_t ld;
    const norm *norm;
} unready;

/* The input of l. Every member may read it afterwards. */
static void ready(work *w, input *in, const linear *l, const unready *from)
{
    const int64_t n = l->w->n;
    const int alone = w->tokens == 1;
    const norm *before = from->norm;
    source ready = {from->x, w->tokens, from->ld, l->input_scale};
    if (before && before->weight) {
        float *normed = alone ? w->own_normed : w->normed;
        for (int64_t i = w->first; i < w->last; i++)
            normalise(from->x + i * from->ld, normed + i * n, before, n, w->m->rms, w->m->eps);
        ready.x = normed, ready.ld = n;
    }
    prepare_input(in, l->w, &ready, w->first, w->last, alone ? w->own_room : w->room);
    if (!alone) wait_for_all(&w->me);
}

/* Whether both linears can use one prepared input. */
static int alike(const linear *a, const linear *b)
{
    const plan *p = a->w, *q = b->w;
    const int one_rule = p->rule == q->rule && p->top == q->top && p->threshold == q->threshold &&
                         p->fixed == q->fixed && p->shifted == q->shifted;
    const int one_layout = p->kind == q->kind && p->order == q->order && p->n == q->n &&
                           multiplies_integers(p) == multiplies_integers(q) && looks_up(p) == looks_up(q) &&
                           takes_matrix(p, 1 << 20) == takes_matrix(q, 1 << 20);
    return one_rule && one_layout && a->input_scale == b->input_scale;
}

/* The rows of a linear that this member computes. */
static void own_rows(const work *w, const linear *l, int64_t *first, int64_t *last)
{
    share(&w->me, tiles_of(l->w), first, last);
    *first *= 16, *last *= 16;
    if (*last > l->w->out) *last = l->w->out;
}

/* y [tokens][out] += l's bias: this member's rows. */
static void add_bias(const work *w, const linear *l, float *y)
{
    int64_t first, last;
    own_rows(w, l, &first, &last);
    if (l->bias)
        for (int64_t i = 0; i < w->tokens; i++)
            for (int64_t o = first; o < last; o++) y[i * l->w->out + o] += l->bias[o];
}

/* Several linears on the same x: y[i] [tokens][out] = l[i](x). x is prepared anew only for a linear that
   takes it another way than the one before. Low-rank products wait for their middles together. */
static void apply_all(work *w, const linear *const *l, float *const *y, int count, const unready *x)
{
    input in;
    int together = 1;
    for (int i = 0; i < count; i++) together &= l[i]->w->kind == LOW_RANK && alike(l[i], l[0]);
    if (together) {
        uint8_t *const start = next_middle(&w->me), *middle = start;
        ready(w, &in, l[0], x);
        for (int i = 0; i < count; middle += middle_bytes(l[i++]->w, w->tokens))
            low_rank_first(&w->me, l[i]->w, &in, (float *)middle);
        wait_for_all(&w->me);
        middle = start;
        for (int i = 0; i < count; middle += middle_bytes(l[i++]->w, w->tokens)) {
            low_rank_second(&w->me, l[i]->w, (float *)middle, w->tokens, y[i], l[i]->w->out);
            add_bias(w, l[i], y[i]);
        }
        return;
    }
    for (int i = 0; i < count; i++) {
        if (i == 0 || !alike(l[i], l[i - 1])) {
            if (i && w->tokens > 1) wait_for_all(&w->me);
            ready(w, &in, l[i], x);
        }
        multiply(&w->me, l[i]->w, &in, y[i], l[i]->w->out);
        add_bias(w, l[i], y[i]);
    }
}

static void apply(work *w, const linear *l, float *y, const unready x) { apply_all(w, &l, &y, 1, &x); }

/* h += y (+ other): this member's rows. */
static void add_rows(work *w, const linear *l, const float *y, const float *other)
{
    int64_t first, last;
    const int64_t n = w->m->hidden;
    own_rows(w, l, &first, &last);
    for (int64_t i = 0; i < w->tokens; i++)
        for (int64_t o = first; o < last; o++)
            w->h[i * n + o] += y[i * n + o] + (other ? other[i * n + o] : 0);
}

/* A head's vector: normed (Qwen3), then its first `rotary` dimensions turned by its position's angle. */
static void turn(const work *w, const float *x, float *y, const norm *head_norm, int64_t size,
                 int32_t position)
{
    const model *m = w->m;
    const int64_t half = m->rotary / 2;
    if (head_norm->weight) normalise(x, y, head_norm, size, 1, m->eps);
    else memcpy(y, x, 4 * size);
    const float *c = m->cosine + position * half, *s = m->sine + position * half;
    for (int64_t i = 0; i < half; i++) {
        const float a = y[i], b = y[i + half];
        y[i] = a * c[i] - b * s[i], y[i + half] = b * c[i] + a * s[i];
    }
}

/* x [n] as codes of `bits` bits, symmetric about zero: signed bytes, or two neighbours a byte (n is even),
   each plus 8. Returns their scale, half. Neighbouring codes, or bytes of two codes, stand `stride` bytes
   apart. */
uint16_t cache_encode(const float *x, int64_t n, int bits, uint8_t *codes, int64_t stride)
{
    const int top = bits == 8 ? 127 : 7;
    float largest = 0;
    for (int64_t k = 0; k < n; k++)
        if (fabsf(x[k]) > largest || x[k] != x[k]) largest = fabsf(x[k]); /* a NaN stays one */
    const uint16_t scale = float_to_half(largest / top);
    const float by = half_to_float(scale) == 0 ? 1 : half_to_float(scale);
    for (int64_t k = 0; k < n; k++) {
        const float nearest = rintf(x[k] / by);
        const int code = nearest > top ? top : nearest >= -top ? (int)nearest : -top;
        if (bits == 8) codes[k * stride] = (uint8_t)code;
        else if (k % 2 == 0) codes[k / 2 * stride] = code + 8;
        else codes[k / 2 * stride] |= (code + 8) << 4;
    }
    return scale;
}

static const float signed_nibbles[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

/* Sixteen entries of a cache, scales apart: number `j` behind `place`, which counts single entries. Of 4
   bits two numbers lie in the same 16 bytes, the even one in the low halves. */
INLINE vf entries(const void *cache, int64_t place, int j, const int bits)
{
    if (bits == 8) return vf_of(vi_signed_bytes((const uint8_t *)cache + place + 16 * j));
    if (bits != 4) return vf_load((const float *)cache + place + 16 * j);
    const vi pairs = vi_bytes((const uint8_t *)cache + place / 2 + 16 * (j / 2));
    return vf_lookup(signed_nibbles, j % 2 ? vi_shr(pairs, 4) : pairs);
}

/* The sums of number `j` behind out[0], as `entries` numbers the values. */
INLINE void put(float *out, int j, vf sums, const int bits)
{
    if (bits != 4) {
        vf_store(out + 16 * j, sums);
        return;
    }
    float apart[16];
    vf_store(apart, sums);
    for (int k = 0; k < 16; k++) out[32 * (j / 2) + 2 * k + j % 2] = apart[k];
}

/* The cached keys and values of one head of one sequence. */
typedef struct {
    const void *keys, *values;
    const uint16_t *key_scales, *value_scales;
} past;

/* The queries of neighbouring tokens to this cache. Their q [token][size] are scaled already. */
typedef struct {
    const float *q;
    int64_t count; /* positions that the last of the tokens looks at */
    int64_t size;  /* a multiple of 16, of 32 for 4 bits */
    float *scores; /* room for [token][deep] */
    int64_t deep;
    float *out; /* [token][size] */
} question;

/* softmax(q K^T) V for m tokens: token i looks at the first `count - m + 1 + i` positions. The cache is
   read once for all of them. */
INLINE void attend(const question a, const past h, const int m, const int bits)
{
    const int64_t count = a.count, size = a.size, deep = a.deep;
    const float *q = a.q;
    float *scores = a.scores, *out = a.out;
    vf top[4], sum[4];
    for (int i = 0; i < m; i++) top[i] = vf_splat(-INFINITY), sum[i] = vf_zero();
    for (int64_t p = 0; p < count; p += 16) {
        const int64_t tile = p * size;
        vf s[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        if (m == 1) /* four chains of additions either way */
            for (int64_t c = 0; c < size; c += 4)
                for (int j = 0; j < 4; j++)
                    s[j] = vf_fma(entries(h.keys, tile + 16 * c, j, bits), vf_splat(q[c + j]), s[j]);
        else
            for (int64_t c = 0; c < size; c += 2)
                for (int j = 0; j < 2; j++) {
                    const vf k = entries(h.keys, tile + 16 * c, j, bits);
                    for (int i = 0; i < m; i++) s[i] = vf_fma(k, vf_splat(q[i * size + c + j]), s[i]);
                }
        if (m == 1) s[0] = vf_add(vf_add(s[0], s[1]), vf_add(s[2], s[3]));
        for (int i = 0; i < m; i++) {
            float *mine = scores + i * deep;
            vf_store(mine + p, bits > 8 ? s[i] : vf_mul(s[i], vf_half(h.key_scales + p)));
            /* positions that come after the token, or that nothing fills */
            for (int64_t k = most(p, count - m + 1 + i); k < p + 16; k++) mine[k] = -INFINITY;
            top[i] = vf_max(top[i], vf_load(mine + p));
        }
    }
    for (int i = 0; i < m; i++) {
        float *mine = scores + i * deep;
        const vf highest = vf_splat(vf_top(top[i]));
        for (int64_t p = 0; p < count; p += 16) {
            vf_store(mine + p, vf_exp(vf_sub(vf_load(mine + p), highest)));
            for (int64_t k = most(p, count - m + 1 + i); k < p + 16; k++) mine[k] = 0;
            sum[i] = vf_add(sum[i], vf_load(mine + p));
            if (bits <= 8) vf_store(mine + p, vf_mul(vf_load(mine + p), vf_half(h.value_scales + p)));
        }
        sum[i] = vf_splat(1 / vf_sum(sum[i]));
    }
    int64_t c = 0;
    for (; c + 64 <= size; c += 64) {
        vf acc[4][4];
        for (int i = 0; i < m; i++)
            for (int j = 0; j < 4; j++) acc[i][j] = vf_zero();
        for (int64_t p = 0; p < count; p++) {
            vf v[4];
            for (int j = 0; j < 4; j++) v[j] = entries(h.values, p * size + c, j, bits);
            for (int i = 0; i < m; i++) {
                const vf e = vf_splat(scores[i * deep + p]);
                for (int j = 0; j < 4; j++) acc[i][j] = vf_fma(v[j], e, acc[i][j]);
            }
        }
        for (int i = 0; i < m; i++)
            for (int j = 0; j < 4; j++) put(out + i * size + c, j, vf_mul(acc[i][j], sum[i]), bits);
    }
    const int numbers = bits == 4 ? 2 : 1; /* 16 entries at a time, or the 32 of 16 bytes */
    for (; c < size; c += 16 * numbers)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < numbers; j++) {
                vf acc = vf_zero();
                for (int64_t p = 0; p < count; p++) {
                    const vf value = entries(h.values, p * size + c, j, bits);
                    acc = vf_fma(value, vf_splat(scores[i * deep + p]), acc);
                }
                put(out + i * size + c, j, vf_mul(acc, sum[i]), bits);
            }
}

static void attend_from(const work *w, const past *h, const question *a, int64_t n)
{
#define ATTEND(m, bits) attend(*a, *h, m, bits)
    const int bits = w->m->cache_bits;
    if (bits == 8) n == 4 ? ATTEND(4, 8) : ATTEND(1, 8);
    else if (bits == 4) n == 4 ? ATTEND(4, 4) : ATTEND(1, 4);
    else n == 4 ? ATTEND(4, 32) : ATTEND(1, 32);
}

/* Entries of a head's vector in the cache. */
static int64_t entries_of(const model *m, int64_t head_size)
{
    return padded(head_size, m->cache_bits == 4 ? 32 : 16);
}

/* key and value [size] of position p of the head whose first position is `lane`. */
static void remember(const model *m, const layer *l, int64_t lane, int64_t p, const float *key,
                     const float *value)
{
    const int64_t size = l->head_size, room = entries_of(m, size);
    const int64_t tile = (lane + p / 16 * 16) * room, row = (lane + p) * room;
    if (m->cache_bits <= 8) {
        const int64_t parts = 8 / m->cache_bits;
        uint8_t *keys = (uint8_t *)l->keys + tile / parts + p % 16;
        uint8_t *values = (uint8_t *)l->values + row / parts;
        l->key_scales[lane + p] = cache_encode(key, size, m->cache_bits, keys, 16);
        l->value_scales[lane + p] = cache_encode(value, size, m->cache_bits, values, 1);
        return;
    }
    float *column = (float *)l->keys + tile + p % 16;
    for (int64_t c = 0; c < size; c++) column[16 * c] = key[c];
    memcpy((float *)l->values + row, value, 4 * size);
}

static past past_of(const model *m, const layer *l, int64_t lane)
{
    const int coded = m->cache_bits <= 8;
    const int64_t start = lane * entries_of(m, l->head_size) * (coded ? m->cache_bits : 32) / 8;
    const uint8_t *keys = (uint8_t *)l->keys + start, *values = (uint8_t *)l->values + start;
    return (past){keys, values, coded ? l->key_scales + lane : 0, coded ? l->value_scales + lane : 0};
}

/* Tokens from `i` on that are attended to together: four of one sequence, or one. */
INLINE int64_t together(const work *w, int64_t i)
{
    return i + 3 < w->tokens && w->sequence[i + 3] == w->sequence[i] ? 4 : 1;
}

/* The new tokens' keys and values into the cache, then every head of every token over its past. */
static void attention(work *w, const layer *l)
{
    const model *m = w->m;
    const int64_t size = l->head_size, room = entries_of(m, size), repeat = l->heads / l->kv_heads;
    int64_t first, last, groups = 0;
    share(&w->me, w->tokens * l->kv_heads, &first, &last);
    for (int64_t at = first; at < last; at++) {
        const int64_t i = at / l->kv_heads, head = at % l->kv_heads, p = w->position[i];
        const int64_t lane = (w->sequence[i] * l->kv_heads + head) * m->capacity;
        turn(w, w->k + (i * l->kv_heads + head) * size, w->turned, &l->k_norm, size, p);
        remember(m, l, lane, p, w->turned, w->v + (i * l->kv_heads + head) * size);
    }
    wait_for_all(&w->me);
    for (int64_t i = 0; i < w->tokens; i += together(w, i)) groups++;
    share(&w->me, groups * l->heads, &first, &last);
    float *out = w->turned + 4 * room;
    int64_t at = 0;
    for (int64_t head = 0; head < l->heads; head++) /* one head's cache for all its tokens, then the next */
        for (int64_t i = 0; i < w->tokens; i += together(w, i), at++) {
            if (at < first || at >= last) continue;
            const int64_t n = together(w, i);
            const int64_t lane = (w->sequence[i] * l->kv_heads + head / repeat) * m->capacity;
            for (int64_t k = 0; k < n; k++) {
                float *q = w->turned + k * room;
                turn(w, w->q + ((i + k) * l->heads + head) * size, q, &l->q_norm, size, w->position[i + k]);
                for (int64_t c = 0; c < size; c++) q[c] *= m->scaling;
                memset(q + size, 0, 4 * (room - size));
            }
            const past before = past_of(m, l, lane);
            const question asked = {w->turned, w->position[i + n - 1] + 1, room, w->scores, w->deep, out};
            attend_from(w, &before, &asked, n);
            for (int64_t k = 0; k < n; k++)
                memcpy(w->mixed + ((i + k) * l->heads + head) * size, out + k * room, 4 * size);
        }
    wait_for_all(&w->me);
}

/* Post-norm families: h itself is normed after a part. */
static void norm_after(work *w, const norm *n)
{
    wait_for_all(&w->me);
    const int64_t last = w->tokens == 1 && w->me.id ? 0 : w->last, hidden = w->m->hidden;
    for (int64_t i = w->first; i < last; i++)
        normalise(w->h + i * hidden, w->h + i * hidden, n, hidden, w->m->rms, w->m->eps);
}

static void run_layer(work *w, const layer *l)
{
    const model *m = w->m;
    const norm *before = m->post_norm ? 0 : &l->attention, *middle = m->post_norm ? 0 : &l->feed_forward;
    const linear *const projections[] = {&l->q, &l->k, &l->v};
    float *const projected[] = {w->q, w->k, w->v};
    apply_all(w, projections, projected, 3, &(unready){w->h, m->hidden, before});
    wait_for_all(&w->me);
    attention(w, l);
    float *mixed = m->parallel ? w->q : w->k; /* room for [tokens][hidden] that nobody reads now */
    apply(w, &l->o, mixed, (unready){w->mixed, l->heads * l->head_size, 0});
    if (!m->parallel) add_rows(w, &l->o, mixed, 0);
    if (m->post_norm) norm_after(w, &l->attention);
    wait_for_all(&w->me);
    const linear *first = l->gate.w ? &l->gate : &l->up;
    const linear *const widening[] = {first, &l->up};
    float *const widened[] = {w->wide, w->wide2};
    apply_all(w, widening, widened, l->gate.w ? 2 : 1, &(unready){w->h, m->hidden, middle});
    int64_t a, b;
    own_rows(w, first, &a, &b);
    float *wide = l->gate.w ? w->wide2 : w->wide;
    for (int64_t i = 0; i < w->tokens; i++) {
        const int64_t at = i * l->width + a;
        activate(wide + at, l->gate.w ? w->wide + at : 0, b - a, m->activation);
    }
    wait_for_all(&w->me);
    apply(w, &l->down, w->k, (unready){wide, l->width, 0});
    add_rows(w, &l->down, w->k, m->parallel ? mixed : 0);
    if (m->post_norm) norm_after(w, &l->feed_forward);
    wait_for_all(&w->me);
}

static void embed(work *w)
{
    const model *m = w->m;
    const int64_t last = w->tokens == 1 && w->me.id ? 0 : w->last, width = m->embedding.w->n;
    float *x = m->project_in.w ? w->wide : w->h;
    for (int64_t i = w->first; i < last; i++) {
        decode_rows(m->embedding.w, w->ids + i, 1, x + i * width, w->panel);
        if (m->embedding_scale != 1)
            for (int64_t k = 0; k < width; k++) x[i * width + k] *= m->embedding_scale;
    }
    wait_for_all(&w->me);
    if (m->project_in.w) {
        apply(w, &m->project_in, w->h, (unready){x, width, 0});
        wait_for_all(&w->me);
    }
    if (m->positions)
        for (int64_t i = w->first; i < last; i++)
            for (int64_t k = 0; k < m->hidden; k++)
                w->h[i * m->hidden + k] += m->positions[(w->position[i] + m->offset) * m->hidden + k];
    wait_for_all(&w->me);
}

/* Logits [count][vocabulary] of the wanted tokens. */
static void predict(work *w, const int64_t *wanted, int64_t count, float *logits)
{
    const model *m = w->m;
    const int64_t n = m->hidden;
    if (w->me.id == 0)
        for (int64_t i = 0; i < count; i++) memcpy(w->q + i * n, w->h + wanted[i] * n, 4 * n);
    wait_for_all(&w->me);
    take_share(w, count);
    const float *x = w->q;
    const norm *last = m->final.weight ? &m->final : 0;
    if (m->project_out.w) {
        apply(w, &m->project_out, w->k, (unready){x, n, last});
        wait_for_all(&w->me);
        x = w->k, last = 0;
    }
    apply(w, &m->head, logits, (unready){x, m->head.w->n, last});
}

/* Tokens to run: the id, sequence and position of each; positions of one sequence follow each other.
   wanted: the places of the `count` tokens whose logits [count][vocabulary] are returned. */
typedef struct {
    const int64_t *ids;
    const int32_t *sequence, *position;
    int64_t tokens;
    const int64_t *wanted;
    int64_t count;
    float *logits;
} request;

/* How large the parts of a call's memory must be. */
typedef struct {
    int64_t widest, ff; /* floats of a token: hidden or all heads; in the feed-forward */
    int64_t head, deep; /* floats: a head's vector; a token's scores */
    int64_t panel;      /* floats: to decode a row of the embedding */
    int64_t longest;    /* floats: a token's input of any linear */
    int64_t owned, own; /* bytes: own_bytes of any linear; all that a member has for itself */
    int64_t inputs;     /* bytes for all: the prepared inputs */
    int64_t floats;     /* bytes for all: what stands between the linears */
    int64_t shared;     /* bytes for all: shared_bytes of any linear */
    int64_t middle;     /* bytes for all: each middle of low-rank products */
} needs;

static void need_linear(needs *of, const linear *l, int64_t tokens)
{
    if (!l->w) return;
    of->shared = most(of->shared, shared_bytes(l->w, tokens));
    of->owned = most(of->owned, own_bytes(l->w));
    of->middle = most(of->middle, middle_bytes(l->w, tokens));
}

static needs needs_of(const model *m, const request *r)
{
    const int64_t tokens = r->tokens;
    needs of = {.widest = most(m->hidden, m->embedding.w->n), .ff = m->embedding.w->n};
    need_linear(&of, &m->head, tokens), need_linear(&of, &m->project_in, tokens);
    need_linear(&of, &m->project_out, tokens);
    for (const layer *l = m->layer; l < m->layer + m->layers; l++) {
        int64_t middles = 0; /* more than any linears that run together take */
        for (const linear *x = &l->q; x <= &l->down; x++) {
            need_linear(&of, x, tokens);
            if (x->w) middles += middle_bytes(x->w, tokens);
        }
        of.middle = most(of.middle, middles);
        of.widest = most(of.widest, l->heads * l->head_size), of.ff = most(of.ff, l->width);
        of.head = most(of.head, padded(l->head_size, 32));
    }
    for (int64_t i = 0; i < tokens; i++) of.deep = most(of.deep, r->position[i] + 1);
    of.owned = padded(of.owned, 64), of.shared = padded(of.shared, 64), of.deep = padded(of.deep, 16);
    of.longest = padded(most(of.widest, of.ff), 32), of.panel = padded(panel_bytes(m->embedding.w) / 4, 16);
    const int64_t own_floats = 4 * of.deep + 8 * of.head + of.panel + of.longest;
    of.own = padded(of.owned + 4 * own_floats + input_bytes(of.longest, 1), 64);
    of.inputs = padded(tokens == 1 ? 0 : input_bytes(of.longest, tokens) + 4 * tokens * of.longest, 64);
    of.floats = padded(4 * tokens * (5 * of.widest + 2 * of.ff) + 64, 64);
    return of;
}

/* Run the tokens. Returns 0, or 1 without memory. */
int step(const model *m, const request *r, int threads)
{
    const needs n = needs_of(m, r);
    const int64_t tokens = r->tokens;
    uint8_t *memory = team_begin(n.own * threads + n.inputs + n.floats + n.shared + 2 * n.middle + 1024);
    if (!memory) return 1;
    struct barrier barrier = {0};
#pragma omp parallel num_threads(threads)
    {
        const int id = omp_get_thread_num();
        uint8_t *mine = memory + n.own * id, *all = memory + n.own * threads;
        uint8_t *shared = all + n.inputs + n.floats, *middles = shared + n.shared;
        work w = {.m = m, .ids = r->ids, .sequence = r->sequence, .position = r->position};
        w.me = (member){id, omp_get_num_threads(), &barrier, mine, shared, {middles, middles + n.middle}, 0};
        w.scores = (float *)(mine + n.owned);
        w.deep = n.deep;
        w.turned = w.scores + 4 * w.deep;
        w.panel = w.turned + 8 * n.head;
        w.own_normed = w.panel + n.panel;
        w.own_room = (uint8_t *)(w.own_normed + n.longest);
        w.normed = (float *)all;
        w.room = all + 4 * tokens * n.longest;
        w.h = (float *)(all + n.inputs);
        w.q = w.h + tokens * n.widest, w.k = w.q + tokens * n.widest, w.v = w.k + tokens * n.widest;
        w.mixed = w.v + tokens * n.widest;
        w.wide = w.mixed + tokens * n.widest, w.wide2 = w.wide + tokens * n.ff;
        take_share(&w, tokens);
        embed(&w);
        for (int64_t i = 0; i < m->layers; i++) run_layer(&w, m->layer + i);
        if (r->count) predict(&w, r->wanted, r->count, r->logits);
    }
    team_end();
    return 0;
}

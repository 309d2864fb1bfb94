/* Grouped integers on a processor: y = x W^T with W[o, i] = scale[o, g] (q[o, i] - zero[o, g]), float32 activations.

   codes  a row of n values is a little-endian bit stream of ceil(n / 8) * bits bytes (kernels/bits.py)
   scale  float16 [out, groups]; zero uint8 [out, groups]; a group is a multiple of 16 values, or the whole row

   The codes are read as they are stored. 16 values are decoded at once: their bits stand in one, two or four words, which
   are repeated over the lanes, shifted lane by lane and masked (8 bits are widened). That can leave the values in another
   order than the row's, so x is brought into that order once a call. The zero point is taken out of the sum:

       y[o] = sum_g scale[o, g] (sum_i q[o, i] x[i] - zero[o, g] sum_i x[i])

   Vectors are the compiler's own, 64 bytes wide: AVX-512. Any other processor gives the same numbers, slowly, and is not
   asked to (kernels/cpu/__init__.py). */

#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h> /* one instruction widens 16 bytes; compilers don't find it by themselves */
#endif

typedef float vf __attribute__((vector_size(64)));
typedef float vfu __attribute__((vector_size(64), aligned(4)));
typedef uint8_t vb __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint64_t vq __attribute__((vector_size(64)));

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define SLACK 2 /* bytes that decoding may touch beyond its 16 values */

/* Which value of its 16 a lane holds. */
INLINE int value_of(int lane, int bits)
{
    if (bits == 2 || bits == 8) return lane;
    return bits <= 4 ? lane % 2 * 8 + lane / 2 : lane % 4 * 4 + lane / 4;
}

/* 16 values of a row, from the byte at which they begin. */
INLINE vf decode(const uint8_t *p, const int bits)
{
#ifdef __AVX512F__
    if (bits == 8) return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
#endif
    const vu mask = (vu){} + ((1u << bits) - 1);
    vu words, shift;
    if (bits == 8) {
        vb bytes;
        memcpy(&bytes, p, 16);
        return __builtin_convertvector(__builtin_convertvector(bytes, vi), vf);
    } else if (bits == 2) {
        uint32_t all;
        memcpy(&all, p, 4);
        words = (vu){} + all;
        for (int i = 0; i < LANES; i++) shift[i] = 2 * i;
    } else if (bits <= 4) {
        uint64_t both;
        memcpy(&both, p, 8);
        if (bits == 3) both = (both & 0xffffffff) | both >> 24 << 32;
        words = (vu)((vq){} + both);
        for (int i = 0; i < LANES; i++) shift[i] = i / 2 * bits;
    } else {
        uint32_t w[4];
        for (int k = 0; k < 4; k++) memcpy(w + k, p + (4 * bits * k >> 3), 4);
        const uint64_t a = (uint64_t)w[0] | (uint64_t)w[1] << 32, b = (uint64_t)w[2] | (uint64_t)w[3] << 32;
        words = (vu)(vq){a, b, a, b, a, b, a, b};
        for (int i = 0; i < LANES; i++) shift[i] = (4 * bits * (i % 4) & 7) + i / 4 * bits;
    }
    return __builtin_convertvector((vi)(words >> shift & mask), vf);
}

INLINE float sum(vf v)
{
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}

typedef struct {
    const uint8_t *codes, *zero;
    const _Float16 *scale;
    long out, n, bytes, groups, group; /* bytes: of a row; group: 16-value pieces in a group */
} weight;

/* Where a row's last 16 values can be read: in a copy if they are not all there or nothing may be touched beyond them. */
INLINE const uint8_t *last_piece(const weight *w, long row, long pieces, const int bits, uint8_t *copy)
{
    const long from = (pieces - 1) * 2 * bits, left = w->bytes - from;
    const uint8_t *there = w->codes + row * w->bytes + from;
    if (row + 1 < w->out && left >= 2 * bits) return there;
    memset(copy, 0, 2 * bits + SLACK);
    memcpy(copy, there, left < 2 * bits ? left : 2 * bits);
    return copy;
}

/* One output of m tokens. */
INLINE void row_product(const weight *w, long o, const float *x, const float *sums, float *y, long ld, long pieces, const int bits,
                        const int m)
{
    uint8_t copy[2 * 8 + SLACK];
    const uint8_t *row = w->codes + o * w->bytes, *last = last_piece(w, o, pieces, bits, copy);
    vf total[4];
    float lifted[4];
    for (int k = 0; k < m; k++) total[k] = (vf){}, lifted[k] = 0;
    for (long g = 0, c = 0; g < w->groups; g++) {
        const long end = c + w->group < pieces ? c + w->group : pieces;
        vf part[4];
        for (int k = 0; k < m; k++) part[k] = (vf){};
        for (; c < end; c++) {
            const vf q = decode(c + 1 < pieces ? row + c * 2 * bits : last, bits);
            for (int k = 0; k < m; k++) part[k] += q * *(const vfu *)(x + (k * pieces + c) * LANES);
        }
        const float s = (float)w->scale[o * w->groups + g], z = s * w->zero[o * w->groups + g];
        for (int k = 0; k < m; k++) {
            total[k] += part[k] * s;
            lifted[k] += z * sums[k * w->groups + g];
        }
    }
    for (int k = 0; k < m; k++) y[k * ld + o] = sum(total[k]) - lifted[k];
}

/* One row of W as float32. */
INLINE void row_values(const weight *w, long o, float *into, const int bits)
{
    const long pieces = (w->n + LANES - 1) / LANES;
    uint8_t copy[2 * 8 + SLACK];
    const uint8_t *row = w->codes + o * w->bytes, *last = last_piece(w, o, pieces, bits, copy);
    for (long c = 0; c < pieces; c++) {
        const long g = c / w->group;
        const float s = (float)w->scale[o * w->groups + g], z = w->zero[o * w->groups + g];
        const vf q = (decode(c + 1 < pieces ? row + c * 2 * bits : last, bits) - z) * s;
        vi order;
        for (int i = 0; i < LANES; i++) order[value_of(i, bits)] = i;
        const vf values = __builtin_shuffle(q, order);
        if ((c + 1) * LANES <= w->n)
            *(vfu *)(into + c * LANES) = values;
        else
            for (long i = 0; c * LANES + i < w->n; i++) into[c * LANES + i] = values[i];
    }
}

/* One loop over the rows for each width and number of tokens: constants inside, so that decoding unrolls. */
#define PER_BITS(of) of(2) of(3) of(4) of(5) of(6) of(7) of(8)
#define PRODUCT(b, m) \
    static void product_##b##_##m(const weight *w, const float *x, const float *sums, float *y, long ld, long pieces) \
    { \
        _Pragma("omp parallel for schedule(static)") for (long o = 0; o < w->out; o++) \
            row_product(w, o, x, sums, y, ld, pieces, b, m); \
    }
#define LOOPS(b) \
    PRODUCT(b, 1) \
    PRODUCT(b, 4) \
    static void rows_##b(const weight *w, float *into, long first, long last) \
    { \
        _Pragma("omp parallel for schedule(static)") for (long o = first; o < last; o++) \
            row_values(w, o, into + (o - first) * w->n, b); \
    }
PER_BITS(LOOPS)

#define LOOP_OF(b) {product_##b##_1, product_##b##_4, rows_##b},
static const struct {
    void (*one)(const weight *, const float *, const float *, float *, long, long);
    void (*four)(const weight *, const float *, const float *, float *, long, long);
    void (*rows)(const weight *, float *, long, long);
} loops[] = {PER_BITS(LOOP_OF)}; /* from 2 bits on */

/* y[m, out] = x[m, n] W^T. scratch: m (16 ceil(n / 16) + groups) floats. group: values in a group. Returns 0, or 1 for
   a width that there is no code for. */
int grouped_int_product(const float *x, const uint8_t *codes, const void *scale, const uint8_t *zero, float *y, float *scratch,
                        long m, long out, long n, long groups, long group, int bits)
{
    if (bits < 2 || bits > 8) return 1;
    const weight w = {codes, zero, scale, out, n, (n + 7) / 8 * bits, groups, group / LANES};
    const long pieces = (n + LANES - 1) / LANES;
    float *ordered = scratch, *sums = scratch + m * pieces * LANES;
    for (long k = 0; k < m; k++) {
        for (long c = 0; c < pieces; c++)
            for (int i = 0; i < LANES; i++) {
                const long at = c * LANES + value_of(i, bits);
                ordered[(k * pieces + c) * LANES + i] = at < n ? x[k * n + at] : 0;
            }
        for (long g = 0; g < groups; g++) {
            float s = 0;
            for (long i = g * group; i < (g + 1) * group && i < n; i++) s += x[k * n + i];
            sums[k * groups + g] = s;
        }
    }
    long k = 0;
    for (; k + 4 <= m; k += 4) loops[bits - 2].four(&w, ordered + k * pieces * LANES, sums + k * groups, y + k * out, out, pieces);
    for (; k < m; k++) loops[bits - 2].one(&w, ordered + k * pieces * LANES, sums + k * groups, y + k * out, out, pieces);
    return 0;
}

/* Rows [first, last) of W as float32 [last - first, n]. */
int grouped_int_rows(const uint8_t *codes, const void *scale, const uint8_t *zero, float *into, long first, long last, long out,
                     long n, long groups, long group, int bits)
{
    if (bits < 2 || bits > 8) return 1;
    const weight w = {codes, zero, scale, out, n, (n + 7) / 8 * bits, groups, group / LANES};
    loops[bits - 2].rows(&w, into, first, last);
    return 0;
}

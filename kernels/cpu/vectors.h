/* Sixteen lanes for three kinds of processor: AVX-512 (with VNNI and VBMI2), AVX2 (with FMA and F16C, and
   VNNI where it is there), and plain C.

   vi   16 x int32, or 64 bytes      vf   16 x float

   The other files are written once, in these words. `dot` is the heart of the int8 products. To every lane it
   adds the sum of four products: four unsigned bytes of `u`, which have `bits` bits, by four signed bytes of
   `x`. SEVEN_PAY says that bytes of at most seven bits are cheaper. LOOK_UP_PAYS says that sums over planes
   of one bit come faster from tables than from `dot`. It was measured (`python -m kernels.bench
   binary_coded`) where dot takes three instructions, and is 0 where nobody has measured it.

   Many tokens are multiplied by TILES tiles at once, with the sums of TOGETHER of them in registers. */

#ifndef VECTORS_H
#define VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define PRAGMA(words) _Pragma(#words)
#define UNROLL(n) PRAGMA(GCC unroll n)

INLINE float half_to_float(uint16_t h)
{
    _Float16 f;
    memcpy(&f, &h, 2);
    return (float)f;
}
INLINE uint16_t float_to_half(float x) /* the nearest, ties to even */
{
    const _Float16 f = (_Float16)x;
    uint16_t h;
    memcpy(&h, &f, 2);
    return h;
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
#include <immintrin.h>
#define INSTRUCTIONS "AVX-512 VNNI"
#define TILES 2
#define TOGETHER 14
#define SEVEN_PAY 0
#define LOOK_UP_PAYS 0

typedef __m512i vi;
typedef __m512 vf;

INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE vi vi_splat(int32_t a) { return _mm512_set1_epi32(a); }
INLINE vi vi_zero(void) { return _mm512_setzero_si512(); }
INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
INLINE vi vi_and_or(vi a, vi b, vi c) { return _mm512_ternarylogic_epi32(a, b, c, 0xEA); } /* (a & b) | c */
INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
INLINE vi vi_shl(vi a, int n) { return _mm512_slli_epi32(a, n); }
INLINE vi vi_shr(vi a, int n) { return _mm512_srli_epi32(a, n); }
INLINE vi vi_sar(vi a, int n) { return _mm512_srai_epi32(a, n); } /* the sign fills up */
/* of the lower half, moved up by 16 before; n > 1 */
INLINE vi vi_sar_low(vi a, int n) { return _mm512_madd_epi16(a, _mm512_set1_epi32(1 << (16 - n))); }
INLINE vi vi_dot(vi acc, vi u, const int8_t *x, const int bits)
{
    /* written out, since compilers load and spread the four bytes first */
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(u), "m"(*(const int32_t *)x));
    return acc;
}
INLINE vi vi_bytes(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE vi vi_signed_bytes(const uint8_t *p)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
}
INLINE vi vi_fourfold(vi a) /* the lowest byte of each lane, four times */
{
    const __m128i places = _mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(places));
}
INLINE vi vi_lookup_bytes(const uint8_t *table, vi index) /* index: bytes 0..15 */
{
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), index);
}
/* Four tables of 16 bytes, each for the 16 bytes of `index` (0 to 15) at its own place. */
INLINE vi vi_look(const uint8_t *four, vi index)
{
    return _mm512_shuffle_epi8(_mm512_loadu_si512(four), index);
}
/* acc, numbers of 16 bits, plus the numbers whose low and high bytes are in low and high: the lower 8 of
every
   16 bytes; vi_add_last adds the upper 8. */
INLINE vi vi_add_first(vi acc, vi low, vi high)
{
    return _mm512_add_epi16(acc, _mm512_unpacklo_epi8(low, high));
}
INLINE vi vi_add_last(vi acc, vi low, vi high)
{
    return _mm512_add_epi16(acc, _mm512_unpackhi_epi8(low, high));
}
/* Lane r: the sum over four runs of 8 numbers of 16 bits of low + 8192 high, at place r of `first` for r <
   8, at r - 8 of `last` after. */
INLINE vi vi_sum_runs(vi low_first, vi high_first, vi low_last, vi high_last)
{
    const __m512i by = _mm512_set1_epi32(8192 << 16 | 1);
    const __m512i a = _mm512_madd_epi16(_mm512_unpacklo_epi16(low_first, high_first), by);
    const __m512i b = _mm512_madd_epi16(_mm512_unpackhi_epi16(low_first, high_first), by);
    const __m512i c = _mm512_madd_epi16(_mm512_unpacklo_epi16(low_last, high_last), by);
    const __m512i d = _mm512_madd_epi16(_mm512_unpackhi_epi16(low_last, high_last), by);
    const __m512i ab = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    const __m512i cd = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd));
}
INLINE vi vi_sum_low_runs(vi first, vi last) /* the same without `high`, where no sum leaves 16 bits */
{
    const __m512i even = _mm512_shuffle_i32x4(first, last, 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(first, last, 0xdd);
    const __m512i pairs = _mm512_add_epi16(even, odd); /* of `first`, then of `last` */
    const __m512i a = _mm512_shuffle_i32x4(pairs, pairs, 0x88), b = _mm512_shuffle_i32x4(pairs, pairs, 0xdd);
    return _mm512_cvtepi16_epi32(_mm512_castsi512_si256(_mm512_add_epi16(a, b)));
}
/* each lane's lowest */
INLINE void vi_to_bytes(uint8_t *p, vi a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }
INLINE vf vf_of(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vf vf_bits(vi a) { return _mm512_castsi512_ps(a); }
INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_splat(float a) { return _mm512_set1_ps(a); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf vf_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a b + c */
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
INLINE float vf_top(vf a) { return _mm512_reduce_max_ps(a); }
/* low 4 bits */
INLINE vf vf_lookup(const float *table, vi index)
{
    return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table));
}
/* 1 where bit `n` of a lane is set: x is added to `a` there. */
INLINE vf vf_add_where(vf a, vi bits, int n, vf x)
{
    return _mm512_mask_add_ps(a, _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1u << n)), a, x);
}
/* low 2 bits */
INLINE vf vf_pick(const float *four, vi place)
{
    return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(four)), place);
}
/* Lanes of `a` whose two bits of `places` from bit `right` on say `place`; the others are 0. */
INLINE vi vi_placed(vi a, vi places, int right, int place)
{
    const __m512i here = _mm512_and_si512(_mm512_srli_epi32(places, right), _mm512_set1_epi32(3));
    return _mm512_maskz_mov_epi32(_mm512_cmpeq_epi32_mask(here, _mm512_set1_epi32(place)), a);
}
/* Hidden from the compiler: on Zen 4 and 5 an expansion that zeroes waits for its register's last value,
   and one that reads memory takes half as long again as one from a register. */
INLINE vi vi_hidden(vi a)
{
    __asm__("" : "+v"(a));
    return a;
}
/* 32 half values from where they stand one behind the other to the places whose bit is set; the others are
   0. */
INLINE vi vi_expand_halves(uint32_t mask, const uint16_t *p)
{
    const vi values = vi_hidden(_mm512_loadu_si512(p));
    return _mm512_mask_expand_epi16(vi_hidden(_mm512_setzero_si512()), mask, values);
}
INLINE vi vi_expand_bytes(uint64_t mask, const uint8_t *p, vi otherwise)
{
    return _mm512_mask_expand_epi8(otherwise, mask, vi_hidden(_mm512_loadu_si512(p)));
}
/* The bytes' low nibbles (right: 0) or high ones (4). */
INLINE vi vi_expand_nibbles(uint64_t mask, const uint8_t *p, const int right, vi otherwise)
{
    const __m512i bytes = _mm512_loadu_si512(p);
    const vi moved = right ? _mm512_srli_epi16(bytes, right) : bytes;
    return _mm512_mask_expand_epi8(otherwise, mask, _mm512_and_si512(moved, _mm512_set1_epi8(15)));
}
/* 16 floats rounded to the nearest whole number (ties to even) as bytes. */
INLINE void vf_to_bytes(int8_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
}
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_round(vf x) { return _mm512_roundscale_ps(x, 8); }
INLINE vf vf_scale2(vf x, vf n) { return _mm512_scalef_ps(x, n); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#ifdef __AVXVNNI__
#define INSTRUCTIONS "AVX2 VNNI"
#define SEVEN_PAY 0
#define LOOK_UP_PAYS 0
#else
#define INSTRUCTIONS "AVX2"
#define SEVEN_PAY 1
#define LOOK_UP_PAYS 1
#endif
#define TILES 1
#define TOGETHER 6
#define TWO_HALVES

typedef struct { __m256i a, b; } vi;
typedef struct { __m256 a, b; } vf;

#define VI(x, y) ((vi){x, y})
#define VF(x, y) ((vf){x, y})
INLINE vi vi_load(const void *p)
{
    return VI(_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1));
}
INLINE vi vi_splat(int32_t x) { return VI(_mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
INLINE vi vi_zero(void) { return VI(_mm256_setzero_si256(), _mm256_setzero_si256()); }
INLINE vi vi_and(vi x, vi y) { return VI(_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)); }
INLINE vi vi_or(vi x, vi y) { return VI(_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)); }
INLINE vi vi_and_or(vi x, vi y, vi z) { return vi_or(vi_and(x, y), z); }
INLINE vi vi_add(vi x, vi y) { return VI(_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)); }
INLINE vi vi_shl(vi x, int n) { return VI(_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)); }
INLINE vi vi_shr(vi x, int n) { return VI(_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)); }
INLINE vi vi_sar(vi x, int n) { return VI(_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)); }
INLINE vi vi_sar_low(vi x, int n)
{
    const __m256i up = _mm256_set1_epi32(1 << (16 - n));
    return VI(_mm256_madd_epi16(x.a, up), _mm256_madd_epi16(x.b, up));
}
#ifdef __AVXVNNI__
INLINE __m256i dot_half(__m256i acc, __m256i u, __m256i x, const int bits)
{
    return _mm256_dpbusd_avx_epi32(acc, u, x);
}
#else
/* Pairs of products are added in 16 bits with saturation: two of 127 x 128 fit, two of 255 x 127 don't,
   and their high nibble goes apart. */
INLINE __m256i dot_half(__m256i acc, __m256i u, __m256i x, const int bits)
{
    const __m256i low = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
    if (bits <= 7) return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), one));
    const __m256i l = _mm256_maddubs_epi16(_mm256_and_si256(u, low), x);
    const __m256i h = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(u, 4), low), x);
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(l, one), _mm256_madd_epi16(h, sixteen)));
}
#endif
INLINE vi vi_dot(vi acc, vi u, const int8_t *x, const int bits)
{
    int32_t four;
    memcpy(&four, x, 4);
    const __m256i v = _mm256_set1_epi32(four);
    return VI(dot_half(acc.a, u.a, v, bits), dot_half(acc.b, u.b, v, bits));
}
INLINE vi vi_bytes(const uint8_t *p)
{
    const __m128i *bytes = (const __m128i *)p, *more = (const __m128i *)(p + 8);
    return VI(_mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes)), _mm256_cvtepu8_epi32(_mm_loadl_epi64(more)));
}
INLINE vi vi_signed_bytes(const uint8_t *p)
{
    const __m128i *bytes = (const __m128i *)p, *more = (const __m128i *)(p + 8);
    return VI(_mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes)), _mm256_cvtepi8_epi32(_mm_loadl_epi64(more)));
}
INLINE vi vi_fourfold(vi x)
{
    const __m256i places = _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
    return VI(_mm256_shuffle_epi8(x.a, places), _mm256_shuffle_epi8(x.b, places));
}
INLINE vi vi_lookup_bytes(const uint8_t *table, vi i)
{
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return VI(_mm256_shuffle_epi8(t, i.a), _mm256_shuffle_epi8(t, i.b));
}
INLINE vi vi_look(const uint8_t *four, vi i)
{
    const vi t = vi_load(four);
    return VI(_mm256_shuffle_epi8(t.a, i.a), _mm256_shuffle_epi8(t.b, i.b));
}
INLINE vi vi_add_first(vi acc, vi low, vi high)
{
    return VI(_mm256_add_epi16(acc.a, _mm256_unpacklo_epi8(low.a, high.a)),
              _mm256_add_epi16(acc.b, _mm256_unpacklo_epi8(low.b, high.b)));
}
INLINE vi vi_add_last(vi acc, vi low, vi high)
{
    return VI(_mm256_add_epi16(acc.a, _mm256_unpackhi_epi8(low.a, high.a)),
              _mm256_add_epi16(acc.b, _mm256_unpackhi_epi8(low.b, high.b)));
}
INLINE __m256i sum_runs_half(vi low, vi high) /* of 8 places: two of four runs are added */
{
    const __m256i by = _mm256_set1_epi32(8192 << 16 | 1);
    const __m256i a = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpacklo_epi16(low.a, high.a), by),
                                       _mm256_madd_epi16(_mm256_unpacklo_epi16(low.b, high.b), by));
    const __m256i b = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpackhi_epi16(low.a, high.a), by),
                                       _mm256_madd_epi16(_mm256_unpackhi_epi16(low.b, high.b), by));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}
INLINE vi vi_sum_runs(vi low_first, vi high_first, vi low_last, vi high_last)
{
    return VI(sum_runs_half(low_first, high_first), sum_runs_half(low_last, high_last));
}
INLINE vi vi_sum_low_runs(vi first, vi last)
{
    const __m256i a = _mm256_add_epi16(first.a, first.b), b = _mm256_add_epi16(last.a, last.b);
    const __m256i even = _mm256_permute2x128_si256(a, b, 0x20), odd = _mm256_permute2x128_si256(a, b, 0x31);
    const __m256i rows = _mm256_add_epi16(even, odd);
    return VI(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(rows)),
              _mm256_cvtepi16_epi32(_mm256_extracti128_si256(rows, 1)));
}
INLINE void vi_to_bytes(uint8_t *p, vi x)
{
    const __m256i low = _mm256_set1_epi32(255);
    const __m256i both = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    const __m256i w = _mm256_permute4x64_epi64(both, 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128((__m128i *)p, bytes);
}
INLINE vf vf_of(vi x) { return VF(_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)); }
INLINE vf vf_bits(vi x) { return VF(_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)); }
INLINE vf vf_zero(void) { return VF(_mm256_setzero_ps(), _mm256_setzero_ps()); }
INLINE vf vf_splat(float x) { return VF(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
INLINE vf vf_load(const float *p) { return VF(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
INLINE vf vf_half(const uint16_t *p)
{
    const __m128i *halves = (const __m128i *)p, *more = (const __m128i *)(p + 8);
    return VF(_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(more)));
}
#define EACH(name, op) \
    INLINE vf name(vf x, vf y) { return VF(op(x.a, y.a), op(x.b, y.b)); }
EACH(vf_add, _mm256_add_ps)
EACH(vf_sub, _mm256_sub_ps)
EACH(vf_mul, _mm256_mul_ps)
EACH(vf_max, _mm256_max_ps)
EACH(vf_min, _mm256_min_ps)
EACH(vf_div, _mm256_div_ps)
INLINE vf vf_abs(vf x)
{
    const __m256 s = _mm256_set1_ps(-0.0f);
    return VF(_mm256_andnot_ps(s, x.a), _mm256_andnot_ps(s, x.b));
}
INLINE vf vf_fma(vf x, vf y, vf z)
{
    return VF(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
INLINE vf vf_fnma(vf x, vf y, vf z)
{
    return VF(_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b));
}
INLINE float vf_sum(vf x)
{
    const __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
INLINE float vf_top(vf x)
{
    float v[16], top;
    vf_store(v, x), top = v[0];
    for (int i = 1; i < 16; i++) top = v[i] > top ? v[i] : top;
    return top;
}
INLINE __m256 lookup_half(const float *t, __m256i i) /* bit 3 chooses the table's half */
{
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(t), i);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(t + 8), i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}
INLINE vf vf_pick(const float *four, vi place) /* low 2 bits */
{
    const __m256 x = _mm256_broadcast_ps((const __m128 *)four);
    return VF(_mm256_permutevar_ps(x, place.a), _mm256_permutevar_ps(x, place.b));
}
INLINE __m256i placed_half(__m256i a, __m256i places, int right, int place)
{
    const __m256i here = _mm256_and_si256(_mm256_srli_epi32(places, right), _mm256_set1_epi32(3));
    return _mm256_and_si256(_mm256_cmpeq_epi32(here, _mm256_set1_epi32(place)), a);
}
INLINE vi vi_placed(vi a, vi places, int right, int place)
{
    return VI(placed_half(a.a, places.a, right, place), placed_half(a.b, places.b, right, place));
}
INLINE vf vf_lookup(const float *table, vi i) { return VF(lookup_half(table, i.a), lookup_half(table, i.b)); }
INLINE vf vf_add_where(vf a, vi bits, int n, vf x)
{
    const vi m = vi_shl(bits, 31 - n); /* the sign bit decides; shifted arithmetically it is a mask */
    return VF(_mm256_add_ps(a.a, _mm256_and_ps(_mm256_castsi256_ps(_mm256_srai_epi32(m.a, 31)), x.a)),
              _mm256_add_ps(a.b, _mm256_and_ps(_mm256_castsi256_ps(_mm256_srai_epi32(m.b, 31)), x.b)));
}
INLINE void vf_to_bytes(int8_t *p, vf x)
{
    const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    const __m256i w = _mm256_permute4x64_epi64(both, 0xd8);
    const __m256i b = _mm256_permute4x64_epi64(_mm256_packs_epi16(w, w), 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(b));
}
INLINE vf vf_round(vf x) { return VF(_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)); }
INLINE __m256 scale_half(__m256 x, __m256 n)
{
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
INLINE vf vf_scale2(vf x, vf n) { return VF(scale_half(x.a, n.a), scale_half(x.b, n.b)); }

#else /* plain C: the compiler finds what vectors it can */
#define INSTRUCTIONS "portable C"
#define TILES 1
#define TOGETHER 4
#define SEVEN_PAY 0
#define LOOK_UP_PAYS 0
#undef UNROLL /* a constant place in a block saves nothing here, and compiling would take minutes */
#define UNROLL(n)
#define TWO_HALVES

typedef struct { uint32_t l[16]; } vi;
typedef struct { float l[16]; } vf;
#define PER_LANE(type, value) \
    type r; \
    for (int i = 0; i < 16; i++) r.l[i] = (value); \
    return r
INLINE vi vi_load(const void *p)
{
    vi r;
    memcpy(&r, p, 64);
    return r;
}
INLINE vi vi_splat(int32_t x) { PER_LANE(vi, (uint32_t)x); }
INLINE vi vi_zero(void) { PER_LANE(vi, 0); }
INLINE vi vi_and(vi x, vi y) { PER_LANE(vi, x.l[i] & y.l[i]); }
INLINE vi vi_or(vi x, vi y) { PER_LANE(vi, x.l[i] | y.l[i]); }
INLINE vi vi_and_or(vi x, vi y, vi z) { PER_LANE(vi, (x.l[i] & y.l[i]) | z.l[i]); }
INLINE vi vi_add(vi x, vi y) { PER_LANE(vi, x.l[i] + y.l[i]); }
INLINE vi vi_shl(vi x, int n) { PER_LANE(vi, x.l[i] << n); }
INLINE vi vi_shr(vi x, int n) { PER_LANE(vi, x.l[i] >> n); }
INLINE vi vi_sar(vi x, int n) { PER_LANE(vi, (uint32_t)((int32_t)x.l[i] >> n)); }
INLINE vi vi_sar_low(vi x, int n) { PER_LANE(vi, (uint32_t)((int32_t)(x.l[i] << 16) >> n)); }
INLINE uint32_t byte_of(uint32_t word, int byte) { return word >> 8 * byte & 255; }
/* The entries of a table that a word's four bytes name, by their low four bits. */
INLINE uint32_t looked_of(const uint8_t *t, uint32_t word)
{
    return t[word & 15] | (uint32_t)t[word >> 8 & 15] << 8 | (uint32_t)t[word >> 16 & 15] << 16 |
           (uint32_t)t[word >> 24 & 15] << 24;
}
INLINE vi vi_dot(vi acc, vi u, const int8_t *x, const int bits)
{
    const int a = x[0], b = x[1], c = x[2], d = x[3];
#define BYTE(k) (int)byte_of(u.l[i], k)
    PER_LANE(vi, acc.l[i] + BYTE(0) * a + BYTE(1) * b + BYTE(2) * c + BYTE(3) * d);
#undef BYTE
}
INLINE vi vi_bytes(const uint8_t *p) { PER_LANE(vi, p[i]); }
INLINE vi vi_signed_bytes(const uint8_t *p) { PER_LANE(vi, (uint32_t)(int8_t)p[i]); }
INLINE vi vi_fourfold(vi x) { PER_LANE(vi, (x.l[i] & 255) * 0x01010101u); }
INLINE vi vi_lookup_bytes(const uint8_t *t, vi x) { PER_LANE(vi, looked_of(t, x.l[i])); }
INLINE vi vi_look(const uint8_t *t, vi x) { PER_LANE(vi, looked_of(t + 16 * (i / 4), x.l[i])); }
/* Two bytes of `low` and `high` from `byte` on, put together to two numbers of 16 bits, are added each by
   itself. */
INLINE uint32_t two_of(uint32_t acc, uint32_t low, uint32_t high, int byte)
{
    const uint32_t a = byte_of(low, byte) | byte_of(high, byte) << 8;
    const uint32_t b = byte_of(low, byte + 1) | byte_of(high, byte + 1) << 8;
    return ((acc + a) & 0xffff) | ((acc >> 16) + b) << 16;
}
INLINE vi add_from(vi acc, vi low, vi high, const int word)
{
#define WORD (i / 4 * 4 + word + i % 4 / 2)
    PER_LANE(vi, two_of(acc.l[i], low.l[WORD], high.l[WORD], i % 2 * 2));
#undef WORD
}
INLINE vi vi_add_first(vi acc, vi low, vi high) { return add_from(acc, low, high, 0); }
INLINE vi vi_add_last(vi acc, vi low, vi high) { return add_from(acc, low, high, 2); }
INLINE int32_t sixteen_of(vi x, int place) { return (int16_t)(x.l[place / 2] >> 16 * (place % 2)); }
INLINE vi vi_sum_runs(vi low_first, vi high_first, vi low_last, vi high_last)
{
    vi r = vi_zero();
    for (int i = 0; i < 32; i++) {
        r.l[i % 8] += sixteen_of(low_first, i) + 8192 * sixteen_of(high_first, i);
        r.l[8 + i % 8] += sixteen_of(low_last, i) + 8192 * sixteen_of(high_last, i);
    }
    return r;
}
INLINE vi vi_sum_low_runs(vi first, vi last)
{
    vi r = vi_zero();
    for (int i = 0; i < 32; i++) r.l[i % 8] += sixteen_of(first, i), r.l[8 + i % 8] += sixteen_of(last, i);
    return r;
}
INLINE void vi_to_bytes(uint8_t *p, vi x)
{
    for (int i = 0; i < 16; i++) p[i] = (uint8_t)x.l[i];
}
INLINE vf vf_of(vi x) { PER_LANE(vf, (float)(int32_t)x.l[i]); }
INLINE vf vf_bits(vi x)
{
    vf r;
    memcpy(&r, &x, 64);
    return r;
}
INLINE vf vf_zero(void) { PER_LANE(vf, 0); }
INLINE vf vf_splat(float x) { PER_LANE(vf, x); }
INLINE vf vf_load(const float *p)
{
    vf r;
    memcpy(&r, p, 64);
    return r;
}
INLINE void vf_store(float *p, vf x) { memcpy(p, &x, 64); }
INLINE vf vf_half(const uint16_t *p) { PER_LANE(vf, half_to_float(p[i])); }
INLINE vf vf_add(vf x, vf y) { PER_LANE(vf, x.l[i] + y.l[i]); }
INLINE vf vf_sub(vf x, vf y) { PER_LANE(vf, x.l[i] - y.l[i]); }
INLINE vf vf_mul(vf x, vf y) { PER_LANE(vf, x.l[i] * y.l[i]); }
INLINE vf vf_div(vf x, vf y) { PER_LANE(vf, x.l[i] / y.l[i]); }
INLINE vf vf_max(vf x, vf y) { PER_LANE(vf, x.l[i] > y.l[i] ? x.l[i] : y.l[i]); }
INLINE vf vf_min(vf x, vf y) { PER_LANE(vf, x.l[i] < y.l[i] ? x.l[i] : y.l[i]); }
INLINE vf vf_abs(vf x) { PER_LANE(vf, fabsf(x.l[i])); }
INLINE vf vf_fma(vf x, vf y, vf z) { PER_LANE(vf, x.l[i] * y.l[i] + z.l[i]); }
INLINE vf vf_fnma(vf x, vf y, vf z) { PER_LANE(vf, z.l[i] - x.l[i] * y.l[i]); }
INLINE float vf_sum(vf x)
{
    float s = 0;
    for (int i = 0; i < 16; i++) s += x.l[i];
    return s;
}
INLINE vf vf_pick(const float *four, vi place) { PER_LANE(vf, four[place.l[i] & 3]); }
INLINE vi vi_placed(vi a, vi places, int right, int place)
{
    PER_LANE(vi, (places.l[i] >> right & 3) == (uint32_t)place ? a.l[i] : 0);
}
INLINE float vf_top(vf x)
{
    float s = x.l[0];
    for (int i = 1; i < 16; i++) s = x.l[i] > s ? x.l[i] : s;
    return s;
}
INLINE vf vf_lookup(const float *t, vi x) { PER_LANE(vf, t[x.l[i] & 15]); }
INLINE vf vf_add_where(vf a, vi bits, int n, vf x)
{
    PER_LANE(vf, a.l[i] + (bits.l[i] >> n & 1 ? x.l[i] : 0));
}
INLINE void vf_to_bytes(int8_t *p, vf x)
{
    for (int i = 0; i < 16; i++) p[i] = (int8_t)rintf(x.l[i]);
}
INLINE vf vf_round(vf x) { PER_LANE(vf, rintf(x.l[i])); }
INLINE vf vf_scale2(vf x, vf n) { PER_LANE(vf, ldexpf(x.l[i], (int)n.l[i])); }
#endif

#ifdef TWO_HALVES /* expansion, for processors that have no instruction for it */
INLINE vi vi_expand_halves(uint32_t mask, const uint16_t *p)
{
    uint16_t out[32];
    for (int i = 0; i < 32; i++) out[i] = mask >> i & 1 ? *p++ : 0;
    return vi_load(out);
}
INLINE vi vi_expand_bytes(uint64_t mask, const uint8_t *p, vi otherwise)
{
    uint8_t out[64];
    memcpy(out, &otherwise, 64);
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) out[i] = *p++;
    return vi_load(out);
}
INLINE vi vi_expand_nibbles(uint64_t mask, const uint8_t *p, const int right, vi otherwise)
{
    uint8_t out[64];
    memcpy(out, &otherwise, 64);
    for (int i = 0, k = 0; i < 64; i++)
        if (mask >> i & 1) out[i] = p[k++] >> right & 15;
    return vi_load(out);
}
#endif

/* e^x for finite x: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (relative error 2e-7); 0 far below,
   large far above. */
INLINE vf vf_exp(vf x)
{
    x = vf_max(vf_splat(-87.0f), vf_min(vf_splat(88.0f), x)); /* in this order a NaN stays one */
    const vf n = vf_round(vf_mul(x, vf_splat(1.44269504f)));
    vf r = vf_fnma(n, vf_splat(0.693359375f), x);
    r = vf_fnma(n, vf_splat(-2.12194440e-4f), r);
    vf p = vf_splat(1.9875691500e-4f);
    p = vf_fma(p, r, vf_splat(1.3981999507e-3f));
    p = vf_fma(p, r, vf_splat(8.3334519073e-3f));
    p = vf_fma(p, r, vf_splat(4.1665795894e-2f));
    p = vf_fma(p, r, vf_splat(1.6666665459e-1f));
    p = vf_fma(p, r, vf_splat(5.0000001201e-1f));
    p = vf_add(vf_fma(vf_mul(r, r), p, r), vf_splat(1.0f));
    return vf_scale2(p, n);
}

#endif

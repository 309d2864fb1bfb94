/* The matrix unit of some processors (AMX): 16 tokens of int8 by 16 rows of codes, 64 columns in one
   instruction. Everywhere else matrix_ready() is the constant 0, and nothing here is called. */

#ifndef MATRIX_H
#define MATRIX_H

#include "vectors.h"

/* What is known of a product when its loop is compiled; 0: only when it runs. */
typedef struct {
    int64_t each, span;            /* blocks of every piece, and of every span */
    int digits, one_unit, centred; /* centred: the signed codes already are the codes less their zero point */
} known;

/* Codes of sixteen tokens, [digits][column / 64][16][64]: each digit is `apart` from the one before. */
typedef struct {
    const int8_t *q;
    int64_t apart;
} sixteen;

#if defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__) && TILES == 2
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether the system lets this process use the unit. It must be asked, and is asked once: it saves the
   unit's registers only for processes that did. */
static int matrix_ready(void)
{
    enum { ASK = 0x1023, TILE_DATA = 18 };
    static int known; /* 1: no, 2: yes */
    int now = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!now) {
        now = syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0 ? 2 : 1;
        __atomic_store_n(&known, now, __ATOMIC_RELAXED);
    }
    return now == 2;
}

/* Shape this thread's registers. 0 to 2 hold sums. 3 and 4 hold tokens and codes of 64 columns, 5 and 6
   those of 32. */
static void matrix_begin(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 32, 64}, {16, 16, 16, 16, 16, 16, 8}};
    _tile_loadconfig(&shape);
}
static void matrix_end(void) { _tile_release(); }

/* Add the products of 64 or of 32 columns to the sums. A register's number is part of an instruction, so
   each width has a function of its own. */
#define MATRIX_ADD(name, tokens, rows) \
    INLINE void name(const int8_t *q, const int64_t apart, const uint8_t *codes, const int digits) \
    { \
        _tile_loadd(rows, codes, 64); \
        _tile_loadd(tokens, q, 64); \
        _tile_dpbssd(0, tokens, rows); \
        if (digits == 1) return; \
        _tile_loadd(tokens, q + apart, 64); \
        _tile_dpbssd(1, tokens, rows); \
        _tile_loadd(tokens, q + 2 * apart, 64); \
        _tile_dpbssd(2, tokens, rows); \
    }
MATRIX_ADD(matrix_two, 3, 4)
MATRIX_ADD(matrix_one, 5, 6)

/* into [digits][16 tokens][16 rows] = the tokens times blocks [first, last) of 32 columns, whose signed
   codes are [column / 4][16][4]. Where every span is known to be two blocks, its first block is even. */
INLINE void matrix_dot(const sixteen t, const uint8_t *codes, int64_t first, int64_t last, int32_t *into,
                       const known k)
{
    __asm__ volatile("" ::: "memory"); /* the instructions below don't say what they read */
    _tile_zero(0);
    if (k.digits == 3) {
        _tile_zero(1);
        _tile_zero(2);
    }
    if (k.each == 2 && k.span == 2) matrix_two(t.q + 512 * first, t.apart, codes, k.digits);
    else
        for (int64_t b = first, count; b < last; b += count, codes += 512 * count) {
            count = b % 2 == 0 && b + 2 <= last ? 2 : 1;
            if (count == 2) matrix_two(t.q + 512 * b, t.apart, codes, k.digits);
            else matrix_one(t.q + 512 * b - 480 * (b % 2), t.apart, codes, k.digits);
        }
    _tile_stored(0, into, 64);
    if (k.digits == 3) {
        _tile_stored(1, into + 256, 64);
        _tile_stored(2, into + 512, 64);
    }
    __asm__ volatile("" ::: "memory");
}

/* `rounds` x 3 products of registers, 16 x 16 x 64 each. The result depends on them, so that none is left
   out. */
INLINE int64_t matrix_rounds(int64_t rounds)
{
    int32_t out[256] = {0};
    matrix_begin();
    for (int64_t r = 0; r < rounds; r++) {
        _tile_dpbssd(0, 3, 4);
        _tile_dpbssd(1, 3, 4);
        _tile_dpbssd(2, 3, 4);
    }
    _tile_stored(0, out, 64);
    matrix_end();
    return out[0];
}
INLINE vi vi_sub_bytes(vi a, vi b) { return _mm512_sub_epi8(a, b); }
INLINE vi vf_to_vi(vf a) { return _mm512_cvtps_epi32(a); } /* whole numbers */
INLINE void vi_store(void *p, vi a) { _mm512_storeu_si512(p, a); }
#else
INLINE int matrix_ready(void) { return 0; }
INLINE void matrix_begin(void) {}
INLINE void matrix_end(void) {}
INLINE void matrix_dot(const sixteen t, const uint8_t *codes, int64_t first, int64_t last, int32_t *into,
                       const known k)
{
}
INLINE int64_t matrix_rounds(int64_t rounds) { return 0; }
INLINE vi vi_sub_bytes(vi a, vi b) { return a; }
INLINE vi vf_to_vi(vf a) { return vi_zero(); }
INLINE void vi_store(void *p, vi a) {}
#endif

#endif

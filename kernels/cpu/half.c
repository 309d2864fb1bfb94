/* 16-bit weights on a processor: y = x W^T with W float16 [out, n] as it is stored, float32 activations and sums.

   Bytes moved: two a weight, half of what a float32 copy would take. A row is read once for up to four tokens. */

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

INLINE void half_row(const _Float16 *w, const float *x, float *y, long n, long ld, const int m)
{
    float total[4] = {0};
    long i = 0;
#ifdef __AVX512F__
    __m512 part[4][2];
    for (int k = 0; k < m; k++) part[k][0] = part[k][1] = _mm512_setzero_ps();
    for (; i + 32 <= n; i += 32) {
        const __m512 a = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(w + i)));
        const __m512 b = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(w + i + 16)));
        for (int k = 0; k < m; k++) {
            part[k][0] = _mm512_fmadd_ps(a, _mm512_loadu_ps(x + k * n + i), part[k][0]);
            part[k][1] = _mm512_fmadd_ps(b, _mm512_loadu_ps(x + k * n + i + 16), part[k][1]);
        }
    }
    for (int k = 0; k < m; k++) total[k] = _mm512_reduce_add_ps(_mm512_add_ps(part[k][0], part[k][1]));
#endif
    for (; i < n; i++)
        for (int k = 0; k < m; k++) total[k] += (float)w[i] * x[k * n + i];
    for (int k = 0; k < m; k++) y[k * ld] = total[k];
}

#define LOOP(m) \
    static void half_##m(const float *x, const _Float16 *w, float *y, long out, long n) \
    { \
        _Pragma("omp parallel for schedule(static)") for (long o = 0; o < out; o++) half_row(w + o * n, x, y + o, n, out, m); \
    }
LOOP(1)
LOOP(4)

/* y[m, out] = x[m, n] W^T. */
void half_product(const float *x, const void *w, float *y, long m, long out, long n)
{
    long k = 0;
    for (; k + 4 <= m; k += 4) half_4(x + k * n, w, y + k * out, out, n);
    for (; k < m; k++) half_1(x + k * n, w, y + k * out, out, n);
}

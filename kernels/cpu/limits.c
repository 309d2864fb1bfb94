/* The most that this processor can multiply, to compare the kernels with: products of registers only. */

#ifdef _OPENMP
#include <omp.h>
#endif

#include "matrix.h"

/* `rounds` x 12 x 64 multiplications and additions of int8 by each thread; returns something that depends
   on them. */
int64_t limit_int8(int64_t rounds, int threads)
{
    int64_t out = 0;
#pragma omp parallel num_threads(threads) reduction(+ : out)
    if (matrix_ready()) out += matrix_rounds(rounds * 12 * 64 / (3 * 16 * 16 * 64));
    else {
        vi acc[12];
        int8_t x[4] = {1, -1, 2, -2};
        for (int i = 0; i < 12; i++) acc[i] = vi_splat(i);
        const vi u = vi_splat(0x01020304);
        for (int64_t r = 0; r < rounds; r++)
            for (int i = 0; i < 12; i++) acc[i] = vi_dot(acc[i], u, x, 8);
        for (int i = 0; i < 12; i++) out += (int64_t)vf_sum(vf_of(acc[i]));
    }
    return out;
}

/* The same with `rounds` x 12 x 16 multiplications and additions of float32. */
int64_t limit_float(int64_t rounds, int threads)
{
    int64_t out = 0;
#pragma omp parallel num_threads(threads) reduction(+ : out)
    {
        vf acc[12];
        const vf a = vf_splat(0.999f), b = vf_splat(0.001f);
        for (int i = 0; i < 12; i++) acc[i] = vf_splat(i);
        for (int64_t r = 0; r < rounds; r++)
            for (int i = 0; i < 12; i++) acc[i] = vf_fma(acc[i], a, b);
        for (int i = 0; i < 12; i++) out += (int64_t)vf_sum(acc[i]);
    }
    return out;
}

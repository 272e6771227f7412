/* What stands between the two products of a feed-forward network, for the rows of a prompt. */

#include "common.h"

/* x (M, F) -> y (M, F), times `gates` (M, F) where there are any; with steps between rows. kind: 0 SiLU, 1 GELU by its hyperbolic tangent. */
EXPORT void salticid_activate(const bfloat16 *x, long x_step, const bfloat16 *gates, long gate_step, long rows, long width, int kind, bfloat16 *y,
                              int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long row = 0; row < rows; row++)
    for (long i = 0; i < width; i += 16) {
      __mmask16 inside = first_of(width - i);
      __m512 result = activated(floats(_mm256_maskz_loadu_epi16(inside, x + row * x_step + i)), kind);
      if (gates) result = _mm512_mul_ps(result, floats(_mm256_maskz_loadu_epi16(inside, gates + row * gate_step + i)));
      _mm256_mask_storeu_epi16(y + row * width + i, inside, halves(result));
    }
}

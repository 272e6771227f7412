/* Attention of one token of each of several rows. */

#include "common.h"

/* q (B, G, N, K) -> y (B, G, N, K): each of B rows' G * N heads over `tokens` tokens. Keys (B, G, K, ...) lie channel by channel, values
   (B, G, ..., K) token by token, with steps between rows, groups, and channels or tokens. mask (B, tokens), added, or NULL. softcap: Gemma 2's bound
   on the scores, or 0. 0: no memory. */
EXPORT int salticid_attend(const bfloat16 *q, const bfloat16 *keys, const long *key_steps, const bfloat16 *values, const long *value_steps,
                           const bfloat16 *mask, long mask_step, const long *sizes, float scale, float softcap, bfloat16 *y, int threads) {
  const long rows = sizes[0], groups = sizes[1], shared = sizes[2], depth = sizes[3], tokens = sizes[4];
  float *weights = aligned_alloc(64, ((size_t)threads * (size_t)(tokens + 128) * sizeof(float) + 63) / 64 * 64);
  if (weights == NULL) return 0;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long head = 0; head < rows * groups * shared; head++) {
    long row = head / (groups * shared), group = head / shared % groups;
    float *own = weights + omp_get_thread_num() * (tokens + 128);
    const bfloat16 *of_row = mask ? mask + row * mask_step : NULL;
    const bfloat16 *own_keys = keys + row * key_steps[0] + group * key_steps[1];
    float total = weigh(q + head * depth, own_keys, key_steps[2], of_row, depth, tokens, scale, softcap, own);
    const bfloat16 *from = values + row * value_steps[0] + group * value_steps[1];
    mix_head(own, total, from, value_steps[2], tokens, depth, y + head * depth);
  }
  free(weights);
  return 1;
}

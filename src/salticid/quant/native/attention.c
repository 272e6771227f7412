/* Attention of one token of each of several rows, and of a prompt. */

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

/* ---- a prompt */

#define QUERIES 4    /* that share what was loaded of keys and values */
#define CHANNELS 80L /* whose sums fill the registers */

/* Scores of four queries over the first `tokens` tokens, `apart` floats from one query's to the next's. */
static void score(const bfloat16 *const q[QUERIES], const bfloat16 *keys, long key_step, long depth, long tokens, float scale, float softcap,
                  float *scores, long apart) {
  for (long start = 0; start < tokens; start += 64) {
    __m512 sums[QUERIES][4];
    __mmask16 inside[4];
    EACH(i, 4) {
      long left = tokens - start - 16 * i;
      inside[i] = left > 0 ? first_of(left) : 0;
      EACH(r, QUERIES) sums[r][i] = _mm512_setzero_ps();
    }
    for (long channel = 0; channel < depth; channel++) {
      __m512 of[4];
      EACH(i, 4) of[i] = floats(_mm256_maskz_loadu_epi16(inside[i], keys + channel * key_step + start + 16 * i));
      EACH(r, QUERIES) {
        __m512 factor = _mm512_set1_ps(to_float(q[r][channel]));
        EACH(i, 4) sums[r][i] = _mm512_fmadd_ps(factor, of[i], sums[r][i]);
      }
    }
    EACH(r, QUERIES) EACH(i, 4) {
      __m512 sum = _mm512_mul_ps(sums[r][i], _mm512_set1_ps(scale));
      if (softcap > 0) sum = _mm512_mul_ps(hyperbolic_tangent(_mm512_div_ps(sum, _mm512_set1_ps(softcap))), _mm512_set1_ps(softcap));
      _mm512_mask_storeu_ps(scores + r * apart + start + 16 * i, inside[i], sum);
    }
  }
}

/* Sixteen channels each of `parts` parts of four weighted sums of values, each divided by its total. */
INLINE void mix_four(const float *weights, long apart, const float totals[QUERIES], const bfloat16 *values, long value_step, long tokens,
                     const int parts, long left, bfloat16 *const y[QUERIES], int rows) {
  __m512 sums[QUERIES][5];
  __mmask16 last = first_of(left - 16 * (parts - 1));
  EACH(r, QUERIES) EACH(i, parts) sums[r][i] = _mm512_setzero_ps();
  for (long token = 0; token < tokens; token++) {
    __m512 of[5];
    EACH(i, parts) of[i] = floats(_mm256_maskz_loadu_epi16(i == parts - 1 ? last : 0xffff, values + token * value_step + 16 * i));
    EACH(r, QUERIES) {
      __m512 weight = _mm512_set1_ps(weights[r * apart + token]);
      EACH(i, parts) sums[r][i] = _mm512_fmadd_ps(weight, of[i], sums[r][i]);
    }
  }
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < parts; i++) {
      float out[16];
      _mm512_storeu_ps(out, _mm512_div_ps(sums[r][i], _mm512_set1_ps(totals[r])));
      write_row(out, NULL, y[r] + 16 * i, i == parts - 1 ? left - 16 * i : 16);
    }
}

/* A function for each number of parts, so that the compiler keeps its sums in registers. */
#define FOR_PARTS(parts)                                                                                                            \
  static __attribute__((noinline)) void mix_four_##parts(const float *weights, long apart, const float totals[QUERIES],             \
                                                         const bfloat16 *values, long value_step, long tokens, long left,           \
                                                         bfloat16 *const y[QUERIES], int rows) {                                    \
    mix_four(weights, apart, totals, values, value_step, tokens, parts, left, y, rows);                                             \
  }
FOR_PARTS(1) FOR_PARTS(2) FOR_PARTS(3) FOR_PARTS(4) FOR_PARTS(5)
#undef FOR_PARTS
typedef void MixFour(const float *, long, const float[QUERIES], const bfloat16 *, long, long, long, bfloat16 *const[QUERIES], int);
static MixFour *const mix_fours[] = {NULL, mix_four_1, mix_four_2, mix_four_3, mix_four_4, mix_four_5};

/* ---- the same by products of pairs of bfloat16, four times as fast on processors that have them

Two channels of a key, or two tokens of a channel's values, must lie side by side: two rows are interleaved as they are read, once for all
queries. Weights are rounded to bfloat16 for it, sums stay float32. */

#pragma GCC push_options
#pragma GCC target("avx512bf16")

#define HALVES 32L /* bfloat16 numbers of a register */

typedef struct {
  __m512i front, back;
} Interleave;

INLINE Interleave interleave(void) {
  uint16_t order[HALVES];
  for (int i = 0; i < HALVES; i++) order[i] = (uint16_t)(i / 2 + i % 2 * HALVES);
  __m512i front = _mm512_loadu_si512(order);
  return (Interleave){front, _mm512_add_epi16(front, _mm512_set1_epi16(HALVES / 2))};
}

INLINE __mmask32 halves_of(long left) { return left >= HALVES ? ~0u : left > 0 ? (1u << left) - 1 : 0; }

/* Reads 32 * `parts` numbers of each of two rows, of which the second may be missing: pairs, in 2 * `parts` registers. */
INLINE void read_pairs(const bfloat16 *row, long step, const __mmask32 inside[3], const int parts, int second, Interleave order, __m512i of[6]) {
  EACH(i, parts) {
    __m512i one = _mm512_maskz_loadu_epi16(inside[i], row + HALVES * i);
    __m512i two = second ? _mm512_maskz_loadu_epi16(inside[i], row + step + HALVES * i) : _mm512_setzero_si512();
    of[2 * i] = _mm512_permutex2var_epi16(one, order.front, two);
    of[2 * i + 1] = _mm512_permutex2var_epi16(one, order.back, two);
  }
}

/* Adds what one pair of each query's factors gives. */
INLINE void add_pairs(const bfloat16 *const factors[QUERIES], long at, const int parts, const __m512i of[6], __m512 sums[QUERIES][6]) {
  EACH(r, QUERIES) {
    int32_t pair;
    memcpy(&pair, factors[r] + at, sizeof pair);
    EACH(i, 2 * parts) sums[r][i] = _mm512_dpbf16_ps(sums[r][i], (__m512bh)_mm512_set1_epi32(pair), (__m512bh)of[i]);
  }
}

/* As `score`, of heads of an even depth. */
static void score_pairs(const bfloat16 *const q[QUERIES], const bfloat16 *keys, long key_step, long depth, long tokens, float scale, float softcap,
                        float *scores, long apart) {
  const Interleave order = interleave();
  for (long start = 0; start < tokens; start += 3 * HALVES) {
    __m512 sums[QUERIES][6];
    __mmask32 inside[3];
    EACH(i, 3) inside[i] = halves_of(tokens - start - HALVES * i);
    EACH(r, QUERIES) EACH(i, 6) sums[r][i] = _mm512_setzero_ps();
    for (long channel = 0; channel < depth; channel += 2) {
      __m512i of[6];
      read_pairs(keys + channel * key_step + start, key_step, inside, 3, 1, order, of);
      add_pairs(q, channel, 3, of, sums);
    }
    EACH(r, QUERIES) EACH(i, 6) {
      long left = tokens - start - 16 * i;
      __m512 sum = _mm512_mul_ps(sums[r][i], _mm512_set1_ps(scale));
      if (softcap > 0) sum = _mm512_mul_ps(hyperbolic_tangent(_mm512_div_ps(sum, _mm512_set1_ps(softcap))), _mm512_set1_ps(softcap));
      _mm512_mask_storeu_ps(scores + r * apart + start + 16 * i, left > 0 ? first_of(left) : 0, sum);
    }
  }
}

/* Up to 32 * `parts` channels of four weighted sums of values, each divided by its total. */
INLINE void mix_pairs(const bfloat16 *const weights[QUERIES], const float totals[QUERIES], const bfloat16 *values, long value_step, long tokens,
                      const int parts, long channels, bfloat16 *const y[QUERIES], int rows) {
  const Interleave order = interleave();
  __m512 sums[QUERIES][6];
  __mmask32 inside[3];
  EACH(i, parts) inside[i] = halves_of(channels - HALVES * i);
  EACH(r, QUERIES) EACH(i, 2 * parts) sums[r][i] = _mm512_setzero_ps();
  long token = 0;
  for (__m512i of[6]; token + 1 < tokens; token += 2) {
    read_pairs(values + token * value_step, value_step, inside, parts, 1, order, of);
    add_pairs(weights, token, parts, of, sums);
  }
  if (token < tokens) {
    __m512i of[6];
    read_pairs(values + token * value_step, 0, inside, parts, 0, order, of);
    add_pairs(weights, token, parts, of, sums);
  }
  EACH(r, QUERIES) EACH(i, 2 * parts) {
    __m256i out = (__m256i)_mm512_cvtneps_pbh(_mm512_div_ps(sums[r][i], _mm512_set1_ps(totals[r])));
    long left = channels - 16 * i;
    if (r < rows && left > 0) _mm256_mask_storeu_epi16(y[r] + 16 * i, first_of(left), out);
  }
}

/* A function for each number of parts, as above. */
#define FOR_PARTS(parts)                                                                                                            \
  static __attribute__((noinline)) void mix_pairs_##parts(const bfloat16 *const weights[QUERIES], const float totals[QUERIES],      \
                                                          const bfloat16 *values, long value_step, long tokens, long channels,      \
                                                          bfloat16 *const y[QUERIES], int rows) {                                   \
    mix_pairs(weights, totals, values, value_step, tokens, parts, channels, y, rows);                                               \
  }
FOR_PARTS(1) FOR_PARTS(2) FOR_PARTS(3)
#undef FOR_PARTS

/* Rounds weights where they lie, to the front of their row, and one zero behind the last. */
static void round_weights(float *weights, long tokens) {
  bfloat16 *to = (bfloat16 *)weights;
  for (long at = 0; at < tokens; at += 16) _mm256_storeu_si256((__m256i *)(to + at), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(weights + at)));
  to[tokens] = 0;
}

static void mix_all_pairs(float *weights, long apart, const float totals[QUERIES], const bfloat16 *values, long value_step, long tokens, long depth,
                          bfloat16 *const y[QUERIES], int rows) {
  const bfloat16 *rounded[QUERIES];
  EACH(r, QUERIES) {
    round_weights(weights + r * apart, tokens);
    rounded[r] = (const bfloat16 *)(weights + r * apart);
  }
  for (long channel = 0, channels; channel < depth; channel += channels) {
    long left = depth - channel;
    channels = left <= 96 ? left : 64;
    bfloat16 *to[QUERIES];
    EACH(r, QUERIES) to[r] = y[r] + channel;
    (channels > 64 ? mix_pairs_3 : channels > 32 ? mix_pairs_2 : mix_pairs_1)(rounded, totals, values + channel, value_step, tokens, channels, to, rows);
  }
}

#pragma GCC pop_options

static int multiplies_pairs(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") != 0;
}

/* ---- the whole */

static void mix_all(const float *weights, long apart, const float totals[QUERIES], const bfloat16 *values, long value_step, long tokens, long depth,
                    bfloat16 *const y[QUERIES], int rows) {
  for (long channel = 0; channel < depth; channel += CHANNELS) {
    long left = depth - channel < CHANNELS ? depth - channel : CHANNELS;
    bfloat16 *to[QUERIES];
    for (int r = 0; r < QUERIES; r++) to[r] = y[r] + channel;
    mix_fours[(left + 15) / 16](weights, apart, totals, values + channel, value_step, tokens, left, to, rows);
  }
}

/* The last T of S tokens of one row over those up to themselves, or over all: q (T, H, K) -> y (T, H, K), heads side by side. Keys (G, K, ...)
   lie channel by channel, values (G, ..., K) token by token, with steps between groups, and channels or tokens. window: how many a token
   sees, itself included, or 0. 0: no memory. */
EXPORT int salticid_attend_prompt(const bfloat16 *q, long q_step, const bfloat16 *keys, const long *key_steps, const bfloat16 *values,
                                  const long *value_steps, const long *sizes, double scale, double softcap, bfloat16 *y, int threads) {
  const long new = sizes[0], whole = sizes[1], heads = sizes[2], groups = sizes[3], depth = sizes[4], window = sizes[5], causal = sizes[6];
  const long blocks = (new + QUERIES - 1) / QUERIES, apart = (whole + 127) / 64 * 64;
  const int pairs = depth % 2 == 0 && multiplies_pairs();
  float *weights = aligned_alloc(64, (size_t)threads * QUERIES * (size_t)apart * sizeof(float));
  if (weights == NULL) return 0;
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
  for (long item = 0; item < heads * blocks; item++) {
    long head = item / blocks, group = head / (heads / groups), start = item % blocks * QUERIES;
    int rows = (int)(new - start < QUERIES ? new - start : QUERIES);
    float *own = weights + omp_get_thread_num() * QUERIES * apart, totals[QUERIES];
    const bfloat16 *queries[QUERIES], *own_keys = keys + group * key_steps[0], *own_values = values + group * value_steps[0];
    long before = causal ? whole - new + start : whole - rows; /* those that the first of the queries sees, less itself */
    long tokens = before + rows, seen = window > 0 && before + 1 > window ? before + 1 - window : 0;
    bfloat16 *to[QUERIES];
    for (int r = 0; r < QUERIES; r++) {
      queries[r] = q + (start + (r < rows ? r : rows - 1)) * q_step + head * depth;
      to[r] = y + ((start + (r < rows ? r : 0)) * heads + head) * depth;
    }
    (pairs ? score_pairs : score)(queries, own_keys + seen, key_steps[1], depth, tokens - seen, (float)scale, (float)softcap, own, apart);
    for (int r = 0; r < QUERIES; r++) {
      long last = causal ? before + (r < rows ? r : rows - 1) + 1 : whole, first = window > 0 && last > window ? last - window : 0;
      totals[r] = soften(own + r * apart, first - seen, last - seen, tokens - seen);
    }
    const bfloat16 *from = own_values + seen * value_steps[1];
    if (pairs)
      mix_all_pairs(own, apart, totals, from, value_steps[1], tokens - seen, depth, to, rows);
    else
      mix_all(own, apart, totals, from, value_steps[1], tokens - seen, depth, to, rows);
  }
  free(weights);
  return 1;
}

/* What the kernels have in common, for processors with AVX-512 and its VNNI and VBMI parts: numbers, activations in 8 bits, a few outputs of
   a product, attention of one head.

Activations are rounded to 8 bits in blocks of 32 inputs with a scale each, so that 64 products are one instruction and weights come in as
fast as memory gives them. Sums within a block are exact; scales are applied in float32. What the formats are is told in `int8.py` and
`int4.py`; what is called from Python, and how, in `__init__.py`.

M rows, K inputs, N outputs, T tiles of 64 outputs, P outputs filled up to whole tiles, G groups of inputs. */

#pragma once

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define BLOCK 32 /* inputs that share a scale; twice as many where there are many rows */
#define TILE 64
#define AHEAD 4096 /* bytes that are fetched before they are needed */

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")
#define INLINE static inline __attribute__((always_inline))
/* Unrolled, so that what an array holds stays in registers. */
#define EACH(i, count) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)

typedef uint16_t bfloat16;

/* ---- numbers */

INLINE float to_float(bfloat16 half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* To the nearest, ties to even; NaN stays NaN. */
INLINE bfloat16 to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bfloat16)(bits >> 16 | 0x40);
  return (bfloat16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Sums and biases, rounded; also what `vcvtneps2bf16` does, on processors that lack it. */
INLINE void write_row(const float *sums, const bfloat16 *bias, bfloat16 *y, long count) {
  for (long n = 0; n < count; n++) y[n] = to_bfloat16(sums[n] + (bias ? to_float(bias[n]) : 0.0f));
}

INLINE __m512 floats(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }

/* Sixteen of them, as `to_bfloat16`. */
INLINE __m256i halves(__m512 values) {
  __m512i bits = _mm512_castps_si512(values), even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
  __mmask16 strange = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, strange, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

INLINE __m512i four_inputs(const int8_t *inputs) {
  int32_t four;
  memcpy(&four, inputs, sizeof four);
  return _mm512_set1_epi32(four);
}

/* As `_mm512_dpbusd_epi32`, for which some compilers copy the sums first. */
INLINE void add_products(__m512i *sums, __m512i unsigned_bytes, __m512i signed_bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(*sums) : "v"(unsigned_bytes), "v"(signed_bytes));
}

/* ---- activations in 8 bits */

/* Rows of `padded` codes, a multiple of 64, of which those behind the row's end are zero; per block a scale, and the scaled sum of codes. */
typedef struct {
  int8_t *codes;
  float *scales, *sums;
  long padded, block, blocks;
} Rounded;

INLINE __m512 sixteen(const bfloat16 *x, long left) {
  return floats(_mm256_maskz_loadu_epi16(left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0, x));
}

/* 0: a value is NaN or infinity. */
INLINE int round_row(const bfloat16 *x, long width, int8_t *codes, float *scales, float *sums, long blocks, const int parts) {
  __mmask16 strange = 0;
  for (long block = 0; block < blocks; block++, x += 16 * parts, width -= 16 * parts) {
    __m512 values[4], largest = _mm512_setzero_ps();
    __m512i total = _mm512_setzero_si512();
    EACH(i, parts) {
      values[i] = sixteen(x + 16 * i, width - 16 * i);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(values[i]));
      strange |= _mm512_fpclass_ps_mask(values[i], 0x99);
    }
    float most = _mm512_reduce_max_ps(largest);
    __m512 inverse = _mm512_set1_ps(most > 1e-30f ? 127.0f / most : 0.0f);
    EACH(i, parts) {
      __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], inverse));
      _mm_storeu_si128((__m128i *)codes, _mm512_cvtsepi32_epi8(rounded));
      total = _mm512_add_epi32(total, rounded);
      codes += 16;
    }
    scales[block] = most / 127.0f;
    sums[block] = scales[block] * (float)_mm512_reduce_add_epi32(total);
  }
  return strange == 0;
}

/* ---- weights in 4 bits */

#define ROWS 4 /* that share what was unpacked */

/* Outputs of one tile for `rows` rows from `row` on. Four inputs of 64 outputs are 128 bytes: two permutations bring the four bytes of each
   pair of outputs side by side, their low halves are one output's codes and their high halves another's. */
INLINE void int4_tile(const Rounded *x, long row, const int rows, const uint8_t *tile, const uint32_t *lines, long filled, long groups,
                      long group, float out[ROWS][TILE]) {
  uint8_t order[64];
  for (int lane = 0; lane < 16; lane++)
    for (int input = 0; input < 4; input++) order[4 * lane + input] = (uint8_t)(32 * input + lane);
  const __m512i front = _mm512_loadu_si512(order), back = _mm512_add_epi8(front, _mm512_set1_epi8(16));
  const __m512i half = _mm512_set1_epi8(15), zero_bits = _mm512_set1_epi32((int)0xffff0000);
  const __m512 middle = _mm512_set1_ps(8.0f);
  __m512 y[ROWS][4];
  EACH(r, rows)
    EACH(i, 4) y[r][i] = _mm512_setzero_ps();
  for (long g = 0; g < groups; g++) {
    __m512 part[ROWS][4], sum[ROWS];
    EACH(r, rows) {
      sum[r] = _mm512_setzero_ps();
      EACH(i, 4) part[r][i] = _mm512_setzero_ps();
    }
    EACH(i, 4) _mm_prefetch((const char *)(lines + (g + 4) * filled + 16 * i), _MM_HINT_T0);
    for (long block = g * group / BLOCK; block < (g + 1) * group / BLOCK; block++) {
      __m512i sums[ROWS][4];
      EACH(r, rows)
        EACH(i, 4) sums[r][i] = _mm512_setzero_si512();
      for (int four = 0; four < BLOCK / 4; four++, tile += 128) {
        _mm_prefetch((const char *)(tile + AHEAD), _MM_HINT_T0);
        _mm_prefetch((const char *)(tile + AHEAD + 64), _MM_HINT_T0);
        __m512i bytes0 = _mm512_loadu_si512(tile), bytes1 = _mm512_loadu_si512(tile + 64);
        __m512i pair0 = _mm512_permutex2var_epi8(bytes0, front, bytes1), pair1 = _mm512_permutex2var_epi8(bytes0, back, bytes1);
        __m512i codes[4] = {_mm512_and_si512(pair0, half), _mm512_and_si512(pair1, half),
                            _mm512_and_si512(_mm512_srli_epi16(pair0, 4), half), _mm512_and_si512(_mm512_srli_epi16(pair1, 4), half)};
        EACH(r, rows) {
          int32_t inputs;
          memcpy(&inputs, x->codes + (row + r) * x->padded + block * BLOCK + 4 * four, sizeof inputs);
          EACH(i, 4) sums[r][i] = _mm512_dpbusd_epi32(sums[r][i], codes[i], _mm512_set1_epi32(inputs));
        }
      }
      EACH(r, rows) {
        long at = (row + r) * x->blocks + block;
        sum[r] = _mm512_add_ps(sum[r], _mm512_set1_ps(x->sums[at]));
        EACH(i, 4) part[r][i] = _mm512_fmadd_ps(_mm512_set1_ps(x->scales[at]), _mm512_cvtepi32_ps(sums[r][i]), part[r][i]);
      }
    }
    EACH(i, 4) { /* sum of ((code - 8) * scale + zero) * x */
      __m512i line = _mm512_loadu_si512(lines + g * filled + 16 * i);
      __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(line, 16)), zero = _mm512_castsi512_ps(_mm512_and_si512(line, zero_bits));
      EACH(r, rows)
        y[r][i] = _mm512_fmadd_ps(zero, sum[r], _mm512_fmadd_ps(scale, _mm512_fnmadd_ps(sum[r], middle, part[r][i]), y[r][i]));
    }
  }
  EACH(r, rows)
    EACH(i, 4) _mm512_storeu_ps(out[r] + 16 * i, y[r][i]);
}

/* ---- weights in 8 bits */

/* One output for one row; outputs one after the other read memory in its order, several at a time would be slower. Weights are made unsigned
   by adding 128, which the callers take away again. */
INLINE float int8_output(const Rounded *x, long row, const int8_t *weight, long width) {
  const int8_t *codes = x->codes + row * x->padded;
  const float *scales = x->scales + row * x->blocks;
  const __m512i flip = _mm512_set1_epi8((char)0x80);
  __m512 sum = _mm512_setzero_ps();
  for (long k = 0; k < width; k += 64) {
    __mmask64 inside = width - k >= 64 ? ~0ull : (1ull << (width - k)) - 1;
    __m512 scale = _mm512_insertf32x8(_mm512_set1_ps(scales[k / BLOCK]), _mm256_set1_ps(scales[k / BLOCK + 1]), 1);
    _mm_prefetch((const char *)(weight + k + AHEAD), _MM_HINT_T0);
    __m512i bytes = _mm512_xor_si512(_mm512_maskz_loadu_epi8(inside, weight + k), flip);
    __m512i products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), bytes, _mm512_loadu_si512(codes + k));
    sum = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(products), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

/* ---- attention of one token */

#define CHANNELS_AHEAD 8 /* that are fetched before they are needed */

INLINE __m512 exponential(__m512 x) {
  __m512 turns = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_fnmadd_ps(turns, _mm512_set1_ps(-2.12194440e-4f), _mm512_fnmadd_ps(turns, _mm512_set1_ps(0.693359375f), x));
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 120));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 24));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 6));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.5f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(sum, turns);
}

INLINE __m512 hyperbolic_tangent(__m512 x) {
  __m512 one = _mm512_set1_ps(1.0f), bound = _mm512_set1_ps(20.0f);
  x = _mm512_max_ps(_mm512_min_ps(x, bound), _mm512_sub_ps(_mm512_setzero_ps(), bound));
  __m512 squared = exponential(_mm512_add_ps(x, x));
  return _mm512_div_ps(_mm512_sub_ps(squared, one), _mm512_add_ps(squared, one));
}

INLINE __m512 activated(__m512 x, int kind) {
  if (kind == 0) { /* SiLU */
    __m512 bounded = _mm512_max_ps(x, _mm512_set1_ps(-80.0f)), one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), bounded))));
  }
  /* GELU by its hyperbolic tangent */
  __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_mul_ps(x, _mm512_set1_ps(0.044715f)));
  __m512 inner = _mm512_mul_ps(_mm512_set1_ps(0.7978845608f), _mm512_add_ps(x, cube));
  return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), _mm512_add_ps(_mm512_set1_ps(1.0f), hyperbolic_tangent(inner)));
}

INLINE __mmask16 first_of(long left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

/* Scores from `first` to before `last` become weights, all others of `tokens` zeros; their sum. */
static inline float soften(float *scores, long first, long last, long tokens) {
  __m512 most = _mm512_set1_ps(-__builtin_inff()), total = _mm512_setzero_ps();
  for (long at = first; at < last; at += 16) {
    __mmask16 inside = first_of(last - at);
    most = _mm512_mask_max_ps(most, inside, most, _mm512_maskz_loadu_ps(inside, scores + at));
  }
  __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  for (long at = first; at < last; at += 16) {
    __mmask16 inside = first_of(last - at);
    __m512 weight = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(inside, scores + at), largest));
    total = _mm512_mask_add_ps(total, inside, total, weight);
    _mm512_mask_storeu_ps(scores + at, inside, weight);
  }
  memset(scores, 0, (size_t)first * sizeof(float));
  memset(scores + last, 0, (size_t)(tokens - last) * sizeof(float));
  return _mm512_reduce_add_ps(total);
}

/* Softmax weights of one head over `tokens` tokens, times their sum, which is returned. Keys lie channel by channel. */
static inline float weigh(const bfloat16 *q, const bfloat16 *keys, long apart, const bfloat16 *mask, long depth, long tokens, float scale,
                   float softcap, float *weights) {
  for (long start = 0; start < tokens; start += 128) {
    __m512 sums[8];
    __mmask16 inside[8];
    EACH(i, 8) {
      long left = tokens - start - 16 * i;
      sums[i] = _mm512_setzero_ps();
      inside[i] = left > 0 ? first_of(left) : 0;
    }
    for (long channel = 0; channel < depth; channel++) {
      __m512 factor = _mm512_set1_ps(to_float(q[channel]));
      EACH(i, 4) _mm_prefetch((const char *)(keys + (channel + CHANNELS_AHEAD) * apart + start + 32 * i), _MM_HINT_T0);
      EACH(i, 8)
        sums[i] = _mm512_fmadd_ps(factor, floats(_mm256_maskz_loadu_epi16(inside[i], keys + channel * apart + start + 16 * i)), sums[i]);
    }
    EACH(i, 8) {
      sums[i] = _mm512_mul_ps(sums[i], _mm512_set1_ps(scale));
      if (softcap > 0) sums[i] = _mm512_mul_ps(hyperbolic_tangent(_mm512_div_ps(sums[i], _mm512_set1_ps(softcap))), _mm512_set1_ps(softcap));
      if (mask) sums[i] = _mm512_add_ps(sums[i], floats(_mm256_maskz_loadu_epi16(inside[i], mask + start + 16 * i)));
      _mm512_mask_storeu_ps(weights + start + 16 * i, inside[i], sums[i]);
    }
  }
  return soften(weights, 0, tokens, tokens);
}

/* Sixteen channels each of `parts` parts of the weighted sum of values. */
INLINE void mix(const float *weights, float total, const bfloat16 *values, long apart, long tokens, const int parts, long left, bfloat16 *y) {
  __m512 sums[8];
  __mmask16 last = first_of(left - 16 * (parts - 1));
  EACH(i, parts) sums[i] = _mm512_setzero_ps();
  for (long token = 0; token < tokens; token++) {
    __m512 weight = _mm512_set1_ps(weights[token]);
    EACH(i, parts) {
      __m256i halves = _mm256_maskz_loadu_epi16(i == parts - 1 ? last : 0xffff, values + token * apart + 16 * i);
      sums[i] = _mm512_fmadd_ps(weight, floats(halves), sums[i]);
    }
  }
  EACH(i, parts) {
    float out[16];
    _mm512_storeu_ps(out, _mm512_div_ps(sums[i], _mm512_set1_ps(total)));
    write_row(out, NULL, y + 16 * i, i == parts - 1 ? left - 16 * i : 16);
  }
}

/* The weighted sum of up to 128 channels of values, divided by the weights' sum. */
static inline void mix_parts(const float *weights, float total, const bfloat16 *values, long apart, long tokens, long channels, bfloat16 *y) {
  switch ((channels + 15) / 16) {
    case 1: mix(weights, total, values, apart, tokens, 1, channels, y); break;
    case 2: mix(weights, total, values, apart, tokens, 2, channels, y); break;
    case 3: mix(weights, total, values, apart, tokens, 3, channels, y); break;
    case 4: mix(weights, total, values, apart, tokens, 4, channels, y); break;
    case 5: mix(weights, total, values, apart, tokens, 5, channels, y); break;
    case 6: mix(weights, total, values, apart, tokens, 6, channels, y); break;
    case 7: mix(weights, total, values, apart, tokens, 7, channels, y); break;
    default: mix(weights, total, values, apart, tokens, 8, channels, y);
  }
}

/* The same for a head of any depth. */
static inline void mix_head(const float *weights, float total, const bfloat16 *values, long apart, long tokens, long depth, bfloat16 *y) {
  for (long channel = 0; channel < depth; channel += 128)
    mix_parts(weights, total, values + channel, apart, tokens, depth - channel < 128 ? depth - channel : 128, y + channel);
}

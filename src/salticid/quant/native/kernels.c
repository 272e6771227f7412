/* Products of a few rows with weights in 8 and 4 bits, for processors with AVX-512 and its VNNI and VBMI parts.

Activations are rounded to 8 bits in blocks of 32 inputs with a scale each, so that 64 products are one instruction and weights come in as
fast as memory gives them. Sums within a block are exact; scales are applied in float32. What the formats are is told in `int8.py` and
`int4.py`; what is called from Python, and how, in `__init__.py`.

M rows, K inputs, N outputs, T tiles of 64 outputs, P outputs filled up to whole tiles, G groups of inputs. */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define BLOCK 32 /* inputs that share a scale; twice as many where there are many rows */
#define TILE 64
#define FEW_INT4 8 /* rows up to which weights are not unpacked into memory */
#define FEW_INT8 20
#define AHEAD 4096 /* bytes that are fetched before they are needed */

#if defined(__x86_64__)
#include <immintrin.h>

typedef uint16_t bfloat16;

EXPORT int salticid_supported(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")
#define INLINE static inline __attribute__((always_inline))
/* Unrolled, so that what an array holds stays in registers. */
#define EACH(i, count) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)

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

static __thread struct {
  void *memory;
  size_t size;
} scratch;

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

/* In blocks of 32, or of 64 for many rows. 0: no memory. A row with NaN or infinity gets NaN for a sum, and so for all its outputs. */
static int round_rows(Rounded *rounded, const bfloat16 *x, long rows, long width, long block, int threads) {
  long padded = (width + 63) / 64 * 64, blocks = padded / block;
  size_t size = (size_t)rows * ((size_t)padded + 2 * (size_t)blocks * sizeof(float));
  if (scratch.size < size) {
    free(scratch.memory);
    scratch.size = 0;
    scratch.memory = aligned_alloc(64, (size + 63) / 64 * 64);
    if (scratch.memory == NULL) return 0;
    scratch.size = size;
  }
  int8_t *codes = scratch.memory;
  float *scales = (float *)(codes + rows * padded), *sums = scales + rows * blocks;
  *rounded = (Rounded){codes, scales, sums, padded, block, blocks};
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > FEW_INT8)
  for (long row = 0; row < rows; row++) {
    const bfloat16 *from = x + row * width;
    int8_t *to = codes + row * padded;
    float *own = scales + row * blocks, *own_sums = sums + row * blocks;
    int finite = block == BLOCK ? round_row(from, width, to, own, own_sums, blocks, 2) : round_row(from, width, to, own, own_sums, blocks, 4);
    if (!finite) own_sums[0] = __builtin_nanf("");
  }
  return 1;
}

/* ---- many rows

A part of the inputs of 64 outputs is unpacked, and all rows are multiplied with it while it lies in the cache. */

#define SHARED 6 /* rows whose sums fill the registers */
#define INPUTS 2048L /* that are unpacked at a time */
#define LINES (INPUTS / BLOCK)
#define AT_A_TIME 512L /* rows */

typedef struct {
  uint8_t codes[INPUTS * TILE]; /* the codes of four inputs side by side, for output after output */
  float scale[LINES][TILE], low[LINES][TILE]; /* of each block: a weight is code * scale + low */
  float y[AT_A_TIME][TILE];
} Bench;

/* Adds to y what `blocks` blocks of inputs from `first` on give `rows` rows from `row` on. */
INLINE void add_blocks(const Rounded *x, long row, const int rows, const long size, long first, long blocks, const Bench *bench, float (*y)[TILE]) {
  const long apart = x->padded, scales_apart = x->blocks;
  const uint8_t *codes = bench->codes;
  const int8_t *inputs = x->codes + row * apart + first * size;
  const float *input_scale = x->scales + row * scales_apart + first, *input_sum = x->sums + row * scales_apart + first;
  for (long block = 0; block < blocks; block++) {
    __m512i sums[SHARED][4];
    EACH(r, rows)
      EACH(i, 4) sums[r][i] = _mm512_setzero_si512();
    for (int four = 0; four < size / 4; four++, codes += 256, inputs += 4) {
      __m512i of[4];
      EACH(i, 4) of[i] = _mm512_loadu_si512(codes + 64 * i);
      EACH(r, rows) {
        __m512i some = four_inputs(inputs + r * apart);
        EACH(i, 4) add_products(&sums[r][i], of[i], some);
      }
    }
    __asm__ volatile("" ::: "memory"); /* or y would be kept in registers that there are not */
    EACH(i, 4) {
      __m512 scale = _mm512_loadu_ps(bench->scale[block] + 16 * i), low = _mm512_loadu_ps(bench->low[block] + 16 * i);
      EACH(r, rows) {
        __m512 sum = _mm512_fmadd_ps(low, _mm512_set1_ps(input_sum[r * scales_apart + block]), _mm512_loadu_ps(y[r] + 16 * i));
        __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(input_scale[r * scales_apart + block]));
        _mm512_storeu_ps(y[r] + 16 * i, _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(sums[r][i]), sum));
      }
    }
  }
}

/* A function for each number of rows, so that the compiler keeps its sums in registers. */
#define FOR_ROWS(rows, size)                                                                                                        \
  static __attribute__((noinline)) void add_##size##_##rows(const Rounded *x, long row, long first, long blocks,                    \
                                                            const Bench *bench, float (*y)[TILE]) {                                 \
    add_blocks(x, row, rows, size, first, blocks, bench, y);                                                                        \
  }
#define FOR_SIZE(size) FOR_ROWS(1, size) FOR_ROWS(2, size) FOR_ROWS(3, size) FOR_ROWS(4, size) FOR_ROWS(5, size) FOR_ROWS(6, size)
FOR_SIZE(32) FOR_SIZE(64)
#undef FOR_SIZE
#undef FOR_ROWS
typedef void AddBlocks(const Rounded *, long, long, long, const Bench *, float (*)[TILE]);
static AddBlocks *const add_32[] = {NULL, add_32_1, add_32_2, add_32_3, add_32_4, add_32_5, add_32_6};
static AddBlocks *const add_64[] = {NULL, add_64_1, add_64_2, add_64_3, add_64_4, add_64_5, add_64_6};

/* Adds to the bench's y what the inputs on it give `rows` rows from `row` on. */
static void add_inputs(Bench *bench, const Rounded *x, long row, long rows, long start, long inputs) {
  AddBlocks *const *add = x->block == BLOCK ? add_32 : add_64;
  for (long r = 0; r < rows; r += SHARED)
    add[rows - r < SHARED ? rows - r : SHARED](x, row + r, start / x->block, inputs / x->block, bench, bench->y + r);
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

#define FOR_ROWS(rows)                                                                                                               \
  static __attribute__((noinline)) void int4_tile_##rows(const Rounded *x, long row, const uint8_t *tile, const uint32_t *lines,    \
                                                         long filled, long groups, long group, float out[ROWS][TILE]) {             \
    int4_tile(x, row, rows, tile, lines, filled, groups, group, out);                                                               \
  }
FOR_ROWS(1) FOR_ROWS(2) FOR_ROWS(3) FOR_ROWS(4)
#undef FOR_ROWS
static void (*const int4_tiles[ROWS + 1])(const Rounded *, long, const uint8_t *, const uint32_t *, long, long, long, float[ROWS][TILE]) = {
    NULL, int4_tile_1, int4_tile_2, int4_tile_3, int4_tile_4};

INLINE void int4_unpack(Bench *bench, const uint8_t *tile, long inputs) {
  uint8_t order[64];
  for (int lane = 0; lane < 16; lane++)
    for (int input = 0; input < 4; input++) order[4 * lane + input] = (uint8_t)(32 * input + lane);
  const __m512i front = _mm512_loadu_si512(order), back = _mm512_add_epi8(front, _mm512_set1_epi8(16)), half = _mm512_set1_epi8(15);
  uint8_t *codes = bench->codes;
  for (long four = 0; four < inputs / 4; four++, tile += 128, codes += 256) {
    _mm_prefetch((const char *)(tile + AHEAD), _MM_HINT_T0);
    _mm_prefetch((const char *)(tile + AHEAD + 64), _MM_HINT_T0);
    __m512i bytes0 = _mm512_loadu_si512(tile), bytes1 = _mm512_loadu_si512(tile + 64);
    __m512i pair0 = _mm512_permutex2var_epi8(bytes0, front, bytes1), pair1 = _mm512_permutex2var_epi8(bytes0, back, bytes1);
    _mm512_storeu_si512(codes, _mm512_and_si512(pair0, half));
    _mm512_storeu_si512(codes + 64, _mm512_and_si512(pair1, half));
    _mm512_storeu_si512(codes + 128, _mm512_and_si512(_mm512_srli_epi16(pair0, 4), half));
    _mm512_storeu_si512(codes + 192, _mm512_and_si512(_mm512_srli_epi16(pair1, 4), half));
  }
}

INLINE void int4_lines(Bench *bench, const uint32_t *lines, long filled, long start, long size, long blocks, long group) {
  for (long block = 0; block < blocks; block++)
    EACH(i, 4) {
      __m512i line = _mm512_loadu_si512(lines + (start + block * size) / group * filled + 16 * i);
      __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(line, 16));
      __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(line, _mm512_set1_epi32((int)0xffff0000)));
      _mm512_storeu_ps(bench->scale[block] + 16 * i, scale);
      _mm512_storeu_ps(bench->low[block] + 16 * i, _mm512_fnmadd_ps(scale, _mm512_set1_ps(8.0f), zero));
    }
}

/* x (M, K), weight (T, K, 32), scale_zero (G, P, 2), bias (N,) or NULL -> y (M, N). 0: no memory. */
EXPORT int salticid_int4_multiply(const bfloat16 *x, long rows, long width, const uint8_t *weight, const uint32_t *scale_zero, long filled,
                                  long group, const bfloat16 *bias, long outputs, bfloat16 *y, int threads) {
  Rounded rounded;
  if (!round_rows(&rounded, x, rows, width, rows > FEW_INT4 && group > BLOCK ? 2 * BLOCK : BLOCK, threads)) return 0;
  Bench *benches = rows > FEW_INT4 ? aligned_alloc(64, (size_t)threads * sizeof(Bench)) : NULL;
  if (rows > FEW_INT4 && benches == NULL) return 0;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long t = 0; t < filled / TILE; t++) {
    const uint8_t *tile = weight + t * width * (TILE / 2);
    const uint32_t *lines = scale_zero + t * TILE;
    const bfloat16 *own_bias = bias ? bias + t * TILE : NULL;
    long columns = outputs - t * TILE < TILE ? outputs - t * TILE : TILE, groups = width / group, step = benches ? AT_A_TIME : ROWS;
    for (long row = 0; row < rows; row += step) {
      float few[ROWS][TILE];
      float(*out)[TILE] = benches ? benches[omp_get_thread_num()].y : few;
      long some = rows - row < step ? rows - row : step;
      if (benches) {
        Bench *bench = benches + omp_get_thread_num();
        memset(bench->y, 0, (size_t)some * sizeof bench->y[0]);
        for (long start = 0; start < width; start += INPUTS) {
          long inputs = width - start < INPUTS ? width - start : INPUTS;
          int4_unpack(bench, tile + start * (TILE / 2), inputs);
          int4_lines(bench, lines, filled, start, rounded.block, inputs / rounded.block, group);
          add_inputs(bench, &rounded, row, some, start, inputs);
        }
      } else {
        int4_tiles[some](&rounded, row, tile, lines, filled, groups, group, out);
      }
      for (long r = 0; r < some; r++) write_row(out[r], own_bias, y + (row + r) * outputs + t * TILE, columns);
    }
  }
  free(benches);
  return 1;
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

/* Inputs of 64 outputs from `weight` on, or of as many as there are, as unsigned codes: four of an output are one element of 32 bits. */
static void int8_unpack(Bench *bench, const int8_t *weight, long width, long outputs, long inputs) {
  int32_t index[TILE];
  for (long i = 0; i < TILE; i++) index[i] = (int32_t)((i < outputs ? i : outputs - 1) * width);
  uint8_t *codes = bench->codes;
  for (long k = 0; k < inputs; k += 4, codes += 256)
    EACH(i, 4) {
      __m512i four = _mm512_i32gather_epi32(_mm512_loadu_si512(index + 16 * i), weight + k, 1);
      _mm512_storeu_si512(codes + 64 * i, _mm512_xor_si512(four, _mm512_set1_epi8((char)0x80)));
    }
}

static int int8_many(const Rounded *x, long rows, long width, const int8_t *weight, const bfloat16 *scale, const bfloat16 *bias, long outputs,
                     bfloat16 *y, int threads) {
  Bench *benches = aligned_alloc(64, (size_t)threads * sizeof(Bench));
  if (benches == NULL) return 0;
#pragma omp parallel num_threads(threads)
  {
    Bench *bench = benches + omp_get_thread_num();
    for (long block = 0; block < LINES; block++)
      for (long n = 0; n < TILE; n++) bench->scale[block][n] = 1.0f, bench->low[block][n] = -128.0f;
#pragma omp for schedule(static)
    for (long t = 0; t < (outputs + TILE - 1) / TILE; t++) {
      long columns = outputs - t * TILE < TILE ? outputs - t * TILE : TILE;
      for (long row = 0; row < rows; row += AT_A_TIME) {
        long some = rows - row < AT_A_TIME ? rows - row : AT_A_TIME;
        memset(bench->y, 0, (size_t)some * sizeof bench->y[0]);
        for (long start = 0; start < width; start += INPUTS) {
          long inputs = width - start < INPUTS ? width - start : INPUTS;
          int8_unpack(bench, weight + t * TILE * width + start, width, columns, inputs);
          add_inputs(bench, x, row, some, start, inputs);
        }
        for (long r = 0; r < some; r++) {
          for (long n = 0; n < columns; n++) bench->y[r][n] *= to_float(scale[t * TILE + n]);
          write_row(bench->y[r], bias ? bias + t * TILE : NULL, y + (row + r) * outputs + t * TILE, columns);
        }
      }
    }
  }
  free(benches);
  return 1;
}

/* x (M, K), weight (N, K), scale (N,), bias (N,) or NULL -> y (M, N). 0: no memory. */
EXPORT int salticid_int8_multiply(const bfloat16 *x, long rows, long width, const int8_t *weight, const bfloat16 *scale, const bfloat16 *bias,
                                  long outputs, bfloat16 *y, int threads) {
  Rounded rounded;
  int many = rows > FEW_INT8 && width % BLOCK == 0 && width < INT32_MAX / TILE;
  if (!round_rows(&rounded, x, rows, width, many && width % (2 * BLOCK) == 0 ? 2 * BLOCK : BLOCK, threads)) return 0;
  if (many)
    return int8_many(&rounded, rows, width, weight, scale, bias, outputs, y, threads);
  for (long row = 0; row < rows; row++) { /* what 128 at every weight adds, into the first of the row's sums */
    float *sums = rounded.sums + row * rounded.blocks;
    for (long block = 1; block < rounded.blocks; block++) sums[0] += sums[block];
    sums[0] *= 128.0f;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long n = 0; n < outputs; n++)
    for (long row = 0; row < rows; row++) {
      float sum = (int8_output(&rounded, row, weight + n * width, width) - rounded.sums[row * rounded.blocks]) * to_float(scale[n]);
      y[row * outputs + n] = to_bfloat16(sum + (bias ? to_float(bias[n]) : 0.0f));
    }
  return 1;
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

INLINE __mmask16 first_of(long left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

/* Softmax weights of one head over `tokens` tokens, times their sum, which is returned. Keys lie channel by channel. */
static float weigh(const bfloat16 *q, const bfloat16 *keys, long apart, const bfloat16 *mask, long depth, long tokens, float scale,
                   float softcap, float *weights) {
  __m512 most = _mm512_set1_ps(-__builtin_inff());
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
      most = _mm512_mask_max_ps(most, inside[i], most, sums[i]);
      _mm512_mask_storeu_ps(weights + start + 16 * i, inside[i], sums[i]);
    }
  }
  __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most)), total = _mm512_setzero_ps();
  for (long start = 0; start < tokens; start += 16) {
    __mmask16 inside = first_of(tokens - start);
    __m512 weight = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(inside, weights + start), largest));
    total = _mm512_mask_add_ps(total, inside, total, weight);
    _mm512_mask_storeu_ps(weights + start, inside, weight);
  }
  return _mm512_reduce_add_ps(total);
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
    for (long channel = 0; channel < depth; channel += 128) {
      const bfloat16 *from = values + row * value_steps[0] + group * value_steps[1] + channel;
      bfloat16 *to = y + head * depth + channel;
      long left = depth - channel < 128 ? depth - channel : 128;
      switch ((left + 15) / 16) {
        case 1: mix(own, total, from, value_steps[2], tokens, 1, left, to); break;
        case 2: mix(own, total, from, value_steps[2], tokens, 2, left, to); break;
        case 3: mix(own, total, from, value_steps[2], tokens, 3, left, to); break;
        case 4: mix(own, total, from, value_steps[2], tokens, 4, left, to); break;
        case 5: mix(own, total, from, value_steps[2], tokens, 5, left, to); break;
        case 6: mix(own, total, from, value_steps[2], tokens, 6, left, to); break;
        case 7: mix(own, total, from, value_steps[2], tokens, 7, left, to); break;
        default: mix(own, total, from, value_steps[2], tokens, 8, left, to);
      }
    }
  }
  free(weights);
  return 1;
}
#pragma GCC pop_options

#else
EXPORT int salticid_supported(void) { return 0; }
#endif

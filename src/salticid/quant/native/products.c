/* Products of rows with weights in 8 and 4 bits. */

#include "common.h"

#define FEW_INT4 8 /* rows up to which weights are not unpacked into memory */
#define FEW_INT8 4

static __thread struct {
  void *memory;
  size_t size;
} scratch;

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

/* 16 rows of 16 elements of 32 bits, turned round. */
INLINE void transpose(const __m512i rows[16], __m512i columns[16]) {
  __m512i pairs[16], fours[16];
  _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) {
    pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
  _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += 4) { /* lane L of fours[i + j]: element 4 L + j of four rows */
    fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
    __m512i front0 = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x44), back0 = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xee);
    __m512i front1 = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x44), back1 = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xee);
    columns[j] = _mm512_shuffle_i32x4(front0, front1, 0x88);
    columns[4 + j] = _mm512_shuffle_i32x4(front0, front1, 0xdd);
    columns[8 + j] = _mm512_shuffle_i32x4(back0, back1, 0x88);
    columns[12 + j] = _mm512_shuffle_i32x4(back0, back1, 0xdd);
  }
}

/* Inputs of 64 outputs from `weight` on, or of as many as there are, as unsigned codes: four of an output are one element of 32 bits. */
static void int8_unpack(Bench *bench, const int8_t *weight, long width, long outputs, long inputs) {
  const __m512i flip = _mm512_set1_epi8((char)0x80);
  for (long k = 0; k < inputs; k += 64) {
    __mmask64 inside = inputs - k >= 64 ? ~0ull : (1ull << (inputs - k)) - 1;
    for (int i = 0; i < 4; i++) {
      __m512i rows[16], columns[16];
      _Pragma("GCC unroll 16") for (long j = 0; j < 16; j++) {
        const int8_t *row = weight + (16 * i + j < outputs ? 16 * i + j : outputs - 1) * width + k;
        _mm_prefetch((const char *)(row + 256), _MM_HINT_T0);
        rows[j] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(inside, row), flip);
      }
      transpose(rows, columns);
      uint8_t *codes = bench->codes + k * TILE + 64 * i;
      if (inputs - k >= 64) {
        _Pragma("GCC unroll 16") for (int j = 0; j < 16; j++) _mm512_storeu_si512(codes + 256 * j, columns[j]);
      } else {
        _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) _mm512_storeu_si512(codes + 256 * j, columns[j]);
      }
    }
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
  int many = rows > FEW_INT8 && width % BLOCK == 0;
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

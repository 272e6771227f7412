/* One token through a whole decoder: from its embedding to the logits of the next word, by threads that meet at a barrier between products.

Between products nothing is called and nobody sleeps, so that memory gives weights without a pause. Tiles are handed out one after the other:
where another program takes a processor away from a thread, the others do its share. The arithmetic is that of `salticid.engine.decoder`, but
for roundings to bfloat16 that it has between operations.

D width, H query heads, G key-value heads, K depth of a head, R of its channels that are turned, F ffn, E experts, V vocabulary. */

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "common.h"

#define MOST_EXPERTS 64
#define SPINS 4000 /* looks at the barrier before another program may have the processor */

/* The structures below are built in `step.py`, field by field. */

typedef struct {
  const float *weight, *bias; /* (D,) each, or NULL */
  double epsilon;
  long kind;  /* 0: none, 1: LayerNorm, 2: RMSNorm */
  long apart; /* from one head's weight to the next, of norms of heads; 0: all have the same */
} Norm;

typedef struct {
  const void *weight, *scales; /* as `products.c` has them */
  const bfloat16 *bias, *input_scale;
  long bits, width, outputs, filled, group;
} Product;

typedef struct {
  Product ups[2], down; /* one up, or gate and up, or one that gives both */
  long count, gated, activation;
} FeedForward;

typedef struct {
  Norm input, query, key, attended[2], second, output;
  Product projections[3], out; /* one projection, or one each for queries, keys and values */
  const FeedForward *networks; /* (max(E, 1),) */
  const float *router;         /* (E, D) */
  double scale, softcap;
  long count, parallel, window, experts, chosen, normalised;
} Layer;

typedef struct {
  const Layer *layers;
  Norm final;
  Product head;
  long count, width, heads, groups, depth, turned, ffn, vocabulary;
} Decoder;

typedef struct {
  const float *x, *cosine, *sine; /* (D,), (R,), (R,): the first half of the sines with its sign changed */
  bfloat16 *keys, *values;        /* (layers, G, K, ...) channel by channel and (layers, G, ..., K) token by token */
  long key_steps[3], value_steps[3], position;
  float *logits; /* (V,) */
} Token;

/* What all threads share. */
typedef struct {
  atomic_long arrived, turn, *taken; /* of each product or attention, how many parts have been handed out */
  float *heads, *attended, *out, *up, *down;
} Shared;

typedef struct {
  float *x, *normed, *other, *weights;
  bfloat16 *halves;
  Rounded rounded;
  long turn, parts;
  int threads;
} Own;

static void meet(Shared *shared, Own *own) {
  long turn = own->turn++;
  if (atomic_fetch_add(&shared->arrived, 1) == own->threads - 1) {
    atomic_store(&shared->arrived, 0);
    atomic_store(&shared->turn, turn + 1);
    return;
  }
  for (long spins = 0; atomic_load_explicit(&shared->turn, memory_order_acquire) == turn; spins++) {
    if (spins < SPINS)
      _mm_pause();
    else
      sched_yield();
  }
}

static long take(Shared *shared, const Own *own) { return atomic_fetch_add_explicit(&shared->taken[own->parts], 1, memory_order_relaxed); }

/* ---- small things that every thread computes for itself */

static void normalise(const Norm *norm, const float *x, long head, long width, float *y) {
  double mean = 0;
  if (norm->kind == 0) {
    memcpy(y, x, (size_t)width * sizeof(float));
    return;
  }
  if (norm->kind == 1) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < width; i++) sum += x[i];
    mean = sum / (double)width;
  }
  float centre = (float)mean, sum = 0;
#pragma omp simd reduction(+ : sum)
  for (long i = 0; i < width; i++) sum += (x[i] - centre) * (x[i] - centre);
  float factor = (float)(1.0 / sqrt((double)sum / (double)width + norm->epsilon));
  const float *weight = norm->weight ? norm->weight + head * norm->apart : NULL;
  for (long i = 0; i < width; i++) {
    float value = (x[i] - centre) * factor;
    y[i] = (weight ? value * weight[i] : value) + (norm->bias ? norm->bias[i] : 0.0f);
  }
}

static void narrow(const float *x, long count, bfloat16 *y) {
  for (long i = 0; i < count; i++) y[i] = to_bfloat16(x[i]);
}

/* Activations for a product, from `own->halves`. */
static void prepare(const Product *product, Own *own) {
  long padded = (product->width + 63) / 64 * 64;
  Rounded *rounded = &own->rounded;
  rounded->padded = padded;
  rounded->blocks = padded / BLOCK;
  rounded->sums = rounded->scales + rounded->blocks;
  const bfloat16 *x = own->halves;
  if (product->input_scale) {
    bfloat16 *scaled = own->halves + padded;
    for (long i = 0; i < product->width; i++) scaled[i] = to_bfloat16(to_float(x[i]) * to_float(product->input_scale[i]));
    x = scaled;
  }
  if (!round_row(x, product->width, rounded->codes, rounded->scales, rounded->sums, rounded->blocks, 2)) rounded->sums[0] = __builtin_nanf("");
}

/* This thread's share of a product of the activations in `own->halves`; nobody may read it before all have met. */
static void multiply(const Product *product, int prepared, Shared *shared, Own *own, float *y) {
  if (!prepared || product->input_scale) prepare(product, own);
  const Rounded *x = &own->rounded;
  float total = 0;
  if (product->bits == 8)
    for (long block = 0; block < x->blocks; block++) total += x->sums[block];
  for (long tile; (tile = take(shared, own)) * TILE < product->outputs;) {
    long first = tile * TILE, columns = product->outputs - first < TILE ? product->outputs - first : TILE;
    float out[ROWS][TILE];
    if (product->bits == 4) {
      const uint8_t *weight = (const uint8_t *)product->weight + tile * product->width * (TILE / 2);
      int4_tile(x, 0, 1, weight, (const uint32_t *)product->scales + first, product->filled, product->width / product->group, product->group, out);
    } else {
      for (long n = 0; n < columns; n++) {
        float sum = int8_output(x, 0, (const int8_t *)product->weight + (first + n) * product->width, product->width);
        out[0][n] = (sum - 128.0f * total) * to_float(((const bfloat16 *)product->scales)[first + n]);
      }
    }
    for (long n = 0; n < columns; n++) y[first + n] = out[0][n] + (product->bias ? to_float(product->bias[first + n]) : 0.0f);
  }
  own->parts++;
}

static void activate(const FeedForward *network, long ffn, const float *up, float *y) {
  const float *gated = network->gated ? up + ffn : NULL;
  for (long i = 0; i < ffn; i += 16) {
    __mmask16 inside = first_of(ffn - i);
    __m512 result = activated(_mm512_maskz_loadu_ps(inside, up + i), (int)network->activation);
    if (gated) result = _mm512_mul_ps(result, _mm512_maskz_loadu_ps(inside, gated + i));
    _mm512_mask_storeu_ps(y + i, inside, result);
  }
}

static void add(float *x, const float *y, float factor, long count) {
  for (long i = 0; i < count; i++) x[i] += factor * y[i];
}

/* ---- the parts of a layer */

/* A head of queries or keys, normalised and turned, in bfloat16. */
static void turn_head(const float *x, const Norm *norm, long head, const Decoder *decoder, const Token *token, float *room, bfloat16 *y) {
  long depth = decoder->depth, turned = decoder->turned, half = turned / 2;
  if (norm->kind) {
    normalise(norm, x, head, depth, room);
    x = room;
  }
  for (long i = 0; i < half; i++) {
    y[i] = to_bfloat16(x[i] * token->cosine[i] + x[i + half] * token->sine[i]);
    y[i + half] = to_bfloat16(x[i + half] * token->cosine[i + half] + x[i] * token->sine[i + half]);
  }
  narrow(x + turned, depth - turned, y + turned);
}

/* This thread's share of the heads: stores the new key and value, and attends. */
static void attend(const Layer *layer, long number, const Decoder *decoder, const Token *token, Shared *shared, Own *own) {
  long depth = decoder->depth, shares = decoder->heads / decoder->groups, tokens = token->position + 1;
  long first = layer->window > 0 && tokens > layer->window ? tokens - layer->window : 0;
  const float *keys = shared->heads + decoder->heads * depth, *values = keys + decoder->groups * depth;
  bfloat16 *turned = own->halves, *mixed = own->halves + depth;
  for (long group; (group = take(shared, own)) < decoder->groups;) {
    bfloat16 *store = token->keys + number * token->key_steps[0] + group * token->key_steps[1];
    bfloat16 *value_store = token->values + number * token->value_steps[0] + group * token->value_steps[1];
    turn_head(keys + group * depth, &layer->key, group, decoder, token, own->other, turned);
    for (long channel = 0; channel < depth; channel++) store[channel * token->key_steps[2] + token->position] = turned[channel];
    narrow(values + group * depth, depth, value_store + token->position * token->value_steps[2]);
    for (long head = group * shares; head < (group + 1) * shares; head++) {
      turn_head(shared->heads + head * depth, &layer->query, head, decoder, token, own->other, turned);
      float total = weigh(turned, store + first, token->key_steps[2], NULL, depth, tokens - first, (float)layer->scale, (float)layer->softcap,
                          own->weights);
      mix_head(own->weights, total, value_store + first * token->value_steps[2], token->value_steps[2], tokens - first, depth, mixed);
      for (long channel = 0; channel < depth; channel++) shared->attended[head * depth + channel] = to_float(mixed[channel]);
    }
  }
  own->parts++;
}

/* Adds `factor` times what a network makes of `own->normed` to y. */
static void run_network(const FeedForward *network, float factor, const Decoder *decoder, Shared *shared, Own *own, float *y) {
  long ffn = network->down.width;
  narrow(own->normed, decoder->width, own->halves);
  float *up = shared->up;
  for (long i = 0; i < network->count; i++) {
    multiply(network->ups + i, i > 0, shared, own, up);
    up += network->ups[i].outputs;
  }
  meet(shared, own);
  activate(network, ffn, shared->up, own->other);
  narrow(own->other, ffn, own->halves);
  multiply(&network->down, 0, shared, own, shared->down);
  meet(shared, own);
  add(y, shared->down, factor, decoder->width);
}

/* The experts that a token visits, the likeliest first, and how much each counts. */
static void route(const Layer *layer, const float *x, long width, long *chosen, float *weights) {
  float scores[MOST_EXPERTS], most = -__builtin_inff(), all = 0, sum = 0;
  for (long expert = 0; expert < layer->experts; expert++) {
    __m512 products = _mm512_setzero_ps();
    for (long i = 0; i < width; i += 16) {
      __mmask16 inside = first_of(width - i);
      const float *weight = layer->router + expert * width + i;
      products = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(inside, x + i), _mm512_maskz_loadu_ps(inside, weight), products);
    }
    scores[expert] = _mm512_reduce_add_ps(products);
    most = scores[expert] > most ? scores[expert] : most;
  }
  for (long expert = 0; expert < layer->experts; expert++) all += scores[expert] = expf(scores[expert] - most);
  for (long choice = 0; choice < layer->chosen; choice++) {
    long best = 0;
    for (long expert = 1; expert < layer->experts; expert++) best = scores[expert] > scores[best] ? expert : best;
    chosen[choice] = best;
    weights[choice] = scores[best] / all;
    sum += weights[choice];
    scores[best] = -1;
  }
  for (long choice = 0; layer->normalised && choice < layer->chosen; choice++) weights[choice] /= sum;
}

static void run_layer(const Layer *layer, long number, const Decoder *decoder, const Token *token, Shared *shared, Own *own) {
  long width = decoder->width, inner = decoder->heads * decoder->depth;
  normalise(&layer->input, own->x, 0, width, own->normed);
  narrow(own->normed, width, own->halves);
  float *heads = shared->heads;
  for (long i = 0; i < layer->count; i++) {
    multiply(layer->projections + i, i > 0, shared, own, heads);
    heads += layer->projections[i].outputs;
  }
  meet(shared, own);
  attend(layer, number, decoder, token, shared, own);
  meet(shared, own);
  narrow(shared->attended, inner, own->halves);
  multiply(&layer->out, 0, shared, own, shared->out);
  meet(shared, own);
  float *attended = shared->out;
  for (int i = 0; i < 2 && layer->attended[i].kind; i++) {
    normalise(layer->attended + i, attended, 0, width, own->other);
    attended = own->other;
  }
  add(own->x, attended, 1.0f, width);
  if (!layer->parallel) normalise(&layer->second, own->x, 0, width, own->normed);
  if (layer->experts == 0 && !layer->output.kind) {
    run_network(layer->networks, 1.0f, decoder, shared, own, own->x);
    return;
  }
  float *sum = own->other + decoder->ffn; /* `other` holds activations meanwhile */
  memset(sum, 0, (size_t)width * sizeof(float));
  long chosen[MOST_EXPERTS] = {0};
  float weights[MOST_EXPERTS] = {1.0f};
  long visits = layer->experts ? layer->chosen : 1;
  if (layer->experts) {
    for (long i = 0; i < width; i++) own->normed[i] = to_float(to_bfloat16(own->normed[i])); /* close choices fall as everywhere else */
    route(layer, own->normed, width, chosen, weights);
  }
  for (long visit = 0; visit < visits; visit++) run_network(layer->networks + chosen[visit], weights[visit], decoder, shared, own, sum);
  if (layer->output.kind) normalise(&layer->output, sum, 0, width, sum);
  add(own->x, sum, 1.0f, width);
}

/* ---- how many threads

Threads that meet a hundred times in a few milliseconds lose more than they give where another program takes one of them off its processor:
then one thread alone is faster. Which it is now, is measured. */

#define SLOW 1.5       /* times the fastest token: something is in the way */
#define TRIED 4        /* tokens by all threads, before they are judged */
#define SHORTEST 8     /* tokens by one thread, before all are tried again */
#define LONGEST 128
#define FORGETS 1.002  /* a text that grows slows every token */

static __thread struct {
  const Decoder *decoder;
  double fastest, together, alone; /* seconds of a token: by all threads, the best and the mean of late; and by one; 0: not known */
  long tried, left, patience;
} pace;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double blend(double mean, double value) { return mean > 0 ? 0.75 * mean + 0.25 * value : value; }

static int choose_threads(const Decoder *decoder, int threads) {
  if (pace.decoder != decoder) {
    memset(&pace, 0, sizeof pace);
    pace.decoder = decoder;
    pace.patience = SHORTEST;
  }
  return pace.left > 0 ? 1 : threads;
}

static void note_time(int alone, double seconds) {
  if (alone) {
    pace.alone = blend(pace.alone, seconds);
    if (--pace.left == 0) pace.tried = 0;
    return;
  }
  pace.fastest = pace.fastest > 0 && pace.fastest * FORGETS < seconds ? pace.fastest * FORGETS : seconds;
  pace.together = blend(pace.tried ? pace.together : 0, seconds);
  if (++pace.tried < TRIED) return;
  if (pace.together < SLOW * pace.fastest) {
    pace.patience = SHORTEST;
  } else if (pace.alone == 0 || pace.alone < pace.together) {
    pace.left = pace.patience;
    pace.patience = pace.patience < LONGEST ? 2 * pace.patience : LONGEST;
  }
}

/* ---- the whole */

static __thread struct {
  char *memory;
  size_t size;
} scratch;

static size_t padded(size_t size) { return (size + 63) / 64 * 64; }

/* Reads one token into the cache, at `position`. 0: no memory. */
EXPORT int salticid_step(const Decoder *decoder, const Token *token, int threads) {
  const int all = threads;
  const double start = now();
  threads = choose_threads(decoder, all);
  const long width = decoder->width, inner = (decoder->heads + 2 * decoder->groups) * decoder->depth, ffn = decoder->ffn;
  const long widest = (width > ffn ? width : ffn) > inner ? (width > ffn ? width : ffn) : inner, tokens = token->position + 1;
  const size_t counters = padded((size_t)(decoder->count * (8 + 3 * MOST_EXPERTS) + 8) * sizeof(atomic_long));
  const size_t common = padded((size_t)(2 * inner + 2 * width + 2 * ffn) * sizeof(float));
  const size_t codes = padded((size_t)widest + 64), blocks = padded(2 * ((size_t)widest / BLOCK + 4) * sizeof(float));
  const size_t floats_ = padded((size_t)(width + widest + 2 * width + ffn + widest + tokens + 192) * sizeof(float));
  const size_t halves = padded(2 * ((size_t)widest + 64) * sizeof(bfloat16));
  const size_t each = codes + blocks + floats_ + halves, size = counters + common + each * (size_t)threads;
  if (scratch.size < size) {
    free(scratch.memory);
    scratch.size = 0;
    scratch.memory = aligned_alloc(64, size);
    if (scratch.memory == NULL) return 0;
    scratch.size = size;
  }
  char *memory = scratch.memory;
  memset(memory, 0, counters);
  Shared shared = {.taken = (atomic_long *)memory};
  shared.heads = (float *)(memory + counters);
  shared.attended = shared.heads + inner;
  shared.out = shared.attended + inner;
  shared.down = shared.out + width;
  shared.up = shared.down + width;
  atomic_init(&shared.arrived, 0);
  atomic_init(&shared.turn, 0);
#pragma omp parallel num_threads(threads)
  {
    char *mine = memory + counters + common + each * (size_t)omp_get_thread_num();
    Own own = {.threads = omp_get_num_threads()};
    own.rounded.codes = (int8_t *)mine;
    own.rounded.scales = (float *)(mine + codes);
    own.rounded.block = BLOCK;
    own.halves = (bfloat16 *)(mine + codes + blocks);
    own.x = (float *)(mine + codes + blocks + halves);
    own.normed = own.x + width;
    own.other = own.normed + widest;
    own.weights = own.other + ffn + widest + 2 * width;
    memcpy(own.x, token->x, (size_t)width * sizeof(float));
    for (long number = 0; number < decoder->count; number++) run_layer(decoder->layers + number, number, decoder, token, &shared, &own);
    normalise(&decoder->final, own.x, 0, width, own.normed);
    narrow(own.normed, width, own.halves);
    multiply(&decoder->head, 0, &shared, &own, token->logits);
  }
  if (all > 1) note_time(threads == 1, now() - start);
  return 1;
}

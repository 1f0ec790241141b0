// Panels of tiles, as tile_product.cpp describes them, and the product of two of them.

#ifndef INTEL_FT_KERNELS_GEMM_PANELS_H_
#define INTEL_FT_KERNELS_GEMM_PANELS_H_

#include <omp.h>

#include "tiles.h"
#include "vectors.h"

static constexpr int64_t PANEL = 32, TILE = 1024, STEP = 2 * TILE;
static constexpr int64_t LINE = 64, AHEAD = 2;  // bytes of a cache line; k-steps

static inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

static inline void fetch_l1(const char* from, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) _mm_prefetch(from + i * LINE, _MM_HINT_T0);
}

static inline void fetch_l2(const char* from, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) _mm_prefetch(from + i * LINE, _MM_HINT_T1);
}

// Fetches an eighth of a k-step of both operands, AHEAD k-steps on, into L1.
static inline void fetch_ahead(const char* a, const char* b, int64_t eighth) {
  fetch_l1(b + AHEAD * STEP, 4 * eighth, 4 * eighth + 4);
  fetch_l1(a + AHEAD * STEP, 4 * eighth, 4 * eighth + 4);
}

// sums [32, 32] (+)= a . b over `steps` k-steps; `next` is fetched into L2, `LINES` lines a step.
//
// In a k-step, eight or more other instructions lie between any two tile instructions. On shared
// hosts, where other work runs on the core's second thread, back-to-back tile instructions take up
// to twice as long (docs/log.md).
template <bool INT8, int64_t LINES>
static inline void multiply_panels(const char* a, const char* b, char* sums, int64_t stride,
                                   int64_t steps, bool first, const char* next) {
#define DOT(sum, x, y)          \
  do {                          \
    if constexpr (INT8)         \
      TILE_DOT_INT8(sum, x, y); \
    else                        \
      TILE_DOT_BF16(sum, x, y); \
  } while (0)
  char* lower = sums + 16 * stride;
  asm volatile("" ::: "memory");  // tile loads do not tell the compiler what they read
  if (first) {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
  } else {
    TILE_LOAD(0, sums, stride);
    TILE_LOAD(1, sums + LINE, stride);
    TILE_LOAD(2, lower, stride);
    TILE_LOAD(3, lower + LINE, stride);
  }
  for (int64_t step = 0; step < steps; ++step) {
    TILE_LOAD(6, b, LINE);
    fetch_ahead(a, b, 0);
    TILE_LOAD(4, a, LINE);
    fetch_ahead(a, b, 1);
    DOT(0, 4, 6);
    fetch_ahead(a, b, 2);
    TILE_LOAD(7, b + TILE, LINE);
    fetch_ahead(a, b, 3);
    DOT(1, 4, 7);
    fetch_ahead(a, b, 4);
    TILE_LOAD(5, a + TILE, LINE);
    fetch_ahead(a, b, 5);
    DOT(2, 5, 6);
    fetch_ahead(a, b, 6);
    fetch_ahead(a, b, 7);
    DOT(3, 5, 7);
    fetch_l2(next, 0, LINES);
    a += STEP, b += STEP, next += LINES * LINE;
  }
  TILE_STORE(0, sums, stride);
  TILE_STORE(1, sums + LINE, stride);
  TILE_STORE(2, lower, stride);
  TILE_STORE(3, lower + LINE, stride);
  asm volatile("" ::: "memory");
#undef DOT
}

// This thread's panels of an operand of `rows` rows, within a parallel region. Whoever reads the
// same matrix shares it out in this way, so that a thread's rows are in its own L2 for the next
// pass.
struct Share {
  int64_t first, last;
  explicit Share(int64_t rows) {
    const int64_t panels = panels_of(rows), thread = omp_get_thread_num();
    const int64_t threads = omp_get_num_threads();
    first = panels * thread / threads;
    last = panels * (thread + 1) / threads;
  }
};

// A panel's first `count` bf16 rows, `inner` long, k-steps [step, step + steps), into `to`; zeros
// beyond the rows' ends. It copies some lines of each row at a time and fetches the next ones.
static inline void copy_panel(const bf16* rows, int64_t count, int64_t inner, int64_t step,
                              int64_t steps, char* to) {
  constexpr int64_t LINES = 8;
  for (int64_t first = step; first < step + steps; first += LINES) {
    const int64_t last = std::min(first + LINES, step + steps);
    for (int64_t r = 0; r < PANEL; ++r)
      for (int64_t k = first; k < last; ++k) {
        const int64_t left = r < count ? inner - k * 32 : 0;
        const bf16* from = rows + r * inner + k * 32;
        _mm_prefetch(reinterpret_cast<const char*>(from) + LINES * LINE, _MM_HINT_T0);
        _mm512_store_si512(to + ((k - step) * PANEL + r) * LINE,
                           _mm512_maskz_loadu_epi16(mask32(left), from));
      }
  }
}

// Sixty-four elements of a row as int8, zeros beyond the row's end.
static inline void quantize_line(const bf16* row, const float* columns, int64_t k, int64_t left,
                                 float inverse, char* to) {
  const __m512 scale = _mm512_set1_ps(inverse);
  __m128i part[4];
  for (int64_t i = 0; i < 4; ++i) {
    const __m512 value = load_scaled(row + k + i * 16, columns, k + i * 16, mask16(left - i * 16));
    part[i] = _mm512_cvtsepi32_epi8(round_to_int(value, scale));
  }
  __m512i line = _mm512_castsi128_si512(part[0]);
  line = _mm512_inserti32x4(line, part[1], 1);
  line = _mm512_inserti32x4(line, part[2], 2);
  _mm512_store_si512(to, _mm512_inserti32x4(line, part[3], 3));
}

#endif  // INTEL_FT_KERNELS_GEMM_PANELS_H_

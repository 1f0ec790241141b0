// Panels of tiles, as tile_product.cpp describes them, and the product of two of them.

#ifndef INTEL_FT_KERNELS_GEMM_PANELS_H_
#define INTEL_FT_KERNELS_GEMM_PANELS_H_

#include <omp.h>

#include "tiles.h"
#include "vectors.h"

static constexpr int64_t PANEL = 32, STEP = 2 * TILE;
static constexpr int64_t AHEAD = 2;  // k-steps

static inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

// GCC removes calls of functions that only prefetch, unless they are inlined at once.
#define FETCHES static inline __attribute__((always_inline)) void

FETCHES fetch_l1(const char* from, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) _mm_prefetch(from + i * LINE, _MM_HINT_T0);
}

FETCHES fetch_l2(const char* from, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) _mm_prefetch(from + i * LINE, _MM_HINT_T1);
}

// What a product of panels fetches into L2: so many lines in each of its k-steps.
struct Fetched {
  const char* from = nullptr;
  int64_t lines = 0;
  void next() {
    fetch_l2(from, 0, lines);
    from += lines * LINE;
  }
};

// The product of panels that a thread computes next, whose sums have the same stride.
struct Following {
  const char *a = nullptr, *b = nullptr, *sums = nullptr;
};

// What one k-step fetches into L1, an eighth at a time: a k-step of both operands, and as many of
// the 32 rows of sums as there are in AHEAD k-steps.
struct Ahead {
  const char *a, *b, *sums;
  int64_t stride;
  __attribute__((always_inline)) void fetch(int64_t eighth) const {
    fetch_l1(b, 4 * eighth, 4 * eighth + 4);
    fetch_l1(a, 4 * eighth, 4 * eighth + 4);
    constexpr int64_t ROWS = PANEL / AHEAD / 8;
    for (int64_t row = ROWS * eighth; sums && row < ROWS * (eighth + 1); ++row)
      fetch_l1(sums + row * stride, 0, 2);
  }
};

// sums [32, 32] (+)= a . b over `steps` k-steps, the last of which fetch what `following` begins
// with.
//
// Loads and products take turns, so that the last product of a k-step comes after the first load of
// the next one, and eight other instructions lie between any two of them. On shared hosts, where
// other work runs on the core's second thread, back-to-back tile instructions take up to twice as
// long (docs/log.md).
template <bool INT8>
static inline void multiply_panels(const char* a, const char* b, char* sums, int64_t stride,
                                   int64_t steps, bool first, Fetched fetched = {},
                                   Following following = {}) {
#define DOT(sum, x, y)          \
  do {                          \
    if constexpr (INT8)         \
      TILE_DOT_INT8(sum, x, y); \
    else                        \
      TILE_DOT_BF16(sum, x, y); \
  } while (0)
  const auto multiply_step = [&](const Ahead& ahead) __attribute__((always_inline)) {
    TILE_LOAD(6, b, LINE);
    ahead.fetch(0);
    DOT(3, 5, 7);
    ahead.fetch(1);
    TILE_LOAD(4, a, LINE);
    ahead.fetch(2);
    DOT(0, 4, 6);
    ahead.fetch(3);
    TILE_LOAD(7, b + TILE, LINE);
    ahead.fetch(4);
    DOT(1, 4, 7);
    ahead.fetch(5);
    fetched.next();
    TILE_LOAD(5, a + TILE, LINE);
    ahead.fetch(6);
    DOT(2, 5, 6);
    ahead.fetch(7);
    a += STEP;
    b += STEP;
  };
  const FourSums four = FourSums::quarters(sums, stride);
  four.open(first);
  TILE_ZERO(5);  // the first step's product of the step before it
  TILE_ZERO(7);
  int64_t step = 0;
  for (; step < (following.a ? steps - AHEAD : steps); ++step)
    multiply_step({a + AHEAD * STEP, b + AHEAD * STEP, nullptr, 0});
  for (; step < steps; ++step) {
    const int64_t after = step + AHEAD - steps;
    multiply_step({following.a + after * STEP, following.b + after * STEP,
                   following.sums + after * (PANEL / AHEAD) * stride, stride});
  }
  DOT(3, 5, 7);
  four.store();
#undef DOT
}

// sums (four tiles) (+)= a [16, 32 * steps] . b of one panel: two tiles of the even k-steps, two of
// the odd ones, so that a product need not wait for the one before it. Unless `wide`, the second
// half of the panel is empty.
static inline void multiply_tile(const char* a, int64_t stride, const char* b, bool wide,
                                 int64_t steps, bool first, char* sums) {
  const FourSums four = FourSums::in_line(sums);
  four.open(first);
  for (int64_t step = 0; step < steps; step += 2, a += 2 * stride, b += 2 * STEP) {
    TILE_LOAD(4, a, LINE);
    fetch_l1(b + 2 * STEP, 0, 16);
    TILE_LOAD(6, b, LINE);
    TILE_DOT_BF16(0, 4, 6);
    if (wide) {
      TILE_LOAD(7, b + TILE, LINE);
      TILE_DOT_BF16(1, 4, 7);
    }
    if (step + 1 == steps) break;
    TILE_LOAD(5, a + stride, LINE);
    fetch_l1(b + 3 * STEP, 0, 16);
    TILE_LOAD(6, b + STEP, LINE);
    TILE_DOT_BF16(2, 5, 6);
    if (wide) {
      TILE_LOAD(7, b + STEP + TILE, LINE);
      TILE_DOT_BF16(3, 5, 7);
    }
  }
  four.store();
}

// Rounds `count` rows of one panel's sums into out [rows, rank], at `left` columns from its end.
static inline void store_sums(const char* sums, int64_t count, int64_t left, int64_t rank,
                              bf16* out) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < 2; ++j) {
      const char* even = sums + j * TILE + i * LINE;
      const __m512 value = _mm512_add_ps(_mm512_load_ps(even), _mm512_load_ps(even + 2 * TILE));
      store_rounded(out + i * rank + j * 16, mask16(left - j * 16), value);
    }
}

// The first `count` of HEIGHT bf16 rows, `inner` long, k-steps [step, step + steps), into `to`,
// where a k-step takes `stride` bytes; zeros beyond the rows' ends. It copies some lines of each
// row at a time and fetches the next ones.
template <int64_t HEIGHT>
static inline void copy_rows(const bf16* rows, int64_t count, int64_t inner, int64_t step,
                             int64_t steps, char* to, int64_t stride) {
  constexpr int64_t LINES = 256 / HEIGHT;
  for (int64_t first = step; first < step + steps; first += LINES) {
    const int64_t last = std::min(first + LINES, step + steps);
    for (int64_t r = 0; r < HEIGHT; ++r)
      for (int64_t k = first; k < last; ++k) {
        const int64_t left = r < count ? inner - k * 32 : 0;
        const bf16* from = rows + r * inner + k * 32;
        _mm_prefetch(reinterpret_cast<const char*>(from) + LINES * LINE, _MM_HINT_T0);
        _mm512_store_si512(to + (k - step) * stride + r * LINE,
                           _mm512_maskz_loadu_epi16(mask32(left), from));
      }
  }
}

// Sixty-four elements of a row as int8, zeros beyond the row's end.
static inline __m512i quantized_line(const bf16* row, const float* columns, int64_t k, int64_t left,
                                     float inverse) {
  const __m512 scale = _mm512_set1_ps(inverse);
  __m128i part[4];
  for (int64_t i = 0; i < 4; ++i) {
    const __m512 value = load_scaled(row + k + i * 16, columns, k + i * 16, mask16(left - i * 16));
    part[i] = _mm512_cvtsepi32_epi8(round_to_int(value, scale));
  }
  __m512i line = _mm512_castsi128_si512(part[0]);
  line = _mm512_inserti32x4(line, part[1], 1);
  line = _mm512_inserti32x4(line, part[2], 2);
  return _mm512_inserti32x4(line, part[3], 3);
}

#endif  // INTEL_FT_KERNELS_GEMM_PANELS_H_

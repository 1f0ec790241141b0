// Products on AMX in int8 over rows that are sorted by expert, each expert with its own matrix.
//
//   forward    out [rows, outputs] = x [rows, inputs] w[e]^T for the expert e of each row
//   backward   out [rows, inputs] = x [rows, outputs] w[e]
//
// x lies in tiles of 16 rows, a row of tiles after another, each with its k-steps of 64. w[e]
// [outputs, inputs] lies in the panels of tile_product.cpp, whose columns are the outputs, so that
// forward multiplies it where it lies. Backward needs the same numbers with four outputs together,
// not four inputs: it transposes blocks of 64 x 64, for 64 columns at a time, into a buffer that
// stays in L2. Both sizes of w are multiples of 64, so that one copy serves both directions.
//
// A task is one expert and a block of columns. While it multiplies one panel by the rows, it
// fetches the part of w that it needs next into L2.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include <algorithm>

#include "panels.h"

extern "C" {

// kernels/gemm/experts.py has the same fields. low_x [rows, rank] times low_w[e] is added, bf16;
// low_w[e] is [columns, rank] if `low_by_column`, else [rank, columns]; rank is a multiple of 32 or
// 0. Bounds, where each expert's rows begin, and the end, are multiples of 16. column_scales
// [experts, columns] may be null.
struct ExpertProduct {
  int64_t experts, columns, inner, rank, backward, low_by_column;
  const int64_t* bounds;
  const char* x;
  const float* row_scales;
  const char* w;
  const float* column_scales;
  const bf16 *low_x, *low_w;
  bf16* out;  // [rows, columns]
};

}  // extern "C"

namespace {

constexpr int64_t BLOCK_COLUMNS = 256, GROUP = 64;
constexpr int64_t PIECE = 8 * LINE;  // fetched into L2 in each k-step

// What to fetch: in k-step i, PIECE bytes from `from` + i * stride.
struct Fetch {
  const char* from;
  int64_t stride;
};

// sums [16 or 32, 32] = a . b over `steps` k-steps, int32; the lower 16 rows of a are `below` bytes
// behind the upper ones, or there are none (0).
void multiply_rows(const char* a, int64_t below, const char* b, int64_t steps, Fetch next,
                   int32_t* sums) {
  const FourSums four = FourSums::quarters(reinterpret_cast<char*>(sums), 4 * PANEL);
  four.open(true);
  for (int64_t step = 0; step < steps; ++step) {
    const char* ahead = b + AHEAD * STEP;
    TILE_LOAD(6, b, LINE);
    TILE_LOAD(4, a, LINE);
    fetch_l1(ahead, 0, 16);
    TILE_DOT_INT8(0, 4, 6);
    TILE_LOAD(7, b + TILE, LINE);
    fetch_l1(ahead, 16, 32);
    TILE_DOT_INT8(1, 4, 7);
    fetch_l2(next.from, 0, PIECE / LINE);
    if (below) {
      TILE_LOAD(5, a + below, LINE);
      TILE_DOT_INT8(2, 5, 6);
      TILE_DOT_INT8(3, 5, 7);
    }
    a += TILE, b += STEP, next.from += next.stride;
  }
  four.store(!below);
}

// sums [16 or 32, 32] float32 = left [.., rank] times the packed panel of low_w.
void multiply_low(const bf16* left, int64_t rank, bool two, const char* packed, float* sums) {
  const FourSums four = FourSums::quarters(reinterpret_cast<char*>(sums), 4 * PANEL);
  four.open(true);
  for (int64_t k = 0; k < rank; k += 32, packed += STEP) {
    TILE_LOAD(6, packed, LINE);
    TILE_LOAD(7, packed + TILE, LINE);
    TILE_LOAD(4, left + k, 2 * rank);
    TILE_DOT_BF16(0, 4, 6);
    TILE_DOT_BF16(1, 4, 7);
    if (two) {
      TILE_LOAD(5, left + 16 * rank + k, 2 * rank);
      TILE_DOT_BF16(2, 5, 6);
      TILE_DOT_BF16(3, 5, 7);
    }
  }
  four.store(!two);
}

// A block of 64 outputs and 64 inputs: four tiles of two panels, `between` bytes apart, become the
// four tiles of one k-step of two panels of inputs, which are `apart` bytes apart.
void transpose_block(const char* from, int64_t between, char* to, int64_t apart) {
  for (int64_t panel = 0; panel < 2; ++panel)
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t rows = 0; rows < 4; ++rows)  // sixteen inputs
        transpose_squares(from + panel * between + half * TILE + rows * 4 * LINE, LINE,
                          to + rows / 2 * apart + rows % 2 * TILE + (8 * panel + 4 * half) * LINE,
                          LINE);
}

// 16 numbers as the lower halves of 32 bits.
inline __m512i widened(const bf16* in) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
}

// The panel of low_w that starts at `column` of expert e: pairs along the rank together.
void pack_low(const ExpertProduct& p, int64_t e, int64_t column, char* to) {
  const bf16* w = p.low_w + e * p.columns * p.rank;
  const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i pairs_before = _mm512_mullo_epi32(numbers, _mm512_set1_epi32(int(p.rank / 2)));
  for (int64_t k = 0; k < p.rank; k += 32)
    for (int64_t first = column; first < column + PANEL; first += 16)
      for (int64_t i = k; i < k + 32; i += 2, to += LINE) {
        __m512i line;
        if (p.low_by_column) {
          line = _mm512_i32gather_epi32(pairs_before, w + first * p.rank + i, 4);
        } else {
          const bf16* in = w + i * p.columns + first;
          line = _mm512_or_si512(widened(in), _mm512_slli_epi32(widened(in + p.columns), 16));
        }
        _mm512_storeu_si512(to, line);
      }
}

struct Buffers {
  char *transposed, *low;
  int32_t* sums;
  float* added;
};

// Scales the sums, adds LoRA's part and rounds to bf16.
void store_rows(const ExpertProduct& p, int64_t e, int64_t row, int64_t rows, int64_t column,
                const Buffers& at) {
  __m512 first = _mm512_set1_ps(1), second = first;
  if (p.column_scales) {
    first = _mm512_loadu_ps(p.column_scales + e * p.columns + column);
    second = _mm512_loadu_ps(p.column_scales + e * p.columns + column + 16);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const __m512 scale = _mm512_set1_ps(p.row_scales[row + i]);
    const int32_t* in = at.sums + i * PANEL;
    const float* more = at.added + i * PANEL;
    __m512 low =
        _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(in)), _mm512_mul_ps(scale, first));
    __m512 high = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(in + 16)),
                                _mm512_mul_ps(scale, second));
    if (p.rank) {
      low = _mm512_add_ps(low, _mm512_loadu_ps(more));
      high = _mm512_add_ps(high, _mm512_loadu_ps(more + 16));
    }
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(low)), to_bf16(high), 1);
    _mm512_storeu_si512(p.out + (row + i) * p.columns + column, both);
  }
}

// Multiplies the rows of expert e by one panel. fetched: the part of w that is needed next, 2 KiB
// for each k-step and half of the panel.
void multiply_panel(const ExpertProduct& p, int64_t e, int64_t column, const char* panel,
                    const char* fetched, int64_t stride, const Buffers& at) {
  const int64_t steps = p.inner / 64;
  if (p.rank) pack_low(p, e, column, at.low);
  int64_t call = 0;
  for (int64_t row = p.bounds[e]; row < p.bounds[e + 1]; row += PANEL, ++call) {
    const int64_t rows = std::min(PANEL, p.bounds[e + 1] - row);
    const char* a = p.x + row / 16 * steps * TILE;
    const bool fetches = fetched && call < STEP / PIECE;
    const Fetch next = fetches ? Fetch{fetched + call * PIECE, stride} : Fetch{a, 0};
    multiply_rows(a, rows > 16 ? steps * TILE : 0, panel, steps, next, at.sums);
    if (p.rank) multiply_low(p.low_x + row * p.rank, p.rank, rows > 16, at.low, at.added);
    store_rows(p, e, row, rows, column, at);
  }
}

void forward_task(const ExpertProduct& p, int64_t e, int64_t first, int64_t last,
                  const Buffers& at) {
  const int64_t bytes = PANEL * p.inner;
  const char* panel = p.w + e * p.columns * p.inner + first * p.inner;
  for (int64_t column = first; column < last; column += PANEL, panel += bytes)
    multiply_panel(p, e, column, panel, column + PANEL < last ? panel + bytes : nullptr, STEP, at);
}

void backward_task(const ExpertProduct& p, int64_t e, int64_t first, int64_t last,
                   const Buffers& at) {
  const int64_t between = p.columns / 64 * STEP;  // bytes of a panel of w, whose k are our columns
  const int64_t apart = p.inner / 64 * STEP;      // and of a transposed one
  for (int64_t column = first; column < last; column += GROUP) {
    const char* from = p.w + e * p.columns * p.inner + column / 64 * STEP;
    for (int64_t k = 0; k < p.inner / 64; ++k)
      transpose_block(from + 2 * k * between, between, at.transposed + k * STEP, apart);
    const char* next = column + GROUP < last ? from + STEP : nullptr;
    for (int64_t half = 0; half < 2; ++half)
      multiply_panel(p, e, column + half * PANEL, at.transposed + half * apart,
                     next ? next + half * between : nullptr, 2 * between, at);
  }
}

}  // namespace

extern "C" {

void expert_multiply(const ExpertProduct* product, int threads) {
  const ExpertProduct& p = *product;
  const int64_t blocks = (p.columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
  const int64_t transposed = p.backward ? GROUP * p.inner : 0, low = p.rank / 32 * STEP;
#pragma omp parallel num_threads(threads)
  {
    // The prefetches of b go two k-steps beyond a panel's end.
    char* data = thread_scratch(transposed + AHEAD * STEP + low + 2 * 4 * PANEL * PANEL);
    char* sums = data + transposed + AHEAD * STEP + low;
    const Buffers at = {data, sums - low, reinterpret_cast<int32_t*>(sums),
                        reinterpret_cast<float*>(sums + 4 * PANEL * PANEL)};
    tile_configure();
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < p.experts * blocks; ++task) {
      const int64_t e = task / blocks, first = task % blocks * BLOCK_COLUMNS;
      if (p.bounds[e] == p.bounds[e + 1]) continue;
      const int64_t last = std::min(p.columns, first + BLOCK_COLUMNS);
      if (p.backward)
        backward_task(p, e, first, last, at);
      else
        forward_task(p, e, first, last, at);
    }
    TILE_RELEASE();
  }
}

// x [rows, inner], bf16, times the columns [experts, inner] of each row's expert (or null), rounded
// to int8 with one scale for each row, in tiles of 16 rows. inner is a multiple of 64.
void expert_quantize(const bf16* x, const float* columns, const int64_t* bounds, int64_t experts,
                     int64_t inner, char* out, float* scales, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t first = 0; first < bounds[experts]; first += 16) {
    const int64_t e = std::upper_bound(bounds, bounds + experts, first) - bounds - 1;
    const float* own = columns ? columns + e * inner : nullptr;
    const bf16* from = x + first * inner;
    char* to = out + first * inner;
    float inverse[16];
    for (int64_t r = 0; r < 16; ++r) {
      const float largest = largest_of(from + r * inner, own, inner);
      scales[first + r] = largest / 127;
      inverse[r] = largest > 0 ? 127 / largest : 0;
    }
    for (int64_t k = 0; k < inner; k += 64)
      for (int64_t r = 0; r < 16; ++r, to += LINE)
        quantize_line(from + r * inner, own, k, 64, inverse[r], to);
  }
}

}  // extern "C"

#endif

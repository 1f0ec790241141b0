// The gradient of LoRA's matrices on AMX, in bf16: left [rows, rank] transposed times x [rows,
// columns]. It is bound by reading x, once.
//
// It sums up over rows, so a thread takes a strip of x's columns, and lays pairs of rows side by
// side, a chunk of rows at a time. The left operand, transposed, lies in tiles of 16 ranks by 32
// rows, all of one group of ranks after each other.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include "panels.h"

namespace {

constexpr int64_t STRIP = 128, HALF = STRIP / 2;  // columns of x, and those of four tiles
constexpr int64_t DEPTH = 8;                      // k-steps of 32 rows of a chunk

// Rows `row` to `row` + 31 of x from column `column` on, in four tiles of 16 columns (the first
// pair in order 0-3, 8-11, 16-19, 24-27 and 4-7, 12-15, ...; so is the second), zeros beyond x.
void pair_rows(const bf16* x, int64_t rows, int64_t columns, int64_t row, int64_t column,
               char* to) {
  for (int64_t half = 0; half < 2; ++half) {
    const __mmask32 mask = mask32(columns - column - half * 32);
    for (int64_t i = 0; i < 32; i += 2) {
      const bf16* from = x + (row + i) * columns + column + half * 32;
      _mm_prefetch(reinterpret_cast<const char*>(from + 32 * columns), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(from + 33 * columns), _MM_HINT_T0);
      const __m512i even = _mm512_maskz_loadu_epi16(row + i < rows ? mask : 0, from);
      const __m512i odd = _mm512_maskz_loadu_epi16(row + i + 1 < rows ? mask : 0, from + columns);
      char* at = to + half * 2 * TILE + i * 32;
      _mm512_store_si512(at, _mm512_unpacklo_epi16(even, odd));
      _mm512_store_si512(at + TILE, _mm512_unpackhi_epi16(even, odd));
    }
  }
}

// sums [four tiles] (+)= left [16 ranks, 32 * steps] . right [32 * steps, four tiles of columns].
void multiply_tiles(const char* left, const char* right, int64_t steps, bool first, char* sums) {
  const FourSums four = FourSums::in_line(sums);
  four.open(first);
  for (int64_t step = 0; step < steps; ++step, left += TILE, right += 4 * TILE) {
    TILE_LOAD(4, left, LINE);
    TILE_LOAD(5, right, LINE);
    TILE_DOT_BF16(0, 4, 5);
    TILE_LOAD(6, right + TILE, LINE);
    TILE_DOT_BF16(1, 4, 6);
    TILE_LOAD(7, right + 2 * TILE, LINE);
    TILE_DOT_BF16(2, 4, 7);
    TILE_LOAD(5, right + 3 * TILE, LINE);
    TILE_DOT_BF16(3, 4, 5);
  }
  four.store();
}

// Writes the sums of up to 16 ranks and HALF columns, whose order it puts right, times `scale`.
void store_gradient(const char* sums, int64_t ranks, int64_t columns, float scale, float* out,
                    int64_t rank_stride, int64_t column_stride) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  alignas(64) float line[HALF];
  for (int64_t i = 0; i < ranks; ++i) {
    for (int64_t half = 0; half < 2; ++half) {
      const char* from = sums + half * 2 * TILE + i * LINE;
      const __m512 first = _mm512_load_ps(from), second = _mm512_load_ps(from + TILE);
      _mm512_store_ps(line + half * 32, _mm512_permutex2var_ps(first, low, second));
      _mm512_store_ps(line + half * 32 + 16, _mm512_permutex2var_ps(first, high, second));
    }
    for (int64_t j = 0; j < std::min(HALF, columns); ++j)
      out[i * rank_stride + j * column_stride] = line[j] * scale;
  }
}

}  // namespace

extern "C" {

// out, float32 with these strides in elements, = scale * left [rows, rank] transposed times x
// [rows, columns]; kernels/gemm/narrow.py has the same fields. `tiles` has room for left in tiles.
struct NarrowGradient {
  int64_t rows, rank, columns, rank_stride, column_stride;
  const bf16 *left, *x;
  char* tiles;
  float* out;
  float scale;
  int64_t groups() const { return (rank + 15) / 16; }
  int64_t steps() const { return (rows + 31) / 32; }
};

}  // extern "C"

namespace {

// The transposed left operand of one k-step, in tiles.
void pack_left(const NarrowGradient& p, int64_t step) {
  for (int64_t i = 0; i < p.groups() * 16; ++i) {
    bf16* to = reinterpret_cast<bf16*>(p.tiles + (i / 16 * p.steps() + step) * TILE) + i % 16 * 32;
    for (int64_t j = 0; j < 32; ++j) {
      const int64_t row = step * 32 + j;
      to[j] = i < p.rank && row < p.rows ? p.left[row * p.rank + i] : bf16{0};
    }
  }
}

constexpr int64_t PAIRED = DEPTH * 4 * TILE;  // bytes of a strip's chunk

void multiply_strip(const NarrowGradient& p, int64_t column, char* scratch) {
  const int64_t groups = p.groups();
  char* sums = scratch + PAIRED;
  for (int64_t step = 0; step < p.steps(); step += DEPTH) {
    const int64_t count = std::min(DEPTH, p.steps() - step);
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t k = 0; k < count; ++k)
        pair_rows(p.x, p.rows, p.columns, (step + k) * 32, column + half * HALF,
                  scratch + k * 4 * TILE);
      for (int64_t i = 0; i < groups; ++i)
        multiply_tiles(p.tiles + (i * p.steps() + step) * TILE, scratch, count, step == 0,
                       sums + (half * groups + i) * 4 * TILE);
    }
  }
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t at = column + half * HALF;
      store_gradient(sums + (half * groups + i) * 4 * TILE, std::min<int64_t>(16, p.rank - i * 16),
                     p.columns - at, p.scale, p.out + i * 16 * p.rank_stride + at * p.column_stride,
                     p.rank_stride, p.column_stride);
    }
}

}  // namespace

extern "C" {

void narrow_gradients(const NarrowGradient* gradients, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
  {
    int64_t groups = 0;
    for (int64_t i = 0; i < count; ++i) groups = std::max(groups, gradients[i].groups());
    char* scratch = thread_scratch(PAIRED + 2 * groups * 4 * TILE);
    tile_configure();
    for (int64_t i = 0; i < count; ++i) {
#pragma omp for schedule(static) nowait
      for (int64_t step = 0; step < gradients[i].steps(); ++step) pack_left(gradients[i], step);
    }
#pragma omp barrier
    for (int64_t i = 0; i < count; ++i) {
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t column = 0; column < gradients[i].columns; column += STRIP)
        multiply_strip(gradients[i], column, scratch);
    }
    TILE_RELEASE();
  }
}

}  // extern "C"

#endif

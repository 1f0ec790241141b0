// Products of a frozen matrix on AMX: out [rows, columns] = x [rows, inner] times w [columns,
// inner] transposed, bf16, or int8 with one scale for each row and each column.
//
// Both operands lie in tiles. A panel is 32 rows (of x, or of w: the output's columns); its k-steps
// follow each other, 64 bytes of each row (32 elements of bf16, 64 of int8), two tiles of 1 KiB:
//
//   x   tile i has 16 rows, each 64 bytes of one row of x
//   w   tile i has 16 columns: its row r has elements 4r to 4r+3 (int8; bf16 2r, 2r+1) of each
//
// so that one k-step of a panel of x and one of a panel of w are four tile products for 32 x 32
// outputs. A thread takes one block of the output after another and keeps its sums in float32
// (int32) in L2. It goes through k in chunks, so that the panels' chunks stay in L2, too. While it
// multiplies one chunk, it fetches the panels of the next one, of this block or the next, into L2,
// and w two k-steps ahead into L1.
//
// An addition of low rank, low_x [rows, rank] times low_w [columns, rank] transposed (LoRA's), in
// bf16 tiles, is a few more k-steps of each block. Then the block is scaled, bias and residual are
// added, and it is rounded to bf16 once.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include <atomic>

#include "tiles.h"
#include "vectors.h"

namespace {

constexpr int64_t PANEL = 32, TILE = 1024, STEP = 2 * TILE;
constexpr int64_t LINE = 64, AHEAD = 2;  // bytes of a cache line; k-steps

inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

inline void fetch_l1(const char* from, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) _mm_prefetch(from + i * LINE, _MM_HINT_T0);
}

inline void fetch_l2(const char* from, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) _mm_prefetch(from + i * LINE, _MM_HINT_T1);
}

// sums [32, 32] (+)= a . b over `steps` k-steps; `next` is fetched into L2, `LINES` lines a step.
template <bool INT8, int64_t LINES>
inline void multiply_panels(const char* a, const char* b, char* sums, int64_t stride, int64_t steps,
                            bool first, const char* next) {
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
    const char* ahead = b + AHEAD * STEP;
    TILE_LOAD(6, b, LINE);
    TILE_LOAD(4, a, LINE);
    fetch_l1(ahead, 0, 8);
    DOT(0, 4, 6);
    TILE_LOAD(7, b + TILE, LINE);
    fetch_l1(ahead, 8, 16);
    DOT(1, 4, 7);
    TILE_LOAD(5, a + TILE, LINE);
    fetch_l1(ahead, 16, 24);
    fetch_l2(next, 0, LINES / 2);
    DOT(2, 5, 6);
    fetch_l1(ahead, 24, 32);
    fetch_l2(next, LINES / 2, LINES);
    DOT(3, 5, 7);
    a += STEP, b += STEP, next += LINES * LINE;
  }
  TILE_STORE(0, sums, stride);
  TILE_STORE(1, sums + LINE, stride);
  TILE_STORE(2, lower, stride);
  TILE_STORE(3, lower + LINE, stride);
  asm volatile("" ::: "memory");
#undef DOT
}

constexpr int64_t NEXT_LINES = 8;  // fetched into L2 in each k-step

}  // namespace

extern "C" {

// What tile_multiply computes; kernels/gemm/tiles.py has the same fields. Pointers may be null
// where a product has no such part. int8 has both kinds of scales, bf16 neither.
struct TileProduct {
  int64_t rows, columns, steps, low_steps;
  const char *x, *w, *low_x, *low_w;
  const float *row_scales, *column_scales;
  const bf16 *bias, *residual;  // [columns]; [rows, columns], which may be out
  bf16* out;                    // [rows, columns]
};

}  // extern "C"

namespace {

// Panels of a block, and k-steps of a chunk.
struct Blocking {
  int64_t rows, columns, steps;
  // Bytes between rows of a block's sums: no power of two, so that the rows of a tile fall into
  // different sets of a cache.
  int64_t stride() const { return columns * PANEL * 4 + LINE; }
};

// A block of the output and a range of k-steps.
struct Chunk {
  int64_t row, rows, column, columns;  // panels
  int64_t step, steps;
};

class Blocks {
 public:
  Blocks(const TileProduct& product, const Blocking& size)
      : rows_(panels_of(product.rows)),
        columns_(panels_of(product.columns)),
        steps_(product.steps),
        size_(size),
        down_((rows_ + size.rows - 1) / size.rows),
        count_(down_ * ((columns_ + size.columns - 1) / size.columns)) {}

  int64_t take() { return next_++; }
  bool has(int64_t block) const { return block < count_; }

  Chunk first(int64_t block) const {
    const int64_t row = block % down_ * size_.rows, column = block / down_ * size_.columns;
    const int64_t rows = std::min(size_.rows, rows_ - row);
    const int64_t columns = std::min(size_.columns, columns_ - column);
    return {row, rows, column, columns, 0, std::min(size_.steps, steps_)};
  }

  // Moves on to the block's next chunk; false after its last one.
  bool advance(Chunk* chunk) const {
    chunk->step += chunk->steps;
    chunk->steps = std::min(size_.steps, steps_ - chunk->step);
    return chunk->steps > 0;
  }

 private:
  int64_t rows_, columns_, steps_;
  Blocking size_;
  int64_t down_, count_;
  std::atomic<int64_t> next_{0};
};

inline const char* panel_at(const char* operand, int64_t panel, int64_t steps, int64_t step) {
  return operand + (panel * steps + step) * STEP;
}

// A thread's sums of one block.
struct Sums {
  char* data;
  int64_t stride;
  char* at(int64_t row, int64_t column) const { return data + row * stride + column * 4; }
  char* panel(int64_t row, int64_t column) const { return at(row * PANEL, column * PANEL); }
};

template <bool INT8>
void multiply_chunk(const TileProduct& p, const Chunk& now, const Chunk* next, Sums sums) {
  // Each call below fetches a piece of a panel of the next chunk.
  const int64_t panels = now.rows + now.columns, calls = now.rows * now.columns;
  const int64_t pieces = std::max<int64_t>(1, calls / panels);
  int64_t call = 0;
  for (int64_t row = 0; row < now.rows; ++row) {
    const char* a = panel_at(p.x, now.row + row, p.steps, now.step);
    for (int64_t column = 0; column < now.columns; ++column, ++call) {
      const char* b = panel_at(p.w, now.column + column, p.steps, now.step);
      const char* fetched = a;
      const int64_t panel = call / pieces, piece = call % pieces;
      if (next && panel < next->rows + next->columns) {
        fetched = panel < next->columns
                      ? panel_at(p.w, next->column + panel, p.steps, next->step)
                      : panel_at(p.x, next->row + panel - next->columns, p.steps, next->step);
        fetched += piece * (next->steps * STEP / pieces / LINE) * LINE;
      }
      multiply_panels<INT8, NEXT_LINES>(a, b, sums.panel(row, column), sums.stride, now.steps,
                                        now.step == 0, fetched);
    }
  }
}

// The block's int32 sums become floats, times their scales.
void scale_block(const TileProduct& p, const Chunk& block, Sums sums) {
  const int64_t row = block.row * PANEL, column = block.column * PANEL;
  const int64_t rows = std::min(block.rows * PANEL, p.rows - row);
  const int64_t columns = std::min(block.columns * PANEL, p.columns - column);
  for (int64_t i = 0; i < rows; ++i) {
    const __m512 scale = _mm512_set1_ps(p.row_scales[row + i]);
    for (int64_t j = 0; j < columns; j += 16) {
      char* at = sums.at(i, j);
      const __m512 of_columns =
          _mm512_maskz_loadu_ps(mask16(columns - j), p.column_scales + column + j);
      const __m512 value = _mm512_cvtepi32_ps(_mm512_loadu_si512(at));
      _mm512_storeu_ps(at, _mm512_mul_ps(value, _mm512_mul_ps(scale, of_columns)));
    }
  }
}

void add_low_rank(const TileProduct& p, const Chunk& block, Sums sums) {
  for (int64_t row = 0; row < block.rows; ++row)
    for (int64_t column = 0; column < block.columns; ++column) {
      const char* a = panel_at(p.low_x, block.row + row, p.low_steps, 0);
      const char* b = panel_at(p.low_w, block.column + column, p.low_steps, 0);
      multiply_panels<false, 0>(a, b, sums.panel(row, column), sums.stride, p.low_steps, false, a);
    }
}

// Adds bias and residual and rounds the block to bf16. Whole cache lines go past the caches.
void store_block(const TileProduct& p, const Chunk& block, Sums sums) {
  const int64_t row = block.row * PANEL, column = block.column * PANEL;
  const int64_t rows = std::min(block.rows * PANEL, p.rows - row);
  const int64_t columns = std::min(block.columns * PANEL, p.columns - column);
  const bool lines = int64_t(p.out) % LINE == 0 && p.columns % PANEL == 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; j += PANEL) {
      const char* from = sums.at(i, j);
      const __mmask16 low = mask16(columns - j), high = mask16(columns - j - 16);
      __m512 first = _mm512_loadu_ps(from), second = _mm512_loadu_ps(from + LINE);
      const int64_t at = (row + i) * p.columns + column + j;
      if (p.bias) {
        first = _mm512_add_ps(first, load_float(p.bias + column + j, low));
        second = _mm512_add_ps(second, load_float(p.bias + column + j + 16, high));
      }
      if (p.residual) {
        first = _mm512_add_ps(first, load_float(p.residual + at, low));
        second = _mm512_add_ps(second, load_float(p.residual + at + 16, high));
      }
      const __m512i both =
          _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(first)), to_bf16(second), 1);
      if (lines)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(p.out + at), both);
      else
        _mm512_mask_storeu_epi16(p.out + at, mask32(columns - j), both);
    }
}

template <bool INT8>
void multiply(const TileProduct& p, const Blocking& size, int threads) {
  Blocks blocks(p, size);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const Sums sums = {scratch.reserve(size.rows * PANEL * size.stride()), size.stride()};
    tile_configure();
    int64_t block = blocks.take();
    while (blocks.has(block)) {
      Chunk now = blocks.first(block), next = now;
      bool more = true;
      while (more) {
        const Chunk* fetched = &next;
        more = blocks.advance(&next);
        if (!more) {
          block = blocks.take();
          if (blocks.has(block))
            next = blocks.first(block);
          else
            fetched = nullptr;
        }
        multiply_chunk<INT8>(p, now, fetched, sums);
        if (more) now = next;
      }
      if (INT8) scale_block(p, now, sums);
      if (p.low_steps) add_low_rank(p, now, sums);
      store_block(p, now, sums);
    }
    TILE_RELEASE();
    _mm_sfence();
  }
}

// One row's 64 bytes of a k-step, zeros beyond the row's end.
inline void copy_line(const bf16* row, int64_t left, char* to) {
  _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask32(left), row));
}

// Sixty-four elements of a row as int8, zeros beyond the row's end.
inline void quantize_line(const bf16* row, const float* columns, int64_t k, int64_t left,
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

template <typename T>
void pack(const T* w, int64_t columns, int64_t inner, int64_t column_stride, int64_t inner_stride,
          char* out, int threads) {
  constexpr int64_t GROUP = 4 / sizeof(T);
  const int64_t step = 16 * GROUP, steps = (inner + step - 1) / step;
  advise_huge_pages(out, panels_of(columns) * steps * STEP);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t tile = 0; tile < 2 * panels_of(columns); ++tile)
    for (int64_t k = 0; k < steps; ++k) {
      T* to = reinterpret_cast<T*>(out + ((tile / 2 * steps + k) * 2 + tile % 2) * TILE);
      const int64_t count = std::min<int64_t>(16, columns - tile * 16);
      const int64_t left = std::min(step, inner - k * step);
      if (count < 16 || left < step) std::memset(to, 0, TILE);
      const T* from = w + tile * 16 * column_stride + k * step * inner_stride;
      if (inner_stride == 1) {
        for (int64_t n = 0; n < count; ++n)
          for (int64_t i = 0; i < left; ++i)
            to[i / GROUP * 16 * GROUP + n * GROUP + i % GROUP] = from[n * column_stride + i];
      } else {
        for (int64_t i = 0; i < left; ++i)
          for (int64_t n = 0; n < count; ++n)
            to[i / GROUP * 16 * GROUP + n * GROUP + i % GROUP] =
                from[n * column_stride + i * inner_stride];
      }
    }
}

}  // namespace

extern "C" {

// A block has at most `rows` by `columns` panels, and a chunk `steps` k-steps.
void tile_multiply(const TileProduct* product, int64_t int8, int64_t rows, int64_t columns,
                   int64_t steps, int threads) {
  if (int8)
    multiply<true>(*product, {rows, columns, steps}, threads);
  else
    multiply<false>(*product, {rows, columns, steps}, threads);
}

// w [columns, inner], bf16 or int8, whose strides are in elements, into panels.
void pack_w(const void* w, int64_t int8, int64_t columns, int64_t inner, int64_t column_stride,
            int64_t inner_stride, char* out, int threads) {
  if (int8)
    pack(static_cast<const int8_t*>(w), columns, inner, column_stride, inner_stride, out, threads);
  else
    pack(static_cast<const bf16*>(w), columns, inner, column_stride, inner_stride, out, threads);
}

// x [rows, inner], bf16, into panels.
void pack_x(const bf16* x, int64_t rows, int64_t inner, char* out, int threads) {
  const int64_t steps = (inner + 31) / 32;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t tile = 0; tile < 2 * panels_of(rows); ++tile)
    for (int64_t k = 0; k < steps; ++k) {
      char* to = out + ((tile / 2 * steps + k) * 2 + tile % 2) * TILE;
      for (int64_t r = 0; r < 16; ++r) {
        const int64_t row = tile * 16 + r;
        copy_line(x + row * inner + k * 32, row < rows ? inner - k * 32 : 0, to + r * 64);
      }
    }
}

// x [rows, inner], bf16, times columns [inner] (or null), rounded to int8 with one scale for each
// row, into panels: x[i][k] * columns[k] is about value * scales[i].
void quantize_x(const bf16* x, const float* columns, int64_t rows, int64_t inner, char* out,
                float* scales, int threads) {
  const int64_t steps = (inner + 63) / 64;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t tile = 0; tile < 2 * panels_of(rows); ++tile) {
    float inverse[16] = {};
    for (int64_t r = 0; r < std::min<int64_t>(16, rows - tile * 16); ++r) {
      const float largest = largest_of(x + (tile * 16 + r) * inner, columns, inner);
      scales[tile * 16 + r] = largest / 127;
      inverse[r] = largest > 0 ? 127 / largest : 0;
    }
    for (int64_t k = 0; k < steps; ++k) {
      char* to = out + ((tile / 2 * steps + k) * 2 + tile % 2) * TILE;
      for (int64_t r = 0; r < 16; ++r) {
        const int64_t row = tile * 16 + r, left = row < rows ? inner - k * 64 : 0;
        quantize_line(x + row * inner, columns, k * 64, left, inverse[r], to + r * 64);
      }
    }
  }
}

}  // extern "C"

#endif

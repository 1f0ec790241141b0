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
// (int32) in L2. It goes through k in chunks, so that the panels' chunks stay in L2, too, and
// meanwhile fetches those of w for the next chunk.
//
// Then the block is scaled, bias, residual and a product of low rank, low_x [rows, rank] times
// low_w [columns, rank] transposed (LoRA's), in bf16, are added, and it is rounded to bf16 once.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include <atomic>
#include <vector>

#include "panels.h"

extern "C" {

// What tile_multiply computes; kernels/gemm/tiles.py has the same fields. Pointers may be null
// where a product has no such part. int8 has both kinds of scales, bf16 neither.
struct TileProduct {
  int64_t rows, columns, steps, rank;
  const char *x, *w, *low_w;
  const bf16* low_x;  // [rows, rank], not in panels
  const float *row_scales, *column_scales;
  const bf16 *bias, *residual;  // [columns]; [rows, columns], which may be out
  bf16* out;                    // [rows, columns]
};

// A LoRA pair a [rank, inner] and b [outputs, rank], and where their panels go: of a, a transposed,
// scale * b, and that transposed; kernels/gemm/narrow.py has the same fields.
struct LoraPair {
  int64_t rank, inner, outputs;
  const float *a, *b;
  char *to_a, *to_a_transposed, *to_b, *to_b_transposed;
  float scale;
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
  int64_t row, rows, column, columns;  // panels; no columns after the last block
  int64_t step, steps, start, end;     // the last two: of the sums
};

// The blocks of an output: strips of columns after each other, in even parts down. The strips get
// narrower towards the end, so that threads finish together although they are not equally fast.
//
// If there are few blocks, but a long sum for each (the gradient of a head's input), the sums are
// divided into parts instead, whole strips wide.
class Blocks {
 public:
  Blocks(const TileProduct& product, const Blocking& size, int threads)
      : rows_(panels_of(product.rows)),
        steps_(product.steps),
        down_((rows_ + size.rows - 1) / size.rows) {
    const int64_t columns = panels_of(product.columns);
    const int64_t whole = down_ * ((columns + size.columns - 1) / size.columns);
    if (whole && whole < 2 * threads)
      parts_ = std::clamp<int64_t>(steps_ / (2 * size.steps), 1, TASKS * threads / whole);
    const int64_t sum = (steps_ + parts_ - 1) / parts_;
    const int64_t chunks = std::max<int64_t>(1, (sum + size.steps - 1) / size.steps);
    chunk_ = (sum + chunks - 1) / chunks;
    while (starts_.back() < columns) {
      const int64_t left = columns - starts_.back(), each = left * down_ / threads;
      const int64_t least = parts_ > 1 ? size.columns : std::min(NARROWEST, size.columns);
      starts_.push_back(columns - left + std::min(left, std::clamp(each, least, size.columns)));
    }
  }

  int64_t parts() const { return parts_; }
  int64_t count() const { return down_ * (int64_t(starts_.size()) - 1); }
  int64_t take() { return next_++; }

  // The first chunk of a task, which is a part of a block.
  Chunk first(int64_t task) const {
    if (task >= count() * parts_) return {};
    const int64_t block = task / parts_, part = task % parts_;
    const int64_t i = block % down_, j = block / down_;
    const int64_t row = rows_ * i / down_, column = starts_[j];
    const int64_t start = steps_ * part / parts_, end = steps_ * (part + 1) / parts_;
    return {row,   rows_ * (i + 1) / down_ - row, column, starts_[j + 1] - column,
            start, std::min(chunk_, end - start), start,  end};
  }

  // Moves on to the next chunk; false after the last one.
  bool advance(Chunk* chunk) const {
    chunk->step += chunk->steps;
    chunk->steps = std::min(chunk_, chunk->end - chunk->step);
    return chunk->steps > 0;
  }

 private:
  static constexpr int64_t NARROWEST = 2;
  static constexpr int64_t TASKS = 8;  // for each thread, of a divided sum
  int64_t rows_, steps_, down_, chunk_, parts_ = 1;
  std::vector<int64_t> starts_ = {0};  // of the strips, and the end
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

// The product of panels after that of `row` and `column` of a chunk.
Following following_of(const TileProduct& p, const Chunk& now, const Chunk& after, int64_t row,
                       int64_t column, Sums sums) {
  if (++column == now.columns) column = 0, ++row;
  const bool same = row < now.rows;
  if (!same && after.columns == 0) return {};
  const Chunk& chunk = same ? now : after;
  if (!same) row = column = 0;
  return {panel_at(p.x, chunk.row + row, p.steps, chunk.step),
          panel_at(p.w, chunk.column + column, p.steps, chunk.step), sums.panel(row, column)};
}

// Multiplies a chunk, and fetches the panels of w of the one that comes `after` it: every row of
// products fetches a part of each.
template <bool INT8>
void multiply_chunk(const TileProduct& p, const Chunk& now, const Chunk& after, Sums sums) {
  const int64_t lines = STEP / LINE, each = (lines + now.rows - 1) / now.rows;
  for (int64_t row = 0; row < now.rows; ++row) {
    const char* a = panel_at(p.x, now.row + row, p.steps, now.step);
    const int64_t done = now.steps * lines * row / now.rows * LINE;
    for (int64_t column = 0; column < now.columns; ++column) {
      Fetched fetched;
      if (column < after.columns)
        fetched = {panel_at(p.w, after.column + column, p.steps, after.step) + done, each};
      multiply_panels<INT8>(a, panel_at(p.w, now.column + column, p.steps, now.step),
                            sums.panel(row, column), sums.stride, now.steps, now.step == now.start,
                            fetched, following_of(p, now, after, row, column, sums));
    }
  }
}

// Scales 16 sums of row i and column j, adds `low` unless it is null, bias and residual.
template <bool INT8>
inline __m512 finished(const TileProduct& p, int64_t i, int64_t j, const char* sums,
                       const char* low) {
  const __mmask16 mask = mask16(p.columns - j);
  __m512 value = _mm512_loadu_ps(sums);
  if (INT8) {
    const __m512 of_columns = _mm512_maskz_loadu_ps(mask, p.column_scales + j);
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(p.row_scales[i]), of_columns);
    value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(value)), scale);
  }
  if (low) value = _mm512_add_ps(value, _mm512_loadu_ps(low));
  if (p.bias) value = _mm512_add_ps(value, load_float(p.bias + j, mask));
  if (p.residual) value = _mm512_add_ps(value, load_float(p.residual + i * p.columns + j, mask));
  return value;
}

// Finishes a block and rounds it to bf16. Whole cache lines go past the caches. `scratch` holds the
// panels of 32 rows of low_x, and their products with low_w, laid out as the sums of 32 rows.
template <bool INT8>
void store_block(const TileProduct& p, const Chunk& block, Sums sums, char* scratch) {
  const int64_t steps = (p.rank + 31) / 32;
  const Sums low = {scratch + steps * STEP, sums.stride};
  const int64_t column = block.column * PANEL;
  const int64_t columns = std::min(block.columns * PANEL, p.columns - column);
  const bool lines = int64_t(p.out) % LINE == 0 && p.columns % PANEL == 0;
  for (int64_t panel = 0; panel < block.rows; ++panel) {
    const int64_t row = (block.row + panel) * PANEL, rows = std::min(PANEL, p.rows - row);
    if (p.rank) copy_rows<PANEL>(p.low_x + row * p.rank, rows, p.rank, 0, steps, scratch, STEP);
    for (int64_t j = 0; p.rank && j < block.columns; ++j)
      multiply_panels<false>(scratch, panel_at(p.low_w, block.column + j, steps, 0),
                             low.panel(0, j), low.stride, steps, true);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; j += PANEL) {
        const char* from = sums.at(panel * PANEL + i, j);
        const char* more = p.rank ? low.at(i, j) : nullptr;
        const __m256i first = to_bf16(finished<INT8>(p, row + i, column + j, from, more));
        const __m256i second = to_bf16(
            finished<INT8>(p, row + i, column + j + 16, from + LINE, more ? more + LINE : nullptr));
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
        bf16* to = p.out + (row + i) * p.columns + column + j;
        if (lines)
          _mm512_stream_si512(reinterpret_cast<__m512i*>(to), both);
        else
          _mm512_mask_storeu_epi16(to, mask32(columns - j), both);
      }
  }
}

// Adds up `parts` sums that are `bytes` apart, into the first one.
template <bool INT8>
void add_parts(char* sums, int64_t bytes, int64_t parts) {
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < bytes; i += LINE) {
      const char* more = sums + part * bytes + i;
      if (INT8)
        _mm512_storeu_si512(
            sums + i, _mm512_add_epi32(_mm512_loadu_si512(sums + i), _mm512_loadu_si512(more)));
      else
        _mm512_storeu_ps(sums + i, _mm512_add_ps(_mm512_loadu_ps(sums + i), _mm512_loadu_ps(more)));
    }
}

template <bool INT8>
void multiply(const TileProduct& p, const Blocking& size, int threads) {
  Blocks blocks(p, size, threads);
  advise_huge_pages(p.out, p.rows * p.columns * sizeof(bf16));
  const int64_t bytes = size.rows * PANEL * size.stride(), low = (p.rank + 31) / 32 * STEP;
  const int64_t parts = blocks.parts();
  static Scratch divided;  // the parts' sums, block by block
  char* of_parts = parts > 1 ? divided.reserve(blocks.count() * parts * bytes) : nullptr;
#pragma omp parallel num_threads(threads)
  {
    char* scratch = thread_scratch(bytes + low + PANEL * size.stride());
    tile_configure();
    int64_t task = blocks.take();
    for (Chunk next = blocks.first(task); next.columns > 0;) {
      const Sums sums = {parts > 1 ? of_parts + task * bytes : scratch, size.stride()};
      const Chunk now = next;
      const bool ends = !blocks.advance(&next);
      if (ends) next = blocks.first(task = blocks.take());
      multiply_chunk<INT8>(p, now, next, sums);
      if (ends && parts == 1) store_block<INT8>(p, now, sums, scratch + bytes);
    }
    if (parts > 1) {
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t block = 0; block < blocks.count(); ++block) {
        char* sums = of_parts + block * parts * bytes;
        add_parts<INT8>(sums, bytes, parts);
        store_block<INT8>(p, blocks.first(block * parts), {sums, size.stride()}, scratch + bytes);
      }
    }
    TILE_RELEASE();
    _mm_sfence();
  }
}

inline int8_t element(int8_t x, float) { return x; }
inline bf16 element(bf16 x, float) { return x; }
inline bf16 element(float x, float scale) { return round_to_bf16(x * scale); }

// w [columns, inner] into panels of elements T, by the threads of a parallel region; float32 times
// `scale` and rounded. All strides are in elements.
template <typename T, typename From>
void pack(const From* w, int64_t columns, int64_t inner, int64_t column_stride,
          int64_t inner_stride, float scale, char* out) {
  constexpr int64_t GROUP = 4 / sizeof(T);
  const int64_t step = 16 * GROUP, steps = (inner + step - 1) / step;
#pragma omp for collapse(2) schedule(static) nowait
  for (int64_t tile = 0; tile < 2 * panels_of(columns); ++tile)
    for (int64_t k = 0; k < steps; ++k) {
      T* to = reinterpret_cast<T*>(out + ((tile / 2 * steps + k) * 2 + tile % 2) * TILE);
      const int64_t count = std::min<int64_t>(16, columns - tile * 16);
      const int64_t left = std::min(step, inner - k * step);
      if (count < 16 || left < step) std::memset(to, 0, TILE);
      const From* from = w + tile * 16 * column_stride + k * step * inner_stride;
      if (inner_stride == 1) {
        for (int64_t n = 0; n < count; ++n)
          for (int64_t i = 0; i < left; ++i)
            to[i / GROUP * 16 * GROUP + n * GROUP + i % GROUP] =
                element(from[n * column_stride + i], scale);
      } else {
        for (int64_t i = 0; i < left; ++i)
          for (int64_t n = 0; n < count; ++n)
            to[i / GROUP * 16 * GROUP + n * GROUP + i % GROUP] =
                element(from[n * column_stride + i * inner_stride], scale);
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
  const int64_t step = int8 ? 64 : 32;
  advise_huge_pages(out, panels_of(columns) * ((inner + step - 1) / step) * STEP);
#pragma omp parallel num_threads(threads)
  {
    if (int8)
      pack<int8_t>(static_cast<const int8_t*>(w), columns, inner, column_stride, inner_stride, 1,
                   out);
    else
      pack<bf16>(static_cast<const bf16*>(w), columns, inner, column_stride, inner_stride, 1, out);
  }
}

// The four matrices of each LoRA pair into bf16 panels.
void pack_loras(const LoraPair* pairs, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
  for (const LoraPair* p = pairs; p < pairs + count; ++p) {
    pack<bf16>(p->a, p->rank, p->inner, p->inner, 1, 1, p->to_a);
    pack<bf16>(p->a, p->inner, p->rank, 1, p->inner, 1, p->to_a_transposed);
    pack<bf16>(p->b, p->outputs, p->rank, p->rank, 1, p->scale, p->to_b);
    pack<bf16>(p->b, p->rank, p->outputs, 1, p->rank, p->scale, p->to_b_transposed);
  }
}

}  // extern "C"

#endif

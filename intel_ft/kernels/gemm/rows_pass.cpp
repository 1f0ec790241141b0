// One pass over the input of GEMMs on AMX: RMSNorm or SwiGLU if one of them computes it, its panels
// in bf16 or int8, and LoRA's narrow products x [rows, inner] times a matrix of `rank` columns. A
// thread takes 16 rows, a tile, at a time, which stay in its L2, so that memory is read once. For a
// narrow product, it multiplies each chunk of k as soon as the chunk lies in tiles. Threads take
// one tile after another, because those of a shared host are not equally fast.
//
// Panels go past the caches: other threads read them next, and had read what was in their place.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include <atomic>

#include "../rows.h"
#include "panels.h"

extern "C" {

// What rows_pass reads and writes; kernels/gemm/tiles.py has the same fields. Null are `norm` and
// `up` if x is used as it is, `columns` if all are 1, `panels` if only the narrow products are
// needed, and `scales` for panels in bf16.
struct RowsPass {
  int64_t rows, inner, narrow;  // the last: how many narrow products
  const bf16 *x, *norm, *up;    // [rows, inner], [inner], [rows, inner]
  const float* columns;         // [inner], by which x is multiplied before it is rounded to int8
  char* panels;
  float* scales;              // [rows]
  const char* const* rights;  // each [rank, inner], in panels
  const int64_t* ranks;
  bf16* const* lows;  // each [rows, rank]
  float eps;          // of the norm
};

}  // extern "C"

namespace {

constexpr int64_t CHUNK = 32;   // k-steps
constexpr int64_t HEIGHT = 16;  // rows of a tile

inline void stream(char* to, __m512i line) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
}

// A tile of each k-step in int8: `count` rows times `columns`, with one scale for each.
void quantize_tile(const bf16* rows, const float* columns, int64_t count, int64_t inner, char* out,
                   float* scales) {
  float inverse[HEIGHT] = {};
  for (int64_t r = 0; r < count; ++r) {
    const float largest = largest_of(rows + r * inner, columns, inner);
    scales[r] = largest / 127;
    inverse[r] = largest > 0 ? 127 / largest : 0;
  }
  for (int64_t k = 0; k < inner; k += 64, out += STEP)
    for (int64_t r = 0; r < HEIGHT; ++r)
      stream(out + r * LINE,
             quantized_line(rows + r * inner, columns, k, r < count ? inner - k : 0, inverse[r]));
}

// A tile of each of `steps` k-steps into panels.
void stream_tiles(const char* tiles, int64_t steps, char* panels) {
  for (int64_t k = 0; k < steps; ++k, tiles += TILE, panels += STEP)
    for (int64_t line = 0; line < TILE; line += LINE)
      stream(panels + line, _mm512_load_si512(tiles + line));
}

// The rows of a tile after RMSNorm or SwiGLU.
const bf16* source_rows(const RowsPass& p, int64_t row, int64_t count, bf16* scratch) {
  const bf16* x = p.x + row * p.inner;
  if (!p.norm && !p.up) return x;
  if (p.norm) {
    for (int64_t r = 0; r < count; ++r)
      norm_row(x + r * p.inner, p.norm, p.eps, p.inner, scratch + r * p.inner);
  } else {
    swiglu_row(x, p.up + row * p.inner, count * p.inner, scratch);
  }
  return scratch;
}

}  // namespace

extern "C" {

void rows_pass(const RowsPass* pass, int threads) {
  const RowsPass& p = *pass;
  const int64_t steps = (p.inner + 31) / 32, int8_steps = (p.inner + 63) / 64;
  const bool bf16_panels = p.panels && !p.scales;
  const int64_t computed = p.norm || p.up ? (HEIGHT * p.inner * 2 + LINE - 1) / LINE * LINE : 0;
  int64_t narrow_panels = 0;
  for (int64_t i = 0; i < p.narrow; ++i) narrow_panels += panels_of(p.ranks[i]);
  if (p.panels)
    advise_huge_pages(p.panels, panels_of(p.rows) * (p.scales ? int8_steps : steps) * STEP);
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
  {
    char* scratch = thread_scratch(computed + CHUNK * TILE + narrow_panels * 4 * TILE);
    char* chunk = scratch + computed;
    tile_configure();
    for (int64_t tile = next++; tile < 2 * panels_of(p.rows); tile = next++) {
      const int64_t row = tile * HEIGHT, count = std::clamp<int64_t>(p.rows - row, 0, HEIGHT);
      const int64_t panel = tile / 2, half = tile % 2 * TILE;
      const bf16* rows = source_rows(p, row, count, reinterpret_cast<bf16*>(scratch));
      if (p.scales)
        quantize_tile(rows, p.columns, count, p.inner, p.panels + panel * int8_steps * STEP + half,
                      p.scales + row);
      for (int64_t step = 0; step < steps && (bf16_panels || p.narrow); step += CHUNK) {
        const int64_t now = std::min(CHUNK, steps - step);
        copy_rows<HEIGHT>(rows, count, p.inner, step, now, chunk, TILE);
        if (bf16_panels) stream_tiles(chunk, now, p.panels + (panel * steps + step) * STEP + half);
        char* sums = chunk + CHUNK * TILE;
        for (int64_t i = 0; i < p.narrow; ++i)
          for (int64_t j = 0; j < panels_of(p.ranks[i]); ++j, sums += 4 * TILE) {
            const int64_t rank = p.ranks[i], column = j * PANEL;
            multiply_tile(chunk, TILE, p.rights[i] + (j * steps + step) * STEP,
                          rank - column > HEIGHT, now, step == 0, sums);
            if (step + now == steps)
              store_sums(sums, count, rank - column, rank, p.lows[i] + row * rank + column);
          }
      }
    }
    TILE_RELEASE();
    _mm_sfence();
  }
}

}  // extern "C"

#endif

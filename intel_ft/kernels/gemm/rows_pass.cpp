// One pass over the input of GEMMs on AMX: RMSNorm or SwiGLU if one of them computes it, its panels
// in bf16 or int8, and LoRA's narrow products x [rows, inner] times a matrix of `rank` columns. A
// thread takes 32 rows at a time, which stay in its L2, so that memory is read once. For a narrow
// product, it multiplies each chunk of k as soon as the chunk lies in tiles.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

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

constexpr int64_t CHUNK = 32;  // k-steps, or 64 KiB, of a panel of x

// Rounds up to 32 rows of sums [PANEL, stride bytes] into out [rows, rank].
void store_rows(const char* sums, int64_t stride, int64_t rows, int64_t rank, bf16* out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < rank; j += 16) {
      const __m512 value = _mm512_loadu_ps(sums + i * stride + j * 4);
      store_rounded(out + i * rank + j, mask16(rank - j), value);
    }
}

// A panel of int8: `count` rows times `columns`, with one scale for each.
void quantize_panel(const bf16* rows, const float* columns, int64_t count, int64_t inner, char* out,
                    float* scales) {
  float inverse[PANEL] = {};
  for (int64_t r = 0; r < count; ++r) {
    const float largest = largest_of(rows + r * inner, columns, inner);
    scales[r] = largest / 127;
    inverse[r] = largest > 0 ? 127 / largest : 0;
  }
  for (int64_t k = 0; k < inner; k += 64)
    for (int64_t r = 0; r < PANEL; ++r, out += LINE)
      quantize_line(rows + r * inner, columns, k, r < count ? inner - k : 0, inverse[r], out);
}

// The rows of a panel after RMSNorm or SwiGLU.
const bf16* source_rows(const RowsPass& p, int64_t row, int64_t count, bf16* scratch) {
  const bf16* x = p.x + row * p.inner;
  if (!p.norm && !p.up) return x;
  if (p.norm) {
    for (int64_t r = 0; r < count; ++r)
      norm_row(x + r * p.inner, p.norm, p.eps, p.inner, scratch + r * p.inner);
  } else {
    const bf16* up = p.up + row * p.inner;
#pragma omp simd
    for (int64_t i = 0; i < count * p.inner; ++i) scratch[i] = swiglu_of(x[i], up[i]);
  }
  return scratch;
}

}  // namespace

extern "C" {

void rows_pass(const RowsPass* pass, int threads) {
  const RowsPass& p = *pass;
  const int64_t steps = (p.inner + 31) / 32, int8_steps = (p.inner + 63) / 64;
  const bool bf16_panels = p.panels && !p.scales;
  const int64_t computed = p.norm || p.up ? (PANEL * p.inner * 2 + LINE - 1) / LINE * LINE : 0;
  int64_t sums_bytes = 0;
  for (int64_t i = 0; i < p.narrow; ++i) sums_bytes += panels_of(p.ranks[i]) * PANEL * PANEL * 4;
#pragma omp parallel num_threads(threads)
  {
    char* scratch = thread_scratch(computed + CHUNK * STEP + sums_bytes);
    tile_configure();
    const Share share(p.rows);
    for (int64_t panel = share.first; panel < share.last; ++panel) {
      const int64_t row = panel * PANEL, count = std::min(PANEL, p.rows - row);
      const bf16* rows = source_rows(p, row, count, reinterpret_cast<bf16*>(scratch));
      if (p.scales)
        quantize_panel(rows, p.columns, count, p.inner, p.panels + panel * int8_steps * STEP,
                       p.scales + row);
      for (int64_t step = 0; step < steps && (bf16_panels || p.narrow); step += CHUNK) {
        const int64_t now = std::min(CHUNK, steps - step);
        char* chunk = bf16_panels ? p.panels + (panel * steps + step) * STEP : scratch + computed;
        copy_panel(rows, count, p.inner, step, now, chunk);
        char* sums = scratch + computed + CHUNK * STEP;
        for (int64_t i = 0; i < p.narrow; ++i) {
          const int64_t across = panels_of(p.ranks[i]), stride = across * PANEL * 4;
          for (int64_t j = 0; j < across; ++j)
            multiply_panels<false, 0>(chunk, p.rights[i] + (j * steps + step) * STEP,
                                      sums + j * PANEL * 4, stride, now, step == 0, chunk);
          if (step + now == steps)
            store_rows(sums, stride, count, p.ranks[i], p.lows[i] + row * p.ranks[i]);
          sums += PANEL * stride;
        }
      }
    }
    TILE_RELEASE();
  }
}

}  // extern "C"

#endif

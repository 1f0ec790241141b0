// One pass over the input of expert_product.cpp: gathers rows that are sorted by expert, or applies
// SwiGLU to them, rounds them to int8 in tiles of 16 rows, and multiplies them by the narrow matrix
// (LoRA's) of their expert. So a row is read from memory once, and no gathered or activated rows
// are written in bf16.
//
// A task is up to 128 rows of one expert. It reorders the expert's narrow matrix into panels, in a
// buffer that stays in L2.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include <vector>

#include "../rows.h"
#include "panels.h"

extern "C" {

// kernels/gemm/experts.py has the same fields. Bounds, where each expert's rows begin, and the end,
// are multiples of 16; inner is a multiple of 64; rank is a multiple of 32 or 0.
struct ExpertPass {
  int64_t experts, inner, rank;
  int64_t by_column;               // narrow[e] is [rank, inner], not [inner, rank]
  int64_t gated;                   // x [rows, 2 inner], gate and up
  int64_t count;                   // of the rows of x that tokens choose
  const int64_t *bounds, *tokens;  // tokens [rows], `count` for zeros; null: row i is x's row i
  const bf16* x;
  const float* columns;  // [experts, inner], by which rows are multiplied before rounding, or null
  const bf16* narrow;
  char* out;       // [rows, inner]
  float* scales;   // [rows]
  bf16* products;  // [rows, rank]
};

}  // extern "C"

namespace {

constexpr int64_t HEIGHT = 16, MOST_ROWS = 128;
constexpr int64_t CHUNK = 32;  // k-steps of 32 elements

struct Task {
  int64_t e, first, last;
};

std::vector<Task> tasks_of(const ExpertPass& p) {
  std::vector<Task> tasks;
  for (int64_t e = 0; e < p.experts; ++e)
    for (int64_t row = p.bounds[e]; row < p.bounds[e + 1]; row += MOST_ROWS)
      tasks.push_back({e, row, std::min(row + MOST_ROWS, p.bounds[e + 1])});
  return tasks;
}

// The narrow matrix of expert e in panels: pairs along k together.
void pack_narrow(const ExpertPass& p, int64_t e, char* to) {
  const bf16* w = p.narrow + e * p.rank * p.inner;
  for (int64_t panel = 0; panel < p.rank; panel += PANEL)
    for (int64_t k = 0; k < p.inner; k += 32)
      for (int64_t first = panel; first < panel + PANEL; first += 16, to += TILE) {
        uint32_t* lines = reinterpret_cast<uint32_t*>(to);
        if (p.by_column) {
          const bf16* from = w + first * p.inner + k;
          transpose16(reinterpret_cast<const uint32_t*>(from), p.inner / 2, lines, 16);
        } else {
          for (int64_t i = 0; i < 16; ++i)
            _mm512_storeu_si512(lines + 16 * i, paired(w + (k + 2 * i) * p.rank + first, p.rank));
        }
      }
}

// The rows of one tile, 16 addresses; `scratch` holds 17 rows, the last of them zeros.
void find_rows(const ExpertPass& p, int64_t row, bf16* scratch, const bf16** rows) {
  for (int64_t r = 0; r < HEIGHT; ++r) {
    if (p.gated) {
      const bf16* gate = p.x + 2 * (row + r) * p.inner;
      swiglu_row(gate, gate + p.inner, p.inner, scratch + r * p.inner);
      rows[r] = scratch + r * p.inner;
    } else if (p.tokens) {
      const int64_t token = p.tokens[row + r];
      rows[r] = token < p.count ? p.x + token * p.inner : scratch + HEIGHT * p.inner;
    } else {
      rows[r] = p.x + (row + r) * p.inner;
    }
  }
}

void quantize(const ExpertPass& p, int64_t e, int64_t row, const bf16* const* rows) {
  const float* columns = p.columns ? p.columns + e * p.inner : nullptr;
  char* to = p.out + row * p.inner;
  float inverse[HEIGHT];
  for (int64_t r = 0; r < HEIGHT; ++r) {
    const float largest = largest_of(rows[r], columns, p.inner);
    p.scales[row + r] = largest / 127;
    inverse[r] = largest > 0 ? 127 / largest : 0;
  }
  for (int64_t k = 0; k < p.inner; k += 64)
    for (int64_t r = 0; r < HEIGHT; ++r, to += LINE)
      _mm512_store_si512(to, quantized_line(rows[r], columns, k, 64, inverse[r]));
}

// The rows in tiles, k-steps [step, step + steps).
void copy_tile(const bf16* const* rows, int64_t step, int64_t steps, char* to) {
  for (int64_t k = step; k < step + steps; ++k)
    for (int64_t r = 0; r < HEIGHT; ++r, to += LINE)
      _mm512_store_si512(to, _mm512_loadu_si512(rows[r] + k * 32));
}

void multiply(const ExpertPass& p, int64_t row, const bf16* const* rows, const char* packed,
              char* chunk, char* sums) {
  const int64_t steps = p.inner / 32, panels = p.rank / PANEL;
  for (int64_t step = 0; step < steps; step += CHUNK) {
    const int64_t now = std::min(CHUNK, steps - step);
    copy_tile(rows, step, now, chunk);
    for (int64_t j = 0; j < panels; ++j) {
      multiply_tile(chunk, TILE, packed + (j * steps + step) * STEP, true, now, step == 0,
                    sums + j * 4 * TILE);
      if (step + now == steps)
        store_sums(sums + j * 4 * TILE, HEIGHT, PANEL, p.rank,
                   p.products + row * p.rank + j * PANEL);
    }
  }
}

}  // namespace

extern "C" {

void expert_pass(const ExpertPass* pass, int threads) {
  const ExpertPass& p = *pass;
  const std::vector<Task> tasks = tasks_of(p);
  const int64_t packed_size = p.rank * p.inner * 2, sums_size = p.rank / PANEL * 4 * TILE;
  const int64_t rows_size = (HEIGHT + 1) * p.inner * 2;
#pragma omp parallel num_threads(threads)
  {
    char* packed = thread_scratch(packed_size + sums_size + CHUNK * TILE + rows_size + 2 * STEP);
    char *chunk = packed + packed_size + 2 * STEP, *sums = chunk + CHUNK * TILE;
    bf16* scratch = reinterpret_cast<bf16*>(sums + sums_size);
    std::memset(scratch + HEIGHT * p.inner, 0, p.inner * 2);
    tile_configure();
#pragma omp for schedule(dynamic, 1)
    for (const Task& task : tasks) {
      if (p.rank) pack_narrow(p, task.e, packed);
      for (int64_t row = task.first; row < task.last; row += HEIGHT) {
        const bf16* rows[HEIGHT];
        find_rows(p, row, scratch, rows);
        quantize(p, task.e, row, rows);
        if (p.rank) multiply(p, row, rows, packed, chunk, sums);
      }
    }
    TILE_RELEASE();
  }
}

}  // extern "C"

#endif

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
// A task is one expert, or a part of the columns of one that has many rows, so that rows are read
// from memory about once. While a thread multiplies one panel by the rows, it fetches the part of w
// that it needs next, of its next task in the end, into L2.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include <algorithm>
#include <atomic>
#include <vector>

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

constexpr int64_t GROUP = 64;
constexpr int64_t TASKS = 8;         // for each thread, of even work
constexpr int64_t WEIGHT_ROWS = 64;  // as much work as reading a weight once

// The sums of up to 32 rows and a panel's columns of one expert, which are scaled, get LoRA's part
// and are rounded to bf16 row by row, while the next sums are computed.
struct Pending {
  const float *row_scales, *added;
  const int32_t* sums;
  bf16* out;
  int64_t rows = 0, columns;  // of `out`
  __m512 first, second;       // scales of the columns
  int64_t next = 0;

  void finish_row() {
    if (next >= rows) return;
    const __m512 scale = _mm512_set1_ps(row_scales[next]);
    const int32_t* in = sums + next * PANEL;
    __m512 low =
        _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(in)), _mm512_mul_ps(scale, first));
    __m512 high = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(in + 16)),
                                _mm512_mul_ps(scale, second));
    if (added) {
      low = _mm512_add_ps(low, _mm512_loadu_ps(added + next * PANEL));
      high = _mm512_add_ps(high, _mm512_loadu_ps(added + next * PANEL + 16));
    }
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(to_bf16(low)), to_bf16(high), 1);
    _mm512_storeu_si512(out + next * columns, both);
    ++next;
  }

  void finish() {
    while (next < rows) finish_row();
  }
};

// What to fetch into L2: in k-step i, eight times `lines` lines from `from` + i * stride.
struct Fetch {
  const char* from;
  int64_t stride, lines;
};

// Fetches an eighth of a k-step: of a and b, AHEAD k-steps on, into L1, and of `next` into L2.
template <bool TWO>
FETCHES fetch_eighth(const char* a, int64_t below, const char* b, const Fetch& next,
                     int64_t eighth) {
  fetch_l1(b + AHEAD * STEP, 4 * eighth, 4 * eighth + 4);
  fetch_l1(a + AHEAD * TILE, 2 * eighth, 2 * eighth + 2);
  if (TWO) fetch_l1(a + below + AHEAD * TILE, 2 * eighth, 2 * eighth + 2);
  fetch_l2(next.from, eighth * next.lines, (eighth + 1) * next.lines);
}

// sums [16 or 32, 32] = a . b over `steps` k-steps, int32; the lower 16 rows of a are `below` bytes
// behind the upper ones. Loads and products take turns as in multiply_panels. It finishes the rows
// of `before`, up to four in each k-step.
template <bool TWO>
void multiply_rows(const char* a, int64_t below, const char* b, int64_t steps, Fetch next,
                   int32_t* sums, Pending before) {
  const int64_t each = (before.rows + steps - 1) / steps;
  const FourSums four = FourSums::quarters(reinterpret_cast<char*>(sums), 4 * PANEL);
  four.open(true);
  TILE_ZERO(5);  // the first step's product of the step before it
  TILE_ZERO(7);
  for (int64_t step = 0; step < steps; ++step, a += TILE, b += STEP, next.from += next.stride) {
    TILE_LOAD(6, b, LINE);
    fetch_eighth<TWO>(a, below, b, next, 0);
    if (TWO) TILE_DOT_INT8(3, 5, 7);
    fetch_eighth<TWO>(a, below, b, next, 1);
    if (each > 0) before.finish_row();
    TILE_LOAD(4, a, LINE);
    fetch_eighth<TWO>(a, below, b, next, 2);
    TILE_DOT_INT8(0, 4, 6);
    fetch_eighth<TWO>(a, below, b, next, 3);
    if (each > 1) before.finish_row();
    TILE_LOAD(7, b + TILE, LINE);
    fetch_eighth<TWO>(a, below, b, next, 4);
    TILE_DOT_INT8(1, 4, 7);
    fetch_eighth<TWO>(a, below, b, next, 5);
    if (each > 2) before.finish_row();
    if (TWO) TILE_LOAD(5, a + below, LINE);
    fetch_eighth<TWO>(a, below, b, next, 6);
    if (TWO) TILE_DOT_INT8(2, 5, 6);
    fetch_eighth<TWO>(a, below, b, next, 7);
    if (each > 3) before.finish_row();
  }
  if (TWO) TILE_DOT_INT8(3, 5, 7);
  four.store(!TWO);
  before.finish();
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
          line = paired(w + i * p.columns + first, p.columns);
        }
        _mm512_storeu_si512(to, line);
      }
}

// Where the weights lie that are needed next: in k-step i, half a panel from `from` + i * stride.
struct Next {
  const char* from;
  int64_t stride;
};

// A thread's buffers. Sums and what is added to them are used in turn.
struct Buffers {
  char *transposed, *low;
  int32_t* sums[2];
  float* added[2];
  Pending pending;
  int64_t turn = 0;
};

// Multiplies the rows of expert e by one panel, and fetches the next one.
void multiply_panel(const ExpertProduct& p, int64_t e, int64_t column, const char* panel, Next next,
                    Buffers& at) {
  const int64_t steps = p.inner / 64, calls = panels_of(p.bounds[e + 1] - p.bounds[e]);
  const int64_t eighths = calls >= 4 ? 1 : calls >= 2 ? 2 : 4;  // lines a call, of 32 for a k-step
  if (p.rank) pack_low(p, e, column, at.low);
  __m512 first = _mm512_set1_ps(1), second = first;
  if (p.column_scales) {
    first = _mm512_loadu_ps(p.column_scales + e * p.columns + column);
    second = _mm512_loadu_ps(p.column_scales + e * p.columns + column + 16);
  }
  int64_t fetched = 0;
  for (int64_t row = p.bounds[e]; row < p.bounds[e + 1]; row += PANEL) {
    const int64_t rows = std::min(PANEL, p.bounds[e + 1] - row);
    const char* a = p.x + row / 16 * steps * TILE;
    const bool fetches = next.from && fetched < STEP;
    const Fetch fetch =
        fetches ? Fetch{next.from + fetched, next.stride, eighths} : Fetch{nullptr, 0, 0};
    if (fetches) fetched += 8 * eighths * LINE;
    int32_t* sums = at.sums[at.turn];
    float* added = p.rank ? at.added[at.turn] : nullptr;
    if (added) multiply_low(p.low_x + row * p.rank, p.rank, rows > 16, at.low, added);
    if (rows > 16)
      multiply_rows<true>(a, steps * TILE, panel, steps, fetch, sums, at.pending);
    else
      multiply_rows<false>(a, 0, panel, steps, fetch, sums, at.pending);
    at.pending = {p.row_scales + row,
                  added,
                  sums,
                  p.out + row * p.columns + column,
                  rows,
                  p.columns,
                  first,
                  second,
                  0};
    at.turn = 1 - at.turn;
  }
}

// Expert e and a range of columns, multiples of GROUP.
struct Task {
  int64_t e, first, last, work;
};

// All tasks, the most work first, so that threads finish together. One expert is a single task
// unless it has much more work than others: each task reads its rows again.
std::vector<Task> tasks_of(const ExpertProduct& p, int threads) {
  const auto work_of = [&](int64_t e) {
    const int64_t rows = p.bounds[e + 1] - p.bounds[e];
    return rows ? (rows + WEIGHT_ROWS) * p.columns : 0;
  };
  int64_t all = 0;
  for (int64_t e = 0; e < p.experts; ++e) all += work_of(e);
  const int64_t most = all / (TASKS * threads) + 1, groups = p.columns / GROUP;
  std::vector<Task> tasks;
  for (int64_t e = 0; e < p.experts; ++e) {
    const int64_t parts = std::min(groups, (work_of(e) + most - 1) / most);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = groups * i / parts * GROUP, last = groups * (i + 1) / parts * GROUP;
      tasks.push_back({e, first, last, work_of(e) / p.columns * (last - first)});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.work > b.work; });
  return tasks;
}

inline const char* weight_of(const ExpertProduct& p, int64_t e) {
  return p.w + e * p.columns * p.inner;
}

// What a task multiplies by first.
inline Next first_of(const ExpertProduct& p, const Task& task) {
  if (!p.backward) return {weight_of(p, task.e) + task.first * p.inner, STEP};
  return {weight_of(p, task.e) + task.first / 64 * STEP, 2 * p.columns / 64 * STEP};
}

void forward_task(const ExpertProduct& p, const Task& task, Next after, Buffers& at) {
  const int64_t bytes = PANEL * p.inner;
  const char* panel = first_of(p, task).from;
  for (int64_t column = task.first; column < task.last; column += PANEL, panel += bytes) {
    const Next next = column + PANEL < task.last ? Next{panel + bytes, STEP} : after;
    multiply_panel(p, task.e, column, panel, next, at);
  }
}

void backward_task(const ExpertProduct& p, const Task& task, Next after, Buffers& at) {
  const int64_t between = p.columns / 64 * STEP;  // bytes of a panel of w, whose k are our columns
  const int64_t apart = p.inner / 64 * STEP;      // and of a transposed one
  for (int64_t column = task.first; column < task.last; column += GROUP) {
    const char* from = weight_of(p, task.e) + column / 64 * STEP;
    for (int64_t k = 0; k < p.inner / 64; ++k)
      transpose_block(from + 2 * k * between, between, at.transposed + k * STEP, apart);
    const Next next = column + GROUP < task.last ? Next{from + STEP, 2 * between} : after;
    for (int64_t half = 0; half < 2; ++half) {
      const char* part = next.from ? next.from + half * next.stride / 2 : nullptr;
      multiply_panel(p, task.e, column + half * PANEL, at.transposed + half * apart,
                     {part, next.stride}, at);
    }
  }
}

}  // namespace

extern "C" {

void expert_multiply(const ExpertProduct* product, int threads) {
  const ExpertProduct& p = *product;
  const std::vector<Task> tasks = tasks_of(p, threads);
  std::atomic<size_t> next{0};
  const int64_t transposed = p.backward ? GROUP * p.inner : 0, low = p.rank / 32 * STEP;
#pragma omp parallel num_threads(threads)
  {
    // The prefetches of b go two k-steps beyond a panel's end.
    constexpr int64_t SUMS = 4 * PANEL * PANEL;
    char* data = thread_scratch(transposed + AHEAD * STEP + low + 4 * SUMS);
    char *packed = data + transposed + AHEAD * STEP, *sums = packed + low;
    Buffers at = {
        data,
        packed,
        {reinterpret_cast<int32_t*>(sums), reinterpret_cast<int32_t*>(sums + SUMS)},
        {reinterpret_cast<float*>(sums + 2 * SUMS), reinterpret_cast<float*>(sums + 3 * SUMS)},
        {}};
    tile_configure();
    for (size_t task = next++, after; task < tasks.size(); task = after) {
      after = next++;
      const Next then = after < tasks.size() ? first_of(p, tasks[after]) : Next{nullptr, 0};
      if (p.backward)
        backward_task(p, tasks[task], then, at);
      else
        forward_task(p, tasks[task], then, at);
    }
    at.pending.finish();
    TILE_RELEASE();
  }
}

}  // extern "C"

#endif

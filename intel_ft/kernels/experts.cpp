// Products over rows that are sorted by expert, each expert with a matrix of its own.
//
// A worked example: 2 experts, rows = 48 of which the first 16 are expert 0's, k = 64, n = 96.
//
//   bounds [0, 16, 48]     x [48, 64]     w [2, 96, 64]     out [48, 96]
//
//   grouped_linear   out[i] = x[i] w[e]^T for the expert e of row i
//   grouped_outer    out[e] = p_e^T q_e over its rows, float32 [experts, r, size]
//
// A product may have several terms, x1 w1^T + x2 w2^T + ..., which are summed in float32 and rounded
// once: a frozen weight and LoRA's B, or gate and up in the gradient of their input.
//
// A task of grouped_linear is one expert and a block of columns. It reorders its part of w to
// brgemm's layout (pairs along k together) in a buffer that stays in the cache, and multiplies all
// rows of the expert by it. So w is read once, there is no second copy of it, and experts run side
// by side, however few rows one has. Bounds are multiples of 16, the rows of one AMX tile.

#include <immintrin.h>

#include <memory>
#include <vector>

#include "bf16.h"

namespace at::native::cpublas {
void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const c10::BFloat16* a, const c10::BFloat16* b, float* c, bool vnni);
void brgemm_release(bool vnni);
}  // namespace at::native::cpublas

namespace {

constexpr int64_t ROWS = 32;                 // of one brgemm, 16 at the end of an expert
constexpr int64_t PACKED = 512 * 1024 / 2;   // the most elements of a reordered part: 512 KiB
constexpr int64_t COLUMNS = 256;             // the most columns of a task

struct Term {  // x [rows, k] times w[e]^T; w[e] is [n, k] if by_output, else its transpose [k, n]
  const bf16* x;
  const bf16* w;
  int64_t k, stride, leading, by_output;
};

Term read_term(const int64_t* numbers) {
  return {reinterpret_cast<const bf16*>(numbers[0]), reinterpret_cast<const bf16*>(numbers[1]),
          numbers[2], numbers[3], numbers[4], numbers[5]};
}

// out[j][i] = in[i][j] for 16 x 16 numbers of 32 bits.
inline void transpose16(const uint32_t* in, int64_t leading, uint32_t* out, int64_t out_leading) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(in + i * leading);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    _mm512_storeu_si512(out + j * out_leading, _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88));
    _mm512_storeu_si512(out + (j + 8) * out_leading, _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd));
  }
}

// Reorders `columns` columns of B [k, n] to [k / 2][columns][2]; k is even.
// B = in^T, in [columns, k] with rows `leading` apart:
void pack_outputs(const bf16* in, int64_t leading, int64_t k, int64_t columns, bf16* out) {
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(in);
  uint32_t* packed = reinterpret_cast<uint32_t*>(out);
  const int64_t half = k / 2, between = leading / 2;
  const int64_t whole = half / 16 * 16, wide = columns / 16 * 16;
  for (int64_t i = 0; i < wide; i += 16)
    for (int64_t j = 0; j < whole; j += 16)
      transpose16(pairs + i * between + j, between, packed + j * columns + i, columns);
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = i < wide ? whole : 0; j < half; ++j)
      packed[j * columns + i] = pairs[i * between + j];
}

// B = in [k, n] with rows `leading` apart:
void pack_inputs(const bf16* in, int64_t leading, int64_t k, int64_t columns, bf16* out) {
  for (int64_t i = 0; i < k; i += 2) {
    const bf16 *first = in + i * leading, *second = first + leading;
    uint32_t* pairs = reinterpret_cast<uint32_t*>(out + i * columns);
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j)
      pairs[j] = uint32_t(first[j].bits) | uint32_t(second[j].bits) << 16;
  }
}

template <typename T>
struct Buffer {  // grows and never shrinks: one for each thread, reused from task to task
  std::unique_ptr<T[]> data;
  int64_t size = 0;
  T* reserve(int64_t count) {
    if (count > size) data.reset(new T[size = count]);
    return data.get();
  }
};

}  // namespace

extern "C" {

// out [rows, n] = the sum of `count` terms, each six numbers as in Term: the addresses of x and w,
// k, w's elements per expert and per row, by_output. bounds int64 [experts + 1], multiples of 16.
void grouped_linear(const int64_t* numbers, int64_t count, const int64_t* bounds, int64_t experts,
                    int64_t n, bf16* out, int threads) {
  std::vector<Term> terms;
  int64_t deepest = 0;
  for (int64_t t = 0; t < count; ++t) {
    terms.push_back(read_term(numbers + 6 * t));
    deepest += terms.back().k;
  }
  int64_t columns = std::min(COLUMNS, std::max<int64_t>(32, PACKED / deepest / 32 * 32));
  columns = std::min(columns, n);
  const int64_t blocks = (n + columns - 1) / columns;
#pragma omp parallel num_threads(threads)
  {
    Buffer<bf16> packed;
    std::vector<float> sums(ROWS * columns);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < experts * blocks; ++task) {
      const int64_t e = task / blocks, first = task % blocks * columns;
      const int64_t width = std::min(columns, n - first);
      if (bounds[e] == bounds[e + 1]) continue;
      bf16* part = packed.reserve(deepest * columns);
      for (const Term& term : terms) {
        const bf16* w = term.w + e * term.stride;
        if (term.by_output)
          pack_outputs(w + first * term.leading, term.leading, term.k, width, part);
        else
          pack_inputs(w + first, term.leading, term.k, width, part);
        part += term.k * width;
      }
      for (int64_t row = bounds[e]; row < bounds[e + 1]; row += ROWS) {
        const int64_t rows = std::min(ROWS, bounds[e + 1] - row);
        const bf16* b = packed.data.get();
        for (int64_t t = 0; t < count; ++t) {
          const Term& term = terms[t];
          at::native::cpublas::brgemm(rows, width, term.k, term.k, width, width, t > 0,
                                      term.x + row * term.k, b, sums.data(), true);
          b += term.k * width;
        }
        for (int64_t i = 0; i < rows; ++i) {
          const float* in = sums.data() + i * width;
          bf16* line = out + (row + i) * n + first;
#pragma omp simd
          for (int64_t j = 0; j < width; ++j) line[j] = round_to_bf16(in[j]);
        }
      }
    }
    at::native::cpublas::brgemm_release(true);
  }
}

// out [experts, r, size] float32 = scale * p_e^T q_e; p [rows, r], q [rows, size]; bounds as above.
void grouped_outer(const bf16* p, const bf16* q, const int64_t* bounds, int64_t experts, int64_t r,
                   int64_t size, float scale, float* out, int threads) {
  const int64_t columns = std::min(COLUMNS, size), blocks = (size + columns - 1) / columns;
#pragma omp parallel num_threads(threads)
  {
    std::vector<bf16> a(r * ROWS), b(ROWS * columns);
    std::vector<float> sums(r * columns);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < experts * blocks; ++task) {
      const int64_t e = task / blocks, first = task % blocks * columns;
      const int64_t width = std::min(columns, size - first);
      float* target = out + e * r * size + first;
      if (bounds[e] == bounds[e + 1]) {
        for (int64_t i = 0; i < r; ++i) std::memset(target + i * size, 0, width * sizeof(float));
        continue;
      }
      for (int64_t row = bounds[e]; row < bounds[e + 1]; row += ROWS) {
        const int64_t rows = std::min(ROWS, bounds[e + 1] - row);
        if (rows < ROWS) {
          std::fill(a.begin(), a.end(), bf16{0});
          std::fill(b.begin(), b.end(), bf16{0});
        }
        for (int64_t i = 0; i < r; ++i)
          for (int64_t j = 0; j < rows; ++j) a[i * ROWS + j] = p[(row + j) * r + i];
        pack_inputs(q + row * size + first, size, rows, width, b.data());
        at::native::cpublas::brgemm(r, width, ROWS, ROWS, width, width, row > bounds[e], a.data(),
                                    b.data(), sums.data(), true);
      }
      for (int64_t i = 0; i < r; ++i)
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) target[i * size + j] = scale * sums[i * width + j];
    }
    at::native::cpublas::brgemm_release(true);
  }
}

}  // extern "C"

// Products over rows that are sorted by expert, each expert with a matrix of its own.
//
// A worked example: 2 experts, rows = 48 of which the first 16 are expert 0's, k = 64, n = 96.
//
//   bounds [0, 16, 48]     x [48, 64]     w [2, 96, 64]     out [48, 96]
//
//   grouped_linear   out[i] = x[i] w[e]^T for the expert e of row i
//   grouped_int8     the same for w in int8 and x in 8 bits, and further terms in bf16
//   grouped_outer    out[e] = p_e^T q_e over its rows, float32 [experts, rank, size]
//
// In 8 bits, x is stored with zero at 128: sum (x - 128) w = sum x w - 128 sum w, and the second
// sum is known for each column before.
//
// A product may have several terms, x1 w1^T + x2 w2^T + ..., which are summed in float32 and
// rounded once: a frozen weight and LoRA's B, or gate and up in the gradient of their input.
//
// A task of grouped_linear is one expert and a block of columns. It reorders its part of w to
// brgemm's layout (pairs along k together) in a buffer that stays in the cache, and multiplies all
// rows of the expert by it. So w is read once, there is no second copy of it, and experts run side
// by side, however few rows one has. Bounds are multiples of 16, the rows of one AMX tile.

#include <immintrin.h>

#include <vector>

#include "bf16.h"
#include "gemm/vectors.h"

namespace at::native::cpublas {
void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const c10::BFloat16* a, const c10::BFloat16* b, float* c, bool vnni);
void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const unsigned char* a, const signed char* b, int32_t* c, bool vnni);
void brgemm_release(bool vnni);
}  // namespace at::native::cpublas

namespace {

constexpr int64_t ROWS = 32;            // of one brgemm, 16 at the end of an expert
constexpr int64_t PACKED = 512 * 1024;  // the most bytes of a reordered part
constexpr int64_t COLUMNS = 256;        // the most columns of a task
constexpr int64_t DEPTH = 128;          // the most rows that grouped_outer sums up in one brgemm

struct Term {  // x [rows, k] times w[e]^T; w[e] is [n, k] if by_output, else its transpose [k, n]
  const bf16* x;
  const bf16* w;
  int64_t k, stride, leading, by_output;
};

Term read_term(const int64_t* numbers) {
  return {reinterpret_cast<const bf16*>(numbers[0]),
          reinterpret_cast<const bf16*>(numbers[1]),
          numbers[2],
          numbers[3],
          numbers[4],
          numbers[5]};
}

// Reorders `columns` columns of B [k, n] so that 32 bits along k are together: [k / 2][columns][2]
// of bf16, [k / 4][columns][4] of int8; k is a multiple of 2 or 4.
// B = in^T, in [columns, k] with rows `leading` apart:
template <typename T>
void pack_outputs(const T* in, int64_t leading, int64_t k, int64_t columns, T* out) {
  constexpr int64_t EACH = 4 / sizeof(T);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(in);
  uint32_t* packed = reinterpret_cast<uint32_t*>(out);
  const int64_t depth = k / EACH, between = leading / EACH;
  const int64_t whole = depth / 16 * 16, wide = columns / 16 * 16;
  for (int64_t i = 0; i < wide; i += 16)
    for (int64_t j = 0; j < whole; j += 16)
      transpose16(words + i * between + j, between, packed + j * columns + i, columns);
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = i < wide ? whole : 0; j < depth; ++j)
      packed[j * columns + i] = words[i * between + j];
}

void pack_inputs(const int8_t* in, int64_t leading, int64_t k, int64_t columns, int8_t* out) {
  for (int64_t i = 0; i < k; i += 4) {
    const uint8_t* row = reinterpret_cast<const uint8_t*>(in + i * leading);
    const uint8_t *second = row + leading, *third = second + leading, *fourth = third + leading;
    uint32_t* words = reinterpret_cast<uint32_t*>(out + i * columns);
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j)
      words[j] = uint32_t(row[j]) | uint32_t(second[j]) << 8 | uint32_t(third[j]) << 16 |
                 uint32_t(fourth[j]) << 24;
  }
}

void pack_terms(const std::vector<Term>& terms, int64_t e, int64_t first, int64_t width,
                bf16* part) {
  for (const Term& term : terms) {
    const bf16* w = term.w + e * term.stride;
    if (term.by_output)
      pack_outputs(w + first * term.leading, term.leading, term.k, width, part);
    else
      pack_b(w + first, term.leading, term.k, width, part);
    part += term.k * width;
  }
}

// sums [rows, width] = (or += if `add`) the terms for these rows, packed by `pack_terms`.
void multiply_terms(const std::vector<Term>& terms, int64_t row, int64_t rows, int64_t width,
                    const bf16* packed, bool add, float* sums) {
  for (const Term& term : terms) {
    at::native::cpublas::brgemm(rows, width, term.k, term.k, width, width, add,
                                term.x + row * term.k, packed, sums, true);
    packed += term.k * width;
    add = true;
  }
}

void store(const float* sums, int64_t rows, int64_t width, int64_t leading, bf16* out) {
  for (int64_t i = 0; i < rows; ++i)
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) out[i * leading + j] = round_to_bf16(sums[i * width + j]);
}

std::vector<Term> read_terms(const int64_t* numbers, int64_t count) {
  std::vector<Term> terms;
  for (int64_t t = 0; t < count; ++t) terms.push_back(read_term(numbers + 6 * t));
  return terms;
}

int64_t depth_of(const std::vector<Term>& terms) {
  int64_t depth = 0;
  for (const Term& term : terms) depth += term.k;
  return depth;
}

int64_t columns_of_task(int64_t bytes_deep, int64_t n) {
  return std::min(n, std::min(COLUMNS, std::max<int64_t>(32, PACKED / bytes_deep / 32 * 32)));
}

// x [rows, k] with zero at 128 and one scale for each row; w[e] [n, k] if by_output, else [k, n];
// w_scales [experts, n] or null; sums_of_w int32 [experts, n], 128 times the sum of w over k.
struct Int8Term {
  const uint8_t* x;
  const float* x_scales;
  const int8_t* w;
  int64_t k, by_output;
  const float* w_scales;
  const int32_t* sums_of_w;

  // Reorders the columns from `first` of w[e], of which there are n.
  void pack(int64_t e, int64_t first, int64_t width, int64_t n, int8_t* part) const {
    const int8_t* own = w + e * n * k;
    if (by_output)
      pack_outputs(own + first * k, k, k, width, part);
    else
      pack_inputs(own + first, n, k, width, part);
  }

  // sums [rows, width] = the product of these rows with the packed columns; `place`: e n + first.
  void multiply(int64_t row, int64_t rows, int64_t width, int64_t place, const int8_t* packed,
                int32_t* products, float* sums) const {
    at::native::cpublas::brgemm(rows, width, k, k, width, width, false, x + row * k, packed,
                                products, true);
    const int32_t* shift = sums_of_w + place;
    for (int64_t i = 0; i < rows; ++i) {
      const int32_t* in = products + i * width;
      float* line = sums + i * width;
      const float scale = x_scales[row + i];
      if (w_scales) {
        const float* scales = w_scales + place;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) line[j] = (in[j] - shift[j]) * scale * scales[j];
      } else {
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) line[j] = (in[j] - shift[j]) * scale;
      }
    }
  }
};

// The tasks of grouped_linear and grouped_int8: `first` (or null) plus the terms.
void grouped(const Int8Term* first, const std::vector<Term>& terms, const int64_t* bounds,
             int64_t experts, int64_t n, bf16* out, int threads) {
  const int64_t in_int8 = first ? first->k : 0;
  const int64_t columns = columns_of_task(in_int8 + 2 * depth_of(terms), n);
  const int64_t blocks = (n + columns - 1) / columns;
#pragma omp parallel num_threads(threads)
  {
    std::vector<int8_t> packed_int8(in_int8 * columns);
    std::vector<int32_t> products(first ? ROWS * columns : 0);
    std::vector<bf16> packed(depth_of(terms) * columns);
    std::vector<float> sums(ROWS * columns);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < experts * blocks; ++task) {
      const int64_t e = task / blocks, begin = task % blocks * columns;
      const int64_t width = std::min(columns, n - begin);
      if (bounds[e] == bounds[e + 1]) continue;
      if (first) first->pack(e, begin, width, n, packed_int8.data());
      pack_terms(terms, e, begin, width, packed.data());
      for (int64_t row = bounds[e]; row < bounds[e + 1]; row += ROWS) {
        const int64_t rows = std::min(ROWS, bounds[e + 1] - row);
        if (first)
          first->multiply(row, rows, width, e * n + begin, packed_int8.data(), products.data(),
                          sums.data());
        multiply_terms(terms, row, rows, width, packed.data(), first != nullptr, sums.data());
        store(sums.data(), rows, width, n, out + row * n + begin);
      }
    }
    at::native::cpublas::brgemm_release(true);
  }
}

// The depth of one brgemm over the rows [row, last): all of them up to DEPTH, a multiple of ROWS.
inline int64_t depth_from(int64_t row, int64_t last) {
  return std::min(DEPTH, (last - row + ROWS - 1) / ROWS * ROWS);
}

// The rows [first, last) of p [.., r] as parts [r, depth], the last one filled up with zeros.
void transpose_rows(const bf16* p, int64_t first, int64_t last, int64_t r, bf16* out) {
  for (int64_t row = first; row < last; row += DEPTH) {
    const int64_t depth = depth_from(row, last);
    for (int64_t j = 0; j < depth; ++j)
      for (int64_t i = 0; i < r; ++i)
        out[i * depth + j] = row + j < last ? p[(row + j) * r + i] : bf16{0};
    out += r * depth;
  }
}

// Products of the rows of p, transposed by transpose_rows, and of q, whose row i is at tokens[i] if
// tokens is not null, and zeros where tokens[i] is `count`.
struct Outer {
  bf16* transposed;
  const bf16 *q, *zeros;  // zeros [size]
  const int64_t *tokens, *bounds;
  int64_t count, r, size;

  bf16* part(int64_t e) const { return transposed + r * (bounds[e] + ROWS * e); }

  const bf16* row_of(int64_t i) const {
    if (!tokens) return q + i * size;
    return tokens[i] < count ? q + tokens[i] * size : zeros;
  }

  // The columns from `first` of the rows [row, row + rows), as pack_b packs them, and zeros up to
  // `depth` rows.
  void pack(int64_t row, int64_t rows, int64_t depth, int64_t first, int64_t width,
            bf16* packed) const {
    for (int64_t i = 0; i < rows; i += 2) {
      const bf16* one = row_of(row + i) + first;
      const bf16* other = (i + 1 < rows ? row_of(row + i + 1) : zeros) + first;
      uint32_t* pairs = reinterpret_cast<uint32_t*>(packed + i * width);
#pragma omp simd
      for (int64_t j = 0; j < width; ++j)
        pairs[j] = uint32_t(one[j].bits) | uint32_t(other[j].bits) << 16;
    }
    std::fill(packed + (rows + 1) / 2 * 2 * width, packed + depth * width, bf16{0});
  }

  // sums [r, width] = p_e^T q_e in the columns from `first`; packed: DEPTH x width.
  void multiply(int64_t e, int64_t first, int64_t width, bf16* packed, float* sums) const {
    if (bounds[e] == bounds[e + 1]) std::fill(sums, sums + r * width, 0.0f);
    const bf16* a = part(e);
    for (int64_t row = bounds[e]; row < bounds[e + 1]; row += DEPTH) {
      const int64_t rows = std::min(DEPTH, bounds[e + 1] - row);
      const int64_t depth = depth_from(row, bounds[e + 1]);
      pack(row, rows, depth, first, width, packed);
      at::native::cpublas::brgemm(r, width, depth, depth, width, width, row > bounds[e], a, packed,
                                  sums, true);
      a += r * depth;
    }
  }
};

// Within a parallel region: out [experts, rank, size].
void outer_by_expert(const Outer& outer, int64_t experts, int64_t rank, float scale, float* out) {
  const int64_t size = outer.size, columns = std::min(COLUMNS, size);
  const int64_t blocks = (size + columns - 1) / columns;
  std::vector<bf16> packed(DEPTH * columns);
  std::vector<float> sums(outer.r * columns);
#pragma omp for schedule(dynamic, 1)
  for (int64_t task = 0; task < experts * blocks; ++task) {
    const int64_t e = task / blocks, first = task % blocks * columns;
    const int64_t width = std::min(columns, size - first);
    outer.multiply(e, first, width, packed.data(), sums.data());
    float* target = out + e * rank * size + first;
    for (int64_t i = 0; i < rank; ++i)
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) target[i * size + j] = scale * sums[i * width + j];
  }
}

// Within a parallel region: out [size, rank, experts], sixteen experts, a cache line, at a time.
void outer_by_column(const Outer& outer, int64_t experts, int64_t rank, float scale, float* out) {
  constexpr int64_t WIDE = 128, EACH = 16;
  const int64_t size = outer.size, r = outer.r, blocks = (size + WIDE - 1) / WIDE;
  const int64_t parts = (experts + EACH - 1) / EACH;
  const int64_t between = r * WIDE + EACH;  // no power of two, so that lines differ in their set
  std::vector<bf16> packed(DEPTH * WIDE);
  std::vector<float> sums(EACH * between);
#pragma omp for schedule(dynamic, 1)
  for (int64_t task = 0; task < blocks * parts; ++task) {
    const int64_t first = task / parts * WIDE, width = std::min(WIDE, size - first);
    const int64_t e = task % parts * EACH, some = std::min(EACH, experts - e);
    for (int64_t i = 0; i < some; ++i) {
      float* own = sums.data() + i * between;
      outer.multiply(e + i, first, width, packed.data(), own);
#pragma omp simd
      for (int64_t j = 0; j < rank * width; ++j) own[j] *= scale;
    }
    for (int64_t i = 0; i < rank; ++i)
      for (int64_t j = 0; j < width; j += EACH) {
        const float* from = sums.data() + i * width + j;
        float* to = out + ((first + j) * rank + i) * experts + e;
        if (some == EACH && width - j >= EACH) {
          transpose16(reinterpret_cast<const uint32_t*>(from), between,
                      reinterpret_cast<uint32_t*>(to), rank * experts);
          continue;
        }
        for (int64_t k = 0; k < std::min(EACH, width - j); ++k)
          for (int64_t m = 0; m < some; ++m) to[k * rank * experts + m] = from[m * between + k];
      }
  }
}

}  // namespace

extern "C" {

// out [rows, n] = the sum of `count` terms, each six numbers as in Term: the addresses of x and w,
// k, w's elements per expert and per row, by_output. bounds int64 [experts + 1], multiples of 16.
void grouped_linear(const int64_t* numbers, int64_t count, const int64_t* bounds, int64_t experts,
                    int64_t n, bf16* out, int threads) {
  grouped(nullptr, read_terms(numbers, count), bounds, experts, n, out, threads);
}

// The same with a first term in int8, see Int8Term.
void grouped_int8(const uint8_t* x, const float* x_scales, const int8_t* w, int64_t k, int64_t n,
                  int64_t by_output, const float* w_scales, const int32_t* sums_of_w,
                  const int64_t* numbers, int64_t count, const int64_t* bounds, int64_t experts,
                  bf16* out, int threads) {
  const Int8Term first{x, x_scales, w, k, by_output, w_scales, sums_of_w};
  grouped(&first, read_terms(numbers, count), bounds, experts, n, out, threads);
}

// Rounds the rows x [rows, size] times their expert's columns [experts, size] to 8 bits with zero
// at 128 and one scale for each row.
void grouped_quantize(const bf16* x, const float* columns, const int64_t* bounds, int64_t experts,
                      int64_t size, uint8_t* values, float* scales, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scaled(size);
    for (int64_t e = 0; e < experts; ++e) {
      const float* of_expert = columns + e * size;
#pragma omp for schedule(static) nowait
      for (int64_t i = bounds[e]; i < bounds[e + 1]; ++i) {
        float largest = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t j = 0; j < size; ++j) {
          scaled[j] = to_float(x[i * size + j]) * of_expert[j];
          largest = std::max(largest, std::fabs(scaled[j]));
        }
        scales[i] = largest / 127;
        const float inverse = largest > 0 ? 127 / largest : 0;
#pragma omp simd
        for (int64_t j = 0; j < size; ++j)
          values[i * size + j] = uint8_t(int32_t(std::nearbyint(scaled[j] * inverse)) + 128);
      }
    }
  }
}

// scale * p_e^T q_e over the rows of each expert, its first `rank` rows, float32: out [experts,
// rank, size], or if `by_column` [size, rank, experts], which is how peft has B. p [rows, r], q
// [rows, size], or [count, size] of which tokens int64 [rows] chooses; bounds as above.
void grouped_outer(const bf16* p, const bf16* q, const int64_t* tokens, int64_t count,
                   const int64_t* bounds, int64_t experts, int64_t r, int64_t rank, int64_t size,
                   int64_t by_column, float scale, float* out, int threads) {
  // p^T in parts of up to DEPTH rows, filled up with zeros to a multiple of ROWS: those of expert e
  // start at its bound + ROWS e.
  std::vector<bf16> transposed(r * (bounds[experts] + ROWS * experts));
  const std::vector<bf16> zeros(size);
  const Outer outer{transposed.data(), q, zeros.data(), tokens, bounds, count, r, size};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t e = 0; e < experts; ++e)
      transpose_rows(p, bounds[e], bounds[e + 1], r, outer.part(e));
    if (by_column)
      outer_by_column(outer, experts, rank, scale, out);
    else
      outer_by_expert(outer, experts, rank, scale, out);
    at::native::cpublas::brgemm_release(true);
  }
}

}  // extern "C"

// An int8 product of a frozen matrix on AVX512-VNNI: out [rows, columns] = x [rows, inner] times w
// [columns, inner] transposed, with one scale for each row and each column.
//
// vpdpbusd takes unsigned values of x, so x is rounded to 8 bits with zero at 128, and 128 times
// the sum of each column of w is subtracted. x lies row by row, its rows `stride` bytes apart (a
// multiple of 4, not of 4096, so that six rows do not share sets of a cache). w lies in panels of
// 64 columns, in groups of 4 along k, whose number is a multiple of 16: [panel][inner / 4][64][4].
//
// The gradient of x needs the transpose of w, with four columns of w together instead of four of
// its k. It reads the same panels: a task transposes its chunk of a panel into L2 before it
// multiplies it by all of its rows, 12 shuffles for 256 bytes, which take part in 1,536 vpdpbusd.
// Therefore its tasks are twice as high, and its chunks half as deep.
//
// The micro-kernel sums up 6 rows by 64 columns in 24 registers. A task is ROWS rows by one panel,
// in chunks of CHUNK groups of k; its sums stay in L2.

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include "vectors.h"

namespace {

constexpr int64_t PANEL = 64, HEIGHT = 6, ROWS = 32 * HEIGHT, CHUNK = 512, GROUP = 4 * PANEL;

// sums [6, 64] (+)= six rows of x times a panel over `groups` groups of k.
inline void multiply_rows(const uint8_t* x, int64_t stride, const int8_t* w, int32_t* sums,
                          int64_t groups, bool first) {
  __m512i sum[HEIGHT][4];
#pragma GCC unroll 6
  for (int i = 0; i < HEIGHT; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      sum[i][j] = first ? _mm512_setzero_si512() : _mm512_load_si512(sums + i * PANEL + j * 16);
  const uint8_t *upper = x, *lower = x + 3 * stride;
  for (int64_t k = 0; k < groups; ++k) {
    __m512i columns[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      columns[j] = _mm512_load_si512(w + j * 64);
      _mm_prefetch(reinterpret_cast<const char*>(w) + 8 * GROUP + j * 64, _MM_HINT_T0);
    }
#pragma GCC unroll 6
    for (int i = 0; i < HEIGHT; ++i) {
      int32_t four;
      std::memcpy(&four, i < 3 ? upper + i * stride : lower + (i - 3) * stride, 4);
      const __m512i row = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], row, columns[j]);
    }
    upper += 4, lower += 4, w += GROUP;
  }
#pragma GCC unroll 6
  for (int i = 0; i < HEIGHT; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_store_si512(sums + i * PANEL + j * 16, sum[i][j]);
}

}  // namespace

extern "C" {

// What vnni_multiply computes; kernels/gemm/vnni.py has the same fields. column_scales, bias and
// residual may be null; rows of x beyond `rows`, up to a multiple of 6, must exist. transposed: w
// lies in the panels of its transpose [inner, columns].
struct VnniProduct {
  int64_t rows, columns, groups, stride, is_float32, transposed;
  const uint8_t* x;
  const int8_t* w;
  const int32_t* shifts;  // [columns], 128 times the sums of w's columns
  const float *row_scales, *column_scales;
  const void *bias, *residual;  // [columns]; [rows, columns], which may be out
  void* out;                    // [rows, columns], bf16 or float32, as bias and residual
};

}  // extern "C"

namespace {

template <typename T>
void store_rows(const VnniProduct& p, const int32_t* sums, int64_t row, int64_t rows,
                int64_t column) {
  const T* bias = static_cast<const T*>(p.bias);
  const T* residual = static_cast<const T*>(p.residual);
  T* out = static_cast<T*>(p.out);
  for (int64_t j = column; j < std::min(column + PANEL, p.columns); j += 16) {
    const __mmask16 mask = mask16(p.columns - j);
    const __m512i shift = _mm512_maskz_loadu_epi32(mask, p.shifts + j);
    const __m512 scale =
        p.column_scales ? _mm512_maskz_loadu_ps(mask, p.column_scales + j) : _mm512_set1_ps(1);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (row + i) * p.columns + j;
      const __m512i sum = _mm512_load_si512(sums + i * PANEL + j - column);
      __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, shift));
      value = _mm512_mul_ps(value, _mm512_mul_ps(_mm512_set1_ps(p.row_scales[row + i]), scale));
      if (bias) value = _mm512_add_ps(value, load_float(bias + j, mask));
      if (residual) value = _mm512_add_ps(value, load_float(residual + at, mask));
      store_rounded(out + at, mask, value);
    }
  }
}

// Groups [first, first + count) of a panel of a transposed w; first and count are multiples of 16.
void transpose_groups(const VnniProduct& p, int64_t panel, int64_t first, int64_t count,
                      int8_t* to) {
  const int64_t groups = (p.columns + PANEL - 1) / PANEL * 16;  // of the panels that it reads
  const char* from =
      reinterpret_cast<const char*>(p.w) + (first / 16 * groups + panel * 16) * GROUP;
  char* out = reinterpret_cast<char*>(to);
  for (int64_t k = 0; k < count; k += 16, from += groups * GROUP, out += 16 * GROUP)
    for (int64_t quarter = 0; quarter < 4; ++quarter)
      for (int64_t line = 0; line < 4; ++line)
        transpose_squares(from + quarter * 4 * GROUP + line * 64, GROUP,
                          out + line * 4 * GROUP + quarter * 64, GROUP);
}

template <typename T>
void multiply(const VnniProduct& p, int threads) {
  const int64_t panels = (p.columns + PANEL - 1) / PANEL;
  const int64_t height = p.transposed ? 2 * ROWS : ROWS, depth = p.transposed ? CHUNK / 2 : CHUNK;
  const int64_t blocks = (p.rows + height - 1) / height;
#pragma omp parallel num_threads(threads)
  {
    const int64_t sums_bytes = height * PANEL * 4, chunk = p.transposed ? (depth + 8) * GROUP : 0;
    char* const scratch = thread_scratch(sums_bytes + chunk);
    int32_t* sums = reinterpret_cast<int32_t*>(scratch);
    int8_t* transposed = reinterpret_cast<int8_t*>(scratch + sums_bytes);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t task = 0; task < blocks * panels; ++task) {
      const int64_t row = task / panels * height, panel = task % panels;
      const int64_t rows = std::min(height, p.rows - row);
      for (int64_t k = 0; k < p.groups; k += depth) {
        const int8_t* w = p.w + (panel * p.groups + k) * GROUP;
        if (p.transposed) {
          transpose_groups(p, panel, k, std::min(depth, p.groups - k), transposed);
          w = transposed;
        }
        for (int64_t i = 0; i < rows; i += HEIGHT)
          multiply_rows(p.x + (row + i) * p.stride + k * 4, p.stride, w, sums + i * PANEL,
                        std::min(depth, p.groups - k), k == 0);
      }
      store_rows<T>(p, sums, row, rows, panel * PANEL);
    }
  }
}

template <typename T>
void quantize(const T* x, const float* columns, uint8_t* out, float* scales, int64_t rows,
              int64_t inner, int64_t stride, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < (rows + HEIGHT - 1) / HEIGHT * HEIGHT; ++i) {
    uint8_t* to = out + i * stride;
    if (i >= rows) {
      std::memset(to, 128, stride);
      continue;
    }
    const T* row = x + i * inner;
    const float largest = largest_of(row, columns, inner);
    scales[i] = largest / 127;
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
    for (int64_t k = 0; k < inner; k += 16) {
      const __mmask16 mask = mask16(inner - k);
      const __m512i value = round_to_int(load_scaled(row + k, columns, k, mask), inverse);
      const __m512i shifted = _mm512_add_epi32(value, _mm512_set1_epi32(128));
      _mm512_mask_cvtusepi32_storeu_epi8(to + k, mask, shifted);
    }
    std::memset(to + inner, 128, stride - inner);
  }
}

}  // namespace

extern "C" {

void vnni_multiply(const VnniProduct* product, int threads) {
  if (product->is_float32)
    multiply<float>(*product, threads);
  else
    multiply<bf16>(*product, threads);
}

// x [rows, inner] times columns [inner] (or null), rounded to 8 bits with zero at 128 and one scale
// for each row: x[i][k] * columns[k] is about (out[i][k] - 128) * scales[i].
void vnni_quantize(const void* x, int64_t is_float32, const float* columns, uint8_t* out,
                   float* scales, int64_t rows, int64_t inner, int64_t stride, int threads) {
  if (is_float32)
    quantize(static_cast<const float*>(x), columns, out, scales, rows, inner, stride, threads);
  else
    quantize(static_cast<const bf16*>(x), columns, out, scales, rows, inner, stride, threads);
}

// w [columns, inner], whose strides are in elements, into panels, and 128 times its columns' sums.
void vnni_pack(const int8_t* w, int64_t columns, int64_t inner, int64_t column_stride,
               int64_t inner_stride, int8_t* out, int32_t* shifts, int threads) {
  const int64_t groups = (inner + 63) / 64 * 16, panels = (columns + PANEL - 1) / PANEL;
  advise_huge_pages(out, panels * groups * GROUP);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t panel = 0; panel < panels; ++panel) {
    int32_t sums[PANEL] = {};
    int8_t* to = out + panel * groups * GROUP;
    const int64_t count = std::min(PANEL, columns - panel * PANEL);
    std::memset(to, 0, groups * GROUP);
    for (int64_t k = 0; k < inner; ++k) {
      const int8_t* from = w + panel * PANEL * column_stride + k * inner_stride;
      for (int64_t n = 0; n < count; ++n) {
        const int8_t value = from[n * column_stride];
        to[k / 4 * GROUP + n * 4 + k % 4] = value;
        sums[n] += value;
      }
    }
    for (int64_t n = 0; n < count; ++n) shifts[panel * PANEL + n] = 128 * sums[n];
  }
}

}  // extern "C"

#endif

// RMSNorm and SwiGLU of one row, for elementwise.cpp, expert_rows.cpp and gemm/rows_pass.cpp.

#ifndef INTEL_FT_KERNELS_ROWS_H_
#define INTEL_FT_KERNELS_ROWS_H_

#include "bf16.h"
#include "gemm/vectors.h"

static inline float sigmoid(float x) {
  return 1.0f / (1.0f + fast_exp(-std::min(std::max(x, -87.0f), 87.0f)));
}

static inline __m512 sigmoid(__m512 x) {
  const __m512 most = _mm512_set1_ps(87.0f), one = _mm512_set1_ps(1.0f);
  const __m512 clamped = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), most);
  const __m512 below = _mm512_add_ps(fast_exp(_mm512_sub_ps(_mm512_setzero_ps(), clamped)), one);
  const __m512 inverse = _mm512_rcp14_ps(below);  // and a step of Newton's method
  return _mm512_mul_ps(inverse, _mm512_fnmadd_ps(below, inverse, _mm512_set1_ps(2.0f)));
}

// out = weight * in / rms(in).
static inline void norm_row(const bf16* in, const bf16* weight, float eps, int64_t size,
                            bf16* out) {
  __m512 squares = _mm512_setzero_ps(), others = squares;
  for (int64_t j = 0; j < size; j += 32) {
    const __m512 first = load_float(in + j, mask16(size - j));
    const __m512 second = load_float(in + j + 16, mask16(size - j - 16));
    squares = _mm512_fmadd_ps(first, first, squares);
    others = _mm512_fmadd_ps(second, second, others);
  }
  const float sum = _mm512_reduce_add_ps(_mm512_add_ps(squares, others));
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(sum / size + eps));
  for (int64_t j = 0; j < size; j += 16) {
    const __mmask16 mask = mask16(size - j);
    const __m512 rounded = widen(to_bf16(_mm512_mul_ps(load_float(in + j, mask), scale)));
    store_rounded(out + j, mask, _mm512_mul_ps(load_float(weight + j, mask), rounded));
  }
}

// out = silu(gate) * up.
static inline void swiglu_row(const bf16* gate, const bf16* up, int64_t size, bf16* out) {
  for (int64_t j = 0; j < size; j += 16) {
    const __mmask16 mask = mask16(size - j);
    const __m512 g = load_float(gate + j, mask);
    const __m512 silu = _mm512_mul_ps(g, sigmoid(g));
    store_rounded(out + j, mask, _mm512_mul_ps(silu, load_float(up + j, mask)));
  }
}

#endif  // INTEL_FT_KERNELS_ROWS_H_

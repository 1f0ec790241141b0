// RMSNorm and SwiGLU of one row, for elementwise.cpp, expert_rows.cpp and gemm/rows_pass.cpp.

#ifndef INTEL_FT_KERNELS_ROWS_H_
#define INTEL_FT_KERNELS_ROWS_H_

#include "bf16.h"

static inline float sigmoid(float x) {
  return 1.0f / (1.0f + fast_exp(-std::min(std::max(x, -87.0f), 87.0f)));
}

// out = weight * in / rms(in).
static inline void norm_row(const bf16* in, const bf16* weight, float eps, int64_t size,
                            bf16* out) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < size; ++j) squares += to_float(in[j]) * to_float(in[j]);
  const float scale = 1.0f / std::sqrt(squares / size + eps);
#pragma omp simd
  for (int64_t j = 0; j < size; ++j)
    out[j] = round_to_bf16(to_float(weight[j]) * to_float(round_to_bf16(to_float(in[j]) * scale)));
}

// silu(gate) * up.
static inline bf16 swiglu_of(bf16 gate, bf16 up) {
  const float g = to_float(gate);
  return round_to_bf16(g * sigmoid(g) * to_float(up));
}

#endif  // INTEL_FT_KERNELS_ROWS_H_

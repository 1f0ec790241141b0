// bfloat16 numbers, their layout in brgemm and the exponential function, as the kernels use them.
//
// Tensors are bfloat16; arithmetic and sums are float32. Functions are static, so that each source
// file compiles its own vectorized copy and the library exports kernels only.

#ifndef INTEL_FT_KERNELS_BF16_H_
#define INTEL_FT_KERNELS_BF16_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// torch's type, declared here so that its headers are not needed to compile.
namespace c10 {
struct BFloat16 {
  uint16_t bits;
};
}  // namespace c10

using bf16 = c10::BFloat16;

static inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Rounds to nearest even. A NaN may become infinity; the trainer checks the loss for both.
static inline bf16 round_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// exp(x) for x <= 88, to about 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2]. Written out
// because the C library's function does not vectorize.
static inline float fast_exp(float x) {
  x = std::max(x, -87.0f);
  float n = std::nearbyint(x * 1.44269504f);
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t exponent = (int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, 4);
  return p * scale;
}

// B = in [k, columns], whose rows are `leading` apart, in brgemm's layout of a right-hand matrix
// (VNNI): pairs along k together, [k/2][columns][2]. The last row of an odd k is paired with zeros.
static inline void pack_b(const bf16* in, int64_t leading, int64_t k, int64_t columns, bf16* out) {
  for (int64_t i = 0; i + 1 < k; i += 2) {
    const bf16 *first = in + i * leading, *second = first + leading;
    uint32_t* pairs = reinterpret_cast<uint32_t*>(out + i * columns);
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j)
      pairs[j] = uint32_t(first[j].bits) | uint32_t(second[j].bits) << 16;
  }
  if (k % 2 == 0) return;
  const bf16* last = in + (k - 1) * leading;
  uint32_t* pairs = reinterpret_cast<uint32_t*>(out + (k - 1) * columns);
  for (int64_t j = 0; j < columns; ++j) pairs[j] = last[j].bits;
}

#endif  // INTEL_FT_KERNELS_BF16_H_

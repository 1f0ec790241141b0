// The cross-entropy of rows of logits, and its gradient, softmax - one-hot, as the panels of a
// product on AMX (tile_product.cpp), so that the gradient is written once and never packed.

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include "panels.h"

namespace {

constexpr int64_t EACH = 32;  // logits of a k-step

inline __m512 exp_of(const bf16* logits, __mmask16 mask, __m512 largest) {
  return fast_exp(_mm512_sub_ps(load_float(logits, mask), largest));
}

// The sum of exp(logits - largest), in two sums of every second 16.
float sum_of_exp(const bf16* logits, int64_t size, float largest) {
  const __m512 shift = _mm512_set1_ps(largest);
  __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t j = 0; j < size; j += EACH)
    for (int64_t half = 0; half < 2; ++half) {
      const __mmask16 mask = mask16(size - j - half * 16);
      const __m512 value = exp_of(logits + j + half * 16, mask, shift);
      sums[half] = _mm512_mask_add_ps(sums[half], mask, sums[half], value);
    }
  return _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
}

float max_of(const bf16* logits, int64_t size) {
  __m512 largest = _mm512_set1_ps(-INFINITY);
  for (int64_t j = 0; j < size; j += 16) {
    const __mmask16 mask = mask16(size - j);
    largest = _mm512_mask_max_ps(largest, mask, largest, load_float(logits + j, mask));
  }
  return _mm512_reduce_max_ps(largest);
}

void clear_row(int64_t steps, char* to) {
  for (int64_t step = 0; step < steps; ++step, to += STEP)
    _mm512_store_si512(to, _mm512_setzero_si512());
}

// The loss of one row; its gradient goes to lines that are STEP bytes apart.
float row_gradient(const bf16* logits, int64_t target, int64_t size, char* to) {
  const float largest = max_of(logits, size), sum = sum_of_exp(logits, size, largest);
  const __m512 shift = _mm512_set1_ps(largest), inverse = _mm512_set1_ps(1.0f / sum);
  for (int64_t j = 0, step = 0; j < size; j += EACH, ++step)
    for (int64_t half = 0; half < 2; ++half) {
      const __mmask16 mask = mask16(size - j - half * 16);
      const __m512 value = exp_of(logits + j + half * 16, mask, shift);
      const __m256i rounded = to_bf16(_mm512_maskz_mul_ps(mask, value, inverse));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + step * STEP + half * 32), rounded);
    }
  // Subtract `largest` first: in largest + log(sum) large logits would absorb the logarithm.
  const float shifted = to_float(logits[target]) - largest;
  const bf16 own = round_to_bf16(fast_exp(shifted) / sum - 1.0f);
  std::memcpy(to + target / EACH * STEP + target % EACH * 2, &own, sizeof own);
  return std::log(sum) - shifted;
}

}  // namespace

extern "C" {

// logits [rows, size], float32 losses [rows], panels of [rows, size]. Loss and gradient are 0 where
// the target is negative.
void cross_entropy_panels(const bf16* logits, const int64_t* targets, float* losses, int64_t rows,
                          int64_t size, char* panels, int threads) {
  const int64_t steps = (size + EACH - 1) / EACH;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < panels_of(rows) * PANEL; ++i) {
    char* to = panels + i / PANEL * steps * STEP + i % PANEL / 16 * TILE + i % 16 * LINE;
    const bool counts = i < rows && targets[i] >= 0;
    if (!counts) clear_row(steps, to);
    if (i < rows) losses[i] = counts ? row_gradient(logits + i * size, targets[i], size, to) : 0;
  }
}

}  // extern "C"

#endif

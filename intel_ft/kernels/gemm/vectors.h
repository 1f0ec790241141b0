// What the products share: AVX-512 helpers, buffers that grow, and huge pages.

#ifndef INTEL_FT_KERNELS_GEMM_VECTORS_H_
#define INTEL_FT_KERNELS_GEMM_VECTORS_H_

#include <immintrin.h>
#include <sys/mman.h>

#include <cstdlib>

#include "../bf16.h"

static constexpr int64_t HUGE_PAGE = 2 << 20;

// Asks for huge pages where the range holds whole ones, before it is written for the first time.
static inline void advise_huge_pages(void* start, int64_t bytes) {
  const int64_t begin = (int64_t(start) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const int64_t end = (int64_t(start) + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// A thread's buffer, which grows and never shrinks; on huge pages. It has no destructor, because
// the library is linked without the start files that run those of threads.
struct Scratch {
  char* data = nullptr;
  int64_t size = 0;
  char* reserve(int64_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
      data = static_cast<char*>(std::aligned_alloc(HUGE_PAGE, size));
      if (!data) std::abort();
      advise_huge_pages(data, size);
    }
    return data;
  }
};

// This thread's buffer of at least `bytes`, the same for all products, which run one after another.
inline char* thread_scratch(int64_t bytes) {
  static thread_local Scratch scratch;
  return scratch.reserve(bytes);
}

// Four lines of int8, `between` bytes apart, become four lines `apart` bytes apart. A line holds
// four squares of 4 x 4; square i of line j becomes square j of line i, itself transposed.
static inline void transpose_squares(const char* from, int64_t between, char* to, int64_t apart) {
  const __m512i square =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m512i r[4];
  for (int64_t i = 0; i < 4; ++i)
    r[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(from + i * between), square);
  const __m512i a = _mm512_shuffle_i32x4(r[0], r[1], 0x44);
  const __m512i b = _mm512_shuffle_i32x4(r[0], r[1], 0xee);
  const __m512i c = _mm512_shuffle_i32x4(r[2], r[3], 0x44);
  const __m512i d = _mm512_shuffle_i32x4(r[2], r[3], 0xee);
  _mm512_store_si512(to, _mm512_shuffle_i32x4(a, c, 0x88));
  _mm512_store_si512(to + apart, _mm512_shuffle_i32x4(a, c, 0xdd));
  _mm512_store_si512(to + 2 * apart, _mm512_shuffle_i32x4(b, d, 0x88));
  _mm512_store_si512(to + 3 * apart, _mm512_shuffle_i32x4(b, d, 0xdd));
}

// out[j][i] = in[i][j] for 16 x 16 numbers of 32 bits.
static inline void transpose16(const uint32_t* in, int64_t leading, uint32_t* out,
                               int64_t out_leading) {
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

// 16 numbers and those `leading` behind them, in pairs.
static inline __m512i paired(const bf16* in, int64_t leading) {
  const auto widened = [](const bf16* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  };
  return _mm512_or_si512(widened(in), _mm512_slli_epi32(widened(in + leading), 16));
}

// The first `count` of 16 lanes, or of 32.
static inline __mmask16 mask16(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : __mmask16((1u << count) - 1);
}
static inline __mmask32 mask32(int64_t count) {
  return count >= 32 ? 0xffffffffu : count <= 0 ? 0 : __mmask32((1u << count) - 1);
}

static inline __m512 widen(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
static inline __m512 load_float(const bf16* x, __mmask16 mask) {
  return widen(_mm256_maskz_loadu_epi16(mask, x));
}
static inline __m512 load_float(const float* x, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, x);
}

// Sixteen floats as bf16, rounded to nearest even.
static inline __m256i to_bf16(__m512 x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
static inline void store_rounded(bf16* to, __mmask16 mask, __m512 x) {
  _mm256_mask_storeu_epi16(to, mask, to_bf16(x));
}
static inline void store_rounded(float* to, __mmask16 mask, __m512 x) {
  _mm512_mask_storeu_ps(to, mask, x);
}

// bf16.h's fast_exp of sixteen numbers. NaN stays NaN, which max_ps would not keep.
static inline __m512 fast_exp(__m512 x) {
  const __m512 least = _mm512_set1_ps(-87.0f);
  x = _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, least, _CMP_LT_OQ), least);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  for (float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(term));
  return _mm512_scalef_ps(p, n);
}

// x[k...] times columns[k...], or x where columns is null.
template <typename T>
static inline __m512 load_scaled(const T* x, const float* columns, int64_t k, __mmask16 mask) {
  const __m512 value = load_float(x, mask);
  return columns ? _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, columns + k)) : value;
}

// The largest absolute value of a row, whose elements are multiplied by `columns` unless it is
// null; NaN if one is NaN, whose bits are above those of all numbers.
template <typename T>
static inline float largest_of(const T* row, const float* columns, int64_t inner) {
  __m512i largest = _mm512_setzero_si512();
  for (int64_t k = 0; k < inner; k += 16) {
    const __m512 value = load_scaled(row + k, columns, k, mask16(inner - k));
    largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(value)));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(largest);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline __m512i round_to_int(__m512 x, __m512 scale) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(x, scale));  // to nearest even, the default
}

#endif  // INTEL_FT_KERNELS_GEMM_VECTORS_H_

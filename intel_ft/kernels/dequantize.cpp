// The frozen weights of an OpenVINO IR, from codes of 4 or 8 bits to bfloat16.
//
// A row has one float16 scale and one zero point for each `group` of its weights:
//
//   weight = (code - zero) * scale, rounded to bfloat16
//
// Of 4 bits, two codes lie in a byte, the first in its low half. A worked example of one group:
//
//   bytes 0x21 0x43, zero 2, scale 0.5: codes 1 2 3 4, weights -0.5 0 0.5 1
//
// There are only 16 codes of 4 bits, so each group's 16 weights are computed once and looked up.

#include <immintrin.h>

#include "bf16.h"

namespace {

inline int32_t signed_code(int32_t code, int64_t bits, int64_t is_signed) {
  const int32_t half = 1 << (bits - 1);
  return is_signed ? (code ^ half) - half : code;
}

inline void look_up(const uint8_t* codes, const bf16* table, bf16* out, int64_t count) {
  int64_t j = 0;
#ifdef __AVX512BW__
  // A byte in 32 bits: its low half becomes the index of the lower 16 bits, the other of the upper.
  const __m512i halves = _mm512_set1_epi32(0x000f000f);
  const __m512i weights =
      _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)));
  for (; j + 32 <= count; j += 32) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + j / 2));
    const __m512i wide = _mm512_cvtepu8_epi32(bytes);
    const __m512i index =
        _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi32(wide, 12)), halves);
    _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(index, weights));
  }
#endif
  for (; j < count; j += 2) {
    out[j] = table[codes[j / 2] & 15];
    out[j + 1] = table[codes[j / 2] >> 4];
  }
}

}  // namespace

extern "C" {

// `zeros` may be null for zero points of 0; scales are float16, [rows, size / group].
void dequantize(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros, bf16* out,
                int64_t rows, int64_t size, int64_t group, int64_t bits, int64_t is_signed,
                int threads) {
  const int64_t groups = size / group;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = i * groups + g, first = i * size + g * group;
      const float scale = _cvtsh_ss(scales[at]);
      const int32_t zero = zeros ? zeros[at] : 0;
      if (bits == 4) {
        alignas(32) bf16 table[16];
        for (int32_t code = 0; code < 16; ++code)
          table[code] = round_to_bf16(float(signed_code(code, bits, is_signed) - zero) * scale);
        look_up(codes + first / 2, table, out + first, group);
      } else {
        for (int64_t j = 0; j < group; ++j)
          out[first + j] =
              round_to_bf16(float(signed_code(codes[first + j], bits, is_signed) - zero) * scale);
      }
    }
  }
}

}  // extern "C"

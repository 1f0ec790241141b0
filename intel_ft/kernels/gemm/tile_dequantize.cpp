// The compressed weights of an OpenVINO IR into the panels of bf16 that tile_product.cpp
// multiplies.
//
// Weights equal those of kernels/dequantize.cpp bit for bit: (code - zero) * scale, where `group`
// weights of a row share a scale and a zero point, and two codes of 4 bits lie in a byte. It works
// on lines, 32 weights of one row, which are 64 bytes of bf16:
//
//   w             a tile of 16 columns and a k-step is 16 lines, one of each row, transposed as 16
//                 x 16 pairs
//   w transposed  row r of both tiles of a k-step is the lines of rows 2r and 2r + 1, interleaved

#if defined(__AVX512BW__) && defined(__AVX512VL__)

#include "panels.h"

extern "C" {

// A weight [rows, size] as an IR stores it; kernels/gemm/tiles.py has the same fields. `zeros` may
// be null; scales are float16, [rows, size / group].
struct CompressedWeight {
  int64_t rows, size, group, bits, is_signed;
  const uint8_t* codes;
  const uint16_t* scales;
  const uint8_t* zeros;
};

}  // extern "C"

namespace {

class Lines {
 public:
  explicit Lines(const CompressedWeight& weight)
      : w_(weight),
        groups_(weight.size / weight.group),
        sign_(weight.is_signed ? 1 << (weight.bits - 1) : 0) {}

  // Weights [first, first + 32) of a row; zeros beyond the row's end and for rows beyond the last.
  __m512i at(int64_t row, int64_t first) const {
    if (row >= w_.rows || first >= w_.size) return _mm512_setzero_si512();
    if (w_.group % 32) return one_by_one(row, first);
    const int64_t group = row * groups_ + first / w_.group;
    const __m512 scale = _mm512_set1_ps(_cvtsh_ss(w_.scales[group]));
    const __m512i zero = _mm512_set1_epi32(w_.zeros ? w_.zeros[group] : 0);
    const __m512i indices = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const uint8_t* codes = w_.codes + (row * w_.size + first) * w_.bits / 8;
    if (w_.bits == 8)
      return _mm512_inserti64x4(_mm512_castsi256_si512(of_codes(load(codes), zero, scale)),
                                of_codes(load(codes + 16), zero, scale), 1);
    // The 16 weights of the group, looked up: a byte in 32 bits has the index of the lower 16 bits
    // in its low half, that of the upper ones in the other.
    const __m512i weights = _mm512_zextsi256_si512(of_codes(indices, zero, scale));
    const __m512i bytes = load(codes);
    const __m512i index = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
    return _mm512_permutexvar_epi16(_mm512_and_si512(index, _mm512_set1_epi32(0x000f000f)),
                                    weights);
  }

 private:
  static __m512i load(const uint8_t* bytes) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  }

  __m256i of_codes(__m512i codes, __m512i zero, __m512 scale) const {
    const __m512i sign = _mm512_set1_epi32(sign_);
    const __m512i values = _mm512_sub_epi32(_mm512_xor_si512(codes, sign), sign);
    return to_bf16(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(values, zero)), scale));
  }

  __m512i one_by_one(int64_t row, int64_t first) const {
    alignas(LINE) bf16 line[32] = {};
    for (int64_t i = first; i < std::min(first + 32, w_.size); ++i) {
      const int64_t at = row * w_.size + i, group = row * groups_ + i / w_.group;
      const int32_t code = w_.bits == 8 ? w_.codes[at] : w_.codes[at / 2] >> (at % 2 * 4) & 15;
      const int32_t value = (code ^ sign_) - sign_ - (w_.zeros ? w_.zeros[group] : 0);
      line[i - first] = round_to_bf16(float(value) * _cvtsh_ss(w_.scales[group]));
    }
    return _mm512_load_si512(line);
  }

  const CompressedWeight w_;
  int64_t groups_;
  int32_t sign_;
};

// 16 x 16 numbers of 32 bits: swaps bit after bit of their row with that of their column.
inline void transpose(__m512i* rows) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i second = _mm512_set1_epi32(16);
#pragma GCC unroll 4
  for (int bit = 1; bit < 16; bit *= 2) {
    const __m512i distance = _mm512_set1_epi32(bit);
    const __mmask16 set = _mm512_test_epi32_mask(lane, distance);
    const __m512i upper = _mm512_mask_sub_epi32(lane, set, _mm512_or_si512(lane, second), distance);
    const __m512i lower = _mm512_mask_or_epi32(_mm512_add_epi32(lane, distance), set, lane, second);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & bit) continue;
      const __m512i a = rows[i], b = rows[i + bit];
      rows[i] = _mm512_permutex2var_epi32(a, upper, b);
      rows[i + bit] = _mm512_permutex2var_epi32(a, lower, b);
    }
  }
}

// One k-step of a panel of w: tile i has rows 32 panel + 16 i and the 15 after it.
inline void step_of(const Lines& lines, int64_t panel, int64_t step, char* to) {
  for (int64_t tile = 0; tile < 2; ++tile, to += TILE) {
    __m512i rows[16];
    for (int64_t r = 0; r < 16; ++r) rows[r] = lines.at(panel * PANEL + tile * 16 + r, step * 32);
    transpose(rows);
    for (int64_t r = 0; r < 16; ++r) _mm512_store_si512(to + r * LINE, rows[r]);
  }
}

// One k-step of a panel of w transposed, whose k are rows.
inline void transposed_step_of(const Lines& lines, int64_t panel, int64_t step, char* to) {
  alignas(LINE) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = uint16_t(i / 2 + i % 2 * 32);
  const __m512i first = _mm512_load_si512(order);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int64_t r = 0; r < 16; ++r, to += LINE) {
    const __m512i even = lines.at(step * 32 + 2 * r, panel * PANEL);
    const __m512i odd = lines.at(step * 32 + 2 * r + 1, panel * PANEL);
    _mm512_store_si512(to, _mm512_permutex2var_epi16(even, first, odd));
    _mm512_store_si512(to + TILE, _mm512_permutex2var_epi16(even, second, odd));
  }
}

}  // namespace

extern "C" {

// The panels of a weight [rows, size], or of the transposed one.
void dequantize_w(const CompressedWeight* weight, int64_t transposed, char* out, int threads) {
  const int64_t columns = transposed ? weight->size : weight->rows;
  const int64_t inner = transposed ? weight->rows : weight->size;
  const int64_t panels = panels_of(columns), steps = (inner + 31) / 32;
  advise_huge_pages(out, panels * steps * STEP);
  const Lines lines(*weight);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t step = 0; step < steps; ++step) {
      char* to = out + (panel * steps + step) * STEP;
      if (transposed)
        transposed_step_of(lines, panel, step, to);
      else
        step_of(lines, panel, step, to);
    }
}

}  // extern "C"

#endif

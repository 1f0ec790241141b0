// Blocks of BLOCK tokens by `dim` elements of one head, as attention.cpp reads, packs and writes
// them.

#ifndef INTEL_FT_KERNELS_ATTENTION_BLOCKS_H_
#define INTEL_FT_KERNELS_ATTENTION_BLOCKS_H_

#include <cstring>

#include "bf16.h"
#include "forest.h"
#include "gemm/vectors.h"

namespace {

constexpr int64_t ROWS_AHEAD = 8;  // a token's head lies alone in memory: no hardware fetches it

// Rotates one token's head by its position, in pairs (j, j + dim/2) as Llama has them; `sign` -1
// rotates back. cos null: copies it.
template <typename T>
inline void rotate_row(const T* in, const bf16* cos, const bf16* sin, float sign, int64_t dim,
                       bf16* out) {
  if (!cos) {
    for (int64_t j = 0; j < dim; j += 16)
      store_rounded(out + j, mask16(dim - j), load_float(in + j, mask16(dim - j)));
    return;
  }
  const int64_t half = dim / 2;
  for (int64_t j = 0; j < half; j += 16) {
    const __mmask16 mask = mask16(half - j);
    const __m512 c = load_float(cos + j, mask);
    const __m512 s = _mm512_mul_ps(load_float(sin + j, mask), _mm512_set1_ps(sign));
    const __m512 low = load_float(in + j, mask), high = load_float(in + j + half, mask);
    store_rounded(out + j, mask, _mm512_fmsub_ps(low, c, _mm512_mul_ps(high, s)));
    store_rounded(out + j + half, mask, _mm512_fmadd_ps(high, c, _mm512_mul_ps(low, s)));
  }
}

// The factors of a token on; null stands for no rotation.
inline const bf16* factors_at(const bf16* factors, int64_t offset) {
  return factors ? factors + offset : nullptr;
}

inline void fetch_row(const bf16* row, int64_t dim) {
  for (int64_t j = 0; j < dim; j += 32)
    _mm_prefetch(reinterpret_cast<const char*>(row + j), _MM_HINT_T0);
}

// Reads `count` tokens of one head into a [count, dim] matrix; rotates them unless cos is null.
inline void load_rows(const bf16* source, int64_t stride, int64_t count, const bf16* cos,
                      const bf16* sin, int64_t dim, bf16* out) {
  for (int64_t i = 0; i < count; ++i) {
    const bf16* in = source + i * stride;
    fetch_row(in + ROWS_AHEAD * stride, dim);
    if (cos)
      rotate_row(in, cos + i * dim, sin + i * dim, 1.0f, dim, out + i * dim);
    else
      std::memcpy(out + i * dim, in, dim * sizeof(bf16));
  }
}

// Reads tokens from `token` on into rows first to last - 1 of a [BLOCK, dim] matrix, zeros into the
// other rows. source: the head's first token.
inline void load_block(const bf16* source, int64_t stride, int64_t token, int64_t first,
                       int64_t last, const bf16* cos, const bf16* sin, int64_t dim, bf16* out) {
  std::memset(out, 0, first * dim * sizeof(bf16));
  load_rows(source + token * stride, stride, last - first, factors_at(cos, token * dim),
            factors_at(sin, token * dim), dim, out + first * dim);
  std::memset(out + last * dim, 0, (BLOCK - last) * dim * sizeof(bf16));
}

// Reads the queries of a segment's block i, or another tensor of their shape.
inline void load_queries(const bf16* source, int64_t stride, const Segment& segment, int64_t i,
                         const bf16* cos, const bf16* sin, int64_t dim, bf16* out) {
  load_block(source, stride, segment.query_token(i), segment.first_query(i), segment.last_query(i),
             cos, sin, dim, out);
}

// Reads the keys or values of a segment's block b, the copied ones included.
inline void load_keys(const bf16* source, int64_t stride, const Segment& segment, int64_t b,
                      const bf16* cos, const bf16* sin, int64_t dim, bf16* out) {
  const int64_t first = segment.first_key(b);
  load_block(source, stride, segment.key_token(b, first), first, segment.last_key(b), cos, sin, dim,
             out);
  for (int64_t row = 0; row < first; ++row) {
    const int64_t token = segment.copied[row];
    load_rows(source + token * stride, stride, 1, factors_at(cos, token * dim),
              factors_at(sin, token * dim), dim, out + row * dim);
  }
}

// Adds the rows of a segment's copied tokens to those that they are copies of, in the last block of
// its parent, where they may be copies themselves.
inline void add_copied(const Tree& tree, const Segment& segment, int64_t dim, float* gradients) {
  if (segment.copied.empty()) return;
  const Segment& above = tree.segments[segment.parent];
  const float* from = gradients + segment.block * BLOCK * dim;
  float* to = gradients + (above.block + above.blocks() - 1) * BLOCK * dim;
#pragma omp simd
  for (int64_t i = 0; i < segment.offset() * dim; ++i) to[i] += from[i];
}

// Writes `count` tokens of one head, rotated back unless cos is null.
inline void store_block(const float* source, int64_t stride, int64_t count, const bf16* cos,
                        const bf16* sin, int64_t dim, bf16* out) {
  for (int64_t i = 0; i < count; ++i)
    rotate_row(source + i * dim, factors_at(cos, i * dim), factors_at(sin, i * dim), -1.0f, dim,
               out + i * stride);
}

// out [columns, 16] = in [16, columns] transposed, up to 16 columns of 32 bits.
inline void transpose_words(const uint32_t* in, int64_t stride, int64_t columns, uint32_t* out,
                            int64_t out_stride) {
  __m512i a[16], b[16];
  for (int64_t i = 0; i < 16; ++i)
    a[i] = _mm512_maskz_loadu_epi32(mask16(columns), in + i * stride);
  for (int64_t i = 0; i < 16; i += 2) {  // a lane: two rows, of columns 0, 1 and 2, 3 of its four
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int64_t i = 0; i < 16; i += 4)  // a[i + j]: four rows, of column j of each lane
    for (int64_t j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + 2 + j]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + 2 + j]);
    }
  for (int64_t j = 0; j < 4; ++j) {  // now whole lanes
    const __m512i low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
    const __m512i low_below = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
    const __m512i high_below = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
    b[j] = _mm512_shuffle_i32x4(low, low_below, 0x88);
    b[4 + j] = _mm512_shuffle_i32x4(high, high_below, 0x88);
    b[8 + j] = _mm512_shuffle_i32x4(low, low_below, 0xdd);
    b[12 + j] = _mm512_shuffle_i32x4(high, high_below, 0xdd);
  }
  for (int64_t i = 0; i < columns; ++i) _mm512_storeu_si512(out + i * out_stride, b[i]);
}

// As pack_b, for B = in^T [columns, BLOCK]; columns are even.
inline void pack_b_transposed(const bf16* in, int64_t columns, bf16* out) {
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(in);
  uint32_t* transposed = reinterpret_cast<uint32_t*>(out);
  const int64_t half = columns / 2;
  for (int64_t j = 0; j < half; j += 16)
    for (int64_t i = 0; i < BLOCK; i += 16)
      transpose_words(pairs + i * half + j, half, std::min<int64_t>(16, half - j),
                      transposed + j * BLOCK + i, BLOCK);
}

// out = in transposed, both [BLOCK, BLOCK].
inline void transpose_block(const bf16* in, bf16* out) {
  alignas(64) bf16 pairs[BLOCK * BLOCK];
  pack_b(in, BLOCK, BLOCK, BLOCK, pairs);
  for (int64_t j = 0; j < BLOCK; j += 16)
    transpose_words(reinterpret_cast<const uint32_t*>(pairs) + j, BLOCK, 16,
                    reinterpret_cast<uint32_t*>(out) + j * BLOCK / 2, BLOCK / 2);
}

}  // namespace

#endif  // INTEL_FT_KERNELS_ATTENTION_BLOCKS_H_

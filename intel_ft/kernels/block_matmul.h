// The small matmuls of attention's blocks: on AMX tiles where the process may use them, else by
// torch's own brgemm (AVX512-BF16 or AMX through oneDNN), a call of which costs more than such a
// matmul.

#ifndef INTEL_FT_KERNELS_BLOCK_MATMUL_H_
#define INTEL_FT_KERNELS_BLOCK_MATMUL_H_

#include "bf16.h"
#include "forest.h"
#include "gemm/tiles.h"

namespace at::native::cpublas {
void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const c10::BFloat16* a, const c10::BFloat16* b, float* c, bool vnni);
void brgemm_release(bool vnni);
}  // namespace at::native::cpublas

// Matmuls of BLOCK rows; one object for each thread.
class Matmul {
 public:
  explicit Matmul(bool tiles) : tiles_(tiles) {
    if (tiles_) tile_configure();
  }
  ~Matmul() {
    if (tiles_)
      TILE_RELEASE();
    else
      at::native::cpublas::brgemm_release(true);
  }

  // c [BLOCK, n] (+)= the sum of `count` products: left + i * BLOCK * k, which is [BLOCK, k], times
  // right(i) [k, n], which pack_b has packed.
  template <typename Right>
  void operator()(int64_t n, int64_t k, int64_t count, bool add, const bf16* left, Right right,
                  float* c) const {
    if (!tiles_) {
      for (int64_t i = 0; i < count; ++i)
        at::native::cpublas::brgemm(BLOCK, n, k, k, n, n, add || i, left + i * BLOCK * k, right(i),
                                    c, true);
      return;
    }
    const int64_t wide = 4 * n;  // bytes between rows of pairs, and of c
    for (int64_t j = 0; j < n; j += 32) {
      const FourSums four = FourSums::quarters(reinterpret_cast<char*>(c + j), wide);
      four.open(!add);
      for (int64_t i = 0; i < count; ++i) {
        const bf16 *a = left + i * BLOCK * k, *b = right(i) + 2 * j;
        for (int64_t step = 0; step < k; step += 32) {
          TILE_LOAD(6, b + step * n, wide);
          TILE_LOAD(4, a + step, 2 * k);
          TILE_DOT_BF16(0, 4, 6);
          TILE_LOAD(7, b + step * n + 32, wide);
          TILE_DOT_BF16(1, 4, 7);
          TILE_LOAD(5, a + 16 * k + step, 2 * k);
          TILE_DOT_BF16(2, 5, 6);
          TILE_DOT_BF16(3, 5, 7);
        }
      }
      four.store();
    }
  }

  // c [BLOCK, n] (+)= left [BLOCK, k] times right [k, n].
  void operator()(int64_t n, int64_t k, bool add, const bf16* left, const bf16* right,
                  float* c) const {
    (*this)(n, k, 1, add, left, [right](int64_t) { return right; }, c);
  }

 private:
  bool tiles_;
};

#endif  // INTEL_FT_KERNELS_BLOCK_MATMUL_H_

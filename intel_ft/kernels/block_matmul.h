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

  // c [BLOCK, n] (+)= a [BLOCK, k] times b [k, n], which pack_b has packed.
  void operator()(int64_t n, int64_t k, bool add, const bf16* a, const bf16* b, float* c) const {
    if (!tiles_) return at::native::cpublas::brgemm(BLOCK, n, k, k, n, n, add, a, b, c, true);
    const int64_t wide = 4 * n;     // bytes between rows of b's pairs, and of c
    asm volatile("" ::: "memory");  // tile loads do not tell the compiler what they read
    for (int64_t j = 0; j < n; j += 32) {
      float *upper = c + j, *lower = upper + 16 * n;
      if (add) {
        TILE_LOAD(0, upper, wide);
        TILE_LOAD(1, upper + 16, wide);
        TILE_LOAD(2, lower, wide);
        TILE_LOAD(3, lower + 16, wide);
      } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
      }
      for (int64_t i = 0; i < k; i += 32) {
        const bf16 *pairs = b + i * n + 2 * j, *left = a + i;
        TILE_LOAD(6, pairs, wide);
        TILE_LOAD(4, left, 2 * k);
        TILE_DOT_BF16(0, 4, 6);
        TILE_LOAD(7, pairs + 32, wide);
        TILE_DOT_BF16(1, 4, 7);
        TILE_LOAD(5, left + 16 * k, 2 * k);
        TILE_DOT_BF16(2, 5, 6);
        TILE_DOT_BF16(3, 5, 7);
      }
      TILE_STORE(0, upper, wide);
      TILE_STORE(1, upper + 16, wide);
      TILE_STORE(2, lower, wide);
      TILE_STORE(3, lower + 16, wide);
    }
    asm volatile("" ::: "memory");
  }

 private:
  bool tiles_;
};

#endif  // INTEL_FT_KERNELS_BLOCK_MATMUL_H_

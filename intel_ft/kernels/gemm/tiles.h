// The eight tile registers of AMX, each 16 rows of 64 bytes.
//
// Where the compiler's target has no AMX, the same operations are emulated: then the products of
// tile_product.cpp are correct but slow, which is enough to test packing and blocking on any CPU.
// Register numbers must be literals.

#ifndef INTEL_FT_KERNELS_GEMM_TILES_H_
#define INTEL_FT_KERNELS_GEMM_TILES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../bf16.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)

#include <immintrin.h>

static constexpr bool TILES_ARE_REAL = true;

static inline void tile_configure() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } shape;
  for (int i = 0; i < 8; ++i) shape.row_bytes[i] = 64, shape.rows[i] = 16;
  _tile_loadconfig(&shape);
}

#define TILE_RELEASE() _tile_release()
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define TILE_DOT_BF16(sum, a, b) _tile_dpbf16ps(sum, a, b)
#define TILE_DOT_INT8(sum, a, b) _tile_dpbssd(sum, a, b)

#else

static constexpr bool TILES_ARE_REAL = false;

struct EmulatedTile {
  char bytes[16][64];
};

static thread_local EmulatedTile emulated_tiles[8];

static inline void tile_configure() {}

static inline void emulated_load(int tile, const void* from, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(emulated_tiles[tile].bytes[row], static_cast<const char*>(from) + row * stride, 64);
}

static inline void emulated_store(int tile, void* to, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, emulated_tiles[tile].bytes[row], 64);
}

// sum[m][n] += a[m][...] . b[...][n], in groups of 4 bytes along k.
template <typename Element, typename Sum, int GROUP, typename Widen>
static inline void emulated_dot(int sum, int a, int b, Widen widen) {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      Sum total;
      std::memcpy(&total, emulated_tiles[sum].bytes[m] + n * 4, 4);
      for (int k = 0; k < 16; ++k)
        for (int i = 0; i < GROUP; ++i) {
          Element x, y;
          std::memcpy(&x, emulated_tiles[a].bytes[m] + k * 4 + i * sizeof x, sizeof x);
          std::memcpy(&y, emulated_tiles[b].bytes[k] + n * 4 + i * sizeof y, sizeof y);
          total += widen(x) * widen(y);
        }
      std::memcpy(emulated_tiles[sum].bytes[m] + n * 4, &total, 4);
    }
}

#define TILE_RELEASE() (void)0
#define TILE_ZERO(tile) std::memset(&emulated_tiles[tile], 0, sizeof(EmulatedTile))
#define TILE_LOAD(tile, from, stride) emulated_load(tile, from, stride)
#define TILE_STORE(tile, to, stride) emulated_store(tile, to, stride)
#define TILE_DOT_BF16(sum, a, b) emulated_dot<bf16, float, 2>(sum, a, b, to_float)
#define TILE_DOT_INT8(sum, a, b) \
  emulated_dot<int8_t, int32_t, 4>(sum, a, b, [](int8_t x) { return int32_t(x); })

#endif

static constexpr int64_t TILE = 1024, LINE = 64;  // bytes of a tile, and of a cache line

// Where tiles 0 to 3 are summed up in memory.
struct FourSums {
  char* at[4];
  int64_t stride;  // bytes between a tile's rows

  // The quarters of [32, 32], whose rows are `stride` bytes apart; and tiles one after another.
  static FourSums quarters(char* sums, int64_t stride) {
    char* lower = sums + 16 * stride;
    return {{sums, sums + LINE, lower, lower + LINE}, stride};
  }
  static FourSums in_line(char* sums) {
    return {{sums, sums + TILE, sums + 2 * TILE, sums + 3 * TILE}, LINE};
  }

  // Zeros if `first`, else what was stored before.
  void open(bool first) const {
    asm volatile("" ::: "memory");  // tile loads do not tell the compiler what they read
    if (first) {
      TILE_ZERO(0);
      TILE_ZERO(1);
      TILE_ZERO(2);
      TILE_ZERO(3);
    } else {
      TILE_LOAD(0, at[0], stride);
      TILE_LOAD(1, at[1], stride);
      TILE_LOAD(2, at[2], stride);
      TILE_LOAD(3, at[3], stride);
    }
  }

  void store(bool only_two = false) const {
    TILE_STORE(0, at[0], stride);
    TILE_STORE(1, at[1], stride);
    if (!only_two) {
      TILE_STORE(2, at[2], stride);
      TILE_STORE(3, at[3], stride);
    }
    asm volatile("" ::: "memory");
  }
};

#endif  // INTEL_FT_KERNELS_GEMM_TILES_H_

// How fast each thread executes one multiply-add instruction on registers alone: the limit of any
// GEMM. Twelve sums (four of tiles) are independent, so that latency does not count.

#include <chrono>
#include <cstdint>

#include "../bf16.h"

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int64_t ROUNDS = 500;  // between two looks at the clock

// Executes `loop` until `seconds` have passed; returns its rounds per second.
template <typename Loop>
double rounds_per_second(double seconds, Loop loop) {
  const double start = now();
  double passed = 0;
  int64_t rounds = 0;
  do {
    for (int64_t i = 0; i < ROUNDS; ++i) loop();
    rounds += ROUNDS;
    passed = now() - start;
  } while (passed < seconds);
  return rounds / passed;
}

#define TWELVE(one) \
  one(0) one(1) one(2) one(3) one(4) one(5) one(6) one(7) one(8) one(9) one(10) one(11)
#define ALL_16                                                                             \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define BF16_512(i) "vdpbf16ps %%zmm12, %%zmm13, %%zmm" #i "\n"
#define INT8_512(i) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #i "\n"
#define FLOAT_512(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #i "\n"
#define INT8_256(i) "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm" #i "\n"
#define FLOAT_256(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n"
#define CLEAR(i) "vpxor %%xmm" #i ", %%xmm" #i ", %%xmm" #i "\n"

// Operations of each instruction, as kernels/register_rate.py orders them.
enum Instruction { TDPBF16PS, TDPBSSD, VDPBF16PS, VPDPBUSD, VPDPBUSD_VEX, VFMADD, VFMADD_YMM };

// Numbers as products have them, in float32, bf16 or int8: zeros are faster, with AMX up to twice,
// because a core that multiplies other numbers reaches its power limit.
struct Operands {
  alignas(64) uint32_t words[256];
  explicit Operands(bool is_float32) {
    uint32_t state = 1;
    for (uint32_t& word : words) {
      state = state * 1664525u + 1013904223u;
      const uint32_t bits = state >> 8;
      // One number, or two, of +-[0.5, 1).
      word = is_float32 ? 0x3f000000u | (bits & 0x7fffff) | state >> 31 << 31
                        : 0x3f003f00u | (bits & 0x807f807f);
    }
  }
};

double vector_rate(Instruction instruction, double seconds) {
  const Operands operands(instruction >= VFMADD);
  const uint32_t* data = operands.words;
  // Each round sets the registers: the compiler may use them in between.
#define SET(width) "vmovups (%0), %%" width "12\n vmovups 64(%0), %%" width "13\n" TWELVE(CLEAR)
#define RATE(operations, width, INSTRUCTION)                                            \
  12 * 8 * operations* rounds_per_second(seconds, [data] {                              \
    asm volatile(SET(width) TWELVE(INSTRUCTION) TWELVE(INSTRUCTION) TWELVE(INSTRUCTION) \
                     TWELVE(INSTRUCTION) TWELVE(INSTRUCTION) TWELVE(INSTRUCTION)        \
                         TWELVE(INSTRUCTION) TWELVE(INSTRUCTION)::"r"(data)             \
                 : ALL_16, "memory");                                                   \
  })
  switch (instruction) {  // not for a target that clang's assembler would refuse
#ifdef __AVX512BF16__
    case VDPBF16PS:
      return RATE(64.0, "zmm", BF16_512);
#endif
#ifdef __AVX512VNNI__
    case VPDPBUSD:
      return RATE(128.0, "zmm", INT8_512);
#endif
#ifdef __AVXVNNI__
    case VPDPBUSD_VEX:
      return RATE(64.0, "ymm", INT8_256);
#endif
#ifdef __AVX512F__
    case VFMADD:
      return RATE(32.0, "zmm", FLOAT_512);
#endif
#ifdef __FMA__
    case VFMADD_YMM:
      return RATE(16.0, "ymm", FLOAT_256);
#endif
    default:
      return 0;
  }
#undef RATE
}

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
// Sixteen other instructions after each product cost nothing on a core without other work. Where
// the core's second thread is busy, back-to-back products take up to twice as long.
#define APART ".rept 16\n nop\n .endr\n"
#define FOUR_TILES(name, apart)                                                      \
  name " %%tmm6, %%tmm4, %%tmm0\n" apart name " %%tmm7, %%tmm4, %%tmm1\n" apart name \
       " %%tmm6, %%tmm5, %%tmm2\n" apart name " %%tmm7, %%tmm5, %%tmm3\n" apart
#define TILE_RATE(operations, name, apart)                            \
  8 * operations* rounds_per_second(seconds, [] {                     \
    asm volatile(FOUR_TILES(name, apart) FOUR_TILES(name, apart):::); \
  })

double tile_rate(Instruction instruction, bool back_to_back, double seconds) {
  const Operands operands(false);
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } shape;
  for (int i = 0; i < 8; ++i) shape.row_bytes[i] = 64, shape.rows[i] = 16;
  asm volatile(
      "ldtilecfg %0\n"
      "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"
      "tileloadd (%1, %2, 1), %%tmm4\n tileloadd (%1, %2, 1), %%tmm5\n"
      "tileloadd (%1, %2, 1), %%tmm6\n tileloadd (%1, %2, 1), %%tmm7\n" ::"m"(shape),
      "r"(operands.words), "r"(64l)
      : "memory");
  double rate;
  if (instruction == TDPBF16PS)
    rate =
        back_to_back ? TILE_RATE(16384.0, "tdpbf16ps", "") : TILE_RATE(16384.0, "tdpbf16ps", APART);
  else
    rate = back_to_back ? TILE_RATE(32768.0, "tdpbssd", "") : TILE_RATE(32768.0, "tdpbssd", APART);
  asm volatile("tilerelease");
  return rate;
}
#else
double tile_rate(Instruction, bool, double) { return 0; }
#endif

}  // namespace

extern "C" {

// Operations per second (two for each multiply-add) of `threads` threads at once. This CPU must
// have the instruction; 0 if the compiler's target lacks it. back_to_back: products of tiles
// without other instructions between them.
double register_rate(int64_t instruction, int64_t back_to_back, float seconds, int threads) {
  const Instruction chosen = Instruction(instruction);
  double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
#pragma omp barrier
    total +=
        chosen <= TDPBSSD ? tile_rate(chosen, back_to_back, seconds) : vector_rate(chosen, seconds);
  }
  return total;
}

}  // extern "C"

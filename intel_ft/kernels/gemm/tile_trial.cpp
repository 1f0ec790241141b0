// Whether tile instructions run here: virtual machines advertise AMX and fault.

#include <setjmp.h>
#include <signal.h>

#include "tiles.h"

static sigjmp_buf before_trial;

static void leave_trial(int) { siglongjmp(before_trial, 1); }

extern "C" {

// 1 if this library was compiled for AMX and a product of tiles gives the right sums.
int tiles_work() {
  if (!TILES_ARE_REAL) return 0;
  struct sigaction leave = {}, illegal, fault;
  leave.sa_handler = leave_trial;
  sigaction(SIGILL, &leave, &illegal);
  sigaction(SIGSEGV, &leave, &fault);
  volatile int works = 0;
  if (!sigsetjmp(before_trial, 1)) {
    alignas(64) int8_t ones[1024];
    alignas(64) int32_t sums[256];
    std::memset(ones, 1, sizeof ones);
    std::memset(sums, 0, sizeof sums);
    asm volatile("" ::: "memory");
    tile_configure();
    TILE_LOAD(0, sums, 64);
    TILE_LOAD(1, ones, 64);
    TILE_LOAD(2, ones, 64);
    TILE_DOT_INT8(0, 1, 2);
    TILE_STORE(0, sums, 64);
    TILE_RELEASE();
    asm volatile("" ::: "memory");
    works = sums[0] == 64 && sums[255] == 64;
  }
  sigaction(SIGILL, &illegal, nullptr);
  sigaction(SIGSEGV, &fault, nullptr);
  return works;
}

}  // extern "C"

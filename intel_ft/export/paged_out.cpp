// A thread that pages out what this process has mapped of a model's files.
//
// It is compiled because it has to run while OpenVINO saves an IR: that call holds Python's lock
// until the end, so no thread of Python could run.

#include <sys/mman.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>

namespace {

constexpr int kPageOut = 21;  // MADV_PAGEOUT of Linux 5.4; nothing is lost, pages are read again

struct Pager {
  std::set<std::string> files;
  std::uintptr_t large;
  std::mutex mutex;
  std::condition_variable done;
  bool stopped = false;
  std::thread thread;
};

// A line of maps: "first-last permissions offset device inode      path", in hexadecimal.
void page_out(const Pager& pager) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const std::size_t path = line.find('/');
    if (path == std::string::npos || !pager.files.count(line.substr(path))) continue;
    std::uintptr_t first = 0, last = 0;
    char dash;
    std::istringstream(line) >> std::hex >> first >> dash >> last;
    // Where it fails, as on an older kernel, the pages stay.
    if (last - first >= pager.large)
      madvise(reinterpret_cast<void*>(first), last - first, kPageOut);
  }
}

}  // namespace

// files: absolute paths, a line each; large: bytes of the smallest mapping that is paged out.
extern "C" Pager* start_page_out(const char* files, std::int64_t large, std::int64_t milliseconds) {
  auto* pager = new Pager;
  pager->large = static_cast<std::uintptr_t>(large);
  std::istringstream lines(files);
  for (std::string line; std::getline(lines, line);) pager->files.insert(line);
  pager->thread = std::thread([pager, milliseconds] {
    std::unique_lock<std::mutex> lock(pager->mutex);
    const auto pause = std::chrono::milliseconds(milliseconds);
    while (!pager->done.wait_for(lock, pause, [pager] { return pager->stopped; })) page_out(*pager);
  });
  return pager;
}

extern "C" void stop_page_out(Pager* pager) {
  {
    std::lock_guard<std::mutex> lock(pager->mutex);
    pager->stopped = true;
  }
  pager->done.notify_one();
  pager->thread.join();
  delete pager;
}

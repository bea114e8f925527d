#include "core/memory.h"

#include <sys/mman.h>
#include <unistd.h>
#if defined(__linux__)
#include <fcntl.h>
#include <sys/ioctl.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <string>
#include <utility>

#include "core/error.h"

namespace glimmer {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kChunk = size_t{64} << 20;

constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

#if defined(__linux__)
struct File {
  explicit File(const char* path) : descriptor(open(path, O_RDONLY | O_CLOEXEC)) {}
  ~File() {
    if (descriptor >= 0) close(descriptor);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  const int descriptor;
};
#endif

}  // namespace

Pages::Pages(size_t bytes) {
  if (bytes == 0) return;
  // Kernels prefetch a little past the end of a strip, which never faults, so no tail is needed.
  size_ = round_up(bytes, kLargePage);
  void* p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    throw Error(ErrorKind::kOutOfMemory,
                "The system refused " + std::to_string(bytes >> 20) +
                    " MiB of memory. Free some, or ask for a smaller context or model.");
  }
  data_ = static_cast<uint8_t*>(p);
#ifdef MADV_HUGEPAGE
  madvise(p, size_, MADV_HUGEPAGE);  // a wish: without it everything works, a tenth slower
#endif
}

Pages::~Pages() {
  if (data_) munmap(data_, size_);
}

Pages::Pages(Pages&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Pages& Pages::operator=(Pages&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void trim_heap() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

bool populate(const uint8_t* data, size_t bytes) {
#if defined(__linux__)
  constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ of Linux 5.14, which older headers lack
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data), start = begin / page * page;
  if (bytes == 0) return true;
  const int code = madvise(reinterpret_cast<void*>(start), begin + bytes - start, kPopulateRead);
  return code == 0 || errno == EINVAL;  // an older kernel does not know the advice
#else
  (void)data, (void)bytes;
  return true;
#endif
}

bool in_large_pages(const uint8_t* data, size_t bytes) {
#if defined(__linux__)
  // PAGEMAP_SCAN of Linux 6.7 (linux/fs.h), which older headers lack: ranges of pages that are
  // PAGE_IS_HUGE.
  constexpr uint64_t kHuge = 1 << 6;
  struct Range {
    uint64_t start, end, categories;
  };
  struct Scan {
    uint64_t size, flags, start, end, walk_end;
    uint64_t ranges, num_ranges, max_pages;
    uint64_t inverted, all_of, any_of, returned;
  };
  const unsigned long scan_request = _IOWR('f', 16, Scan);
  const File pagemap("/proc/self/pagemap");
  if (pagemap.descriptor < 0) return false;
  const uint64_t page = sysconf(_SC_PAGESIZE);
  const auto begin = reinterpret_cast<uint64_t>(data), end = begin + bytes;
  Range ranges[64];
  Scan scan{};
  scan.size = sizeof(scan);
  scan.start = begin / page * page;
  scan.end = round_up(end, page);
  scan.ranges = reinterpret_cast<uint64_t>(ranges);
  scan.num_ranges = std::size(ranges);
  scan.all_of = scan.returned = kHuge;
  uint64_t large = 0;
  while (scan.start < scan.end) {
    const int found = ioctl(pagemap.descriptor, scan_request, &scan);
    if (found < 0) return false;
    for (int i = 0; i < found; ++i) {
      large += std::min(ranges[i].end, end) - std::max(ranges[i].start, begin);
    }
    scan.start = scan.walk_end;
  }
  return large >= bytes - bytes / 10;
#else
  (void)data, (void)bytes;
  return true;
#endif
}

uint8_t* Arena::allocate(size_t bytes) {
  bytes = round_up(bytes, kAlignment);
  if (bytes > left_) {
    chunks_.emplace_back(std::max(bytes, kChunk));
    left_ = chunks_.back().size();
  }
  uint8_t* p = chunks_.back().data() + chunks_.back().size() - left_;
  left_ -= bytes;
  used_ += bytes;
  return p;
}

}  // namespace glimmer

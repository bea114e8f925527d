#include "core/memory.h"

#include <sys/mman.h>
#include <unistd.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "core/error.h"

namespace glimmer {
namespace {

constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kChunk = size_t{64} << 20;

constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

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

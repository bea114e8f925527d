// Large zeroed memory straight from the operating system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace glimmer {

// An anonymous mapping, zeroed, on large pages where allowed. Untouched parts cost no memory.
class Pages {
 public:
  Pages() = default;
  explicit Pages(size_t bytes);  // throws Error(kOutOfMemory)
  ~Pages();
  Pages(Pages&& other) noexcept;
  Pages& operator=(Pages&& other) noexcept;
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Makes room for n values; what is there stays, and never shrinks.
template <class T>
void grow(std::vector<T>& v, size_t n) {
  if (v.size() < n) v.resize(n);
}

// Gives memory that was freed back to the operating system, where the allocator can.
void trim_heap();

// Reads in mapped memory, so that no later touch waits for a disk. False where pages cannot be had:
// the file behind them has become shorter, or its disk fails. True where the system cannot tell.
bool populate(const uint8_t* data, size_t bytes);

// Whether nearly all of some mapped memory, read in, lies in large pages. Through small ones
// weights are read at half the speed in a virtual machine, and a tenth slower elsewhere. True where
// the system has no large pages to offer in their place, false where it does not tell.
bool in_large_pages(const uint8_t* data, size_t bytes);

inline constexpr size_t kAlignment = 64;  // of packed weights: a cache line, and a kernel's line

// Hands out aligned pieces of large mappings and frees them all at once.
class Arena {
 public:
  uint8_t* allocate(size_t bytes);
  size_t used() const { return used_; }

 private:
  std::vector<Pages> chunks_;
  size_t left_ = 0;
  size_t used_ = 0;
};

}  // namespace glimmer

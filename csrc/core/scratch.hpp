// Memory for the duration of one call, without std::vector: its members would be symbols that the
// translation units of several instruction sets share (see simd.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cxr::CXR_ISA {

// Fresh memory costs a fault a page when it is first written; large pages make that 512 times fewer.
inline void use_large_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t large = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + large - 1) / large * large;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / large * large;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// An array of n trivial objects, aligned to a cache line, not initialised.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) : data_(allocate(n)), capacity_(n) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t capacity() const { return capacity_; }

  // Room for n objects; the first `used` survive.
  void grow(int64_t n, int64_t used) {
    if (n <= capacity_) return;
    const int64_t larger = n > 2 * capacity_ ? n : 2 * capacity_;
    T* fresh = allocate(larger);
    for (int64_t i = 0; i < used; ++i) fresh[i] = data_[i];
    std::free(data_);
    data_ = fresh;
    capacity_ = larger;
  }

 private:
  static T* allocate(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n > 0 ? n : 1) * sizeof(T) + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes);
    if (!p) throw std::bad_alloc();
    use_large_pages(p, bytes);
    return static_cast<T*>(p);
  }

  T* data_;
  int64_t capacity_;
};

// Runs f(begin, end) over [0, items) on the caller's threads.
template <class F>
inline void parallel(const Scheduler& scheduler, int64_t items, int64_t grain, F f) {
  if (items <= 0) return;
  scheduler.run(
      scheduler.pool, items, grain > 0 ? grain : 1,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); }, &f);
}

}  // namespace cxr::CXR_ISA

// Vectors whose data begin on a cache line: a wide load that straddles two lines costs twice.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace phased_lstm {

// From so many bytes on large pages are asked for.
constexpr std::size_t kLarge = 8 << 20, kLargePage = 2 << 20;

// Asks for large pages where they fit into new memory of kLarge bytes and more: to get small ones, one by one, takes longer than to use them.
// Only advice: where there are no large pages, nothing is lost.
inline void ask_for_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#ifdef __linux__
  const auto begin = (reinterpret_cast<std::uintptr_t>(memory) + kLargePage - 1) / kLargePage * kLargePage;
  const auto end = (reinterpret_cast<std::uintptr_t>(memory) + bytes) / kLargePage * kLargePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64}, kPage{kLargePage};
  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  static constexpr std::align_val_t alignment(std::size_t n) { return n * sizeof(T) < kLarge ? kLine : kPage; }
  T* allocate(std::size_t n) {
    void* const p = ::operator new(n * sizeof(T), alignment(n));
    if (n * sizeof(T) >= kLarge) ask_for_large_pages(p, n * sizeof(T));
    return static_cast<T*>(p);
  }
  // Without a value given, memory is left as it is: most buffers are written before they are read.
  template <typename U>
  void construct(U* p) { ::new (static_cast<void*>(p)) U; }
  template <typename U, typename... Args>
  void construct(U* p, Args&&... args) { ::new (static_cast<void*>(p)) U(std::forward<Args>(args)...); }
  void deallocate(T* p, std::size_t n) { ::operator delete(p, alignment(n)); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
};

template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

// Room for `size` values, not more than needed; what was there is lost when it was too small.
template <typename T>
void make_room(Buffer<T>& buffer, std::size_t size) {
  if (buffer.size() >= size) return;
  buffer = Buffer<T>();
  buffer.resize(size);
}

}  // namespace phased_lstm

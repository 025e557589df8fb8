// Vectors whose data begin on a cache line: a wide load that straddles two lines costs twice.
#pragma once

#include <cstddef>
#include <new>
#include <utility>
#include <vector>

namespace phased_lstm {

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  // Without a value given, memory is left as it is: most buffers are written before they are read.
  template <typename U>
  void construct(U* p) { ::new (static_cast<void*>(p)) U; }
  template <typename U, typename... Args>
  void construct(U* p, Args&&... args) { ::new (static_cast<void*>(p)) U(std::forward<Args>(args)...); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
};

template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

}  // namespace phased_lstm

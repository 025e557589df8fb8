// Memory that a thread keeps from call to call: fresh pages cost as much as what is done with them. It is one memory for
// all operators, and one more for the events of streams side by side, so a thread that has used both float and double
// keeps six times kKeptBytes at most.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace phased_lstm {

// What is larger is given back after the call.
constexpr std::size_t kKeptBytes = std::size_t(8) << 20;

// What events are found in and held in.
template <typename T>
struct EventMemory {
  std::vector<EventBlock<T>> blocks;
  Buffer<int64_t> offsets;
  Buffer<int32_t> units;
  Buffer<T> phases;
  std::size_t bytes() const {
    std::size_t events = units.capacity();
    for (const EventBlock<T>& block : blocks) events += block.units.capacity();
    return events * (sizeof(int32_t) + sizeof(T)) + offsets.capacity() * sizeof(int64_t) +
           blocks.capacity() * sizeof(EventBlock<T>);
  }
};

template <typename T>
EventMemory<T>& kept_events() {
  static thread_local EventMemory<T> memory;
  return memory;
}

// Kept memory, taken for as long as this lives, so that nobody else has it meanwhile.
template <typename T>
class TakenMemory {
 public:
  explicit TakenMemory(EventMemory<T>& home) : home_(home), memory_(std::exchange(home, {})) {}
  ~TakenMemory() {
    if (memory_.bytes() <= kKeptBytes) std::swap(home_, memory_);
  }
  TakenMemory(const TakenMemory&) = delete;
  EventMemory<T>& operator*() { return memory_; }

 private:
  EventMemory<T>&home_, memory_;
};

// Packed weights.
template <typename T>
Buffer<T>& kept_weights() {
  static thread_local Buffer<T> memory;
  return memory;
}

}  // namespace phased_lstm

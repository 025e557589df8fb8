// The gates of a sequence's events, made for many events at once.
#pragma once

#include <algorithm>

#include "cell.inl"
#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::Buffer;
using phased_lstm::Layer;

// A walk that goes through the events of one row of times, from the first on or from the last back, and asks for those
// of a step at a time.
template <typename T>
class EventGates {
 public:
  // Of events, with a whole vector behind the last.
  struct Columns {
    const T *k, *slope, *in_ratio;
  };

  // Events first .. last, which come from the last on if `back`. Without `derivatives` there is k alone.
  EventGates(const Layer<T>& layer, int64_t first, int64_t last, bool back, bool derivatives)
      : layer_(layer),
        first_(first),
        last_(last),
        size_(std::min(std::max(kBlock, layer.units), last - first)),
        width_(padded<T>(size_) + Simd<T>::kLanes),
        back_(back),
        derivatives_(derivatives),
        columns_((derivatives ? 3 : 1) * width_) {}

  // Of events first .. first + count, until the next call.
  Columns at(int64_t first, int64_t count) {
    if (first < from_ || first + count > to_) {
      from_ = back_ ? std::max(first_, first + count - size_) : first;
      to_ = back_ ? first + count : std::min(last_, first + size_);
      fill();
    }
    const T* k = columns_.data() + (first - from_);
    return derivatives_ ? Columns{k, k + width_, k + 2 * width_} : Columns{k, nullptr, nullptr};
  }

 private:
  static constexpr int64_t kBlock = 1024;

  void fill() {
    constexpr int lanes = Simd<T>::kLanes;
    for (int64_t e = from_; e < to_; e += lanes) {
      const int64_t here = std::min<int64_t>(lanes, to_ - e);
      const Vec<T> phase = load_first(layer_.events.phases + e, here);
      const Vec<T> ratio = gather_lanes(layer_.ratio_on, layer_.events.units + e, here);
      const Gate<T> gate = gate_at(phase, ratio, layer_.leak, layer_.oscillation);
      T* to = &columns_[e - from_];
      store(to, gate.k);
      if (!derivatives_) continue;
      store(to + width_, gate.slope);
      store(to + 2 * width_, gate.in_ratio);
    }
  }

  const Layer<T>& layer_;
  int64_t first_, last_, size_, width_, from_ = 0, to_ = 0;
  bool back_, derivatives_;
  Buffer<T> columns_;
};

}  // namespace

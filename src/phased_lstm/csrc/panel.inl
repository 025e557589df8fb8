// A panel of sequences: its gates, its events and its columns, which run across the sequences.
#pragma once

#include <algorithm>
#include <limits>

#include "cell.inl"
#include "gates.inl"
#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::Buffer;
using phased_lstm::Layer;

// A panel is NV vectors wide.
template <typename T, int NV>
constexpr int64_t kPanelRows = NV * Simd<T>::kLanes;

// A panel's rows. Rows beyond the batch repeat the last one; what they give is not used.
template <typename T, int NV>
struct Panel {
  static constexpr int64_t P = kPanelRows<T, NV>;
  int64_t first, count;  // rows first .. first + count
  Panel(const Layer<T>& layer, int64_t index) : first(index * P), count(std::min(P, layer.batch - index * P)) {}
  int64_t row(int64_t lane) const { return first + std::min(lane, count - 1); }
};

// Whether a step is one of a row's, and no padding.
template <typename T>
inline bool inside(const Layer<T>& layer, int64_t row, int64_t t) {
  return !layer.lengths || t < layer.lengths[row];
}

// Which rows of a panel take a step; to others it is padding, or they are beyond the batch. Whatever their states are,
// they must stay as they are, and add nothing to what rows share: a factor of zero would not keep out a NaN.
template <typename T, int NV>
class PanelSteps {
 public:
  void at(const Layer<T>& layer, const Panel<T, NV>& panel, int64_t t) {
    all_ = panel.count == kPanelRows<T, NV>;
    if (all_ && !layer.lengths) return;
    for (int64_t lane = 0; lane < kPanelRows<T, NV>; ++lane) {
      taken_[lane] = lane < panel.count && inside(layer, panel.row(lane), t) ? T(1) : T(0);
      all_ &= taken_[lane] > T(0);
    }
  }
  bool all() const { return all_; }
  bool taken(int64_t lane) const { return all_ || taken_[lane] > T(0); }
  // `now` in the lanes of vector v that take the step, `otherwise` in the others.
  Vec<T> choose(int v, Vec<T> now, Vec<T> otherwise) const {
    if (all_) return now;
    return load(taken_ + v * Simd<T>::kLanes) > T(0) ? now : otherwise;
  }

 private:
  alignas(64) T taken_[kPanelRows<T, NV>];
  bool all_ = false;
};

// The gate of an event for every row of a panel that takes the step.
template <typename T, int NV>
struct PanelGate {
  Gate<T> at[NV];

  // `shared`: of the step's events, if all sequences share them.
  void fill(const Layer<T>& layer, const Panel<T, NV>& panel, int64_t t, int64_t unit,
            const typename EventGates<T>::Columns& shared, int64_t e) {
    constexpr int lanes = Simd<T>::kLanes;
    constexpr int64_t P = kPanelRows<T, NV>;
    if (layer.events.shared) {
      const bool derivatives = shared.slope;
      const Gate<T> gate{splat(shared.k[e]), splat(derivatives ? shared.slope[e] : T(0)),
                         splat(derivatives ? shared.in_ratio[e] : T(0))};
      for (int v = 0; v < NV; ++v) at[v] = gate;
    } else {
      // All units are events here, so the place of this one follows from row, step and unit.
      alignas(64) T phases[P];
      for (int64_t lane = 0; lane < P; ++lane)
        phases[lane] = layer.events.phases[(panel.row(lane) * layer.steps + t) * layer.units + unit];
      const Vec<T> ratio = splat(layer.ratio_on[unit]);
      for (int v = 0; v < NV; ++v) at[v] = gate_at(load(phases + v * lanes), ratio, layer.leak, layer.oscillation);
    }
  }
};

// The events of a step: those of the only row, or all units.
template <typename T>
inline int64_t events_at(const Layer<T>& layer, int64_t t, int64_t* first) {
  if (!layer.events.shared) {
    *first = 0;
    return layer.units;
  }
  *first = layer.events.offsets[t];
  return layer.events.offsets[t + 1] - *first;
}

template <typename T>
inline int64_t unit_of(const Layer<T>& layer, int64_t event) {
  return layer.events.shared ? layer.events.units[event] : event;
}

// Events of one row in all, and the place of an event among them.
template <typename T>
inline int64_t events_in_row(const Layer<T>& layer) {
  return layer.events.shared ? layer.events.count : layer.steps * layer.units;
}

template <typename T>
inline int64_t place_in_row(const Layer<T>& layer, int64_t t, int64_t event) {
  return layer.events.shared ? event : t * layer.units + event;
}

// A unit's peephole weight of i, f or o; zero where there are none.
template <typename T>
inline Vec<T> peephole_of(const Layer<T>& layer, int64_t u, int gate) {
  return layer.peephole ? splat(layer.peephole[gate * layer.units + u]) : Vec<T>{};
}

// The input as columns (I, P), a step at a time; made a few steps at once, as a row's steps lie together.
template <typename T, int NV>
class InputColumns {
 public:
  static constexpr int64_t P = kPanelRows<T, NV>;
  InputColumns(const Layer<T>& layer, const Panel<T, NV>& panel)
      : layer_(layer),
        panel_(panel),
        steps_(std::max<int64_t>(1, kLanes / layer.inputs)),
        columns_(padded<T>(steps_ * layer.inputs) * P) {}

  const T* at(int64_t t) {
    if (t < from_ || t >= from_ + steps_) take(t / steps_ * steps_);
    return columns_.data() + (t - from_) * layer_.inputs * P;
  }

 private:
  static constexpr int kLanes = Simd<T>::kLanes;

  void take(int64_t from) {
    const int64_t ahead = (from < from_ ? -steps_ : steps_) * layer_.inputs;
    from_ = from;
    const int64_t I = layer_.inputs, begin = from * I, end = std::min(from + steps_, layer_.steps) * I;
    for (int v = 0; v < NV; ++v) {
      for (int64_t at = begin; at < end; at += kLanes) {
        T* to = columns_.data() + (at - begin) * P + v * kLanes;
        Vec<T> square[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          const T* row = layer_.input + panel_.row(v * kLanes + lane) * layer_.steps * I;
          __builtin_prefetch(row + at + ahead);
          T part[kLanes] = {};
          if (at + kLanes <= layer_.steps * I)
            square[lane] = load(row + at);
          else
            std::copy(row + at, row + end, part), square[lane] = load(part);
        }
        transpose<T>(square);
        for (int j = 0; j < kLanes; ++j) store(to + j * P, square[j]);
      }
    }
    if (!layer_.lengths) return;
    // Padding may hold a NaN, which a k of 0 does not keep out.
    for (int64_t lane = 0; lane < P; ++lane)
      for (int64_t at = std::max(begin, layer_.lengths[panel_.row(lane)] * I); at < end; ++at)
        columns_[(at - begin) * P + lane] = T(0);
  }

  const Layer<T>& layer_;
  const Panel<T, NV>& panel_;
  int64_t steps_, from_ = std::numeric_limits<int64_t>::max();  // the steps at hand
  Buffer<T> columns_;
};

template <typename T, int NV>
inline void transpose_in(const T* rows, const Panel<T, NV>& panel, int64_t width, T* columns) {
  for (int64_t lane = 0; lane < kPanelRows<T, NV>; ++lane)
    for (int64_t u = 0; u < width; ++u) columns[u * kPanelRows<T, NV> + lane] = rows[panel.row(lane) * width + u];
}

template <typename T, int NV>
inline void transpose_out(const T* columns, const Panel<T, NV>& panel, int64_t width, T* rows) {
  for (int64_t lane = 0; lane < panel.count; ++lane)
    for (int64_t u = 0; u < width; ++u) rows[(panel.first + lane) * width + u] = columns[u * kPanelRows<T, NV> + lane];
}

template <typename T, int NV>
inline int64_t longest(const Layer<T>& layer, const Panel<T, NV>& panel) {
  if (!layer.lengths) return layer.steps;
  return *std::max_element(layer.lengths + panel.first, layer.lengths + panel.first + panel.count);
}

}  // namespace

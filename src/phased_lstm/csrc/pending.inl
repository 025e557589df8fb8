// The gradients of the weights by rows and of single sequences, which are put off.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "packing.inl"
#include "simd.h"

namespace {

using phased_lstm::Buffer;

// Gradients of the weights are sums over events of (gradients of the four sums) x (state and features before it).
// They are put off, and then made a unit at a time, so that a unit's gradients are read and written once for many
// events.
template <typename T, int G>
class PendingProducts {
 public:
  PendingProducts(const Layer<T>& layer, int64_t rows)
      : packing_(layer),
        units_(layer.units),
        floats_(std::max(kFloats, units_ * packing_.unit() / 4)),
        most_states_(std::max(rows, floats_ / packing_.row())),
        most_events_(std::max(rows * units_, kEvents * floats_ / kFloats)),
        states_(most_states_ * packing_.row()),
        few_(most_states_ * packing_.few),
        d_(4 * (most_events_ + Simd<T>::kLanes)),
        sorted_d_(4 * most_events_),
        unit_(most_events_),
        rank_(most_events_),
        of_unit_(units_, 0),
        number_(most_events_),
        sorted_number_(most_events_),
        starts_(units_ + 1) {}

  bool room_for(int64_t states, int64_t events) const {
    return stored_ + states <= most_states_ && count_ + events <= most_events_;
  }
  // Keeps a copy of a sequence's state and features; returns its number. `few`: the features when there are few.
  int32_t keep(const T* state, const T* few) {
    std::copy_n(state, packing_.row(), &states_[stored_ * packing_.row()]);
    std::copy_n(few, packing_.few, few_.data() + stored_ * packing_.few);
    return static_cast<int32_t>(stored_++);
  }
  // Where the gradients of the four sums of the next events go, an event's together; whole vectors fit behind the last.
  T* next() { return &d_[4 * count_]; }
  // The next event is of this unit, and its state was kept under `number`.
  void add(int64_t unit, int32_t number) {
    unit_[count_] = static_cast<int32_t>(unit);
    rank_[count_] = of_unit_[unit]++;
    number_[count_++] = number;
  }

  // Adds all that is put off to `partial`.
  void settle(T* partial) {
    for (int64_t u = 0; u < units_; ++u) starts_[u + 1] = starts_[u] + of_unit_[u];
    for (int64_t e = 0; e < count_; ++e) {
      const int64_t to = starts_[unit_[e]] + rank_[e];
      sorted_number_[to] = number_[e];
      store_quad(&sorted_d_[4 * to], load_quad(&d_[4 * e]));
    }
    for (int64_t u = 0; u < units_; ++u) {
      const int64_t from = starts_[u], to = starts_[u + 1];
      if (to > from) {
        for_parts(packing_, true, [&](const int(&slots)[G], int64_t first, int64_t width) {
          add_products(packing_.state_rows(partial, u) + first, first, width, slots, from, to);
        });
        add_head(packing_.head_of(partial, u), from, to);
      }
    }
    std::fill(of_unit_.begin(), of_unit_.end(), 0);
    stored_ = count_ = 0;
  }

 private:
  // States kept, in values, and events: what the second-level cache holds. Where the gradients are more than that, to
  // read and write them costs more than states from further away; so more is put off, up to a quarter of their size.
  static constexpr int64_t kFloats = 128 * 1024, kEvents = 4096;

  void add_head(T* head, int64_t from, int64_t to) {
    Quad<T> total[1 + kFewInputs] = {};
    for (int64_t e = from; e < to; ++e) {
      const Quad<T> d = load_quad(&sorted_d_[4 * e]);
      const T* few = few_.data() + sorted_number_[e] * packing_.few;
      total[0] += d;
      for (int64_t i = 0; i < packing_.few; ++i) total[1 + i] += d * few[i];
    }
    for (int64_t i = 0; i <= packing_.few; ++i) store_quad(head + 4 * i, load_quad(head + 4 * i) + total[i]);
  }

  // drows[g] += sum_e d[e][slots[g]] (states[e] + first), over `width`, for events from .. to.
  void add_products(T* drows, int64_t first, int64_t width, const int (&slots)[G], int64_t from, int64_t to) {
    constexpr int wide = kFloatLanes == 16 ? 4 : 2, lanes = Simd<T>::kLanes;
    int64_t k = 0;
    for (; k + wide * lanes <= width; k += wide * lanes) add_columns<wide>(drows + k, first + k, slots, from, to);
    for (; k < width; k += lanes) add_columns<1>(drows + k, first + k, slots, from, to);
  }

  template <int NV>
  void add_columns(T* drows, int64_t first, const int (&slots)[G], int64_t from, int64_t to) {
    constexpr int lanes = Simd<T>::kLanes;
    const int64_t stride = packing_.row();
    // Their own sum first: added one by one to a long sum, small terms would lose their last bits.
    // Wanted at the end only, and the gradients of all units are more than a cache holds.
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < NV; ++v) __builtin_prefetch(drows + g * stride + v * lanes);
    Vec<T> total[G][NV];
    clear(total);
    for (int64_t e = from; e < to; ++e) {
      Vec<T> x[NV];
      const T* state = &states_[sorted_number_[e] * stride + first];
      for (int v = 0; v < NV; ++v) x[v] = factor_of<G>(load(state + v * lanes));
      for (int g = 0; g < G; ++g) {
        const Vec<T> d = factor_of<NV>(splat(sorted_d_[4 * e + slots[g]]));
        for (int v = 0; v < NV; ++v) total[g][v] += d * x[v];
      }
    }
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < NV; ++v)
        store(drows + g * stride + v * lanes, load(drows + g * stride + v * lanes) + total[g][v]);
  }

  Packing<T, G> packing_;
  int64_t units_, floats_, most_states_, most_events_, stored_ = 0, count_ = 0;
  Buffer<T> states_, few_, d_, sorted_d_;
  // Of each event, its unit and how many of that came before; of each unit, how many there are.
  Buffer<int32_t> unit_, rank_, of_unit_, number_, sorted_number_;
  std::vector<int64_t> starts_;
};

}  // namespace

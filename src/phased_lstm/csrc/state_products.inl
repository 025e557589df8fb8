// A panel's products with its states forwards, which a unit keeps from step to step while it is open.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "packing.inl"
#include "panel.inl"
#include "panel_products.inl"
#include "quads.h"
#include "simd.h"

namespace {

// The products of a panel's states with the weights of open units, for shared times without a leak less than all: a unit
// that was open in the step before, too, keeps its products, and adds those with what changed since, the states of the
// units that were open there.
template <typename T, int G, int NV>
class StateProducts {
 public:
  static constexpr int64_t P = kPanelRows<T, NV>;
  // What is kept drifts by rounding, so every so many steps all is multiplied anew. They are counted from the first of the
  // sequence, whatever the direction, so that rounding does not depend on the lengths of other sequences.
  static constexpr int64_t kAnchor = 16;

  explicit StateProducts(const Layer<T>& layer)
      : layer_(layer), packing_(layer), kept_(layer.events.shared && layer.leak == T(0) ? layer.units * G * P : 0),
        changes_(kept_.empty() ? 0 : layer.units * P), last_(layer.units), order_(layer.units) {
    // Infinite products would cancel to what is no number, and large ones leave their rounding.
    constexpr T kBound = 1e6;
    moderate_ = !kept_.empty();
    for (int64_t j = 0; moderate_ && j < G * layer.units; ++j) {
      const T* row = layer.weight_hh + j * layer.units;
      bool within = true;
      for (int64_t k = 0; k < layer.units; ++k) within &= std::fabs(row[k]) <= kBound;
      moderate_ = within;
    }
  }

  // Before a panel's first step, with its states (H, P), which must stay where they are; each step changes them.
  void begin(T* state) {
    state_ = state;
    std::fill(last_.begin(), last_.end(), -2);
    step_ = -1;
    changed_ = 0;
    find_bounded();
  }

  // Goes on to the next step, t, whose events are first .. first + count: puts those that are multiplied anew before those
  // that keep their products, and returns how many the former are.
  int64_t advance(int64_t t, int64_t first, int64_t count) {
    ++step_;
    const bool keep = moderate_ && t % kAnchor && 2 * changed_ <= layer_.units;
    if (t % kAnchor == 0) find_bounded();
    int64_t anew = 0, kept = count;
    for (int64_t e = 0; e < count; ++e) {
      const int64_t u = unit_of(layer_, first + e);
      const bool keeps = keep && last_[u] == step_ - 1;
      last_[u] = step_;
      order_[keeps ? --kept : anew++] = static_cast<int32_t>(e);
    }
    return anew;
  }

  // The step's events in that order, counted from its first.
  const int32_t* order() const { return order_.data(); }

  // The sums of a block's units, all of them multiplied anew or none.
  template <int B>
  void sum_up(const T* packed, const int64_t (&units)[B], const T* features, bool anew, Vec<T> (*sums)[4][NV]) {
    const T *of_input[B], *of_state[B];
    for (int b = 0; b < B; ++b) {
      const T* head = packing_.head_of(packed, units[b]);
      for (int slot = 0; slot < 4; ++slot)
        for (int v = 0; v < NV; ++v) sums[b][slot][v] = splat(head[slot]);
      of_input[b] = packing_.input_rows(packed, units[b]);
      of_state[b] = packing_.state_rows(packed, units[b]);
    }
    const auto same = [](int64_t k) { return k; };
    multiply<T, G, NV, B>(of_input, packing_.row(), kInputSlots<G>, features, layer_.inputs, same, sums);
    add<B>(of_state, units, anew, sums);
  }

  // Puts the states after the step, (count, P), in the place of the old ones.
  void replace(int64_t first, int64_t count, const T* fresh) {
    constexpr int lanes = Simd<T>::kLanes;
    changed_ = count;
    changed_units_ = layer_.events.units + first;
    for (int64_t e = 0; e < count; ++e) {
      T* to = state_ + unit_of(layer_, first + e) * P;
      for (int v = 0; v < NV * lanes; v += lanes) {
        const Vec<T> now = load(fresh + e * P + v);
        if (!kept_.empty()) store(&changes_[e * P + v], now - load(to + v));
        store(to + v, now);
      }
    }
  }

 private:
  // Finds the rows whose products may be kept until all are multiplied anew. No step leaves a state above 1. Of a larger
  // one that was put in, rounding would stay when it is gone. Each row by itself: its bits must not depend on others.
  void find_bounded() {
    constexpr int lanes = Simd<T>::kLanes;
    const Vec<T> bound = splat(T(2)), one = splat(T(1));
    all_bounded_ = true;
    for (int v = 0; v < NV && moderate_; ++v) {
      Vec<T> bounded = one;
      for (int64_t u = 0; u < layer_.units; ++u) {
        const Vec<T> state = load(state_ + u * P + v * lanes);
        bounded = state <= bound ? bounded : Vec<T>{};
        bounded = state >= -bound ? bounded : Vec<T>{};
      }
      bounded_[v] = bounded;
      all_bounded_ &= sum(bounded) == T(lanes);
    }
  }

  // Adds the products with the states to the sums.
  template <int B>
  void add(const T* const (&rows)[B], const int64_t (&units)[B], bool anew, Vec<T> (*sums)[4][NV]) {
    constexpr int lanes = Simd<T>::kLanes;
    const auto same = [](int64_t k) { return k; };
    if (kept_.empty())
      return multiply<T, G, NV, B>(rows, packing_.row(), kStateSlots<G>, state_, layer_.units, same, sums);
    Vec<T> products[B][4][NV];
    for (int b = 0; b < B; ++b)
      for (int g = 0; g < G; ++g)
        for (int v = 0; v < NV; ++v)
          products[b][kStateSlots<G>[g]][v] = anew ? Vec<T>{} : load(&kept_[(units[b] * G + g) * P + v * lanes]);
    if (anew)
      multiply<T, G, NV, B>(rows, packing_.row(), kStateSlots<G>, state_, layer_.units, same, products);
    else
      multiply<T, G, NV, B>(rows, packing_.row(), kStateSlots<G>, changes_.data(), changed_,
                            [&](int64_t k) { return changed_units_[k]; }, products);
    if (!anew && !all_bounded_) {
      Vec<T> whole[B][4][NV] = {};
      multiply<T, G, NV, B>(rows, packing_.row(), kStateSlots<G>, state_, layer_.units, same, whole);
      for (int b = 0; b < B; ++b)
        for (int slot : kStateSlots<G>)
          for (int v = 0; v < NV; ++v)
            products[b][slot][v] = bounded_[v] > T(0) ? products[b][slot][v] : whole[b][slot][v];
    }
    for (int b = 0; b < B; ++b)
      for (int g = 0; g < G; ++g)
        for (int v = 0; v < NV; ++v) {
          const int slot = kStateSlots<G>[g];
          store(&kept_[(units[b] * G + g) * P + v * lanes], products[b][slot][v]);
          sums[b][slot][v] += products[b][slot][v];
        }
  }

  const Layer<T>& layer_;
  Packing<T, G> packing_;
  T* state_ = nullptr;
  // Products (H, G, P), and how the states of the events of the step before changed, (count, P); empty if nothing is ever
  // kept.
  Buffer<T> kept_, changes_;
  // Of each unit, the step when it was last open.
  std::vector<int64_t> last_;
  std::vector<int32_t> order_;
  const int32_t* changed_units_ = nullptr;
  int64_t step_ = -1, changed_ = 0;
  // Whether weights let products be kept at all, and the states of each row, 1 or 0, and of all.
  bool moderate_ = false;
  Vec<T> bounded_[NV];
  bool all_bounded_ = true;
};

}  // namespace

// One step of a panel's events, from their sums to the states after it.
#pragma once

#include <algorithm>
#include <bit>

#include "cell.inl"
#include "elementary.h"
#include "kernels.h"
#include "panel.inl"
#include "simd.h"

namespace {

// Vectors that are stepped side by side, of one event or of several.
constexpr int kSteppedVectors = kFloatLanes == 16 ? 4 : 2;

// Events first .. first + count of a step, in columns of `rows` sequences. `sums`: (count, 4, rows); `k`: (count, rows);
// `state`, `cell`: (H, rows), which are read and set; `tape`: (count, fields, rows), or null. Not inlined: one copy
// serves panels of all widths.
template <typename T, bool Lstm>
__attribute__((noinline)) void step_panel(const Layer<T>& layer, int64_t rows, int64_t first, int64_t count,
                                          const T* sums, const T* k, T* state, T* cell, T* tape) {
  constexpr int lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  const int vectors_of_event = std::countr_zero(static_cast<uint64_t>(rows / lanes));  // as a power of two
  const int64_t all = count << vectors_of_event;
  for (int64_t j = 0, n; j < all; j += n) {
    n = std::min<int64_t>(all - j, kSteppedVectors);
    with_number<kSteppedVectors>(n, [&](auto number) {
      constexpr int N = number();
      using W = Vecs<T, N>;
      int64_t event[N], unit[N], lane[N];
      for (int i = 0; i < N; ++i) {
        event[i] = (j + i) >> vectors_of_event;
        unit[i] = unit_of(layer, first + event[i]);
        lane[i] = (j + i) * lanes - event[i] * rows;
      }
      const auto sum = [&](int slot) {
        return vectors<T, N>([&](int i) { return load(sums + (4 * event[i] + slot) * rows + lane[i]); });
      };
      const auto of_unit = [&](const T* from) {
        return vectors<T, N>([&](int i) { return load(from + unit[i] * rows + lane[i]); });
      };
      const auto weight = [&](int gate) {
        return layer.peephole ? vectors<T, N>([&](int i) { return peephole_of(layer, unit[i], gate); }) : W{};
      };
      const State<W> old{of_unit(state), Lstm ? of_unit(cell) : W{}};
      const W openness = vectors<T, N>([&](int i) { return load(k + (j + i) * lanes); });
      W values[4] = {sum(0), sum(1), sum(2), sum(3)};
      State<W> after;
      if constexpr (Lstm)
        after = lstm_step(values, {weight(0), weight(1), weight(2)}, openness, old);
      else
        after = gru_step(values, openness, old);
      const auto put = [&](const W& from, T* to) {
        for_vectors(from, [&](int i, Vec<T> of) { store(to + unit[i] * rows + lane[i], of); });
      };
      put(after.h, state);
      if (Lstm) put(after.c, cell);
      if (!tape) return;
      const auto keep = [&](const W& from, int field) {
        for_vectors(from, [&](int i, Vec<T> of) { store(tape + (event[i] * fields + field) * rows + lane[i], of); });
      };
      for (int slot = 0; slot < 4; ++slot) keep(values[slot], slot);
      keep(old.h, 4);
      if (Lstm) keep(old.c, 5);
    });
  }
}

}  // namespace

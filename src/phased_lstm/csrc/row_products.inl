// The products of sequences with the weights of open units, and their derivatives: vectors run along the state.
#pragma once

#include "packing.inl"
#include "quads.h"
#include "simd.h"

namespace {

// acc[r][slots[g]] += <rows[g], x[r]>, by lanes, from `from` on over `width`. What stands `ahead` of the rows is
// wanted next; `ask`: ask for it.
template <typename T, int G, int NR, bool ask>
inline void multiply_rows(const T* rows, int64_t stride, int64_t from, int64_t width, const int (&slots)[G],
                          const T* const* x, int64_t ahead, Vec<T> (&acc)[NR][4]) {
  for (int64_t k = from; k < from + width; k += Simd<T>::kLanes) {
    Vec<T> a[NR];
    for (int r = 0; r < NR; ++r) a[r] = factor_of<G>(load(x[r] + k));
    for (int g = 0; g < G; ++g) {
      const T* row = rows + g * stride + k;
      if constexpr (ask) __builtin_prefetch(row + ahead);
      const Vec<T> w = factor_of<NR>(load(row));
      for (int r = 0; r < NR; ++r) acc[r][slots[g]] += w * a[r];
    }
  }
}

// The four sums of a unit for NR sequences, into rows of four. `x`: their states with the features behind; `few`: their
// features when there are few.
template <typename T, int G, int NR, bool ask>
PHASED_LSTM_INLINE void unit_sums(const Packing<T, G>& packing, const T* packed, int64_t u, int64_t next,
                                  const T* const* x, const T* const* few, T* out) {
  const int64_t ahead = (next - u) * packing.unit();
  Vec<T> acc[NR][4];
  clear(acc);
  for_parts(packing, true, [&](const int(&slots)[G], int64_t from, int64_t width) {
    multiply_rows<T, G, NR, ask>(packing.state_rows(packed, u), packing.row(), from, width, slots, x, ahead, acc);
  });
  const T* head = packing.head_of(packed, u);
  Quads<T, NR> all(acc);
  all.add(load_quad(head));
  for (int64_t i = 0; i < packing.few; ++i) all.template add_product<G == 3>(load_quad(head + 4 * (1 + i)), few, i);
  all.write(out);
}

// dx[r] += sum_g d[r][slots[g]] rows[g], from `from` on over `width`.
template <typename T, int G, int NR>
inline void spread_rows(const T* rows, int64_t stride, int64_t from, int64_t width, const int (&slots)[G], const T* d,
                        T* const* dx, int64_t ahead) {
  Vec<T> scale[NR][G];
  for (int r = 0; r < NR; ++r)
    for (int g = 0; g < G; ++g) scale[r][g] = splat(d[4 * r + slots[g]]);
  for (int64_t k = from; k < from + width; k += Simd<T>::kLanes) {
    Vec<T> w[G];
    for (int g = 0; g < G; ++g) {
      __builtin_prefetch(rows + g * stride + k + ahead);
      w[g] = factor_of<NR>(load(rows + g * stride + k));
    }
    for (int r = 0; r < NR; ++r) {
      // An event's own sum first: additions to the state's gradient wait for each other.
      Vec<T> total = scale[r][0] * w[0];
      for (int g = 1; g < G; ++g) total += scale[r][g] * w[g];
      store(dx[r] + k, load(dx[r] + k) + total);
    }
  }
}

// What an event adds to the gradients of its few features. `d`: gradients of its sums.
template <typename T, int G>
inline void add_few(const Packing<T, G>& packing, const T* packed, int64_t u, const T* d, T* to) {
  for (int64_t i = 0; i < packing.few; ++i) {
    const Quad<T> share = load_quad(d) * load_quad(packing.head_of(packed, u) + 4 * (1 + i));
    to[i] += (share[0] + share[1]) + (share[2] + share[3]);
  }
}

// To those of the peepholes (i, f, o).
template <typename T>
inline void add_peepholes(const T* d, T old_c, T cell, T* to) {
  to[0] += d[0] * old_c;
  to[1] += d[1] * old_c;
  to[2] += d[3] * cell;
}

// To those of period, shift and ratio. `in_phase`: gradient of the time less the shift; `turns`: that in periods.
inline void add_gate(double in_phase, double in_ratio, double turns, double* to) {
  store_quad(to, load_quad(to) + Quad<double>{-in_phase * turns, -in_phase, in_ratio, 0.0});
}

}  // namespace

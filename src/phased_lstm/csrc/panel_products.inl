// The products of a panel with the weights of open units, and their derivatives.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "packing.inl"
#include "panel.inl"
#include "quads.h"
#include "simd.h"

namespace {

// Units whose sums are made side by side, as many as the registers hold: one unit alone waits for its own additions.
template <int NV>
constexpr int kUnitBlock = std::max(1, (kFloatLanes == 16 ? 4 : 2) / NV);

// Vectors of a panel whose sums the registers hold, with what they are made of.
template <int NV>
constexpr int kAtOnce = kFloatLanes == 16 ? NV : std::min(NV, 2);

// sums[b][slots[g]][v] += sum_k rows[b][g][place(k)] columns[k][v] for the units b of a block, columns being (width, P).
template <typename T, int G, int NV, int B, typename Place>
inline void multiply(const T* const (&rows)[B], int64_t stride, const int (&slots)[G], const T* columns, int64_t width,
                     const Place& place, Vec<T> (*sums)[4][NV]) {
  constexpr int lanes = Simd<T>::kLanes, M = kAtOnce<NV>;
  for (int from = 0; from < NV; from += M) {
    Vec<T> total[B][G][M];
    for (int b = 0; b < B; ++b)
      for (int g = 0; g < G; ++g)
        for (int v = 0; v < M; ++v) total[b][g][v] = sums[b][slots[g]][from + v];
    for (int64_t k = 0; k < width; ++k) {
      Vec<T> x[M];
      for (int v = 0; v < M; ++v)
        x[v] = factor_of<B * G>(load(columns + k * kPanelRows<T, NV> + (from + v) * lanes));
      const int64_t at = place(k);
      for (int b = 0; b < B; ++b)
        for (int g = 0; g < G; ++g) {
          const Vec<T> w = factor_of<M>(splat(rows[b][g * stride + at]));
          for (int v = 0; v < M; ++v) total[b][g][v] += w * x[v];
        }
    }
    for (int b = 0; b < B; ++b)
      for (int g = 0; g < G; ++g)
        for (int v = 0; v < M; ++v) sums[b][slots[g]][from + v] = total[b][g][v];
  }
}

// drows[g][j] += sum_rows d[slots[g]][row] x[row][j], x being (P, width), for NC vectors of columns from j on.
template <typename T, int G, int NV, int NC>
PHASED_LSTM_INLINE void gather_columns(T* drows, int64_t stride, const int (&slots)[G], const T* d, const T* x,
                                       int64_t width, int64_t j) {
  constexpr int lanes = Simd<T>::kLanes;
  constexpr int64_t P = kPanelRows<T, NV>;
  // Sums in parts, where one of a row after the other would wait for its own additions.
  constexpr int parts = NC == 1 || kFloatLanes == 16 ? 2 : 1;
  // A step's own sum first: added one by one to a long sum, small terms would lose their last bits.
  Vec<T> total[parts][G][NC];
  for (auto& part : total) clear(part);
  for (int64_t row = 0; row < P; row += parts)
    for (int part = 0; part < parts; ++part) {
      Vec<T> a[NC];
      for (int c = 0; c < NC; ++c) a[c] = factor_of<G>(load(x + (row + part) * width + j + c * lanes));
      for (int g = 0; g < G; ++g) {
        const Vec<T> of_row = factor_of<NC>(splat(d[slots[g] * P + row + part]));
        for (int c = 0; c < NC; ++c) total[part][g][c] += of_row * a[c];
      }
    }
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < NC; ++c) {
      T* to = drows + g * stride + j + c * lanes;
      Vec<T> all = total[0][g][c];
      for (int part = 1; part < parts; ++part) all += total[part][g][c];
      store(to, load(to) + all);
    }
}

// The same for all columns.
template <typename T, int G, int NV>
PHASED_LSTM_INLINE void gather_rows(T* drows, int64_t stride, const int (&slots)[G], const T* d, const T* x,
                                    int64_t width) {
  constexpr int lanes = Simd<T>::kLanes, wide = 2;
  int64_t j = 0;
  for (; j + wide * lanes <= width; j += wide * lanes)
    gather_columns<T, G, NV, wide>(drows, stride, slots, d, x, width, j);
  for (; j < width; j += lanes) gather_columns<T, G, NV, 1>(drows, stride, slots, d, x, width, j);
}

// The same from columns (width, P), for few of them.
template <typename T, int G, int NV>
inline void gather_few(T* drows, int64_t stride, const int (&slots)[G], const T* d, const T* columns, int64_t width) {
  constexpr int lanes = Simd<T>::kLanes;
  constexpr int64_t P = kPanelRows<T, NV>;
  for (int64_t i = 0; i < width; ++i) {
    Vec<T> of_slots[4] = {};
    for (int slot = 0; slot < 4; ++slot)
      for (int v = 0; v < NV; ++v)
        of_slots[slot] += load(d + slot * P + v * lanes) * load(columns + i * P + v * lanes);
    const Quad<T> all = sums(of_slots);
    for (int g = 0; g < G; ++g) drows[g * stride + i] += all[slots[g]];
  }
}

// dcolumns[k][v] += sum_g rows[b][g][k] d[b][slots[g]][v] for the units b of a block, one after the other; dcolumns
// being (width, P).
template <typename T, int G, int NV, int B>
PHASED_LSTM_INLINE void spread_back(const T* const (&rows)[B], int64_t stride, const int (&slots)[G], const T* d,
                                    T* dcolumns, int64_t width) {
  constexpr int lanes = Simd<T>::kLanes;
  constexpr int64_t P = kPanelRows<T, NV>;
  constexpr int M = kAtOnce<NV>;
  for (int from = 0; from < NV * lanes; from += M * lanes) {
    Vec<T> grad[B][G][M];
    for (int b = 0; b < B; ++b)
      for (int g = 0; g < G; ++g)
        for (int v = 0; v < M; ++v) grad[b][g][v] = load(d + (4 * b + slots[g]) * P + from + v * lanes);
    for (int64_t k = 0; k < width; ++k) {
      T* to = dcolumns + k * P + from;
      Vec<T> total[M];
      for (int v = 0; v < M; ++v) total[v] = load(to + v * lanes);
      for (int b = 0; b < B; ++b)
        for (int g = 0; g < G; ++g) {
          const Vec<T> w = factor_of<M>(splat(rows[b][g * stride + k]));
          for (int v = 0; v < M; ++v) total[v] += w * grad[b][g][v];
        }
      for (int v = 0; v < M; ++v) store(to + v * lanes, total[v]);
    }
  }
}

}  // namespace

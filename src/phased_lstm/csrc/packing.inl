// The weights as the kernels read them, and the way back for their gradients.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::Backward;
using phased_lstm::kGateSums;
using phased_lstm::Layer;

// An event has four sums, its slots: an LSTM's i, f, g, o; a GRU's r, z, and the parts of n from the input and from
// the state. Which slot each gate's row feeds:
template <int G>
constexpr int kStateSlots[G] = {};
template <>
constexpr int kStateSlots<4>[4] = {0, 1, 2, 3};
template <>
constexpr int kStateSlots<3>[3] = {0, 1, 3};
template <int G>
constexpr int kInputSlots[G] = {};
template <>
constexpr int kInputSlots<4>[4] = {0, 1, 2, 3};
template <>
constexpr int kInputSlots<3>[3] = {0, 1, 2};

// Up to so many input features are multiplied one by one; padding them to a vector would cost more.
constexpr int64_t kFewInputs = 4;

// A unit's weights are one contiguous read: G rows over the padded state and the padded input behind it, and a head
// of (1 + few, 4): the slots' biases, and the slots' weights of each input feature when there are few. Gradients are
// gathered in the same layout.
template <typename T, int G>
struct Packing {
  int64_t state, input, few, head;
  explicit Packing(const Layer<T>& layer)
      : state(padded<T>(layer.units)),
        input(is_few(layer) ? 0 : padded<T>(layer.inputs)),
        few(is_few(layer) ? layer.inputs : 0),
        head(padded<T>(4 * (1 + few))) {}
  static bool is_few(const Layer<T>& layer) { return !layer.panels && layer.inputs <= kFewInputs; }
  int64_t row() const { return state + input; }
  int64_t unit() const { return G * row() + head; }
  template <typename P>
  P* state_rows(P* packed, int64_t u) const { return packed + u * unit(); }
  template <typename P>
  P* input_rows(P* packed, int64_t u) const { return packed + u * unit() + state; }
  template <typename P>
  P* head_of(P* packed, int64_t u) const { return packed + u * unit() + G * row(); }
};

// Calls f(slots, from, width) for the parts of a row that feed the same slots: an LSTM's rows in one go.
template <typename T, int G, typename F>
inline void for_parts(const Packing<T, G>& packing, bool with_input, const F& f) {
  if constexpr (G == 4) {
    f(kStateSlots<G>, int64_t(0), with_input ? packing.row() : packing.state);
  } else {
    f(kStateSlots<G>, int64_t(0), packing.state);
    if (with_input) f(kInputSlots<G>, packing.state, packing.input);
  }
}

template <typename T, int G>
int64_t packed_size(const Layer<T>& layer) {
  return layer.units * Packing<T, G>(layer).unit();
}

// Gathered beside the weights' gradients: 3 peepholes of each unit.
template <typename T, int G>
int64_t partial_size(const Layer<T>& layer) {
  return packed_size<T, G>(layer) + 3 * layer.units;
}

template <typename T, int G>
void pack(const Layer<T>& layer, T* packed, const uint8_t* wanted, int64_t begin, int64_t end) {
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs;
  const bool gaps = packing.row() != H + (packing.input ? I : 0);
  for (int64_t u = begin; u < end; ++u) {
    if (wanted && !wanted[u]) continue;
    T* unset = gaps ? packing.state_rows(packed, u) : packing.head_of(packed, u);
    std::fill(unset, packed + (u + 1) * packing.unit(), T(0));
    T* head = packing.head_of(packed, u);
    for (int g = 0; g < G; ++g) {
      const int64_t row = g * H + u;
      std::copy_n(layer.weight_hh + row * H, H, packing.state_rows(packed, u) + g * packing.row());
      if (packing.input)
        std::copy_n(layer.weight_ih + row * I, I, packing.input_rows(packed, u) + g * packing.row());
      for (int64_t i = 0; i < packing.few; ++i) head[4 * (1 + i) + kInputSlots<G>[g]] = layer.weight_ih[row * I + i];
      if (layer.bias_ih) head[kInputSlots<G>[g]] += layer.bias_ih[row];
      if (layer.bias_hh) head[kStateSlots<G>[g]] += layer.bias_hh[row];
    }
  }
}

// Adds up the chunks' shares in their order and puts them into torch's layout.
template <typename T, int G>
void gather(const Layer<T>& layer, const Backward<T>& run, T* partials, const double* gate_sums, int64_t chunks) {
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs, size = partial_size<T, G>(layer);
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t j = 0; j < size; ++j) partials[j] += partials[chunk * size + j];
  const T* packed = partials;
  const T* peepholes = packed + H * packing.unit();
  for (int64_t u = 0; u < H; ++u) {
    const T* head = packing.head_of(packed, u);
    for (int g = 0; g < G; ++g) {
      const int64_t row = g * H + u;
      std::copy_n(packing.state_rows(packed, u) + g * packing.row(), H, run.grad_weight_hh + row * H);
      if (packing.input)
        std::copy_n(packing.input_rows(packed, u) + g * packing.row(), I, run.grad_weight_ih + row * I);
      for (int64_t i = 0; i < packing.few; ++i) run.grad_weight_ih[row * I + i] = head[4 * (1 + i) + kInputSlots<G>[g]];
      run.grad_bias_ih[row] = head[kInputSlots<G>[g]];
      if (G == 3) run.grad_bias_hh[row] = head[kStateSlots<G>[g]];
    }
    if (run.grad_peephole)
      for (int j = 0; j < 3; ++j) run.grad_peephole[j * H + u] = peepholes[u * 3 + j];
  }
  std::fill_n(run.grad_gate, 3 * H, 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t u = 0; u < H; ++u)
      for (int j = 0; j < 3; ++j) run.grad_gate[j * H + u] += gate_sums[(chunk * H + u) * kGateSums + j];
}

}  // namespace

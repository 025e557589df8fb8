// One event's arithmetic, a vector of events at a time: the gate's openness, the LSTM's and the GRU's step, and
// their derivatives. All walks over the events, by rows, one sequence after the other and by panels, end here.
#pragma once

#include <cmath>

#include "elementary.h"
#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::Oscillation;

// k, its slope in the phase and its derivative in the ratio.
template <typename T>
struct Gate {
  Vec<T> k, slope, in_ratio;
};

// The library's own functions, lane by lane. Not inlined, as gates are made in many places.
template <typename T>
__attribute__((noinline)) void sine_and_cosine(const T* x, T* sine, T* cosine) {
  for (int i = 0; i < Simd<T>::kLanes; ++i) {
    sine[i] = std::sin(x[i]);
    cosine[i] = std::cos(x[i]);
  }
}

// Without a leak all events are open, also those whose phase was rounded up to the ratio.
template <typename T>
inline Gate<T> gate_at(Vec<T> phase, Vec<T> ratio, T leak, Oscillation oscillation) {
  using V = Vec<T>;
  const V nothing = splat(T(0)), one = splat(T(1));
  const V progress = phase / ratio;
  Gate<T> gate;
  if (oscillation == phased_lstm::kTriangle) {
    const V sign = progress < T(0.5) ? one : -one;
    gate.slope = sign * 2 / ratio;
    gate.k = (1 - sign) + gate.slope * phase;
    gate.in_ratio = -gate.slope * progress;
  } else if (oscillation == phased_lstm::kSquare) {
    gate.k = one;
    gate.slope = gate.in_ratio = nothing;
  } else {
    // (1 - cos 2x) / 2 = sin^2 x, which does not cancel at the ends.
    constexpr T half_turn = T(3.1415926535897932384626433832795);
    T angles[Simd<T>::kLanes], sines[Simd<T>::kLanes], cosines[Simd<T>::kLanes];
    store(angles, half_turn * progress);
    sine_and_cosine(angles, sines, cosines);
    const V sine = load<T>(sines), cosine = load<T>(cosines);
    gate.slope = 2 * half_turn * sine * cosine / ratio;
    gate.k = sine * sine;
    gate.in_ratio = -gate.slope * progress;
  }
  if (leak == T(0)) return gate;
  const auto open = phase < ratio;
  gate.k = open ? gate.k : leak * phase;
  gate.slope = open ? gate.slope : splat(leak);
  gate.in_ratio = open ? gate.in_ratio : nothing;
  return gate;
}

// What an event leaves: the state after it. V, here and below: a vector, or several side by side.
template <typename V>
struct State {
  V h, c;
};

// old + k (fresh - old), counted from the nearer of the two as torch.lerp does, so that neither cancels the other. At
// k = 1 the state is replaced whatever it was, infinity included.
template <typename V>
PHASED_LSTM_INLINE V moved(const V& old, const V& fresh, const V& k) {
  const V one = V{} + 1, change = fresh - old;
  const V mixed = k + k < one ? old + k * change : fresh + (k - one) * change;
  return k < one ? mixed : fresh;
}
template <typename A, typename B>
PHASED_LSTM_INLINE Both<A, B> moved(const Both<A, B>& old, const Both<A, B>& fresh, const Both<A, B>& k) {
  return {moved(old.a, fresh.a, k.a), moved(old.b, fresh.b, k.b)};
}

// Weights from the cell to the gates i, f, o, if there are any: an infinite cell times a weight of 0 would be no number.
template <typename V>
struct Peepholes {
  bool present;
  V of[3];
};

// `sums` come as the products of i, f, g, o, and become the gates' values.
template <typename V>
PHASED_LSTM_INLINE State<V> lstm_step(V (&sums)[4], const Peepholes<V>& peepholes, const V& k, const State<V>& old) {
  if (peepholes.present) {
    sums[0] = sums[0] + peepholes.of[0] * old.c;
    sums[1] = sums[1] + peepholes.of[1] * old.c;
  }
  const V i = vsigmoid(sums[0]), f = vsigmoid(sums[1]);
  const V g = vtanh(sums[2]);
  const V c = f * old.c + i * g;
  if (peepholes.present) sums[3] = sums[3] + peepholes.of[2] * c;
  const V o = vsigmoid(sums[3]);
  sums[0] = i, sums[1] = f, sums[2] = g, sums[3] = o;
  return {moved(old.h, o * vtanh(c), k), moved(old.c, c, k)};
}

// `sums` come as r, z and the two parts of n, of the input and of the state; the first three become values.
template <typename V>
PHASED_LSTM_INLINE State<V> gru_step(V (&sums)[4], const V& k, const State<V>& old) {
  const auto [r, z] = vsigmoid(Both<V, V>{sums[0], sums[1]});
  const V n = vtanh(sums[2] + r * sums[3]);
  sums[0] = r, sums[1] = z, sums[2] = n;
  return {moved(old.h, n + z * (old.h - n), k), V{}};
}

// Gradients of an event: of its four sums, of k, and of the state before it but for what goes through the products.
template <typename V>
struct Gradients {
  V sums[4], k;
  State<V> old;
  V cell;  // c~, for the output gate's peephole
};

template <typename V>
PHASED_LSTM_INLINE Gradients<V> lstm_step_back(const V (&values)[4], const V (&peephole)[3], const V& k,
                                               const State<V>& old, const State<V>& grad) {
  const V &i = values[0], &f = values[1], &g = values[2], &o = values[3];
  const V c = f * old.c + i * g, tanh_c = vtanh(c);
  const V dh = k * grad.h;
  const V in_o = dh * tanh_c * o * (1 - o);
  const V dc = k * grad.c + dh * o * (1 - tanh_c * tanh_c) + in_o * peephole[2];
  const V in_i = dc * g * i * (1 - i), in_f = dc * old.c * f * (1 - f);
  return {{in_i, in_f, dc * i * (1 - g * g), in_o},
          grad.h * (o * tanh_c - old.h) + grad.c * (c - old.c),
          {(1 - k) * grad.h, (1 - k) * grad.c + dc * f + in_i * peephole[0] + in_f * peephole[1]},
          c};
}

template <typename V>
PHASED_LSTM_INLINE Gradients<V> gru_step_back(const V (&values)[4], const V& k, const State<V>& old,
                                              const State<V>& grad) {
  const V &r = values[0], &z = values[1], &n = values[2], &from_state = values[3];
  const V dh = k * grad.h;
  const V in_n = dh * (1 - z) * (1 - n * n);
  return {{in_n * from_state * r * (1 - r), dh * (old.h - n) * z * (1 - z), in_n, in_n * r},
          grad.h * (n + z * (old.h - n) - old.h),
          {(1 - k) * grad.h + dh * z, V{}},
          V{}};
}

}  // namespace

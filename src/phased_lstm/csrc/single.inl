// The recurrence for a few sequences, one after the other: a step waits for the one before, so that what counts is how
// soon its new state can be read. Its sums round as those of rows.inl do, so that a stream may go either way.
#pragma once

#include <algorithm>

#include "cell.inl"
#include "gates.inl"
#include "kernels.h"
#include "packing.inl"
#include "pending.inl"
#include "quads.h"
#include "rows.inl"
#include "shares.inl"
#include "simd.h"

namespace {

// Units whose sums are made side by side, and whose gradients are on the way back: with one alone, additions wait for
// each other.
constexpr int kSideBySide = kFloatLanes == 16 ? 4 : 2;

// The four sums of NU units of one sequence, into rows of four.
template <typename T, int G, int NU>
inline void sums_of_units(const Packing<T, G>& packing, const T* packed, const int32_t* units, const T* x, const T* few,
                          T* out) {
  Vec<T> acc[NU][4];
  clear(acc);
  for_parts(packing, true, [&](const int(&slots)[G], int64_t from, int64_t width) {
    const T* rows[NU];
    for (int n = 0; n < NU; ++n) rows[n] = packing.state_rows(packed, units[n]) + from;
    const int64_t stride = packing.row();
    for (int64_t k = 0; k < width; k += Simd<T>::kLanes) {
      const Vec<T> a = load(x + from + k);
      for (int n = 0; n < NU; ++n)
        for (int g = 0; g < G; ++g) acc[n][slots[g]] += load(rows[n] + g * stride + k) * a;
    }
  });
  for_numbers<NU>([&](auto n) {
    const T* head = packing.head_of(packed, units[n()]);
    Quad<T> sum = sums(acc[n()]) + load_quad(head);
    for (int64_t i = 0; i < packing.few; ++i) sum = plus_product<G == 3>(sum, load_quad(head + 4 * (1 + i)), few[i]);
    store_quad(out + 4 * n(), sum);
  });
}

// Whether sequences go one after the other.
template <typename T>
inline bool alone(const Layer<T>& layer) {
  return !layer.panels && group_rows(layer.batch) == 1;
}

template <typename T, bool Lstm>
void forward_single(const Layer<T>& layer, const Forward<T>& run, const T* packed, Shares& shares) {
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs;
  Buffer<T> state(packing.row(), T(0)), cell(Lstm ? H : 0), sums(4 * padded<T>(H), T(0)), fresh(2 * padded<T>(H));
  T *const h = state.data(), *const c = cell.data(), *const new_h = fresh.data(), *const new_c = new_h + padded<T>(H);
  for (int64_t row; (row = take_share(shares)) < shares.count;) {
    const int64_t* offsets = offsets_of(layer, row);
    const int64_t valid = valid_steps(layer, row);
    std::copy_n(run.h0 + row * H, H, h);
    if (Lstm) std::copy_n(run.c0 + row * H, H, c);
    EventGates<T> gates(layer, offsets[0], offsets[valid], layer.reverse, false);
    T* tape = run.tape ? run.tape + events_before(layer, row) * fields : nullptr;
    for (int64_t step = 0; step < valid; ++step) {
      const int64_t t = layer.reverse ? valid - 1 - step : step, place = row * layer.steps + t;
      const int64_t first = offsets[t], count = offsets[t + 1] - first;
      const int32_t* units = layer.events.units + first;
      if (count && packing.input) take_features(layer, place, true, h + packing.state);
      const T* k = gates.at(first, count).k;
      for (int64_t e = 0; e < count; e += kSideBySide)
        with_number<kSideBySide>(std::min<int64_t>(kSideBySide, count - e), [&](auto number) {
          sums_of_units<T, G, number()>(packing, packed, units + e, h, layer.input + place * I, &sums[4 * e]);
        });
      for (int64_t e = 0; e < count; e += lanes) {
        const int64_t here = std::min<int64_t>(lanes, count - e);
        Vec<T> values[4];
        Peepholes<Vec<T>> peepholes{layer.peephole != nullptr, {}};
        load_columns(&sums[4 * e], values);
        State<Vec<T>> old{gather_lanes(h, units + e, here), Vec<T>{}};
        if constexpr (Lstm) old.c = gather_lanes(c, units + e, here);
        if (Lstm && layer.peephole)
          for (int j = 0; j < 3; ++j) peepholes.of[j] = gather_lanes(layer.peephole + j * H, units + e, here);
        State<Vec<T>> after;
        if constexpr (Lstm)
          after = lstm_step(values, peepholes, load(k + e), old);
        else
          after = gru_step(values, load(k + e), old);
        store(new_h + e, after.h);
        store(new_c + e, after.c);
        if (!tape) continue;
        for (int slot = 0; slot < 4; ++slot) store_first(tape + slot * count + e, values[slot], here);
        store_first(tape + 4 * count + e, old.h, here);
        if (Lstm) store_first(tape + 5 * count + e, old.c, here);
      }
      for (int64_t e = 0; e < count; ++e) {
        store_lane(h, units[e], new_h[e]);
        if (Lstm) c[units[e]] = new_c[e];
      }
      if (tape) tape += count * fields;
      if (run.output) std::copy_n(h, H, run.output + place * H);
    }
    if (run.output) std::fill_n(run.output + (row * layer.steps + valid) * H, (layer.steps - valid) * H, T(0));
    std::copy_n(h, H, run.h_n + row * H);
    if (Lstm) std::copy_n(c, H, run.c_n + row * H);
  }
}

// dx += sum_n sum_g d[n][slots[g]] rows[n][g], from `from` on over `width`.
template <typename T, int G, int NU>
inline void spread_units(const T* const (&rows)[NU], int64_t stride, int64_t from, int64_t width, const int (&slots)[G],
                         const T* d, T* dx) {
  Vec<T> scale[NU][G];
  for (int n = 0; n < NU; ++n)
    for (int g = 0; g < G; ++g) scale[n][g] = splat(d[4 * n + slots[g]]);
  for (int64_t k = from; k < from + width; k += Simd<T>::kLanes) {
    Vec<T> all = load(dx + k);
    for (int n = 0; n < NU; ++n) {
      Vec<T> total = scale[n][0] * load(rows[n] + k);
      for (int g = 1; g < G; ++g) total += scale[n][g] * load(rows[n] + g * stride + k);
      all += total;
    }
    store(dx + k, all);
  }
}

template <typename T, bool Lstm>
void backward_single(const Layer<T>& layer, const Backward<T>& run, const T* packed, Shares& shares, T* partials,
                     double* all_gate_sums) {
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs;
  Buffer<T> state(packing.row(), T(0)), grad(packing.row(), T(0)), grad_cell(Lstm ? H : 0);
  Scratch<T, 5> at(H);
  enum { kInPhase, kInRatio, kCell, kGradH, kGradC };
  PendingProducts<T, G> pending(layer, 1);
  T *const h = state.data(), *const grad_h = grad.data(), *const grad_c = grad_cell.data();
  T grad_few[kFewInputs];
  std::vector<double> inverse(H);
  for (int64_t u = 0; u < H; ++u) inverse[u] = 1.0 / run.period[u];
  // A chunk is a sequence here.
  for (int64_t row; (row = take_share(shares)) < shares.count;) {
    T *const partial = partials + row * partial_size<T, G>(layer), *const peepholes = partial + H * packing.unit();
    double* const gate_sums = all_gate_sums + row * kGateSums * H;
    const int64_t* offsets = offsets_of(layer, row);
    const int64_t valid = valid_steps(layer, row);
    std::copy_n(run.h_n + row * H, H, h);
    std::copy_n(run.grad_h_n + row * H, H, grad_h);
    if (Lstm) std::copy_n(run.grad_c_n + row * H, H, grad_c);
    EventGates<T> gates(layer, offsets[0], offsets[valid], !layer.reverse, true);
    const T* tape = run.tape + (events_before(layer, row) + offsets[valid] - offsets[0]) * fields;
    for (int64_t step = valid - 1; step >= 0; --step) {
      const int64_t t = layer.reverse ? valid - 1 - step : step, place = row * layer.steps + t;
      const int64_t first = offsets[t], count = offsets[t + 1] - first;
      const int32_t* units = layer.events.units + first;
      tape -= count * fields;
      if (run.grad_output)
        for (int64_t u = 0; u < H; ++u) grad_h[u] += run.grad_output[place * H + u];
      if (!count) continue;
      // The products need the state before this step.
      for (int64_t e = 0; e < count; ++e) store_lane(h, units[e], tape[4 * count + e]);
      if (!pending.room_for(1, count)) pending.settle(partial);
      if (packing.input) {
        take_features(layer, place, false, h + packing.state);
        std::fill_n(grad_h + packing.state, packing.input, T(0));
      }
      const int32_t number = pending.keep(h, layer.input + place * I);
      T* d = pending.next();
      const auto gate = gates.at(first, count);
      for (int64_t e = 0; e < count; e += lanes) {
        const int64_t here = std::min<int64_t>(lanes, count - e);
        Vec<T> values[4], peephole[3];
        for (Vec<T>& of : peephole) of = splat(T(0));
        for (int slot = 0; slot < 4; ++slot) values[slot] = load_first(tape + slot * count + e, here);
        State<Vec<T>> old{load_first(tape + 4 * count + e, here), Vec<T>{}};
        State<Vec<T>> from{gather_lanes(grad_h, units + e, here), Vec<T>{}};
        if constexpr (Lstm) {
          old.c = load_first(tape + 5 * count + e, here);
          from.c = gather_lanes(grad_c, units + e, here);
        }
        Gradients<Vec<T>> found;
        if constexpr (Lstm) {
          if (layer.peephole)
            for (int j = 0; j < 3; ++j) peephole[j] = gather_lanes(layer.peephole + j * H, units + e, here);
          found = lstm_step_back(values, peephole, load(gate.k + e), old, from);
        } else {
          found = gru_step_back(values, load(gate.k + e), old, from);
        }
        store_rows(d + 4 * e, found.sums);
        store(at[kInPhase] + e, found.k * load(gate.slope + e));
        store(at[kInRatio] + e, found.k * load(gate.in_ratio + e));
        store(at[kCell] + e, found.cell);
        store(at[kGradH] + e, found.old.h);
        store(at[kGradC] + e, found.old.c);
      }
      for (int64_t e = 0; e < count; ++e) {
        store_lane(grad_h, units[e], at[kGradH][e]);
        if (Lstm) grad_c[units[e]] = at[kGradC][e];
      }
      for (int64_t e = 0; e < count; e += kSideBySide)
        with_number<kSideBySide>(std::min<int64_t>(kSideBySide, count - e), [&](auto number) {
          for_parts(packing, run.grad_input != nullptr, [&](const int(&slots)[G], int64_t from, int64_t width) {
            const T* rows[number()];
            for (int n = 0; n < number(); ++n) rows[n] = packing.state_rows(packed, units[e + n]);
            spread_units<T, G, number()>(rows, packing.row(), from, width, slots, d + 4 * e, grad_h);
          });
        });
      std::fill_n(grad_few, packing.few, T(0));
      double grad_time = 0.0;
      const double time = layer.times[layer.events.shared ? t : place];
      for (int64_t e = 0; e < count; ++e) {
        const int64_t u = units[e];
        pending.add(u, number);
        if (run.grad_input) add_few(packing, packed, u, d + 4 * e, grad_few);
        if (Lstm && layer.peephole) add_peepholes(d + 4 * e, tape[5 * count + e], at[kCell][e], peepholes + 3 * u);
        const double in_phase = at[kInPhase][e] * inverse[u];
        add_gate(in_phase, at[kInRatio][e], (time - run.shift[u]) * inverse[u], gate_sums + kGateSums * u);
        grad_time += in_phase;
      }
      if (run.grad_input) std::copy_n(packing.input ? grad_h + packing.state : grad_few, I, run.grad_input + place * I);
      if (run.grad_times) run.grad_times[place] = grad_time;
    }
    std::copy_n(grad_h, H, run.grad_h0 + row * H);
    if (Lstm) std::copy_n(grad_c, H, run.grad_c0 + row * H);
    pending.settle(partial);
  }
}

}  // namespace

// The recurrence one sequence at a time: vectors run along the state, which suits times that differ
// from row to row. Only events are visited; between two events of a unit nothing of it is touched.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::Backward;
using phased_lstm::Buffer;
using phased_lstm::Forward;
using phased_lstm::KernelTable;
using phased_lstm::Layer;
using phased_lstm::Oscillation;

// Packed weights of a unit: G rows over the padded state, then G rows over the padded input, so that
// an open unit is one contiguous read. Gradients of weights are gathered in the same layout.
template <typename T, int G>
struct Packing {
  int64_t state, input;  // padded widths
  explicit Packing(const Layer<T>& layer) : state(padded<T>(layer.units)), input(padded<T>(layer.inputs)) {}
  int64_t unit() const { return G * (state + input); }
  const T* state_rows(const T* packed, int64_t u) const { return packed + u * unit(); }
  T* state_rows(T* packed, int64_t u) const { return packed + u * unit(); }
  const T* input_rows(const T* packed, int64_t u) const { return packed + u * unit() + G * state; }
  T* input_rows(T* packed, int64_t u) const { return packed + u * unit() + G * state; }
};

// Gathered beside the weights' gradients: 2 G biases and 3 peepholes of each unit.
template <typename T, int G>
int64_t partial_size(const Layer<T>& layer) {
  return layer.units * (Packing<T, G>(layer).unit() + 2 * G + 3);
}

template <typename T, int G>
void pack(const Layer<T>& layer, T* packed) {
  const Packing<T, G> packing(layer);
  std::fill_n(packed, layer.units * packing.unit(), T(0));
  for (int64_t u = 0; u < layer.units; ++u) {
    for (int g = 0; g < G; ++g) {
      const int64_t row = g * layer.units + u;
      std::copy_n(layer.weight_hh + row * layer.units, layer.units, packing.state_rows(packed, u) + g * packing.state);
      std::copy_n(layer.weight_ih + row * layer.inputs, layer.inputs, packing.input_rows(packed, u) + g * packing.input);
    }
  }
}

// sums[slot[g]] += <rows[g], x>, by lanes; two vectors a turn so that enough sums are under way.
template <typename T, int G>
inline void accumulate(const T* rows, const T* x, int64_t width, const int (&slot)[G], Vec<T> (&even)[4],
                       Vec<T> (&odd)[4]) {
  constexpr int lanes = Simd<T>::kLanes;
  int64_t k = 0;
  for (; k + 2 * lanes <= width; k += 2 * lanes) {
    const Vec<T> a = load(x + k), b = load(x + k + lanes);
    for (int g = 0; g < G; ++g) {
      even[slot[g]] += load(rows + g * width + k) * a;
      odd[slot[g]] += load(rows + g * width + k + lanes) * b;
    }
  }
  if (k < width) {
    const Vec<T> a = load(x + k);
    for (int g = 0; g < G; ++g) even[slot[g]] += load(rows + g * width + k) * a;
  }
}

// The four sums of a unit. LSTM: i, f, g, o. GRU: r, z, and the two parts of n, of the input and of the state.
template <typename T, bool Lstm>
inline void unit_sums(const Packing<T, Lstm ? 4 : 3>& packing, const T* packed, int64_t u, const T* state,
                      const T* features, T* out) {
  Vec<T> even[4] = {}, odd[4] = {};
  if constexpr (Lstm) {
    constexpr int slots[] = {0, 1, 2, 3};
    accumulate<T, 4>(packing.state_rows(packed, u), state, packing.state, slots, even, odd);
    accumulate<T, 4>(packing.input_rows(packed, u), features, packing.input, slots, even, odd);
  } else {
    constexpr int of_state[] = {0, 1, 3}, of_input[] = {0, 1, 2};
    accumulate<T, 3>(packing.state_rows(packed, u), state, packing.state, of_state, even, odd);
    accumulate<T, 3>(packing.input_rows(packed, u), features, packing.input, of_input, even, odd);
  }
  for (int g = 0; g < 4; ++g) even[g] += odd[g];
  sums<4>(even, out);
}

// dx += sum_g d[g] rows[g] and drows[g] += d[g] x.
template <typename T, int G>
inline void rank_one(const T* rows, T* drows, const T* x, T* dx, int64_t width, const T* d) {
  Vec<T> scale[G];
  for (int g = 0; g < G; ++g) scale[g] = splat(d[g]);
  for (int64_t k = 0; k < width; k += Simd<T>::kLanes) {
    const Vec<T> value = load(x + k);
    Vec<T> total = load(dx + k);
    for (int g = 0; g < G; ++g) {
      total += scale[g] * load(rows + g * width + k);
      store(drows + g * width + k, load(drows + g * width + k) + scale[g] * value);
    }
    store(dx + k, total);
  }
}

// k, its slope in the phase and its derivative in the ratio.
template <typename T>
struct Gate {
  T k, slope, in_ratio;
};

template <typename T>
inline Gate<T> gate_at(T phase, T ratio, T leak, Oscillation oscillation) {
  if (!(phase < ratio)) return {leak * phase, leak, T(0)};
  const T progress = phase / ratio;
  if (oscillation == phased_lstm::kTriangle) {
    // Which half comes cannot be predicted, so both are written without a branch.
    const T sign = phase < T(0.5) * ratio ? T(1) : T(-1);
    const T slope = sign * 2 / ratio;
    return {(1 - sign) + slope * phase, slope, -slope * progress};
  }
  if (oscillation == phased_lstm::kSquare) return {T(1), T(0), T(0)};
  constexpr T turn = T(6.283185307179586476925286766559);
  const T slope = T(0.5) * turn * std::sin(turn * progress) / ratio;
  return {T(0.5) - T(0.5) * std::cos(turn * progress), slope, -slope * progress};
}

// Columns of scratch, one entry for each event of a step, padded so that whole vectors fit.
template <typename T, int Columns>
struct Scratch {
  int64_t width;
  Buffer<T> data;
  explicit Scratch(int64_t units) : width(padded<T>(units)), data(Columns * padded<T>(units), T(0)) {}
  T* operator[](int column) { return data.data() + column * width; }
};

template <typename T>
inline int64_t tape_column(const Layer<T>& layer, int64_t row) {
  return layer.events.shared ? row * layer.events.count : 0;
}

template <typename T>
inline int64_t valid_steps(const Layer<T>& layer, int64_t row) {
  return layer.lengths ? layer.lengths[row] : layer.steps;
}

template <typename T>
inline const int64_t* offsets_of(const Layer<T>& layer, int64_t row) {
  return layer.events.offsets + (layer.events.shared ? 0 : row * (layer.steps + 1));
}

// Rows that advance side by side. Each waits for its own state, so several fill the processor, and their
// events fill the vectors of the elementwise part. A function of the batch alone.
constexpr int64_t kSideBySide = 4;

inline int64_t rows_side_by_side(int64_t batch) { return std::max<int64_t>(1, std::min(kSideBySide, batch / 2)); }

// The events of one row at its present step, and where they stand among those of the group.
struct Segment {
  int64_t row, slot, t, first, count, start;
};

// Collects the events of a step for the rows of a group that are still running; returns their number.
template <typename T>
inline int64_t segments_of(const Layer<T>& layer, int64_t begin, int64_t end, int64_t step, bool forwards,
                           Segment* segments, int64_t* events) {
  int64_t found = 0;
  *events = 0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t valid = valid_steps(layer, row);
    if (step >= valid) continue;
    const int64_t t = layer.reverse == forwards ? valid - 1 - step : step;
    const int64_t* offsets = offsets_of(layer, row);
    segments[found++] = {row, row - begin, t, offsets[t], offsets[t + 1] - offsets[t], *events};
    *events += offsets[t + 1] - offsets[t];
  }
  return found;
}

template <typename T, bool Lstm>
void forward_rows(const Layer<T>& layer, const Forward<T>& run, const T* packed, int64_t begin, int64_t end) {
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  enum { kA, kB, kC, kD, kOldH, kOldC, kOpen, kPeepI, kPeepF, kPeepO, kNewH, kNewC, kColumns };
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs, side = rows_side_by_side(layer.batch);
  Buffer<T> states(side * packing.state, T(0)), features(packing.input, T(0)), cells(side * H, T(0));
  Scratch<T, kColumns> at(side * H);
  Segment segments[kSideBySide];
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first_row = group * side, last_row = std::min(first_row + side, layer.batch);
    int64_t longest = 0;
    for (int64_t row = first_row; row < last_row; ++row) {
      std::copy_n(run.h0 + row * H, H, &states[(row - first_row) * packing.state]);
      if (Lstm) std::copy_n(run.c0 + row * H, H, &cells[(row - first_row) * H]);
      longest = std::max(longest, valid_steps(layer, row));
    }
    for (int64_t step = 0; step < longest; ++step) {
      int64_t events;
      const int64_t running = segments_of(layer, first_row, last_row, step, true, segments, &events);
      for (const Segment* s = segments; s < segments + running; ++s) {
        if (!s->count) continue;
        const T* state = &states[s->slot * packing.state];
        const T* cell = &cells[s->slot * H];
        std::copy_n(layer.input + (s->row * layer.steps + s->t) * I, I, features.data());
        for (int64_t e = 0; e < s->count; ++e) {
          const int64_t u = layer.events.units[s->first + e], to = s->start + e;
          T pre[4];
          unit_sums<T, Lstm>(packing, packed, u, state, features.data(), pre);
          for (int g = 0; g < G; ++g)
            if (layer.bias_ih) pre[g] += layer.bias_ih[g * H + u];
          if (!Lstm && layer.bias_hh) {
            pre[0] += layer.bias_hh[u];
            pre[1] += layer.bias_hh[H + u];
            pre[3] += layer.bias_hh[2 * H + u];
          }
          for (int g = 0; g < 4; ++g) at[kA + g][to] = pre[g];
          at[kOldH][to] = state[u];
          if (Lstm) at[kOldC][to] = cell[u];
          if (Lstm && layer.peephole) {
            at[kPeepI][to] = layer.peephole[u];
            at[kPeepF][to] = layer.peephole[H + u];
            at[kPeepO][to] = layer.peephole[2 * H + u];
          }
          at[kOpen][to] =
              gate_at(layer.events.phases[s->first + e], layer.ratio_on[u], layer.leak, layer.oscillation).k;
        }
      }
      for (int64_t e = 0; e < events; e += lanes) {
        using V = Vec<T>;
        const V k = load(at[kOpen] + e), old_h = load(at[kOldH] + e);
        if (Lstm) {
          const V old_c = load(at[kOldC] + e);
          const V i = vsigmoid(load(at[kA] + e) + load(at[kPeepI] + e) * old_c);
          const V f = vsigmoid(load(at[kB] + e) + load(at[kPeepF] + e) * old_c);
          const V g = vtanh(load(at[kC] + e));
          const V c = f * old_c + i * g;
          const V o = vsigmoid(load(at[kD] + e) + load(at[kPeepO] + e) * c);
          store(at[kNewC] + e, old_c + k * (c - old_c));
          store(at[kNewH] + e, old_h + k * (o * vtanh(c) - old_h));
          store(at[kA] + e, i);
          store(at[kB] + e, f);
          store(at[kC] + e, g);
          store(at[kD] + e, o);
        } else {
          const V r = vsigmoid(load(at[kA] + e)), z = vsigmoid(load(at[kB] + e));
          const V n = vtanh(load(at[kC] + e) + r * load(at[kD] + e));
          store(at[kNewH] + e, old_h + k * (n + z * (old_h - n) - old_h));
          store(at[kA] + e, r);
          store(at[kB] + e, z);
          store(at[kC] + e, n);
        }
      }
      for (const Segment* s = segments; s < segments + running; ++s) {
        T* state = &states[s->slot * packing.state];
        T* cell = &cells[s->slot * H];
        T* tape = run.tape ? run.tape + (tape_column(layer, s->row) + s->first) * fields : nullptr;
        for (int64_t e = 0; e < s->count; ++e) {
          const int64_t u = layer.events.units[s->first + e], from = s->start + e;
          state[u] = at[kNewH][from];
          if (Lstm) cell[u] = at[kNewC][from];
          if (!tape) continue;
          tape[0] = at[kA][from];
          tape[1] = at[kB][from];
          tape[2] = at[kC][from];
          tape[3] = at[kD][from];
          tape[4] = at[kOldH][from];
          if (Lstm) tape[5] = at[kOldC][from];
          tape += fields;
        }
        if (run.output) std::copy_n(state, H, run.output + (s->row * layer.steps + s->t) * H);
      }
    }
    for (int64_t row = first_row; row < last_row; ++row) {
      const int64_t valid = valid_steps(layer, row);
      if (run.output) std::fill_n(run.output + (row * layer.steps + valid) * H, (layer.steps - valid) * H, T(0));
      std::copy_n(&states[(row - first_row) * packing.state], H, run.h_n + row * H);
      if (Lstm) std::copy_n(&cells[(row - first_row) * H], H, run.c_n + row * H);
    }
  }
}

template <typename T, bool Lstm>
void backward_rows(const Layer<T>& layer, const Backward<T>& run, const T* packed, int64_t begin, int64_t end,
                   T* partial, double* gate) {
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  enum { kA, kB, kC, kD, kOldC, kOldH, kOpen, kGradH, kGradC, kPeepI, kPeepF, kPeepO,
         kGradA, kGradB, kGradCandidate, kGradD, kGradOpen, kNewC, kSlope, kInRatio, kColumns };
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs, side = rows_side_by_side(layer.batch);
  T* biases = partial + H * packing.unit();
  T* peepholes = biases + H * 2 * G;
  Buffer<T> states(side * packing.state, T(0)), grad_states(side * packing.state, T(0));
  Buffer<T> features(packing.input, T(0)), grad_features(packing.input, T(0)), grad_cells(side * H, T(0));
  Scratch<T, kColumns> at(side * H);
  Segment segments[kSideBySide];
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first_row = group * side, last_row = std::min(first_row + side, layer.batch);
    int64_t longest = 0;
    for (int64_t row = first_row; row < last_row; ++row) {
      const int64_t slot = row - first_row;
      std::copy_n(run.h_n + row * H, H, &states[slot * packing.state]);
      std::copy_n(run.grad_h_n + row * H, H, &grad_states[slot * packing.state]);
      if (Lstm) std::copy_n(run.grad_c_n + row * H, H, &grad_cells[slot * H]);
      longest = std::max(longest, valid_steps(layer, row));
    }
    // Every row goes back from its own last step.
    for (int64_t step = 0; step < longest; ++step) {
      int64_t events;
      const int64_t running = segments_of(layer, first_row, last_row, step, false, segments, &events);
      for (const Segment* s = segments; s < segments + running; ++s) {
        T* state = &states[s->slot * packing.state];
        T* grad_state = &grad_states[s->slot * packing.state];
        if (run.grad_output) {
          const T* grad = run.grad_output + (s->row * layer.steps + s->t) * H;
          for (int64_t u = 0; u < H; ++u) grad_state[u] += grad[u];
        }
        const T* tape = run.tape + (tape_column(layer, s->row) + s->first) * fields;
        for (int64_t e = 0; e < s->count; ++e, tape += fields) {
          const int64_t u = layer.events.units[s->first + e], to = s->start + e;
          at[kA][to] = tape[0];
          at[kB][to] = tape[1];
          at[kC][to] = tape[2];
          at[kD][to] = tape[3];
          at[kOldH][to] = tape[4];
          if (Lstm) at[kOldC][to] = tape[5];
          const Gate<T> g =
              gate_at(layer.events.phases[s->first + e], layer.ratio_on[u], layer.leak, layer.oscillation);
          at[kOpen][to] = g.k;
          at[kSlope][to] = g.slope;
          at[kInRatio][to] = g.in_ratio;
          at[kGradH][to] = grad_state[u];
          if (Lstm) at[kGradC][to] = grad_cells[s->slot * H + u];
          if (Lstm && layer.peephole) {
            at[kPeepI][to] = layer.peephole[u];
            at[kPeepF][to] = layer.peephole[H + u];
            at[kPeepO][to] = layer.peephole[2 * H + u];
          }
          // The state before this step, which the products below need, is the one on the tape.
          state[u] = tape[4];
        }
      }
      for (int64_t e = 0; e < events; e += lanes) {
        using V = Vec<T>;
        const V k = load(at[kOpen] + e), old_h = load(at[kOldH] + e), dh = load(at[kGradH] + e);
        if (Lstm) {
          const V i = load(at[kA] + e), f = load(at[kB] + e), g = load(at[kC] + e), o = load(at[kD] + e);
          const V old_c = load(at[kOldC] + e), dc = load(at[kGradC] + e);
          const V c = f * old_c + i * g, tanh_c = vtanh(c);
          const V dh_new = k * dh;
          const V do_pre = dh_new * tanh_c * o * (1 - o);
          const V dc_new = k * dc + dh_new * o * (1 - tanh_c * tanh_c) + do_pre * load(at[kPeepO] + e);
          const V di_pre = dc_new * g * i * (1 - i), df_pre = dc_new * old_c * f * (1 - f);
          store(at[kGradOpen] + e, dh * (o * tanh_c - old_h) + dc * (c - old_c));
          store(at[kGradA] + e, di_pre);
          store(at[kGradB] + e, df_pre);
          store(at[kGradCandidate] + e, dc_new * i * (1 - g * g));
          store(at[kGradD] + e, do_pre);
          store(at[kNewC] + e, c);
          store(at[kGradC] + e,
                (1 - k) * dc + dc_new * f + di_pre * load(at[kPeepI] + e) + df_pre * load(at[kPeepF] + e));
          store(at[kGradH] + e, (1 - k) * dh);
        } else {
          const V r = load(at[kA] + e), z = load(at[kB] + e), n = load(at[kC] + e), from_state = load(at[kD] + e);
          const V dh_new = k * dh;
          const V dn_pre = dh_new * (1 - z) * (1 - n * n);
          store(at[kGradOpen] + e, dh * (n + z * (old_h - n) - old_h));
          store(at[kGradA] + e, dn_pre * from_state * r * (1 - r));
          store(at[kGradB] + e, dh_new * (old_h - n) * z * (1 - z));
          store(at[kGradCandidate] + e, dn_pre);
          store(at[kGradD] + e, dn_pre * r);
          store(at[kGradH] + e, (1 - k) * dh + dh_new * z);
        }
      }
      for (const Segment* s = segments; s < segments + running; ++s) {
        if (!s->count) continue;
        const T* state = &states[s->slot * packing.state];
        T* grad_state = &grad_states[s->slot * packing.state];
        const int64_t place = (s->row * layer.steps + s->t) * I;
        const double time = run.times[(layer.events.shared ? 0 : s->row * layer.steps) + s->t];
        const int32_t* units = layer.events.units + s->first;
        std::copy_n(layer.input + place, I, features.data());
        std::fill_n(grad_features.data(), packing.input, T(0));
        for (int64_t e = 0; e < s->count; ++e) {
          grad_state[units[e]] = at[kGradH][s->start + e];
          if (Lstm) grad_cells[s->slot * H + units[e]] = at[kGradC][s->start + e];
        }
        double grad_time = 0.0;
        for (int64_t e = 0; e < s->count; ++e) {
          const int64_t u = units[e], from = s->start + e;
          const T from_input[4] = {at[kGradA][from], at[kGradB][from], at[kGradCandidate][from], at[kGradD][from]};
          const T gru_state[3] = {from_input[0], from_input[1], from_input[3]};
          const T* from_state = Lstm ? from_input : gru_state;
          rank_one<T, G>(packing.state_rows(packed, u), packing.state_rows(partial, u), state, grad_state,
                         packing.state, from_state);
          rank_one<T, G>(packing.input_rows(packed, u), packing.input_rows(partial, u), features.data(),
                         grad_features.data(), packing.input, from_input);
          for (int g = 0; g < G; ++g) {
            biases[u * 2 * G + g] += from_input[g];
            biases[u * 2 * G + G + g] += from_state[g];
          }
          if (Lstm && layer.peephole) {
            peepholes[u * 3] += from_input[0] * at[kOldC][from];
            peepholes[u * 3 + 1] += from_input[1] * at[kOldC][from];
            peepholes[u * 3 + 2] += from_input[3] * at[kNewC][from];
          }
          const double opening = at[kGradOpen][from], period = run.period[u];
          const double in_phase = opening * at[kSlope][from] / period;
          gate[u] -= in_phase * (time - run.shift[u]) / period;
          gate[H + u] -= in_phase;
          gate[2 * H + u] += opening * at[kInRatio][from];
          grad_time += in_phase;
        }
        if (run.grad_input) std::copy_n(grad_features.data(), I, run.grad_input + place);
        if (run.grad_times) run.grad_times[s->row * layer.steps + s->t] = grad_time;
      }
    }
    for (int64_t row = first_row; row < last_row; ++row) {
      const int64_t slot = row - first_row;
      std::copy_n(&grad_states[slot * packing.state], H, run.grad_h0 + row * H);
      if (Lstm) std::copy_n(&grad_cells[slot * H], H, run.grad_c0 + row * H);
    }
  }
}

template <typename T, int G>
void gather(const Layer<T>& layer, const Backward<T>& run, const T* partials, const double* gates, int64_t chunks) {
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs, size = partial_size<T, G>(layer);
  Buffer<T> total(partials, partials + size);
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t j = 0; j < size; ++j) total[j] += partials[chunk * size + j];
  const T* biases = total.data() + H * packing.unit();
  const T* peepholes = biases + H * 2 * G;
  const T* packed = total.data();
  for (int64_t u = 0; u < H; ++u) {
    for (int g = 0; g < G; ++g) {
      const int64_t row = g * H + u;
      std::copy_n(packing.state_rows(packed, u) + g * packing.state, H, run.grad_weight_hh + row * H);
      std::copy_n(packing.input_rows(packed, u) + g * packing.input, I, run.grad_weight_ih + row * I);
      run.grad_bias_ih[row] = biases[u * 2 * G + g];
      if (G == 3) run.grad_bias_hh[row] = biases[u * 2 * G + G + g];
    }
    if (run.grad_peephole)
      for (int j = 0; j < 3; ++j) run.grad_peephole[j * H + u] = peepholes[u * 3 + j];
  }
  std::fill_n(run.grad_gate, 3 * H, 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t j = 0; j < 3 * H; ++j) run.grad_gate[j] += gates[chunk * 3 * H + j];
}

}  // namespace

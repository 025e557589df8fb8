// The recurrence a panel of sequences at a time: vectors run across sequences, which suits shared times,
// where the open units are the same for all, and dense training with a leak. A unit's weights are read
// once for the whole panel.
#include <algorithm>

#include "kernels.h"
#include "rows.inl"
#include "simd.h"

namespace {

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

// k, slope and in_ratio of an event for every row of a panel. With shared times all are equal.
template <typename T, int NV>
struct PanelGate {
  static constexpr int64_t P = kPanelRows<T, NV>;
  alignas(64) T k[P], slope[P], in_ratio[P];

  void fill(const Layer<T>& layer, const Panel<T, NV>& panel, int64_t t, int64_t event, int64_t unit) {
    const T ratio = layer.ratio_on[unit];
    const bool alike = layer.events.shared;
    Gate<T> gate{};
    if (alike) {
      gate = gate_at(layer.events.phases[event], ratio, layer.leak, layer.oscillation);
      if (!layer.lengths && panel.count == P) {
        std::fill_n(k, P, gate.k);
        std::fill_n(slope, P, gate.slope);
        std::fill_n(in_ratio, P, gate.in_ratio);
        return;
      }
    }
    for (int64_t lane = 0; lane < P; ++lane) {
      const int64_t row = panel.row(lane);
      // All units are events here, so the place of this one follows from row, step and unit.
      if (!alike)
        gate = gate_at(layer.events.phases[(row * layer.steps + t) * layer.units + unit], ratio, layer.leak,
                       layer.oscillation);
      const bool valid = lane < panel.count && (!layer.lengths || t < layer.lengths[row]);
      k[lane] = valid ? gate.k : T(0);
      slope[lane] = valid ? gate.slope : T(0);
      in_ratio[lane] = valid ? gate.in_ratio : T(0);
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

// sums[g][v] += sum_k rows[g][k] columns[k][v], columns being (width, P).
template <typename T, int G, int NV>
inline void multiply(const T* rows, int64_t stride, const T* columns, int64_t width, Vec<T> sums[G][NV]) {
  constexpr int lanes = Simd<T>::kLanes;
  for (int64_t k = 0; k < width; ++k) {
    Vec<T> x[NV];
    for (int v = 0; v < NV; ++v) x[v] = load(columns + k * kPanelRows<T, NV> + v * lanes);
    for (int g = 0; g < G; ++g) {
      const Vec<T> w = splat(rows[g * stride + k]);
      for (int v = 0; v < NV; ++v) sums[g][v] += w * x[v];
    }
  }
}

// Copies x of a step into (I, P).
template <typename T, int NV>
inline void transpose_input(const Layer<T>& layer, const Panel<T, NV>& panel, int64_t t, T* columns) {
  for (int64_t lane = 0; lane < kPanelRows<T, NV>; ++lane) {
    const int64_t row = panel.row(lane);
    const T* x = layer.input + (row * layer.steps + t) * layer.inputs;
    // Padding may hold a NaN, which a k of 0 does not keep out.
    const bool valid = !layer.lengths || t < layer.lengths[row];
    for (int64_t i = 0; i < layer.inputs; ++i) columns[i * kPanelRows<T, NV> + lane] = valid ? x[i] : T(0);
  }
}

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

template <typename T, bool Lstm, int NV>
void forward_panels(const Layer<T>& layer, const Forward<T>& run, const T* packed, int64_t begin, int64_t end) {
  using V = Vec<T>;
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  constexpr int64_t P = kPanelRows<T, NV>;
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs;
  Buffer<T> state(H * P), cell(H * P), features(I * P), fresh(2 * H * P);
  PanelGate<T, NV> gate;
  for (int64_t index = begin; index < end; ++index) {
    const Panel<T, NV> panel(layer, index);
    transpose_in(run.h0, panel, H, state.data());
    if (Lstm) transpose_in(run.c0, panel, H, cell.data());
    const int64_t steps = longest(layer, panel);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t t = layer.reverse ? steps - 1 - step : step;
      int64_t first;
      const int64_t count = events_at(layer, t, &first);
      if (count) transpose_input(layer, panel, t, features.data());
      for (int64_t e = 0; e < count; ++e) {
        const int64_t u = unit_of(layer, first + e);
        V from_state[G][NV], from_input[G][NV];
        for (int g = 0; g < G; ++g) {
          const T b = layer.bias_ih ? layer.bias_ih[g * H + u] : T(0);
          const T a = !Lstm && layer.bias_hh ? layer.bias_hh[g * H + u] : T(0);
          for (int v = 0; v < NV; ++v) from_input[g][v] = splat(b), from_state[g][v] = splat(a);
        }
        multiply<T, G, NV>(packing.input_rows(packed, u), packing.input, features.data(), I, from_input);
        multiply<T, G, NV>(packing.state_rows(packed, u), packing.state, state.data(), H, from_state);
        gate.fill(layer, panel, t, first + e, u);
        const T peep_i = Lstm && layer.peephole ? layer.peephole[u] : T(0);
        const T peep_f = Lstm && layer.peephole ? layer.peephole[H + u] : T(0);
        const T peep_o = Lstm && layer.peephole ? layer.peephole[2 * H + u] : T(0);
        T* tape = run.tape ? run.tape + (index * events_in_row(layer) + place_in_row(layer, t, first + e)) * fields * P
                           : nullptr;
        for (int v = 0; v < NV; ++v) {
          const int64_t at = u * P + v * lanes, to = e * P + v * lanes;
          const V k = load(gate.k + v * lanes), old_h = load(&state[at]);
          V kept[6];
          if (Lstm) {
            const V old_c = load(&cell[at]);
            const V i = vsigmoid(from_state[0][v] + from_input[0][v] + peep_i * old_c);
            const V f = vsigmoid(from_state[1][v] + from_input[1][v] + peep_f * old_c);
            const V g = vtanh(from_state[2][v] + from_input[2][v]);
            const V c = f * old_c + i * g;
            const V o = vsigmoid(from_state[G - 1][v] + from_input[G - 1][v] + peep_o * c);
            store(&fresh[to], old_h + k * (o * vtanh(c) - old_h));
            store(&fresh[H * P + to], old_c + k * (c - old_c));
            kept[0] = i, kept[1] = f, kept[2] = g, kept[3] = o, kept[4] = old_h, kept[5] = old_c;
          } else {
            const V r = vsigmoid(from_state[0][v] + from_input[0][v]);
            const V z = vsigmoid(from_state[1][v] + from_input[1][v]);
            const V n = vtanh(from_input[2][v] + r * from_state[2][v]);
            store(&fresh[to], old_h + k * (n + z * (old_h - n) - old_h));
            kept[0] = r, kept[1] = z, kept[2] = n, kept[3] = from_state[2][v], kept[4] = old_h;
          }
          if (tape)
            for (int field = 0; field < fields; ++field) store(tape + field * P + v * lanes, kept[field]);
        }
      }
      for (int64_t e = 0; e < count; ++e) {
        const int64_t u = unit_of(layer, first + e);
        std::copy_n(&fresh[e * P], P, &state[u * P]);
        if (Lstm) std::copy_n(&fresh[(H + e) * P], P, &cell[u * P]);
      }
      if (run.output) {
        for (int64_t lane = 0; lane < panel.count; ++lane) {
          const int64_t row = panel.first + lane;
          T* out = run.output + (row * layer.steps + t) * H;
          if (layer.lengths && t >= layer.lengths[row])
            std::fill_n(out, H, T(0));
          else
            for (int64_t u = 0; u < H; ++u) out[u] = state[u * P + lane];
        }
      }
    }
    if (run.output)
      for (int64_t lane = 0; lane < panel.count; ++lane)
        std::fill_n(run.output + ((panel.first + lane) * layer.steps + steps) * H, (layer.steps - steps) * H, T(0));
    transpose_out(state.data(), panel, H, run.h_n);
    if (Lstm) transpose_out(cell.data(), panel, H, run.c_n);
  }
}

// drows[g][j] += sum_rows d[g][row] x[row][j], x being (P, width).
template <typename T, int G, int NV>
inline void gather_rows(T* drows, const T* d, const T* x, int64_t width) {
  constexpr int lanes = Simd<T>::kLanes;
  constexpr int64_t P = kPanelRows<T, NV>;
  for (int64_t j = 0; j < width; j += lanes) {
    Vec<T> even[G], odd[G] = {};
    for (int g = 0; g < G; ++g) even[g] = load(drows + g * width + j);
    for (int64_t row = 0; row < P; row += 2) {
      const Vec<T> a = load(x + row * width + j), b = load(x + (row + 1) * width + j);
      for (int g = 0; g < G; ++g) {
        even[g] += d[g * P + row] * a;
        odd[g] += d[g * P + row + 1] * b;
      }
    }
    for (int g = 0; g < G; ++g) store(drows + g * width + j, even[g] + odd[g]);
  }
}

// dcolumns[k][v] += sum_g rows[g][k] d[g][v], dcolumns being (width, P).
template <typename T, int G, int NV>
inline void spread_back(const T* rows, int64_t stride, const T* d, T* dcolumns, int64_t width) {
  constexpr int lanes = Simd<T>::kLanes;
  constexpr int64_t P = kPanelRows<T, NV>;
  Vec<T> grad[G][NV];
  for (int g = 0; g < G; ++g)
    for (int v = 0; v < NV; ++v) grad[g][v] = load(d + g * P + v * lanes);
  for (int64_t k = 0; k < width; ++k) {
    for (int v = 0; v < NV; ++v) {
      Vec<T> total = load(dcolumns + k * P + v * lanes);
      for (int g = 0; g < G; ++g) total += rows[g * stride + k] * grad[g][v];
      store(dcolumns + k * P + v * lanes, total);
    }
  }
}

template <typename T, int NV>
inline T total(const T* values) {
  Vec<T> all = load(values);
  for (int v = 1; v < NV; ++v) all += load(values + v * Simd<T>::kLanes);
  return sum(all);
}

template <typename T, bool Lstm, int NV>
void backward_panels(const Layer<T>& layer, const Backward<T>& run, const T* packed, int64_t begin, int64_t end,
                     T* partial, double* gate_sums) {
  using V = Vec<T>;
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  constexpr int64_t P = kPanelRows<T, NV>;
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs;
  T* biases = partial + H * packing.unit();
  T* peepholes = biases + H * 2 * G;
  Buffer<T> grad_state(H * P), grad_cell(H * P), grad_features(I * P);
  // Row by row, as the gradients of the weights need them.
  Buffer<T> state(P * packing.state, T(0)), features(P * packing.input, T(0));
  // For each event of a step: gradients of the pre-activations on the input's and the state's side.
  Buffer<T> in_input(H * G * P), in_state(H * G * P), in_old(2 * H * P);
  PanelGate<T, NV> gate;
  alignas(64) T opening[P], scratch[3 * P];
  for (int64_t index = begin; index < end; ++index) {
    const Panel<T, NV> panel(layer, index);
    for (int64_t lane = 0; lane < P; ++lane)
      std::copy_n(run.h_n + panel.row(lane) * H, H, &state[lane * packing.state]);
    transpose_in(run.grad_h_n, panel, H, grad_state.data());
    if (Lstm) transpose_in(run.grad_c_n, panel, H, grad_cell.data());
    // Lanes beyond the batch must not add to what rows share.
    for (int64_t lane = panel.count; lane < P; ++lane)
      for (int64_t u = 0; u < H; ++u) grad_state[u * P + lane] = grad_cell[u * P + lane] = T(0);
    const int64_t steps = longest(layer, panel);
    for (int64_t step = steps - 1; step >= 0; --step) {
      const int64_t t = layer.reverse ? steps - 1 - step : step;
      if (run.grad_output) {
        for (int64_t lane = 0; lane < panel.count; ++lane) {
          const int64_t row = panel.first + lane;
          if (layer.lengths && t >= layer.lengths[row]) continue;
          const T* grad = run.grad_output + (row * layer.steps + t) * H;
          for (int64_t u = 0; u < H; ++u) grad_state[u * P + lane] += grad[u];
        }
      }
      int64_t first;
      const int64_t count = events_at(layer, t, &first);
      if (!count) continue;
      for (int64_t lane = 0; lane < P; ++lane) {
        const int64_t row = panel.row(lane);
        if (!layer.lengths || t < layer.lengths[row])
          std::copy_n(layer.input + (row * layer.steps + t) * I, I, &features[lane * packing.input]);
        else
          std::fill_n(&features[lane * packing.input], I, T(0));
      }
      for (int64_t e = 0; e < count; ++e) {
        const int64_t u = unit_of(layer, first + e);
        gate.fill(layer, panel, t, first + e, u);
        const T* tape =
            run.tape + (index * events_in_row(layer) + place_in_row(layer, t, first + e)) * fields * P;
        const T peep_i = Lstm && layer.peephole ? layer.peephole[u] : T(0);
        const T peep_f = Lstm && layer.peephole ? layer.peephole[H + u] : T(0);
        const T peep_o = Lstm && layer.peephole ? layer.peephole[2 * H + u] : T(0);
        T* to_input = &in_input[e * G * P];
        T* to_state = &in_state[e * G * P];
        for (int v = 0; v < NV; ++v) {
          const int64_t at = u * P + v * lanes, to = e * P + v * lanes, lane = v * lanes;
          const V k = load(gate.k + lane), dh = load(&grad_state[at]), old_h = load(tape + 4 * P + lane);
          for (int j = 0; j < lanes; ++j) state[(lane + j) * packing.state + u] = old_h[j];
          const V dh_new = k * dh;
          if (Lstm) {
            const V i = load(tape + lane), f = load(tape + P + lane), g = load(tape + 2 * P + lane);
            const V o = load(tape + 3 * P + lane), old_c = load(tape + 5 * P + lane), dc = load(&grad_cell[at]);
            const V c = f * old_c + i * g, tanh_c = vtanh(c);
            const V do_pre = dh_new * tanh_c * o * (1 - o);
            const V dc_new = k * dc + dh_new * o * (1 - tanh_c * tanh_c) + do_pre * peep_o;
            const V di_pre = dc_new * g * i * (1 - i), df_pre = dc_new * old_c * f * (1 - f);
            store(opening + lane, dh * (o * tanh_c - old_h) + dc * (c - old_c));
            store(to_input + lane, di_pre);
            store(to_input + P + lane, df_pre);
            store(to_input + 2 * P + lane, dc_new * i * (1 - g * g));
            store(to_input + (G - 1) * P + lane, do_pre);
            store(&in_old[to], (1 - k) * dh);
            store(&in_old[H * P + to], (1 - k) * dc + dc_new * f + di_pre * peep_i + df_pre * peep_f);
            store(scratch + lane, di_pre * old_c);
            store(scratch + P + lane, df_pre * old_c);
            store(scratch + 2 * P + lane, do_pre * c);
          } else {
            const V r = load(tape + lane), z = load(tape + P + lane), n = load(tape + 2 * P + lane);
            const V dn_pre = dh_new * (1 - z) * (1 - n * n);
            const V dr_pre = dn_pre * load(tape + 3 * P + lane) * r * (1 - r);
            const V dz_pre = dh_new * (old_h - n) * z * (1 - z);
            store(opening + lane, dh * (n + z * (old_h - n) - old_h));
            store(to_input + lane, dr_pre);
            store(to_input + P + lane, dz_pre);
            store(to_input + 2 * P + lane, dn_pre);
            store(to_state + lane, dr_pre);
            store(to_state + P + lane, dz_pre);
            store(to_state + 2 * P + lane, dn_pre * r);
            store(&in_old[to], (1 - k) * dh + dh_new * z);
          }
        }
        if (Lstm) std::copy_n(to_input, G * P, to_state);
        for (int g = 0; g < G; ++g) {
          biases[u * 2 * G + g] += total<T, NV>(to_input + g * P);
          biases[u * 2 * G + G + g] += total<T, NV>(to_state + g * P);
        }
        if (Lstm && layer.peephole)
          for (int j = 0; j < 3; ++j) peepholes[u * 3 + j] += total<T, NV>(scratch + j * P);
        for (int64_t lane = 0; lane < P; lane += lanes) {
          store(scratch + lane, load(opening + lane) * load(gate.slope + lane));
          store(scratch + P + lane, load(opening + lane) * load(gate.in_ratio + lane));
        }
        gate_sums[2 * H + u] += total<T, NV>(scratch + P);
        const double period = run.period[u];
        if (layer.events.shared) {
          const double in_phase = static_cast<double>(total<T, NV>(scratch)) / period;
          gate_sums[u] -= in_phase * (run.times[t] - run.shift[u]) / period;
          gate_sums[H + u] -= in_phase;
        }
        for (int64_t lane = 0; lane < panel.count && (run.grad_times || !layer.events.shared); ++lane) {
          const int64_t row = panel.first + lane;
          const double in_phase = static_cast<double>(scratch[lane]) / period;
          if (!layer.events.shared) {
            gate_sums[u] -= in_phase * (run.times[row * layer.steps + t] - run.shift[u]) / period;
            gate_sums[H + u] -= in_phase;
          }
          if (run.grad_times) run.grad_times[row * layer.steps + t] += in_phase;
        }
      }
      for (int64_t e = 0; e < count; ++e) {
        const int64_t u = unit_of(layer, first + e);
        std::copy_n(&in_old[e * P], P, &grad_state[u * P]);
        if (Lstm) std::copy_n(&in_old[(H + e) * P], P, &grad_cell[u * P]);
      }
      if (run.grad_input) std::fill(grad_features.begin(), grad_features.end(), T(0));
      for (int64_t e = 0; e < count; ++e) {
        const int64_t u = unit_of(layer, first + e);
        const T* to_input = &in_input[e * G * P];
        const T* to_state = &in_state[e * G * P];
        gather_rows<T, G, NV>(packing.state_rows(partial, u), to_state, state.data(), packing.state);
        gather_rows<T, G, NV>(packing.input_rows(partial, u), to_input, features.data(), packing.input);
        spread_back<T, G, NV>(packing.state_rows(packed, u), packing.state, to_state, grad_state.data(), H);
        if (run.grad_input)
          spread_back<T, G, NV>(packing.input_rows(packed, u), packing.input, to_input, grad_features.data(), I);
      }
      if (run.grad_input)
        for (int64_t lane = 0; lane < panel.count; ++lane)
          for (int64_t i = 0; i < I; ++i)
            run.grad_input[((panel.first + lane) * layer.steps + t) * I + i] = grad_features[i * P + lane];
    }
    transpose_out(grad_state.data(), panel, H, run.grad_h0);
    if (Lstm) transpose_out(grad_cell.data(), panel, H, run.grad_c0);
  }
}

// Vectors of a panel: enough rows in a panel to share a read of the weights, and two panels or more where
// the batch allows, for two threads. A function of the batch alone, as every bit of the result is.
template <typename T>
inline int panel_vectors(int64_t batch) {
  const int64_t vectors = batch / (2 * Simd<T>::kLanes);
  return vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1;
}

// Calls f with the number of vectors as a constant.
template <typename T, typename F>
inline auto with_panel(const Layer<T>& layer, const F& f) {
  switch (panel_vectors<T>(layer.batch)) {
    case 4: return f(std::integral_constant<int, 4>());
    case 2: return f(std::integral_constant<int, 2>());
    default: return f(std::integral_constant<int, 1>());
  }
}

template <typename T>
inline int64_t tape_entries(const Layer<T>& layer) {
  if (!layer.panels) return layer.events.shared ? layer.batch * layer.events.count : layer.events.count;
  const int64_t rows = panel_vectors<T>(layer.batch) * Simd<T>::kLanes;
  return (layer.batch + rows - 1) / rows * rows * events_in_row(layer);
}

template <typename T>
KernelTable<T> table() {
  using L = Layer<T>;
  return {
      [](const L& layer) -> int64_t {
        return layer.panels ? panel_vectors<T>(layer.batch) * Simd<T>::kLanes : rows_side_by_side(layer.batch);
      },
      [](const L& layer) -> int64_t { return tape_entries(layer); },
      [](const L& layer, bool lstm) -> int64_t {
        return layer.units * (lstm ? Packing<T, 4>(layer).unit() : Packing<T, 3>(layer).unit());
      },
      [](const L& layer, bool lstm, T* packed) { lstm ? pack<T, 4>(layer, packed) : pack<T, 3>(layer, packed); },
      [](const L& layer, bool lstm, const Forward<T>& run, const T* packed, int64_t begin, int64_t end) {
        if (layer.panels)
          with_panel(layer, [&](auto n) {
            lstm ? forward_panels<T, true, n()>(layer, run, packed, begin, end)
                 : forward_panels<T, false, n()>(layer, run, packed, begin, end);
          });
        else
          lstm ? forward_rows<T, true>(layer, run, packed, begin, end)
               : forward_rows<T, false>(layer, run, packed, begin, end);
      },
      [](const L& layer, bool lstm) -> int64_t {
        return lstm ? partial_size<T, 4>(layer) : partial_size<T, 3>(layer);
      },
      [](const L& layer, bool lstm, const Backward<T>& run, const T* packed, int64_t begin, int64_t end, T* partial,
         double* gate) {
        if (layer.panels)
          with_panel(layer, [&](auto n) {
            lstm ? backward_panels<T, true, n()>(layer, run, packed, begin, end, partial, gate)
                 : backward_panels<T, false, n()>(layer, run, packed, begin, end, partial, gate);
          });
        else
          lstm ? backward_rows<T, true>(layer, run, packed, begin, end, partial, gate)
               : backward_rows<T, false>(layer, run, packed, begin, end, partial, gate);
      },
      [](const L& layer, bool lstm, const Backward<T>& run, const T* partials, const double* gates, int64_t chunks) {
        lstm ? gather<T, 4>(layer, run, partials, gates, chunks) : gather<T, 3>(layer, run, partials, gates, chunks);
      },
  };
}

}  // namespace

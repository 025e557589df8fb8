// The recurrence a panel of sequences at a time: vectors run across sequences, which suits shared times,
// where the open units are the same for all, and dense training with a leak. A unit's weights are read
// once for the whole panel.
#include <algorithm>

#include "cell.inl"
#include "kernels.h"
#include "packing.inl"
#include "panel.inl"
#include "panel_products.inl"
#include "quads.h"
#include "rows.inl"
#include "schedule.inl"
#include "simd.h"
#include "single.inl"
#include "state_products.inl"

namespace {

template <typename T, bool Lstm, int NV>
void forward_panels(const Layer<T>& layer, const Forward<T>& run, const T* packed, int64_t begin, int64_t end) {
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  constexpr int64_t P = kPanelRows<T, NV>;
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units;
  Buffer<T> state(H * P), cell(H * P, T(0)), fresh(2 * H * P);
  EventGates<T> gates(layer, 0, layer.events.shared ? layer.events.count : 0, layer.reverse, false);
  StateProducts<T, G, NV> products(layer);
  for (int64_t index = begin; index < end; ++index) {
    const Panel<T, NV> panel(layer, index);
    InputColumns<T, NV> columns(layer, panel);
    transpose_in(run.h0, panel, H, state.data());
    if (Lstm) transpose_in(run.c0, panel, H, cell.data());
    const int64_t steps = longest(layer, panel);
    products.begin(state.data());
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t t = layer.reverse ? steps - 1 - step : step;
      int64_t first;
      const int64_t count = events_at(layer, t, &first);
      const T* features = count ? columns.at(t) : nullptr;
      const auto shared = gates.at(first, layer.events.shared ? count : 0);
      const int64_t anew = products.advance(t, first, count);
      for (int64_t at = 0, n; at < count; at += n) {
        n = std::min<int64_t>((at < anew ? anew : count) - at, kUnitBlock<NV>);
        with_number<kUnitBlock<NV>>(n, [&](auto number) {
          constexpr int B = number();
          Vec<T> sums[B][4][NV];
          PanelGate<T, NV> gate[B];
          const int32_t* e = products.order() + at;
          int64_t units[B];
          for (int b = 0; b < B; ++b) {
            units[b] = unit_of(layer, first + e[b]);
            gate[b].fill(layer, panel, t, units[b], shared, e[b]);
          }
          block_sums<T, G, NV, B>(layer, packing, packed, units, features, products, at < anew, sums);
          // The vectors of all units of the block go side by side.
          const auto every = [](const auto& f) {
            return vectors<T, B * NV>([&](int j) { return f(j / NV, j % NV); });
          };
          using W = Vecs<T, B * NV>;
          const auto of_unit = [&](const Buffer<T>& from) {
            return every([&](int b, int v) { return load(&from[units[b] * P + v * lanes]); });
          };
          const auto sum = [&](int slot) { return every([&](int b, int v) { return sums[b][slot][v]; }); };
          const auto weight = [&](int j) {
            return layer.peephole ? every([&](int b, int) { return peephole_of(layer, units[b], j); }) : W{};
          };
          const State<W> old{of_unit(state), Lstm ? of_unit(cell) : W{}};
          const W k = every([&](int b, int v) { return gate[b].at[v].k; });
          W values[4] = {sum(0), sum(1), sum(2), sum(3)};
          State<W> after;
          if constexpr (Lstm)
            after = lstm_step(values, {weight(0), weight(1), weight(2)}, k, old);
          else
            after = gru_step(values, k, old);
          const auto put = [&](const W& from, T* to, int64_t stride) {
            for_vectors(from, [&](int j, Vec<T> of) { store(to + e[j / NV] * stride + j % NV * lanes, of); });
          };
          put(after.h, fresh.data(), P);
          if (Lstm) put(after.c, &fresh[H * P], P);
          if (!run.tape) return;
          T* tape = run.tape + (index * events_in_row(layer) + place_in_row(layer, t, first)) * fields * P;
          for (int slot = 0; slot < 4; ++slot) put(values[slot], tape + slot * P, fields * P);
          put(old.h, tape + 4 * P, fields * P);
          if (Lstm) put(old.c, tape + 5 * P, fields * P);
        });
      }
      products.replace(first, count, fresh.data(), state.data());
      for (int64_t e = 0; e < count && Lstm; ++e)
        std::copy_n(&fresh[(H + e) * P], P, &cell[unit_of(layer, first + e) * P]);
      if (run.output) {
        for (int64_t lane = 0; lane < panel.count; ++lane) {
          const int64_t row = panel.first + lane;
          T* out = run.output + (row * layer.steps + t) * H;
          if (!inside(layer, row, t))
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

template <typename T, bool Lstm, int NV>
void backward_panels(const Layer<T>& layer, const Backward<T>& run, const T* packed, int64_t begin, int64_t end,
                     T* partial, double* gate_sums) {
  using V = Vec<T>;
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  constexpr int64_t P = kPanelRows<T, NV>;
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs;
  T* peepholes = partial + H * packing.unit();
  Buffer<T> grad_state(H * P), grad_cell(H * P, T(0)), grad_features(I * P);
  // Row by row, as the gradients of the weights need them.
  Buffer<T> state(P * packing.state, T(0)), features(P * packing.input, T(0));
  // For each event of a step: gradients of its four sums and of the state before it.
  Buffer<T> in_sums(H * 4 * P), in_old(2 * H * P);
  EventGates<T> gates(layer, 0, layer.events.shared ? layer.events.count : 0, !layer.reverse, true);
  PanelGate<T, NV> gate;
  alignas(64) T in_phases[P];
  for (int64_t index = begin; index < end; ++index) {
    const Panel<T, NV> panel(layer, index);
    InputColumns<T, NV> columns(layer, panel);
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
          if (!inside(layer, row, t)) continue;
          const T* grad = run.grad_output + (row * layer.steps + t) * H;
          for (int64_t u = 0; u < H; ++u) grad_state[u * P + lane] += grad[u];
        }
      }
      int64_t first;
      const int64_t count = events_at(layer, t, &first);
      if (!count) continue;
      const T* few = I <= kFewInputs ? columns.at(t) : nullptr;
      for (int64_t lane = 0; lane < P && !few; ++lane) {
        const int64_t row = panel.row(lane);
        if (inside(layer, row, t))
          take_features(layer, row * layer.steps + t, false, &features[lane * packing.input]);
        else
          std::fill_n(&features[lane * packing.input], I, T(0));
      }
      const auto shared = gates.at(first, layer.events.shared ? count : 0);
      for (int64_t e = 0; e < count; ++e) {
        const int64_t u = unit_of(layer, first + e);
        gate.fill(layer, panel, t, u, shared, e);
        const T* tape =
            run.tape + (index * events_in_row(layer) + place_in_row(layer, t, first + e)) * fields * P;
        // The step before has about as many events, and the tape is far longer than a cache.
        for (int64_t value = 0; value < fields * P; value += 64 / sizeof(T))
          __builtin_prefetch(tape - count * fields * P + value);
        const V peephole[3] = {peephole_of(layer, u, 0), peephole_of(layer, u, 1), peephole_of(layer, u, 2)};
        T* d = &in_sums[e * 4 * P];
        V in_slots[4] = {}, in_peephole[3] = {}, in_phase_all{}, in_ratio_all{};
        for (int v = 0; v < NV; ++v) {
          const int64_t at = u * P + v * lanes, to = e * P + v * lanes, lane = v * lanes;
          const V k = gate.at[v].k;
          const State<Vec<T>> old{load(tape + 4 * P + lane), Lstm ? load(tape + (fields - 1) * P + lane) : V{}};
          const State<Vec<T>> from{load(&grad_state[at]), load(&grad_cell[at])};
          for (int j = 0; j < lanes; ++j) state[(lane + j) * packing.state + u] = old.h[j];
          V values[4];
          for (int slot = 0; slot < 4; ++slot) values[slot] = load(tape + slot * P + lane);
          Gradients<Vec<T>> found;
          if constexpr (Lstm)
            found = lstm_step_back(values, peephole, k, old, from);
          else
            found = gru_step_back(values, k, old, from);
          for (int slot = 0; slot < 4; ++slot) {
            store(d + slot * P + lane, found.sums[slot]);
            in_slots[slot] += found.sums[slot];
          }
          store(&in_old[to], found.old.h);
          store(&in_old[H * P + to], found.old.c);
          const V in_phase = found.k * gate.at[v].slope;
          store(in_phases + lane, in_phase);
          in_phase_all += in_phase;
          in_ratio_all += found.k * gate.at[v].in_ratio;
          in_peephole[0] += found.sums[0] * old.c;
          in_peephole[1] += found.sums[1] * old.c;
          in_peephole[2] += found.sums[3] * found.cell;
        }
        T* head = packing.head_of(partial, u);
        store_quad(head, load_quad(head) + sums(in_slots));
        if (Lstm && layer.peephole)
          for (int j = 0; j < 3; ++j) peepholes[u * 3 + j] += sum(in_peephole[j]);
        gate_sums[2 * H + u] += sum(in_ratio_all);
        const double period = run.period[u];
        if (layer.events.shared) {
          const double in_phase = static_cast<double>(sum(in_phase_all)) / period;
          gate_sums[u] -= in_phase * (layer.times[t] - run.shift[u]) / period;
          gate_sums[H + u] -= in_phase;
        }
        for (int64_t lane = 0; lane < panel.count && (run.grad_times || !layer.events.shared); ++lane) {
          const int64_t row = panel.first + lane;
          const double in_phase = static_cast<double>(in_phases[lane]) / period;
          if (!layer.events.shared) {
            gate_sums[u] -= in_phase * (layer.times[row * layer.steps + t] - run.shift[u]) / period;
            gate_sums[H + u] -= in_phase;
          }
          if (run.grad_times && inside(layer, row, t)) run.grad_times[row * layer.steps + t] += in_phase;
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
        const T* d = &in_sums[e * 4 * P];
        gather_rows<T, G, NV>(packing.state_rows(partial, u), packing.row(), kStateSlots<G>, d, state.data(),
                              packing.state);
        if (few)
          gather_few<T, G, NV>(packing.input_rows(partial, u), packing.row(), kInputSlots<G>, d, few, I);
        else
          gather_rows<T, G, NV>(packing.input_rows(partial, u), packing.row(), kInputSlots<G>, d, features.data(),
                                packing.input);
      }
      for (int64_t e = 0, n; e < count; e += n) {
        n = std::min<int64_t>(count - e, kUnitBlock<NV>);
        with_number<kUnitBlock<NV>>(n, [&](auto number) {
          const T *of_state[number()], *of_input[number()];
          for (int b = 0; b < number(); ++b) {
            of_state[b] = packing.state_rows(packed, unit_of(layer, first + e + b));
            of_input[b] = of_state[b] + packing.state;
          }
          const T* d = &in_sums[e * 4 * P];
          spread_back<T, G, NV, number()>(of_state, packing.row(), kStateSlots<G>, d, grad_state.data(), H);
          if (run.grad_input)
            spread_back<T, G, NV, number()>(of_input, packing.row(), kInputSlots<G>, d, grad_features.data(), I);
        });
      }
      if (run.grad_input)
        for (int64_t lane = 0; lane < panel.count; ++lane)
          for (int64_t i = 0; i < I; ++i)
            run.grad_input[((panel.first + lane) * layer.steps + t) * I + i] =
                inside(layer, panel.first + lane, t) ? grad_features[i * P + lane] : T(0);
    }
    transpose_out(grad_state.data(), panel, H, run.grad_h0);
    if (Lstm) transpose_out(grad_cell.data(), panel, H, run.grad_c0);
  }
}

// Vectors of a panel at most. Doubles are for checks, and wider panels of them not worth the compiler's time.
template <typename T>
constexpr int64_t kMostVectors = std::is_same_v<T, float> ? 4 : 1;

// Vectors of a panel: enough rows in a panel to share a read of the weights, and two panels or more where
// the batch allows, for two threads. A function of the batch alone, as every bit of the result is.
template <typename T>
inline int panel_vectors(int64_t batch) {
  const int64_t vectors = std::min(batch / (2 * Simd<T>::kLanes), kMostVectors<T>);
  return vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1;
}

// Calls f with the number of vectors as a constant.
template <typename T, typename F>
inline auto with_panel(const Layer<T>& layer, const F& f) {
  if constexpr (kMostVectors<T> == 4) {
    const int vectors = panel_vectors<T>(layer.batch);
    if (vectors == 4) return f(std::integral_constant<int, 4>());
    if (vectors == 2) return f(std::integral_constant<int, 2>());
  }
  return f(std::integral_constant<int, 1>());
}

template <typename T>
inline int64_t tape_entries(const Layer<T>& layer) {
  if (!layer.panels) return events_before(layer, layer.batch);
  const int64_t rows = panel_vectors<T>(layer.batch) * Simd<T>::kLanes;
  return (layer.batch + rows - 1) / rows * rows * events_in_row(layer);
}

// constexpr, since code that fills a table while the library loads would run on processors that lack its instructions.
template <typename T>
constexpr KernelTable<T> table() {
  using L = Layer<T>;
  return {
      find_events<T>,
      [](const L& layer) -> int64_t {
        return layer.panels ? panel_vectors<T>(layer.batch) * Simd<T>::kLanes : group_rows(layer.batch);
      },
      [](const L& layer) -> int64_t { return tape_entries(layer); },
      [](const L& layer, bool lstm) -> int64_t { return (lstm ? 6 : 5) + (layer.panels || alone(layer) ? 0 : 2); },
      [](const L& layer, bool lstm) -> int64_t {
        return lstm ? packed_size<T, 4>(layer) : packed_size<T, 3>(layer);
      },
      [](const L& layer, bool lstm, T* packed, const uint8_t* wanted, int64_t begin, int64_t end) {
        lstm ? pack<T, 4>(layer, packed, wanted, begin, end) : pack<T, 3>(layer, packed, wanted, begin, end);
      },
      [](const L& layer, bool lstm, const Forward<T>& run, const T* packed, int64_t begin, int64_t end) {
        if (layer.panels)
          with_panel(layer, [&](auto n) {
            lstm ? forward_panels<T, true, n()>(layer, run, packed, begin, end)
                 : forward_panels<T, false, n()>(layer, run, packed, begin, end);
          });
        else if (alone(layer))
          lstm ? forward_single<T, true>(layer, run, packed, begin, end)
               : forward_single<T, false>(layer, run, packed, begin, end);
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
        else if (alone(layer))
          lstm ? backward_single<T, true>(layer, run, packed, begin, end, partial, gate)
               : backward_single<T, false>(layer, run, packed, begin, end, partial, gate);
        else
          lstm ? backward_rows<T, true>(layer, run, packed, begin, end, partial, gate)
               : backward_rows<T, false>(layer, run, packed, begin, end, partial, gate);
      },
      [](const L& layer, bool lstm, const Backward<T>& run, T* partials, const double* gates, int64_t chunks) {
        lstm ? gather<T, 4>(layer, run, partials, gates, chunks) : gather<T, 3>(layer, run, partials, gates, chunks);
      },
  };
}

}  // namespace

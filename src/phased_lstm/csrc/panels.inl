// The recurrence a panel of sequences at a time: vectors run across sequences, which suits shared times,
// where the open units are the same for all, and dense training with a leak. A unit's weights are read
// once for the whole panel.
#include <algorithm>
#include <limits>

#include "cell.inl"
#include "kernels.h"
#include "packing.inl"
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

// The gate of an event for every row of a panel.
template <typename T, int NV>
struct PanelGate {
  Gate<T> at[NV];

  void fill(const Layer<T>& layer, const Panel<T, NV>& panel, int64_t t, int64_t event, int64_t unit) {
    constexpr int lanes = Simd<T>::kLanes;
    constexpr int64_t P = kPanelRows<T, NV>;
    const Vec<T> ratio = splat(layer.ratio_on[unit]);
    if (layer.events.shared) {
      const Gate<T> gate = gate_at(splat(layer.events.phases[event]), ratio, layer.leak, layer.oscillation);
      for (int v = 0; v < NV; ++v) at[v] = gate;
    } else {
      // All units are events here, so the place of this one follows from row, step and unit.
      alignas(64) T phases[P];
      for (int64_t lane = 0; lane < P; ++lane)
        phases[lane] = layer.events.phases[(panel.row(lane) * layer.steps + t) * layer.units + unit];
      for (int v = 0; v < NV; ++v) at[v] = gate_at(load(phases + v * lanes), ratio, layer.leak, layer.oscillation);
    }
    if (!layer.lengths && panel.count == P) return;
    for (int64_t lane = 0; lane < P; ++lane) {
      if (lane < panel.count && (!layer.lengths || t < layer.lengths[panel.row(lane)])) continue;
      Gate<T>& gate = at[lane / lanes];
      gate.k[lane % lanes] = gate.slope[lane % lanes] = gate.in_ratio[lane % lanes] = T(0);
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

// Units whose sums are made side by side, as many as the registers hold: one unit alone waits for its own additions.
template <int NV>
constexpr int kUnitBlock = std::max(1, (kFloatLanes == 16 ? 4 : 2) / NV);

// sums[b][slots[g]][v] += sum_k rows[b][g][k] columns[k][v] for the units b of a block, columns being (width, P).
template <typename T, int G, int NV, int B>
inline void multiply(const T* const (&rows)[B], int64_t stride, const int (&slots)[G], const T* columns, int64_t width,
                     Vec<T> (*sums)[4][NV]) {
  constexpr int lanes = Simd<T>::kLanes;
  Vec<T> total[B][G][NV];
  for (int b = 0; b < B; ++b)
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < NV; ++v) total[b][g][v] = sums[b][slots[g]][v];
  for (int64_t k = 0; k < width; ++k) {
    Vec<T> x[NV];
    for (int v = 0; v < NV; ++v) x[v] = load(columns + k * kPanelRows<T, NV> + v * lanes);
    for (int b = 0; b < B; ++b)
      for (int g = 0; g < G; ++g) {
        const Vec<T> w = splat(rows[b][g * stride + k]);
        for (int v = 0; v < NV; ++v) total[b][g][v] += w * x[v];
      }
  }
  for (int b = 0; b < B; ++b)
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < NV; ++v) sums[b][slots[g]][v] = total[b][g][v];
}

// The sums of events first .. first + B of a step.
template <typename T, int G, int NV, int B>
inline void block_sums(const Layer<T>& layer, const Packing<T, G>& packing, const T* packed, int64_t first,
                       const T* features, const T* state, Vec<T> (*sums)[4][NV]) {
  const T *of_input[B], *of_state[B];
  for (int b = 0; b < B; ++b) {
    const int64_t u = unit_of(layer, first + b);
    const T* head = packing.head_of(packed, u);
    for (int slot = 0; slot < 4; ++slot)
      for (int v = 0; v < NV; ++v) sums[b][slot][v] = splat(head[slot]);
    of_input[b] = packing.input_rows(packed, u);
    of_state[b] = packing.state_rows(packed, u);
  }
  multiply<T, G, NV, B>(of_input, packing.row(), kInputSlots<G>, features, layer.inputs, sums);
  multiply<T, G, NV, B>(of_state, packing.row(), kStateSlots<G>, state, layer.units, sums);
}

// The peephole weights of a unit, i, f, o; zero where there are none.
template <typename T>
struct Peephole {
  Vec<T> of[3] = {};
  Peephole(const Layer<T>& layer, int64_t u) {
    if (!layer.peephole) return;
    for (int j = 0; j < 3; ++j) of[j] = splat(layer.peephole[j * layer.units + u]);
  }
};

// The input as columns (I, P), a step at a time; made a few steps at once, as a row's steps lie together.
template <typename T, int NV>
class InputColumns {
 public:
  static constexpr int64_t P = kPanelRows<T, NV>;
  InputColumns(const Layer<T>& layer, const Panel<T, NV>& panel)
      : layer_(layer),
        panel_(panel),
        steps_(std::max<int64_t>(1, kLanes / layer.inputs)),
        columns_(padded<T>(steps_ * layer.inputs) * P) {}

  const T* at(int64_t t) {
    if (t < from_ || t >= from_ + steps_) take(t / steps_ * steps_);
    return columns_.data() + (t - from_) * layer_.inputs * P;
  }

 private:
  static constexpr int kLanes = Simd<T>::kLanes;

  void take(int64_t from) {
    const int64_t ahead = (from < from_ ? -steps_ : steps_) * layer_.inputs;
    from_ = from;
    const int64_t I = layer_.inputs, begin = from * I, end = std::min(from + steps_, layer_.steps) * I;
    for (int v = 0; v < NV; ++v) {
      for (int64_t at = begin; at < end; at += kLanes) {
        T* to = columns_.data() + (at - begin) * P + v * kLanes;
        Vec<T> square[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          const T* row = layer_.input + panel_.row(v * kLanes + lane) * layer_.steps * I;
          __builtin_prefetch(row + at + ahead);
          T part[kLanes] = {};
          if (at + kLanes <= layer_.steps * I)
            square[lane] = load(row + at);
          else
            std::copy(row + at, row + end, part), square[lane] = load(part);
        }
        transpose<T>(square);
        for (int j = 0; j < kLanes; ++j) store(to + j * P, square[j]);
      }
    }
    if (!layer_.lengths) return;
    // Padding may hold a NaN, which a k of 0 does not keep out.
    for (int64_t lane = 0; lane < P; ++lane)
      for (int64_t at = std::max(begin, layer_.lengths[panel_.row(lane)] * I); at < end; ++at)
        columns_[(at - begin) * P + lane] = T(0);
  }

  const Layer<T>& layer_;
  const Panel<T, NV>& panel_;
  int64_t steps_, from_ = std::numeric_limits<int64_t>::max();  // the steps at hand
  Buffer<T> columns_;
};

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
  Buffer<T> state(H * P), cell(H * P, T(0)), fresh(2 * H * P);
  PanelGate<T, NV> gate;
  for (int64_t index = begin; index < end; ++index) {
    const Panel<T, NV> panel(layer, index);
    InputColumns<T, NV> columns(layer, panel);
    transpose_in(run.h0, panel, H, state.data());
    if (Lstm) transpose_in(run.c0, panel, H, cell.data());
    const int64_t steps = longest(layer, panel);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t t = layer.reverse ? steps - 1 - step : step;
      int64_t first;
      const int64_t count = events_at(layer, t, &first);
      const T* features = count ? columns.at(t) : nullptr;
      for (int64_t e = 0, n; e < count; e += n) {
        n = std::min<int64_t>(count - e, kUnitBlock<NV>);
        V sums[kUnitBlock<NV>][4][NV];
        with_number<kUnitBlock<NV>>(n, [&](auto number) {
          block_sums<T, G, NV, number()>(layer, packing, packed, first + e, features, state.data(), sums);
        });
        for (int64_t b = 0; b < n; ++b) {
          const int64_t event = first + e + b, u = unit_of(layer, event);
          gate.fill(layer, panel, t, event, u);
          const Peephole<T> peephole(layer, u);
          T* tape = run.tape ? run.tape + (index * events_in_row(layer) + place_in_row(layer, t, event)) * fields * P
                             : nullptr;
          for (int v = 0; v < NV; ++v) {
            const int64_t at = u * P + v * lanes, to = (e + b) * P + v * lanes;
            const State<T> old{load(&state[at]), load(&cell[at])};
            V values[4] = {sums[b][0][v], sums[b][1][v], sums[b][2][v], sums[b][3][v]};
            State<T> after;
            if constexpr (Lstm)
              after = lstm_step(values, peephole.of, gate.at[v].k, old);
            else
              after = gru_step(values, gate.at[v].k, old);
            store(&fresh[to], after.h);
            store(&fresh[H * P + to], after.c);
            if (!tape) continue;
            for (int slot = 0; slot < 4; ++slot) store(tape + slot * P + v * lanes, values[slot]);
            store(tape + 4 * P + v * lanes, old.h);
            if (Lstm) store(tape + 5 * P + v * lanes, old.c);
          }
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

// drows[g][j] += sum_rows d[slots[g]][row] x[row][j], x being (P, width), for NC vectors of columns from j on.
template <typename T, int G, int NV, int NC>
inline void gather_columns(T* drows, int64_t stride, const int (&slots)[G], const T* d, const T* x, int64_t width,
                           int64_t j) {
  constexpr int lanes = Simd<T>::kLanes;
  constexpr int64_t P = kPanelRows<T, NV>;
  // A step's own sum first: added one by one to a long sum, small terms would lose their last bits.
  Vec<T> even[G][NC], odd[G][NC];
  clear(even);
  clear(odd);
  for (int64_t row = 0; row < P; row += 2) {
    Vec<T> a[NC], b[NC];
    for (int c = 0; c < NC; ++c) {
      a[c] = load(x + row * width + j + c * lanes);
      b[c] = load(x + (row + 1) * width + j + c * lanes);
    }
    for (int g = 0; g < G; ++g) {
      const Vec<T> da = splat(d[slots[g] * P + row]), db = splat(d[slots[g] * P + row + 1]);
      for (int c = 0; c < NC; ++c) {
        even[g][c] += da * a[c];
        odd[g][c] += db * b[c];
      }
    }
  }
  for (int g = 0; g < G; ++g)
    for (int c = 0; c < NC; ++c) {
      T* to = drows + g * stride + j + c * lanes;
      store(to, load(to) + (even[g][c] + odd[g][c]));
    }
}

// The same for all columns.
template <typename T, int G, int NV>
inline void gather_rows(T* drows, int64_t stride, const int (&slots)[G], const T* d, const T* x, int64_t width) {
  constexpr int lanes = Simd<T>::kLanes, wide = kFloatLanes == 16 ? 2 : 1;
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
inline void spread_back(const T* const (&rows)[B], int64_t stride, const int (&slots)[G], const T* d, T* dcolumns,
                        int64_t width) {
  constexpr int lanes = Simd<T>::kLanes;
  constexpr int64_t P = kPanelRows<T, NV>;
  Vec<T> grad[B][G][NV];
  for (int b = 0; b < B; ++b)
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < NV; ++v) grad[b][g][v] = load(d + (4 * b + slots[g]) * P + v * lanes);
  for (int64_t k = 0; k < width; ++k) {
    Vec<T> total[NV];
    for (int v = 0; v < NV; ++v) total[v] = load(dcolumns + k * P + v * lanes);
    for (int b = 0; b < B; ++b)
      for (int g = 0; g < G; ++g) {
        const Vec<T> w = splat(rows[b][g * stride + k]);
        for (int v = 0; v < NV; ++v) total[v] += w * grad[b][g][v];
      }
    for (int v = 0; v < NV; ++v) store(dcolumns + k * P + v * lanes, total[v]);
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
          if (layer.lengths && t >= layer.lengths[row]) continue;
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
        if (!layer.lengths || t < layer.lengths[row])
          take_features(layer, row * layer.steps + t, false, &features[lane * packing.input]);
        else
          std::fill_n(&features[lane * packing.input], I, T(0));
      }
      for (int64_t e = 0; e < count; ++e) {
        const int64_t u = unit_of(layer, first + e);
        gate.fill(layer, panel, t, first + e, u);
        const T* tape =
            run.tape + (index * events_in_row(layer) + place_in_row(layer, t, first + e)) * fields * P;
        // The step before has about as many events, and the tape is far longer than a cache.
        for (int64_t value = 0; value < fields * P; value += 64 / sizeof(T))
          __builtin_prefetch(tape - count * fields * P + value);
        const Peephole<T> peephole(layer, u);
        T* d = &in_sums[e * 4 * P];
        V in_slots[4] = {}, in_peephole[3] = {}, in_phase_all{}, in_ratio_all{};
        for (int v = 0; v < NV; ++v) {
          const int64_t at = u * P + v * lanes, to = e * P + v * lanes, lane = v * lanes;
          const V k = gate.at[v].k;
          const State<T> old{load(tape + 4 * P + lane), Lstm ? load(tape + (fields - 1) * P + lane) : V{}};
          const State<T> from{load(&grad_state[at]), load(&grad_cell[at])};
          for (int j = 0; j < lanes; ++j) state[(lane + j) * packing.state + u] = old.h[j];
          V values[4];
          for (int slot = 0; slot < 4; ++slot) values[slot] = load(tape + slot * P + lane);
          Gradients<T> found;
          if constexpr (Lstm)
            found = lstm_step_back(values, peephole.of, k, old, from);
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
  if (!layer.panels) return events_before(layer, layer.batch);
  const int64_t rows = panel_vectors<T>(layer.batch) * Simd<T>::kLanes;
  return (layer.batch + rows - 1) / rows * rows * events_in_row(layer);
}

template <typename T>
KernelTable<T> table() {
  using L = Layer<T>;
  return {
      [](const L& layer) -> int64_t {
        return layer.panels ? panel_vectors<T>(layer.batch) * Simd<T>::kLanes : group_rows(layer.batch);
      },
      [](const L& layer) -> int64_t { return tape_entries(layer); },
      [](const L& layer, bool lstm) -> int64_t { return (lstm ? 6 : 5) + (layer.panels ? 0 : 2); },
      [](const L& layer, bool lstm) -> int64_t {
        return lstm ? packed_size<T, 4>(layer) : packed_size<T, 3>(layer);
      },
      [](const L& layer, bool lstm, T* packed, const uint8_t* wanted) {
        lstm ? pack<T, 4>(layer, packed, wanted) : pack<T, 3>(layer, packed, wanted);
      },
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

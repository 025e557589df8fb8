// The recurrence for sequences with times of their own: vectors run along the state, and only events are visited;
// between two events of a unit nothing of it is touched.
#pragma once

#include <algorithm>
#include <vector>

#include "cell.inl"
#include "kernels.h"
#include "packing.inl"
#include "pending.inl"
#include "quads.h"
#include "simd.h"
#include "walk.inl"

namespace {

using phased_lstm::Forward;
using phased_lstm::KernelTable;

// acc[r][slots[g]] += <rows[g], x[r]>, by lanes, from `from` on over `width`. What stands `ahead` of the rows is
// wanted next; `ask`: ask for it.
template <typename T, int G, int NR, bool ask>
inline void multiply_rows(const T* rows, int64_t stride, int64_t from, int64_t width, const int (&slots)[G],
                          const T* const* x, int64_t ahead, Vec<T> (&acc)[NR][4]) {
  for (int64_t k = from; k < from + width; k += Simd<T>::kLanes) {
    Vec<T> a[NR];
    for (int r = 0; r < NR; ++r) a[r] = load(x[r] + k);
    for (int g = 0; g < G; ++g) {
      const T* row = rows + g * stride + k;
      if constexpr (ask) __builtin_prefetch(row + ahead);
      const Vec<T> w = load(row);
      for (int r = 0; r < NR; ++r) acc[r][slots[g]] += w * a[r];
    }
  }
}

// The four sums of a unit for NR sequences, into rows of four. `x`: their states with the features behind; `few`: their
// features when there are few.
template <typename T, int G, int NR, bool ask>
inline void unit_sums(const Packing<T, G>& packing, const T* packed, int64_t u, int64_t next, const T* const* x,
                      const T* const* few, T* out) {
  const int64_t ahead = (next - u) * packing.unit();
  Vec<T> acc[NR][4];
  clear(acc);
  for_parts(packing, true, [&](const int(&slots)[G], int64_t from, int64_t width) {
    multiply_rows<T, G, NR, ask>(packing.state_rows(packed, u), packing.row(), from, width, slots, x, ahead, acc);
  });
  const T* head = packing.head_of(packed, u);
  Quads<T, NR> all(acc);
  all.add(load_quad(head));
  for (int64_t i = 0; i < packing.few; ++i) all.add_product(load_quad(head + 4 * (1 + i)), few, i);
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
      w[g] = load(rows + g * stride + k);
    }
    for (int r = 0; r < NR; ++r) {
      // An event's own sum first: additions to the state's gradient wait for each other.
      Vec<T> total = scale[r][0] * w[0];
      for (int g = 1; g < G; ++g) total += scale[r][g] * w[g];
      store(dx[r] + k, load(dx[r] + k) + total);
    }
  }
}

// What an event adds to the gradients of its few features, of the peepholes (i, f, o), and of period, shift and ratio,
// `stride` apart. `d`: gradients of its sums; `in_phase`: of the time less the shift; `turns`: that in periods.
template <typename T, int G>
inline void add_few(const Packing<T, G>& packing, const T* packed, int64_t u, const T* d, T* to) {
  for (int64_t i = 0; i < packing.few; ++i) {
    const Quad<T> share = load_quad(d) * load_quad(packing.head_of(packed, u) + 4 * (1 + i));
    to[i] += (share[0] + share[1]) + (share[2] + share[3]);
  }
}

template <typename T>
inline void add_peepholes(const T* d, T old_c, T cell, T* to) {
  to[0] += d[0] * old_c;
  to[1] += d[1] * old_c;
  to[2] += d[3] * cell;
}

inline void add_gate(double in_phase, double in_ratio, double turns, int64_t stride, double* to) {
  to[0] -= in_phase * turns;
  to[stride] -= in_phase;
  to[2 * stride] += in_ratio;
}

// What a group of sequences carries from step to step. A sequence's h has its features behind it; its c has room for
// them, too, so that a unit is at the same place of both.
template <typename T, int G>
struct GroupState {
  int64_t width, units;
  Buffer<T> h, c;
  GroupState(const Packing<T, G>& packing, int64_t rows, int64_t units)
      : width(packing.row()), units(units), h(rows * width, T(0)), c(rows * width, T(0)) {}
  T* h_of(int64_t slot) { return h.data() + slot * width; }
  T* c_of(int64_t slot) { return c.data() + slot * width; }

  // `from_c`, `to_c`: null for a GRU.
  void take(int64_t slot, const T* from_h, const T* from_c) {
    std::copy_n(from_h, units, h_of(slot));
    if (from_c) std::copy_n(from_c, units, c_of(slot));
  }
  void give(int64_t slot, T* to_h, T* to_c) {
    std::copy_n(h_of(slot), units, to_h);
    if (to_c) std::copy_n(c_of(slot), units, to_c);
  }
};

// Columns of scratch, an entry for each event of a tick. Whole vectors fit behind the last one, and columns are not
// whole pages apart: a load from one would have to wait for a store just made to another.
template <typename T, int Columns>
struct Scratch {
  int64_t width;
  Buffer<T> data;
  explicit Scratch(int64_t events) : width(padded<T>(events) + padded<T>(4)), data(Columns * width, T(0)) {}
  T* operator[](int column) { return data.data() + column * width; }
};

template <typename T>
inline T* row_of(T* rows, int64_t row, int64_t width) {
  return rows ? rows + row * width : nullptr;
}

// The events' peepholes of i, f and o, as columns.
template <typename T>
inline void load_peepholes(const Layer<T>& layer, const Walk<T>& walk, T* i, T* f, T* o) {
  if (!layer.peephole) return;
  for (int64_t e = 0; e < walk.count(); ++e) {
    const T* of_unit = layer.peephole + walk.unit(e);
    i[e] = of_unit[0];
    f[e] = of_unit[layer.units];
    o[e] = of_unit[2 * layer.units];
  }
}

// Copies the features of a place in (N, L), and asks for those of the step that comes next.
template <typename T>
inline void take_features(const Layer<T>& layer, int64_t place, bool forwards, T* to) {
  const T* from = layer.input + place * layer.inputs;
  const int64_t ahead = forwards == layer.reverse ? -layer.inputs : layer.inputs;
  for (int64_t i = 0; i < layer.inputs; i += 64 / sizeof(T)) __builtin_prefetch(from + ahead + i);
  std::copy_n(from, layer.inputs, to);
}

// Up to so many bytes of a unit's weights it costs little to read them once more from the second level of cache.
constexpr int64_t kOftenRead = 4096;

template <typename T, bool Lstm>
void forward_rows(const Layer<T>& layer, const Forward<T>& run, const T* packed, int64_t begin, int64_t end) {
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  enum { kPeepI, kPeepF, kPeepO, kNewH, kNewC, kColumns };
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs, size = group_rows(layer.batch);
  const T* features[kLargestGroup];
  const bool by_size = packing.unit() * static_cast<int64_t>(sizeof(T)) <= kOftenRead;
  GroupState<T, G> state(packing, size, H);
  Scratch<T, kColumns> at(size * H);
  Buffer<T> sums(4 * padded<T>(size * H), T(0));
  Walk<T> walk(layer);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * size, rows = std::min(size, layer.batch - first);
    for (int64_t slot = 0; slot < rows; ++slot)
      state.take(slot, run.h0 + (first + slot) * H, row_of(run.c0, first + slot, H));
    walk.begin(first, rows, false);
    T* tape = run.tape ? run.tape + walk.start() * (fields + 2) : nullptr;
    for (const Tick tick : walk.ticks()) {
      walk.advance(tick);
      const int64_t count = walk.count();
      for (Tick rest = tick; rest; rest &= rest - 1) {
        const int slot = __builtin_ctz(rest);
        features[slot] = layer.input + walk.place(slot) * I;
        if (packing.input && walk.has_events(slot))
          take_features(layer, walk.place(slot), true, state.h_of(slot) + packing.state);
      }
      const auto sum_up = [&](auto size, auto ask, int64_t e, int64_t next) {
        const T *x[size()], *few[size()];
        for (int r = 0; r < size(); ++r) {
          x[r] = state.h_of(walk.slot(e + r));
          few[r] = features[walk.slot(e + r)];
        }
        unit_sums<T, G, size(), ask()>(packing, packed, walk.unit(e), walk.unit(next), x, few, &sums[4 * e]);
      };
      if (by_size)
        walk.for_blocks_by_size([&](auto size, int64_t e) { sum_up(size, std::false_type(), e, e); });
      else
        walk.for_blocks([&](auto size, int64_t e, int64_t next) { sum_up(size, std::true_type(), e, next); });
      load_peepholes(layer, walk, at[kPeepI], at[kPeepF], at[kPeepO]);
      const int32_t* places = walk.places(state.width);
      for (int64_t e = 0; e < count; e += lanes) {
        const int64_t here = std::min<int64_t>(lanes, count - e);
        const Vec<T> k =
            gate_at(load(walk.phases() + e), load(walk.ratios() + e), layer.leak, layer.oscillation).k;
        State<Vec<T>> old{gather_lanes(state.h.data(), places + e, here), Vec<T>{}};
        if constexpr (Lstm) old.c = gather_lanes(state.c.data(), places + e, here);
        Vec<T> values[4];
        load_columns(&sums[4 * e], values);
        State<Vec<T>> fresh;
        if constexpr (Lstm)
          fresh = lstm_step(values, {load(at[kPeepI] + e), load(at[kPeepF] + e), load(at[kPeepO] + e)}, k, old);
        else
          fresh = gru_step(values, k, old);
        store(at[kNewH] + e, fresh.h);
        store(at[kNewC] + e, fresh.c);
        if (!tape) continue;
        for (int slot = 0; slot < 4; ++slot) store_first(tape + slot * count + e, values[slot], here);
        store_first(tape + 4 * count + e, old.h, here);
        if (Lstm) store_first(tape + 5 * count + e, old.c, here);
      }
      for (int64_t e = 0; e < count; ++e) {
        state.h[places[e]] = at[kNewH][e];
        if (Lstm) state.c[places[e]] = at[kNewC][e];
      }
      if (tape) tape = walk.keep(tape + count * fields);
      if (run.output)
        for (Tick rest = tick; rest; rest &= rest - 1)
          std::copy_n(state.h_of(__builtin_ctz(rest)), H, run.output + walk.place(__builtin_ctz(rest)) * H);
    }
    for (int64_t slot = 0; slot < rows; ++slot) {
      const int64_t row = first + slot, valid = valid_steps(layer, row);
      if (run.output) std::fill_n(run.output + (row * layer.steps + valid) * H, (layer.steps - valid) * H, T(0));
      state.give(slot, run.h_n + row * H, row_of(run.c_n, row, H));
    }
  }
}

template <typename T, bool Lstm>
void backward_rows(const Layer<T>& layer, const Backward<T>& run, const T* packed, int64_t begin, int64_t end,
                   T* partial, double* gate_sums) {
  constexpr int G = Lstm ? 4 : 3, lanes = Simd<T>::kLanes, fields = Lstm ? 6 : 5;
  enum { kPeepI, kPeepF, kPeepO, kGradH, kGradC, kInPhase, kInRatio, kCell, kColumns };
  const Packing<T, G> packing(layer);
  const int64_t H = layer.units, I = layer.inputs, size = group_rows(layer.batch);
  T* peepholes = partial + H * packing.unit();
  GroupState<T, G> state(packing, size, H), grad(packing, size, H);
  Buffer<T> grad_few(size * kFewInputs);
  Scratch<T, kColumns> at(size * H);
  PendingProducts<T, G> pending(layer, size);
  Walk<T> walk(layer);
  int32_t number[kLargestGroup];
  double time[kLargestGroup], grad_time[kLargestGroup];
  std::vector<double> inverse(H);
  for (int64_t u = 0; u < H; ++u) inverse[u] = 1.0 / run.period[u];
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * size, rows = std::min(size, layer.batch - first);
    for (int64_t slot = 0; slot < rows; ++slot) {
      state.take(slot, run.h_n + (first + slot) * H, nullptr);
      grad.take(slot, run.grad_h_n + (first + slot) * H, row_of(run.grad_c_n, first + slot, H));
    }
    walk.begin(first, rows, true);
    const T* tape = run.tape + (walk.start() + walk.total()) * (fields + 2);
    for (size_t index = walk.ticks().size(); index-- > 0;) {
      const Tick tick = walk.ticks()[index];
      walk.retreat(tick);
      const int64_t count = walk.count();
      tape -= count * (fields + 2);
      walk.recall(tape + count * fields);
      // The tape is far longer than a cache; the tick before is about as long as this one.
      for (int64_t value = 0; value < count * (fields + 2); value += 64 / sizeof(T))
        __builtin_prefetch(tape - 1 - value);
      if (run.grad_output)
        for (Tick rest = tick; rest; rest &= rest - 1) {
          const int slot = __builtin_ctz(rest);
          const T* from = run.grad_output + walk.place(slot) * H;
          T* to = grad.h_of(slot);
          for (int64_t u = 0; u < H; ++u) to[u] += from[u];
        }
      if (!count) continue;
      const int32_t* places = walk.places(state.width);
      const T *old_h = tape + 4 * count, *old_c = tape + 5 * count;
      // The products need the state before this step.
      for (int64_t e = 0; e < count; ++e) state.h[places[e]] = old_h[e];
      load_peepholes(layer, walk, at[kPeepI], at[kPeepF], at[kPeepO]);
      if (!pending.room_for(rows, count)) pending.settle(partial);
      for (Tick rest = tick; rest; rest &= rest - 1) {
        const int slot = __builtin_ctz(rest);
        time[slot] = layer.times[layer.events.shared ? walk.step(slot) : walk.place(slot)];
        grad_time[slot] = 0.0;
        if (!walk.has_events(slot)) continue;
        if (packing.input) {
          take_features(layer, walk.place(slot), false, state.h_of(slot) + packing.state);
          std::fill_n(grad.h_of(slot) + packing.state, packing.input, T(0));
        }
        std::fill_n(&grad_few[slot * kFewInputs], packing.few, T(0));
        number[slot] = pending.keep(state.h_of(slot), layer.input + walk.place(slot) * I);
      }
      T* d = pending.next();
      for (int64_t e = 0; e < count; e += lanes) {
        const Gate<T> gate = gate_at(load(walk.phases() + e), load(walk.ratios() + e), layer.leak, layer.oscillation);
        Vec<T> values[4];
        const int64_t here = std::min<int64_t>(lanes, count - e);
        for (int slot = 0; slot < 4; ++slot) values[slot] = load_first(tape + slot * count + e, here);
        const State<Vec<T>> old{load_first(old_h + e, here), Lstm ? load_first(old_c + e, here) : Vec<T>{}};
        State<Vec<T>> from{gather_lanes(grad.h.data(), places + e, here), Vec<T>{}};
        if constexpr (Lstm) from.c = gather_lanes(grad.c.data(), places + e, here);
        Gradients<Vec<T>> found;
        if constexpr (Lstm)
          found = lstm_step_back(values, {load(at[kPeepI] + e), load(at[kPeepF] + e), load(at[kPeepO] + e)}, gate.k,
                                 old, from);
        else
          found = gru_step_back(values, gate.k, old, from);
        store_rows(d + 4 * e, found.sums);
        store(at[kInPhase] + e, found.k * gate.slope);
        store(at[kInRatio] + e, found.k * gate.in_ratio);
        store(at[kGradH] + e, found.old.h);
        store(at[kGradC] + e, found.old.c);
        store(at[kCell] + e, found.cell);
      }
      for (int64_t e = 0; e < count; ++e) {
        const int64_t u = walk.unit(e), slot = walk.slot(e);
        grad.h[places[e]] = at[kGradH][e];
        if (Lstm) grad.c[places[e]] = at[kGradC][e];
        const T* of_event = &d[4 * e];
        pending.add(u, number[slot]);
        if (run.grad_input) add_few(packing, packed, u, of_event, &grad_few[slot * kFewInputs]);
        if (Lstm && layer.peephole) add_peepholes(of_event, old_c[e], at[kCell][e], peepholes + 3 * u);
        const double in_phase = at[kInPhase][e] * inverse[u];
        add_gate(in_phase, at[kInRatio][e], (time[slot] - run.shift[u]) * inverse[u], H, gate_sums + u);
        grad_time[slot] += in_phase;
      }
      walk.for_blocks([&](auto block, int64_t e, int64_t next) {
        const int64_t u = walk.unit(e), ahead = (walk.unit(next) - u) * packing.unit();
        T* dx[block()];
        for (int r = 0; r < block(); ++r) dx[r] = grad.h_of(walk.slot(e + r));
        for_parts(packing, run.grad_input != nullptr, [&](const int(&slots)[G], int64_t from, int64_t width) {
          spread_rows<T, G, block()>(packing.state_rows(packed, u), packing.row(), from, width, slots, &d[4 * e], dx,
                                     ahead);
        });
      });
      for (Tick rest = tick; rest; rest &= rest - 1) {
        const int slot = __builtin_ctz(rest);
        if (!walk.has_events(slot)) continue;
        const T* features = packing.input ? grad.h_of(slot) + packing.state : &grad_few[slot * kFewInputs];
        if (run.grad_input) std::copy_n(features, I, run.grad_input + walk.place(slot) * I);
        if (run.grad_times) run.grad_times[walk.place(slot)] = grad_time[slot];
      }
    }
    for (int64_t slot = 0; slot < rows; ++slot)
      grad.give(slot, run.grad_h0 + (first + slot) * H, row_of(run.grad_c0, first + slot, H));
  }
  pending.settle(partial);
}

}  // namespace

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
#include "row_products.inl"
#include "shares.inl"
#include "simd.h"
#include "walk.inl"

namespace {

using phased_lstm::Forward;

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

// The gate of `here` events from e on, whose places have been found.
template <typename T>
inline Gate<T> gate_of(const Layer<T>& layer, const Walk<T>& walk, int64_t e, int64_t here) {
  return gate_at(load_first(walk.phases() + e, here), gather_lanes(layer.ratio_on, walk.units() + e, here), layer.leak,
                 layer.oscillation);
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

// A group of sequences on its way forwards, a tick at a time.
template <typename T, bool Lstm>
class ForwardRows {
 public:
  ForwardRows(const Layer<T>& layer, const Forward<T>& run, const T* packed)
      : layer_(layer),
        run_(run),
        packed_(packed),
        packing_(layer),
        size_(group_rows(layer.batch)),
        by_size_(packing_.unit() * static_cast<int64_t>(sizeof(T)) <= kOftenRead),
        state_(packing_, size_, layer.units),
        at_(size_ * layer.units),
        sums_(4 * padded<T>(size_ * layer.units), T(0)),
        walk_(layer) {}

  void begin(int64_t group) {
    first_ = group * size_;
    rows_ = std::min(size_, layer_.batch - first_);
    for (int64_t slot = 0; slot < rows_; ++slot)
      state_.take(slot, run_.h0 + (first_ + slot) * H(), row_of(run_.c0, first_ + slot, H()));
    walk_.begin(group, rows_, false);
    index_ = 0;
  }

  double progress() const {
    const auto ticks = static_cast<double>(walk_.ticks());
    return ticks > 0.0 ? static_cast<double>(index_) / ticks : 1.0;
  }

  void step() {
    const Tick tick = walk_.tick(index_);
    walk_.advance(index_);
    tape_ = run_.tape ? run_.tape + walk_.start(index_) * kFields : nullptr;
    ++index_;
    for (uint32_t rest = tick; rest; rest &= rest - 1) {
      const int slot = __builtin_ctz(rest);
      features_[slot] = layer_.input + walk_.place(slot) * layer_.inputs;
      if (packing_.input && walk_.has_events(slot))
        take_features(layer_, walk_.place(slot), true, state_.h_of(slot) + packing_.state);
    }
    sum_up();
    change();
    if (run_.output)
      for (uint32_t rest = tick; rest; rest &= rest - 1)
        std::copy_n(state_.h_of(__builtin_ctz(rest)), H(), run_.output + walk_.place(__builtin_ctz(rest)) * H());
  }

  void end() {
    for (int64_t slot = 0; slot < rows_; ++slot) {
      const int64_t row = first_ + slot, valid = valid_steps(layer_, row), padding = layer_.steps - valid;
      if (run_.output) std::fill_n(run_.output + (row * layer_.steps + valid) * H(), padding * H(), T(0));
      state_.give(slot, run_.h_n + row * H(), row_of(run_.c_n, row, H()));
    }
  }

 private:
  static constexpr int G = Lstm ? 4 : 3, kFields = Lstm ? 6 : 5;
  enum { kPeepI, kPeepF, kPeepO, kNewH, kNewC, kColumns };

  int64_t H() const { return layer_.units; }

  // The sums of the tick's events.
  void sum_up() {
    const auto block = [&](auto size, auto ask, int64_t e, int64_t next) {
      const T *x[size()], *few[size()];
      for (int r = 0; r < size(); ++r) {
        x[r] = state_.h_of(walk_.slot(e + r));
        few[r] = features_[walk_.slot(e + r)];
      }
      unit_sums<T, G, size(), ask()>(packing_, packed_, walk_.unit(e), walk_.unit(next), x, few, &sums_[4 * e]);
    };
    if (by_size_)
      walk_.for_blocks_by_size([&](auto size, int64_t e) { block(size, std::false_type(), e, e); });
    else
      walk_.for_blocks([&](auto size, int64_t e, int64_t next) { block(size, std::true_type(), e, next); });
  }

  // What the events make of the state.
  void change() {
    constexpr int lanes = Simd<T>::kLanes;
    const int64_t count = walk_.count();
    load_peepholes(layer_, walk_, at_[kPeepI], at_[kPeepF], at_[kPeepO]);
    walk_.find_places(state_.width);
    const int32_t* const places = walk_.places();
    for (int64_t e = 0; e < count; e += lanes) {
      const int64_t here = std::min<int64_t>(lanes, count - e);
      const Vec<T> k = gate_of(layer_, walk_, e, here).k;
      State<Vec<T>> old{gather_lanes(state_.h.data(), places + e, here), Vec<T>{}};
      if constexpr (Lstm) old.c = gather_lanes(state_.c.data(), places + e, here);
      Vec<T> values[4];
      load_columns(&sums_[4 * e], values);
      State<Vec<T>> fresh;
      if constexpr (Lstm)
        fresh = lstm_step(
            values,
            {layer_.peephole != nullptr, {load(at_[kPeepI] + e), load(at_[kPeepF] + e), load(at_[kPeepO] + e)}}, k, old);
      else
        fresh = gru_step(values, k, old);
      store(at_[kNewH] + e, fresh.h);
      store(at_[kNewC] + e, fresh.c);
      if (!tape_) continue;
      for (int slot = 0; slot < 4; ++slot) store_first(tape_ + slot * count + e, values[slot], here);
      store_first(tape_ + 4 * count + e, old.h, here);
      if (Lstm) store_first(tape_ + 5 * count + e, old.c, here);
    }
    for (int64_t e = 0; e < count; ++e) {
      state_.h[places[e]] = at_[kNewH][e];
      if (Lstm) state_.c[places[e]] = at_[kNewC][e];
    }
  }

  const Layer<T>& layer_;
  const Forward<T>& run_;
  const T* packed_;
  Packing<T, G> packing_;
  int64_t size_;
  bool by_size_;
  GroupState<T, G> state_;
  Scratch<T, kColumns> at_;
  Buffer<T> sums_;
  Walk<T> walk_;
  int64_t first_ = 0, rows_ = 0;
  int64_t index_ = 0;  // of the next tick
  T* tape_ = nullptr;
  const T* features_[kLargestGroup];
};

// A chunk of groups on its way back, a tick at a time.
template <typename T, bool Lstm>
class BackwardRows {
 public:
  // `chunks`: how many there are.
  BackwardRows(const Layer<T>& layer, const Backward<T>& run, const T* packed, int64_t chunks, T* partials,
               double* gate_sums)
      : layer_(layer),
        run_(run),
        packed_(packed),
        chunks_(chunks),
        partials_(partials),
        all_gate_sums_(gate_sums),
        packing_(layer),
        size_(group_rows(layer.batch)),
        state_(packing_, size_, layer.units),
        grad_(packing_, size_, layer.units),
        grad_few_(size_ * kFewInputs),
        at_(size_ * layer.units),
        pending_(layer, size_),
        walk_(layer),
        inverse_(layer.units) {
    for (int64_t u = 0; u < H(); ++u) inverse_[u] = 1.0 / run.period[u];
  }

  void begin(int64_t chunk) {
    chunk_ = Chunk(chunk, chunks_, (layer_.batch + size_ - 1) / size_);
    partial_ = partials_ + chunk * partial_size<T, G>(layer_);
    gate_sums_ = all_gate_sums_ + chunk * kGateSums * H();
    begin_group();
  }

  double progress() const { return chunk_.progress(left_, walk_.ticks()); }

  void step() {
    if (left_) back(--left_);
    if (left_) return;
    for (int64_t slot = 0; slot < rows_; ++slot)
      grad_.give(slot, run_.grad_h0 + (first_ + slot) * H(), row_of(run_.grad_c0, first_ + slot, H()));
    if (chunk_.next()) begin_group();
  }

  void end() { pending_.settle(partial_); }

 private:
  static constexpr int G = Lstm ? 4 : 3, kFields = Lstm ? 6 : 5;
  enum { kPeepI, kPeepF, kPeepO, kGradH, kGradC, kInPhase, kInRatio, kCell, kColumns };

  int64_t H() const { return layer_.units; }

  void begin_group() {
    first_ = chunk_.group() * size_;
    rows_ = std::min(size_, layer_.batch - first_);
    for (int64_t slot = 0; slot < rows_; ++slot) {
      state_.take(slot, run_.h_n + (first_ + slot) * H(), nullptr);
      grad_.take(slot, run_.grad_h_n + (first_ + slot) * H(), row_of(run_.grad_c_n, first_ + slot, H()));
    }
    walk_.begin(chunk_.group(), rows_, true);
    left_ = walk_.ticks();
  }

  void back(int64_t number) {
    const Tick tick = walk_.tick(number);
    walk_.retreat(number);
    const int64_t count = walk_.count();
    tape_ = run_.tape + walk_.start(number) * kFields;
    // The tape is far longer than a cache; the tick before is about as long as this one.
    for (int64_t value = 0; value < count * kFields; value += 64 / sizeof(T))
      __builtin_prefetch(tape_ - 1 - value);
    if (run_.grad_output)
      for (uint32_t rest = tick; rest; rest &= rest - 1) {
        const int slot = __builtin_ctz(rest);
        const T* from = run_.grad_output + walk_.place(slot) * H();
        T* to = grad_.h_of(slot);
        for (int64_t u = 0; u < H(); ++u) to[u] += from[u];
      }
    if (!count) return;
    walk_.find_places(state_.width);
    places_ = walk_.places();
    // The products need the state before this step.
    for (int64_t e = 0; e < count; ++e) state_.h[places_[e]] = old_h()[e];
    if (!pending_.room_for(rows_, count)) pending_.settle(partial_);
    for (uint32_t rest = tick; rest; rest &= rest - 1) {
      const int slot = __builtin_ctz(rest);
      time_[slot] = layer_.times[walk_.place(slot)];
      grad_time_[slot] = 0.0;
      if (!walk_.has_events(slot)) continue;
      if (packing_.input) {
        take_features(layer_, walk_.place(slot), false, state_.h_of(slot) + packing_.state);
        std::fill_n(grad_.h_of(slot) + packing_.state, packing_.input, T(0));
      }
      std::fill_n(&grad_few_[slot * kFewInputs], packing_.few, T(0));
      number_[slot] = pending_.keep(state_.h_of(slot), layer_.input + walk_.place(slot) * layer_.inputs);
    }
    T* d = pending_.next();
    differentiate(d);
    put_off(d);
    spread_back(d);
    for (uint32_t rest = tick; rest; rest &= rest - 1) {
      const int slot = __builtin_ctz(rest);
      if (!walk_.has_events(slot)) continue;
      const T* features = packing_.input ? grad_.h_of(slot) + packing_.state : &grad_few_[slot * kFewInputs];
      if (run_.grad_input) std::copy_n(features, layer_.inputs, run_.grad_input + walk_.place(slot) * layer_.inputs);
      if (run_.grad_times) run_.grad_times[walk_.place(slot)] = grad_time_[slot];
    }
  }

  const T* old_h() const { return tape_ + 4 * walk_.count(); }
  const T* old_c() const { return tape_ + 5 * walk_.count(); }

  // The events' own derivatives; those of their sums to `d`.
  void differentiate(T* d) {
    constexpr int lanes = Simd<T>::kLanes;
    const int64_t count = walk_.count();
    load_peepholes(layer_, walk_, at_[kPeepI], at_[kPeepF], at_[kPeepO]);
    for (int64_t e = 0; e < count; e += lanes) {
      const int64_t here = std::min<int64_t>(lanes, count - e);
      const Gate<T> gate = gate_of(layer_, walk_, e, here);
      Vec<T> values[4];
      for (int slot = 0; slot < 4; ++slot) values[slot] = load_first(tape_ + slot * count + e, here);
      const State<Vec<T>> old{load_first(old_h() + e, here), Lstm ? load_first(old_c() + e, here) : Vec<T>{}};
      State<Vec<T>> from{gather_lanes(grad_.h.data(), places_ + e, here), Vec<T>{}};
      if constexpr (Lstm) from.c = gather_lanes(grad_.c.data(), places_ + e, here);
      Gradients<Vec<T>> found;
      if constexpr (Lstm)
        found = lstm_step_back(values, {load(at_[kPeepI] + e), load(at_[kPeepF] + e), load(at_[kPeepO] + e)}, gate.k,
                               old, from);
      else
        found = gru_step_back(values, gate.k, old, from);
      store_rows(d + 4 * e, found.sums);
      store(at_[kInPhase] + e, found.k * gate.slope);
      store(at_[kInRatio] + e, found.k * gate.in_ratio);
      store(at_[kGradH] + e, found.old.h);
      store(at_[kGradC] + e, found.old.c);
      store(at_[kCell] + e, found.cell);
    }
  }

  // Gradients of the state in the events' own units, of few features, peepholes and the gate; those of the weights are put
  // off.
  void put_off(const T* d) {
    for (int64_t e = 0; e < walk_.count(); ++e) {
      const int64_t u = walk_.unit(e), slot = walk_.slot(e);
      grad_.h[places_[e]] = at_[kGradH][e];
      if (Lstm) grad_.c[places_[e]] = at_[kGradC][e];
      const T* of_event = &d[4 * e];
      pending_.add(u, number_[slot]);
      if (run_.grad_input) add_few(packing_, packed_, u, of_event, &grad_few_[slot * kFewInputs]);
      if (Lstm && layer_.peephole)
        add_peepholes(of_event, old_c()[e], at_[kCell][e], partial_ + H() * packing_.unit() + 3 * u);
      const double in_phase = at_[kInPhase][e] * inverse_[u];
      add_gate(in_phase, at_[kInRatio][e], (time_[slot] - run_.shift[u]) * inverse_[u],
               gate_sums_ + kGateSums * u);
      grad_time_[slot] += in_phase;
    }
  }

  // Gradients of the states and features that the sums were made of.
  void spread_back(const T* d) {
    walk_.for_blocks([&](auto block, int64_t e, int64_t next) {
      const int64_t u = walk_.unit(e), ahead = (walk_.unit(next) - u) * packing_.unit();
      T* dx[block()];
      for (int r = 0; r < block(); ++r) dx[r] = grad_.h_of(walk_.slot(e + r));
      for_parts(packing_, run_.grad_input != nullptr, [&](const int(&slots)[G], int64_t from, int64_t width) {
        spread_rows<T, G, block()>(packing_.state_rows(packed_, u), packing_.row(), from, width, slots, &d[4 * e], dx,
                                   ahead);
      });
    });
  }

  const Layer<T>& layer_;
  const Backward<T>& run_;
  const T* packed_;
  int64_t chunks_;
  T* partials_;
  double* all_gate_sums_;
  Packing<T, G> packing_;
  int64_t size_;
  GroupState<T, G> state_, grad_;
  Buffer<T> grad_few_;
  Scratch<T, kColumns> at_;
  PendingProducts<T, G> pending_;
  Walk<T> walk_;
  std::vector<double> inverse_;
  Chunk chunk_;
  int64_t first_ = 0, rows_ = 0, left_ = 0;  // left_: ticks of the group
  T* partial_ = nullptr;
  double* gate_sums_ = nullptr;
  const T* tape_ = nullptr;
  const int32_t* places_ = nullptr;
  int32_t number_[kLargestGroup];
  double time_[kLargestGroup], grad_time_[kLargestGroup];
};

}  // namespace

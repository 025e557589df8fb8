// The recurrence a panel of sequences at a time: vectors run across sequences, which suits shared times,
// where the open units are the same for all, and dense training with a leak. A unit's weights are read
// once for the whole panel.
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>

#include "cell.inl"
#include "kernels.h"
#include "packing.inl"
#include "panel.inl"
#include "panel_products.inl"
#include "quads.h"
#include "rows.inl"
#include "shares.inl"
#include "simd.h"
#include "state_products.inl"

namespace {

// A panel on its way forwards, a step at a time.
template <typename T, bool Lstm, int NV>
class ForwardPanels {
 public:
  ForwardPanels(const Layer<T>& layer, const Forward<T>& run, const T* packed)
      : layer_(layer),
        run_(run),
        packed_(packed),
        state_(H() * P),
        cell_(H() * P, T(0)),
        fresh_(2 * H() * P),
        gates_(layer, 0, layer.events.shared ? layer.events.count : 0, layer.reverse, false),
        products_(layer) {}

  void begin(int64_t index) {
    index_ = index;
    panel_.emplace(layer_, index);
    columns_.emplace(layer_, *panel_);
    transpose_in(run_.h0, *panel_, H(), state_.data());
    if (Lstm) transpose_in(run_.c0, *panel_, H(), cell_.data());
    steps_ = longest(layer_, *panel_);
    step_ = 0;
    products_.begin(state_.data());
  }

  double progress() const { return steps_ ? static_cast<double>(step_) / static_cast<double>(steps_) : 1.0; }

  void step() {
    const int64_t t = layer_.reverse ? steps_ - 1 - step_ : step_;
    ++step_;
    int64_t first;
    const int64_t count = events_at(layer_, t, &first);
    const T* features = count ? columns_->at(t) : nullptr;
    rows_.at(layer_, *panel_, t);
    const auto shared = gates_.at(first, layer_.events.shared ? count : 0);
    const int64_t anew = products_.advance(t, first, count);
    for (int64_t at = 0, n; at < count; at += n) {
      n = std::min<int64_t>((at < anew ? anew : count) - at, kUnitBlock<NV>);
      with_number<kUnitBlock<NV>>(n, [&](auto number) {
        change<number()>(t, first, products_.order() + at, features, shared, at < anew);
      });
    }
    products_.replace(first, count, fresh_.data());
    for (int64_t e = 0; e < count && Lstm; ++e)
      std::copy_n(&fresh_[(H() + e) * P], P, &cell_[unit_of(layer_, first + e) * P]);
    if (run_.output) {
      for (int64_t lane = 0; lane < panel_->count; ++lane) {
        const int64_t row = panel_->first + lane;
        T* out = run_.output + (row * layer_.steps + t) * H();
        if (!inside(layer_, row, t))
          std::fill_n(out, H(), T(0));
        else
          for (int64_t u = 0; u < H(); ++u) out[u] = state_[u * P + lane];
      }
    }
  }

  void end() {
    if (run_.output)
      for (int64_t lane = 0; lane < panel_->count; ++lane)
        std::fill_n(run_.output + ((panel_->first + lane) * layer_.steps + steps_) * H(),
                    (layer_.steps - steps_) * H(), T(0));
    transpose_out(state_.data(), *panel_, H(), run_.h_n);
    if (Lstm) transpose_out(cell_.data(), *panel_, H(), run_.c_n);
  }

 private:
  static constexpr int G = Lstm ? 4 : 3, kLanes = Simd<T>::kLanes, kFields = Lstm ? 6 : 5;
  static constexpr int64_t P = kPanelRows<T, NV>;

  int64_t H() const { return layer_.units; }

  // What B events, `e`, of step t make of their units. `first`: the step's first event.
  template <int B>
  void change(int64_t t, int64_t first, const int32_t* e, const T* features,
              const typename EventGates<T>::Columns& shared, bool anew) {
    Vec<T> sums[B][4][NV];
    PanelGate<T, NV> gate[B];
    int64_t units[B];
    for (int b = 0; b < B; ++b) {
      units[b] = unit_of(layer_, first + e[b]);
      gate[b].fill(layer_, *panel_, t, units[b], shared, e[b]);
    }
    products_.template sum_up<B>(packed_, units, features, anew, sums);
    // The vectors of all units of the block go side by side.
    const auto every = [](const auto& f) { return vectors<T, B * NV>([&](int j) { return f(j / NV, j % NV); }); };
    using W = Vecs<T, B * NV>;
    const auto of_unit = [&](const Buffer<T>& from) {
      return every([&](int b, int v) { return load(&from[units[b] * P + v * kLanes]); });
    };
    const auto sum = [&](int slot) { return every([&](int b, int v) { return sums[b][slot][v]; }); };
    const auto weight = [&](int j) {
      return layer_.peephole ? every([&](int b, int) { return peephole_of(layer_, units[b], j); }) : W{};
    };
    const State<W> old{of_unit(state_), Lstm ? of_unit(cell_) : W{}};
    const W k = every([&](int b, int v) { return gate[b].at[v].k; });
    W values[4] = {sum(0), sum(1), sum(2), sum(3)};
    State<W> after;
    if constexpr (Lstm)
      after = lstm_step(values, {layer_.peephole != nullptr, {weight(0), weight(1), weight(2)}}, k, old);
    else
      after = gru_step(values, k, old);
    if (!rows_.all()) {
      const auto of_taken = [&](int j, Vec<T> now, Vec<T> before) { return rows_.choose(j % NV, now, before); };
      after = {both_vectors(after.h, old.h, of_taken), both_vectors(after.c, old.c, of_taken)};
    }
    const auto put = [&](const W& from, T* to, int64_t stride) {
      for_vectors(from, [&](int j, Vec<T> of) { store(to + e[j / NV] * stride + j % NV * kLanes, of); });
    };
    put(after.h, fresh_.data(), P);
    if (Lstm) put(after.c, &fresh_[H() * P], P);
    if (!run_.tape) return;
    T* tape = run_.tape + (index_ * events_in_row(layer_) + place_in_row(layer_, t, first)) * kFields * P;
    for (int slot = 0; slot < 4; ++slot) put(values[slot], tape + slot * P, kFields * P);
    put(old.h, tape + 4 * P, kFields * P);
    if (Lstm) put(old.c, tape + 5 * P, kFields * P);
  }

  const Layer<T>& layer_;
  const Forward<T>& run_;
  const T* packed_;
  Buffer<T> state_, cell_, fresh_;
  EventGates<T> gates_;
  StateProducts<T, G, NV> products_;
  std::optional<Panel<T, NV>> panel_;
  std::optional<InputColumns<T, NV>> columns_;
  PanelSteps<T, NV> rows_;
  int64_t index_ = 0, steps_ = 0, step_ = 0;
};

// A chunk of panels on its way back, a step at a time.
template <typename T, bool Lstm, int NV>
class BackwardPanels {
 public:
  // `chunks`: how many there are.
  BackwardPanels(const Layer<T>& layer, const Backward<T>& run, const T* packed, int64_t chunks, T* partials,
                 double* gate_sums)
      : layer_(layer),
        run_(run),
        packed_(packed),
        chunks_(chunks),
        partials_(partials),
        all_gate_sums_(gate_sums),
        packing_(layer),
        grad_state_(H() * P),
        grad_cell_(H() * P, T(0)),
        grad_features_(layer.inputs * P),
        state_(P * packing_.state, T(0)),
        features_(P * packing_.input, T(0)),
        in_sums_(H() * 4 * P),
        in_old_(2 * H() * P),
        gates_(layer, 0, layer.events.shared ? layer.events.count : 0, !layer.reverse, true) {}

  void begin(int64_t chunk) {
    chunk_ = Chunk(chunk, chunks_, (layer_.batch + P - 1) / P);
    partial_ = partials_ + chunk * partial_size<T, G>(layer_);
    gate_sums_ = all_gate_sums_ + chunk * kGateSums * H();
    begin_panel();
  }

  double progress() const { return chunk_.progress(left_, steps_); }

  void step() {
    if (left_) back(layer_.reverse ? steps_ - left_ : left_ - 1), --left_;
    if (left_) return;
    transpose_out(grad_state_.data(), *panel_, H(), run_.grad_h0);
    if (Lstm) transpose_out(grad_cell_.data(), *panel_, H(), run_.grad_c0);
    if (chunk_.next()) begin_panel();
  }

  void end() {}

 private:
  using V = Vec<T>;
  static constexpr int G = Lstm ? 4 : 3, kLanes = Simd<T>::kLanes, kFields = Lstm ? 6 : 5;
  static constexpr int64_t P = kPanelRows<T, NV>;

  int64_t H() const { return layer_.units; }
  int64_t I() const { return layer_.inputs; }

  void begin_panel() {
    panel_.emplace(layer_, chunk_.group());
    columns_.emplace(layer_, *panel_);
    std::fill_n(holds_state_, P, false);
    holds_all_ = false;
    std::fill(state_.begin(), state_.end(), T(0));
    transpose_in(run_.grad_h_n, *panel_, H(), grad_state_.data());
    if (Lstm) transpose_in(run_.grad_c_n, *panel_, H(), grad_cell_.data());
    // Lanes beyond the batch must not add to what rows share.
    for (int64_t lane = panel_->count; lane < P; ++lane)
      for (int64_t u = 0; u < H(); ++u) grad_state_[u * P + lane] = grad_cell_[u * P + lane] = T(0);
    left_ = steps_ = longest(layer_, *panel_);
  }

  void back(int64_t t) {
    if (run_.grad_output) {
      for (int64_t lane = 0; lane < panel_->count; ++lane) {
        const int64_t row = panel_->first + lane;
        if (!inside(layer_, row, t)) continue;
        const T* grad = run_.grad_output + (row * layer_.steps + t) * H();
        for (int64_t u = 0; u < H(); ++u) grad_state_[u * P + lane] += grad[u];
      }
    }
    int64_t first;
    const int64_t count = events_at(layer_, t, &first);
    if (!count) return;
    rows_.at(layer_, *panel_, t);
    hold_states();
    const T* few = I() <= kFewInputs ? columns_->at(t) : nullptr;
    for (int64_t lane = 0; lane < P && !few; ++lane) {
      if (rows_.taken(lane))
        take_features(layer_, panel_->row(lane) * layer_.steps + t, false, &features_[lane * packing_.input]);
      else
        std::fill_n(&features_[lane * packing_.input], I(), T(0));
    }
    const auto shared = gates_.at(first, layer_.events.shared ? count : 0);
    for (int64_t e = 0; e < count; ++e)
      rows_.all() ? differentiate<true>(t, first, count, e, shared) : differentiate<false>(t, first, count, e, shared);
    for (int64_t e = 0; e < count; ++e) {
      const int64_t u = unit_of(layer_, first + e);
      std::copy_n(&in_old_[e * P], P, &grad_state_[u * P]);
      if (Lstm) std::copy_n(&in_old_[(H() + e) * P], P, &grad_cell_[u * P]);
    }
    if (run_.grad_input) std::fill(grad_features_.begin(), grad_features_.end(), T(0));
    for (int64_t e = 0; e < count; ++e) {
      const int64_t u = unit_of(layer_, first + e);
      const T* d = &in_sums_[e * 4 * P];
      gather_rows<T, G, NV>(packing_.state_rows(partial_, u), packing_.row(), kStateSlots<G>, d, state_.data(),
                            packing_.state);
      if (few)
        gather_few<T, G, NV>(packing_.input_rows(partial_, u), packing_.row(), kInputSlots<G>, d, few, I());
      else
        gather_rows<T, G, NV>(packing_.input_rows(partial_, u), packing_.row(), kInputSlots<G>, d, features_.data(),
                              packing_.input);
    }
    for (int64_t e = 0, n; e < count; e += n) {
      n = std::min<int64_t>(count - e, kUnitBlock<NV>);
      with_number<kUnitBlock<NV>>(n, [&](auto number) {
        const T *of_state[number()], *of_input[number()];
        for (int b = 0; b < number(); ++b) {
          of_state[b] = packing_.state_rows(packed_, unit_of(layer_, first + e + b));
          of_input[b] = of_state[b] + packing_.state;
        }
        const T* d = &in_sums_[e * 4 * P];
        spread_back<T, G, NV, number()>(of_state, packing_.row(), kStateSlots<G>, d, grad_state_.data(), H());
        if (run_.grad_input)
          spread_back<T, G, NV, number()>(of_input, packing_.row(), kInputSlots<G>, d, grad_features_.data(), I());
      });
    }
    if (run_.grad_input)
      for (int64_t lane = 0; lane < panel_->count; ++lane)
        for (int64_t i = 0; i < I(); ++i)
          run_.grad_input[((panel_->first + lane) * layer_.steps + t) * I() + i] =
              inside(layer_, panel_->first + lane, t) ? grad_features_[i * P + lane] : T(0);
  }

  // The states that the products are made of: zero in rows that do not take the step.
  void hold_states() {
    if (rows_.all() && holds_all_) return;
    holds_all_ = rows_.all();
    for (int64_t lane = 0; lane < P; ++lane) {
      const bool holds = rows_.taken(lane);
      if (holds == holds_state_[lane]) continue;
      holds_state_[lane] = holds;
      T* const to = &state_[lane * packing_.state];
      if (holds)
        std::copy_n(run_.h_n + panel_->row(lane) * H(), H(), to);
      else
        std::fill_n(to, H(), T(0));
    }
  }

  // An event's own derivatives, those of bias, peepholes and gate among them. `first`, `count`: of the step's events;
  // `all`: whether all rows take the step.
  template <bool all>
  void differentiate(int64_t t, int64_t first, int64_t count, int64_t e,
                     const typename EventGates<T>::Columns& shared) {
    alignas(64) T in_phases[P];
    PanelGate<T, NV> gate;
    const int64_t u = unit_of(layer_, first + e);
    gate.fill(layer_, *panel_, t, u, shared, e);
    const T* tape =
        run_.tape + (chunk_.group() * events_in_row(layer_) + place_in_row(layer_, t, first + e)) * kFields * P;
    // The step before has about as many events, and the tape is far longer than a cache.
    for (int64_t value = 0; value < kFields * P; value += 64 / sizeof(T))
      __builtin_prefetch(tape - count * kFields * P + value);
    const V peephole[3] = {peephole_of(layer_, u, 0), peephole_of(layer_, u, 1), peephole_of(layer_, u, 2)};
    T* d = &in_sums_[e * 4 * P];
    V in_slots[4] = {}, in_peephole[3] = {}, in_phase_all{}, in_ratio_all{};
    for (int v = 0; v < NV; ++v) {
      const int64_t at = u * P + v * kLanes, to = e * P + v * kLanes, lane = v * kLanes;
      const V k = gate.at[v].k;
      State<Vec<T>> old{load(tape + 4 * P + lane), Lstm ? load(tape + (kFields - 1) * P + lane) : V{}};
      [[maybe_unused]] const auto or_zero = [&](V of) { return rows_.choose(v, of, V{}); };
      if constexpr (!all) old = {or_zero(old.h), or_zero(old.c)};
      const State<Vec<T>> from{load(&grad_state_[at]), load(&grad_cell_[at])};
      for (int j = 0; j < kLanes; ++j) state_[(lane + j) * packing_.state + u] = old.h[j];
      V values[4];
      for (int slot = 0; slot < 4; ++slot) values[slot] = load(tape + slot * P + lane);
      Gradients<Vec<T>> found;
      if constexpr (Lstm)
        found = lstm_step_back(values, peephole, k, old, from);
      else
        found = gru_step_back(values, k, old, from);
      if constexpr (!all) {
        for (V& in_sum : found.sums) in_sum = or_zero(in_sum);
        found.k = or_zero(found.k), found.cell = or_zero(found.cell);
        found.old = {rows_.choose(v, found.old.h, from.h), rows_.choose(v, found.old.c, from.c)};
      }
      for (int slot = 0; slot < 4; ++slot) {
        store(d + slot * P + lane, found.sums[slot]);
        in_slots[slot] += found.sums[slot];
      }
      store(&in_old_[to], found.old.h);
      store(&in_old_[H() * P + to], found.old.c);
      const V in_phase = found.k * gate.at[v].slope;
      store(in_phases + lane, in_phase);
      in_phase_all += in_phase;
      in_ratio_all += found.k * gate.at[v].in_ratio;
      in_peephole[0] += found.sums[0] * old.c;
      in_peephole[1] += found.sums[1] * old.c;
      in_peephole[2] += found.sums[3] * found.cell;
    }
    T* head = packing_.head_of(partial_, u);
    store_quad(head, load_quad(head) + sums(in_slots));
    if (Lstm && layer_.peephole)
      for (int j = 0; j < 3; ++j) partial_[H() * packing_.unit() + u * 3 + j] += sum(in_peephole[j]);
    double* const in_gate = gate_sums_ + kGateSums * u;
    in_gate[2] += sum(in_ratio_all);
    const double period = run_.period[u];
    if (layer_.events.shared) {
      const double in_phase = static_cast<double>(sum(in_phase_all)) / period;
      in_gate[0] -= in_phase * (layer_.times[t] - run_.shift[u]) / period;
      in_gate[1] -= in_phase;
    }
    for (int64_t lane = 0; lane < panel_->count && (run_.grad_times || !layer_.events.shared); ++lane) {
      const int64_t row = panel_->first + lane;
      const double in_phase = static_cast<double>(in_phases[lane]) / period;
      if (!layer_.events.shared) {
        in_gate[0] -= in_phase * (layer_.times[row * layer_.steps + t] - run_.shift[u]) / period;
        in_gate[1] -= in_phase;
      }
      if (run_.grad_times && inside(layer_, row, t)) run_.grad_times[row * layer_.steps + t] += in_phase;
    }
  }

  const Layer<T>& layer_;
  const Backward<T>& run_;
  const T* packed_;
  int64_t chunks_;
  T* partials_;
  double* all_gate_sums_;
  Packing<T, G> packing_;
  Buffer<T> grad_state_, grad_cell_, grad_features_;
  // Row by row, as the gradients of the weights need them.
  Buffer<T> state_, features_;
  // For each event of a step: gradients of its four sums and of the state before it.
  Buffer<T> in_sums_, in_old_;
  EventGates<T> gates_;
  std::optional<Panel<T, NV>> panel_;
  std::optional<InputColumns<T, NV>> columns_;
  PanelSteps<T, NV> rows_;
  bool holds_state_[P], holds_all_ = false;
  Chunk chunk_;
  int64_t steps_ = 0, left_ = 0;
  T* partial_ = nullptr;
  double* gate_sums_ = nullptr;
};

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
  if (layer.events.plans) return layer.events.count;
  if (!layer.panels) return events_before(layer, layer.batch);
  const int64_t rows = panel_vectors<T>(layer.batch) * Simd<T>::kLanes;
  return (layer.batch + rows - 1) / rows * rows * events_in_row(layer);
}

}  // namespace

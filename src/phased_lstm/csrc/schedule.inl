// Finding the open events: the phase of every unit at every step, a few lanes at a time.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::Buffer;
using phased_lstm::EventBlock;
using phased_lstm::GateTimes;

// A sum of two doubles, and exactly what its rounding took off. V, here and below: a double or a vector of them.
template <typename V>
struct ExactSum {
  V value, rest;
  ExactSum(V a, V b) : value(a + b) {
    const V of_b = value - a;
    rest = (a - (value - of_b)) + (b - of_b);
  }
};

// The phase, rounded once: the double nearest to ((time + rest - shift) mod tau) / tau; what is nearest to 1 is 0. From
// `into` on it is operation by operation what `gate.phase` in Python does, so that both find the same events. `time`,
// `rest` and `shift` have been reduced to about half a period around zero, exactly.
template <typename V>
inline V phase_of(V time, V rest, V period, V shift) {
  const ExactSum<V> since(time, -shift), all(since.value, rest);
  const V low = since.rest + all.rest, at = all.value;
  V whole = at >= period ? period : V{};
  whole = at < 0.0 ? (at < -period ? -2.0 * period : -period) : whole;
  const ExactSum<V> part(at, -whole), into(part.value, part.rest + low);
  V phase = into.value / period;
  // Often there is nothing beyond the double, for instance where times and gates are floats.
  if (any_nonzero(into.rest)) phase += (minus_product(into.value, phase, period) + into.rest) / period;
  phase = phase < 0.0 ? phase + 1.0 : phase;
  return phase >= 1.0 ? V{} : phase;
}

// x less the multiple of the period that is nearest to it, exactly. Every turn takes some 50 bits off, so that there are
// never more than about twenty.
inline double reduced(double x, double period) {
  // Of the largest times the quotient itself would be infinite.
  for (const double scale : {0x1p512, 1.0}) {
    const double whole = period * scale;
    if (!std::isfinite(whole)) continue;
    while (std::fabs(x) >= whole) x = std::fma(-std::rint(x / whole), whole, x);
  }
  return 2.0 * std::fabs(x) > period ? x - std::copysign(period, x) : x;
}

// The phase for times so large that the quotient by the period is not exact.
inline double far_phase(double time, double rest, double period, double shift) {
  return phase_of(reduced(time, period), reduced(rest, period), period, reduced(shift, period));
}

// The same by a rounded quotient, which serves while it is below 1e15; `rest` is then a small part of the period.
template <typename V>
inline V near_phase(V time, V rest, V period, V inverse, V shift) {
  // Adding 1.5 * 2^52 rounds to the nearest integer.
  constexpr double magic = 6755399441055744.0;
  const V quotient = (time * inverse + magic) - magic;
  return phase_of(minus_product(time, quotient, period), rest, period, shift);
}

// Steps for which single precision is told what to look for.
constexpr int64_t kNearSteps = 32;

// Steps whose candidates are found before their phases are, so that vectors of candidates are full, and what is written
// in parts is not read at once, as a whole vector, which would have to wait. Fewer for more units: more memory than the
// allocator keeps would come in fresh pages.
inline int64_t scanned_steps(int64_t width) {
  const auto fitting = static_cast<uint64_t>(std::clamp<int64_t>(8192 / width, 1, kNearSteps));
  return static_cast<int64_t>(std::bit_floor(fitting));
}

// Of times in a float.
constexpr double kWidestSpan = 1e30;

// How far a phase in single precision may be off, by the rounding of floats and of doubles, at times that are up to
// `span` periods apart and up to `furthest` from zero; where that is far, nothing is known of it. V: a double or a
// vector of them.
template <typename V>
inline V margin_of(V span, V furthest) {
  return (span + 2.0) * 0x1p-22 + (furthest + 2.0) * 0x1p-50;
}
constexpr double kWidestMargin = 0.25;

// Finds the units that may be open at a time: all that are, and those that single precision cannot tell from them.
class Candidates {
 public:
  // `inverse`: 1 / tau, `turns`: shift / tau; they and the ratios are padded with zeros. There is room for the
  // candidates of so many steps.
  Candidates(const double* inverse, const double* turns, const double* ratio_on, int64_t units, int64_t steps)
      : inverse_(inverse), turns_(turns), ratio_on_(ratio_on), width_(padded<float>(units)),
        memory_((3 + steps) * width_ + Simd<float>::kLanes, 0) {
    for (int64_t u = 0; u < width_; ++u) constants()[u] = static_cast<float>(inverse[u]);
  }

  // Where the numbers go. A vector is read of them at a time, so what is behind the last is the number of some unit.
  int32_t* numbers() { return memory_.data() + 3 * width_; }

  // The next times are within `span` of `origin`, and none is further from zero than `furthest`.
  void move(double origin, double span, double furthest) {
    origin_ = origin;
    if (span > kWidestSpan) span = std::numeric_limits<double>::infinity();
    float* behind = constants() + width_;
    float* limit = behind + width_;
    for (int64_t u = 0; u < width_; u += Simd<double>::kLanes) {
      const Vec<double> inverse = load(inverse_ + u), ratio = load(ratio_on_ + u);
      const Vec<double> margin = margin_of(span * inverse, furthest * inverse);
      const auto known = margin < kWidestMargin;
      store_narrow(behind + u, known ? fraction(origin * inverse - load(turns_ + u)) + margin : Vec<double>{});
      const Vec<double> wider = known ? ratio + 2.0 * margin : splat(std::numeric_limits<double>::infinity());
      store_narrow(limit + u, ratio > 0.0 ? wider : ratio);
    }
  }

  // Writes the numbers of the candidates, and returns the end. A phase that came of an infinity, as 1 / tau may be one in
  // a float, is 0 or no number, and a candidate either way.
  int32_t* put(double time, int32_t* to) {
    const Vec<float> since = splat(static_cast<float>(std::clamp(time - origin_, -kWidestSpan, kWidestSpan)));
    const float *inverse = constants(), *behind = inverse + width_, *limit = behind + width_;
    LaneNumbers units;
    for (int64_t u = 0; u < width_; u += Simd<float>::kLanes)
      to += units.put(to, below_bits(fraction(since * load(inverse + u) + load(behind + u)), load(limit + u)));
    return to;
  }

 private:
  // 1 / tau; what to add for the phase and the margin; the limit of that, 0 beyond the last unit.
  float* constants() { return reinterpret_cast<float*>(memory_.data()); }

  const double *inverse_, *turns_, *ratio_on_;
  double origin_ = 0.0;
  int64_t width_;
  // Constants, and numbers behind them: a load that is whole pages away from a store just made has to wait for it.
  Buffer<int32_t> memory_;
};

// A phase in the compute type, on its side of the ratio: rounding must not carry it over, where a gate closes.
template <typename T>
inline T on_its_side(double phase, double ratio_on) {
  const T rounded = static_cast<T>(phase), ratio = static_cast<T>(ratio_on);
  if (phase >= ratio_on) return std::max(rounded, ratio);
  return rounded >= ratio ? std::nextafter(ratio, T(0)) : rounded;
}

// What the search makes of a gate's units, padded with zeros.
class GateConstants {
 public:
  explicit GateConstants(const GateTimes& gate)
      : gate_(gate), width_(padded<float>(gate.units)), memory_(4 * width_, 0.0) {
    for (int64_t u = 0; u < gate.units; ++u) {
      const double period = gate.period[u], inverse = std::min(1.0 / period, std::numeric_limits<double>::max());
      memory_[u] = inverse;
      largest_inverse_ = std::max(largest_inverse_, inverse);
      const double shift = reduced(gate.shift[u], period);
      memory_[width_ + u] = shift;
      memory_[2 * width_ + u] = shift * inverse;
      memory_[3 * width_ + u] = gate.ratio_on[u];
      open_ += gate.all_open ? 1.0 : gate.ratio_on[u];
    }
  }
  const double* inverse() const { return memory_.data(); }
  // Reduced to half a period around zero; and the same in periods.
  const double* shift() const { return memory_.data() + width_; }
  const double* turns() const { return memory_.data() + 2 * width_; }
  const double* ratio_on() const { return memory_.data() + 3 * width_; }
  // The units that are open at a time, on the average.
  double open() const { return open_; }
  // Whether a rounded quotient serves at place `at` of (R, L).
  bool exact_quotient(int64_t at) const { return std::fabs(gate_.coarse[at]) * largest_inverse_ < 1e15; }
  // Unit u's phase there.
  double phase(int64_t at, int64_t u) const {
    const double rest = gate_.residue ? gate_.residue[at] : 0.0;
    return exact_quotient(at) ? near_phase(gate_.coarse[at], rest, gate_.period[u], inverse()[u], shift()[u])
                              : far_phase(gate_.coarse[at], rest, gate_.period[u], shift()[u]);
  }

 private:
  const GateTimes& gate_;
  int64_t width_;
  Buffer<double> memory_;
  double largest_inverse_ = 0.0, open_ = 0.0;
};

// The phases of candidates, and which of them are open.
template <typename T>
class Judgement {
 public:
  // There is room for so many candidates.
  Judgement(const GateTimes& gate, const GateConstants& of, int64_t candidates)
      : table_(4 * gate.units), phase_(padded<T>(candidates) + Simd<T>::kLanes), open_(candidates / kLanes + 1) {
    for (int64_t u = 0; u < gate.units; ++u)
      store_quad(&table_[4 * u], Quad<double>{gate.period[u], of.inverse()[u], of.shift()[u], gate.ratio_on[u]});
  }

  // Judges so many candidates at times of their own; returns whether all are open. Whole vectors are read. `rests`: what
  // the times lack, or null when nothing.
  bool judge(const int32_t* units, const double* times, const double* rests, int64_t count) {
    bool all = true;
    for (int64_t i = 0; i < count; i += kLanes) {
      const unsigned here = (1u << std::min<int64_t>(kLanes, count - i)) - 1;
      unsigned open = 0;
#ifdef PHASED_LSTM_GATHER_ROWS
      Vec<double> of[4];
      gather_rows(table_.data(), units + i, of);
      const Vec<double> rest = rests ? load(rests + i) : Vec<double>{};
      const Vec<double> phase = near_phase(load(times + i), rest, of[0], of[1], of[2]);
      open = less_bits(phase, of[3]);
      store_narrow(&phase_[i], phase);
#else
      for (int64_t j = i; here >> (j - i) & 1; ++j) {
        const double* of = &table_[4 * units[j]];
        const double phase = near_phase(times[j], rests ? rests[j] : 0.0, of[0], of[1], of[2]);
        open |= static_cast<unsigned>(phase < of[3]) << (j - i);
        phase_[j] = static_cast<T>(phase);
      }
#endif
      open_[i / kLanes] = static_cast<uint8_t>(open);
      all &= (open & here) == here;
    }
    return all;
  }

  const T* phases() const { return phase_.data(); }
  bool open(int64_t i) const { return open_[i / kLanes] >> i % kLanes & 1; }

 private:
  static constexpr int64_t kLanes = 8;

  Buffer<double> table_;
  Buffer<T> phase_;
  Buffer<uint8_t> open_;
};

template <typename T>
void find_events(const GateTimes& gate, int64_t row, int64_t begin, int64_t end, int64_t* counts,
                 EventBlock<T>& found) {
  const int64_t units = gate.units, width = padded<float>(units);
  const double* coarse = gate.coarse + row * gate.steps;
  const double* residue = gate.residue ? gate.residue + row * gate.steps : nullptr;
  const GateConstants of(gate);
  const auto exact_quotient = [&](int64_t t) { return of.exact_quotient(row * gate.steps + t); };
  const int64_t scan = gate.all_open ? kNearSteps : std::min(scanned_steps(width), end - begin);
  const int64_t most_scanned = gate.all_open ? 0 : scan;
  Candidates candidates(of.inverse(), of.turns(), of.ratio_on(), units, most_scanned);
  Judgement<T> judgement(gate, of, most_scanned * width);
  Buffer<double> time_of(most_scanned * width + Simd<double>::kLanes);
  Buffer<double> rest_of(residue ? time_of.size() : 0);
  const int32_t* ends[kNearSteps];
  Buffer<double> phase_at(gate.all_open ? units : 0);
  found.begin(static_cast<int64_t>(of.open() * static_cast<double>(end - begin)) + width);
  int64_t count = 0;
  for (int64_t scanned = begin; scanned < end; scanned += scan) {
    const int64_t until = std::min(end, scanned + scan);
    const int32_t* const numbers = candidates.numbers();
    int64_t known = 0;
    bool all = !gate.all_open;
    if (!gate.all_open) {
      if ((scanned - begin) % kNearSteps == 0) {
        const auto [first, last] = std::minmax_element(coarse + scanned, coarse + std::min(end, scanned + kNearSteps));
        candidates.move(*first, *last - *first, std::max(std::fabs(*first), std::fabs(*last)));
      }
      int32_t* next = candidates.numbers();
      for (int64_t t = scanned; t < until; ++t) {
        const int32_t* const before = next;
        if (exact_quotient(t))
          next = candidates.put(coarse[t], next);
        else
          all = false;
        ends[t - scanned] = next;
        for (int64_t i = before - numbers; i < next - numbers; i += Simd<double>::kLanes) {
          store(&time_of[i], splat(coarse[t]));
          if (residue) store(&rest_of[i], splat(residue[t]));
        }
      }
      known = next - numbers;
      all &= judgement.judge(numbers, time_of.data(), residue ? rest_of.data() : nullptr, known);
    }
    found.grow(count + known);
    if (all) {
      std::copy_n(numbers, known, found.units.data() + count);
      std::copy_n(judgement.phases(), known, found.phases.data() + count);
      count += known;
      for (int64_t t = scanned; t < until; ++t)
        counts[t] = ends[t - scanned] - (t > scanned ? ends[t - scanned - 1] : numbers);
      continue;
    }
    int64_t at = 0;
    for (int64_t t = scanned; t < until; ++t) {
      const int64_t before = count;
      found.grow(count + width);
      int32_t* open_units = found.units.data();
      T* phases = found.phases.data();
      if (gate.all_open) {
        for (int64_t u = 0; u < units; ++u) phase_at[u] = of.phase(row * gate.steps + t, u);
        for (int64_t u = 0; u < units; ++u) phases[count + u] = on_its_side<T>(phase_at[u], gate.ratio_on[u]);
        for (int64_t u = 0; u < units; ++u) open_units[count++] = static_cast<int32_t>(u);
      } else if (!exact_quotient(t)) {
        for (int64_t u = 0; u < units; ++u) {
          const double phase = of.phase(row * gate.steps + t, u);
          open_units[count] = static_cast<int32_t>(u);
          phases[count] = static_cast<T>(phase);
          count += phase < gate.ratio_on[u];
        }
      } else {
        for (; at < ends[t - scanned] - numbers; ++at) {
          open_units[count] = numbers[at];
          phases[count] = judgement.phases()[at];
          count += judgement.open(at);
        }
      }
      counts[t] = count - before;
    }
  }
  found.count = count;
}

}  // namespace

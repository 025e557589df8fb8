// Finding the open events: the phase of every unit at every step, a few lanes at a time.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::Buffer;
using phased_lstm::EventBlock;
using phased_lstm::GateTimes;

// ((t - s) mod tau) / tau by the library's exact fmod, for times so large that the quotient is not exact.
double exact_phase(double coarse, double residue, double period, double shift) {
  double into = std::fmod(coarse, period) - std::fmod(shift, period) + std::fmod(residue, period);
  into -= std::floor(into / period) * period;
  const double fraction = into / period;
  return fraction >= 1.0 || fraction < 0.0 ? 0.0 : fraction;
}

// The same by a rounded quotient, which is exact while the quotient is below 1e15. `shift` is in [0, tau). V: a double
// or a vector of them.
template <typename V>
inline V near_phase(V time, V period, V inverse, V shift) {
  // Adding 1.5 * 2^52 rounds to the nearest integer.
  constexpr double magic = 6755399441055744.0;
  const V quotient = ((time - shift) * inverse + magic) - magic;
  V into = minus_product(time, quotient, period) - shift;
  into = into < 0.0 ? into + period : into;
  return into >= period ? V{} : into / period;
}

// Steps whose candidates are found before their phases are: what was just written in parts is not read at once, as a
// whole vector, which would have to wait.
constexpr int64_t kScannedSteps = 32;

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
      // How far the phase may be off, by the rounding of floats and of doubles. Where that is far there is no limit.
      const Vec<double> margin = (span * inverse + 2.0) * 0x1p-22 + (furthest * inverse + 2.0) * 0x1p-50;
      const auto known = margin < 0.25;
      store_narrow(behind + u, known ? fraction(origin * inverse - load(turns_ + u)) + margin : Vec<double>{});
      const Vec<double> wider = known ? ratio + 2.0 * margin : splat(std::numeric_limits<double>::infinity());
      store_narrow(limit + u, ratio > 0.0 ? wider : ratio);
    }
  }

  // Writes the numbers of the candidates, and returns the end.
  int32_t* put(double time, int32_t* to) {
    const Vec<float> since = splat(static_cast<float>(std::clamp(time - origin_, -kWidestSpan, kWidestSpan)));
    const float *inverse = constants(), *behind = inverse + width_, *limit = behind + width_;
    for (int64_t u = 0; u < width_; u += Simd<float>::kLanes)
      to += put_numbers(to, u, below_bits(fraction(since * load(inverse + u) + load(behind + u)), load(limit + u)));
    return to;
  }

 private:
  // Of times in a float.
  static constexpr double kWidestSpan = 1e30;

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

template <typename T>
void find_events(const GateTimes& gate, int64_t row, int64_t begin, int64_t end, int64_t* counts,
                 EventBlock<T>& found) {
  const int64_t units = gate.units, width = padded<float>(units);
  const double* coarse = gate.coarse + row * gate.steps;
  const double* residue = gate.residue ? gate.residue + row * gate.steps : nullptr;
  Buffer<double> constants(4 * width, 0.0);
  double* inverse = constants.data();
  double* shift = inverse + width;  // reduced to [0, tau)
  double* turns = shift + width;
  double* ratio_on = turns + width;
  double largest_inverse = 0.0, most_open = 0.0;
  for (int64_t u = 0; u < units; ++u) {
    inverse[u] = 1.0 / gate.period[u];
    largest_inverse = std::max(largest_inverse, inverse[u]);
    shift[u] = gate.shift[u];
    if (shift[u] < 0.0 || shift[u] >= gate.period[u]) shift[u] = std::fmod(shift[u], gate.period[u]);
    if (shift[u] < 0.0) shift[u] += gate.period[u];
    turns[u] = shift[u] * inverse[u];
    ratio_on[u] = gate.ratio_on[u];
    most_open += gate.all_open ? 1.0 : gate.ratio_on[u];
  }
#ifdef PHASED_LSTM_COMPRESS
  using V = Vec<double>;
  constexpr int64_t lanes = Simd<double>::kLanes;
  Buffer<double> table(4 * units);
  for (int64_t u = 0; u < units; ++u)
    store_quad(&table[4 * u], Quad<double>{gate.period[u], inverse[u], shift[u], gate.ratio_on[u]});
#endif
  const auto exact_quotient = [&](int64_t t) {
    return (!residue || residue[t] == 0.0) && std::fabs(coarse[t]) * largest_inverse < 1e15;
  };
  Candidates candidates(inverse, turns, ratio_on, units, gate.all_open ? 0 : std::min(kScannedSteps, end - begin));
  const int32_t* ends[kScannedSteps];
  Buffer<double> phase_at(gate.all_open ? units : 0);
  found.begin(static_cast<int64_t>(most_open * static_cast<double>(end - begin)) + width);
  int64_t count = 0;
  for (int64_t scanned = begin; scanned < end; scanned += kScannedSteps) {
    const int64_t until = std::min(end, scanned + kScannedSteps);
    if (!gate.all_open) {
      const auto [first, last] = std::minmax_element(coarse + scanned, coarse + until);
      candidates.move(*first, *last - *first, std::max(std::fabs(*first), std::fabs(*last)));
      int32_t* next = candidates.numbers();
      for (int64_t t = scanned; t < until; ++t) {
        if (exact_quotient(t)) next = candidates.put(coarse[t], next);
        ends[t - scanned] = next;
      }
    }
    const int32_t* of = candidates.numbers();
    for (int64_t t = scanned; t < until; ++t) {
      const int64_t before = count;
      const double time = coarse[t];
      found.grow(count + width);
      int32_t* open_units = found.units.data();
      T* phases = found.phases.data();
      if (!exact_quotient(t)) {
        for (int64_t u = 0; u < units; ++u) {
          const double phase = exact_phase(time, residue ? residue[t] : 0.0, gate.period[u], gate.shift[u]);
          open_units[count] = static_cast<int32_t>(u);
          phases[count] = gate.all_open ? on_its_side<T>(phase, gate.ratio_on[u]) : static_cast<T>(phase);
          count += gate.all_open || phase < gate.ratio_on[u];
        }
      } else if (gate.all_open) {
        for (int64_t u = 0; u < units; ++u) phase_at[u] = near_phase(time, gate.period[u], inverse[u], shift[u]);
        for (int64_t u = 0; u < units; ++u) phases[count + u] = on_its_side<T>(phase_at[u], gate.ratio_on[u]);
        for (int64_t u = 0; u < units; ++u) open_units[count++] = static_cast<int32_t>(u);
      } else {
        const int32_t* const last = ends[t - scanned];
#ifdef PHASED_LSTM_COMPRESS
        for (; of < last; of += std::min<int64_t>(last - of, lanes)) {
          V at[4];
          gather_rows(table.data(), of, at);
          const V phase = near_phase(splat(time), at[0], at[1], at[2]);
          const unsigned open = less_bits(phase, at[3]) & ((1u << std::min<int64_t>(last - of, lanes)) - 1);
          put_chosen(open_units + count, of, open);
          put_chosen(phases + count, phase, open);
          count += __builtin_popcount(open);
        }
#else
        for (; of < last; ++of) {
          open_units[count] = *of;
          const double phase = near_phase(time, gate.period[*of], inverse[*of], shift[*of]);
          phases[count] = static_cast<T>(phase);
          count += phase < ratio_on[*of];
        }
#endif
      }
      counts[t] = count - before;
    }
  }
  found.count = count;
}

}  // namespace

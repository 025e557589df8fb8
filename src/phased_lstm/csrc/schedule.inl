// Finding the open events: the phase of every unit at every step, a few lanes at a time.
#include <algorithm>
#include <vector>

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

// The same by a rounded quotient, which is exact while the quotient is below 1e15. `shift` is in [0, tau).
inline double near_phase(double time, double period, double inverse, double shift) {
  // Adding 1.5 * 2^52 rounds to the nearest integer.
  constexpr double magic = 6755399441055744.0;
  const double quotient = ((time - shift) * inverse + magic) - magic;
  double into = minus_product(time, quotient, period) - shift;
  into = into < 0.0 ? into + period : into;
  return into >= period ? 0.0 : into / period;
}

void find_events(const GateTimes& gate, int64_t row, int64_t begin, int64_t end, int64_t* counts, EventBlock& found) {
  using V = Vec<double>;
  constexpr int64_t lanes = Simd<double>::kLanes;
  const int64_t units = gate.units, width = padded<double>(units);
  const double* coarse = gate.coarse + row * gate.steps;
  const double* residue = gate.residue ? gate.residue + row * gate.steps : nullptr;
  Buffer<double> constants(4 * width, 0.0);
  double* inverse = constants.data();
  double* shift = inverse + width;   // reduced to [0, tau)
  double* behind = shift + width;    // what to add to t / tau for the phase, and the margin
  double* limit = behind + width;    // of the phase and the margin; 0 in the lanes beyond the last unit
  double largest_inverse = 0.0, largest_time = 0.0;
  for (int64_t t = begin; t < end; ++t) largest_time = std::max(largest_time, std::fabs(coarse[t]));
  for (int64_t u = 0; u < units; ++u) {
    inverse[u] = 1.0 / gate.period[u];
    largest_inverse = std::max(largest_inverse, inverse[u]);
    shift[u] = gate.shift[u];
    if (shift[u] < 0.0 || shift[u] >= gate.period[u]) shift[u] = std::fmod(shift[u], gate.period[u]);
    if (shift[u] < 0.0) shift[u] += gate.period[u];
  }
  // How far t / tau may be off: candidates are those whose phase is open to within this.
  const double margin = (largest_time * largest_inverse + 2.0) * 0x1p-50;
  for (int64_t u = 0; u < units; ++u) {
    behind[u] = margin - shift[u] * inverse[u];
    limit[u] = gate.ratio_on[u] + 2.0 * margin;
  }
  // A byte for each vector, read eight at a time.
  std::vector<uint8_t> mask_bytes((width / lanes + 15) / 8 * 8, 0);
  uint8_t* masks = mask_bytes.data();
  size_t count = 0;
  for (int64_t t = begin; t < end; ++t) {
    const size_t before = count;
    if (found.units.size() < count + static_cast<size_t>(units)) {
      found.units.resize(2 * count + static_cast<size_t>(units));
      found.phases.resize(found.units.size());
    }
    const double time = coarse[t], rest = residue ? residue[t] : 0.0;
    const auto put = [&](int64_t u, double phase) {
      found.units[count] = static_cast<int32_t>(u);
      found.phases[count] = phase;
    };
    const bool exact_quotient = rest == 0.0 && std::fabs(time) * largest_inverse < 1e15;
    if (gate.all_open && exact_quotient) {
      double* phases = found.phases.data() + count;
      for (int64_t u = 0; u < units; ++u) phases[u] = near_phase(time, gate.period[u], inverse[u], shift[u]);
      for (int64_t u = 0; u < units; ++u) found.units[count++] = static_cast<int32_t>(u);
    } else if (!exact_quotient) {
      for (int64_t u = 0; u < units; ++u) {
        const double phase = exact_phase(time, rest, gate.period[u], gate.shift[u]);
        put(u, phase);
        count += gate.all_open || phase < gate.ratio_on[u];
      }
    } else {
      const V now = splat(time);
      for (int64_t u = 0; u < width; u += lanes)
        masks[u / lanes] = static_cast<uint8_t>(
            less_bits(fraction(now * load(inverse + u) + load(behind + u)), load(limit + u)));
      for (int64_t first = 0; first < width; first += 8 * lanes) {
        uint64_t bits = 0;
        std::memcpy(&bits, masks + first / lanes, 8);
        for (; bits; bits &= bits - 1) {
          const int bit = __builtin_ctzll(bits);
          const int64_t u = first + (bit >> 3) * lanes + (bit & 7);
          const double phase = near_phase(time, gate.period[u], inverse[u], shift[u]);
          put(u, phase);
          count += phase < gate.ratio_on[u];
        }
      }
    }
    counts[t] = static_cast<int64_t>(count - before);
  }
  found.units.resize(count);
  found.phases.resize(count);
}

}  // namespace

// Finding the open events: the phase of every unit at every step, a few lanes at a time.
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

void find_events(const GateTimes& gate, int64_t row, int64_t begin, int64_t end, int64_t* counts, EventBlock& found) {
  using V = Vec<double>;
  constexpr int64_t lanes = Simd<double>::kLanes;
  const int64_t units = gate.units, width = padded<double>(units);
  Buffer<double> constants(5 * width, 1.0);
  double* period = constants.data();
  double* inverse = period + width;
  double* shift = inverse + width;  // reduced to [0, tau)
  double* open = shift + width;     // r * tau; 0 in the lanes beyond the last unit
  double* place = open + width;     // how far into its cycle each unit is
  // A byte for each vector, read eight at a time.
  std::vector<uint8_t> mask_bytes((width / lanes + 15) / 8 * 8, 0);
  uint8_t* masks = mask_bytes.data();
  double largest_inverse = 0.0;
  for (int64_t u = 0; u < width; ++u) {
    const bool real = u < units;
    period[u] = real ? gate.period[u] : 1.0;
    inverse[u] = 1.0 / period[u];
    double reduced = real ? std::fmod(gate.shift[u], period[u]) : 0.0;
    if (reduced < 0.0) reduced += period[u];
    shift[u] = reduced;
    open[u] = real ? gate.ratio_on[u] * period[u] : 0.0;
    largest_inverse = inverse[u] > largest_inverse ? inverse[u] : largest_inverse;
  }
  const double* coarse = gate.coarse + row * gate.steps;
  const double* residue = gate.residue ? gate.residue + row * gate.steps : nullptr;
  size_t count = 0;
  for (int64_t t = begin; t < end; ++t) {
    const size_t before = count;
    if (found.units.size() < count + static_cast<size_t>(units)) {
      found.units.resize(2 * count + static_cast<size_t>(units));
      found.phases.resize(found.units.size());
    }
    const double time = coarse[t], rest = residue ? residue[t] : 0.0;
    const bool exact_quotient = std::fabs(time) * largest_inverse < 1e15;
    if (rest != 0.0 || !exact_quotient || gate.all_open) {
      for (int64_t u = 0; u < units; ++u) {
        const double fraction = exact_phase(time, rest, gate.period[u], gate.shift[u]);
        if (gate.all_open || fraction < gate.ratio_on[u]) {
          found.units[count] = static_cast<int32_t>(u);
          found.phases[count++] = fraction;
        }
      }
    } else {
      // First all lanes without a branch, then the open ones: whether a unit is open cannot be predicted.
      const V now = splat(time);
      for (int64_t u = 0; u < width; u += lanes) {
        const V tau = load(period + u), s = load(shift + u);
        // Adding 1.5 * 2^52 rounds to the nearest integer.
        const V magic = splat(6755399441055744.0);
        const V quotient = ((now - s) * load(inverse + u) + magic) - magic;
        V into = minus_product(now, quotient, tau) - s;
        into = into < 0.0 ? into + tau : into;
        into = into >= tau ? splat(0.0) : into;
        store(place + u, into);
        masks[u / lanes] = static_cast<uint8_t>(less_bits(into, load(open + u)));
      }
      for (int64_t first = 0; first < width; first += 8 * lanes) {
        uint64_t bits = 0;
        std::memcpy(&bits, masks + first / lanes, 8);
        while (bits) {
          const int bit = __builtin_ctzll(bits);
          bits &= bits - 1;
          const int64_t u = first + (bit >> 3) * lanes + (bit & 7);
          found.units[count] = static_cast<int32_t>(u);
          found.phases[count++] = place[u] / period[u];
        }
      }
    }
    counts[t] = static_cast<int64_t>(count - before);
  }
  found.units.resize(count);
  found.phases.resize(count);
}

}  // namespace

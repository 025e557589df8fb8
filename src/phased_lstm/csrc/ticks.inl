// Finding the open events of a group in the order of its ticks, in which they are visited: unit by unit in each tick, so
// that nothing has to be sorted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "bits.h"
#include "kernels.h"
#include "plan.inl"
#include "schedule.inl"
#include "simd.h"

namespace {

using phased_lstm::Events;
using phased_lstm::kSlotBits;

// Finds the slots in which a unit may be open in a tick: all in which it is, and those in which single precision cannot
// tell.
class GroupCandidates {
 public:
  GroupCandidates(const GateConstants& of, int64_t units)
      : of_(of),
        units_(units),
        blocks_((units + kWords - 1) / kWords),
        behind_(blocks_ * kWords * kLargestGroup, 0.0f),
        inverse_(blocks_ * kWords, 0.0f),
        limit_(blocks_ * kWords, 0.0f),
        open_in_(blocks_ * kLargestGroup),
        open_(units + kFloatLanes) {
    std::transform(of.inverse(), of.inverse() + units, inverse_.begin(), [](double x) { return static_cast<float>(x); });
  }

  // The next times of each slot are within `span` of its `origin`, and none is further from zero than `furthest`.
  void move(const double* origin, double span, double furthest) {
    if (span > kWidestSpan) span = std::numeric_limits<double>::infinity();
    std::copy_n(origin, kLargestGroup, origin_);
    for (int64_t u = 0; u < units_; u += Simd<double>::kLanes) {
      const Vec<double> inverse = load(of_.inverse() + u), turns = load(of_.turns() + u);
      const Vec<double> ratio = load(of_.ratio_on() + u);
      const Vec<double> margin = margin_of(span * inverse, furthest * inverse);
      const auto known = margin < kWidestMargin;
      const Vec<double> wider = known ? ratio + 2.0 * margin : splat(std::numeric_limits<double>::infinity());
      store_narrow(&limit_[u], ratio > 0.0 ? wider : ratio);
      float* behind = &behind_[u / kWords * kWords * kLargestGroup + u % kWords];
      for (int64_t slot = 0; slot < kLargestGroup; ++slot)
        store_narrow(behind + slot * kWords,
                     known ? fraction(origin_[slot] * inverse - turns) + margin : Vec<double>{});
    }
  }

  // Writes the candidates of a tick, unit << kSlotBits | slot, in order, and returns the end. `times`: of all slots.
  int32_t* put(const double* times, Tick tick, int32_t* to) {
    // First the units that are open in any slot, since branches on bits are hard to foresee.
    const int32_t* const open_end = find_units(times, tick);
    for (const int32_t* unit = open_.data(); unit < open_end; ++unit) {
      const unsigned slots = tick & words_with_bit(&open_in_[*unit / kWords * kLargestGroup], *unit % kWords);
      LaneNumbers codes(*unit << kSlotBits);
      to += put_bits(codes, slots, to);
    }
    return to;
  }

 private:
  static_assert(kWords == kLargestGroup, "a word for each slot");

  int32_t* find_units(const double* times, Tick tick) {
    float since[kLargestGroup];
    for (int64_t slot = 0; slot < kLargestGroup; ++slot)
      since[slot] = static_cast<float>(std::clamp(times[slot] - origin_[slot], -kWidestSpan, kWidestSpan));
    int32_t* open_end = open_.data();
    LaneNumbers units;
    for (int64_t block = 0; block < blocks_; ++block) {
      Vec<float> inverse[kWords / kFloatLanes], limit[kWords / kFloatLanes];
      for (int v = 0; v < kWords / kFloatLanes; ++v) {
        inverse[v] = load(&inverse_[block * kWords + v * kFloatLanes]);
        limit[v] = load(&limit_[block * kWords + v * kFloatLanes]);
      }
      unsigned any = 0;
      for (uint32_t rest = tick; rest; rest &= rest - 1) {
        const int slot = __builtin_ctz(rest);
        const float* behind = &behind_[(block * kLargestGroup + slot) * kWords];
        const Vec<float> after = splat(since[slot]);
        unsigned bits = 0;
        for (int v = 0; v < kWords / kFloatLanes; ++v) {
          const Vec<float> phase = fraction(after * inverse[v] + load(behind + v * kFloatLanes));
          bits |= below_bits(phase, limit[v]) << v * kFloatLanes;
        }
        open_in_[block * kLargestGroup + slot] = static_cast<uint16_t>(bits);
        any |= bits;
      }
      open_end += put_bits(units, any, open_end);
    }
    return open_end;
  }

  const GateConstants& of_;
  // Units are looked at in blocks of kWords.
  int64_t units_, blocks_;
  double origin_[kLargestGroup];
  // Of each block and slot, and of each unit in it, what to add for the phase and the margin.
  Buffer<float> behind_;
  // 1 / tau, and the limit of the phase with the margin; 0 beyond the last unit.
  Buffer<float> inverse_, limit_;
  // Of each block and slot, the units that may be open, as bits.
  Buffer<uint16_t> open_in_;
  // The units that may be open in any slot.
  Buffer<int32_t> open_;
};

// The open events of a block of a group's ticks.
template <typename T>
class TickSearch {
 public:
  // `ticks`: how many there are.
  TickSearch(const GateTimes& gate, const Group& group, int64_t ticks, EventBlock<T>& found)
      : gate_(gate),
        steps_(gate, group),
        found_(found),
        of_(gate),
        most_(group.rows * gate.units),
        scan_(scanned_steps(most_)),
        candidates_(of_, gate.units),
        judgement_(gate, of_, scan_ * most_),
        codes_(scan_ * most_ + 2 * kLargestGroup, 0),
        unit_(scan_ * most_ + 2 * kLargestGroup, 0),
        time_(scan_ * most_ + 2 * kLargestGroup, 0.0),
        rest_(gate.residue ? time_.size() : 0, 0.0) {
    found_.count = 0;
    // About half of the sequences take a step in a tick.
    found_.begin(static_cast<int64_t>(of_.open() * static_cast<double>(group.rows * ticks) / 2) + most_);
  }

  // Ticks begin .. end, where a block of the plan begins.
  void search(const Plan& plan, int64_t begin, int64_t end, int64_t* counts) {
    std::copy_n(plan.positions[begin / kTicksInBlock].begin(), kLargestGroup, position_);
    for (int64_t near = begin; near < end; near += kNearSteps) {
      const int64_t until = std::min(end, near + kNearSteps);
      take_times(plan.ticks.data() + near, until - near);
      for (int64_t scanned = near; scanned < until; scanned += scan_) {
        const int64_t ticks = std::min(until - scanned, scan_);
        scan(plan.ticks.data() + scanned, scanned - near, ticks, counts + scanned);
      }
    }
  }

 private:
  // The next times of the slots. Who waits in a tick has his last time there, or 0.
  void take_times(const Tick* ticks, int64_t count) {
    alignas(64) double low[kLargestGroup] = {}, high[kLargestGroup] = {};
    Tick seen = 0;
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(i ? times_[i - 1] : low, kLargestGroup, times_[i]);
      exact_[i] = true;
      for (uint32_t rest = ticks[i]; rest; rest &= rest - 1) {
        const int slot = __builtin_ctz(rest);
        const int64_t place = steps_.place(slot, position_[slot]++);
        const double time = gate_.coarse[place];
        times_[i][slot] = time;
        if (gate_.residue) rests_[i][slot] = gate_.residue[place];
        places_[i][slot] = place;
        exact_[i] &= of_.exact_quotient(place);
        const bool first = !(seen >> slot & 1);
        low[slot] = first ? time : std::min(low[slot], time);
        high[slot] = first ? time : std::max(high[slot], time);
      }
      seen |= ticks[i];
    }
    double span = 0.0, furthest = 0.0;
    for (int64_t slot = 0; slot < kLargestGroup; ++slot) {
      span = std::max(span, high[slot] - low[slot]);
      furthest = std::max(furthest, std::max(std::fabs(low[slot]), std::fabs(high[slot])));
    }
    candidates_.move(low, span, furthest);
  }

  // Ticks `first` .. first + count of those whose times are known.
  void scan(const Tick* ticks, int64_t first, int64_t count, int64_t* counts) {
    int64_t known = 0;
    bool all = true;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t before = known;
      if (exact_[first + i])
        known = candidates_.put(times_[first + i], ticks[i], codes_.data() + before) - codes_.data();
      else
        all = false;
      ends_[i] = known;
      // Whole vectors: what is behind the last candidate is of some unit and slot, too.
      for (int64_t e = before; e < known; e += kFloatLanes) {
        const Numbers codes = load_first(&codes_[e], kFloatLanes);
        store(&unit_[e], codes >> kSlotBits);
        const Numbers slots = codes & static_cast<int32_t>(kLargestGroup - 1);
        store_chosen(&time_[e], times_[first + i], slots);
        if (gate_.residue) store_chosen(&rest_[e], rests_[first + i], slots);
      }
    }
    all &= judgement_.judge(unit_.data(), time_.data(), gate_.residue ? rest_.data() : nullptr, known);
    if (all) {
      found_.grow(found_.count + known);
      std::copy_n(codes_.data(), known, found_.units.data() + found_.count);
      std::copy_n(judgement_.phases(), known, found_.phases.data() + found_.count);
      found_.count += known;
      for (int64_t i = 0; i < count; ++i) counts[i] = ends_[i] - (i ? ends_[i - 1] : 0);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t before = found_.count;
      found_.grow(before + most_);
      if (exact_[first + i])
        keep_open(i ? ends_[i - 1] : 0, ends_[i]);
      else
        find_exactly(ticks[i], places_[first + i]);
      counts[i] = found_.count - before;
    }
  }

  // Those of candidates from .. to that are open.
  void keep_open(int64_t from, int64_t to) {
    for (int64_t at = from; at < to; ++at) {
      found_.units[found_.count] = codes_[at];
      found_.phases[found_.count] = judgement_.phases()[at];
      found_.count += judgement_.open(at);
    }
  }

  void find_exactly(Tick tick, const int64_t* places) {
    for (int64_t u = 0; u < gate_.units; ++u)
      for (uint32_t rest = tick; rest; rest &= rest - 1) {
        const int slot = __builtin_ctz(rest);
        const double phase = of_.phase(places[slot], u);
        if (phase >= gate_.ratio_on[u]) continue;
        found_.units[found_.count] = static_cast<int32_t>(u << kSlotBits | slot);
        found_.phases[found_.count++] = static_cast<T>(phase);
      }
  }

  const GateTimes& gate_;
  GroupSteps steps_;
  EventBlock<T>& found_;
  GateConstants of_;
  // Candidates of a tick at most, and ticks whose candidates are found before their phases are.
  int64_t most_, scan_;
  GroupCandidates candidates_;
  Judgement<T> judgement_;
  // Of the candidates. There is room for a vector behind the last.
  Buffer<int32_t> codes_, unit_;
  Buffer<double> time_, rest_;
  int64_t position_[kLargestGroup], ends_[kNearSteps];
  // Of the next ticks and of each slot: its time, and for those that take a step its place in (N, L); and whether a
  // rounded quotient serves for all of them.
  alignas(64) double times_[kNearSteps][kLargestGroup];
  // What those that take a step lack of their times, if any do.
  alignas(64) double rests_[kNearSteps][kLargestGroup] = {};
  int64_t places_[kNearSteps][kLargestGroup];
  bool exact_[kNearSteps];
};

template <typename T>
void find_in_ticks(const GateTimes& gate, const Group& group, const Plan& plan, int64_t block, int64_t* counts,
                   EventBlock<T>& found) {
  const int64_t begin = block * kTicksInBlock, end = std::min<int64_t>(plan.ticks.size(), begin + kTicksInBlock);
  TickSearch<T>(gate, group, end - begin, found).search(plan, begin, end, counts);
}

// The events of all ticks of a group, from those of its sequences.
template <typename T>
void merge_in_ticks(const GateTimes& gate, const Group& group, const Plan& plan, const Events<T>& by_row,
                    int64_t* counts, EventBlock<T>& found) {
  const GroupSteps steps(gate, group);
  const int64_t width = (gate.units + kWords - 1) / kWords * kWords;
  // Of each unit, the slots in which it is open; and its phases there.
  Buffer<uint16_t> slots(width, 0);
  Buffer<T> phases(width * kLargestGroup);
  Buffer<int32_t> open(width + kFloatLanes);
  int64_t position[kLargestGroup] = {};
  found.count = 0;
  for (const Tick tick : plan.ticks) {
    int64_t count = 0;
    for (uint32_t rest = tick; rest; rest &= rest - 1) {
      const int slot = __builtin_ctz(rest);
      // A row of offsets has one more than its steps.
      const int64_t* offsets = by_row.offsets + steps.place(slot, position[slot]++) + group.first + slot;
      for (int64_t e = offsets[0]; e < offsets[1]; ++e) {
        const int32_t u = by_row.units[e];
        slots[u] |= static_cast<uint16_t>(1u << slot);
        phases[(u << kSlotBits) + slot] = by_row.phases[e];
      }
      count += offsets[1] - offsets[0];
    }
    *counts++ = count;
    if (!count) continue;
    // First the units that are open in any slot, since branches on bits are hard to foresee.
    int32_t* open_end = open.data();
    LaneNumbers units;
    for (int64_t from = 0; from < width; from += kWords)
      open_end += put_bits(units, nonzero_bits(&slots[from]), open_end);
    found.grow(found.count + count + kLargestGroup);
    int32_t* const codes = found.units.data() + found.count;
    int32_t* to = codes;
    for (const int32_t* unit = open.data(); unit < open_end; ++unit) {
      LaneNumbers numbers(*unit << kSlotBits);
      to += put_bits(numbers, slots[*unit], to);
      slots[*unit] = 0;
    }
    for (int64_t e = 0; e < count; ++e) found.phases[found.count + e] = phases[codes[e]];
    found.count += count;
  }
}

}  // namespace

// Times, the time gate, and the open events that come of them, from torch's tensors. For the files that include it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "instruction_set.h"
#include "kernels.h"
#include "kept.h"
#include "tensors.h"

namespace {

using phased_lstm::Buffer;
using phased_lstm::EventBlock;
using phased_lstm::EventMemory;
using phased_lstm::Events;
using phased_lstm::GateTimes;
using phased_lstm::Group;
using phased_lstm::group_rows;
using phased_lstm::kept_events;
using phased_lstm::kKeptBytes;
using phased_lstm::kLargestGroup;
using phased_lstm::kSlotBits;
using phased_lstm::kTicksInBlock;
using phased_lstm::Plan;
using phased_lstm::TakenMemory;
using phased_lstm::Tick;

// Steps of a row whose events are looked for in one go.
constexpr int64_t kStepsInBlock = 8192;

// Whatever comes in through an operator's door is copied before it is checked, here and below, so that what was checked is
// what is used: another thread may write to a tensor meanwhile.

// Times as doubles, and for integers what doubles cannot hold of them.
struct Times {
  int64_t rows, steps;
  const double* coarse;
  const double* residue = nullptr;
  Times(const Times&) = delete;
  explicit Times(double time) : rows(1), steps(1), coarse(&alone_), alone_(time) {
    STD_TORCH_CHECK(std::isfinite(time), "times should be finite");
  }
  explicit Times(const Tensor& times) : rows(times.dim() == 2 ? times.size(0) : 1), steps(times.size(times.dim() - 1)) {
    STD_TORCH_CHECK(times.is_cpu() && times.is_contiguous() && (times.dim() == 1 || times.dim() == 2),
                    "times should be (L,) or (N, L), contiguous, on the CPU");
    switch (times.scalar_type()) {
      case ScalarType::Double: convert<double>(times); break;
      case ScalarType::Float: convert<float>(times); break;
      case ScalarType::Int: convert<int32_t>(times); break;
      case ScalarType::Long: convert(whole(times)); break;
      default: STD_TORCH_CHECK(false, "times should be int32, int64, float32 or float64");
    }
    bool finite = true;
    for (int64_t j = 0; j < rows * steps; ++j) finite &= std::isfinite(coarse[j]);
    STD_TORCH_CHECK(finite, "times should be finite");
  }

 private:
  double alone_ = 0.0;
  Buffer<double> converted_, rest_;
  template <typename From>
  void convert(const Tensor& times) {
    const auto* from = static_cast<const From*>(times.const_data_ptr());
    converted_.assign(from, from + rows * steps);
    coarse = converted_.data();
  }
  Buffer<int64_t> whole(const Tensor& times) const {
    const auto* from = static_cast<const int64_t*>(times.const_data_ptr());
    return Buffer<int64_t>(from, from + rows * steps);
  }
  void convert(const Buffer<int64_t>& from) {
    converted_.assign(from.begin(), from.end());
    coarse = converted_.data();
    bool exact = true;
    for (int64_t j = 0; j < rows * steps; ++j) {
      STD_TORCH_CHECK(std::fabs(coarse[j]) < 0x1p63, "integer times should be within 2**62 of zero");
      exact &= static_cast<int64_t>(coarse[j]) == from[j];
    }
    if (exact) return;
    rest_.resize(rows * steps);
    for (int64_t j = 0; j < rows * steps; ++j)
      rest_[j] = static_cast<double>(from[j] - static_cast<int64_t>(coarse[j]));
    residue = rest_.data();
  }
};

// The time gate's values.
struct GateOf {
  const double *period, *shift, *ratio_on;
  GateOf(const GateOf&) = delete;
  GateOf(const Tensor& period_, const Tensor& shift_, const Tensor& ratio_on_, int64_t units) : values_(3 * units) {
    double* to = values_.data();
    period = to, shift = to + units, ratio_on = to + 2 * units;
    to = std::copy_n(pointer<double>(period_, "period", {units}), units, to);
    to = std::copy_n(pointer<double>(shift_, "shift", {units}), units, to);
    std::copy_n(pointer<double>(ratio_on_, "ratio_on", {units}), units, to);
    for (int64_t u = 0; u < units; ++u)
      STD_TORCH_CHECK(period[u] > 0.0 && std::isfinite(period[u]) && std::isfinite(shift[u]) && ratio_on[u] > 0.0 &&
                          ratio_on[u] <= 1.0,
                      "unit ", u, ": period should be positive and finite, shift finite, ratio_on in (0, 1]; got ",
                      period[u], ", ", shift[u], " and ", ratio_on[u]);
  }

 private:
  Buffer<double> values_;
};

inline GateTimes gate_times(const Times& times, const GateOf& of, int64_t hidden, bool all_open) {
  return {times.coarse, times.residue, times.rows, times.steps, hidden, of.period, of.shift, of.ratio_on, all_open};
}

// Groups of sequences with times of their own, and the ticks in which each advances.
class Plans {
 public:
  // `lengths`: from 0 to L, or null.
  Plans(const GateTimes& gate, const int64_t* lengths, bool reverse)
      : batch_(gate.rows),
        size_(group_rows(batch_)),
        lengths_(lengths),
        reverse_(reverse),
        plans_((batch_ + size_ - 1) / size_) {
    spread(count(), [&](int64_t number) { table<float>().plan(gate, group(number), plans_[number]); });
    for (const Plan& plan : plans_) most_ = std::max<int64_t>(most_, plan.ticks.size());
  }

  int64_t count() const { return static_cast<int64_t>(plans_.size()); }
  Group group(int64_t number) const {
    return {number * size_, std::min(size_, batch_ - number * size_), lengths_, reverse_};
  }
  const Plan& operator[](int64_t number) const { return plans_[number]; }
  const Plan* all() const { return plans_.data(); }
  // Ticks of the group that has most.
  int64_t most() const { return most_; }

 private:
  int64_t batch_, size_;
  const int64_t* lengths_;
  bool reverse_;
  std::vector<Plan> plans_;
  int64_t most_ = 0;
};

// The open events of every row of times, or of groups; phases are of type T. They lie in tensors when they are to be
// returned, else in memory that is kept from call to call, and taken for as long.
template <typename T>
class FoundEvents {
 public:
  MaybeTensor offsets, units, phases;

  // Of groups, from the events of each sequence.
  FoundEvents(const GateTimes& gate, const Plans& plans, const Events<T>& by_row, EventMemory<T>& memory)
      : taken_(memory), memory_(*taken_) {
    std::vector<Block> blocks;
    for (int64_t number = 0; number < plans.count(); ++number) blocks.push_back({number, 0});
    gather(nullptr, plans.count(), plans.most(), blocks, [&](const Block& block, int64_t* counts, EventBlock<T>& found) {
      table<T>().merge_in_ticks(gate, plans.group(block.row), plans[block.row], by_row, counts, found);
    });
    events.plans = plans.all();
    events.ticks = plans.most();
  }
  // `like`: a tensor on the device, or null. `plans`: of the groups, if events are to be in the order of their ticks.
  FoundEvents(const Tensor* like, const GateTimes& gate, const Plans* plans = nullptr)
      : taken_(kept_events<T>()), memory_(*taken_) {
    plans ? find_in_ticks(like, gate, *plans) : find_by_row(like, gate);
  }
  FoundEvents(const FoundEvents&) = delete;

  Events<T> events;

 private:
  TakenMemory<T> taken_;
  EventMemory<T>& memory_;

  // A row of times or a group, of so many steps or ticks, some of which are searched at a time.
  struct Block {
    int64_t row, number;
  };

  void find_by_row(const Tensor* like, const GateTimes& gate) {
    const int64_t steps = gate.steps;
    std::vector<Block> blocks;
    for (int64_t row = 0; row < gate.rows; ++row)
      for (int64_t number = 0; number * kStepsInBlock < steps; ++number) blocks.push_back({row, number});
    gather(like, gate.rows, steps, blocks, [&](const Block& block, int64_t* counts, EventBlock<T>& found) {
      const int64_t first = block.number * kStepsInBlock;
      table<T>().find_events(gate, block.row, first, std::min(steps, first + kStepsInBlock), counts, found);
    });
    events.shared = gate.rows == 1;
  }

  void find_in_ticks(const Tensor* like, const GateTimes& gate, const Plans& plans) {
    std::vector<Block> blocks;
    for (int64_t number = 0; number < plans.count(); ++number)
      for (int64_t block = 0; block * kTicksInBlock < static_cast<int64_t>(plans[number].ticks.size()); ++block)
        blocks.push_back({number, block});
    gather(like, plans.count(), plans.most(), blocks, [&](const Block& block, int64_t* counts, EventBlock<T>& found) {
      table<T>().find_in_ticks(gate, plans.group(block.row), plans[block.row], block.number, counts, found);
    });
    events.plans = plans.all();
    events.ticks = plans.most();
  }

  // Calls find(block, counts, found) for all blocks, whose events come in their order, and brings these together.
  template <typename F>
  void gather(const Tensor* like, int64_t rows, int64_t steps, const std::vector<Block>& blocks, const F& find) {
    const auto count = static_cast<int64_t>(blocks.size());
    std::vector<EventBlock<T>>& found = memory_.blocks;
    if (static_cast<int64_t>(found.size()) < count) found.resize(count);
    int64_t* counts = room<int64_t>(like, {rows, steps + 1}, offsets, memory_.offsets);
    // Groups that have fewer ticks than others have none of the events of those.
    std::fill_n(counts, rows * (steps + 1), 0);
    spread(count, [&](int64_t i) { find(blocks[i], counts + blocks[i].row * (steps + 1) + 1, found[i]); });
    // counts[t + 1] of a row holds the events of step t; running sums make them offsets into all events.
    int64_t total = 0;
    for (int64_t row = 0; row < rows; ++row) {
      int64_t* of_row = counts + row * (steps + 1);
      of_row[0] = total;
      for (int64_t t = 1; t <= steps; ++t) of_row[t] = total += of_row[t];
    }
    int32_t* unit_data = room<int32_t>(like, {total}, units, memory_.units);
    T* phase_data = room<T>(like, {total}, phases, memory_.phases);
    std::vector<int64_t> starts(count);
    for (int64_t i = 1; i < count; ++i) starts[i] = starts[i - 1] + found[i - 1].count;
    spread(count, [&](int64_t i) {
      std::copy_n(found[i].units.data(), found[i].count, unit_data + starts[i]);
      std::copy_n(found[i].phases.data(), found[i].count, phase_data + starts[i]);
    });
    if (memory_.bytes() > kKeptBytes) found = {};
    events = {counts, unit_data, phase_data, total, false};
  }

  template <typename V>
  static V* room(const Tensor* like, std::vector<int64_t> shape, MaybeTensor& tensor, Buffer<V>& own) {
    if (like) return output<V>(tensor.emplace(blank<V>(*like, shape)));
    int64_t size = 1;
    for (const int64_t part : shape) size *= part;
    make_room(own, size);
    return own.data();
  }
};

// A tensor's numbers, copied.
template <typename V>
const V* copied(Buffer<V>& to, const Tensor& from, int64_t size) {
  make_room(to, size);
  std::copy_n(static_cast<const V*>(from.const_data_ptr()), size, to.data());
  return to.data();
}

// Events that came in through the operator's door are checked before they index anything, in a copy in `memory`.
template <typename T>
Events<T> checked_events(EventMemory<T>& memory, const Tensor& offsets, const Tensor& event_units, const Tensor& phases,
                         int64_t batch, int64_t steps, int64_t hidden) {
  STD_TORCH_CHECK(offsets.dim() == 2 && event_units.dim() == 1, "events should be offsets (R, L + 1), units (E,)");
  const int64_t rows = offsets.size(0), count = event_units.size(0);
  STD_TORCH_CHECK(rows == 1 || rows == batch, "events should have 1 row or one for each sequence");
  check(offsets, "offsets", ScalarType::Long, {rows, steps + 1});
  check(event_units, "units", ScalarType::Int, {count});
  const int64_t* starts = copied(memory.offsets, offsets, rows * (steps + 1));
  STD_TORCH_CHECK(rows == 0 ? count == 0 : starts[0] == 0 && starts[rows * (steps + 1) - 1] == count,
                  "offsets should span all events");
  const auto* given = static_cast<const int32_t*>(event_units.const_data_ptr());
  make_room(memory.units, count);
  int32_t* const units = memory.units.data();
  const auto most = static_cast<uint32_t>(std::min<int64_t>(hidden, std::numeric_limits<int32_t>::max()));
  std::atomic<bool> rising{true}, inside{true}, in_order{true};
  for (int64_t row = 1; row < rows; ++row)
    if (starts[row * (steps + 1)] != starts[row * (steps + 1) - 1]) rising = false;
  spread(rows, [&](int64_t row) {
    const int64_t *of_row = starts + row * (steps + 1), first = of_row[0], last = of_row[steps];
    bool good = first >= 0 && first <= last && last <= count;
    // Unsigned, as whatever was handed in must not overflow; what falls is then far above.
    for (int64_t t = 0; t < steps; ++t)
      good &= static_cast<uint64_t>(of_row[t + 1]) - static_cast<uint64_t>(of_row[t]) <= static_cast<uint64_t>(hidden);
    if (!good) {
      rising = false;
      return;
    }
    std::copy(given + first, given + last, units + first);
    for (int64_t e = first; e < last; ++e) good &= static_cast<uint32_t>(units[e]) < most;
    if (!good) inside = false;
    // Within a step each unit comes once, in order: a state is written once for each event. So where units do not rise,
    // a step begins.
    int64_t falls = 0, falls_between = 0;
    for (int64_t e = first + 1; e < last; ++e) falls += units[e - 1] >= units[e];
    for (int64_t t = 1; t < steps; ++t) {
      const int64_t e = of_row[t];
      falls_between += e > of_row[t - 1] && e < last && units[e - 1] >= units[e];
    }
    if (falls != falls_between) in_order = false;
  });
  STD_TORCH_CHECK(rising, "offsets should rise by at most H a step");
  STD_TORCH_CHECK(inside, "units should be from 0 to H - 1");
  STD_TORCH_CHECK(in_order, "units should rise within a step");
  return {starts, units, pointer<T>(phases, "phases", {count}), count, rows == 1};
}

// The same of the events of groups.
template <typename T>
Events<T> checked_events(EventMemory<T>& memory, const Tensor& offsets, const Tensor& event_units, const Tensor& phases,
                         int64_t hidden, const Plans& plans) {
  STD_TORCH_CHECK(event_units.dim() == 1, "events should be offsets (R, S + 1), units (E,)");
  const int64_t rows = plans.count(), ticks = plans.most(), count = event_units.size(0);
  STD_TORCH_CHECK(offsets.dim() == 2 && (offsets.size(0) || !rows), "no events were kept on the way forward");
  const char* const changed =
      "the events are not those of these times; were times changed between forward and backward?";
  STD_TORCH_CHECK(offsets.dim() == 2 && offsets.size(0) == rows && offsets.size(1) == ticks + 1, changed);
  check(offsets, "offsets", ScalarType::Long, {rows, ticks + 1});
  check(event_units, "units", ScalarType::Int, {count});
  const int64_t* starts = copied(memory.offsets, offsets, rows * (ticks + 1));
  STD_TORCH_CHECK(starts[0] == 0 && starts[rows * (ticks + 1) - 1] == count, "offsets should span all events");
  const auto* given = static_cast<const int32_t*>(event_units.const_data_ptr());
  make_room(memory.units, count);
  int32_t* const codes = memory.units.data();
  const int64_t most = hidden << kSlotBits;
  std::atomic<bool> rising{true}, inside{true}, in_order{true};
  for (int64_t row = 1; row < rows; ++row)
    if (starts[row * (ticks + 1)] != starts[row * (ticks + 1) - 1]) rising = false;
  spread(rows, [&](int64_t row) {
    const int64_t* of_row = starts + row * (ticks + 1);
    const auto own = static_cast<int64_t>(plans[row].ticks.size());
    bool good = of_row[0] >= 0 && of_row[0] <= of_row[own] && of_row[own] == of_row[ticks] && of_row[ticks] <= count;
    // Each is between the row's ends once all rise by little. Unsigned, as whatever was handed in must not overflow.
    for (int64_t tick = 0; tick < ticks; ++tick)
      good &= static_cast<uint64_t>(of_row[tick + 1]) - static_cast<uint64_t>(of_row[tick]) <=
              static_cast<uint64_t>(kLargestGroup * hidden);
    if (!good) {
      rising = false;
      return;
    }
    std::copy(given + of_row[0], given + of_row[ticks], codes + of_row[0]);
    bool known = true, sorted = true;
    for (int64_t tick = 0; tick < own; ++tick) {
      const uint32_t slots = plans[row].ticks[tick];
      int64_t before = -1;
      for (int64_t e = of_row[tick]; e < of_row[tick + 1]; ++e) {
        const int64_t code = codes[e];
        known &= code < most && (slots >> (code & (kLargestGroup - 1)) & 1);
        sorted &= code > before;
        before = code;
      }
    }
    if (!known) inside = false;
    if (!sorted) in_order = false;
  });
  STD_TORCH_CHECK(rising, "offsets should rise by at most the events that a tick can have");
  STD_TORCH_CHECK(in_order, "events should rise within a tick");
  STD_TORCH_CHECK(inside, changed);
  Events<T> events{starts, codes, pointer<T>(phases, "phases", {count}), count, false};
  events.plans = plans.all();
  events.ticks = ticks;
  return events;
}

}  // namespace

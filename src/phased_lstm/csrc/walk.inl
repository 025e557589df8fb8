// The order in which the events of a group of sequences are visited.
//
// Sequences are independent, so those of a group advance together, in ticks: every running sequence takes one step or
// waits. Units that are open in several sequences in the same tick share one read of their weights. Units open by the
// clock, not by the number of the step; so sequences advance to about the same time, and one that is ahead waits.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "bits.h"
#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::Buffer;
using phased_lstm::Layer;

// Sequences in a group, at most; a tick is a bit for each.
constexpr int kSlotBits = 4;
constexpr int64_t kLargestGroup = 1 << kSlotBits;
using Tick = uint32_t;

// Events that a sequence asks for before it comes to them.
constexpr int64_t kAhead = 16;

// Sequences that share a read of weights, as many as the registers hold.
constexpr int kRowBlock = kFloatLanes == 16 ? 4 : kFloatLanes == 8 ? 3 : 2;

// A function of the batch alone, as every bit of the result is.
inline int64_t group_rows(int64_t batch) { return std::max<int64_t>(1, std::min(kLargestGroup, batch / 2)); }

template <typename T>
inline int64_t valid_steps(const Layer<T>& layer, int64_t row) {
  return layer.lengths ? layer.lengths[row] : layer.steps;
}

template <typename T>
inline const int64_t* offsets_of(const Layer<T>& layer, int64_t row) {
  return layer.events.offsets + (layer.events.shared ? 0 : row * (layer.steps + 1));
}

// Events of all sequences before `row`, padding left out.
template <typename T>
inline int64_t events_before(const Layer<T>& layer, int64_t row) {
  if (!layer.lengths && layer.events.shared) return row * layer.events.count;
  if (!layer.lengths) return row < layer.batch ? offsets_of(layer, row)[0] : layer.events.count;
  int64_t count = 0;
  for (int64_t n = 0; n < row; ++n) count += offsets_of(layer, n)[layer.lengths[n]] - offsets_of(layer, n)[0];
  return count;
}

// Writes numbers[i] << shift | low, `count` of them; whole vectors are written.
inline void put_codes(const int32_t* numbers, int64_t count, int shift, uint32_t low, uint32_t* codes) {
  typedef uint32_t Codes __attribute__((vector_size(kFloatLanes * 4)));
  for (int64_t i = 0; i < count; i += kFloatLanes) {
    const int64_t here = std::min<int64_t>(kFloatLanes, count - i);
    const Codes all = ((Codes)load_first(reinterpret_cast<const float*>(numbers + i), here) << shift) | low;
    std::memcpy(codes + i, &all, sizeof all);
  }
}

// The walk over the events of one group of sequences. Slots number the group's sequences.
template <typename T>
class Walk {
 public:
  explicit Walk(const Layer<T>& layer)
      : layer_(layer),
        most_blocks_(layer.units * ((group_rows(layer.batch) + kRowBlock - 1) / kRowBlock) + kLargestGroup / kRowBlock),
        slots_((layer.units + kWords - 1) / kWords * kWords),
        open_(slots_.size() + kFloatLanes),
        event_(group_rows(layer.batch) * layer.units + kLargestGroup),
        listed_(event_.size()),
        number_(event_.size()),
        place_(event_.size()),
        blocks_((kRowBlock + 1) * most_blocks_),
        phase_(event_.size(), T(0)),
        ratio_(event_.size(), T(1)) {}

  // Takes sequences first .. first + rows, all before their first step, or behind their last one.
  void begin(int64_t first, int64_t rows, bool at_end) {
    first_ = first;
    rows_ = rows;
    total_ = 0;
    for (int64_t slot = 0; slot < rows; ++slot) {
      valid_[slot] = valid_steps(layer_, first + slot);
      position_[slot] = at_end ? valid_[slot] : 0;
      const int64_t* offsets = offsets_of(layer_, first_ + slot);
      total_ += offsets[valid_[slot]] - offsets[0];
    }
    plan();
  }

  const std::vector<Tick>& ticks() const { return ticks_; }
  // Events of the whole walk, and of all walks before it.
  int64_t total() const { return total_; }
  int64_t start() const { return events_before(layer_, first_); }

  // Steps forwards with the sequences of a tick; their events are then events 0 .. count(), by unit, and for equal
  // units by slot.
  void advance(Tick tick) {
    move(tick, true);
    merge(tick);
  }

  // Steps back with the sequences of a tick. What its events are is then to be taken from the tape.
  void retreat(Tick tick) { move(tick, false); }

  // Writes the events' numbers and phases to the tape, column by column; returns the end.
  T* keep(T* tape) const {
    for (int64_t e = 0; e < count_; ++e) {
      Code code = event_[e];
      std::memcpy(tape + e, &code, sizeof code);
    }
    return std::copy_n(phase_.data(), count_, tape + count_);
  }

  // Reads back what `keep` wrote in this tick. The tape came in through the operator's door, and times may have been
  // overwritten since: every slot must have the events that its step has.
  void recall(const T* tape) {
    int64_t seen[kLargestGroup] = {};
    bool known = true;
    for (int64_t e = 0; e < count_; ++e) {
      Code code;
      std::memcpy(&code, tape + e, sizeof code);
      event_[e] = static_cast<uint32_t>(code);
      known &= unit(e) < layer_.units;
      ++seen[slot(e)];
    }
    for (int slot = 0; slot < kLargestGroup; ++slot)
      known &= seen[slot] == (tick_ >> slot & 1 ? found_[slot] : 0);
    if (!known)
      throw std::invalid_argument(
          "the tape is not that of these events; were times changed between forward and backward?");
    std::copy_n(tape + count_, count_, phase_.data());
    for (int64_t e = 0; e < count_; ++e) ratio_[e] = layer_.ratio_on[unit(e)];
  }

  int64_t count() const { return count_; }
  int64_t unit(int64_t e) const { return event_[e] >> kSlotBits; }
  int64_t slot(int64_t e) const { return event_[e] & (kLargestGroup - 1); }
  // Where the events' units are in an array of (slots, width); until the next call.
  const int32_t* places(int64_t width) {
    for (int64_t e = 0; e < count_; ++e)
      place_[e] = static_cast<int32_t>(event_[e] & (kLargestGroup - 1)) * static_cast<int32_t>(width) +
                  static_cast<int32_t>(event_[e] >> kSlotBits);
    return place_.data();
  }
  // Columns of phases and ratios, with room for a whole vector.
  const T* phases() const { return phase_.data(); }
  const T* ratios() const { return ratio_.data(); }
  // Calls f(size, e, next) for blocks of events e, e + 1 .. of one unit, `size` of them, a constant, in the order of the
  // units. The next block begins with event `next`; behind the last block that is an event of it.
  template <typename F>
  void for_blocks(const F& f) const {
    for (int64_t e = 0; e < count_;) {
      const int n = alike(e, kRowBlock);
      with_number<kRowBlock>(n, [&](auto size) { f(size, e, std::min(e + n, count_ - 1)); });
      e += n;
    }
  }
  // After `advance`: calls f(size, e), blocks of one size after those of another: a branch on the size, block by block,
  // is hard to foresee. But a unit may come twice.
  template <int size = kRowBlock, typename F>
  void for_blocks_by_size(const F& f) const {
    const int32_t* begins = blocks_.data() + size * most_blocks_;
    for (int64_t i = 0; i < blocks_of_[size]; ++i) f(std::integral_constant<int, size>(), begins[i]);
    if constexpr (size > 1) for_blocks_by_size<size - 1>(f);
  }

  // Of a slot that the present tick moves: its step, whether it has events there, its place in (N, L).
  int64_t step(int64_t slot) const { return step_[slot]; }
  bool has_events(int64_t slot) const { return found_[slot] > 0; }
  int64_t place(int64_t slot) const { return (first_ + slot) * layer_.steps + step_[slot]; }

 private:
  // Events from e on, up to `most`, that are of the same unit.
  int alike(int64_t e, int most) const {
    int n = 1;
    while (n < most && e + n < count_ && unit(e + n) == unit(e)) ++n;
    return n;
  }

  double time(int64_t slot, int64_t position) const {
    const double time = layer_.times[(first_ + slot) * layer_.steps +
                                     (layer_.reverse ? valid_[slot] - 1 - position : position)];
    return layer_.reverse ? -time : time;
  }

  void plan() {
    const int64_t longest = *std::max_element(valid_, valid_ + rows_);
    ticks_.clear();
    if (rows_ > 1 && !layer_.events.shared && plan_by_clock(3 * longest)) return;
    ticks_.clear();
    for (int64_t step = 0; step < longest; ++step) {
      Tick tick = 0;
      for (int64_t slot = 0; slot < rows_; ++slot) tick |= static_cast<Tick>(step < valid_[slot]) << slot;
      ticks_.push_back(tick);
    }
  }

  // Sequences whose next time is within a mean interval of the earliest advance. Returns false when that takes more
  // than `most` ticks: the sequences are not in one span of time, or not in order.
  bool plan_by_clock(int64_t most) {
    constexpr double never = std::numeric_limits<double>::infinity();
    constexpr int lanes = Simd<double>::kLanes;
    double interval = 0.0;
    alignas(64) double next[kLargestGroup];
    std::fill_n(next, kLargestGroup, never);
    int64_t done[kLargestGroup] = {};
    Tick running = 0;
    for (int64_t slot = 0; slot < rows_; ++slot) {
      if (!valid_[slot]) continue;
      running |= Tick(1) << slot;
      next[slot] = time(slot, 0);
      const double span = time(slot, valid_[slot] - 1) - next[slot];
      if (valid_[slot] > 1) interval = std::max(interval, span / static_cast<double>(valid_[slot] - 1));
    }
    while (running) {
      if (static_cast<int64_t>(ticks_.size()) == most) return false;
      double least[4] = {next[0], next[1], next[2], next[3]};
      for (int64_t slot = 4; slot < kLargestGroup; ++slot) least[slot % 4] = std::min(least[slot % 4], next[slot]);
      const double limit = std::min(std::min(least[0], least[1]), std::min(least[2], least[3])) + interval;
      Tick later = 0;
      for (int slot = 0; slot < kLargestGroup; slot += lanes)
        later |= Tick(less_bits(splat(limit), load(next + slot))) << slot;
      const Tick tick = running & ~later;
      for (Tick rest = tick; rest; rest &= rest - 1) {
        const int slot = __builtin_ctz(rest);
        const bool more = ++done[slot] < valid_[slot];
        next[slot] = more ? time(slot, done[slot]) : never;
        running &= ~(Tick(!more) << slot);
      }
      ticks_.push_back(tick);
    }
    return true;
  }

  void move(Tick tick, bool forwards) {
    tick_ = tick;
    count_ = 0;
    for (Tick rest = tick; rest; rest &= rest - 1) {
      const int slot = __builtin_ctz(rest);
      const int64_t position = forwards ? position_[slot]++ : --position_[slot];
      const int64_t t = layer_.reverse ? valid_[slot] - 1 - position : position;
      const int64_t* offsets = offsets_of(layer_, first_ + slot);
      step_[slot] = t;
      first_event_[slot] = offsets[t];
      found_[slot] = offsets[t + 1] - offsets[t];
      count_ += found_[slot];
      if (!forwards) continue;
      // As many streams of events as there are sequences are more than a processor foresees.
      const int64_t next = layer_.reverse ? first_event_[slot] - kAhead : offsets[t + 1] + kAhead;
      const int64_t wanted = std::clamp<int64_t>(next, 0, layer_.events.count);
      __builtin_prefetch(layer_.events.units + wanted);
      __builtin_prefetch(layer_.events.phases + wanted);
    }
  }

  // A unit's open slots are the bits of a number; units come in order, and of each its slots.
  void merge(Tick tick) {
    std::fill(slots_.begin(), slots_.end(), 0);
    // First one list of all, in place of loops of a few, whose ends are hard to foresee.
    uint32_t* listed = listed_.data();
    for (Tick rest = tick; rest; rest &= rest - 1) {
      const int slot = __builtin_ctz(rest);
      put_codes(layer_.events.units + first_event_[slot], found_[slot], kSlotBits, static_cast<uint32_t>(slot), listed);
      listed += found_[slot];
    }
    for (const uint32_t* code = listed_.data(); code < listed; ++code)
      slots_[*code >> kSlotBits] |= static_cast<uint16_t>(1u << (*code & (kLargestGroup - 1)));
    // The units that are open in any slot: first their list, since branches on bits are hard to foresee.
    int32_t* open_end = open_.data();
    LaneNumbers units;
    for (int64_t from = 0; from < layer_.units; from += kWords) {
      const unsigned bits = nonzero_bits(&slots_[from]);
      for (int i = 0; i < kWords; i += kFloatLanes)
        open_end += units.put(open_end, bits >> i & ((1u << kFloatLanes) - 1));
    }
    std::fill_n(blocks_of_, kRowBlock + 1, 0);
    Counters counters;
    int64_t at = 0;
    for (const int32_t* open = open_.data(); open < open_end; ++open) {
      const int32_t u = *open;
      const int n = counters.take(slots_[u], static_cast<uint32_t>(u) << kSlotBits, &event_[at], &number_[at]);
      for (int i = 0; i < n; i += Simd<T>::kLanes) store(&ratio_[at + i], splat(layer_.ratio_on[u]));
      // All that may be whole blocks are written, and those that are, counted.
      for (int i = 0; i < kLargestGroup / kRowBlock; ++i)
        block(kRowBlock)[blocks_of_[kRowBlock] + i] = static_cast<int32_t>(at + i * kRowBlock);
      blocks_of_[kRowBlock] += n / kRowBlock;
      const int left = n % kRowBlock;
      block(left)[blocks_of_[left]] = static_cast<int32_t>(at + n - left);
      blocks_of_[left] += left > 0;
      at += n;
    }
    for (int64_t e = 0; e < count_; ++e) phase_[e] = layer_.events.phases[first_event_[slot(e)] + number_[e]];
  }

  int32_t* block(int size) { return blocks_.data() + size * most_blocks_; }

  // As many bits as a T, to carry an event's number on the tape.
  using Code = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

  const Layer<T>& layer_;
  int64_t most_blocks_;
  // Of each unit, the slots in which it is open.
  Buffer<uint16_t> slots_;
  // The units that are open in any.
  Buffer<int32_t> open_;
  // unit << kSlotBits | slot, of the events by unit and, before they are sorted, by slot; an event's number among those of
  // its slot; what `places` last gave. There is room for a vector behind the last.
  Buffer<uint32_t> event_, listed_;
  Buffer<int32_t> number_, place_;
  // Where the blocks of each size begin, and how many there are; size 0 is for what is no block.
  Buffer<int32_t> blocks_;
  int64_t blocks_of_[kRowBlock + 1];
  Buffer<T> phase_, ratio_;
  std::vector<Tick> ticks_;
  Tick tick_ = 0;  // the present one
  int64_t first_ = 0, rows_ = 0, count_ = 0, total_ = 0;
  int64_t valid_[kLargestGroup], position_[kLargestGroup], step_[kLargestGroup];
  int64_t first_event_[kLargestGroup], found_[kLargestGroup];
};

}  // namespace

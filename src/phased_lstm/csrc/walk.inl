// The walk over the events of a group of sequences, which come in the order of its ticks.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::Buffer;
using phased_lstm::group_rows;
using phased_lstm::kLargestGroup;
using phased_lstm::kSlotBits;
using phased_lstm::Layer;
using phased_lstm::Plan;
using phased_lstm::Tick;

// Sequences that share a read of weights, as many as the registers hold.
constexpr int kRowBlock = kFloatLanes == 16 ? 4 : kFloatLanes == 8 ? 3 : 2;

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

// Slots number the group's sequences.
template <typename T>
class Walk {
 public:
  explicit Walk(const Layer<T>& layer)
      : layer_(layer),
        most_blocks_(layer.units * ((group_rows(layer.batch) + kRowBlock - 1) / kRowBlock) + kLargestGroup / kRowBlock),
        unit_(group_rows(layer.batch) * layer.units),
        place_(unit_.size()),
        ends_(layer.units + kFloatLanes),
        blocks_((kRowBlock + 1) * most_blocks_) {}

  // Takes group `group`, of `rows` sequences, all before their first step, or behind their last one.
  void begin(int64_t group, int64_t rows, bool at_end) {
    first_ = group * group_rows(layer_.batch);
    plan_ = &layer_.events.plans[group];
    offsets_ = layer_.events.offsets + group * (layer_.events.ticks + 1);
    for (int64_t slot = 0; slot < rows; ++slot) {
      valid_[slot] = valid_steps(layer_, first_ + slot);
      position_[slot] = at_end ? valid_[slot] : 0;
    }
  }

  int64_t ticks() const { return static_cast<int64_t>(plan_->ticks.size()); }
  Tick tick(int64_t number) const { return plan_->ticks[number]; }
  // The first event of a tick, or of what is behind the last, among those of all groups.
  int64_t start(int64_t number) const { return offsets_[number]; }

  // Steps forwards with the sequences of a tick, or back; the tick's events are then events 0 .. count(), by unit, and
  // for equal units by slot.
  void advance(int64_t number) { move(number, true); }
  void retreat(int64_t number) { move(number, false); }

  int64_t count() const { return count_; }
  int64_t unit(int64_t e) const { return codes_[e] >> kSlotBits; }
  int64_t slot(int64_t e) const { return codes_[e] & (kLargestGroup - 1); }
  const T* phases() const { return phases_; }
  // Finds the events' units, and where they are in an array of (slots, width).
  void find_places(int64_t width) {
    const auto row = static_cast<int32_t>(width);
    for (int64_t e = 0; e < count_; ++e) {
      unit_[e] = codes_[e] >> kSlotBits;
      place_[e] = (codes_[e] & static_cast<int32_t>(kLargestGroup - 1)) * row + (codes_[e] >> kSlotBits);
    }
  }
  // Both until the next tick.
  const int32_t* units() const { return unit_.data(); }
  const int32_t* places() const { return place_.data(); }
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
  // Calls f(size, e), blocks of one size after those of another: a branch on the size, block by block, is hard to
  // foresee. But a unit may come twice.
  template <typename F>
  void for_blocks_by_size(const F& f) {
    list_blocks();
    call_by_size(f);
  }

  // Of a slot that the present tick moves: whether it has events there, its place in (N, L).
  bool has_events(int64_t slot) const { return with_events_ >> slot & 1; }
  int64_t place(int64_t slot) const { return (first_ + slot) * layer_.steps + step_[slot]; }

 private:
  // Events from e on, up to `most`, that are of the same unit.
  int alike(int64_t e, int most) const {
    int n = 1;
    while (n < most && e + n < count_ && unit(e + n) == unit(e)) ++n;
    return n;
  }

  void move(int64_t number, bool forwards) {
    for (uint32_t rest = tick(number); rest; rest &= rest - 1) {
      const int slot = __builtin_ctz(rest);
      const int64_t position = forwards ? position_[slot]++ : --position_[slot];
      step_[slot] = layer_.reverse ? valid_[slot] - 1 - position : position;
    }
    codes_ = layer_.events.units + offsets_[number];
    phases_ = layer_.events.phases + offsets_[number];
    count_ = offsets_[number + 1] - offsets_[number];
    uint32_t slots = 0;
    for (int64_t e = 0; e < count_; ++e) slots |= 1u << (codes_[e] & (kLargestGroup - 1));
    with_events_ = slots;
  }

  void list_blocks() {
    // First where each unit ends, since branches on that are hard to foresee.
    int32_t* end = ends_.data();
    LaneNumbers ends(1);
    for (int64_t e = 0; e < count_; e += kFloatLanes) {
      const int64_t left = count_ - e;
      const Numbers here = load_first(codes_ + e, std::min<int64_t>(kFloatLanes, left));
      const Numbers next = load_first(codes_ + e + 1, std::min<int64_t>(kFloatLanes, left - 1));
      unsigned bits = differing_bits(here >> kSlotBits, next >> kSlotBits);
      if (left <= kFloatLanes) bits = (bits | 1u << (left - 1)) & ((2u << (left - 1)) - 1);
      end += ends.put(end, bits);
    }
    std::fill_n(blocks_of_, kRowBlock + 1, 0);
    uint32_t from = 0;
    for (const int32_t* of = ends_.data(); of < end; ++of) {
      const auto to = static_cast<uint32_t>(*of);
      const uint32_t n = to - from, left = n % kRowBlock;
      // All that may be whole blocks are written, and those that are, counted.
      for (int j = 0; j < kLargestGroup / kRowBlock; ++j)
        block(kRowBlock)[blocks_of_[kRowBlock] + j] = static_cast<int32_t>(from + j * kRowBlock);
      blocks_of_[kRowBlock] += n / kRowBlock;
      block(left)[blocks_of_[left]] = static_cast<int32_t>(to - left);
      blocks_of_[left] += left > 0;
      from = to;
    }
  }

  template <int size = kRowBlock, typename F>
  void call_by_size(const F& f) {
    const int32_t* begins = block(size);
    for (int64_t i = 0; i < blocks_of_[size]; ++i) f(std::integral_constant<int, size>(), begins[i]);
    if constexpr (size > 1) call_by_size<size - 1>(f);
  }

  int32_t* block(uint32_t size) { return blocks_.data() + size * most_blocks_; }

  const Layer<T>& layer_;
  int64_t most_blocks_;
  // Of the tick's events: what `find_places` last gave.
  Buffer<int32_t> unit_, place_;
  // Where the events of each unit end; where the blocks of each size begin, and how many there are. Size 0 is for what
  // is no block.
  Buffer<int32_t> ends_, blocks_;
  int64_t blocks_of_[kRowBlock + 1];
  const Plan* plan_ = nullptr;
  const int64_t* offsets_ = nullptr;
  // Of the present tick.
  const int32_t* codes_ = nullptr;
  const T* phases_ = nullptr;
  int64_t count_ = 0;
  uint32_t with_events_ = 0;
  int64_t first_ = 0;
  int64_t valid_[kLargestGroup], position_[kLargestGroup], step_[kLargestGroup];
};

}  // namespace

// The ticks in which a group of sequences advances.
//
// Sequences are independent, so those of a group advance together, in ticks: every running sequence takes one step or
// waits. Units that are open in several sequences in the same tick share one read of their weights. Units open by the
// clock, not by the number of the step; so sequences advance to about the same time, and one that is ahead waits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels.h"
#include "simd.h"

namespace {

using phased_lstm::GateTimes;
using phased_lstm::Group;
using phased_lstm::kLargestGroup;
using phased_lstm::kTicksInBlock;
using phased_lstm::Plan;
using phased_lstm::Tick;

// Where the steps of a group's sequences are, in the order in which they are taken.
class GroupSteps {
 public:
  GroupSteps(const GateTimes& gate, const Group& group) : gate_(gate), group_(group) {
    for (int64_t slot = 0; slot < group.rows; ++slot)
      valid_[slot] = group.lengths ? group.lengths[group.first + slot] : gate.steps;
  }
  int64_t rows() const { return group_.rows; }
  int64_t valid(int64_t slot) const { return valid_[slot]; }
  int64_t longest() const { return *std::max_element(valid_, valid_ + group_.rows); }
  // A step's place in (N, L).
  int64_t place(int64_t slot, int64_t position) const {
    return (group_.first + slot) * gate_.steps + (group_.reverse ? valid_[slot] - 1 - position : position);
  }
  // Its time, on a clock that runs with the steps.
  double time(int64_t slot, int64_t position) const {
    const double time = gate_.coarse[place(slot, position)];
    return group_.reverse ? -time : time;
  }

 private:
  const GateTimes& gate_;
  const Group& group_;
  int64_t valid_[kLargestGroup];
};

inline void add_tick(Plan& plan, Tick tick, const int64_t (&done)[kLargestGroup]) {
  if (plan.ticks.size() % kTicksInBlock == 0) std::copy_n(done, kLargestGroup, plan.positions.emplace_back().begin());
  plan.ticks.push_back(tick);
}

// Sequences whose next time is within a mean interval of the earliest advance. Returns false when that takes more than
// `most` ticks: the sequences are not in one span of time, or not in order.
inline bool plan_by_clock(const GroupSteps& steps, int64_t most, Plan& plan) {
  constexpr double never = std::numeric_limits<double>::infinity();
  constexpr int lanes = Simd<double>::kLanes;
  double interval = 0.0;
  alignas(64) double next[kLargestGroup];
  std::fill_n(next, kLargestGroup, never);
  int64_t done[kLargestGroup] = {};
  uint32_t running = 0;
  for (int64_t slot = 0; slot < steps.rows(); ++slot) {
    const int64_t valid = steps.valid(slot);
    if (!valid) continue;
    running |= 1u << slot;
    next[slot] = steps.time(slot, 0);
    const double span = steps.time(slot, valid - 1) - next[slot];
    if (valid > 1) interval = std::max(interval, span / static_cast<double>(valid - 1));
  }
  while (running) {
    if (static_cast<int64_t>(plan.ticks.size()) == most) return false;
    double least[4] = {next[0], next[1], next[2], next[3]};
    for (int64_t slot = 4; slot < kLargestGroup; ++slot) least[slot % 4] = std::min(least[slot % 4], next[slot]);
    const double limit = std::min(std::min(least[0], least[1]), std::min(least[2], least[3])) + interval;
    uint32_t later = 0;
    for (int slot = 0; slot < kLargestGroup; slot += lanes)
      later |= less_bits(splat(limit), load(next + slot)) << slot;
    const uint32_t tick = running & ~later;
    add_tick(plan, static_cast<Tick>(tick), done);
    for (uint32_t rest = tick; rest; rest &= rest - 1) {
      const int slot = __builtin_ctz(rest);
      const bool more = ++done[slot] < steps.valid(slot);
      next[slot] = more ? steps.time(slot, done[slot]) : never;
      running &= ~(uint32_t(!more) << slot);
    }
  }
  return true;
}

inline void plan_ticks(const GateTimes& gate, const Group& group, Plan& plan) {
  const GroupSteps steps(gate, group);
  const int64_t longest = steps.longest();
  plan.ticks.clear();
  plan.positions.clear();
  if (plan_by_clock(steps, 3 * longest, plan)) return;
  plan.ticks.clear();
  plan.positions.clear();
  int64_t done[kLargestGroup] = {};
  for (int64_t step = 0; step < longest; ++step) {
    uint32_t tick = 0;
    for (int64_t slot = 0; slot < group.rows; ++slot) tick |= static_cast<uint32_t>(step < steps.valid(slot)) << slot;
    add_tick(plan, static_cast<Tick>(tick), done);
    for (int64_t slot = 0; slot < group.rows; ++slot) done[slot] += tick >> slot & 1;
  }
}

}  // namespace

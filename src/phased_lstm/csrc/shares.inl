// How threads share the work of a kernel: each takes one share after the other, and of two that run side by side the
// threads change places half way. So where one processor is slower than the other, as on machines on which others work,
// too, both are done at about the same time.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "kernels.h"

namespace {

using phased_lstm::Exchange;
using phased_lstm::Shares;
using phased_lstm::take_share;

// The groups of a chunk (see KernelTable), which are gone through one after the other.
class Chunk {
 public:
  Chunk() = default;
  Chunk(int64_t chunk, int64_t chunks, int64_t groups)
      : begin_(chunk * groups / chunks), end_((chunk + 1) * groups / chunks), group_(begin_) {}

  int64_t group() const { return group_; }
  // Goes on to the next group; whether there is one.
  bool next() { return ++group_ < end_; }

  // How much of the chunk is done when `left` of the group's steps are left; 1 behind the last group alone.
  double progress(int64_t left, int64_t steps) const {
    if (group_ == end_) return 1.0;
    const double of_group = steps ? 1.0 - static_cast<double>(left) / static_cast<double>(steps) : 0.0;
    return (static_cast<double>(group_ - begin_) + of_group) / static_cast<double>(end_ - begin_);
  }

 private:
  int64_t begin_ = 0, end_ = 0, group_ = 0;
};

// A thread's part in an exchange, for as long as it works at a share. `Work` is what it does there, a step at a time, and
// may go on in any thread: begin(share), then step() until progress() is 1, then end().
template <typename Work>
class Meeting {
 public:
  // Shares 2 n and 2 n + 1 are partners.
  Meeting(Shares& shares, int64_t share)
      : exchange_(shares.exchanges ? &shares.exchanges[share / 2] : nullptr),
        mine_(share % 2 ? Exchange::kOfferedBySecond : Exchange::kOfferedByFirst),
        begun_(Clock::now()) {
    if (exchange_) exchange_->begun.fetch_add(1, std::memory_order_relaxed);
  }
  // Whoever waits for an answer is to wait no longer, and nobody to begin.
  ~Meeting() {
    if (exchange_ && !close(Exchange::kOpen)) close(theirs());
  }
  Meeting(const Meeting&) = delete;

  // Between two steps: changes `work` for the partner's, where the faster of the two is half way.
  void pause(std::unique_ptr<Work>& work) {
    if (!exchange_) return;
    const int state = exchange_->state.load(std::memory_order_acquire);
    if (state == Exchange::kOpen && work->progress() < 0.5) return;
    if (state == Exchange::kOpen)
      offer(work);
    else if (state == theirs())
      answer(work);
    exchange_ = nullptr;
  }

 private:
  using Clock = std::chrono::steady_clock;

  int theirs() const { return Exchange::kOfferedByFirst + Exchange::kOfferedBySecond - mine_; }

  bool set(int from, int to) {
    return exchange_->state.compare_exchange_strong(from, to, std::memory_order_acq_rel, std::memory_order_acquire);
  }
  bool close(int from) { return set(from, Exchange::kClosed); }

  void offer(std::unique_ptr<Work>& work) {
    if (exchange_->begun.load(std::memory_order_relaxed) < 2) {
      close(Exchange::kOpen);
      return;
    }
    // Both may be about to offer, so that each has a place of its own.
    exchange_->given[mine_ == Exchange::kOfferedBySecond] = work.get();
    if (!set(Exchange::kOpen, mine_)) {
      close(theirs());
      return;
    }
    // The partner may have to wait itself, for a processor.
    const auto now = Clock::now(), until = now + (now - begun_) / kPatience;
    int state;
    do {
      state = exchange_->state.load(std::memory_order_acquire);
      if (state == mine_ && Clock::now() > until) close(mine_);
      std::this_thread::yield();
    } while (state == mine_ || state == Exchange::kAnswering);
    if (state == Exchange::kAnswered) receive(work);
  }

  void answer(std::unique_ptr<Work>& work) {
    // Not for the little that would be won.
    if (work->progress() > kNearlyHalf) {
      close(theirs());
      return;
    }
    if (!set(theirs(), Exchange::kAnswering)) return;
    exchange_->given[mine_ == Exchange::kOfferedBySecond] = work.get();
    receive(work);
    exchange_->state.store(Exchange::kAnswered, std::memory_order_release);
  }

  // The partner's work for one's own, which is the partner's from here on.
  void receive(std::unique_ptr<Work>& work) {
    static_cast<void>(work.release());
    work.reset(static_cast<Work*>(exchange_->given[mine_ == Exchange::kOfferedByFirst]));
  }

  // Of the time taken so far, the part to wait for an answer.
  static constexpr int kPatience = 16;
  static constexpr double kNearlyHalf = 0.47;

  Exchange* exchange_;
  int mine_;
  Clock::time_point begun_;
};

// Goes through one share after the other, as many as this thread gets.
template <typename Work>
void go(Shares& shares, std::unique_ptr<Work> work) {
  for (int64_t share; (share = take_share(shares)) < shares.count;) {
    work->begin(share);
    Meeting<Work> meeting(shares, share);
    while (work->progress() < 1.0) {
      work->step();
      meeting.pause(work);
    }
    work->end();
  }
}

}  // namespace

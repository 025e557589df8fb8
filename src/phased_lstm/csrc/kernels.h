// What the instruction-set specific kernels take, and the table through which they are called.
//
// Letters: N sequences, L steps, I input features, H units, G gates (LSTM 4: i, f, g, o; GRU 3: r, z, n),
// E events. An event is a (step, unit) at which the unit may change. All arrays are dense in the
// order given, row-major. No array that is written overlaps another. Every pointer must stay valid for the
// call alone; nothing is kept.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "buffer.h"

namespace phased_lstm {

enum Oscillation : int64_t { kTriangle = 0, kSquare = 1, kCosine = 2 };

// Sequences with times of their own advance in groups, in ticks: each sequence of a group, its slots, takes a step or
// waits. A tick is a bit for each slot, set for those that take a step. (Static, as all functions here: no two
// instruction sets may share one.)
constexpr int kSlotBits = 4;
constexpr int64_t kLargestGroup = 1 << kSlotBits;
using Tick = uint16_t;

// Sequences in a group; a function of the batch alone, as every bit of the result is.
static constexpr int64_t group_rows(int64_t batch) {
  const int64_t half = batch / 2;
  return half < 1 ? 1 : half < kLargestGroup ? half : kLargestGroup;
}

// The ticks of a group, and the step at which each slot stands before every kTicksInBlock of them.
struct Plan {
  std::vector<Tick> ticks;
  std::vector<std::array<int64_t, kLargestGroup>> positions;
};
constexpr int64_t kTicksInBlock = 256;

// The open events of one or several rows of times.
//   offsets  (R, L + 1): events of step t of row r are offsets[r][t] .. offsets[r][t + 1]
//   units    (E): increasing within a step
//   phases   (E): phi in [0, 1), rounded to the compute type and so 1 at most; on its side of the ratio where leak > 0
// R is N, or 1 when all sequences share their times (`shared`). Those of groups come in the order of the ticks, without
// padding:
//   plans    (R), a group each; else null
//   offsets  (R, S + 1): events of tick s of group r are offsets[r][s] .. offsets[r][s + 1]; S are the ticks of the
//            group that has most, and the others end with ticks without events
//   units    (E): unit << kSlotBits | slot, increasing within a tick
template <typename T>
struct Events {
  const int64_t* offsets;
  const int32_t* units;
  const T* phases;
  int64_t count;
  bool shared;
  const Plan* plans = nullptr;
  int64_t ticks = 0;  // S
  int64_t unit(int64_t e) const { return plans ? units[e] >> kSlotBits : units[e]; }
};

// The time gate.
struct GateTimes {
  const double* coarse;    // (R, L) times as doubles
  const double* residue;   // (R, L) what the conversion rounded off, or null when nothing
  int64_t rows, steps, units;
  const double* period;    // (H) > 0
  const double* shift;     // (H)
  const double* ratio_on;  // (H) in (0, 1]
  bool all_open;           // leak > 0: every unit is an event at every step
};

// A group of sequences: `rows` of them from `first` on.
struct Group {
  int64_t first, rows;
  const int64_t* lengths;  // (N) or null
  bool reverse;
};

template <typename T>
struct Layer {
  int64_t batch, steps, inputs, units;
  bool reverse;
  Events<T> events;
  const double* times;     // (N, L), or (L) when shared
  bool panels;             // run sequences side by side, which needs shared times or all units open; else events are
                           // those of groups, from four sequences on
  const int64_t* lengths;  // (N) or null: steps beyond lengths[n] are skipped
  const T* input;          // (N, L, I)
  const T* weight_ih;      // (G * H, I), torch's gate order
  const T* weight_hh;      // (G * H, H)
  const T* bias_ih;        // (G * H) or null
  const T* bias_hh;        // (G * H) or null; an LSTM's are added up
  const T* peephole;       // (3, H): i, f, o; or null; LSTM only
  const T* ratio_on;       // (H)
  T leak;
  Oscillation oscillation;
};

template <typename T>
struct Forward {
  const T* h0;  // (N, H)
  const T* c0;  // (N, H), LSTM only
  T* output;    // (N, L, H) or null; zero in padding
  T* h_n;       // (N, H)
  T* c_n;       // (N, H), LSTM only
  T* tape;      // (entries, fields) for the backward pass, or null. Fields: LSTM i, f, g, o, h', c';
                // GRU r, z, n, hn, h'. In panels: (panel, event, field, row of the panel). Of sequences alone: for
                // each, behind those before it, (step, field, event). By rows: for each group, behind those before
                // it, (tick, field, event).
};

template <typename T>
struct Backward {
  const T* h_n;          // (N, H) of the forward pass
  const T* tape;         // of the forward pass
  const T* grad_output;  // (N, L, H) or null
  const T* grad_h_n;     // (N, H)
  const T* grad_c_n;     // (N, H), LSTM only
  const double* period;  // (H)
  const double* shift;   // (H)
  T* grad_input;         // (N, L, I), zero on entry, or null
  T* grad_h0;            // (N, H)
  T* grad_c0;            // (N, H), LSTM only
  T* grad_weight_ih;     // (G * H, I)
  T* grad_weight_hh;     // (G * H, H)
  T* grad_bias_ih;       // (G * H); an LSTM's for either bias
  T* grad_bias_hh;       // (G * H), GRU only
  T* grad_peephole;      // (3, H) or null
  double* grad_gate;     // (3, H): period, shift, ratio_on
  double* grad_times;    // (N, L), zero on entry, or null
};

// The events found in a block of steps of one row: the first `count` of the entries.
template <typename T>
struct EventBlock {
  Buffer<int32_t> units;
  Buffer<T> phases;
  int64_t count = 0;
  // Makes room for so many, and forgets what was there.
  void begin(int64_t events) {
    if (static_cast<int64_t>(units.size()) < events) units = {}, phases = {};
    grow(events);
  }
  // Makes room for so many.
  void grow(int64_t events) {
    if (static_cast<int64_t>(units.size()) >= events) return;
    units.resize(events + events / 2);
    phases.resize(units.size());
  }
};

// A unit's gradients of period, shift and ratio, and one more place, so that they are added to at once.
constexpr int64_t kGateSums = 4;

// Where two threads may change places, see shares.inl.
struct alignas(64) Exchange {
  enum { kOpen, kOfferedByFirst, kOfferedBySecond, kAnswering, kAnswered, kClosed };
  std::atomic<int> state{kOpen}, begun{0};
  void* given[2] = {};  // what either gives
};

// The shares of a kernel's work that threads take, one after the other. `exchanges`: one for two shares each, or null.
struct Shares {
  int64_t count;
  Exchange* exchanges = nullptr;
  std::atomic<int64_t> next{0};  // the first that nobody has taken; beyond the count when all are
};

// The next share; what is not below the count is none. (Static, as no two instruction sets may share a function.)
static inline int64_t take_share(Shares& shares) { return shares.next.fetch_add(1, std::memory_order_relaxed); }

// One instruction set's kernels. forward and backward may run on several threads at once, for as many shares as each
// gets. Forward's are groups of sequences. Backward's are chunks, which gather gradients of their own: of n groups and m
// chunks, chunk c is groups c n / m .. (c + 1) n / m.
template <typename T>
struct KernelTable {
  // The open events of steps begin .. end of a row, and how many each step has.
  void (*find_events)(const GateTimes&, int64_t row, int64_t begin, int64_t end, int64_t* counts, EventBlock<T>& found);
  // The ticks of a group, of times alone.
  void (*plan)(const GateTimes&, const Group&, Plan&);
  // The open events of its ticks kTicksInBlock * block and following, and how many each tick has.
  void (*find_in_ticks)(const GateTimes&, const Group&, const Plan&, int64_t block, int64_t* counts,
                        EventBlock<T>& found);
  // Those of all its ticks, and how many each has, from the events of each sequence: (N, L + 1) offsets.
  void (*merge_in_ticks)(const GateTimes&, const Group&, const Plan&, const Events<T>& by_row, int64_t* counts,
                         EventBlock<T>& found);
  // Sequences that run side by side: ranges below count in groups of so many.
  int64_t (*group)(const Layer<T>&);
  // Shape of the tape.
  int64_t (*tape_entries)(const Layer<T>&);
  int64_t (*tape_fields)(const Layer<T>&, bool lstm);
  // Values in the packed weights.
  int64_t (*packed_size)(const Layer<T>&, bool lstm);
  // Units begin .. end. `wanted`: (H), which units' weights will be read; null for all. The others are left as they
  // are.
  void (*pack)(const Layer<T>&, bool lstm, T* packed, const uint8_t* wanted, int64_t begin, int64_t end);
  void (*forward)(const Layer<T>&, bool lstm, const Forward<T>&, const T* packed, Shares&);
  // Values in one chunk's share of the gradients.
  int64_t (*partial_size)(const Layer<T>&, bool lstm);
  // `partials` (chunks, partial_size) and `gate_sums` (chunks, H, kGateSums), zero on entry, gather the gradients that
  // rows share.
  void (*backward)(const Layer<T>&, bool lstm, const Backward<T>&, const T* packed, Shares&, T* partials,
                   double* gate_sums);
  // Adds up the chunks' shares in their order, in the place of the first, and puts them into torch's layout.
  void (*gather)(const Layer<T>&, bool lstm, const Backward<T>&, T* partials, const double* gate_sums,
                 int64_t chunks);
};

// A table for each instruction set. What has AVX-512 takes AVX2's for doubles, which are for checks: to compile them once
// more would take longer than they ever save.
extern const KernelTable<float> kBaselineFloats;
extern const KernelTable<double> kBaselineDoubles;
#if defined(__x86_64__)
extern const KernelTable<float> kAvx2Floats, kAvx512Floats;
extern const KernelTable<double> kAvx2Doubles;
#endif

}  // namespace phased_lstm

// One instruction set's kernels, gathered in its table.
#include <algorithm>
#include <memory>
#include <type_traits>

#include "kernels.h"
#include "packing.inl"
#include "panels.inl"
#include "plan.inl"
#include "rows.inl"
#include "schedule.inl"
#include "shares.inl"
#include "single.inl"
#include "ticks.inl"

namespace {

using phased_lstm::KernelTable;

// Calls f with whether the cell is an LSTM, as a constant.
template <typename F>
inline void with_cell(bool lstm, const F& f) {
  lstm ? f(std::true_type()) : f(std::false_type());
}

// constexpr, since code that fills a table while the library loads would run on processors that lack its instructions.
template <typename T>
constexpr KernelTable<T> table() {
  using L = Layer<T>;
  return {
      find_events<T>,
      plan_ticks,
      find_in_ticks<T>,
      merge_in_ticks<T>,
      [](const L& layer) -> int64_t {
        return layer.panels ? panel_vectors<T>(layer.batch) * Simd<T>::kLanes : group_rows(layer.batch);
      },
      [](const L& layer) -> int64_t { return tape_entries(layer); },
      [](const L&, bool lstm) -> int64_t { return lstm ? 6 : 5; },
      [](const L& layer, bool lstm) -> int64_t {
        return lstm ? packed_size<T, 4>(layer) : packed_size<T, 3>(layer);
      },
      [](const L& layer, bool lstm, T* packed, const uint8_t* wanted, int64_t begin, int64_t end) {
        lstm ? pack<T, 4>(layer, packed, wanted, begin, end) : pack<T, 3>(layer, packed, wanted, begin, end);
      },
      [](const L& layer, bool lstm, const Forward<T>& run, const T* packed, Shares& shares) {
        with_cell(lstm, [&](auto of_lstm) {
          constexpr bool Lstm = of_lstm();
          if (layer.panels)
            with_panel(layer, [&](auto n) {
              go(shares, std::make_unique<ForwardPanels<T, Lstm, n()>>(layer, run, packed));
            });
          else if (alone(layer))
            forward_single<T, Lstm>(layer, run, packed, shares);
          else
            go(shares, std::make_unique<ForwardRows<T, Lstm>>(layer, run, packed));
        });
      },
      [](const L& layer, bool lstm) -> int64_t {
        return lstm ? partial_size<T, 4>(layer) : partial_size<T, 3>(layer);
      },
      [](const L& layer, bool lstm, const Backward<T>& run, const T* packed, Shares& shares, T* partials,
         double* gate_sums) {
        with_cell(lstm, [&](auto of_lstm) {
          constexpr bool Lstm = of_lstm();
          const int64_t chunks = shares.count;
          if (layer.panels)
            with_panel(layer, [&](auto n) {
              go(shares,
                 std::make_unique<BackwardPanels<T, Lstm, n()>>(layer, run, packed, chunks, partials, gate_sums));
            });
          else if (alone(layer))
            backward_single<T, Lstm>(layer, run, packed, shares, partials, gate_sums);
          else
            go(shares, std::make_unique<BackwardRows<T, Lstm>>(layer, run, packed, chunks, partials, gate_sums));
        });
      },
      [](const L& layer, bool lstm, const Backward<T>& run, T* partials, const double* gate_sums, int64_t chunks) {
        lstm ? gather<T, 4>(layer, run, partials, gate_sums, chunks)
             : gather<T, 3>(layer, run, partials, gate_sums, chunks);
      },
  };
}

}  // namespace

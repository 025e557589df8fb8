// The operators as torch sees them, on the stable ABI: shapes and bounds are checked here once more,
// since a wrong offset would read or write past an array, and work is spread over torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace {

using namespace phased_lstm;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Gradients that rows share are gathered in this many parts at most, whatever the number of threads,
// so that the order of additions, and with it every bit, stays the same.
constexpr int64_t kChunks = 16;

// Steps of a row whose events are looked for in one go.
constexpr int64_t kStepsInBlock = 8192;

// From so many sequences on, those that can run side by side do.
constexpr int64_t kPanelBatch = 4;

const Kernels& kernels() {
  static const Kernels* const chosen = [] {
    const char* forced = std::getenv("PHASED_LSTM_ISA");
    const std::string wish = forced ? forced : "";
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if ((wish.empty() || wish == "avx512") && avx512) return &kAvx512Kernels;
    if ((wish.empty() || wish == "avx2") && avx2) return &kAvx2Kernels;
#endif
    STD_TORCH_CHECK(wish.empty() || wish == "baseline", "PHASED_LSTM_ISA=", wish,
                    " is not available here; it may be baseline, avx2 or avx512, as far as the CPU has them");
    return &kBaselineKernels;
  }();
  return *chosen;
}

template <typename T>
const KernelTable<T>& table();
template <>
const KernelTable<float>& table<float>() { return kernels().single; }
template <>
const KernelTable<double>& table<double>() { return kernels().wide; }

void check(const Tensor& tensor, const char* name, ScalarType type, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(), name, " should be a contiguous tensor on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.dim() == static_cast<int64_t>(shape.size()), name, " has the wrong number of dimensions");
  int64_t axis = 0;
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(tensor.size(axis) == size, name, ": size ", tensor.size(axis), " in dimension ", axis,
                    ", expected ", size);
    ++axis;
  }
}

template <typename T>
constexpr ScalarType type_of() {
  return std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Double;
}

template <typename T>
const T* pointer(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  check(tensor, name, type_of<T>(), shape);
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* pointer(const MaybeTensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  return tensor ? pointer<T>(*tensor, name, shape) : nullptr;
}

template <typename T>
T* output(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
Tensor blank(const Tensor& like, std::vector<int64_t> shape, bool zero = false) {
  return zero ? torch::stable::new_zeros(like, shape, type_of<T>()) : torch::stable::new_empty(like, shape, type_of<T>());
}

// Runs f over [0, count) on torch's threads; an exception in any of them is raised again here.
template <typename F>
void spread(int64_t count, const F& f) {
  std::atomic<bool> failed{false};
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      failed = true;
    }
  });
  STD_TORCH_CHECK(!failed, "out of memory in a phased_lstm kernel");
}

// schedule: the open events of every row of times.
std::tuple<Tensor, Tensor, Tensor> schedule(Tensor coarse, MaybeTensor residue, Tensor period, Tensor shift,
                                            Tensor ratio_on, bool all_open, bool single) {
  STD_TORCH_CHECK(coarse.dim() == 2 && period.dim() == 1, "times should be (R, L) and period (H,)");
  const int64_t rows = coarse.size(0), steps = coarse.size(1), units = period.size(0);
  GateTimes gate{pointer<double>(coarse, "times", {rows, steps}),
                 pointer<double>(residue, "residue", {rows, steps}),
                 rows, steps, units,
                 pointer<double>(period, "period", {units}),
                 pointer<double>(shift, "shift", {units}),
                 pointer<double>(ratio_on, "ratio_on", {units}),
                 all_open};
  const int64_t blocks_in_row = (steps + kStepsInBlock - 1) / kStepsInBlock;
  std::vector<EventBlock> found(rows * blocks_in_row);
  Tensor offsets = torch::stable::new_zeros(coarse, {rows, steps + 1}, ScalarType::Long);
  int64_t* counts = output<int64_t>(offsets);
  spread(static_cast<int64_t>(found.size()), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = block / blocks_in_row, first = block % blocks_in_row * kStepsInBlock;
      kernels().find_events(gate, row, first, std::min(steps, first + kStepsInBlock), counts + row * (steps + 1) + 1,
                            found[block]);
    }
  });
  // counts[t + 1] of a row holds the events of step t; running sums make them offsets into all events.
  int64_t total = 0;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t* of_row = counts + row * (steps + 1);
    of_row[0] = total;
    for (int64_t t = 1; t <= steps; ++t) of_row[t] = total += of_row[t];
  }
  Tensor event_units = torch::stable::new_empty(coarse, {total}, ScalarType::Int);
  Tensor phases = torch::stable::new_empty(coarse, {total}, single ? ScalarType::Float : ScalarType::Double);
  std::vector<int64_t> starts(found.size());
  for (size_t block = 1; block < found.size(); ++block)
    starts[block] = starts[block - 1] + static_cast<int64_t>(found[block - 1].units.size());
  int32_t* unit_data = output<int32_t>(event_units);
  void* phase_data = phases.mutable_data_ptr();
  spread(static_cast<int64_t>(found.size()), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const EventBlock& events = found[block];
      std::copy(events.units.begin(), events.units.end(), unit_data + starts[block]);
      if (single)
        std::copy(events.phases.begin(), events.phases.end(), static_cast<float*>(phase_data) + starts[block]);
      else
        std::copy(events.phases.begin(), events.phases.end(), static_cast<double*>(phase_data) + starts[block]);
    }
  });
  return {offsets, event_units, phases};
}

// Checks a layer's tensors and gathers them; `gates` is 4 for an LSTM and 3 for a GRU.
template <typename T>
Layer<T> layer_of(int64_t gates, const Tensor& input, const MaybeTensor& lengths, const Tensor& offsets,
                  const Tensor& units, const Tensor& phases, const Tensor& weight_ih, const Tensor& weight_hh,
                  const MaybeTensor& bias_ih, const MaybeTensor& bias_hh, const MaybeTensor& peephole,
                  const Tensor& ratio_on, double leak, int64_t oscillation, bool reverse) {
  STD_TORCH_CHECK(input.dim() == 3 && weight_hh.dim() == 2, "input should be (N, L, I) and weight_hh (G * H, H)");
  const int64_t N = input.size(0), L = input.size(1), I = input.size(2), H = weight_hh.size(1);
  STD_TORCH_CHECK(oscillation >= kTriangle && oscillation <= kCosine, "unknown oscillation");
  STD_TORCH_CHECK(offsets.dim() == 2 && units.dim() == 1, "events should be offsets (R, L + 1) and units (E,)");
  const int64_t rows = offsets.size(0), events = units.size(0);
  STD_TORCH_CHECK(rows == 1 || rows == N, "events should have 1 row or one for each sequence");
  check(offsets, "offsets", ScalarType::Long, {rows, L + 1});
  check(units, "units", ScalarType::Int, {events});
  const auto* starts = static_cast<const int64_t*>(offsets.const_data_ptr());
  STD_TORCH_CHECK(rows == 0 ? events == 0 : starts[0] == 0 && starts[rows * (L + 1) - 1] == events,
                  "offsets should span all events");
  for (int64_t j = 1; j < rows * (L + 1); ++j)
    STD_TORCH_CHECK(starts[j - 1] <= starts[j] && (j % (L + 1) == 0 || starts[j] - starts[j - 1] <= H),
                    "offsets should rise by at most H a step");
  const auto* open = static_cast<const int32_t*>(units.const_data_ptr());
  for (int64_t e = 0; e < events; ++e) STD_TORCH_CHECK(open[e] >= 0 && open[e] < H, "units should be from 0 to H - 1");
  Layer<T> layer{N, L, I, H, reverse,
                 {starts, open, pointer<T>(phases, "phases", {events}), events, rows == 1 && N != 1},
                 false,
                 nullptr,
                 pointer<T>(input, "input", {N, L, I}),
                 pointer<T>(weight_ih, "weight_ih", {gates * H, I}),
                 pointer<T>(weight_hh, "weight_hh", {gates * H, H}),
                 pointer<T>(bias_ih, "bias_ih", {gates * H}),
                 pointer<T>(bias_hh, "bias_hh", {gates * H}),
                 pointer<T>(peephole, "peephole", {3, H}),
                 pointer<T>(ratio_on, "ratio_on", {H}),
                 static_cast<T>(leak), static_cast<Oscillation>(oscillation)};
  layer.panels = N >= kPanelBatch && (layer.events.shared || events == N * L * H);
  if (lengths) {
    check(*lengths, "lengths", ScalarType::Long, {N});
    layer.lengths = static_cast<const int64_t*>(lengths->const_data_ptr());
    for (int64_t n = 0; n < N; ++n)
      STD_TORCH_CHECK(layer.lengths[n] >= 0 && layer.lengths[n] <= L, "lengths should be from 0 to L");
  }
  return layer;
}

template <typename T>
Buffer<T> packed_weights(const Layer<T>& layer, bool lstm) {
  Buffer<T> packed(table<T>().packed_size(layer, lstm));
  table<T>().pack(layer, lstm, packed.data());
  return packed;
}

template <typename T>
int64_t groups(const Layer<T>& layer) {
  const int64_t size = table<T>().group(layer);
  return (layer.batch + size - 1) / size;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Layer<T>& layer, const Tensor& input, const Tensor& h0,
                                                   const MaybeTensor& c0, bool return_sequence, bool keep_tape) {
  const bool lstm = c0.has_value();
  const int64_t N = layer.batch, L = layer.steps, H = layer.units;
  Tensor output_ = blank<T>(input, {return_sequence ? N : 0, L, H});
  Tensor h_n = blank<T>(input, {N, H});
  Tensor c_n = blank<T>(input, {lstm ? N : 0, H});
  Tensor tape = blank<T>(input, {keep_tape ? table<T>().tape_entries(layer) : 0, lstm ? 6 : 5});
  const Forward<T> run{pointer<T>(h0, "h0", {N, H}),
                       pointer<T>(c0, "c0", {N, H}),
                       return_sequence ? output<T>(output_) : nullptr,
                       output<T>(h_n),
                       lstm ? output<T>(c_n) : nullptr,
                       keep_tape ? output<T>(tape) : nullptr};
  const Buffer<T> packed = packed_weights(layer, lstm);
  spread(groups(layer), [&](int64_t begin, int64_t end) { table<T>().forward(layer, lstm, run, packed.data(), begin, end); });
  return {output_, h_n, c_n, tape};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Layer<T>& layer, const Tensor& input, const Tensor& h_n, const Tensor& tape, const MaybeTensor& grad_output,
    const Tensor& grad_h_n, const MaybeTensor& grad_c_n, const Tensor& period, const Tensor& shift,
    const Tensor& times, bool need_times, bool need_input) {
  const bool lstm = grad_c_n.has_value();
  const int64_t N = layer.batch, L = layer.steps, I = layer.inputs, H = layer.units, G = lstm ? 4 : 3;
  Tensor grad_input = blank<T>(input, {need_input ? N : 0, L, I}, true);
  Tensor grad_h0 = blank<T>(input, {N, H}), grad_c0 = blank<T>(input, {lstm ? N : 0, H});
  Tensor grad_weight_ih = blank<T>(input, {G * H, I}), grad_weight_hh = blank<T>(input, {G * H, H});
  Tensor grad_bias_ih = blank<T>(input, {G * H}), grad_bias_hh = blank<T>(input, {lstm ? 0 : G * H});
  Tensor grad_peephole = blank<T>(input, {layer.peephole ? 3 : 0, H});
  Tensor grad_gate = blank<double>(input, {3, H});
  Tensor grad_times = blank<double>(input, {need_times ? N : 0, L}, true);
  const Backward<T> run{pointer<T>(h_n, "h_n", {N, H}),
                        pointer<T>(tape, "tape", {table<T>().tape_entries(layer), lstm ? 6 : 5}),
                        pointer<T>(grad_output, "grad_output", {N, L, H}),
                        pointer<T>(grad_h_n, "grad_h_n", {N, H}),
                        pointer<T>(grad_c_n, "grad_c_n", {N, H}),
                        pointer<double>(period, "period", {H}),
                        pointer<double>(shift, "shift", {H}),
                        pointer<double>(times, "times", {layer.events.shared ? 1 : N, L}),
                        need_input ? output<T>(grad_input) : nullptr,
                        output<T>(grad_h0),
                        lstm ? output<T>(grad_c0) : nullptr,
                        output<T>(grad_weight_ih),
                        output<T>(grad_weight_hh),
                        output<T>(grad_bias_ih),
                        lstm ? nullptr : output<T>(grad_bias_hh),
                        layer.peephole ? output<T>(grad_peephole) : nullptr,
                        output<double>(grad_gate),
                        need_times ? output<double>(grad_times) : nullptr};
  const int64_t count = groups(layer), chunks = std::max<int64_t>(1, std::min(count, kChunks));
  const int64_t partial = table<T>().partial_size(layer, lstm);
  Buffer<T> partials(chunks * partial, T(0));
  std::vector<double> gates(chunks * 3 * H, 0.0);
  const Buffer<T> packed = packed_weights(layer, lstm);
  spread(chunks, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      table<T>().backward(layer, lstm, run, packed.data(), chunk * count / chunks, (chunk + 1) * count / chunks,
                          partials.data() + chunk * partial, gates.data() + chunk * 3 * H);
  });
  table<T>().gather(layer, lstm, run, partials.data(), gates.data(), chunks);
  return {grad_input, grad_h0, grad_c0, grad_weight_ih, grad_weight_hh,
          grad_bias_ih, grad_bias_hh, grad_peephole, grad_gate, grad_times};
}

// One operator for both cells: c0 present means LSTM.
std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(
    Tensor input, MaybeTensor lengths, Tensor offsets, Tensor units, Tensor phases, Tensor h0, MaybeTensor c0,
    Tensor weight_ih, Tensor weight_hh, MaybeTensor bias_ih, MaybeTensor bias_hh, MaybeTensor peephole,
    Tensor ratio_on, double leak, int64_t oscillation, bool reverse, bool return_sequence, bool keep_tape) {
  const auto run = [&]<typename T>(T) {
    return forward(layer_of<T>(c0 ? 4 : 3, input, lengths, offsets, units, phases, weight_ih, weight_hh, bias_ih,
                               bias_hh, peephole, ratio_on, leak, oscillation, reverse),
                   input, h0, c0, return_sequence, keep_tape);
  };
  return input.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward(
    Tensor input, MaybeTensor lengths, Tensor offsets, Tensor units, Tensor phases, Tensor weight_ih,
    Tensor weight_hh, MaybeTensor bias_ih, MaybeTensor bias_hh, MaybeTensor peephole, Tensor ratio_on, double leak,
    int64_t oscillation, bool reverse, Tensor h_n, Tensor tape, MaybeTensor grad_output, Tensor grad_h_n,
    MaybeTensor grad_c_n, Tensor period, Tensor shift, Tensor times, bool need_times, bool need_input) {
  const auto run = [&]<typename T>(T) {
    return backward(layer_of<T>(grad_c_n ? 4 : 3, input, lengths, offsets, units, phases, weight_ih, weight_hh,
                                bias_ih, bias_hh, peephole, ratio_on, leak, oscillation, reverse),
                    input, h_n, tape, grad_output, grad_h_n, grad_c_n, period, shift, times, need_times, need_input);
  };
  return input.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

// The instruction set in use, as a number: 0 baseline, 1 AVX2, 2 AVX-512.
int64_t instruction_set() {
  const std::string name = kernels().name;
  return name == "avx512" ? 2 : name == "avx2" ? 1 : 0;
}

}  // namespace

STABLE_TORCH_LIBRARY(phased_lstm, m) {
  m.def(
      "schedule(Tensor times, Tensor? residue, Tensor period, Tensor shift, Tensor ratio_on, bool all_open, "
      "bool single) -> (Tensor, Tensor, Tensor)");
  m.def(
      "layer_forward(Tensor input, Tensor? lengths, Tensor offsets, Tensor units, Tensor phases, Tensor h0, "
      "Tensor? c0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? peephole, "
      "Tensor ratio_on, float leak, int oscillation, bool reverse, bool return_sequence, bool keep_tape) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "layer_backward(Tensor input, Tensor? lengths, Tensor offsets, Tensor units, Tensor phases, "
      "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? peephole, Tensor ratio_on, "
      "float leak, int oscillation, bool reverse, Tensor h_n, Tensor tape, Tensor? grad_output, Tensor grad_h_n, "
      "Tensor? grad_c_n, Tensor period, Tensor shift, Tensor times, bool need_times, bool need_input) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("instruction_set() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(phased_lstm, CPU, m) {
  m.impl("schedule", TORCH_BOX(&schedule));
  m.impl("layer_forward", TORCH_BOX(&layer_forward));
  m.impl("layer_backward", TORCH_BOX(&layer_backward));
}

STABLE_TORCH_LIBRARY_IMPL(phased_lstm, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
}

// The operators as torch sees them, on the stable ABI: shapes and bounds are checked here once more,
// since a wrong offset would read or write past an array, and work is spread over torch's threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "events.h"
#include "instruction_set.h"
#include "kernels.h"
#include "tensors.h"
#include "weights.h"

namespace {

using namespace phased_lstm;

// Gradients that rows share are gathered in this many parts at most, whatever the number of threads,
// so that the order of additions, and with it every bit, stays the same.
constexpr int64_t kChunks = 16;

// From so many sequences on, those that can run side by side do.
constexpr int64_t kPanelBatch = 4;

static_assert(kPanelBatch - 1 <= kChunks, "sequences that go one after the other are a chunk each");
static_assert(group_rows(kPanelBatch - 1) == 1 && group_rows(kPanelBatch) > 1, "those that do not are in groups");

// An event is a unit and a slot in 32 bits.
constexpr int64_t kMostUnits = int64_t(1) << (31 - kSlotBits);

// The operands that all operators share.
struct Operands {
  Tensor input;
  MaybeTensor lengths;
  Tensor weight_ih, weight_hh;
  MaybeTensor bias_ih, bias_hh, peephole;
  double leak;
  int64_t oscillation;
  bool reverse;
  int64_t batch, steps, inputs, units;
  bool lstm;
  Buffer<int64_t> valid;  // steps of each sequence; empty without lengths

  // The input is (N, L, I); or, for a step, (N, I) or (I).
  Operands(Tensor input_, MaybeTensor lengths_, Tensor weight_ih_, Tensor weight_hh_, MaybeTensor bias_ih_,
           MaybeTensor bias_hh_, MaybeTensor peephole_, double leak_, int64_t oscillation_, bool reverse_, bool step)
      : input(input_), lengths(lengths_), weight_ih(weight_ih_), weight_hh(weight_hh_), bias_ih(bias_ih_),
        bias_hh(bias_hh_), peephole(peephole_), leak(leak_), oscillation(oscillation_), reverse(reverse_) {
    const int64_t rank = input.dim();
    STD_TORCH_CHECK(step ? rank == 1 || rank == 2 : rank == 3, "input should be (N, L, I), or for a step (N, I) or (I)");
    STD_TORCH_CHECK(input.is_cpu() && input.is_contiguous(), "input should be a contiguous tensor on the CPU");
    STD_TORCH_CHECK(input.scalar_type() == ScalarType::Float || input.scalar_type() == ScalarType::Double,
                    "input should be float32 or float64");
    STD_TORCH_CHECK(weight_hh.dim() == 2, "weight_hh should be (G * H, H)");
    batch = rank == 1 ? 1 : input.size(0);
    steps = step ? 1 : input.size(1);
    inputs = input.size(rank - 1);
    units = weight_hh.size(1);
    lstm = weight_hh.size(0) == 4 * units;
    STD_TORCH_CHECK(units > 0 && inputs > 0, "there should be at least one unit and one input feature");
    STD_TORCH_CHECK(units < kMostUnits, "there should be fewer than ", kMostUnits, " units, got ", units);
    if (!lengths) return;
    const auto* given = pointer<int64_t>(lengths, "lengths", {batch});
    valid.assign(given, given + batch);
    for (const int64_t count : valid) STD_TORCH_CHECK(count >= 0 && count <= steps, "lengths should be from 0 to L");
  }
  const int64_t* lengths_or_null() const { return lengths && batch ? valid.data() : nullptr; }
};

// A leak that is too small for the type must not become none: events are all there on account of it.
template <typename T>
T leak_of(double leak) {
  return leak > 0.0 ? std::max(static_cast<T>(leak), std::numeric_limits<T>::min()) : T(0);
}

void check_times(const Operands& from, const Times& times) {
  STD_TORCH_CHECK(times.steps == from.steps && (times.rows == 1 || times.rows == from.batch),
                  "times should be (L,) or (N, L)");
}

// Checks a layer's tensors and gathers them; `gates` is 4 for an LSTM and 3 for a GRU. `ratio_on` holds the ratios in
// the compute type, for as long as the layer is used.
template <typename T>
Layer<T> layer_of(int64_t gates, const Operands& from, const Times& times, Events<T> events, const double* ratios,
                  Buffer<T>& ratio_on) {
  const int64_t N = from.batch, L = from.steps, I = from.inputs, H = from.units;
  STD_TORCH_CHECK(from.oscillation >= kTriangle && from.oscillation <= kCosine, "unknown oscillation");
  check_times(from, times);
  STD_TORCH_CHECK(events.shared == (times.rows == 1), "events should have as many rows as times");
  events.shared &= N != 1;
  ratio_on.assign(ratios, ratios + H);
  Layer<T> layer{N, L, I, H, from.reverse, events,
                 times.coarse,
                 false,
                 nullptr,
                 static_cast<const T*>(from.input.const_data_ptr()),
                 pointer<T>(from.weight_ih, "weight_ih", {gates * H, I}),
                 pointer<T>(from.weight_hh, "weight_hh", {gates * H, H}),
                 pointer<T>(from.bias_ih, "bias_ih", {gates * H}),
                 pointer<T>(from.bias_hh, "bias_hh", {gates * H}),
                 pointer<T>(from.peephole, "peephole", {3, H}),
                 ratio_on.data(),
                 leak_of<T>(from.leak), static_cast<Oscillation>(from.oscillation)};
  // Not a matter of which units happen to be open: a sequence must come out the same in parts.
  layer.panels = N >= kPanelBatch && (layer.events.shared || from.leak > 0.0);
  if (!layer.panels && N > 1) check_features(I);
  STD_TORCH_CHECK(!layer.panels || layer.events.shared || layer.events.count == N * L * H,
                  "with a leak every unit should have an event at every step");
  layer.lengths = from.lengths_or_null();
  return layer;
}

// The plans of the groups in which sequences with times of their own go, if these do.
std::optional<Plans> plans_of(const Operands& from, const Times& times, const GateOf& gate) {
  check_times(from, times);
  if (times.rows < kPanelBatch || from.leak > 0.0) return std::nullopt;
  return std::make_optional<Plans>(gate_times(times, gate, from.units, false), from.lengths_or_null(), from.reverse);
}

// The weights of the units that have events, in memory that the thread keeps, or in `own` if they are large. Valid until
// the thread packs again.
template <typename T>
const T* packed_weights(const Layer<T>& layer, bool lstm, Buffer<T>& own) {
  const auto bytes = table<T>().packed_size(layer, lstm) * sizeof(T);
  Buffer<T>& packed = bytes <= kKeptBytes ? kept_weights<T>() : own;
  pack_open(layer, lstm, packed);
  return packed.data();
}

template <typename T>
int64_t groups(const Layer<T>& layer) {
  const int64_t size = table<T>().group(layer);
  return (layer.batch + size - 1) / size;
}

// States or gradients in them: (N, H), or (1, N, H) as a layer has them; zeros, held in `zeros`, if there are none.
template <typename T>
const T* states(const MaybeTensor& given, const char* name, int64_t batch, int64_t units, Buffer<T>& zeros) {
  if (!given) {
    zeros.resize(batch * units, T(0));
    return zeros.data();
  }
  return given->dim() == 3 ? pointer<T>(given, name, {1, batch, units}) : pointer<T>(given, name, {batch, units});
}

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
void run_forward(const Layer<T>& layer, bool lstm, const Forward<T>& run) {
  Buffer<T> own;
  const T* packed = packed_weights(layer, lstm, own);
  share_out(groups(layer), layer.steps, [&](Shares& shares) { table<T>().forward(layer, lstm, run, packed, shares); });
}

template <typename T>
ForwardResult forward(const Operands& from, const Times& times, const GateOf& gate, const MaybeTensor& h0,
                      const MaybeTensor& c0, bool return_sequence, bool keep_tape, bool layered) {
  const bool lstm = from.lstm;
  STD_TORCH_CHECK(lstm || !c0, "c0 is an LSTM's, and weight_hh is not (4 * H, H)");
  const int64_t N = from.batch, L = from.steps, H = from.units;
  const std::optional<Plans> plans = plans_of(from, times, gate);
  const FoundEvents<T> found(keep_tape ? &from.input : nullptr, gate_times(times, gate, H, from.leak > 0.0),
                             plans ? &*plans : nullptr);
  Buffer<T> ratio_on;
  const Layer<T> layer = layer_of<T>(lstm ? 4 : 3, from, times, found.events, gate.ratio_on, ratio_on);
  Tensor output_ = blank<T>(from.input, {return_sequence ? N : 0, L, H});
  const auto blank_states = [&](int64_t rows) {
    return layered ? blank<T>(from.input, {1, rows, H}) : blank<T>(from.input, {rows, H});
  };
  Tensor h_n = blank_states(N), c_n = blank_states(lstm ? N : 0);
  // Panels leave out what lies beyond their longest sequence.
  const bool gaps = layer.panels && layer.lengths;
  Tensor tape = keep_tape
                    ? blank<T>(from.input, {table<T>().tape_entries(layer), table<T>().tape_fields(layer, lstm)}, gaps)
                    : blank<T>(from.input, {0, 0});
  Buffer<T> zeros;
  run_forward<T>(layer, lstm,
                 {states(h0, "h0", N, H, zeros), lstm ? states(c0, "c0", N, H, zeros) : nullptr,
                  return_sequence ? output<T>(output_) : nullptr, output<T>(h_n), lstm ? output<T>(c_n) : nullptr,
                  keep_tape ? output<T>(tape) : nullptr});
  if (keep_tape) return {output_, h_n, c_n, tape, *found.offsets, *found.units, *found.phases};
  return {output_, h_n, c_n, tape, blank<int64_t>(h_n, {0, 0}), blank<int32_t>(h_n, {0}), blank<T>(h_n, {0})};
}

// The constants of a gate's parametrisation.
struct Parametrisation {
  double period_step, shift_step, ratio_step, log_period_range, shift_range, logit_range, least_ratio;
  explicit Parametrisation(const std::vector<double>& of) {
    STD_TORCH_CHECK(of.size() == 7, "parametrisation should have 7 constants, got ", of.size());
    period_step = of[0], shift_step = of[1], ratio_step = of[2], log_period_range = of[3], shift_range = of[4];
    logit_range = of[5], least_ratio = of[6];
  }
};

using OfGate = std::array<Tensor, 3>;

// (3, H) gradients in a gate's values become those in its raw parameters: the derivative of `gate_values` in
// _parametrisation.py, rounded after every operation just as torch's own autograd rounds it. So this file is compiled
// without contraction to fused operations. `raw_gate` (8, H): the raw parameters, the initial values, and the growth and
// the odds that the raw parameters were found to stand for on the way forward.
template <typename T>
OfGate raw_gradients(const double* in_values, const Tensor& raw_gate, int64_t H, const Parametrisation& by) {
  const T* const rows = pointer<T>(raw_gate, "raw_gate", {8, H});
  const T *raw_period = rows, *raw_shift = rows + H, *raw_ratio_on = rows + 2 * H, *initial_period = rows + 3 * H;
  const T *initial_ratio_on = rows + 5 * H, *growth = rows + 6 * H, *odds = rows + 7 * H;
  OfGate in_raw{blank<T>(raw_gate, {H}), blank<T>(raw_gate, {H}), blank<T>(raw_gate, {H})};
  T *in_raw_period = output<T>(in_raw[0]), *in_raw_shift = output<T>(in_raw[1]), *in_raw_ratio = output<T>(in_raw[2]);
  const auto inside = [](T x, double range) { return x >= T(-range) && x <= T(range); };
  for (int64_t u = 0; u < H; ++u) {
    const auto in_shift = static_cast<T>(in_values[H + u]), in_ratio = static_cast<T>(in_values[2 * H + u]);
    const T period = initial_period[u] * growth[u], periods = T(by.shift_step) * raw_shift[u];
    const T turns = std::clamp(periods, T(-by.shift_range), T(by.shift_range));
    const T in_period = static_cast<T>(in_values[u]) + in_shift * turns;
    in_raw_period[u] = inside(T(by.period_step) * raw_period[u], by.log_period_range)
                           ? in_period * initial_period[u] * growth[u] * T(by.period_step) : T(0);
    in_raw_shift[u] = inside(periods, by.shift_range) ? in_shift * period * T(by.shift_step) : T(0);
    const T part = initial_ratio_on[u] * odds[u], whole = part + (T(1) - initial_ratio_on[u]), ratio = part / whole;
    const T in_odds = in_ratio / whole * initial_ratio_on[u] - in_ratio * (ratio / whole) * initial_ratio_on[u];
    in_raw_ratio[u] = ratio >= T(by.least_ratio) && inside(T(by.ratio_step) * raw_ratio_on[u], by.logit_range)
                          ? in_odds * odds[u] * T(by.ratio_step) : T(0);
  }
  return in_raw;
}

// Gradients in a gate's values, which are (3, H); or in its raw parameters, if there is a raw gate.
OfGate gate_gradients(const double* in_values, const Tensor& like, const MaybeTensor& raw_gate,
                      const std::vector<double>& parametrisation, int64_t H) {
  if (raw_gate) {
    const Parametrisation by(parametrisation);
    return raw_gate->scalar_type() == ScalarType::Double ? raw_gradients<double>(in_values, *raw_gate, H, by)
                                                         : raw_gradients<float>(in_values, *raw_gate, H, by);
  }
  OfGate gradients{blank<double>(like, {H}), blank<double>(like, {H}), blank<double>(like, {H})};
  for (int j = 0; j < 3; ++j) std::copy_n(in_values + j * H, H, output<double>(gradients[j]));
  return gradients;
}

template <typename T>
BackwardResult backward(const Operands& from, const Times& times, const Events<T>& events, const GateOf& gate,
                        const Tensor& h_n, const Tensor& tape, const MaybeTensor& grad_output,
                        const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n, bool need_times, bool need_input,
                        const MaybeTensor& raw_gate, const std::vector<double>& parametrisation) {
  const bool lstm = from.lstm;
  STD_TORCH_CHECK(lstm || !grad_c_n, "grad_c_n is an LSTM's, and weight_hh is not (4 * H, H)");
  Buffer<T> ratio_on;
  const Layer<T> layer = layer_of<T>(lstm ? 4 : 3, from, times, events, gate.ratio_on, ratio_on);
  const Tensor& input = from.input;
  const int64_t N = layer.batch, L = layer.steps, I = layer.inputs, H = layer.units, G = lstm ? 4 : 3;
  Tensor grad_input = blank<T>(input, {need_input ? N : 0, L, I}, need_input);
  Tensor grad_h0 = blank<T>(input, {N, H}), grad_c0 = blank<T>(input, {lstm ? N : 0, H});
  Tensor grad_weight_ih = blank<T>(input, {G * H, I}), grad_weight_hh = blank<T>(input, {G * H, H});
  Tensor grad_bias_ih = blank<T>(input, {G * H}), grad_bias_hh = blank<T>(input, {lstm ? 0 : G * H});
  Tensor grad_peephole = blank<T>(input, {layer.peephole ? 3 : 0, H});
  Tensor grad_times = blank<double>(input, {need_times ? N : 0, L}, need_times);
  Buffer<double> in_gate(3 * H);
  Buffer<T> zeros;
  const Backward<T> run{states(MaybeTensor(h_n), "h_n", N, H, zeros),
                        pointer<T>(tape, "tape", {table<T>().tape_entries(layer), table<T>().tape_fields(layer, lstm)}),
                        pointer<T>(grad_output, "grad_output", {N, L, H}),
                        states(grad_h_n, "grad_h_n", N, H, zeros),
                        lstm ? states(grad_c_n, "grad_c_n", N, H, zeros) : nullptr,
                        gate.period,
                        gate.shift,
                        need_input ? output<T>(grad_input) : nullptr,
                        output<T>(grad_h0),
                        lstm ? output<T>(grad_c0) : nullptr,
                        output<T>(grad_weight_ih),
                        output<T>(grad_weight_hh),
                        output<T>(grad_bias_ih),
                        lstm ? nullptr : output<T>(grad_bias_hh),
                        layer.peephole ? output<T>(grad_peephole) : nullptr,
                        in_gate.data(),
                        need_times ? output<double>(grad_times) : nullptr};
  const int64_t parts = std::min(groups(layer), kChunks);
  // An empty batch has one, too, to gather zeros from.
  const int64_t chunks = std::max<int64_t>(1, parts);
  Buffer<T> partials(chunks * table<T>().partial_size(layer, lstm), T(0));
  Buffer<double> gates(chunks * kGateSums * H, 0.0);
  Buffer<T> own;
  const T* packed = packed_weights(layer, lstm, own);
  share_out(parts, L, [&](Shares& shares) {
    table<T>().backward(layer, lstm, run, packed, shares, partials.data(), gates.data());
  });
  table<T>().gather(layer, lstm, run, partials.data(), gates.data(), chunks);
  const auto [grad_period, grad_shift, grad_ratio_on] =
      gate_gradients(in_gate.data(), input, raw_gate, parametrisation, H);
  return {grad_input,   grad_h0,       grad_c0,     grad_weight_ih, grad_weight_hh, grad_bias_ih,
          grad_bias_hh, grad_peephole, grad_period, grad_shift,     grad_ratio_on,  grad_times};
}

// Strided tensors serve too: in a program that torch.export made nobody asks before whether they are.
void make_dense(Tensor& tensor) {
  if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
}
void make_dense(MaybeTensor& tensor) {
  if (tensor) make_dense(*tensor);
}
template <typename... Tensors>
void make_all_dense(Tensors&... tensors) {
  (make_dense(tensors), ...);
}

// One operator for both cells: an LSTM's weight_hh is (4 * H, H). States that are not given are zero; `layered`: the
// final ones are to be (1, N, H).
ForwardResult layer(Tensor input, Tensor times, MaybeTensor lengths, MaybeTensor h0, MaybeTensor c0, Tensor weight_ih,
                    Tensor weight_hh, MaybeTensor bias_ih, MaybeTensor bias_hh, MaybeTensor peephole, Tensor period,
                    Tensor shift, Tensor ratio_on, double leak, int64_t oscillation, bool reverse,
                    bool return_sequence, bool keep_tape, bool layered) {
  make_all_dense(input, times, lengths, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, peephole, period, shift, ratio_on);
  const Operands from(input, lengths, weight_ih, weight_hh, bias_ih, bias_hh, peephole, leak, oscillation, reverse,
                      false);
  const Times stamps(times);
  const GateOf gate(period, shift, ratio_on, from.units);
  return input.scalar_type() == ScalarType::Double
             ? forward<double>(from, stamps, gate, h0, c0, return_sequence, keep_tape, layered)
             : forward<float>(from, stamps, gate, h0, c0, return_sequence, keep_tape, layered);
}

// Gradients that are not given are zero. With `raw_gate`, see raw_gradients, those in the gate's values become those in
// its raw parameters.
BackwardResult layer_backward(Tensor input, Tensor times, MaybeTensor lengths, Tensor weight_ih, Tensor weight_hh,
                              MaybeTensor bias_ih, MaybeTensor bias_hh, MaybeTensor peephole, Tensor period,
                              Tensor shift, Tensor ratio_on, double leak, int64_t oscillation, bool reverse,
                              Tensor h_n, Tensor tape, Tensor offsets, Tensor units, Tensor phases,
                              MaybeTensor grad_output, MaybeTensor grad_h_n, MaybeTensor grad_c_n, bool need_times,
                              bool need_input, MaybeTensor raw_gate, std::vector<double> parametrisation) {
  make_all_dense(input, times, lengths, weight_ih, weight_hh, bias_ih, bias_hh, peephole, period, shift, ratio_on, h_n,
                 tape, offsets, units, phases, grad_output, grad_h_n, grad_c_n, raw_gate);
  const Operands from(input, lengths, weight_ih, weight_hh, bias_ih, bias_hh, peephole, leak, oscillation, reverse,
                      false);
  const Times stamps(times);
  const GateOf gate(period, shift, ratio_on, from.units);
  const auto run = [&]<typename T>(T) {
    const std::optional<Plans> plans = plans_of(from, stamps, gate);
    TakenMemory<T> memory(kept_events<T>());
    const Events<T> events =
        plans ? checked_events<T>(*memory, offsets, units, phases, from.units, *plans)
              : checked_events<T>(*memory, offsets, units, phases, from.batch, from.steps, from.units);
    return backward<T>(from, stamps, events, gate, h_n, tape, grad_output, grad_h_n, grad_c_n, need_times, need_input,
                       raw_gate, parametrisation);
  };
  return input.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

// One step at one time, without autograd; c present means LSTM. h may be (N, H) or (H), and so are the results.
std::tuple<Tensor, Tensor> step(Tensor input, double time, Tensor h, MaybeTensor c, Tensor weight_ih, Tensor weight_hh,
                                MaybeTensor bias_ih, MaybeTensor bias_hh, MaybeTensor peephole, Tensor period,
                                Tensor shift, Tensor ratio_on, int64_t oscillation) {
  make_all_dense(input, h, c, weight_ih, weight_hh, bias_ih, bias_hh, peephole, period, shift, ratio_on);
  const Operands from(input, std::nullopt, weight_ih, weight_hh, bias_ih, bias_hh, peephole, 0.0, oscillation, false,
                      true);
  const Times times(time);
  const GateOf gate(period, shift, ratio_on, from.units);
  const auto run = [&]<typename T>(T) -> std::tuple<Tensor, Tensor> {
    const int64_t N = from.batch, H = from.units;
    const std::initializer_list<int64_t> alone{H}, batched{N, H};
    const auto& shape = input.dim() == 1 ? alone : batched;
    const FoundEvents<T> found(nullptr, gate_times(times, gate, H, false));
    Buffer<T> ratios;
    const Layer<T> layer = layer_of<T>(c ? 4 : 3, from, times, found.events, gate.ratio_on, ratios);
    Tensor new_h = blank<T>(input, shape), new_c = blank<T>(input, c ? std::vector<int64_t>(shape) : std::vector<int64_t>{0});
    run_forward<T>(layer, c.has_value(),
                   {pointer<T>(h, "h", shape), pointer<T>(c, "c", shape), nullptr, output<T>(new_h),
                    c ? output<T>(new_c) : nullptr, nullptr});
    return {new_h, new_c};
  };
  return input.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

// Whether a time gate's parameters still are, bit for bit, the first six rows of `kept` (8, H), and its origin is
// `kept_origin`.
bool gate_unchanged(Tensor kept, int64_t kept_origin, Tensor raw_period, Tensor raw_shift, Tensor raw_ratio_on,
                    Tensor initial_period, Tensor initial_shift, Tensor initial_ratio_on, Tensor origin) {
  if (!origin.is_cpu() || origin.scalar_type() != ScalarType::Long || origin.dim() != 0 ||
      *static_cast<const int64_t*>(origin.const_data_ptr()) != kept_origin)
    return false;
  if (kept.dim() != 2 || kept.size(0) != 8 || !kept.is_cpu() || !kept.is_contiguous()) return false;
  const size_t bytes = static_cast<size_t>(kept.size(1)) * kept.element_size();
  const char* held = static_cast<const char*>(kept.const_data_ptr());
  for (const Tensor* now : {&raw_period, &raw_shift, &raw_ratio_on, &initial_period, &initial_shift, &initial_ratio_on}) {
    if (!now->is_cpu() || !now->is_contiguous() || now->scalar_type() != kept.scalar_type() || now->dim() != 1 ||
        now->size(0) != kept.size(1) || std::memcmp(held, now->const_data_ptr(), bytes) != 0)
      return false;
    held += bytes;
  }
  return true;
}

// The instruction set in use, as a number: 0 baseline, 1 AVX2, 2 AVX-512.
int64_t instruction_set() {
  const std::string name = kernels().name;
  return name == "avx512" ? 2 : name == "avx2" ? 1 : 0;
}

int64_t read_changed_places() { return changed_places; }

}  // namespace

STABLE_TORCH_LIBRARY(phased_lstm, m) {
  m.def(
      "layer(Tensor input, Tensor times, Tensor? lengths, Tensor? h0, Tensor? c0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? peephole, Tensor period, Tensor shift, Tensor ratio_on, float leak, "
      "int oscillation, bool reverse, bool return_sequence, bool keep_tape, bool layered) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "layer_backward(Tensor input, Tensor times, Tensor? lengths, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? peephole, Tensor period, Tensor shift, Tensor ratio_on, float leak, "
      "int oscillation, bool reverse, Tensor h_n, Tensor tape, Tensor offsets, Tensor units, Tensor phases, "
      "Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, bool need_times, bool need_input, Tensor? raw_gate, "
      "float[] parametrisation) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "step(Tensor input, float time, Tensor h, Tensor? c, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, Tensor? peephole, Tensor period, Tensor shift, Tensor ratio_on, int oscillation) "
      "-> (Tensor, Tensor)");
  m.def(
      "gate_unchanged(Tensor kept, int kept_origin, Tensor raw_period, Tensor raw_shift, Tensor raw_ratio_on, "
      "Tensor initial_period, Tensor initial_shift, Tensor initial_ratio_on, Tensor origin) -> bool");
  m.def("instruction_set() -> int");
  m.def("changed_places() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(phased_lstm, CPU, m) {
  m.impl("layer", TORCH_BOX(&layer));
  m.impl("layer_backward", TORCH_BOX(&layer_backward));
  m.impl("step", TORCH_BOX(&step));
  m.impl("gate_unchanged", TORCH_BOX(&gate_unchanged));
}

STABLE_TORCH_LIBRARY_IMPL(phased_lstm, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
  m.impl("changed_places", TORCH_BOX(&read_changed_places));
}

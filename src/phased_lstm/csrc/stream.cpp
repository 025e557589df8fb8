// Live streams: one operator takes events of any of S independent streams through all layers of a stack, and carries
// the streams' states on in place. An event's bits are those of the layer operator, whatever came with it in a push.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <vector>

#include "events.h"
#include "instruction_set.h"
#include "kernels.h"
#include "tensors.h"
#include "weights.h"

namespace {

using namespace phased_lstm;

// Streams that go through the kernels side by side, to share reads of the weights; below the smaller number there is
// nothing to share that would pay for bringing them side by side.
constexpr int64_t kMostRows = 64, kFewestRows = 4;
static_assert(group_rows(kFewestRows) > 1, "their events are those of groups");

// Integer times stay within this of zero, so that a difference of two cannot overflow.
constexpr int64_t kIntegerTimes = int64_t(1) << 62;

// The events of one stream in a push: count of them from `begin` on, in the order of `Push::order`.
struct Segment {
  int64_t stream, begin, count;
};

// The events of a push, brought together by stream; in a stream in the order of arrival.
struct Push {
  std::vector<int64_t> order;  // arrival number of each event; empty when it is the order of arrival already
  std::vector<Segment> segments;
  int64_t problem = -1;  // arrival number of the first event that cannot be taken
  int64_t arrival(int64_t place) const { return order.empty() ? place : order[place]; }
};

// The first event of which a value is infinite or NaN; the number of events if there is none.
template <typename T>
int64_t first_invalid(const Tensor& values, int64_t count, int64_t inputs) {
  const auto* of = static_cast<const T*>(values.const_data_ptr());
  const T* const end = of + count * inputs;
  return (std::find_if(of, end, [](T value) { return !std::isfinite(value); }) - of) / inputs;
}

// Sorts events by stream and checks what must hold before anything is applied: streams within S, times that are finite
// and, unless late ones are accepted, do not go back within a stream. `invalid`: an event that is not to be taken for
// its values. V: double or int64_t.
template <typename V>
Push arrange(const V* times, const int64_t* ids, int64_t id, int64_t count, const V* latest, int64_t streams,
             bool accept_late, int64_t invalid) {
  Push push;
  const auto stream_of = [&](int64_t event) { return ids ? ids[event] : id; };
  bool sorted = true;
  for (int64_t e = 0; e < count && push.problem < 0; ++e) {
    const int64_t stream = stream_of(e);
    bool usable;
    if constexpr (std::is_same_v<V, double>)
      usable = std::isfinite(times[e]);
    else
      usable = times[e] < kIntegerTimes && times[e] > -kIntegerTimes;
    if (stream < 0 || stream >= streams || !usable || e == invalid) push.problem = e;
    sorted &= e == 0 || stream_of(e - 1) <= stream;
  }
  // What comes before an event that cannot be taken may be late, and then is the first problem.
  const int64_t end = push.problem < 0 ? count : push.problem;
  if (!sorted) {
    push.order.resize(end);
    std::iota(push.order.begin(), push.order.end(), int64_t(0));
    std::stable_sort(push.order.begin(), push.order.end(),
                     [&](int64_t a, int64_t b) { return stream_of(a) < stream_of(b); });
  }
  for (int64_t place = 0; place < end;) {
    const int64_t begin = place, stream = stream_of(push.arrival(place));
    V before = latest[stream];
    for (; place < end && stream_of(push.arrival(place)) == stream; ++place) {
      const int64_t event = push.arrival(place);
      if (times[event] < before && !accept_late && (push.problem < 0 || event < push.problem)) push.problem = event;
      before = std::max(before, times[event]);
    }
    push.segments.push_back({stream, begin, place - begin});
  }
  return push;
}

// Times of a push after a gate's origin, in the order of its segments, as doubles and what doubles cannot hold.
template <typename V>
struct Relative {
  Buffer<double> coarse, residue;
  Relative(const Push& push, const V* times, int64_t count, int64_t origin) : coarse(count) {
    bool exact = true;
    for (int64_t place = 0; place < count; ++place) {
      const V time = times[push.arrival(place)] - static_cast<V>(origin);
      coarse[place] = static_cast<double>(time);
      if constexpr (std::is_same_v<V, int64_t>) {
        STD_TORCH_CHECK(std::fabs(coarse[place]) < 0x1p63, "integer times should be within 2**62 of zero");
        exact &= static_cast<int64_t>(coarse[place]) == time;
      }
    }
    if (exact) return;
    residue.resize(count);
    for (int64_t place = 0; place < count; ++place)
      residue[place] = static_cast<double>(times[push.arrival(place)] - static_cast<V>(origin) -
                                           static_cast<V>(coarse[place]));
  }
};

// Sequences of a few segments side by side, padded to the longest.
template <typename T>
struct Rows {
  Buffer<T> input, h, c, output;
  Buffer<T> h_n, c_n;
  Buffer<double> times;
  std::vector<int64_t> lengths, offsets;
  EventMemory<T> events;
};

// What a push needs for a while. Each thread keeps its own from push to push: given back to the system and taken again,
// every page would cost more than the events in it.
template <typename T>
struct Workspace {
  Buffer<T> sorted, between[2], new_h, new_c, packed;
  Rows<T> rows;
  static Workspace& of_thread() {
    thread_local Workspace workspace;
    return workspace;
  }
  // Of an unusually large push nothing is kept.
  void tidy() {
    if ((sorted.size() + between[0].size() + new_h.size() + rows.output.size()) * sizeof(T) > kMostKept)
      *this = Workspace();
  }

 private:
  static constexpr size_t kMostKept = 64 << 20;
};

// One layer of the stack over a push. `layer` lacks only what depends on the segments: `events`, `input` and the times
// of `gate` are those of all of them, one behind the other.
template <typename T>
class LayerRun {
 public:
  // `output`: (E, H) or null; `to`: the row of each event in it, or null for the event's own place. `new_h`, `new_c`:
  // (segments, H).
  LayerRun(const Layer<T>& layer, const GateTimes& gate, bool lstm, const T* packed, const T* h, const T* c, T* output,
           const int64_t* to, T* new_h, T* new_c, Rows<T>& rows)
      : layer_(layer), gate_(gate), lstm_(lstm), packed_(packed), h_(h), c_(c), output_(output), to_(to), new_h_(new_h),
        new_c_(new_c), rows_(rows) {}

  // `by_length`: numbers of segments, the longest first.
  void run(const std::vector<Segment>& segments, const std::vector<int64_t>& by_length) {
    const int64_t count = static_cast<int64_t>(by_length.size());
    for (int64_t first = 0; first < count;) {
      const int64_t longest = segments[by_length[first]].count;
      int64_t last = first + 1;
      while (last < count && last - first < kMostRows && 2 * segments[by_length[last]].count >= longest) ++last;
      if (last - first >= kFewestRows)
        side_by_side(segments, by_length.data() + first, last - first, longest);
      else
        for (int64_t j = first; j < last; ++j) alone(segments[by_length[j]], by_length[j]);
      first = last;
    }
  }

 private:
  void alone(const Segment& segment, int64_t number) {
    const int64_t H = layer_.units;
    T* out = output_ ? output_ + segment.begin * H : nullptr;
    if (output_ && to_) {
      rows_.output.resize(segment.count * H);
      out = rows_.output.data();
    }
    Layer<T> layer = layer_;
    layer.steps = segment.count;
    layer.input += segment.begin * layer.inputs;
    layer.times += segment.begin;
    layer.events.offsets += segment.begin;
    Shares all{1};
    table<T>().forward(layer, lstm_,
                       {h_ + segment.stream * H, lstm_ ? c_ + segment.stream * H : nullptr, out, new_h_ + number * H,
                        lstm_ ? new_c_ + number * H : nullptr, nullptr},
                       packed_, all);
    if (output_ && to_) put(segment, out);
  }

  // Copies a segment's outputs to where they belong.
  void put(const Segment& segment, const T* from) {
    const int64_t H = layer_.units;
    if (!to_) {
      std::copy_n(from, segment.count * H, output_ + segment.begin * H);
      return;
    }
    for (int64_t j = 0; j < segment.count; ++j) std::copy_n(from + j * H, H, output_ + to_[segment.begin + j] * H);
  }

  void side_by_side(const std::vector<Segment>& segments, const int64_t* numbers, int64_t rows, int64_t steps) {
    const int64_t H = layer_.units, I = layer_.inputs;
    Rows<T>& at = rows_;
    at.input.resize(rows * steps * I);
    at.times.resize(rows * steps);
    at.h.resize(rows * H);
    at.c.resize(lstm_ ? rows * H : 0);
    at.output.resize(output_ ? rows * steps * H : 0);
    at.lengths.resize(rows);
    at.offsets.resize(rows * (steps + 1));
    for (int64_t row = 0; row < rows; ++row) {
      const auto [stream, begin, count] = segments[numbers[row]];
      std::copy_n(layer_.input + begin * I, count * I, &at.input[row * steps * I]);
      std::copy_n(gate_.coarse + begin, count, &at.times[row * steps]);
      std::copy_n(h_ + stream * H, H, &at.h[row * H]);
      if (lstm_) std::copy_n(c_ + stream * H, H, &at.c[row * H]);
      at.lengths[row] = count;
      int64_t* offsets = &at.offsets[row * (steps + 1)];
      std::copy_n(layer_.events.offsets + begin, count + 1, offsets);
      std::fill(offsets + count + 1, offsets + steps + 1, offsets[count]);
    }
    GateTimes gate = gate_;
    gate.rows = rows;
    gate.steps = steps;
    gate.coarse = at.times.data();
    gate.residue = nullptr;
    Events<T> by_row = layer_.events;
    by_row.offsets = at.offsets.data();
    const Plans plans(gate, at.lengths.data(), false);
    const FoundEvents<T> found(gate, plans, by_row, at.events);
    Layer<T> layer = layer_;
    layer.batch = rows;
    layer.steps = steps;
    layer.input = at.input.data();
    layer.times = at.times.data();
    layer.lengths = at.lengths.data();
    layer.events = found.events;
    at.h_n.resize(rows * H);
    at.c_n.resize(lstm_ ? rows * H : 0);
    const Forward<T> run{at.h.data(), lstm_ ? at.c.data() : nullptr, output_ ? at.output.data() : nullptr,
                         at.h_n.data(), lstm_ ? at.c_n.data() : nullptr, nullptr};
    const int64_t size = table<T>().group(layer);
    share_out((rows + size - 1) / size, steps,
              [&](Shares& shares) { table<T>().forward(layer, lstm_, run, packed_, shares); });
    for (int64_t row = 0; row < rows; ++row) {
      const Segment& segment = segments[numbers[row]];
      std::copy_n(&at.h_n[row * H], H, new_h_ + numbers[row] * H);
      if (lstm_) std::copy_n(&at.c_n[row * H], H, new_c_ + numbers[row] * H);
      if (output_) put(segment, &at.output[row * steps * H]);
    }
  }

  Layer<T> layer_;
  const GateTimes& gate_;
  bool lstm_;
  const T* packed_;
  const T *h_, *c_;
  T* output_;
  const int64_t* to_;
  T *new_h_, *new_c_;
  Rows<T>& rows_;
};

// What the operator takes besides the events.
struct Stack {
  Tensor h;       // (layers, S, H)
  MaybeTensor c;  // the same for an LSTM
  // Of each layer: weight_ih, weight_hh, then bias_ih, bias_hh, then the peepholes of i, f, o, as far as there are any,
  // then the gate's period, shift, ratio_on.
  std::vector<Tensor> weights;
  std::vector<int64_t> origins, oscillations;
  bool bias, peephole;
  int64_t layers, streams, units;

  Stack(Tensor h_, MaybeTensor c_, std::vector<Tensor> weights_, std::vector<int64_t> origins_,
        std::vector<int64_t> oscillations_, bool bias_, bool peephole_)
      : h(h_), c(c_), weights(std::move(weights_)), origins(std::move(origins_)),
        oscillations(std::move(oscillations_)), bias(bias_), peephole(peephole_) {
    STD_TORCH_CHECK(h.dim() == 3, "h should be (layers, S, H)");
    layers = h.size(0), streams = h.size(1), units = h.size(2);
    STD_TORCH_CHECK(layers > 0 && units > 0, "there should be at least one layer and one unit");
    STD_TORCH_CHECK(static_cast<int64_t>(weights.size()) == layers * each() &&
                        static_cast<int64_t>(origins.size()) == layers &&
                        static_cast<int64_t>(oscillations.size()) == layers,
                    "there should be ", each(), " tensors, an origin and an oscillation for each layer");
    for (Tensor& weight : weights)
      if (!weight.is_contiguous()) weight = torch::stable::contiguous(weight);
  }
  int64_t each() const { return 5 + 2 * bias + 3 * peephole; }
};

template <typename T, typename V>
void push_events(const Stack& stack, const Push& push, const T* values, int64_t inputs, const V* times, V* latest,
                 int64_t count, T* result, bool last_only) {
  const bool lstm = stack.c.has_value();
  const int64_t S = stack.streams, H = stack.units, G = lstm ? 4 : 3;
  const auto touched = static_cast<int64_t>(push.segments.size());
  Tensor h_state = stack.h;
  T* h = output<T>(h_state);
  T* c = nullptr;
  MaybeTensor c_state = stack.c;
  if (lstm) c = output<T>(*c_state);
  std::vector<int64_t> by_length(touched);
  std::iota(by_length.begin(), by_length.end(), int64_t(0));
  std::stable_sort(by_length.begin(), by_length.end(), [&](int64_t a, int64_t b) {
    return push.segments[a].count > push.segments[b].count;
  });
  Workspace<T>& work = Workspace<T>::of_thread();
  Buffer<T>&new_h = work.new_h, &new_c = work.new_c, &packed = work.packed;
  new_h.resize(stack.layers * touched * H);
  new_c.resize(lstm ? new_h.size() : 0);
  const T* input = values;
  if (!push.order.empty()) {
    work.sorted.resize(count * inputs);
    for (int64_t place = 0; place < count; ++place)
      std::copy_n(values + push.order[place] * inputs, inputs, &work.sorted[place * inputs]);
    input = work.sorted.data();
  }
  for (int64_t index = 0; index < stack.layers; ++index) {
    const Tensor* next = &stack.weights[index * stack.each()];
    const int64_t I = index ? H : inputs;
    const bool last = index == stack.layers - 1;
    STD_TORCH_CHECK(stack.oscillations[index] >= kTriangle && stack.oscillations[index] <= kCosine,
                    "unknown oscillation");
    check_features(I);
    Layer<T> layer{};
    layer.batch = 1;
    layer.inputs = I;
    layer.units = H;
    layer.weight_ih = pointer<T>(*next++, "weight_ih", {G * H, I});
    layer.weight_hh = pointer<T>(*next++, "weight_hh", {G * H, H});
    if (stack.bias) {
      layer.bias_ih = pointer<T>(*next++, "bias_ih", {G * H});
      layer.bias_hh = pointer<T>(*next++, "bias_hh", {G * H});
    }
    Buffer<T> peephole(stack.peephole ? 3 * H : 0);
    for (int64_t j = 0; j < 3 * stack.peephole; ++j)
      std::copy_n(pointer<T>(*next++, "peephole", {H}), H, &peephole[j * H]);
    layer.peephole = stack.peephole ? peephole.data() : nullptr;
    const GateOf gate(next[0], next[1], next[2], H);
    const Buffer<T> ratio_on(gate.ratio_on, gate.ratio_on + H);
    layer.ratio_on = ratio_on.data();
    layer.oscillation = static_cast<Oscillation>(stack.oscillations[index]);
    const Relative<V> relative(push, times, count, stack.origins[index]);
    const GateTimes times_of_all{relative.coarse.data(), relative.residue.empty() ? nullptr : relative.residue.data(),
                                 1, count, H, gate.period, gate.shift, gate.ratio_on, false};
    const FoundEvents<T> found(nullptr, times_of_all);
    layer.events = found.events;
    layer.events.shared = false;
    layer.times = times_of_all.coarse;
    layer.input = input;
    pack_open(layer, lstm, packed);
    T* out = last && !last_only ? result : nullptr;
    if (!last) {
      work.between[index % 2].resize(count * H);
      out = work.between[index % 2].data();
    }
    const int64_t* to = last && !push.order.empty() ? push.order.data() : nullptr;
    LayerRun<T> run(layer, times_of_all, lstm, packed.data(), h + index * S * H,
                    lstm ? c + index * S * H : nullptr, out, to, new_h.data() + index * touched * H,
                    lstm ? new_c.data() + index * touched * H : nullptr, work.rows);
    run.run(push.segments, by_length);
    input = out;
  }
  // Nothing fails from here on, so a push is applied as a whole or not at all.
  for (int64_t index = 0; index < stack.layers; ++index)
    for (int64_t j = 0; j < touched; ++j) {
      const int64_t to = (index * S + push.segments[j].stream) * H, from = (index * touched + j) * H;
      std::copy_n(&new_h[from], H, h + to);
      if (lstm) std::copy_n(&new_c[from], H, c + to);
    }
  for (const auto& [stream, begin, length] : push.segments)
    for (int64_t place = begin; place < begin + length; ++place)
      latest[stream] = std::max(latest[stream], times[push.arrival(place)]);
  if (last_only) std::copy_n(&new_h[(stack.layers - 1) * touched * H], touched * H, result);
  work.tidy();
}

// Takes events through the stack and returns the last layer's h after each of them, or with `last_only` after the last
// of each stream; the streams touched, rising, with `last_only`; and -1, or the number of the first event that cannot
// be taken, and then nothing is done. Values are (E, I) and the result (E, H) or (touched, H); or, for one event,
// values (I) and the result (H). Times are float64 or int64 as `latest` (S) is; without them there is one event, at `time` or
// `whole_time`. Without `stream_ids` all events are of stream `stream_id`.
std::tuple<Tensor, MaybeTensor, int64_t> stream_push(Tensor values, MaybeTensor times, double time, int64_t whole_time,
                                                     MaybeTensor stream_ids, int64_t stream_id, bool accept_late,
                                                     bool accept_invalid, bool last_only, Tensor latest, Tensor h, MaybeTensor c,
                                                     std::vector<Tensor> weights, std::vector<int64_t> origins,
                                                     std::vector<int64_t> oscillations, bool bias, bool peephole) {
  const Stack stack(h, c, std::move(weights), std::move(origins), std::move(oscillations), bias, peephole);
  const int64_t rank = values.dim();
  STD_TORCH_CHECK((rank == 1 || rank == 2) && values.size(rank - 1) > 0, "values should be (E, I) or (I)");
  STD_TORCH_CHECK(values.is_cpu() && values.is_contiguous(), "values should be a contiguous tensor on the CPU");
  const int64_t E = rank == 1 ? 1 : values.size(0), I = values.size(rank - 1), S = stack.streams, H = stack.units;
  STD_TORCH_CHECK(values.scalar_type() == h.scalar_type(), "values has the wrong dtype");
  STD_TORCH_CHECK(times || E == 1, "times should be given where there is not one event");
  // Copies, so that what is checked is what is used.
  const auto* given_ids = pointer<int64_t>(stream_ids, "stream_ids", {E});
  const Buffer<int64_t> copied_ids(given_ids, given_ids + (given_ids ? E : 0));
  const int64_t* ids = given_ids ? copied_ids.data() : nullptr;
  const auto with_times = [&]<typename V>(V now) -> std::tuple<Tensor, MaybeTensor, int64_t> {
    const V* given = pointer<V>(times, "times", {E});
    const Buffer<V> copied(given, given + (given ? E : 0));
    const V* stamps = given ? copied.data() : &now;
    pointer<V>(latest, "latest", {S});
    V* newest = output<V>(latest);
    const bool doubles = values.scalar_type() == ScalarType::Double;
    const int64_t invalid = accept_invalid ? E : doubles ? first_invalid<double>(values, E, I)
                                                         : first_invalid<float>(values, E, I);
    const Push push = arrange<V>(stamps, ids, stream_id, E, newest, S, accept_late, invalid);
    if (push.problem >= 0) return {blank<V>(values, {0}), std::nullopt, push.problem};
    const auto touched = static_cast<int64_t>(push.segments.size());
    const auto run = [&]<typename T>(T) -> std::tuple<Tensor, MaybeTensor, int64_t> {
      check(h, "h", kTypeOf<T>, {stack.layers, S, H});
      if (c) check(*c, "c", kTypeOf<T>, {stack.layers, S, H});
      std::vector<int64_t> shape{last_only ? touched : E, H};
      if (rank == 1) shape.erase(shape.begin());
      Tensor result = blank<T>(values, shape);
      MaybeTensor streams;
      if (last_only) {
        streams.emplace(blank<int64_t>(values, {touched}));
        for (int64_t j = 0; j < touched; ++j) output<int64_t>(*streams)[j] = push.segments[j].stream;
      }
      const T* from = static_cast<const T*>(values.const_data_ptr());
      if (E) push_events<T, V>(stack, push, from, I, stamps, newest, E, output<T>(result), last_only);
      return {result, streams, -1};
    };
    return h.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  };
  return latest.scalar_type() == ScalarType::Long ? with_times(whole_time) : with_times(time);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(phased_lstm, m) {
  m.def(
      "stream_push(Tensor values, Tensor? times, float time, int whole_time, Tensor? stream_ids, int stream_id, "
      "bool accept_late, bool accept_invalid, bool last_only, Tensor(a!) latest, Tensor(b!) h, Tensor(c!)? c, Tensor[] weights, "
      "int[] origins, int[] oscillations, bool bias, bool peephole) -> (Tensor, Tensor?, int)");
}

STABLE_TORCH_LIBRARY_IMPL(phased_lstm, CPU, m) { m.impl("stream_push", TORCH_BOX(&stream_push)); }

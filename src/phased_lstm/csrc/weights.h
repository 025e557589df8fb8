// Packing the weights of the units that have events.
#pragma once

#include <vector>

#include "instruction_set.h"
#include "kernels.h"
#include "tensors.h"

namespace {

using phased_lstm::Buffer;
using phased_lstm::Layer;

// Events per unit below which it is worth looking which units have any; in a long sequence they all do.
constexpr int64_t kFewEvents = 4;

// Weights that a thread packs at a time.
constexpr int64_t kPackedBytes = 1 << 18;

// Places in the states of a group of sequences, with their features behind them, are counted in 32 bits.
constexpr int64_t kMostFeatures = 1 << 26;

inline void check_features(int64_t inputs) {
  STD_TORCH_CHECK(inputs < kMostFeatures, "a step should have fewer than ", kMostFeatures, " features, got ", inputs,
                  "; backend='reference' takes more");
}

template <typename T>
void pack_open(const Layer<T>& layer, bool lstm, Buffer<T>& packed) {
  const int64_t size = table<T>().packed_size(layer, lstm);
  make_room(packed, size);
  std::vector<uint8_t> open;
  if (layer.events.count < kFewEvents * layer.units) {
    open.resize(layer.units, 0);
    for (int64_t e = 0; e < layer.events.count; ++e) open[layer.events.unit(e)] = 1;
  }
  const uint8_t* wanted = open.empty() ? nullptr : open.data();
  const int64_t parts = wanted ? 1 : 1 + size * static_cast<int64_t>(sizeof(T)) / kPackedBytes;
  spread(parts, [&](int64_t part) {
    table<T>().pack(layer, lstm, packed.data(), wanted, part * layer.units / parts, (part + 1) * layer.units / parts);
  });
}

}  // namespace

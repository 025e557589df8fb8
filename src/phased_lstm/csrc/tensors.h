// What the operators do to torch's tensors, on the stable ABI: shapes, dtypes, new tensors, threads. All but a counter is
// in an anonymous namespace, for the files that include it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <exception>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "buffer.h"
#include "float_mode.h"
#include "kernels.h"

namespace phased_lstm {

// How often threads have changed places, so that tests can tell.
inline std::atomic<int64_t> changed_places{0};

}  // namespace phased_lstm

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

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
constexpr ScalarType kTypeOf = ScalarType::Undefined;
template <>
constexpr ScalarType kTypeOf<float> = ScalarType::Float;
template <>
constexpr ScalarType kTypeOf<double> = ScalarType::Double;
template <>
constexpr ScalarType kTypeOf<int32_t> = ScalarType::Int;
template <>
constexpr ScalarType kTypeOf<int64_t> = ScalarType::Long;

// A type's number in torch's C interface.
template <typename T>
int32_t number_of() {
  if constexpr (kTypeOf<T> == ScalarType::Float) return aoti_torch_dtype_float32();
  if constexpr (kTypeOf<T> == ScalarType::Double) return aoti_torch_dtype_float64();
  if constexpr (kTypeOf<T> == ScalarType::Int) return aoti_torch_dtype_int32();
  return aoti_torch_dtype_int64();
}

template <typename T>
const T* pointer(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  check(tensor, name, kTypeOf<T>, shape);
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
  if (zero) return torch::stable::new_zeros(like, shape, kTypeOf<T>);
  // What torch::stable::new_empty does, without a search for the operator by its name.
  int32_t type = number_of<T>();
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), shape.data(), static_cast<int64_t>(shape.size()), &type,
                                                   nullptr, nullptr, 0, nullptr, &made));
  Tensor tensor(made);
  size_t bytes = sizeof(T);
  for (const int64_t part : shape) bytes *= part;
  // Small tensors are many, and asking one for its memory takes its time.
  if (bytes >= phased_lstm::kLarge) phased_lstm::ask_for_large_pages(tensor.mutable_data_ptr(), bytes);
  return tensor;
}

// Steps from which threads may change places half way: in fewer they would win less than it takes.
constexpr int64_t kWorthExchanging = 64;

// Calls f on torch's threads, in the caller's mode of arithmetic. They share out work among themselves: each takes shares,
// up to `count` in all, until none is left, so that a slow thread does less. `steps`: how many a sequence has, which
// tells whether to change places is worth it; 0 where threads cannot. An exception in any of them is raised again here.
template <typename F>
void share_out(int64_t count, int64_t steps, const F& f) {
  std::vector<phased_lstm::Exchange> exchanges(count > 1 && steps >= kWorthExchanging ? (count + 1) / 2 : 0);
  phased_lstm::Shares shares{count, exchanges.empty() ? nullptr : exchanges.data()};
  std::mutex guard;
  std::string failure;
  // Or bits would depend on who did what.
  const FloatMode mode = float_mode();
  torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) {
    const SameFloatMode same(mode);
    try {
      f(shares);
    } catch (const std::exception& error) {
      const std::lock_guard<std::mutex> lock(guard);
      failure = error.what();
    }
  });
  for (const auto& exchange : exchanges)
    phased_lstm::changed_places += exchange.state == phased_lstm::Exchange::kAnswered;
  STD_TORCH_CHECK(failure.empty(), "a phased_lstm kernel failed: ", failure);
}

// Calls f(i) for all i in [0, count) on torch's threads.
template <typename F>
void spread(int64_t count, const F& f) {
  share_out(count, 0, [&](phased_lstm::Shares& shares) {
    for (int64_t i; (i = phased_lstm::take_share(shares)) < count;) f(i);
  });
}

}  // namespace

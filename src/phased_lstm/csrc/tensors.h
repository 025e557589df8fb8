// What the operators do to torch's tensors, on the stable ABI: shapes, dtypes, new tensors, threads. Everything is in an
// anonymous namespace, for the files that include it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <exception>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "buffer.h"

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

// Runs f over [0, count) on torch's threads; an exception in any of them is raised again here.
template <typename F>
void spread(int64_t count, const F& f) {
  std::mutex guard;
  std::string failure;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (const std::exception& error) {
      const std::lock_guard<std::mutex> lock(guard);
      failure = error.what();
    }
  });
  STD_TORCH_CHECK(failure.empty(), "a phased_lstm kernel failed: ", failure);
}

}  // namespace

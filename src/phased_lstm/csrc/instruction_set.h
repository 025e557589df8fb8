// The choice of kernels: the best instruction set the CPU has, or the one that PHASED_LSTM_ISA names.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>

#include "kernels.h"

namespace {

using namespace phased_lstm;

struct Kernels {
  const char* name;
  const KernelTable<float>* floats;
  const KernelTable<double>* doubles;
};

inline const Kernels& kernels() {
  static const Kernels chosen = []() -> Kernels {
    const char* forced = std::getenv("PHASED_LSTM_ISA");
    const std::string wish = forced ? forced : "";
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if ((wish.empty() || wish == "avx512") && avx512) return {"avx512", &kAvx512Floats, &kAvx2Doubles};
    if ((wish.empty() || wish == "avx2") && avx2) return {"avx2", &kAvx2Floats, &kAvx2Doubles};
#endif
    STD_TORCH_CHECK(wish.empty() || wish == "baseline", "PHASED_LSTM_ISA=", wish,
                    " is not available here; it may be baseline, avx2 or avx512, as far as the CPU has them");
    return {"baseline", &kBaselineFloats, &kBaselineDoubles};
  }();
  return chosen;
}

template <typename T>
const KernelTable<T>& table();
template <>
const KernelTable<float>& table<float>() { return *kernels().floats; }
template <>
const KernelTable<double>& table<double>() { return *kernels().doubles; }

}  // namespace

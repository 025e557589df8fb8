// How a thread computes: whether it flushes denormal numbers to zero, and how it rounds.
#pragma once

#include <cstdint>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

#if defined(__SSE2__)
using FloatMode = unsigned;
inline FloatMode float_mode() { return _mm_getcsr(); }
inline void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
inline FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
using FloatMode = int;
inline FloatMode float_mode() { return 0; }
inline void set_float_mode(FloatMode) {}
#endif

// Takes over another thread's mode for as long as it lives.
class SameFloatMode {
 public:
  explicit SameFloatMode(FloatMode mode) : own_(float_mode()) { set_float_mode(mode); }
  ~SameFloatMode() { set_float_mode(own_); }
  SameFloatMode(const SameFloatMode&) = delete;

 private:
  FloatMode own_;
};

}  // namespace

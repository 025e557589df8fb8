// Sigmoid and tanh, of a vector or of several side by side.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace {

// Vectors on which the same is done: each of the two is a vector, or Both once more. An operation waits for the one
// before it, and a processor finds others to do meanwhile among the next few alone.
template <typename A, typename B>
struct Both {
  A a;
  B b;
};

template <typename V>
constexpr int kVectors = 1;
template <typename A, typename B>
constexpr int kVectors<Both<A, B>> = kVectors<A> + kVectors<B>;

template <typename V>
constexpr bool kOfFloats = std::is_same_v<V, Vec<float>>;
template <typename A, typename B>
constexpr bool kOfFloats<Both<A, B>> = kOfFloats<A>;

template <typename S>
concept Scalar = std::is_arithmetic_v<S>;

#define PHASED_LSTM_ON_BOTH(op)                                                         \
  template <typename A, typename B>                                                     \
  PHASED_LSTM_INLINE Both<A, B> operator op(const Both<A, B>& x, const Both<A, B>& y) { \
    return {x.a op y.a, x.b op y.b};                                                    \
  }                                                                                     \
  template <typename A, typename B, Scalar S>                                           \
  PHASED_LSTM_INLINE Both<A, B> operator op(const Both<A, B>& x, S y) {                 \
    return {x.a op y, x.b op y};                                                        \
  }                                                                                     \
  template <typename A, typename B, Scalar S>                                           \
  PHASED_LSTM_INLINE Both<A, B> operator op(S x, const Both<A, B>& y) {                 \
    return {x op y.a, x op y.b};                                                        \
  }
PHASED_LSTM_ON_BOTH(+)
PHASED_LSTM_ON_BOTH(-)
PHASED_LSTM_ON_BOTH(*)
#undef PHASED_LSTM_ON_BOTH

template <typename T, int N>
struct VecsOf {
  using Type = Both<typename VecsOf<T, (N + 1) / 2>::Type, typename VecsOf<T, N / 2>::Type>;
};
template <typename T>
struct VecsOf<T, 1> {
  using Type = Vec<T>;
};
// N vectors.
template <typename T, int N>
using Vecs = typename VecsOf<T, N>::Type;

// f(from), f(from + 1), and so on.
template <typename T, int N, int from = 0, typename F>
PHASED_LSTM_INLINE Vecs<T, N> vectors(const F& f) {
  if constexpr (N == 1)
    return f(from);
  else
    return {vectors<T, (N + 1) / 2, from>(f), vectors<T, N / 2, from + (N + 1) / 2>(f)};
}

// Calls f(number, vector) for each.
template <int from = 0, typename V, typename F>
PHASED_LSTM_INLINE void for_vectors(const V& v, const F& f) {
  if constexpr (kVectors<V> == 1) {
    f(from, v);
  } else {
    for_vectors<from>(v.a, f);
    for_vectors<from + kVectors<decltype(v.a)>>(v.b, f);
  }
}

// f(number, x, y) of each two vectors.
template <int from = 0, typename V, typename F>
PHASED_LSTM_INLINE V both_vectors(const V& x, const V& y, const F& f) {
  if constexpr (kVectors<V> == 1)
    return f(from, x, y);
  else
    return {both_vectors<from>(x.a, y.a, f), both_vectors<from + kVectors<decltype(x.a)>>(x.b, y.b, f)};
}

// Functions on floats. Their errors are stated with each and tested against doubles. NaN gives NaN.

inline Vec<float> clamp(Vec<float> x, float low, float high) {
  // Written so that a NaN passes: the instructions give their second operand where either is one.
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return (Vec<float>)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  return (Vec<float>)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
#else
  x = splat(low) > x ? splat(low) : x;
  return splat(high) < x ? splat(high) : x;
#endif
}

// An estimate of 1 / x for x from 1e-37 to 1e37, and whether it is exact but for rounding.
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
constexpr bool kExactInverse = false;  // 14 bits
inline Vec<float> estimated_inverse(Vec<float> x) { return (Vec<float>)_mm512_rcp14_ps((__m512)x); }
#else
constexpr bool kExactInverse = true;
inline Vec<float> estimated_inverse(Vec<float> x) { return 1.0f / x; }
#endif

// 2^n, where `shifted` is n + 1.5 * 2^23, so that n stands in its low bits.
inline Vec<float> power_of_two(Vec<float> n, Vec<float> shifted) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  static_cast<void>(shifted);
  return (Vec<float>)_mm512_scalef_ps(_mm512_set1_ps(1.0f), (__m512)n);
#else
  typedef uint32_t U __attribute__((vector_size(sizeof(Vec<float>))));
  static_cast<void>(n);
  U bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  Vec<float> power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
#endif
}

template <typename A, typename B>
PHASED_LSTM_INLINE Both<A, B> clamp(const Both<A, B>& x, float low, float high) {
  return {clamp(x.a, low, high), clamp(x.b, low, high)};
}
template <typename A, typename B>
PHASED_LSTM_INLINE Both<A, B> estimated_inverse(const Both<A, B>& x) {
  return {estimated_inverse(x.a), estimated_inverse(x.b)};
}
template <typename A, typename B>
PHASED_LSTM_INLINE Both<A, B> power_of_two(const Both<A, B>& n, const Both<A, B>& shifted) {
  return {power_of_two(n.a, shifted.a), power_of_two(n.b, shifted.b)};
}

// x + n ln 2 or, with sign = -1, x - n ln 2; either is nearly nothing beside x.
template <int sign, typename V>
PHASED_LSTM_INLINE V plus_logarithms(V x, V n) {
#if defined(__FMA__) || defined(__aarch64__)
  // The product is not rounded, and the constant is off by 2e-9.
  return x + n * (sign * 0.693147181f);
#else
  return (x + n * (sign * 0.693359375f)) - n * (sign * 2.12194440e-4f);
#endif
}

// Adding 1.5 * 2^23 rounds to an integer.
constexpr float kRounding = 12582912.0f;

// 1 / (1 + e^-x), relative error below 4e-7 for |x| up to 80 (near -80 by little: of all floats from there to -70 the
// largest error is 3.994e-7), absolute error below 2e-35 beyond.
template <typename V>
requires kOfFloats<V>
PHASED_LSTM_INLINE V vsigmoid(V x) {
  x = clamp(x, -80.0f, 80.0f);
  // e^-x = 2^n e^-r, |r| <= ln 2 / 2.
  const V shifted = kRounding - x * 1.44269504f, n = shifted - kRounding;
  const V r = plus_logarithms<1>(x, n), square = r * r;
  const V high = (0.499991454f - r * 0.16667641f) + square * (0.0418984963f - r * 0.00829020982f);
  const V exponential = (1.0f - r * 0.999999705f) + square * high;
  const V divisor = 1.0f + power_of_two(n, shifted) * exponential;
  const V inverse = estimated_inverse(divisor);
  if constexpr (kExactInverse)
    return inverse;
  else
    return inverse + inverse * (1.0f - divisor * inverse);
}

// tanh x = (e^2x - 1) / (e^2x + 1), relative error below 4e-7.
template <typename V>
requires kOfFloats<V>
PHASED_LSTM_INLINE V vtanh(V x) {
  x = clamp(x, -10.0f, 10.0f);
  // e^2x = 2^n (1 + q), q = e^r - 1, |r| <= ln 2 / 2.
  const V shifted = kRounding + x * 2.88539008f, n = shifted - kRounding;
  const V r = plus_logarithms<-1>(x + x, n), square = r * r;
  const V high = (4.1666023e-2f + r * 8.3652228e-3f) + square * 1.3982374e-3f;
  const V q = r + square * ((0.5f + r * 1.66666001e-1f) + square * high);
  // (2^n - 1) + 2^n q loses nothing near 0.
  const V power = power_of_two(n, shifted);
  const V less_one = (power - 1.0f) + power * q, divisor = less_one + 2.0f;
  const V inverse = estimated_inverse(divisor), quotient = less_one * inverse;
  if constexpr (kExactInverse)
    return quotient;
  else
    return quotient + quotient * (1.0f - divisor * inverse);
}

// Doubles serve gradient checks, where the library's own functions are exact enough and fast enough.
template <double (*F)(double)>
inline Vec<double> each(Vec<double> x) {
  for (int i = 0; i < Simd<double>::kLanes; ++i) x[i] = F(x[i]);
  return x;
}

inline double exact_sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline Vec<double> vtanh(Vec<double> x) { return each<std::tanh>(x); }
inline Vec<double> vsigmoid(Vec<double> x) { return each<exact_sigmoid>(x); }
template <typename A, typename B>
requires(!kOfFloats<A>)
inline Both<A, B> vtanh(const Both<A, B>& x) {
  return {vtanh(x.a), vtanh(x.b)};
}
template <typename A, typename B>
requires(!kOfFloats<A>)
inline Both<A, B> vsigmoid(const Both<A, B>& x) {
  return {vsigmoid(x.a), vsigmoid(x.b)};
}

}  // namespace

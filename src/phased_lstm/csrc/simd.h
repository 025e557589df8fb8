// Vectors of floats or doubles in the compiler's own notation, and elementary functions on them.
//
// The same source is compiled once for each instruction set; PHASED_LSTM_LANES says how many floats
// a vector holds (4, 8 or 16). Everything is in an anonymous namespace: two translation units built
// with different instruction sets must never share a function, or a machine may run the wrong one.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int kFloatLanes = PHASED_LSTM_LANES;

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int kLanes = kFloatLanes;
  typedef float Vector __attribute__((vector_size(kFloatLanes * 4)));
  typedef int32_t Mask __attribute__((vector_size(kFloatLanes * 4)));
};

template <>
struct Simd<double> {
  static constexpr int kLanes = kFloatLanes / 2;
  typedef double Vector __attribute__((vector_size(kFloatLanes * 4)));
  typedef int64_t Mask __attribute__((vector_size(kFloatLanes * 4)));
};

template <typename T>
using Vec = typename Simd<T>::Vector;

template <typename T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

template <typename T>
inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}

// Halves are added until four lanes are left, the same way at every call.
typedef float Four __attribute__((vector_size(16)));

inline Four fold(Vec<float> v) {
#if PHASED_LSTM_LANES == 16
  const auto eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  const auto eight = v;
#endif
#if PHASED_LSTM_LANES >= 8
  return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
#else
  return eight;
#endif
}

inline float sum(Vec<float> v) {
  const Four f = fold(v);
  return (f[0] + f[2]) + (f[1] + f[3]);
}

inline double sum(Vec<double> v) {
  double total = v[0];
  for (int i = 1; i < Simd<double>::kLanes; ++i) total += v[i];
  return total;
}

// out[g] = sum(v[g]), with the same rounding as `sum`.
template <int G>
inline void sums(const Vec<float>* v, float* out) {
  const Four a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[G - 1]);
  const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Four all = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  for (int g = 0; g < G; ++g) out[g] = all[g];
}

template <int G>
inline void sums(const Vec<double>* v, double* out) {
  for (int g = 0; g < G; ++g) out[g] = sum(v[g]);
}

// a - b * c with one rounding.
inline Vec<double> minus_product(Vec<double> a, Vec<double> b, Vec<double> c) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return (Vec<double>)_mm512_fnmadd_pd((__m512d)b, (__m512d)c, (__m512d)a);
#elif PHASED_LSTM_LANES == 8 && defined(__FMA__)
  return (Vec<double>)_mm256_fnmadd_pd((__m256d)b, (__m256d)c, (__m256d)a);
#else
  // Dekker's product: b * c = p + e exactly.
  const Vec<double> split = splat(134217729.0);
  const Vec<double> bb = b * split, cc = c * split;
  const Vec<double> bh = bb - (bb - b), ch = cc - (cc - c), bl = b - bh, cl = c - ch;
  const Vec<double> p = b * c, e = ((bh * ch - p) + bh * cl + bl * ch) + bl * cl;
  return (a - p) - e;
#endif
}

// A bit for each lane in which a < b.
inline unsigned less_bits(Vec<double> a, Vec<double> b) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ);
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_LT_OQ)));
#else
  unsigned bits = 0;
  for (int i = 0; i < Simd<double>::kLanes; ++i) bits |= static_cast<unsigned>(a[i] < b[i]) << i;
  return bits;
#endif
}

template <typename T>
constexpr int64_t padded(int64_t n) {
  return (n + Simd<T>::kLanes - 1) / Simd<T>::kLanes * Simd<T>::kLanes;
}

// e^x. For floats: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial in r, and 2^n through the
// exponent's bits; relative error below 1.5e-7 (checked by the tests). NaN gives NaN.
inline Vec<float> vexp(Vec<float> x) {
  using V = Vec<float>;
  using M = Simd<float>::Mask;
  const V low = splat(-87.0f), high = splat(88.0f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  // Adding 1.5 * 2^23 rounds to an integer that stands in the low bits.
  const V magic = splat(12582912.0f);
  const V shifted = x * 1.44269504f + magic;
  const V n = shifted - magic;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = splat(1.9900443e-4f);
  p = p * r + 1.39345445e-3f;
  p = p * r + 8.33329706e-3f;
  p = p * r + 4.16664568e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  const V mantissa = p * (r * r) + r + 1.0f;
  M bits, exponent;
  std::memcpy(&bits, &mantissa, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  typedef uint32_t U __attribute__((vector_size(sizeof(V))));
  const U moved = (U)bits + ((U)exponent << 23);
  V result;
  std::memcpy(&result, &moved, sizeof result);
  return x == x ? result : x;
}

inline Vec<float> vtanh(Vec<float> x) {
  using V = Vec<float>;
  const V y = x * x;
  V p = splat(2.29567567e-3f);
  p = p * y - 8.3468026e-3f;
  p = p * y + 2.17698914e-2f;
  p = p * y - 5.39593940e-2f;
  p = p * y + 1.33333042e-1f;
  p = p * y - 3.33333332e-1f;
  const V near = x + x * y * p;
  const V size = x < 0.0f ? -x : x;
  const V far = 1.0f - 2.0f / (vexp(2.0f * size) + 1.0f);
  return size < 0.625f ? near : (x < 0.0f ? -far : far);
}

inline Vec<float> vsigmoid(Vec<float> x) { return 1.0f / (1.0f + vexp(-x)); }

// Doubles serve gradient checks, where the library's own functions are exact enough and fast enough.
template <double (*F)(double)>
inline Vec<double> each(Vec<double> x) {
  for (int i = 0; i < Simd<double>::kLanes; ++i) x[i] = F(x[i]);
  return x;
}

inline double exact_sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline Vec<double> vtanh(Vec<double> x) { return each<std::tanh>(x); }
inline Vec<double> vsigmoid(Vec<double> x) { return each<exact_sigmoid>(x); }

}  // namespace

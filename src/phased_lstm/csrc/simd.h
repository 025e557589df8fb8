// Vectors of floats or doubles in the compiler's own notation.
//
// The same source is compiled once for each instruction set; PHASED_LSTM_LANES says how many floats
// a vector holds (4, 8 or 16). Everything is in an anonymous namespace: two translation units built
// with different instruction sets must never share a function, or a machine may run the wrong one.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

// Where vectors that are given and returned would go through memory, or inner loops would not know their constants.
#define PHASED_LSTM_INLINE inline __attribute__((always_inline))

namespace {

constexpr int kFloatLanes = PHASED_LSTM_LANES;

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int kLanes = kFloatLanes;
  typedef float Vector __attribute__((vector_size(kFloatLanes * 4)));
};

template <>
struct Simd<double> {
  static constexpr int kLanes = kFloatLanes / 2;
  typedef double Vector __attribute__((vector_size(kFloatLanes * 4)));
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

// A vector just loaded, in a register if it is a factor of several products: gcc would load it again for each of them,
// and processors load no more vectors at a time than they multiply.
template <int products, typename V>
inline V factor_of(V v) {
#if defined(__x86_64__)
#if defined(__AVX512F__)
  if constexpr (products > 1) asm("" : "+v"(v));
#else
  if constexpr (products > 1) asm("" : "+x"(v));
#endif
#endif
  return v;
}

template <typename T>
inline Vec<T> splat(T x) {
  // Taking away zero leaves every x as it is, so that nothing is computed; adding it would not, of -0.
  return x - Vec<T>{};
}

// Sets p[at] by a store of a whole vector; `p` holds whole vectors. Where it is read as a vector next, that load would
// have to wait for a narrower store.
template <typename T>
inline void store_lane(T* p, int64_t at, T value) {
  constexpr int n = Simd<T>::kLanes;
  using Number = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Number Numbers __attribute__((vector_size(kFloatLanes * 4)));
  Numbers lanes;
  for (int i = 0; i < n; ++i) lanes[i] = i;
  T* to = p + at / n * n;
  store(to, lanes == static_cast<Number>(at % n) ? splat(value) : load(to));
}

#if PHASED_LSTM_LANES == 8 && defined(__AVX2__)
// Ones in the first `count` lanes.
inline __m256i first_lanes(int64_t count) {
  alignas(64) static constexpr int32_t ones[2 * kFloatLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones + kFloatLanes - count));
}
#endif

// p[at[0]], p[at[1]] and so on, as many as `count` of them up to a whole vector.
inline Vec<float> gather_lanes(const float* p, const int32_t* at, int64_t count) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  const __mmask16 wanted = static_cast<__mmask16>((1u << count) - 1);
  return (Vec<float>)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), wanted, _mm512_maskz_loadu_epi32(wanted, at), p, 4);
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  // A vector read of lanes that were written one by one would have to wait for them.
  const __m256i wanted = first_lanes(count);
  alignas(32) int32_t i[kFloatLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(i), _mm256_maskload_epi32(at, wanted));
  const __m256 all = _mm256_setr_ps(p[i[0]], p[i[1]], p[i[2]], p[i[3]], p[i[4]], p[i[5]], p[i[6]], p[i[7]]);
  return (Vec<float>)_mm256_and_ps(all, _mm256_castsi256_ps(wanted));
#else
  static_assert(kFloatLanes == 4);
  // A vector read of lanes that were written one by one would have to wait for them.
  if (count == 4) return Vec<float>{p[at[0]], p[at[1]], p[at[2]], p[at[3]]};
  float values[kFloatLanes] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = p[at[i]];
  return load(values);
#endif
}

inline Vec<double> gather_lanes(const double* p, const int32_t* at, int64_t count) {
  double values[kFloatLanes / 2] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = p[at[i]];
  return load(values);
}

// A vector of which there may be the first `count` lanes alone in memory; the others are zero.
inline Vec<float> load_first(const float* p, int64_t count) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  return (Vec<float>)_mm256_maskload_ps(p, first_lanes(count));
#else
  if (count == kFloatLanes) return load(p);
  float values[kFloatLanes] = {};
  std::memcpy(values, p, count * sizeof(float));
  return load(values);
#endif
}

inline Vec<double> load_first(const double* p, int64_t count) {
  double values[kFloatLanes / 2] = {};
  std::memcpy(values, p, count * sizeof(double));
  return load(values);
}

inline void store_first(float* p, Vec<float> v, int64_t count) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  count == kFloatLanes ? store(p, v) : _mm256_maskstore_ps(p, first_lanes(count), (__m256)v);
#else
  count == kFloatLanes ? store(p, v) : static_cast<void>(std::memcpy(p, &v, count * sizeof(float)));
#endif
}

inline void store_first(double* p, Vec<double> v, int64_t count) { std::memcpy(p, &v, count * sizeof(double)); }

// Sets sums to zero one by one. Cleared by `= {}`, a large array goes through memory and not through registers.
template <typename V, int N, int M>
inline void clear(V (&sums)[N][M]) {
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < M; ++j) sums[i][j] = V{};
}

// Four values, whatever the width of a vector.
template <typename T>
struct QuadOf {
  typedef T Type __attribute__((vector_size(4 * sizeof(T))));
};
template <typename T>
using Quad = typename QuadOf<T>::Type;

template <typename T>
inline Quad<T> load_quad(const T* p) {
  Quad<T> q;
  std::memcpy(&q, p, sizeof q);
  return q;
}

template <typename T>
inline void store_quad(T* p, Quad<T> q) {
  std::memcpy(p, &q, sizeof q);
}

// a[from], b[from], a[from + 1], b[from + 1], and so on.
template <int from, typename V>
inline V interleave(V a, V b) {
  constexpr int n = sizeof(a) / sizeof(a[0]), f = from;
  if constexpr (n == 2)
    return __builtin_shufflevector(a, b, f, f + n);
  else if constexpr (n == 4)
    return __builtin_shufflevector(a, b, f, f + n, f + 1, f + 1 + n);
  else if constexpr (n == 8)
    return __builtin_shufflevector(a, b, f, f + n, f + 1, f + 1 + n, f + 2, f + 2 + n, f + 3, f + 3 + n);
  else
    return __builtin_shufflevector(a, b, f, f + n, f + 1, f + 1 + n, f + 2, f + 2 + n, f + 3, f + 3 + n, f + 4,
                                   f + 4 + n, f + 5, f + 5 + n, f + 6, f + 6 + n, f + 7, f + 7 + n);
}

// a - b * c with one rounding.
inline double minus_product(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fma(-b, c, a);
#else
  // Dekker's product: b * c = p + e exactly.
  const double bb = b * 134217729.0, cc = c * 134217729.0;
  const double bh = bb - (bb - b), ch = cc - (cc - c), bl = b - bh, cl = c - ch;
  const double p = b * c, e = ((bh * ch - p) + bh * cl + bl * ch) + bl * cl;
  return (a - p) - e;
#endif
}

#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
inline Vec<double> minus_product(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm512_fnmadd_pd((__m512d)b, (__m512d)c, (__m512d)a);
}
#endif

// The part of x beyond the integer below it, for |x| < 2^22.
inline Vec<float> fraction(Vec<float> x) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return (Vec<float>)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  return x - (Vec<float>)_mm256_floor_ps((__m256)x);
#else
  // Adding 1.5 * 2^23 rounds to the nearest integer.
  const Vec<float> magic = splat(12582912.0f);
  const Vec<float> f = x - ((x + magic) - magic);
  return f < 0.0f ? f + 1.0f : f;
#endif
}

// The same for |x| < 2^51.
inline Vec<double> fraction(Vec<double> x) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return (Vec<double>)_mm512_reduce_pd((__m512d)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  return x - (Vec<double>)_mm256_floor_pd((__m256d)x);
#else
  // Adding 1.5 * 2^52 rounds to the nearest integer.
  const Vec<double> magic = splat(6755399441055744.0);
  const Vec<double> f = x - ((x + magic) - magic);
  return f < 0.0 ? f + 1.0 : f;
#endif
}

// A bit for each lane in which a < b, or either is no number.
inline unsigned below_bits(Vec<float> a, Vec<float> b) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NGE_UQ);
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NGE_UQ)));
#elif PHASED_LSTM_LANES == 4 && defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_ps(_mm_cmpnge_ps((__m128)a, (__m128)b)));
#else
  const auto reaching = a >= b;
  unsigned bits = 0;
  for (int i = 0; i < kFloatLanes; ++i) bits |= (~static_cast<unsigned>(reaching[i]) & 1) << i;
  return bits;
#endif
}

// As many numbers as there are floats in a vector.
typedef int32_t Numbers __attribute__((vector_size(kFloatLanes * 4)));

inline Numbers load_first(const int32_t* p, int64_t count) {
  return (Numbers)load_first(reinterpret_cast<const float*>(p), count);
}

inline void store(int32_t* p, Numbers v) { std::memcpy(p, &v, sizeof v); }

// A bit for each lane in which a and b differ.
inline unsigned differing_bits(Numbers a, Numbers b) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b);
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps((__m256)(a != b)));
#elif PHASED_LSTM_LANES == 4 && defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_ps((__m128)(a != b)));
#else
  unsigned bits = 0;
  for (int i = 0; i < kFloatLanes; ++i) bits |= static_cast<unsigned>(a[i] != b[i]) << i;
  return bits;
#endif
}

// Writes table[numbers[0]], table[numbers[1]] and so on, numbers below 16.
inline void store_chosen(double* to, const double* table, Numbers numbers) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  const __m512d low = _mm512_loadu_pd(table), high = _mm512_loadu_pd(table + 8);
  const __m512i all = (__m512i)numbers;
  const __m512i first = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(all));
  const __m512i second = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(all, 1));
  _mm512_storeu_pd(to, _mm512_permutex2var_pd(low, first, high));
  _mm512_storeu_pd(to + 8, _mm512_permutex2var_pd(low, second, high));
#else
  for (int i = 0; i < kFloatLanes; ++i) to[i] = table[numbers[i]];
#endif
}

inline bool any_nonzero(double x) { return x != 0.0; }
inline bool any_nonzero(Vec<double> x) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return _mm512_cmp_pd_mask((__m512d)x, _mm512_setzero_pd(), _CMP_NEQ_UQ);
#else
  bool any = false;
  for (int i = 0; i < Simd<double>::kLanes; ++i) any |= x[i] != 0.0;
  return any;
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

// Writes doubles as floats.
inline void store_narrow(float* to, Vec<double> from) {
  typedef float Half __attribute__((vector_size(kFloatLanes * 2)));
  const Half narrow = __builtin_convertvector(from, Half);
  std::memcpy(to, &narrow, sizeof narrow);
}

#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
#define PHASED_LSTM_GATHER_ROWS
// Rows at[0], at[1] and so on of a table of four columns, as columns. (Faster than the instruction for it.)
inline void gather_rows(const double* table, const int32_t* at, Vec<double> (&columns)[4]) {
  Vec<double> rows[4];
  for (int i = 0; i < 4; ++i)
    rows[i] = __builtin_shufflevector(load_quad(table + 4 * at[i]), load_quad(table + 4 * at[i + 4]), 0, 1, 2, 3, 4, 5,
                                      6, 7);
  const auto even = [](auto a, auto b) { return __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14); };
  const auto odd = [](auto a, auto b) { return __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15); };
  const auto low = [](auto a, auto b) { return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13); };
  const auto high = [](auto a, auto b) { return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15); };
  columns[0] = low(even(rows[0], rows[1]), even(rows[2], rows[3]));
  columns[1] = low(odd(rows[0], rows[1]), odd(rows[2], rows[3]));
  columns[2] = high(even(rows[0], rows[1]), even(rows[2], rows[3]));
  columns[3] = high(odd(rows[0], rows[1]), odd(rows[2], rows[3]));
}
#endif

#if PHASED_LSTM_LANES < 16
// For each set of lanes, their numbers one behind the other, and zeros.
struct ChosenLanes {
  uint8_t of[1 << kFloatLanes][kFloatLanes] = {};
  constexpr ChosenLanes() {
    for (int bits = 0; bits < 1 << kFloatLanes; ++bits)
      for (int lane = 0, count = 0; lane < kFloatLanes; ++lane)
        if (bits >> lane & 1) of[bits][count++] = static_cast<uint8_t>(lane);
  }
};
constexpr ChosenLanes kChosenLanes;
#endif

// The numbers from `first` on, as many at a time as there are lanes.
class LaneNumbers {
 public:
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  explicit LaneNumbers(int32_t first = 0)
      : next_(_mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                               _mm512_set1_epi32(first))) {}
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  explicit LaneNumbers(int32_t first = 0) : next_(_mm256_set1_epi32(first)) {}
#else
  explicit LaneNumbers(int32_t first = 0) : next_(first) {}
#endif
  // Writes those of the next numbers whose bits are set, in order; returns how many. A whole vector is written.
  int put(int32_t* to, unsigned bits) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), next_));
    next_ = _mm512_add_epi32(next_, _mm512_set1_epi32(kFloatLanes));
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
    const auto* lanes = reinterpret_cast<const __m128i*>(kChosenLanes.of[bits]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(lanes)), next_));
    next_ = _mm256_add_epi32(next_, _mm256_set1_epi32(kFloatLanes));
#else
    for (int i = 0; i < kFloatLanes; ++i) to[i] = next_ + kChosenLanes.of[bits][i];
    next_ += kFloatLanes;
#endif
    return __builtin_popcount(bits);
  }

 private:
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  __m512i next_;
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  __m256i next_;
#else
  int32_t next_;
#endif
};

// Calls f with the numbers from 0 to `count` - 1 as constants. In a loop gcc would put an array of vectors into memory.
template <int count, int from = 0, typename F>
PHASED_LSTM_INLINE void for_numbers(const F& f) {
  if constexpr (from < count) {
    f(std::integral_constant<int, from>());
    for_numbers<count, from + 1>(f);
  }
}

// Calls f with a number from 1 to `most` as a constant.
template <int most, typename F>
inline void with_number(int64_t number, const F& f) {
  if constexpr (most > 1)
    if (number < most) return with_number<most - 1>(number, f);
  f(std::integral_constant<int, most>());
}

// Turns the rows of a square into its columns: interleaving halves log2(lanes) times.
template <typename T>
inline void transpose(Vec<T> (&rows)[Simd<T>::kLanes]) {
  constexpr int n = Simd<T>::kLanes;
  for (int width = 1; width < n; width *= 2) {
    Vec<T> next[n];
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + n / 2]);
      next[2 * i + 1] = interleave<n / 2>(rows[i], rows[i + n / 2]);
    }
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

template <typename T>
constexpr int64_t padded(int64_t n) {
  return (n + Simd<T>::kLanes - 1) / Simd<T>::kLanes * Simd<T>::kLanes;
}

}  // namespace

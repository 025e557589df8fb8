// The four sums of an event, a quad, or what becomes of them: sums of vectors as quads; quads as columns and back.
#pragma once

#include <utility>

#include "simd.h"

namespace {

// Picks lanes of a (0 .. 3) and of b (n .. n + 3) within each group of four lanes, the same in every group.
#if PHASED_LSTM_LANES == 16
#define PHASED_LSTM_PAIRS(a, b, x, y, z, w)                                                                       \
  __builtin_shufflevector(a, b, x, y, z, w, x + 4, y + 4, z + 4, w + 4, x + 8, y + 8, z + 8, w + 8, x + 12, y + 12, \
                          z + 12, w + 12)
#elif PHASED_LSTM_LANES == 8
#define PHASED_LSTM_PAIRS(a, b, x, y, z, w) \
  __builtin_shufflevector(a, b, x, y, z, w, x + 4, y + 4, z + 4, w + 4)
#else
#define PHASED_LSTM_PAIRS(a, b, x, y, z, w) __builtin_shufflevector(a, b, x, y, z, w)
#endif

// Takes the lanes of b whose bits are set in `ones`, and the others of a. A shuffle could do it, too, but a processor
// has fewer units for those.
template <unsigned ones>
inline Vec<float> blend(Vec<float> a, Vec<float> b) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  return (Vec<float>)_mm512_mask_blend_ps(static_cast<__mmask16>(ones), (__m512)a, (__m512)b);
#elif PHASED_LSTM_LANES == 8 && defined(__AVX2__)
  return (Vec<float>)_mm256_blend_ps((__m256)a, (__m256)b, ones & 0xff);
#else
  static_assert(kFloatLanes == 4);
  return __builtin_shufflevector(a, b, ones & 1 ? 4 : 0, ones & 2 ? 5 : 1, ones & 4 ? 6 : 2, ones & 8 ? 7 : 3);
#endif
}

// Four sums in each group of four lanes, those of the four vectors over that group. The sums of a vector are made in one
// order of additions, wherever it stands and whatever is summed beside it: lanes two apart, lanes one apart, halves,
// quarters. Of two that are added one keeps its lanes.
inline Vec<float> sums_of_groups(const Vec<float> (&v)[4]) {
  const auto two_apart = [](Vec<float> a, Vec<float> b) {
    return blend<0xcccc>(a, b) + PHASED_LSTM_PAIRS(a, b, 2, 3, kFloatLanes, kFloatLanes + 1);
  };
  const Vec<float> even = two_apart(v[0], v[2]), odd = two_apart(v[1], v[3]);
  const Vec<float> neighbours = blend<0x5555>(even, odd);
  return blend<0xaaaa>(even, odd) + PHASED_LSTM_PAIRS(neighbours, neighbours, 1, 0, 3, 2);
}

// Halves are added until four lanes are left.
inline Quad<float> fold(Vec<float> v) {
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

inline Quad<float> sums(const Vec<float> (&v)[4]) { return fold(sums_of_groups(v)); }

inline float sum(Vec<float> v) {
  const Quad<float> f = fold(v);
  return (f[0] + f[2]) + (f[1] + f[3]);
}

inline double sum(Vec<double> v) {
  double total = v[0];
  for (int i = 1; i < Simd<double>::kLanes; ++i) total += v[i];
  return total;
}

inline Quad<double> sums(const Vec<double> (&v)[4]) { return Quad<double>{sum(v[0]), sum(v[1]), sum(v[2]), sum(v[3])}; }

// sum + q x, in the first three places alone if `three`.
template <bool three, typename T>
inline Quad<T> plus_product(Quad<T> sum, Quad<T> q, T x) {
  Quad<T> all = sum + q * x;
  if constexpr (three) all[3] = sum[3];
  return all;
}

// The sums of N events, up to four, made from their vectors.
template <typename T, int N>
class Quads {
 public:
  explicit Quads(const Vec<T> (&v)[N][4]) : Quads(v, std::make_index_sequence<N>()) {}
  // Adds a quad to each.
  void add(Quad<T> q) {
    for (Quad<T>& of : of_) of += q;
  }
  // Adds q x[e][i] to event e, to the first three of its sums alone if `three`: what is infinite would be no number in the
  // fourth, whose weight is zero.
  template <bool three>
  void add_product(Quad<T> q, const T* const* x, int64_t i) {
    for (int e = 0; e < N; ++e) of_[e] = plus_product<three>(of_[e], q, x[e][i]);
  }
  void write(T* to) const {
    for (int e = 0; e < N; ++e) store_quad(to + 4 * e, of_[e]);
  }

 private:
  // Not a loop, for which gcc would put the vectors into memory.
  template <std::size_t... E>
  Quads(const Vec<T> (&v)[N][4], std::index_sequence<E...>) : of_{sums(v[E])...} {}

  Quad<T> of_[N];
};

#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
// Three or four quads fill a vector, so that what is done to one is done to all.
template <int N>
requires(N > 2)
class Quads<float, N> {
 public:
  explicit Quads(const Vec<float> (&v)[N][4]) {
    const auto halves = [](Vec<float> a, Vec<float> b) {
      return blend<0xff00>(a, b) +
             __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23);
    };
    const Vec<float> low = halves(sums_of_groups(v[0]), sums_of_groups(v[1]));
    const Vec<float> third = sums_of_groups(v[2]), high = halves(third, N == 3 ? third : sums_of_groups(v[N - 1]));
    all_ = __builtin_shufflevector(low, high, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(low, high, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  void add(Quad<float> q) { all_ += everywhere(q); }
  template <bool three>
  void add_product(Quad<float> q, const float* const* x, int64_t i) {
    __m512 each = _mm512_set1_ps(x[0][i]);
    for (int e = 1; e < N; ++e)
      each = _mm512_mask_broadcastss_ps(each, static_cast<__mmask16>(15 << 4 * e), _mm_load_ss(&x[e][i]));
    const Vec<float> all = all_ + everywhere(q) * (Vec<float>)each;
    all_ = three ? blend<0x8888>(all, all_) : all;
  }
  void write(float* to) const { store_first(to, all_, 4 * N); }

 private:
  static Vec<float> everywhere(Quad<float> q) { return (Vec<float>)_mm512_broadcast_f32x4((__m128)q); }

  Vec<float> all_;
};
#endif

// Reads a vector's worth of quads as four columns, each quad by a load of its own: where quads were just stored, a
// wider load would have to wait for them.
inline void load_columns(const float* quads, Vec<float> (&columns)[4]) {
  // Static, as a lambda with `auto` would have to capture it otherwise.
  static constexpr int n = kFloatLanes;
  Vec<float> rows[4];
  for (int j = 0; j < 4; ++j) {
    const auto at = [&](int i) { return load_quad(quads + 4 * (4 * i + j)); };
#if PHASED_LSTM_LANES == 16
    const auto low = __builtin_shufflevector(at(0), at(1), 0, 1, 2, 3, 4, 5, 6, 7);
    const auto high = __builtin_shufflevector(at(2), at(3), 0, 1, 2, 3, 4, 5, 6, 7);
    rows[j] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif PHASED_LSTM_LANES == 8
    rows[j] = __builtin_shufflevector(at(0), at(1), 0, 1, 2, 3, 4, 5, 6, 7);
#else
    rows[j] = at(0);
#endif
  }
  const auto low = [](auto a, auto b) { return PHASED_LSTM_PAIRS(a, b, 0, n, 1, n + 1); };
  const auto high = [](auto a, auto b) { return PHASED_LSTM_PAIRS(a, b, 2, n + 2, 3, n + 3); };
  const auto first = low(rows[0], rows[1]), second = low(rows[2], rows[3]);
  const auto third = high(rows[0], rows[1]), fourth = high(rows[2], rows[3]);
  columns[0] = PHASED_LSTM_PAIRS(first, second, 0, 1, n, n + 1);
  columns[1] = PHASED_LSTM_PAIRS(first, second, 2, 3, n + 2, n + 3);
  columns[2] = PHASED_LSTM_PAIRS(third, fourth, 0, 1, n, n + 1);
  columns[3] = PHASED_LSTM_PAIRS(third, fourth, 2, 3, n + 2, n + 3);
}
#undef PHASED_LSTM_PAIRS

inline void load_columns(const double* quads, Vec<double> (&columns)[4]) {
  for (int i = 0; i < Simd<double>::kLanes; ++i)
    for (int column = 0; column < 4; ++column) columns[column][i] = quads[4 * i + column];
}

// Writes four columns as rows of four.
template <typename T>
inline void store_rows(T* to, const Vec<T> (&columns)[4]) {
  constexpr int n = Simd<T>::kLanes;
  for (int half = 0; half < 2; ++half) {
    const auto even = half ? interleave<n / 2>(columns[0], columns[2]) : interleave<0>(columns[0], columns[2]);
    const auto odd = half ? interleave<n / 2>(columns[1], columns[3]) : interleave<0>(columns[1], columns[3]);
    store(to + 2 * half * n, interleave<0>(even, odd));
    store(to + (2 * half + 1) * n, interleave<n / 2>(even, odd));
  }
}

}  // namespace

// Sets of up to sixteen as the bits of a number.
#pragma once

#include <cstdint>

#include "simd.h"

namespace {

// Numbers that are looked at together.
constexpr int kWords = 16;

// A bit for each of kWords numbers that is not zero.
inline unsigned nonzero_bits(const uint16_t* p) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_test_epi16_mask(words, words);
#elif defined(__SSE2__)
  const auto zero = [&](int at) {
    return _mm_cmpeq_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + at)), _mm_setzero_si128());
  };
  return ~static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(zero(0), zero(8)))) & 0xffff;
#else
  unsigned bits = 0;
  for (int i = 0; i < kWords; ++i) bits |= static_cast<unsigned>(p[i] != 0) << i;
  return bits;
#endif
}

// Writes those of the next kWords numbers whose bits are set, in order; returns how many. A whole vector is written.
inline int put_bits(LaneNumbers& numbers, unsigned bits, int32_t* to) {
  int count = 0;
  for (int i = 0; i < kWords; i += kFloatLanes)
    count += numbers.put(to + count, bits >> i & ((1u << kFloatLanes) - 1));
  return count;
}

// A bit for each of kWords numbers in which bit `at` is set.
inline unsigned words_with_bit(const uint16_t* p, int at) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return _mm256_test_epi16_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                                _mm256_set1_epi16(static_cast<int16_t>(1u << at)));
#elif defined(__SSE2__)
  const __m128i bit = _mm_set1_epi16(static_cast<int16_t>(1u << at));
  const auto set = [&](int from) {
    return _mm_cmpeq_epi16(_mm_and_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + from)), bit), bit);
  };
  return static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(set(0), set(8))));
#else
  unsigned bits = 0;
  for (int i = 0; i < kWords; ++i) bits |= (p[i] >> at & 1u) << i;
  return bits;
#endif
}

}  // namespace

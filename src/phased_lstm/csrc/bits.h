// Sets of up to sixteen as the bits of a number: which of many are not empty, and a counter for each member.
#pragma once

#include <cstdint>

#include "simd.h"

namespace {

// Numbers that `nonzero_bits` looks at.
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

// Sixteen counters, from zero on.
class Counters {
 public:
  // Of each counter chosen by `bits`, in order, writes `code` with the counter's number in its low four bits, and the
  // count, which then goes up by one. Returns how many were chosen; up to sixteen of each are written.
  int take(unsigned bits, uint32_t code, uint32_t* codes, int32_t* counts) {
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
    const auto chosen = static_cast<__mmask16>(bits);
    const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i all = _mm512_or_si512(_mm512_set1_epi32(static_cast<int>(code)), numbers);
    _mm512_storeu_si512(codes, _mm512_maskz_compress_epi32(chosen, all));
    _mm512_storeu_si512(counts, _mm512_maskz_compress_epi32(chosen, next_));
    next_ = _mm512_mask_add_epi32(next_, chosen, next_, _mm512_set1_epi32(1));
#else
    for (unsigned rest = bits; rest; rest &= rest - 1) {
      const int i = __builtin_ctz(rest);
      *codes++ = code | static_cast<uint32_t>(i);
      *counts++ = next_[i]++;
    }
#endif
    return __builtin_popcount(bits);
  }

 private:
#if PHASED_LSTM_LANES == 16 && defined(__AVX512F__)
  __m512i next_ = _mm512_setzero_si512();
#else
  int32_t next_[16] = {};
#endif
};

}  // namespace

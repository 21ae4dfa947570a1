// Inner products of 3x3 patches, the loops that all the time goes into.
//
// float: no fused multiply-add. It would round differently from the portable build, where it is a function call of some 50
// instructions per product; and it would gain little, as reading the reference patches takes as long as the arithmetic.
// Every build keeps 3 x 16 partial sums, one of 16 per column of the patch: three chains of additions hide each other's
// latency, and they are added up in one order.
//
// int8: sums of products are exact in int32, so that each build may take its own way to them.

#include <cstring>

#include "search.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define AMSA_X86 1
#endif

namespace amsa {
namespace {

// One register, or the several that the processor needs for as much. `may_alias`: it is read from arrays of floats.
typedef float Lanes __attribute__((vector_size(4 * kLanes), may_alias));
typedef float Eight __attribute__((vector_size(4 * 8)));
typedef float Four __attribute__((vector_size(4 * 4)));
#define AMSA_INLINE inline __attribute__((always_inline))

// 16 -> 8 -> 4 -> 2 -> 1, each half added to the other.
AMSA_INLINE float total(const Lanes (&columns)[3]) {
  const Lanes sum = (columns[0] + columns[1]) + columns[2];
  Eight eight[2];
  std::memcpy(eight, &sum, sizeof eight);
  const Eight half = eight[0] + eight[1];
  Four four[2];
  std::memcpy(four, &half, sizeof four);
  const Four quarter = four[0] + four[1];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// kTogether reference patches share what is read of the query patch.
template <int kTogether>
AMSA_INLINE void some_dots(const float* query, long query_pitch, const float* const* refs, long ref_pitch, int channels,
                           float* dots) {
  Lanes sums[kTogether][3] = {};
  for (int row = 0; row < 3; ++row)
    for (int c = 0; c < channels; c += kLanes)
      for (int col = 0; col < 3; ++col) {
        const int at = col * channels + c;
        const auto* q = reinterpret_cast<const Lanes*>(query + row * query_pitch + at);  // aligned, see Tables
        for (int k = 0; k < kTogether; ++k)
          sums[k][col] += *q * *reinterpret_cast<const Lanes*>(refs[k] + row * ref_pitch + at);
      }
  for (int k = 0; k < kTogether; ++k) dots[k] = total(sums[k]);
}

AMSA_INLINE void all_dots(const float* query, long query_pitch, const float* const* refs, long ref_pitch, int channels, int count,
                          float* dots) {
  int k = 0;
  for (; k + 2 <= count; k += 2) some_dots<2>(query, query_pitch, refs + k, ref_pitch, channels, dots + k);
  if (k < count) some_dots<1>(query, query_pitch, refs + k, ref_pitch, channels, dots + k);
}

AMSA_CLONES void float_dots(const float* query, long query_pitch, const float* const* refs, long ref_pitch, int channels,
                            int count, const int32_t*, float* dots) {
  // 16 channels, those of the shipped model, without a loop over them
  if (channels == kLanes) return all_dots(query, query_pitch, refs, ref_pitch, kLanes, count, dots);
  all_dots(query, query_pitch, refs, ref_pitch, channels, count, dots);
}

void int8_dots(const int8_t* query, long query_pitch, const int8_t* const* refs, long ref_pitch, int channels, int count,
               const int32_t*, int32_t* dots) {
  for (int k = 0; k < count; ++k) {
    int32_t sum = 0;
    for (int row = 0; row < 3; ++row)
      for (int i = 0; i < 3 * channels; ++i) sum += query[row * query_pitch + i] * refs[k][row * ref_pitch + i];
    dots[k] = sum;
  }
}

#ifdef AMSA_X86

// Widened to int16, products of pairs added in int32: exact, unlike the saturating maddubs.
__attribute__((target("avx2"))) void int8_dots_avx2(const int8_t* query, long query_pitch, const int8_t* const* refs,
                                                    long ref_pitch, int channels, int count, const int32_t*, int32_t* dots) {
  for (int k = 0; k < count; ++k) {
    __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int row = 0; row < 3; ++row) {
      const int8_t* q = query + row * query_pitch;
      const int8_t* r = refs[k] + row * ref_pitch;
      for (int i = 0; i < 3 * channels; i += 32)
        for (int half = 0; half < 2; ++half) {
          const auto* at_q = reinterpret_cast<const __m128i*>(q + i + 16 * half);
          const auto* at_r = reinterpret_cast<const __m128i*>(r + i + 16 * half);
          const __m256i products = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_load_si128(at_q)),
                                                     _mm256_cvtepi8_epi16(_mm_load_si128(at_r)));
          sums[half] = _mm256_add_epi32(sums[half], products);
        }
    }
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(sums[0], sums[1]));
    int32_t sum = 0;
    for (const int32_t lane : lanes) sum += lane;
    dots[k] = sum;
  }
}

// The instruction takes unsigned by signed: query + 128 against ref, less 128 times the reference patch's sum. It does not
// saturate, and what wraps around on the way comes out right modulo 2^32.
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) void int8_dots_vnni(
    const int8_t* query, long query_pitch, const int8_t* const* refs, long ref_pitch, int channels, int count,
    const int32_t* ref_sums, int32_t* dots) {
  const __m512i flip = _mm512_set1_epi8(-128);
  const __m256i flip_half = _mm256_set1_epi8(-128);
  const int run = 3 * channels, whole = run & ~63;
  for (int k = 0; k < count; k += 2) {
    const int8_t* first = refs[k];
    const int8_t* second = refs[k + 1 < count ? k + 1 : k];
    __m512i a = _mm512_setzero_si512(), b = a;
    __m256i a_half = _mm256_setzero_si256(), b_half = a_half;
    for (int row = 0; row < 3; ++row) {
      const int8_t* q = query + row * query_pitch;
      const int8_t* r = first + row * ref_pitch;
      const int8_t* s = second + row * ref_pitch;
      for (int i = 0; i < whole; i += 64) {
        const __m512i bytes = _mm512_xor_si512(_mm512_loadu_si512(q + i), flip);
        a = _mm512_dpbusd_epi32(a, bytes, _mm512_loadu_si512(r + i));
        b = _mm512_dpbusd_epi32(b, bytes, _mm512_loadu_si512(s + i));
      }
      if (whole < run) {  // 32 left: the channels are a multiple of 32 only
        const __m256i bytes = _mm256_xor_si256(*reinterpret_cast<const __m256i*>(q + whole), flip_half);
        a_half = _mm256_dpbusd_epi32(a_half, bytes, *reinterpret_cast<const __m256i*>(r + whole));
        b_half = _mm256_dpbusd_epi32(b_half, bytes, *reinterpret_cast<const __m256i*>(s + whole));
      }
    }
    a = _mm512_add_epi32(a, _mm512_zextsi256_si512(a_half));
    b = _mm512_add_epi32(b, _mm512_zextsi256_si512(b_half));
    dots[k] = int32_t(uint32_t(_mm512_reduce_add_epi32(a)) - 128u * uint32_t(ref_sums[k]));
    if (k + 1 < count) dots[k + 1] = int32_t(uint32_t(_mm512_reduce_add_epi32(b)) - 128u * uint32_t(ref_sums[k + 1]));
  }
}

#endif

}  // namespace

FloatDots dots_of(float) { return float_dots; }

Int8Dots dots_of(int8_t) {
#ifdef AMSA_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return int8_dots_vnni;
  if (__builtin_cpu_supports("avx2")) return int8_dots_avx2;
#endif
  return int8_dots;
}

}  // namespace amsa

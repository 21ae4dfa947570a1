// Features between the callers' layouts (NCHW or channels-last, float32 or float16) and the kernels': float32, channels-last.

#include <cstring>

#include "cpu_common.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define AMSA_X86 1
#endif

namespace amsa {
namespace {

constexpr int kBlock = 16;  // pixels and channels of one transposed block: 16 floats are a cache line

std::atomic<int> g_threads{0};

float to_float(uint16_t h) {
  uint32_t bits = uint32_t(h & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  value *= 0x1p112f;  // the exponents' biases differ by 112; exact for subnormal numbers too
  std::memcpy(&bits, &value, 4);
  if ((h & 0x7c00) == 0x7c00) bits = 0x7f800000u | uint32_t(h & 0x3ff) << 13;
  bits |= uint32_t(h & 0x8000) << 16;
  std::memcpy(&value, &bits, 4);
  return value;
}

uint16_t to_half(float value) {  // rounds half to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return uint16_t(sign | 0x7e00);   // not a number
  if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);  // from 65520 on: infinite
  if (bits < 0x38800000) {                                 // below 2^-14 the unit is 2^-24, which is that of 0.5
    std::memcpy(&value, &bits, 4);
    value += 0.5f;
    std::memcpy(&bits, &value, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + (bits >> 13 & 1) - (112u << 23);
  return uint16_t(sign | bits >> 13);
}

#ifdef AMSA_X86
__attribute__((target("avx,f16c"))) long to_float_f16c(const uint16_t* in, float* out, long count) {
  long i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  return i;
}

__attribute__((target("avx,f16c"))) long to_half_f16c(const float* in, uint16_t* out, long count) {
  long i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  return i;
}

// Older compilers do not know the name "f16c"; whatever has AVX2 has it.
const bool g_f16c = (__builtin_cpu_init(), __builtin_cpu_supports("avx2"));
#endif

void load(const void* in, bool half, long count, float* out) {
  if (!half) {
    std::memcpy(out, in, size_t(count) * 4);
    return;
  }
  const auto* h = static_cast<const uint16_t*>(in);
  long i = 0;
#ifdef AMSA_X86
  if (g_f16c) i = to_float_f16c(h, out, count);
#endif
  for (; i < count; ++i) out[i] = to_float(h[i]);
}

void store(const float* in, bool half, long count, void* out) {
  if (!half) {
    std::memcpy(out, in, size_t(count) * 4);
    return;
  }
  auto* h = static_cast<uint16_t*>(out);
  long i = 0;
#ifdef AMSA_X86
  if (g_f16c) i = to_half_f16c(in, h, count);
#endif
  for (; i < count; ++i) h[i] = to_half(in[i]);
}

// in[k] has a stride of in_pitch; out[l][k] = in[k][l] for a whole block.
AMSA_CLONES void transpose(const float* in, size_t in_pitch, float* out, size_t out_pitch) {
  float tile[kBlock][kBlock];
  for (int k = 0; k < kBlock; ++k) std::memcpy(tile[k], in + k * in_pitch, sizeof tile[k]);
  for (int l = 0; l < kBlock; ++l)
    for (int k = 0; k < kBlock; ++k) out[l * out_pitch + k] = tile[k][l];
}

}  // namespace

int default_threads() {
  const int threads = g_threads;
  return threads > 0 ? threads : std::max(1, int(std::thread::hardware_concurrency()));
}

void load_pixels(const Picture& p, int row, int begin, int count, int pitch, float* out) {
  if (p.channels_last) {
    const size_t first = (size_t(row) * p.cols + begin) * p.channels;
    if (pitch == p.channels) return load(element(p.data, p.half, first), p.half, long(count) * pitch, out);
    for (int i = 0; i < count; ++i) {
      load(element(p.data, p.half, first + size_t(i) * p.channels), p.half, p.channels, out + size_t(i) * pitch);
      std::fill(out + size_t(i) * pitch + p.channels, out + size_t(i + 1) * pitch, 0.0f);
    }
    return;
  }
  const size_t plane = size_t(p.rows) * p.cols, first = size_t(row) * p.cols + begin;
  // Sixteen pixels at a time: what is written stays in the first-level cache while all channels pass.
  for (int i = 0; i < count; i += kBlock)
    for (int c = 0; c < pitch; c += kBlock) {
      const int pixels = std::min(kBlock, count - i), channels = std::min(kBlock, p.channels - c);
      const size_t from = c * plane + first + i;
      float* to = out + size_t(i) * pitch + c;
      if (pixels == kBlock && channels == kBlock && !p.half) {
        transpose(static_cast<const float*>(p.data) + from, plane, to, pitch);
        continue;
      }
      float tile[kBlock][kBlock] = {};
      for (int l = 0; l < channels; ++l) load(element(p.data, p.half, from + l * plane), p.half, pixels, tile[l]);
      const int width = std::min(kBlock, pitch - c);
      for (int k = 0; k < pixels; ++k)
        for (int l = 0; l < width; ++l) to[size_t(k) * pitch + l] = tile[l][k];
    }
}

void store_pixels(const float* pixels, const Picture& p, int row, int begin, int count) {
  auto* data = static_cast<char*>(const_cast<void*>(p.data));
  const size_t size = p.half ? 2 : 4, first = size_t(row) * p.cols + begin;
  if (p.channels_last) return store(pixels, p.half, long(count) * p.channels, data + first * p.channels * size);
  const size_t plane = size_t(p.rows) * p.cols;
  for (int i = 0; i < count; i += kBlock)
    for (int c = 0; c < p.channels; c += kBlock) {
      const int some = std::min(kBlock, count - i), channels = std::min(kBlock, p.channels - c);
      const float* from = pixels + size_t(i) * p.channels + c;
      char* to = data + (c * plane + first + i) * size;
      if (some == kBlock && channels == kBlock && !p.half) {
        transpose(from, p.channels, reinterpret_cast<float*>(to), plane);
        continue;
      }
      float tile[kBlock][kBlock];
      for (int k = 0; k < some; ++k)
        for (int l = 0; l < channels; ++l) tile[l][k] = from[size_t(k) * p.channels + l];
      for (int l = 0; l < channels; ++l) store(tile[l], p.half, some, to + l * plane * size);
    }
}

}  // namespace amsa

extern "C" {

// Threads of every call and session from now on that names no number of its own; 0: one per core.
void amsa_set_threads(int threads) { amsa::g_threads = threads; }

// What the kernels run on this processor.
const char* amsa_instruction_set() {
#ifdef AMSA_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")) return "AVX-512 VNNI";
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
#endif
  return "portable";
}
}

// DeformableSample and the 1x1 convolution behind it in one go, on the CPU.
//
// Apart they write nine times the features, have them rearranged and read them again: 600 MB at 512x512 with 16 channels, where
// the result is 17 MB. Here the samples of 64 pixels stay in the cache and are multiplied there. Unlike the ops' own arithmetic,
// the products are fused multiply-adds where the processor has them, as in the convolution that this replaces.

#include "conv.hpp"

#include <cstring>

#include "sampling.hpp"

namespace amsa {
namespace {

constexpr int kLane = 16;  // filters of one block
typedef float Vector __attribute__((vector_size(4 * kLane)));

#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")

// kPixels rows of samples [kPixels, depth] times a block of weights [depth, kLane] -> sums [kPixels, kLane].
template <int kPixels>
inline __attribute__((always_inline)) void multiply_tile(const float* samples, const float* weights, int depth, float* sums) {
  Vector sum[kPixels] = {};
  for (int k = 0; k < depth; ++k) {
    Vector w;
    std::memcpy(&w, weights + size_t(k) * kLane, sizeof w);
    for (int i = 0; i < kPixels; ++i) sum[i] += samples[size_t(i) * depth + k] * w;
  }
  std::memcpy(sums, sum, sizeof sum);
}

// The pixels that are left over in smaller tiles: one alone would wait for each of its sums.
template <int kPixels>
inline __attribute__((always_inline)) void multiply_run(const float* samples, const float* weights, int depth, int count,
                                                        float* sums) {
  for (; count >= kPixels; count -= kPixels, samples += size_t(kPixels) * depth, sums += kPixels * kLane)
    multiply_tile<kPixels>(samples, weights, depth, sums);
  if constexpr (kPixels > 1) multiply_run<kPixels / 2>(samples, weights, depth, count, sums);
}

// As many rows as there are registers for: 32 of 16 floats, 16 of 8, 16 of 4.
using Multiply = void (*)(const float*, const float*, int, int, float*);
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx512f"))) void multiply_avx512(const float* s, const float* w, int depth, int count, float* sums) {
  multiply_run<16>(s, w, depth, count, sums);
}
__attribute__((target("avx2,fma"))) void multiply_avx2(const float* s, const float* w, int depth, int count, float* sums) {
  multiply_run<6>(s, w, depth, count, sums);
}
#endif
void multiply_plain(const float* s, const float* w, int depth, int count, float* sums) {
  multiply_run<2>(s, w, depth, count, sums);
}

#pragma GCC pop_options

Multiply choose_multiply() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f")) return multiply_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return multiply_avx2;
#endif
  return multiply_plain;
}

// Sums [count, kLane] of up to kLane filters -> the results [count, filters].
AMSA_CLONES void finish(const float* sums, const float* bias, float slope, int filters, int count, float* results) {
  for (int i = 0; i < count; ++i)
    for (int f = 0; f < filters; ++f) {
      const float y = sums[i * kLane + f] + bias[f];
      results[i * filters + f] = y < 0 ? y * slope : y;
    }
}

std::vector<float> floats(const void* data, bool half, size_t count) {
  std::vector<float> values(count);
  if (data != nullptr) load_pixels(Picture{data, half, true, int(count), 1, 1}, 0, 0, 1, int(count), values.data());
  return values;
}

void run(const AmsaDeformableConv& call) {
  check_attributes(call.sample);
  check_shapes(call.sample);
  const AmsaDeformableSample& sample = call.sample;
  const Sizes s(sample);
  const bool half = sample.half != 0;
  const int depth = kTaps * s.channels, filters = int(call.filters), blocks = (filters + kLane - 1) / kLane;
  // [blocks, depth, kLane], filters beyond the last zero
  const std::vector<float> weight = floats(call.weight, half, product(filters, depth));
  Buffer<float> packed(product(blocks, depth, kLane));
  for (int f = 0; f < blocks * kLane; ++f)
    for (int k = 0; k < depth; ++k)
      packed.get()[(size_t(f / kLane) * depth + k) * kLane + f % kLane] = f < filters ? weight[size_t(f) * depth + k] : 0.0f;
  std::vector<float> bias = floats(call.bias, half, filters);
  bias.resize(size_t(blocks) * kLane);

  const size_t om_size = product(s.pixels(), s.om_channels()), out_size = product(s.pixels(), filters);
  const int threads = sample.threads > 0 ? sample.threads : default_threads();
  Team team(worthwhile(threads, double(s.n) * double(s.pixels()) * depth * (4.0 + filters)));
  const size_t for_sampling = sampling_scratch(s), for_samples = product(kRun, depth), for_sums = kRun * kLane;
  ScratchPool pool(threads, for_sampling + for_samples + 2 * for_sums);
  PixelTable table;
  static const Multiply multiply = choose_multiply();
  for (int b = 0; b < s.n; ++b) {
    const SampleInputs in{table.get(sample, s, b, team), sample.match + b * s.match_size(),
                          Picture{element(sample.offset_mask, half, s.offset_mask_n > 1 ? b * om_size : 0), half,
                                  sample.offset_mask_channels_last != 0, s.om_channels(), s.height, s.width}};
    team.run(s.height, [&](int r) {
      const ScratchPool::Share scratch(pool);
      float* samples = scratch.get() + for_sampling;
      float *sums = samples + for_samples, *results = sums + for_sums;
      for (int c = 0; c < s.width; c += kRun) {
        const int count = std::min(kRun, s.width - c);
        sample_run(s, in, r, c, count, scratch.get(), samples);
        for (int block = 0; block < blocks; ++block) {
          const int first = block * kLane, some = std::min(kLane, filters - first);
          multiply(samples, packed.get() + size_t(block) * depth * kLane, depth, count, sums);
          finish(sums, bias.data() + first, call.negative_slope, some, count, results);
          const size_t plane = size_t(first) * s.height * s.width;
          const Picture part{element(call.out, half, b * out_size + plane), half, false, some, s.height, s.width};
          store_pixels(results, part, r, c, count);
        }
      }
    });
  }
}

}  // namespace
}  // namespace amsa

const char* amsa_deformable_conv(const AmsaDeformableConv* call) {
  return amsa::guarded([&] { amsa::run(*call); });
}

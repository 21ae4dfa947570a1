// DeformableSample in CUDA, channels-last (HWC), float16 and float32: what `reference.py` defines.
//
// A thread makes one vector of 16 bytes of the output: neighbouring channels of one tap of one pixel, which share match, offset
// and mask. Threads in order of their number write neighbouring vectors, so stores are whole cache lines; the four corners are
// 16-byte loads. Coordinates are float32 whatever the features are.

#include "../kernel.cuh"

namespace {

constexpr int kTaps = 9;
constexpr int kThreads = 256;
// Matches beyond it count as it: far outside of every value, and no product with the scale overflows.
constexpr int kFar = 1 << 28;

struct SampleParams {
  const void* value;        // [1|n, rows, cols, c]
  const int* match;         // [n, 2, height/scale + 2, width/scale + 2]
  const void* offset_mask;  // [1|n, height, width, 27*groups or 9*groups]
  void* out;                // [n, height, width, 9*c]
  int vectors;              // of one batch element's output
  int value_shared, offset_mask_shared;  // 1: one for the whole batch
  int c, rows, cols, height, width, scale, groups, with_offsets;
};

// Where a tap of a pixel samples, and its mask.
struct Place {
  float y, x, mask;
};

template <class T>
__device__ inline Place place(const SampleParams& p, int image, int row, int col, int tap, int group) {
  const int tap_row = tap / 3, tap_col = tap % 3;
  const int match_rows = p.height / p.scale + 2, match_cols = p.width / p.scale + 2;
  const long long at = (long long)(row / p.scale - tap_row + 2) * match_cols + (col / p.scale - tap_col + 2);
  const int* match = p.match + 2LL * image * match_rows * match_cols;
  const int my = min(max(__ldg(match + at), -kFar), kFar);
  const int mx = min(max(__ldg(match + (long long)match_rows * match_cols + at), -kFar), kFar);
  Place place;
  place.y = float(p.scale * my + row % p.scale + (p.scale + 1) * tap_row - 1);
  place.x = float(p.scale * mx + col % p.scale + (p.scale + 1) * tap_col - 1);
  const int channels = (p.with_offsets ? 27 : 9) * p.groups;
  const long long pixel = (long long)(p.offset_mask_shared ? 0 : image) * p.height * p.width + (long long)row * p.width + col;
  const T* learned = static_cast<const T*>(p.offset_mask) + pixel * channels;
  const int sample = group * kTaps + tap;
  if (p.with_offsets) {
    place.y += amsa::to_float(__ldg(learned + 2 * sample));
    place.x += amsa::to_float(__ldg(learned + 2 * sample + 1));
  }
  const float logit = amsa::to_float(__ldg(learned + channels - kTaps * p.groups + sample));
  place.mask = 1.0f / (1.0f + expf(-logit));
  return place;
}

// The sum of four corners for `kSize` channels from `channel` on; zero outside. What is not a number stays one.
template <class T, int kSize, class Read>
__device__ inline void sample(const SampleParams& p, const Place& place, int image, int channel, Read read, float (&sum)[kSize]) {
  const bool a_number = place.y == place.y && place.x == place.x && place.mask == place.mask;
#pragma unroll
  for (int k = 0; k < kSize; ++k) sum[k] = a_number ? 0.0f : __int_as_float(0x7fc00000);
  if (!(place.y > -1.0f && place.y < float(p.rows) && place.x > -1.0f && place.x < float(p.cols))) return;
  const int top = __float2int_rd(place.y), left = __float2int_rd(place.x);
  const float fy = place.y - float(top), fx = place.x - float(left);
  const T* value = static_cast<const T*>(p.value) + (p.value_shared ? 0 : image) * ((long long)p.rows * p.cols * p.c) + channel;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int row = top + corner / 2, col = left + corner % 2;
    if (row < 0 || row >= p.rows || col < 0 || col >= p.cols) continue;
    const float weight = (corner / 2 ? fy : 1.0f - fy) * (corner % 2 ? fx : 1.0f - fx) * place.mask;
    float values[kSize];
    read(value + ((long long)row * p.cols + col) * p.c, values);
#pragma unroll
    for (int k = 0; k < kSize; ++k) sum[k] = fmaf(weight, values[k], sum[k]);
  }
}

template <class T, int kSize, class Read, class Write>
__device__ inline void run(const SampleParams& p, Read read, Write write) {
  const unsigned index = blockIdx.x * kThreads + threadIdx.x;  // below 2^31 + kThreads
  if (index >= unsigned(p.vectors)) return;
  const int image = blockIdx.y;
  const unsigned per_tap = p.c / kSize, tap_index = index / per_tap, pixel = tap_index / kTaps;
  const int channel = int(index % per_tap) * kSize, tap = int(tap_index % kTaps);
  const int row = int(pixel / p.width), col = int(pixel % p.width);
  float sum[kSize];
  sample<T, kSize>(p, place<T>(p, image, row, col, tap, channel / (p.c / p.groups)), image, channel, read, sum);
  write(static_cast<T*>(p.out) + ((long long)image * p.vectors + index) * kSize, sum);
}

template <class T>
__device__ inline void run_vectors(const SampleParams& p) {
  constexpr int kSize = amsa::Vector<T>::kSize;
  run<T, kSize>(
      p, [](const T* from, float (&values)[kSize]) { amsa::unpack(amsa::load(from), values); },
      [](T* to, const float (&sum)[kSize]) { amsa::store(to, amsa::pack(sum)); });
}

// Any number of channels: one a thread.
template <class T>
__device__ inline void run_scalars(const SampleParams& p) {
  run<T, 1>(
      p, [](const T* from, float (&values)[1]) { values[0] = amsa::to_float(__ldg(from)); },
      [](T* to, const float (&sum)[1]) { *to = amsa::from_float<T>(sum[0]); });
}

}  // namespace

AMSA_KERNEL(deformable_sample_f16, SampleParams, kThreads) { run_vectors<__half>(p); }
AMSA_KERNEL(deformable_sample_f32, SampleParams, kThreads) { run_vectors<float>(p); }
AMSA_KERNEL(deformable_sample_f16_any, SampleParams, kThreads) { run_scalars<__half>(p); }
AMSA_KERNEL(deformable_sample_f32_any, SampleParams, kThreads) { run_scalars<float>(p); }

// Sixteen and more output pixels at a time: first where each samples and how much each corner weighs, whole vectors of pixels
// together; then the samples, each four weighted runs of channels / groups neighbouring floats. Nothing is unfolded.

#include "sampling.hpp"

#include <cstring>

namespace amsa {
namespace {

// Of one tap and group, for every pixel of a run.
struct Places {
  // The top left corner, the corners' weights, and which corners exist: bit 2 * bottom + right.
  int32_t top[kRun], left[kRun], exist[kRun];
  float weight[4][kRun];
};

constexpr int32_t kAll = 15;

// sigmoid(x) in vector code: exp by Cody and Waite's reduction by ln 2 and a polynomial of degree 6, to 2 units in the last
// place. Unlike std::exp it rounds alike on every machine.
AMSA_CLONES void sigmoids(const float* __restrict x, int count, float* __restrict out) {
  float fraction[kRun], power[kRun];
  int32_t bits[kRun];
  for (int i = 0; i < count; ++i) {
    float e = -x[i];
    e = e < -87.0f ? -87.0f : e;
    e = e < 88.0f ? e : 88.0f;
    const int32_t n = int32_t(e * 1.44269504f + (e < 0.0f ? -0.5f : 0.5f));
    const float whole = float(n);
    const float r = (e - whole * 0.693359375f) - whole * -2.12194440e-4f;
    float p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    fraction[i] = (p * r * r + r) + 1.0f;
    bits[i] = (n + 127) * (1 << 23);
  }
  std::memcpy(power, bits, sizeof power);  // 2^n
  for (int i = 0; i < count; ++i) {
    const float y = 1.0f / (1.0f + fraction[i] * power[i]);
    out[i] = x[i] == x[i] ? y : x[i];
  }
}

// Where a tap of pixels [begin, begin + count) samples without offsets, along one axis: scale * match + (pixel & within) + more.
AMSA_CLONES void base_positions(const int32_t* match, int begin, int count, int scale, int within, int more,
                                float* __restrict out) {
  const int shift = scale / 2;  // of 1, 2 and 4
  for (int i = 0; i < count; ++i) {
    const int c = begin + i;
    // A match may be any number: in doubles nothing overflows or is rounded twice.
    out[i] = float(double(scale) * double(match[c >> shift]) + double((c & within) + more));
  }
}

AMSA_CLONES void add(const float* __restrict a, const float* __restrict b, int count, float* __restrict out) {
  for (int i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

// Positions and masks may be any floats. A sample that is no number gets weights that are none.
AMSA_CLONES void find_corners(const float* __restrict ys, const float* __restrict xs, const float* __restrict masks, int rows,
                              int cols, int count, Places& places) {
  int32_t* __restrict tops = places.top;
  int32_t* __restrict lefts = places.left;
  int32_t* __restrict exist = places.exist;
  float* __restrict w0 = places.weight[0];
  float* __restrict w1 = places.weight[1];
  float* __restrict w2 = places.weight[2];
  float* __restrict w3 = places.weight[3];
  const float high_y = float(rows), high_x = float(cols);
  for (int i = 0; i < count; ++i) {
    float y = ys[i], x = xs[i];
    // Of what is not a number, this is none; otherwise the mask.
    const float mask = masks[i] + (y == y ? 0.0f : y) + (x == x ? 0.0f : x);
    const int32_t inside = (y > -1.0f ? 1 : 0) & (y < high_y ? 1 : 0) & (x > -1.0f ? 1 : 0) & (x < high_x ? 1 : 0);
    y = inside ? y : 0.0f;
    x = inside ? x : 0.0f;
    // Rounded down, of more than -1: what was cut off of a negative number is more than it.
    int32_t top = int32_t(y), left = int32_t(x);
    top -= y < float(top) ? 1 : 0;
    left -= x < float(left) ? 1 : 0;
    const float fy = y - float(top), fx = x - float(left);
    tops[i] = top;
    lefts[i] = left;
    w0[i] = (1 - fy) * (1 - fx) * mask;
    w1[i] = (1 - fy) * fx * mask;
    w2[i] = fy * (1 - fx) * mask;
    w3[i] = fy * fx * mask;
    const int32_t above = top >= 0 ? 3 : 0, below = top < rows - 1 ? 12 : 0;
    const int32_t before = left >= 0 ? 5 : 0, after = left < cols - 1 ? 10 : 0;
    exist[i] = inside ? (above | below) & (before | after) : 0;
  }
}

// A constant width lets the compiler keep the sums in registers. `value` begins at the group's first channel.
template <int kWidth>
inline __attribute__((always_inline)) void blend(const float* value, const float* nothing, const Places& c, int count, int width,
                                                 long cols, long channels, float* out, size_t pitch) {
  const int n = kWidth > 0 ? kWidth : width;
  for (int i = 0; i < count; ++i) {
    const float* first = value + (c.top[i] * cols + c.left[i]) * channels;
    const float *v0 = first, *v1 = first + channels, *v2 = first + cols * channels, *v3 = v2 + channels;
    if (c.exist[i] != kAll) {
      if (!(c.exist[i] & 1)) v0 = nothing;
      if (!(c.exist[i] & 2)) v1 = nothing;
      if (!(c.exist[i] & 4)) v2 = nothing;
      if (!(c.exist[i] & 8)) v3 = nothing;
    }
    const float w0 = c.weight[0][i], w1 = c.weight[1][i], w2 = c.weight[2][i], w3 = c.weight[3][i];
    float* __restrict to = out + i * pitch;
    for (int k = 0; k < n; ++k) to[k] = ((w0 * v0[k] + w1 * v1[k]) + w2 * v2[k]) + w3 * v3[k];
  }
}

AMSA_CLONES void gather(const float* value, const float* nothing, const Places& c, int count, int width, long cols, long channels,
                        float* out, size_t pitch) {
  switch (width) {
    case 8: return blend<8>(value, nothing, c, count, width, cols, channels, out, pitch);
    case 16: return blend<16>(value, nothing, c, count, width, cols, channels, out, pitch);
    case 32: return blend<32>(value, nothing, c, count, width, cols, channels, out, pitch);
    case 40: return blend<40>(value, nothing, c, count, width, cols, channels, out, pitch);
    default: return blend<0>(value, nothing, c, count, width, cols, channels, out, pitch);
  }
}

}  // namespace

size_t sampling_scratch(const Sizes& s) { return product(kRun, s.om_channels()) + product(kRun, s.om_channels()) + s.group_channels(); }

void sample_run(const Sizes& s, const SampleInputs& in, int r, int begin, int count, float* scratch, float* out) {
  const Picture& om = in.offset_mask;
  float* planes = scratch;
  float* pixels = planes + size_t(kRun) * s.om_channels();
  float* nothing = pixels + size_t(kRun) * s.om_channels();
  std::fill(nothing, nothing + s.group_channels(), 0.0f);
  // Planes of offsets and logits: the caller's, or a copy of this run.
  const float* learned;
  size_t pitch;
  if (!om.channels_last && !om.half) {
    learned = static_cast<const float*>(om.data) + size_t(r) * s.width + begin;
    pitch = size_t(s.pixels());
  } else {
    load_pixels(om, r, begin, count, s.om_channels(), pixels);
    for (int c = 0; c < s.om_channels(); ++c)
      for (int i = 0; i < count; ++i) planes[size_t(c) * kRun + i] = pixels[size_t(i) * s.om_channels() + c];
    learned = planes;
    pitch = kRun;
  }
  Places places;
  float base_y[kRun], base_x[kRun], moved_y[kRun], moved_x[kRun], masks[kRun];
  for (int tap = 0; tap < kTaps; ++tap) {
    const int ti = tap / 3, tj = tap % 3;
    const int32_t* row = in.match + long(r / s.scale - ti + 2) * s.match_cols - tj + 2;
    const int within = r % s.scale + (s.scale + 1) * ti - 1;
    base_positions(row, begin, count, s.scale, 0, within, base_y);
    base_positions(row + s.match_size() / 2, begin, count, s.scale, s.scale - 1, (s.scale + 1) * tj - 1, base_x);
    for (int g = 0; g < s.groups; ++g) {
      const int sample = g * kTaps + tap, width = s.group_channels();
      const float *y = base_y, *x = base_x;
      if (s.with_offsets) {
        const float* offsets = learned + size_t(2 * sample) * pitch;
        add(base_y, offsets, count, moved_y);
        add(base_x, offsets + pitch, count, moved_x);
        y = moved_y;
        x = moved_x;
      }
      sigmoids(learned + size_t(s.masks() + sample) * pitch, count, masks);
      find_corners(y, x, masks, s.rows, s.cols, count, places);
      gather(in.value + g * width, nothing, places, count, width, s.cols, s.channels,
             out + size_t(tap) * s.channels + g * width, size_t(kTaps) * s.channels);
    }
  }
}

const float* PixelTable::get(const AmsaDeformableSample& call, const Sizes& s, int b, Team& team) {
  const int element_of_value = s.value_n > 1 ? b : 0;
  const bool half = call.half != 0;
  const size_t size = product(s.rows, s.cols, s.channels);
  const Picture value{element(call.value, half, element_of_value * size), half, call.value_channels_last != 0, s.channels, s.rows,
                      s.cols};
  if (!half && value.channels_last) return static_cast<const float*>(value.data);
  if (held_ != element_of_value) {
    if (held_ < 0) copy_ = Buffer<float>(size);
    team.run(s.rows, [&](int r) { load_pixels(value, r, 0, s.cols, s.channels, copy_.get() + size_t(r) * s.cols * s.channels); });
    held_ = element_of_value;
  }
  return copy_.get();
}

}  // namespace amsa

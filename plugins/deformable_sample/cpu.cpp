// DeformableSample on the CPU, whole: from the caller's tensors to samples, as declared in spec.py.
//
// One output pixel needs 9 * groups positions and 9 * C samples; each sample is four weighted runs of C / groups neighbouring
// floats of a channels-last table, so the inner loop runs along channels and nothing is unfolded. Where the caller's layout is
// another, a run of output pixels is computed channels-last and then stored in it.

#include "cpu.hpp"

#include <limits>

#include "place.hpp"

namespace amsa {
namespace {

constexpr int64_t kLargestSide = 1 << 24;
constexpr int kRun = 16;  // output pixels: a cache line of each channel

void require(bool condition, const std::string& otherwise) {
  if (!condition) throw Error("DeformableSample: " + otherwise);
}

// Pixels [begin, begin + count) of row r: om [count, om_channels] -> out [count, 9 * channels]. `nothing`: zeros, one group's.
AMSA_CLONES void sample_run(const Sizes& s, const float* value, const int32_t* match, const float* om, const float* nothing,
                            int r, int begin, int count, float* out) {
  const int width = s.group_channels();
  for (int i = 0; i < count; ++i, om += s.om_channels())
    for (int tap = 0; tap < kTaps; ++tap)
      for (int g = 0; g < s.groups; ++g, out += width) {
        const Place p = place(s, match, om, r, begin + i, tap, g);
        const float mask = sigmoid(om[s.masks() + g * kTaps + tap]);
        if (!p.inside || mask != mask) {
          std::fill(out, out + width, p.a_number && mask == mask ? 0.0f : std::numeric_limits<float>::quiet_NaN());
          continue;
        }
        const float* corners[4];
        float weights[4];
        for (int k = 0; k < 4; ++k) {
          const int a = k / 2, b = k % 2;
          const bool there = p.row[a] && p.col[b];
          corners[k] = there ? value + (long(p.top + a) * s.cols + p.left + b) * s.channels + g * width : nothing;
          weights[k] = (a ? p.fy : 1 - p.fy) * (b ? p.fx : 1 - p.fx) * mask;
        }
        const float *v0 = corners[0], *v1 = corners[1], *v2 = corners[2], *v3 = corners[3];
        const float w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
        float* __restrict to = out;
        for (int k = 0; k < width; ++k) to[k] = ((w0 * v0[k] + w1 * v1[k]) + w2 * v2[k]) + w3 * v3[k];
      }
}

void run(const AmsaDeformableSample& call) {
  check_attributes(call);
  check_shapes(call);
  const Sizes s(call);
  const bool half = call.half != 0;
  const size_t value_size = product(s.rows, s.cols, s.channels), om_size = product(s.pixels(), s.om_channels());
  const size_t out_size = product(s.pixels(), kTaps, s.channels);
  product(s.n, out_size, 4);
  const int threads = call.threads > 0 ? call.threads : default_threads();
  Team team(worthwhile(threads, double(s.n) * double(out_size) * 4));
  const std::vector<float> nothing(s.group_channels(), 0.0f);
  const int strips = s.height;
  const int om_width = s.om_channels(), out_width = kTaps * s.channels;
  // Scratch of a strip is taken from a pool as large as the team: work may not allocate, which could throw.
  const int runs = threads;
  const size_t scratch = product(kRun, om_width + out_width);
  Buffer<float> pool(product(runs, scratch));
  std::vector<std::atomic<bool>> taken(runs);
  Buffer<float> table;
  for (int b = 0; b < s.n; ++b) {
    const Picture value{element(call.value, half, s.value_n > 1 ? b * value_size : 0), half, call.value_channels_last != 0,
                        s.channels, s.rows, s.cols};
    const auto* pixels = static_cast<const float*>(value.data);
    if (half || !value.channels_last) {
      if (b == 0 || s.value_n > 1) {
        if (b == 0) table = Buffer<float>(value_size);
        team.run(s.rows, [&](int r) {
          load_pixels(value, r, 0, s.cols, s.channels, table.get() + size_t(r) * s.cols * s.channels);
        });
      }
      pixels = table.get();
    }
    const Picture om{element(call.offset_mask, half, s.offset_mask_n > 1 ? b * om_size : 0), half,
                     call.offset_mask_channels_last != 0, om_width, s.height, s.width};
    const Picture out{element(call.samples, half, b * out_size), half, call.samples_channels_last != 0, out_width, s.height,
                      s.width};
    float* direct = out.channels_last && !half ? static_cast<float*>(call.samples) + b * out_size : nullptr;
    const int32_t* match = call.match + b * s.match_size();
    team.run(strips, [&](int r) {
      int own = 0;
      while (taken[own].exchange(true)) own = (own + 1) % runs;
      float* logits = pool.get() + own * scratch;
      float* samples = logits + kRun * om_width;
      for (int c = 0; c < s.width; c += kRun) {
        const int count = std::min(kRun, s.width - c);
        load_pixels(om, r, c, count, om_width, logits);
        if (direct != nullptr) {
          sample_run(s, pixels, match, logits, nothing.data(), r, c, count, direct + (long(r) * s.width + c) * out_width);
          continue;
        }
        sample_run(s, pixels, match, logits, nothing.data(), r, c, count, samples);
        store_pixels(samples, out, r, c, count);
      }
      taken[own] = false;
    });
  }
}

}  // namespace

void check_attributes(const AmsaDeformableSample& call) {
  require(call.scale == 1 || call.scale == 2 || call.scale == 4,
          "scale is " + std::to_string(call.scale) + "; it must be one of 1, 2, 4");
  require(call.groups >= 1 && call.groups <= kLargestSide,
          "groups is " + std::to_string(call.groups) + "; it must be at least 1");
}

void check_shapes(const AmsaDeformableSample& call) {
  const int64_t *value = call.value_shape, *match = call.match_shape, *om = call.offset_mask_shape;
  const int64_t batch = match[0];
  const auto check = [&](const char* name, const int64_t* shape) {
    for (int i = 0; i < 4; ++i)
      require(shape[i] >= 1 && shape[i] <= kLargestSide,
              std::string(name) + " has a side of " + std::to_string(shape[i]) + "; it must be 1 to 16777216");
    require(shape[0] == 1 || shape[0] == batch, std::string(name) + " has batch " + std::to_string(shape[0]) +
                                                    "; it must be 1 or " + std::to_string(batch));
  };
  check("match", match);
  check("value", value);
  check("offset_mask", om);
  require(match[1] == 2, "match has " + std::to_string(match[1]) + " channels; it must have 2");
  require(value[1] % call.groups == 0, "value has " + std::to_string(value[1]) + " channels; they must divide into " +
                                           std::to_string(call.groups) + " groups");
  require(om[1] == 9 * call.groups || om[1] == 27 * call.groups,
          "offset_mask has " + std::to_string(om[1]) + " channels; it must have " + std::to_string(9 * call.groups) +
              " (masks) or " + std::to_string(27 * call.groups) + " (offsets and masks)");
  const int64_t height = call.scale * (match[2] - 2), width = call.scale * (match[3] - 2);
  require(om[2] == height && om[3] == width,
          "offset_mask is " + std::to_string(om[2]) + "x" + std::to_string(om[3]) + "; with this match and scale it must be " +
              std::to_string(height) + "x" + std::to_string(width));
}

}  // namespace amsa

const char* amsa_deformable_sample(const AmsaDeformableSample* call) {
  return amsa::guarded([&] { amsa::run(*call); });
}

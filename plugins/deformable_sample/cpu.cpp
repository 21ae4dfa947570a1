// DeformableSample on the CPU, whole: from the caller's tensors to samples, as declared in spec.py. A run of output pixels is
// sampled channels-last and then stored in the caller's layout.

#include "cpu.hpp"

#include "sampling.hpp"

namespace amsa {
namespace {

constexpr int64_t kLargestSide = 1 << 24;

void require(bool condition, const std::string& otherwise) {
  if (!condition) throw Error("DeformableSample: " + otherwise);
}

void run(const AmsaDeformableSample& call) {
  check_attributes(call);
  check_shapes(call);
  const Sizes s(call);
  const bool half = call.half != 0;
  const int out_width = kTaps * s.channels;
  const size_t om_size = product(s.pixels(), s.om_channels()), out_size = product(s.pixels(), out_width);
  product(s.n, out_size, 4);
  const int threads = call.threads > 0 ? call.threads : default_threads();
  Team team(worthwhile(threads, double(s.n) * double(out_size) * 4));
  // Scratch of a row is taken from a pool as large as the team: work may not allocate, which could throw.
  ScratchPool pool(threads, sampling_scratch(s) + product(kRun, out_width));
  PixelTable table;
  for (int b = 0; b < s.n; ++b) {
    const SampleInputs in{table.get(call, s, b, team), call.match + b * s.match_size(),
                          Picture{element(call.offset_mask, half, s.offset_mask_n > 1 ? b * om_size : 0), half,
                                  call.offset_mask_channels_last != 0, s.om_channels(), s.height, s.width}};
    const Picture out{element(call.samples, half, b * out_size), half, call.samples_channels_last != 0, out_width, s.height,
                      s.width};
    float* direct = out.channels_last && !half ? static_cast<float*>(call.samples) + b * out_size : nullptr;
    team.run(s.height, [&](int r) {
      const ScratchPool::Share scratch(pool);
      float* samples = scratch.get() + sampling_scratch(s);
      for (int c = 0; c < s.width; c += kRun) {
        const int count = std::min(kRun, s.width - c);
        float* to = direct != nullptr ? direct + (long(r) * s.width + c) * out_width : samples;
        sample_run(s, in, r, c, count, scratch.get(), to);
        if (direct == nullptr) store_pixels(samples, out, r, c, count);
      }
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

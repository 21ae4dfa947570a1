// DeformableSample's launch: `plan.py` in C++.
#pragma once

#include "../launch.hpp"
#include "spec.hpp"

namespace amsa {

// `SampleParams` of kernels.cu.
struct SampleParams {
  uint64_t value, match, offset_mask, out;
  int32_t vectors, value_shared, offset_mask_shared, c, rows, cols, height, width;
  int32_t scale, groups, with_offsets;
};

constexpr int kSampleThreads = 256;  // kThreads of kernels.cu

// The launches of one call; none where the output is empty.
//   shapes: of value, match, offset_mask, NCHW; in memory `match` is that and the features are HWC.
//   addresses: of value, match, offset_mask and the output, aligned to 16 bytes.
//   half: features are float16, else float32.
// Throws std::invalid_argument where shapes or attributes do not fit, or a tensor is too large.
inline std::vector<Launch> deformable_sample_plan(const Shapes& shapes, const Addresses& addresses, bool half,
                                                  const Attributes& given) {
  const OpSpec& op = kDeformableSample;
  const Attributes attributes = checked(op, given);
  const auto output = deformable_sample_shapes(shapes, attributes)[0];
  const auto &value = shapes[0], &offset_mask = shapes[2];
  check_addressable(op, "value", value);
  check_addressable(op, "offset_mask", offset_mask);
  check_addressable(op, "the output", output);

  const int64_t n = output[0], c = value[1], height = output[2], width = output[3];
  const int64_t groups = number(attributes, "groups"), lanes = half ? 8 : 4;
  const bool whole = c / groups % lanes == 0;  // a vector's channels share one offset
  const int64_t vectors = 9 * c * height * width / (whole ? lanes : 1);
  if (n * vectors == 0) return {};
  SampleParams p{};
  p.value = addresses[0];
  p.match = addresses[1];
  p.offset_mask = addresses[2];
  p.out = addresses[3];
  p.vectors = int32_t(vectors);
  p.value_shared = value[0] == 1;
  p.offset_mask_shared = offset_mask[0] == 1;
  p.c = int32_t(c);
  p.rows = int32_t(value[2]);
  p.cols = int32_t(value[3]);
  p.height = int32_t(height);
  p.width = int32_t(width);
  p.scale = int32_t(number(attributes, "scale"));
  p.groups = int32_t(groups);
  p.with_offsets = offset_mask[1] == 27 * groups;
  const std::string kernel = std::string("deformable_sample_f") + (half ? "16" : "32") + (whole ? "" : "_any");
  return {launch(kernel, {unsigned(ceil_div(vectors, kSampleThreads)), unsigned(n), 1}, {kSampleThreads, 1, 1}, p)};
}

}  // namespace amsa

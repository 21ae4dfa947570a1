// The declaration of DeformableSample: `spec.py` in C++.
#pragma once

#include "../spec.hpp"

namespace amsa {

inline const OpSpec kDeformableSample{
    "DeformableSample",
    "deformable_sample",
    {{"value", Type::kFeatures}, {"match", Type::kInt32}, {"offset_mask", Type::kFeatures}},
    {{"samples", Type::kFeatures}},
    {{"scale", false, {int64_t(1), int64_t(2), int64_t(4)}, {}}, {"groups", false, {}, {}}},
};

// Shapes of value, match, offset_mask -> of samples. std::invalid_argument for those that do not fit.
template <class Size>
std::vector<Shape<Size>> deformable_sample_shapes(const std::vector<Shape<Size>>& inputs, const Attributes& attributes) {
  const OpSpec& op = kDeformableSample;
  const auto &value = inputs[0], &match = inputs[1], &offset_mask = inputs[2];
  const int64_t scale = number(attributes, "scale"), groups = number(attributes, "groups");
  const Size batch = batch_of(op, "match", match, 4);
  check_shape(op, "value", value, 4, batch);
  check_shape(op, "match", match, 4, batch, 2);
  check_shape(op, "offset_mask", offset_mask, 4, batch);
  if (value[1] % groups != 0)
    fail(op, "value has " + text(value[1]) + " channels; they must divide into " + text(groups) + " groups");
  if (offset_mask[1] != 9 * groups && offset_mask[1] != 27 * groups)
    fail(op, "offset_mask has " + text(offset_mask[1]) + " channels; it must have " + text(9 * groups) + " (masks) or " +
                 text(27 * groups) + " (offsets and masks)");
  const Size height = scale * (match[2] - 2), width = scale * (match[3] - 2);
  if (offset_mask[2] != height || offset_mask[3] != width)
    fail(op, "offset_mask is " + by(offset_mask[2], offset_mask[3]) + "; with this match and scale it must be " +
                 by(height, width));
  return {{batch, 9 * value[1], height, width}};
}

}  // namespace amsa

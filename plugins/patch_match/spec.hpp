// The declaration of PatchMatch: `spec.py` in C++.
#pragma once

#include "../spec.hpp"

namespace amsa {

inline const OpSpec kPatchMatch{
    "PatchMatch",
    "patch_match",
    {{"query", Type::kFeatures}, {"ref", Type::kFeatures}, {"valid", Type::kInt32}, {"init", Type::kInt32}},
    {{"match", Type::kInt32}, {"relevance", Type::kFloat32}},
    {
        {"iterations", false, {}, {}},
        {"schedule", true, {"published", "paper", "fast", "exact"}, {}},
        {"level", false, {int64_t(0), int64_t(1), int64_t(2), int64_t(3)}, {}},
        {"pad", false, {int64_t(0), int64_t(1)}, {}},
        {"init_scale", false, {int64_t(1), int64_t(2)}, {}},
        {"arithmetic", true, {"float", "int8"}, {"float"}},
    },
};

// Up to here inner products of int8 features are exact, as in spec.py.
constexpr int64_t kInt8Channels = 1040;

// Shapes of query, ref, valid, init -> of match, relevance. std::invalid_argument for those that do not fit.
template <class Size>
std::vector<Shape<Size>> patch_match_shapes(const std::vector<Shape<Size>>& inputs, const Attributes& attributes) {
  const OpSpec& op = kPatchMatch;
  const auto &query = inputs[0], &ref = inputs[1], &valid = inputs[2], &init = inputs[3];
  const int64_t pad = number(attributes, "pad"), init_scale = number(attributes, "init_scale");
  const Size batch = batch_of(op, "ref", ref, 4);
  check_shape(op, "query", query, 4, batch);
  check_shape(op, "ref", ref, 4, batch);
  check_shape(op, "valid", valid, 2, batch, 2);
  check_shape(op, "init", init, 4, batch, 2);
  if (query[1] != ref[1])
    fail(op, "query has " + text(query[1]) + " channels and ref " + text(ref[1]) + "; they must be equal");
  if (text(attributes, "arithmetic") == "int8" && query[1] > kInt8Channels)
    fail(op, "query has " + text(query[1]) + " channels; int8 arithmetic takes at most " + text(kInt8Channels));
  for (const auto& [name, shape] : {std::pair("query", &query), std::pair("ref", &ref)})
    if (pad == 0 && ((*shape)[2] < 3 || (*shape)[3] < 3))
      fail(op, name + (" is " + by((*shape)[2], (*shape)[3])) + "; without padding both sides must be at least 3");
  if (init_scale == 2 && (query[2] % 2 != 0 || query[3] % 2 != 0))
    fail(op, "query is " + by(query[2], query[3]) + "; with a coarser init both sides must be even");
  const Size height = query[2] - 2 + 2 * pad, width = query[3] - 2 + 2 * pad;
  const Size rows = init_scale == 1 ? height : query[2] / 2, cols = init_scale == 1 ? width : query[3] / 2;
  if (init[2] != rows || init[3] != cols) fail(op, "init is " + by(init[2], init[3]) + "; it must be " + by(rows, cols));
  return {{batch, 2, height, width}, {batch, 1, height, width}};
}

}  // namespace amsa

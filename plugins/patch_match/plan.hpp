// PatchMatch's launches, and how much scratch memory they need: `plan.py` in C++.
#pragma once

#include "../launch.hpp"
#include "schedule.hpp"
#include "spec.hpp"

namespace amsa {

// `MatchParams` of kernels.cu.
struct MatchParams {
  uint64_t query, ref, valid, init, match, relevance, energy, inverse_norm;
  uint64_t field_from, score_from, field_to, score_to, settled, largest;
  uint64_t query_int8, ref_int8;
  int32_t query_shared, valid_shared, init_shared, c, c_int8, query_rows;
  int32_t query_cols, ref_rows, ref_cols, height, width, init_rows, init_cols;
  int32_t level, pad, init_scale, schedule, lr, turn, iteration, first, last;
};

constexpr int kMatchThreads = 128, kMatchWarps = 4;  // kThreads, kWarps of kernels.cu
constexpr int kStridingBlocks = 512;  // of the kernels that stride: as many as fill a large card once

inline int64_t padded_channels(int64_t c) { return ceil_div(c, 16) * 16; }  // whole vectors of int8

// Offsets of the scratch memory's parts, and where it ends.
struct MatchScratch {
  int64_t energy, inverse_norm, field[2], score[2], settled, largest = 0, query_int8 = 0, ref_int8 = 0, end = 0;

  MatchScratch(const Shape<int64_t>& query, const Shape<int64_t>& ref, int64_t positions, bool int8) {
    const int64_t n = ref[0], pixels = n * ref[2] * ref[3];
    energy = part(4 * pixels);
    inverse_norm = part(4 * pixels);
    for (int buffer : {0, 1}) {
      field[buffer] = part(8 * n * positions);
      score[buffer] = part(4 * n * positions);
    }
    settled = part(4 * n * positions);
    if (!int8) return;
    largest = part(8 * n);
    query_int8 = part(n * query[2] * query[3] * padded_channels(ref[1]));
    ref_int8 = part(pixels * padded_channels(ref[1]));
  }

 private:
  int64_t part(int64_t size) {
    const int64_t begin = end;
    end += ceil_div(size, 256) * 256;
    return begin;
  }
};

// Bytes of scratch memory that `patch_match_plan` needs, whatever the schedule.
inline int64_t patch_match_scratch(const Shapes& shapes, const Attributes& attributes) {
  const auto &query = shapes[0], &ref = shapes[1];
  const int64_t border = 2 - 2 * number(attributes, "pad");
  const int64_t positions = (query[2] - border) * (query[3] - border);
  return MatchScratch(query, ref, positions, text(attributes, "arithmetic") == "int8").end;
}

// What all launches of a call have in common, but for the output's size and the schedule.
inline MatchParams match_params(const Shapes& shapes, const Addresses& addresses, const Attributes& attributes,
                                const MatchScratch& parts) {
  const auto &query = shapes[0], &ref = shapes[1], &valid = shapes[2], &init = shapes[3];
  const uint64_t scratch = addresses[6];
  MatchParams p{};
  p.query = addresses[0];
  p.ref = addresses[1];
  p.valid = addresses[2];
  p.init = addresses[3];
  p.match = addresses[4];
  p.relevance = addresses[5];
  p.energy = scratch + parts.energy;
  p.inverse_norm = scratch + parts.inverse_norm;
  p.settled = scratch + parts.settled;
  if (text(attributes, "arithmetic") == "int8") {
    p.largest = scratch + parts.largest;
    p.query_int8 = scratch + parts.query_int8;
    p.ref_int8 = scratch + parts.ref_int8;
  }
  p.query_shared = query[0] == 1;
  p.valid_shared = valid[0] == 1;
  p.init_shared = init[0] == 1;
  p.c = int32_t(ref[1]);
  p.c_int8 = int32_t(padded_channels(ref[1]));
  p.query_rows = int32_t(query[2]);
  p.query_cols = int32_t(query[3]);
  p.ref_rows = int32_t(ref[2]);
  p.ref_cols = int32_t(ref[3]);
  p.init_rows = int32_t(init[2]);
  p.init_cols = int32_t(init[3]);
  p.level = int32_t(number(attributes, "level"));
  p.pad = int32_t(number(attributes, "pad"));
  p.init_scale = int32_t(number(attributes, "init_scale"));
  return p;
}

// The launches of one call; none where the output is empty.
//   shapes: of query, ref, valid, init, NCHW.
//   addresses: of those, match, relevance and the scratch memory, aligned to 16 bytes: query and ref HWC, the rest as declared.
//   half: features are float16, else float32.
// Throws std::invalid_argument where shapes or attributes do not fit, or a tensor is too large.
inline std::vector<Launch> patch_match_plan(const Shapes& shapes, const Addresses& addresses, bool half,
                                            const Attributes& given) {
  const OpSpec& op = kPatchMatch;
  const Attributes attributes = checked(op, given);
  const std::vector<std::string> propagations = {"published", "paper", "fast"};  // Schedule of kernels.cu
  const std::string& schedule = text(attributes, "schedule");
  const auto place = std::find(propagations.begin(), propagations.end(), schedule);
  if (place == propagations.end())
    fail(op, "there is no CUDA kernel for schedule " + shown(schedule) + "; take one of published, paper, fast");
  const auto output = patch_match_shapes(shapes, attributes)[0];
  const auto &query = shapes[0], &ref = shapes[1], &init = shapes[3];
  check_addressable(op, "query", query);
  check_addressable(op, "ref", ref);
  check_addressable(op, "init", init);
  check_addressable(op, "the output", output);
  const int64_t n = ref[0], c = ref[1], rows = ref[2], cols = ref[3], height = output[2], width = output[3];
  if (n * height * width == 0) return {};
  if (c * rows * cols == 0) fail(op, "ref is empty; there is nothing to match");

  const bool int8 = text(attributes, "arithmetic") == "int8";
  const MatchScratch parts(query, ref, height * width, int8);
  MatchParams common = match_params(shapes, addresses, attributes, parts);
  common.height = int32_t(height);
  common.width = int32_t(width);
  common.schedule = int32_t(place - propagations.begin());

  std::vector<Launch> launches;
  const auto add = [&](const std::string& kernel, int64_t blocks, const MatchParams& params, unsigned z = 1,
                       unsigned threads = kMatchThreads) {
    launches.push_back(launch("patch_match_" + kernel, {unsigned(blocks), unsigned(n), z}, {threads, 1, 1}, params));
  };
  const std::string floats = half ? "f16" : "f32", kind = int8 ? "int8" : floats;
  const int64_t channels = int8 ? common.c_int8 : c, lanes = int8 ? 16 : half ? 8 : 4;
  const bool whole = channels % lanes == 0;
  if (int8) {
    const int64_t largest_map = std::max(query[2] * query[3], rows * cols) * common.c_int8;
    const int64_t blocks = std::min<int64_t>(ceil_div(largest_map, kMatchThreads), kStridingBlocks);
    add("clear", 1, common, 1, 32);
    add("largest_" + floats, blocks, common, 2);
    add("quantize_" + floats, blocks, common, 2);
  }
  add("energy_" + kind + (whole ? "" : "_any"), ceil_div(rows * cols, kMatchWarps), common);
  add(int8 ? "norm_int8" : "norm", ceil_div(rows * cols, kMatchThreads), common);

  // Vectors a lane can hold, as far as kernels are compiled for it.
  const std::vector<int64_t> compiled =
      int8 ? std::vector<int64_t>{1, 5} : half ? std::vector<int64_t>{1, 3, 9} : std::vector<int64_t>{3, 9};
  const int64_t vectors = ceil_div(9 * channels, 32 * lanes);
  const auto rounds = std::find_if(compiled.begin(), compiled.end(), [&](int64_t r) { return r >= vectors; });
  const std::string suffix = whole ? std::to_string(rounds == compiled.end() ? 0 : *rounds) : "any";
  const int64_t iterations = number(attributes, "iterations"), level = common.level;
  const auto path = steps(schedule, iterations, level, {query[2], query[3]}, {rows << level, cols << level});
  const size_t per_iteration = path.size() / size_t(iterations);
  for (size_t i = 0; i < path.size(); ++i) {
    MatchParams params = common;
    params.field_from = addresses[6] + parts.field[i % 2];
    params.score_from = addresses[6] + parts.score[i % 2];
    params.field_to = addresses[6] + parts.field[1 - i % 2];
    params.score_to = addresses[6] + parts.score[1 - i % 2];
    params.lr = path[i].lr;
    params.turn = bit_length(path[i].dilation) - 1;
    params.iteration = int32_t(i / per_iteration);
    params.first = i == 0;
    params.last = i + 1 == path.size();
    add("step_" + kind + "_" + suffix, ceil_div(height * width, kMatchWarps), params);
  }
  return launches;
}

}  // namespace amsa

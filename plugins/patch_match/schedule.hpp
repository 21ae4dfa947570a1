// Which propagation steps a level runs: `schedule.py` in C++. Integers only, and nothing but the standard library.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace amsa {

// One propagation, as `Step` of schedule.py.
struct Step {
  bool lr;
  int dilation, jitter;
  bool shifted;
};

constexpr int kCandidates = 9;
// The published code's jitter directions per tap.
constexpr int kJitterY[kCandidates] = {1, 0, 0, 1, 0, -1, 0, 0, -1};
constexpr int kJitterX[kCandidates] = {0, -1, -1, 0, 0, 0, 1, 1, 0};

inline int64_t clamp(int64_t value, int64_t low, int64_t high) { return std::max(low, std::min(value, high)); }

// Rows (or columns) of a level's reference features that hold picture, from level 0's.
inline int64_t level_valid(int64_t valid, int64_t level) { return (valid + (int64_t(1) << level) - 1) >> level; }

inline int bit_length(int64_t value) {
  int bits = 0;
  for (; value > 0; value >>= 1) ++bits;
  return bits;
}

// Numbers of dilations 1, 2, 4, ..
inline int published_reach(int64_t height, int64_t width) {
  return std::max(1, bit_length((std::min(height, width) - 3) / 8));
}

inline int paper_reach(int64_t height, int64_t width) {
  int reach = 1;
  while ((int64_t(64) << 2 * reach) < height * width) ++reach;
  return reach;
}

// All steps of a level. query: rows and columns of the query features at this level; valid: of level 0's reference features.
inline std::vector<Step> steps(const std::string& schedule, int64_t iterations, int64_t level, const int64_t (&query)[2],
                               const int64_t (&valid)[2]) {
  std::vector<Step> path;
  const bool published = schedule == "published", shifted = schedule == "fast";
  const int reach = paper_reach(query[0], query[1]);
  const int lr_reach = published_reach(query[0] << level, query[1] << level);
  const int ref_reach = published_reach(valid[0], valid[1]);
  for (int64_t i = 0; i < iterations; ++i) {
    if (published) {
      for (int t = 0; t < lr_reach; ++t) path.push_back({true, 1 << t, 0, false});
      for (int t = 0; t < ref_reach; ++t) path.push_back({false, 1 << t, int(i % (1 << t)), false});
      continue;
    }
    for (int t = 0; t < reach; ++t) {  // fast: far neighbours first, then the surroundings of what they gave
      path.push_back({true, 1 << (shifted ? reach - 1 - t : t), 0, shifted});
      path.push_back({false, shifted ? 1 : 1 << t, 0, false});
    }
  }
  return path;
}

}  // namespace amsa

// Where DeformableSample samples: what the forward and the backward kernel share.
#pragma once

#include <cmath>

#include "../cpu_common.hpp"
#include "cpu.hpp"

namespace amsa {

constexpr int kTaps = 9;

struct Sizes {
  int n, value_n, offset_mask_n, channels, rows, cols, height, width, scale, groups;
  bool with_offsets;
  int match_rows, match_cols;
  int group_channels() const { return channels / groups; }
  int om_channels() const { return (with_offsets ? 3 : 1) * kTaps * groups; }
  int masks() const { return om_channels() - kTaps * groups; }  // the first mask's channel
  long match_size() const { return 2L * match_rows * match_cols; }
  long pixels() const { return long(height) * width; }

  explicit Sizes(const AmsaDeformableSample& call)
      : n(int(call.match_shape[0])),
        value_n(int(call.value_shape[0])),
        offset_mask_n(int(call.offset_mask_shape[0])),
        channels(int(call.value_shape[1])),
        rows(int(call.value_shape[2])),
        cols(int(call.value_shape[3])),
        height(int(call.offset_mask_shape[2])),
        width(int(call.offset_mask_shape[3])),
        scale(int(call.scale)),
        groups(int(call.groups)),
        with_offsets(call.offset_mask_shape[1] == 27 * call.groups),
        match_rows(int(call.match_shape[2])),
        match_cols(int(call.match_shape[3])) {}
};

// Where one tap of one output pixel samples: top-left corner, fractions, and which of the four corners exist.
struct Place {
  int top, left;
  float fy, fx;
  bool inside;    // false: every corner is outside, the sample is zero
  bool a_number;  // false: an offset is not a number, nor is the sample
  bool row[2], col[2];
};

inline Place place(const Sizes& s, const int32_t* match, const float* om, int r, int c, int tap, int group) {
  const int ti = tap / 3, tj = tap % 3;
  const long at = long(r / s.scale - ti + 2) * s.match_cols + (c / s.scale - tj + 2);
  // 64 bits: a match may be any number.
  float y = float(int64_t(s.scale) * match[at] + r % s.scale + (s.scale + 1) * ti - 1);
  float x = float(int64_t(s.scale) * match[s.match_size() / 2 + at] + c % s.scale + (s.scale + 1) * tj - 1);
  if (s.with_offsets) {
    y += om[(group * kTaps + tap) * 2];
    x += om[(group * kTaps + tap) * 2 + 1];
  }
  Place p{};
  p.a_number = y == y && x == x;
  p.inside = y > -1 && y < float(s.rows) && x > -1 && x < float(s.cols);  // false for what is not a number too
  if (!p.inside) return p;
  p.top = int(std::floor(y));
  p.left = int(std::floor(x));
  p.fy = y - float(p.top);
  p.fx = x - float(p.left);
  p.row[0] = p.top >= 0;
  p.row[1] = p.top + 1 < s.rows;
  p.col[0] = p.left >= 0;
  p.col[1] = p.left + 1 < s.cols;
  return p;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

}  // namespace amsa

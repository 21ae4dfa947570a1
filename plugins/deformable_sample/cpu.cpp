// DeformableSample on the CPU, forward and backward, float32, channels-last (HWC): what `reference.py` defines.
//
// One output pixel needs 9 * groups positions and 9 * C samples; each sample is four weighted runs of C / groups
// neighbouring floats, so the inner loops run along channels and nothing is unfolded.

#include <cmath>
#include <limits>

#include "../cpu_common.hpp"

using amsa::kLanes;
using amsa::parallel;

namespace {

constexpr int kTaps = 9;

struct Sizes {
  int n, value_n, c, rows, cols, height, width, scale, groups, with_offsets;
  int om_channels() const { return (with_offsets ? 27 : 9) * groups; }
  long pixels() const { return long(height) * width; }
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
  const int mh = s.height / s.scale + 2, mw = s.width / s.scale + 2;
  const long at = long(r / s.scale - ti + 2) * mw + (c / s.scale - tj + 2);
  float y = float(int64_t(s.scale) * match[at] + r % s.scale + (s.scale + 1) * ti - 1);
  float x = float(int64_t(s.scale) * match[long(mh) * mw + at] + c % s.scale + (s.scale + 1) * tj - 1);
  if (s.with_offsets) {
    y += om[(group * kTaps + tap) * 2];
    x += om[(group * kTaps + tap) * 2 + 1];
  }
  Place p;
  p.a_number = y == y && x == x;
  p.inside = y > -1 && y < float(s.rows) && x > -1 && x < float(s.cols);  // false for NaN too
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

AMSA_CLONES void forward_rows(const Sizes& s, const float* value, const int32_t* match, const float* om, float* out, int begin,
                              int end) {
  const int group_c = s.c / s.groups, om_c = s.om_channels();
  for (int r = begin; r < end; ++r)
    for (int c = 0; c < s.width; ++c) {
      const float* om_here = om + (long(r) * s.width + c) * om_c;
      float* out_here = out + (long(r) * s.width + c) * kTaps * s.c;
      for (int tap = 0; tap < kTaps; ++tap)
        for (int g = 0; g < s.groups; ++g) {
          float* o = out_here + tap * s.c + g * group_c;
          const Place p = place(s, match, om_here, r, c, tap, g);
          const float mask = sigmoid(om_here[om_c - kTaps * s.groups + g * kTaps + tap]);
          const float start = p.a_number && mask == mask ? 0.0f : std::numeric_limits<float>::quiet_NaN();
          for (int i = 0; i < group_c; ++i) o[i] = start;
          if (!p.inside) continue;
          for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
              if (!p.row[i] || !p.col[j]) continue;
              const float w = (i ? p.fy : 1 - p.fy) * (j ? p.fx : 1 - p.fx) * mask;
              const float* v = value + (long(p.top + i) * s.cols + p.left + j) * s.c + g * group_c;
              for (int k = 0; k < group_c; ++k) o[k] += w * v[k];
            }
        }
    }
}

AMSA_CLONES void backward_image(const Sizes& s, const float* value, const int32_t* match, const float* om, const float* grad,
                                float* grad_value, float* grad_om) {
  const int group_c = s.c / s.groups, om_c = s.om_channels(), masks = om_c - kTaps * s.groups;
  for (int r = 0; r < s.height; ++r)
    for (int c = 0; c < s.width; ++c) {
      const long pixel = long(r) * s.width + c;
      const float* om_here = om + pixel * om_c;
      float* grad_here = grad_om + pixel * om_c;
      for (int tap = 0; tap < kTaps; ++tap)
        for (int g = 0; g < s.groups; ++g) {
          const int sample = g * kTaps + tap;
          grad_here[masks + sample] = 0;
          if (s.with_offsets) grad_here[2 * sample] = grad_here[2 * sample + 1] = 0;
          const Place p = place(s, match, om_here, r, c, tap, g);
          if (!p.inside) continue;
          const float* go = grad + pixel * kTaps * s.c + tap * s.c + g * group_c;
          const float mask = sigmoid(om_here[masks + sample]);
          float dot[2][2] = {{0, 0}, {0, 0}}, whole = 0;
          for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
              if (!p.row[i] || !p.col[j]) continue;
              const long at = (long(p.top + i) * s.cols + p.left + j) * s.c + g * group_c;
              const float w = (i ? p.fy : 1 - p.fy) * (j ? p.fx : 1 - p.fx);
              const float* v = value + at;
              float* gv = grad_value + at;
              float lanes[kLanes] = {};
              int k = 0;
              for (; k + kLanes <= group_c; k += kLanes)
                for (int l = 0; l < kLanes; ++l) {
                  lanes[l] += go[k + l] * v[k + l];
                  gv[k + l] += w * mask * go[k + l];
                }
              float sum = 0;
              for (; k < group_c; ++k) {
                sum += go[k] * v[k];
                gv[k] += w * mask * go[k];
              }
              for (int l = 0; l < kLanes; ++l) sum += lanes[l];
              dot[i][j] = sum;
              whole += w * sum;
            }
          grad_here[masks + sample] = whole * mask * (1 - mask);
          if (s.with_offsets) {
            grad_here[2 * sample] = mask * ((1 - p.fx) * (dot[1][0] - dot[0][0]) + p.fx * (dot[1][1] - dot[0][1]));
            grad_here[2 * sample + 1] = mask * ((1 - p.fy) * (dot[0][1] - dot[0][0]) + p.fy * (dot[1][1] - dot[1][0]));
          }
        }
    }
}

}  // namespace

extern "C" {

// value [value_n, rows, cols, c], match [n, 2, height/scale+2, width/scale+2], om [n, height, width, om_channels]
// -> out [n, height, width, 9*c]; value_n is 1 or n.
void amsa_deformable_sample_forward(const Sizes* sizes, const float* value, const int32_t* match, const float* om, float* out,
                                    int threads) {
  const Sizes s = *sizes;
  const long value_size = s.value_n == 1 ? 0 : long(s.rows) * s.cols * s.c;
  const long match_size = 2L * (s.height / s.scale + 2) * (s.width / s.scale + 2);
  constexpr int kRows = 8;  // rows of one piece of work
  const int strips = (s.height + kRows - 1) / kRows;
  parallel(s.n * strips, threads, [=](int i) {
    const int image = i / strips, begin = i % strips * kRows;
    forward_rows(s, value + image * value_size, match + image * match_size, om + image * s.pixels() * s.om_channels(),
                 out + image * s.pixels() * kTaps * s.c, begin, std::min(begin + kRows, s.height));
  });
}

// grad [n, height, width, 9*c] -> grad_value (zeroed by the caller), grad_om. One thread an image: sums into grad_value keep
// one order, so that training is reproducible bit by bit; images that share a value run one after the other.
void amsa_deformable_sample_backward(const Sizes* sizes, const float* value, const int32_t* match, const float* om,
                                     const float* grad, float* grad_value, float* grad_om, int threads) {
  const Sizes s = *sizes;
  const long value_size = s.value_n == 1 ? 0 : long(s.rows) * s.cols * s.c;
  const long match_size = 2L * (s.height / s.scale + 2) * (s.width / s.scale + 2);
  parallel(s.n, s.value_n == 1 ? 1 : threads, [=](int i) {
    backward_image(s, value + i * value_size, match + i * match_size, om + i * s.pixels() * s.om_channels(),
                   grad + i * s.pixels() * kTaps * s.c, grad_value + i * value_size, grad_om + i * s.pixels() * s.om_channels());
  });
}
}

// DeformableSample's gradients on the CPU, float32, channels-last.

#include "place.hpp"

namespace amsa {
namespace {

AMSA_CLONES void backward_image(const Sizes& s, const float* value, const int32_t* match, const float* om, const float* grad,
                                float* grad_value, float* grad_om) {
  const int group_c = s.group_channels(), om_c = s.om_channels(), masks = s.masks();
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
          const float* go = grad + pixel * kTaps * s.channels + tap * s.channels + g * group_c;
          const float mask = sigmoid(om_here[masks + sample]);
          float dot[2][2] = {{0, 0}, {0, 0}}, whole = 0;
          for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
              if (!p.row[i] || !p.col[j]) continue;
              const long at = (long(p.top + i) * s.cols + p.left + j) * s.channels + g * group_c;
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

// One thread an image: sums into grad_value keep one order, so that training is reproducible bit by bit; images that share a
// value run one after the other.
void run(const AmsaDeformableSample& call, const float* grad, float* grad_value, float* grad_om) {
  check_attributes(call);
  check_shapes(call);
  const Sizes s(call);
  if (call.half || !call.value_channels_last || !call.offset_mask_channels_last || s.offset_mask_n != s.n)
    throw Error("DeformableSample: gradients are of float32 channels-last tensors, one offset_mask per element");
  const auto* value = static_cast<const float*>(call.value);
  const auto* om = static_cast<const float*>(call.offset_mask);
  const long value_size = s.value_n == 1 ? 0 : long(s.rows) * s.cols * s.channels;
  Team team(s.value_n == 1 ? 1 : std::min(call.threads > 0 ? call.threads : default_threads(), s.n));
  team.run(s.n, [&](int i) {
    backward_image(s, value + i * value_size, call.match + i * s.match_size(), om + i * s.pixels() * s.om_channels(),
                   grad + i * s.pixels() * kTaps * s.channels, grad_value + i * value_size,
                   grad_om + i * s.pixels() * s.om_channels());
  });
}

}  // namespace
}  // namespace amsa

const char* amsa_deformable_sample_backward(const AmsaDeformableSample* call, const float* grad, float* grad_value,
                                            float* grad_offset_mask) {
  return amsa::guarded([&] { amsa::run(*call, grad, grad_value, grad_offset_mask); });
}

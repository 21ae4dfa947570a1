// DeformableSample's C interface, and the checks in front of it.
#pragma once

#include <cstdint>

extern "C" {

// One call, as declared in spec.py. Tensors lie in memory as NCHW; features may be channels-last instead.
struct AmsaDeformableSample {
  int64_t value_shape[4], match_shape[4], offset_mask_shape[4];
  int64_t scale, groups;
  int32_t half;  // features are float16, else float32
  int32_t value_channels_last, offset_mask_channels_last, samples_channels_last;
  int32_t threads;  // 0: see amsa_set_threads
  const void* value;
  const int32_t* match;
  const void* offset_mask;
  void* samples;  // [N, 9*C, scale*h, scale*w]
};

// Null, or what is wrong in one line, which lives until this thread's next call.
const char* amsa_deformable_sample(const AmsaDeformableSample* call);

// The gradients of float32 channels-last tensors: grad of the samples -> grad_value (zeroed by the caller) and
// grad_offset_mask [N, ..]; the call's own tensors are as above, offset_mask repeated for the whole batch.
const char* amsa_deformable_sample_backward(const AmsaDeformableSample* call, const float* grad, float* grad_value,
                                            float* grad_offset_mask);
}

namespace amsa {

// Throw Error unless attributes, or shapes with these attributes, are as declared.
void check_attributes(const AmsaDeformableSample& call);
void check_shapes(const AmsaDeformableSample& call);

}  // namespace amsa

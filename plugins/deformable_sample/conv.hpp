// DeformableConv's C interface. Not an op of exported models: ONNX Runtime's graphs are given it as they are loaded
// (engine/cpu_graphs.py), where DeformableSample is followed by nothing but its 1x1 convolution.
#pragma once

#include "cpu.hpp"

extern "C" {

// DeformableSample, a 1x1 convolution over its 9*C channels and a leaky ReLU. Features, weight and bias are float32, or float16
// with `sample.half`; sums are float32.
struct AmsaDeformableConv {
  AmsaDeformableSample sample;  // `samples` is not used
  int64_t filters;
  const void* weight;    // [filters, 9*C]
  const void* bias;      // [filters], or null
  float negative_slope;  // 1: no ReLU
  void* out;             // NCHW [N, filters, scale*h, scale*w]
};

// Null, or what is wrong in one line, which lives until this thread's next call.
const char* amsa_deformable_conv(const AmsaDeformableConv* call);
}

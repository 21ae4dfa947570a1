// A run of output pixels' samples: what DeformableSample stores, and DeformableConv multiplies.
#pragma once

#include "place.hpp"

namespace amsa {

constexpr int kRun = 64;  // most output pixels of a row at a time: whole vectors, and their samples stay in the nearest cache

// Floats of scratch memory that a thread needs.
size_t sampling_scratch(const Sizes& s);

// The batch element's features, as the caller has them.
struct SampleInputs {
  const float* value;  // [rows, cols, channels]
  const int32_t* match;
  Picture offset_mask;
};

// Pixels [begin, begin + count) of row r, count <= kRun -> out [count, 9 * channels].
void sample_run(const Sizes& s, const SampleInputs& in, int r, int begin, int count, float* scratch, float* out);

// value as a table of float32 pixels [rows, cols, channels]: where it is, or a copy of it.
class PixelTable {
 public:
  // Element b of the batch, for the pointer that `get` returns until the next call.
  const float* get(const AmsaDeformableSample& call, const Sizes& s, int b, Team& team);

 private:
  Buffer<float> copy_;
  int held_ = -1;
};

}  // namespace amsa

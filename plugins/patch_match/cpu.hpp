// PatchMatch's C interface, and the checks in front of it.
#pragma once

#include <cstdint>

extern "C" {

// One call, as declared in spec.py. Tensors lie in memory as NCHW; features may be channels-last instead.
struct AmsaPatchMatch {
  int64_t query_shape[4], ref_shape[4], valid_shape[2], init_shape[4];
  int64_t iterations, level, pad, init_scale;
  const char *schedule, *arithmetic;
  int32_t half;  // features are float16, else float32
  int32_t query_channels_last, ref_channels_last;
  int32_t threads;  // 0: see amsa_set_threads
  const void *query, *ref;
  const int32_t *valid, *init;
  int32_t* match;        // [N, 2, H, W]
  float* relevance;      // [N, 1, H, W]
  int64_t* evaluations;  // how many scores were computed; may be null
};

// Null, or what is wrong in one line, which lives until this thread's next call.
const char* amsa_patch_match(const AmsaPatchMatch* call);
}

namespace amsa {

// Throw Error unless attributes, or shapes with these attributes, are as declared.
void check_attributes(const AmsaPatchMatch& call);
void check_shapes(const AmsaPatchMatch& call);

}  // namespace amsa

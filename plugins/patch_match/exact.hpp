// Exhaustive 3x3 patch matching on the CPU: for every query position the best of all reference positions.
#pragma once

#include <cstdint>

namespace amsa {

struct ExactGrid {
  int height, width;           // query positions
  int channels;                // of both tables; int8: with the zeros that fill up to a multiple of 32
  int query_pitch, ref_pitch;  // pixels of a table's row, with padding
  int count_y, count_x;        // reference positions that can be matched, at least 1x1
};

enum class ExactPath { best, portable, avx2, avx_vnni, avx512 };

struct ExactOptions {
  // What the search may allocate per thread. Sizes that need more are cut into more tiles, down to single rows of 14 query
  // positions against single rows of 14 reference positions; those are taken even where they need more than this.
  long scratch_bytes = 64L << 20;
  // For tests: which instructions to use; all give the same bits. One that the processor or the type lacks: portable.
  ExactPath path = ExactPath::best;
};

// Score of query position (y, x) and reference position (v, u), both the top-left corners of 3x3 patches in their tables:
// the inner product of the patches times inverse_norm[v, u]. The highest score wins, a tie goes to the first position in
// row-major order. A score that is NaN or below -FLT_MAX counts as -FLT_MAX, so where all are the match is (0, 0).
//
//   query         [>= height + 2, query_pitch, channels]
//   ref           [>= count_y + 2, ref_pitch, channels]
//   inverse_norm  [>= count_y, ref_pitch - 2]
//   match         [height, width, 2] (y, x)
//   score         [height, width]
//
// Neither the number of threads, nor scratch_bytes, nor the processor changes a bit of the result. Float32: a pixel pair's
// product is a chain of fused multiply-adds over ascending channels; then ((a + b) + c) along a patch's row, then down.
void exact_search(const ExactGrid& grid, const float* query, const float* ref, const float* inverse_norm, int32_t* match,
                  float* score, int threads, const ExactOptions& options = {});

// The same for int8: the inner product is exact in int32 (up to 14563 channels), is rounded to float32, then multiplied.
void exact_search(const ExactGrid& grid, const int8_t* query, const int8_t* ref, const float* inverse_norm, int32_t* match,
                  float* score, int threads, const ExactOptions& options = {});

}  // namespace amsa

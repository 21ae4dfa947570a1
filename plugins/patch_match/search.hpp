// What the searches of a level read: features in padded, channels-last tables, prepared once per level.
#pragma once

#include <cfloat>
#include <vector>

#include "../cpu_common.hpp"
#include "schedule.hpp"

namespace amsa {

// One level of one batch element. Positions (y, x) are those of patches' first pixels in the padded tables.
struct Grid {
  int height, width;      // query positions
  int count_y, count_x;   // reference positions, the valid ones alone
  int channels;           // of a table's pixel: the features' and zeros
  long query_pitch() const { return long(width + 2) * channels; }
  long ref_pitch() const { return long(count_x + 2) * channels; }
  long positions() const { return long(height) * width; }
};

// T is float, or int8_t for quantized features. A score is dot(query patch, reference patch) * inverse_norm, see `score_of`.
template <class T>
struct Tables {
  const T* query;              // [height+2, width+2, channels]; a pixel starts at a multiple of 64 (float) or 32 (int8) bytes
  const T* ref;                // [count_y+2, count_x+2, channels]
  const float* inverse_norm;   // [count_y, count_x]: one by the norm of the reference patch at a position
  const int32_t* ref_sum;      // [count_y, count_x]: the sum of that patch's values; null for float
};

// What is not a number, or is below every float, counts as the lowest float: it never wins against an earlier candidate.
inline float score_of(float dot, float inverse_norm) {
  const float score = dot * inverse_norm;
  return score > -FLT_MAX ? score : -FLT_MAX;
}

// Inner products of the query patch at `query` with `count` reference patches. A patch is three runs of 3*channels values,
// `query_pitch` and `ref_pitch` apart. `ref_sums`: of each patch, as in Tables.
using FloatDots = void (*)(const float* query, long query_pitch, const float* const* refs, long ref_pitch, int channels,
                           int count, const int32_t* ref_sums, float* dots);
using Int8Dots = void (*)(const int8_t* query, long query_pitch, const int8_t* const* refs, long ref_pitch, int channels,
                          int count, const int32_t* ref_sums, int32_t* dots);

// The implementation for this processor; float sums are the same bits on all, int8 sums are exact.
FloatDots dots_of(float);
Int8Dots dots_of(int8_t);

// Takes the steps from `match` on, [height, width, 2] (y, x) within the counts; leaves the result there and its scores in
// `score` [height, width]. Returns how many scores were computed.
template <class T>
int64_t propagate(const Grid& grid, const Tables<T>& tables, const std::vector<Step>& path, bool wrap, Team& team,
                  int32_t* match, float* score);

// ------------------------------------------------------------------------------------------------------------ preparation

constexpr int kFloatChannels = 16;  // a pixel's channels are a multiple of this: 64 bytes
constexpr int kInt8Channels = 32;

inline int padded(int channels, int multiple) { return (channels + multiple - 1) / multiple * multiple; }

// A padded table: float32 [rows + 2*pad, cols + 2*pad, channels] of the picture's first rows and columns, zeros around.
Buffer<float> padded_table(const Picture& picture, int rows, int cols, int pad, int channels, Team& team);

// The largest finite magnitude of a table; 0 where that is below 1e-30.
float amplitude(const float* table, size_t size, Team& team);

// Features in [-127, 127] by the amplitude: round half to even, what is not finite is 0.
Buffer<int8_t> quantized(const float* table, size_t size, float amplitude, Team& team);

// inverse_norm of every position of a reference table; with int8 ref_sum too.
void norms(const Grid& grid, const float* ref, float* inverse_norm, Team& team);
void norms(const Grid& grid, const int8_t* ref, float* inverse_norm, int32_t* ref_sum, Team& team);

}  // namespace amsa

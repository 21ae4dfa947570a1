// Preparation of a level: padding, masking, quantization, norms.

#include <cmath>
#include <cstring>

#include "search.hpp"

namespace amsa {
namespace {

constexpr size_t kChunk = 1 << 16;  // values of one piece of work

// The published code's guard when it normalises a patch, squared.
constexpr float kEpsilon = 1e-24f;

AMSA_CLONES float largest(const float* values, size_t count) {
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const float magnitude = std::fabs(values[i + l]);
      // Infinity and what is not a number count as zero.
      lanes[l] = magnitude <= FLT_MAX && magnitude > lanes[l] ? magnitude : lanes[l];
    }
  for (; i < count; ++i)
    if (std::fabs(values[i]) <= FLT_MAX) lanes[0] = std::max(lanes[0], std::fabs(values[i]));
  return *std::max_element(lanes, lanes + kLanes);
}

AMSA_CLONES void quantize(const float* values, size_t count, float scale, int8_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const float value = std::fabs(values[i]) <= FLT_MAX ? values[i] * scale : 0.0f;
    // Adding 1.5 * 2^23 leaves no bits behind the point: rounds half to even in a single vector instruction.
    const float rounded = (value + 12582912.0f) - 12582912.0f;
    out[i] = int8_t(int(std::max(-127.0f, std::min(rounded, 127.0f))));
  }
}

// Per pixel the sum of squares, in kLanes partial sums.
AMSA_CLONES void energies(const float* pixels, int count, int channels, float* out) {
  for (int i = 0; i < count; ++i, pixels += channels) {
    float lanes[kLanes] = {};
    for (int c = 0; c < channels; c += kLanes)
      for (int l = 0; l < kLanes; ++l) lanes[l] += pixels[c + l] * pixels[c + l];
    for (int width = kLanes / 2; width > 0; width /= 2)
      for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    out[i] = lanes[0];
  }
}

AMSA_CLONES void energies(const int8_t* pixels, int count, int channels, int32_t* energy, int32_t* sum) {
  for (int i = 0; i < count; ++i, pixels += channels) {
    int32_t squares = 0, values = 0;
    for (int c = 0; c < channels; ++c) {
      squares += pixels[c] * pixels[c];
      values += pixels[c];
    }
    energy[i] = squares;
    sum[i] = values;
  }
}

// Sum over a patch of per-pixel values, `first` its top-left pixel, row by row.
template <class T>
T patch_sum(const T* first, int pitch) {
  T total = 0;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) total += first[long(i) * pitch + j];
  return total;
}

template <class Work>
void in_chunks(size_t size, Team& team, const Work& work) {
  team.run(int((size + kChunk - 1) / kChunk), [&](int i) { work(i * kChunk, std::min(kChunk, size - i * kChunk), i); });
}

}  // namespace

Buffer<float> padded_table(const Picture& picture, int rows, int cols, int pad, int channels, Team& team) {
  const size_t row_size = size_t(cols + 2 * pad) * channels;
  Buffer<float> table(product(rows + 2 * pad, cols + 2 * pad, channels));
  team.run(rows + 2 * pad, [&](int row) {
    float* out = table.get() + row * row_size;
    if (row < pad || row >= rows + pad) {
      std::fill(out, out + row_size, 0.0f);
      return;
    }
    const size_t border = size_t(pad) * channels;
    std::fill(out, out + border, 0.0f);
    load_pixels(picture, row - pad, 0, cols, channels, out + border);
    std::fill(out + row_size - border, out + row_size, 0.0f);
  });
  return table;
}

float amplitude(const float* table, size_t size, Team& team) {
  std::vector<float> parts((size + kChunk - 1) / kChunk);
  in_chunks(size, team, [&](size_t begin, size_t count, int i) { parts[i] = largest(table + begin, count); });
  const float amplitude = *std::max_element(parts.begin(), parts.end());
  return amplitude < 1e-30f ? 0.0f : amplitude;
}

Buffer<int8_t> quantized(const float* table, size_t size, float amplitude, Team& team) {
  Buffer<int8_t> out(size);
  const float scale = amplitude > 0 ? 127.0f / amplitude : 0.0f;
  in_chunks(size, team, [&](size_t begin, size_t count, int) { quantize(table + begin, count, scale, out.get() + begin); });
  return out;
}

void norms(const Grid& grid, const float* ref, float* inverse_norm, Team& team) {
  const int cols = grid.count_x + 2;
  Buffer<float> energy(product(grid.count_y + 2, cols));
  team.run(grid.count_y + 2,
           [&](int row) { energies(ref + row * grid.ref_pitch(), cols, grid.channels, energy.get() + long(row) * cols); });
  team.run(grid.count_y, [&](int row) {
    for (int col = 0; col < grid.count_x; ++col) {
      const float total = patch_sum(energy.get() + long(row) * cols + col, cols);
      inverse_norm[long(row) * grid.count_x + col] = 1.0f / std::sqrt(std::max(total, kEpsilon));
    }
  });
}

void norms(const Grid& grid, const int8_t* ref, float* inverse_norm, int32_t* ref_sum, Team& team) {
  const int cols = grid.count_x + 2;
  const size_t size = product(grid.count_y + 2, cols);
  Buffer<int32_t> energy(size), sum(size);
  team.run(grid.count_y + 2, [&](int row) {
    const long at = long(row) * cols;
    energies(ref + row * grid.ref_pitch(), cols, grid.channels, energy.get() + at, sum.get() + at);
  });
  team.run(grid.count_y, [&](int row) {
    for (int col = 0; col < grid.count_x; ++col) {
      const long at = long(row) * cols + col, to = long(row) * grid.count_x + col;
      const int32_t total = patch_sum(energy.get() + at, cols);
      inverse_norm[to] = 1.0f / std::sqrt(float(std::max(total, 1)));
      ref_sum[to] = patch_sum(sum.get() + at, cols);
    }
  });
}

}  // namespace amsa

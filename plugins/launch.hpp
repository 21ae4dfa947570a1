// What a launch plan consists of: `launch.py` in C++. A plan is a pure function: shapes, addresses and attributes -> launches.
#pragma once

#include <array>
#include <climits>
#include <cstring>
#include <type_traits>

#include "spec.hpp"

namespace amsa {

// One kernel launch. A kernel takes one struct by value; addresses in it are plain integers.
struct Launch {
  std::string kernel;
  std::array<unsigned, 3> grid, block;
  unsigned shared;
  size_t size;  // of the struct
  alignas(8) std::array<unsigned char, 256> params;
};

template <class Params>
Launch launch(std::string kernel, std::array<unsigned, 3> grid, std::array<unsigned, 3> block, const Params& params) {
  static_assert(std::is_trivially_copyable<Params>::value && sizeof(Params) <= sizeof(Launch::params), "one small struct");
  Launch made{std::move(kernel), grid, block, 0, sizeof(Params), {}};
  std::memcpy(made.params.data(), &params, sizeof(Params));
  return made;
}

using Shapes = std::vector<Shape<int64_t>>;
using Addresses = std::vector<uint64_t>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// std::invalid_argument unless one batch element of a tensor can be indexed with 32 bits and a batch fits a grid.
inline void check_addressable(const OpSpec& op, const std::string& name, const Shape<int64_t>& shape) {
  int64_t elements = 1;
  bool too_many = false, none = false;
  std::string size;
  for (size_t i = 1; i < shape.size(); ++i) {
    none |= shape[i] == 0;
    too_many |= __builtin_mul_overflow(elements, shape[i], &elements) || elements > INT_MAX;
    size += (i > 1 ? "x" : "") + text(shape[i]);
  }
  if (too_many && !none)
    fail(op, name + " has " + size + " elements; the kernels index at most 2^31 - 1: use smaller tiles");
  if (shape[0] > 65535) fail(op, name + " has batch " + text(shape[0]) + "; the kernels take at most 65535");
}

}  // namespace amsa

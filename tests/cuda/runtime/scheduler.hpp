// Runs a kernel: blocks one after another, each CUDA thread of a block on a stack of its own.
#pragma once

#include <vector_types.h>

#include <random>
#include <string>

namespace device {

struct Kernel;

// The order of blocks, and of threads between two points where they meet. A GPU promises none, so results must not depend on it.
enum class Order { kForward, kReversed, kShuffled };

struct Shape {
  dim3 grid, block;
  unsigned dynamic_shared, static_shared;  // bytes
};

const Kernel* find_kernel(const std::string& name);                 // null: there is none in the sources
std::string refusal(const Kernel& kernel, const Shape& shape);       // why the hardware refuses a launch; empty: it does not
void launch(const Kernel& kernel, const Shape& shape, const void* params, Order order, std::mt19937& random);

}  // namespace device

// Loads the kernels that the library carries, and launches plans, through the CUDA driver's own interface: `launcher.py` in C++.
//
// libcuda.so.1 is opened at first use: the library loads, and engines are built, on machines without a driver. It must be of CUDA
// 12.4 or later, and not older than the CUDA that compiled the kernels.
#pragma once

#include "launch.hpp"

namespace amsa {

// Loads an op's kernels into the current context, once, so that launching them loads nothing any more.
// std::runtime_error: no driver, no current context, a device without kernels.
void load_kernels(const OpSpec& op);

// Launches a plan on a stream (a CUstream) of the current context, and returns at once: nothing is allocated on the device,
// copied or waited for. std::runtime_error: as above, or a refused launch.
void launch_all(const OpSpec& op, const std::vector<Launch>& launches, void* stream);

}  // namespace amsa

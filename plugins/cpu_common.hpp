// What the CPU kernels share: one build for every x86, and threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

// The loader picks the widest instruction set that the processor has. Rounding does not depend on it: the build forbids
// contraction to fused multiply-add, and reductions keep a fixed number of lanes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AMSA_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define AMSA_CLONES
#endif

namespace amsa {

constexpr int kLanes = 16;  // partial sums of a dot product

// Runs work(i) for i in [0, count) on up to `threads` threads.
template <class Work>
void parallel(int count, int threads, Work work) {
  threads = std::max(1, std::min(threads, count));
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t)
    pool.emplace_back([=] {
      for (int i = t; i < count; i += threads) work(i);
    });
  for (int i = 0; i < count; i += threads) work(i);
  for (auto& thread : pool) thread.join();
}

}  // namespace amsa

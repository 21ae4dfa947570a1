// Each kernel has one fault, which the harness must report; test_harness.py says in which build and with which words. The tests
// find the line of a fault by the comment "fault" at its end.

#include <cuda_fp16.h>

#include <cstdint>

constexpr int kThreads = 64;

struct Fault {
  float* data;
  int n;
};

// Out of line, or UBSan would know the array's length and report before ASan's red zones can.
__device__ __noinline__ float element(const float* values, int i) { return values[i]; }

AMSA_KERNEL(read_out_of_bounds, Fault, kThreads) {
  const float beyond = p.data[threadIdx.x + 1];  // fault: the last thread is one too far
  __syncthreads();
  p.data[threadIdx.x] = beyond;
}

AMSA_KERNEL(write_out_of_bounds, Fault, kThreads) {
  p.data[int(threadIdx.x) - 1] = 1.0f;  // fault: the first thread is one too far
}

// The address of a byte that is one behind a buffer whose length is no multiple of anything.
AMSA_KERNEL(byte_out_of_bounds, Fault, kThreads) {
  reinterpret_cast<char*>(p.data)[p.n] = 1;  // fault
}

AMSA_KERNEL(static_shared_overrun, Fault, kThreads) {
  __shared__ float before[kThreads];
  __shared__ float behind[kThreads];
  before[threadIdx.x] = behind[threadIdx.x] = 1.0f;
  __syncthreads();
  p.data[threadIdx.x] = element(before, threadIdx.x + p.n) + behind[threadIdx.x];  // fault
}

AMSA_KERNEL(dynamic_shared_overrun, Fault, kThreads) {
  AMSA_SHARED(float, tile);
  tile[threadIdx.x + 1] = 1.0f;  // fault
  p.data[threadIdx.x] = 0.0f;
}

AMSA_KERNEL(misaligned_load, Fault, kThreads) {
  const float4 v = *reinterpret_cast<const float4*>(p.data + 2 * threadIdx.x);  // fault: 8 bytes apart, not 16
  p.data[threadIdx.x] = v.x + v.y + v.z + v.w;
}

AMSA_KERNEL(misaligned_ldg, Fault, kThreads) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(p.data + 1));  // fault
  p.data[threadIdx.x] = float(v.x);
}

AMSA_KERNEL(dropped_barrier, Fault, kThreads) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = p.data[threadIdx.x];
  p.data[threadIdx.x] = values[threadIdx.x ^ 1];  // fault: nobody waited for the neighbour
}

// There are barriers, but one too few between two passes: the order of threads at the others must not hide it.
AMSA_KERNEL(dropped_second_barrier, Fault, kThreads) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = p.data[threadIdx.x];
  __syncthreads();
  const float neighbour = values[(threadIdx.x + 1) % kThreads];
  values[threadIdx.x] = neighbour;  // fault: another may not have read it yet
  __syncthreads();
  p.data[threadIdx.x] = values[threadIdx.x];
}

// A shuffle lets lanes meet but orders no memory.
AMSA_KERNEL(shuffle_as_barrier, Fault, kThreads) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = p.data[threadIdx.x];
  const float same = __shfl_sync(~0u, p.data[threadIdx.x], threadIdx.x % 32);
  p.data[threadIdx.x] = values[threadIdx.x ^ 1] + same;  // fault: that takes __syncwarp
}

AMSA_KERNEL(unguarded_sum, Fault, kThreads) {
  p.data[0] += 1.0f;  // fault: no atomicAdd
}

AMSA_KERNEL(shuffle_without_half_the_warp, Fault, kThreads) {
  float value = p.data[threadIdx.x];
  if (threadIdx.x < 16) value += __shfl_xor_sync(~0u, value, 1);  // fault
  p.data[threadIdx.x] = value;
}

AMSA_KERNEL(shuffles_at_two_places, Fault, kThreads) {
  float value = p.data[threadIdx.x];
  if (threadIdx.x % 32 < 16)
    value = __shfl_xor_sync(~0u, value, 1);  // fault
  else
    value = __shfl_xor_sync(~0u, value, 2);
  p.data[threadIdx.x] = value;
}

AMSA_KERNEL(shuffle_outside_its_mask, Fault, kThreads) {
  const unsigned lower = 0x0000ffffu;
  if (threadIdx.x % 32 < 16) p.data[threadIdx.x] = __shfl_xor_sync(lower, 1.0f, 16);  // fault: the upper half is not in it
}

AMSA_KERNEL(barriers_at_two_places, Fault, kThreads) {
  if (threadIdx.x < 32)
    __syncthreads();  // fault
  else
    __syncthreads();
  p.data[threadIdx.x] = 1.0f;
}

AMSA_KERNEL(barrier_after_exit, Fault, kThreads) {
  if (int(threadIdx.x) >= p.n) return;
  __syncthreads();  // fault
  p.data[threadIdx.x] = 1.0f;
}

AMSA_KERNEL(barrier_against_shuffle, Fault, kThreads) {
  if (threadIdx.x < 16)
    __syncthreads();  // fault: each half waits for the other
  else
    p.data[threadIdx.x] = __shfl_sync(~0u, 1.0f, 0);
}

AMSA_KERNEL(uninitialised_shared, Fault, kThreads) {
  __shared__ float fixed[kThreads];
  AMSA_SHARED(float, sized);
  if (threadIdx.x % 2) fixed[threadIdx.x] = sized[threadIdx.x] = 0.0f;
  p.data[threadIdx.x] = threadIdx.x < 32 ? fixed[threadIdx.x] : sized[threadIdx.x];
}

AMSA_KERNEL(int_overflow, Fault, kThreads) {
  p.data[threadIdx.x] = float(p.n * int(threadIdx.x + 1));  // fault
}

AMSA_KERNEL(cast_out_of_range, Fault, kThreads) {
  reinterpret_cast<int*>(p.data)[threadIdx.x] = int(p.data[threadIdx.x]);  // fault: saturates on the GPU only
}

// The result depends on which block comes last; no build sees it, but two orders do.
AMSA_KERNEL(blocks_in_order, Fault, kThreads) { p.data[threadIdx.x] = float(blockIdx.x); }

AMSA_KERNEL(much_static_shared, Fault, kThreads) {
  __shared__ float tile[10000];
  tile[threadIdx.x] = 1.0f;
  __syncthreads();
  p.data[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// Waits for a block that has not begun; a GPU need not run both at once either.
AMSA_KERNEL(waits_for_another_block, Fault, kThreads) {
  int* const flag = reinterpret_cast<int*>(p.data);
  if (blockIdx.x == 1) atomicAdd(flag, 1);
  while (blockIdx.x == 0 && atomicAdd(flag, 0) == 0) {
  }
}

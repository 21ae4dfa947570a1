// What a thread's instructions cost here; see speed.py. Each loop depends on itself, so that nothing is left out.

#include <cuda_fp16.h>

struct Speed {
  float* data;
  int count;
};

AMSA_KERNEL(fma32, Speed, 256) {
  float a = threadIdx.x;
  for (int i = 0; i < p.count; ++i) a = __fmaf_rn(a, 0.5f, 1.0f);
  p.data[threadIdx.x] = a;
}

AMSA_KERNEL(load, Speed, 256) {
  int at = threadIdx.x;
  for (int i = 0; i < p.count; ++i) at = (at + int(__ldg(p.data + at)) + 1) % 256;
  p.data[256 + threadIdx.x] = at;
}

AMSA_KERNEL(half2_fma, Speed, 256) {
  __half2 a = __float2half2_rn(threadIdx.x);
  for (int i = 0; i < p.count; ++i) a = __hfma2(a, __float2half2_rn(0.5f), a);
  p.data[threadIdx.x] = __low2float(a);
}

AMSA_KERNEL(dp4a, Speed, 256) {
  int a = threadIdx.x;
  for (int i = 0; i < p.count; ++i) a = __dp4a(a, 0x01020304, i);
  p.data[threadIdx.x] = a;
}

AMSA_KERNEL(shuffle, Speed, 256) {
  float a = threadIdx.x;
  for (int i = 0; i < p.count; ++i) a = __shfl_xor_sync(~0u, a, 1);
  p.data[threadIdx.x] = a;
}

AMSA_KERNEL(barrier, Speed, 256) {
  for (int i = 0; i < p.count; ++i) __syncthreads();
  p.data[threadIdx.x] = 1.0f;
}

AMSA_KERNEL(begin_and_end, Speed, 256) { p.data[blockIdx.x % 2 * 256 + threadIdx.x] = 1.0f; }

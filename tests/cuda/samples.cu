// Kernels without a fault: what the harness has to run, in every build and order.

#include <cuda_fp16.h>

#include <cstdint>

namespace {

constexpr int kThreads = 128;

__device__ float warp_sum(float value) {
  for (int offset = warpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

}  // namespace

struct Saxpy {
  const float* x;
  float* y;
  float a;
  int n;
};

AMSA_KERNEL(saxpy, Saxpy, 256) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.n) p.y[i] = __fmaf_rn(p.a, __ldg(p.x + i), p.y[i]);
}

struct Reduce {
  const float* x;
  float* sums;  // one for each block
  int n;
};

AMSA_KERNEL(block_sum, Reduce, kThreads) {
  __shared__ float partial[kThreads];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  partial[threadIdx.x] = i < p.n ? p.x[i] : 0.0f;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) partial[threadIdx.x] += partial[threadIdx.x + width];
    __syncthreads();
  }
  if (threadIdx.x == 0) p.sums[blockIdx.x] = partial[0];
}

// Shuffles within warps, then a vote and __syncwarp in the first.
AMSA_KERNEL(warp_sums, Reduce, kThreads) {
  __shared__ float partial[kThreads / 32];
  const int i = blockIdx.x * kThreads + threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float sum = warp_sum(i < p.n ? p.x[i] : 0.0f);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  if (warp != 0) return;
  const unsigned mask = __ballot_sync(~0u, lane < kThreads / 32);
  if (lane >= kThreads / 32) return;
  for (int width = kThreads / 64; width > 0; width /= 2) {
    if (lane < width) partial[lane] += partial[lane + width];
    __syncwarp(mask);
  }
  if (lane == 0) p.sums[blockIdx.x] = partial[0];
}

struct Transpose {
  const float* in;  // [height, width]
  float* out;       // [width, height]
  int height, width;
};

// Tiles of blockDim.x by blockDim.y in dynamic shared memory; a grid and a block of two dimensions.
AMSA_KERNEL(transpose, Transpose, 256) {
  AMSA_SHARED(float, tile);
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x < p.width && y < p.height) tile[threadIdx.y * blockDim.x + threadIdx.x] = p.in[y * p.width + x];
  __syncthreads();
  // Threads swap places, so each reads what another wrote.
  const int rank = threadIdx.y * blockDim.x + threadIdx.x;
  const int row = rank % blockDim.y, column = rank / blockDim.y;
  const int to_x = blockIdx.x * blockDim.x + column, to_y = blockIdx.y * blockDim.y + row;
  if (to_x < p.width && to_y < p.height) p.out[to_x * p.height + to_y] = tile[row * blockDim.x + column];
}

struct Halves {
  const __half* a;
  const __half* b;
  const __half* c;
  __half* fused;    // a * b + c, rounded once
  __half* rounded;  // rounded after each step
  int n;            // even
};

AMSA_KERNEL(half_arithmetic, Halves, 256) {
  const int i = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= p.n) return;
  const __half2 a = *reinterpret_cast<const __half2*>(p.a + i), b = *reinterpret_cast<const __half2*>(p.b + i);
  const __half2 c = __halves2half2(p.c[i], p.c[i + 1]);
  *reinterpret_cast<__half2*>(p.fused + i) = __hfma2(a, b, c);
  const float2 product = __half22float2(__hmul2(a, b)), addend = __half22float2(c);
  *reinterpret_cast<__half2*>(p.rounded + i) = __floats2half2_rn(product.x + addend.x, product.y + addend.y);
}

struct Dots {
  const int8_t* rows;    // [n, 16]
  const int8_t* vector;  // [16]
  int* dots;
  int* largest;  // of all
  int n;
};

AMSA_KERNEL(int8_dots, Dots, 256) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.n) return;
  const int4 row = __ldg(reinterpret_cast<const int4*>(p.rows) + i), vector = *reinterpret_cast<const int4*>(p.vector);
  int dot = __dp4a(row.x, vector.x, __dp4a(row.y, vector.y, __dp4a(row.z, vector.z, __dp4a(row.w, vector.w, 0))));
  p.dots[i] = dot;
  atomicMax(p.largest, dot);
}

struct Conversions {
  const float* x;
  int* nearest;
  int* down;
  float* root;
  int* bits;
  float* bits_as_float;  // the same address
  int n;
};

AMSA_KERNEL(conversions, Conversions, 256) {
  const int i = threadIdx.x;
  if (i >= p.n) return;
  p.nearest[i] = __float2int_rn(p.x[i]);
  p.down[i] = __float2int_rd(p.x[i]);
  p.root[i] = __fsqrt_rn(__fdiv_rn(1.0f, __frcp_rn(fabsf(p.x[i]))));
  // One address as two types: kernels do so, and a compiler that goes by types would keep the 0.
  p.bits[i] = 0;
  p.bits_as_float[i] = p.x[i];
  p.bits[i] = p.bits[i] == __float_as_int(p.x[i]);
}

// Every lane's value as each kind of shuffle brings it, and votes.
struct Shuffles {
  int* out;  // [8, 64]
};

AMSA_KERNEL(shuffles, Shuffles, 64) {
  const int i = threadIdx.x, lane = i % 32;
  const bool upper = lane >= 16;
  const unsigned half_warp = upper ? 0xffff0000u : 0x0000ffffu;
  p.out[i] = __shfl_sync(~0u, i, 3, 8);
  p.out[64 + i] = __shfl_up_sync(~0u, i, 2, 16);
  p.out[128 + i] = __shfl_down_sync(~0u, i, 5);
  p.out[192 + i] = __shfl_xor_sync(~0u, i, 9, 16);
  if (upper)  // the halves of a warp each on their own way, and not equally often
    p.out[256 + i] = __shfl_xor_sync(half_warp, i, 1);
  else
    p.out[256 + i] = __shfl_xor_sync(half_warp, __shfl_xor_sync(half_warp, i, 1), 2);
  p.out[320 + i] = __popc(__ballot_sync(~0u, lane % 3 == 0));
  p.out[384 + i] = __any_sync(half_warp, lane == 5) + 2 * __all_sync(half_warp, lane < 16);
  p.out[448 + i] = __ffs(__ballot_sync(~0u, i >= 40));
}

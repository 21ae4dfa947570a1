// What the CUDA kernels share. A kernel takes one struct by value, so that a launch is a name, a grid and a blob of bytes.
#pragma once

#include <cuda_fp16.h>

#ifdef __CUDACC_RTC__  // has no <cstdint>
using int8_t = signed char;
#endif

#ifndef AMSA_KERNEL  // the tests' harness, which runs the kernels on the CPU, has its own
// The second bound leaves room for 512 threads on a multiprocessor, half of what SM 7.5 holds.
#define AMSA_KERNEL(name, Params, threads) \
  extern "C" __global__ void __launch_bounds__(threads, 512 / threads) name(const Params p)
#define AMSA_SHARED(T, name) extern __shared__ __align__(16) T name[]
#endif

namespace amsa {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// 16 bytes, the most that one instruction loads or stores: T says what they hold.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  uint4 bits;
};

template <class T>
__device__ inline Vector<T> load(const T* from) {
  Vector<T> v;
  v.bits = __ldg(reinterpret_cast<const uint4*>(from));
  return v;
}

template <class T>
__device__ inline void store(T* to, const Vector<T>& v) {
  *reinterpret_cast<uint4*>(to) = v.bits;
}

__device__ inline float2 halves(unsigned bits) { return __half22float2(*reinterpret_cast<const __half2*>(&bits)); }

// The vector's elements in float32.
__device__ inline void unpack(const Vector<__half>& v, float out[8]) {
  const float2 a = halves(v.bits.x), b = halves(v.bits.y), c = halves(v.bits.z), d = halves(v.bits.w);
  out[0] = a.x, out[1] = a.y, out[2] = b.x, out[3] = b.y, out[4] = c.x, out[5] = c.y, out[6] = d.x, out[7] = d.y;
}

__device__ inline void unpack(const Vector<float>& v, float out[4]) {
  out[0] = __uint_as_float(v.bits.x), out[1] = __uint_as_float(v.bits.y);
  out[2] = __uint_as_float(v.bits.z), out[3] = __uint_as_float(v.bits.w);
}

__device__ inline unsigned pack_halves(float a, float b) {
  const __half2 h = __floats2half2_rn(a, b);
  return *reinterpret_cast<const unsigned*>(&h);
}

__device__ inline Vector<__half> pack(const float (&x)[8]) {
  Vector<__half> v;
  v.bits = make_uint4(pack_halves(x[0], x[1]), pack_halves(x[2], x[3]), pack_halves(x[4], x[5]), pack_halves(x[6], x[7]));
  return v;
}

__device__ inline Vector<float> pack(const float (&x)[4]) {
  Vector<float> v;
  v.bits = make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
  return v;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
template <>
__device__ inline __half from_float<__half>(float x) { return __float2half_rn(x); }

}  // namespace amsa

// All that a kernel sees of the CPU that stands in for a GPU. The compiler includes it before the kernel's source (-include),
// so that the source needs no change. What is missing here does not compile; add it with the rounding that CUDA's guide gives.
#pragma once

#include <math.h>

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>

#include <cuda_fp16.h>  // and with it vector_types.h and vector_functions.h

namespace device {

// Where a kernel calls. As the last argument, `Where at = {}`, it takes the line of the call.
struct Where {
  const char* file;
  int line;
  Where(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
};

// The running thread's built-in variables; the scheduler sets them whenever it switches threads.
extern const uint3* thread_index;
extern uint3 block_index;
extern dim3 block_size, grid_size;
extern unsigned lane;
extern void* dynamic_shared;

// Each of these suspends the thread until those that it has to meet have called the same, at the same place.
void sync_block(Where at);
void sync_warp(unsigned mask, Where at);
unsigned vote(const char* what, Where at, unsigned mask, bool predicate);  // the ballot; lanes outside the mask count as 0
uint64_t shuffle(const char* what, Where at, unsigned mask, uint64_t value, unsigned source);  // the source lane's value

struct Kernel {
  const char* name;
  unsigned max_threads;  // of a block: __launch_bounds__
  size_t params_size;
  void (*call)(const void* params);
};

struct Registration {  // makes a kernel known to the driver
  explicit Registration(Kernel kernel);
};

template <class Params, void (*kKernel)(Params)>
void call(const void* params) {
  Params copy;
  memcpy(static_cast<void*>(&copy), params, sizeof copy);
  kKernel(copy);
}

}  // namespace device

#define AMSA_KERNEL(name, Params, threads)                                                                                     \
  static void name(const Params p);                                                                                            \
  static const device::Registration register_##name({#name, threads, sizeof(Params), device::call<Params, name>});             \
  static void name(const Params p)

// Shared memory. Blocks run one after another, so one static variable serves them all; the section is how the scheduler finds
// what it has to poison before each block, and how the harness counts the bytes.
#undef __shared__
#define __shared__ static __attribute__((section("device_shared")))
#define AMSA_SHARED(T, name) T* const name = static_cast<T*>(device::dynamic_shared)

// nvcc knows these by itself, the CUDA headers do not.
#undef __launch_bounds__
#define __launch_bounds__(...)
#ifndef __noinline__
#define __noinline__ __attribute__((noinline))
#endif

#define threadIdx (*device::thread_index)
#define blockIdx (static_cast<const uint3&>(device::block_index))
#define blockDim (static_cast<const dim3&>(device::block_size))
#define gridDim (static_cast<const dim3&>(device::grid_size))
constexpr int warpSize = 32;

// ---- Barriers, votes, shuffles ------------------------------------------------------------------------------------------

inline void __syncthreads(device::Where at = {}) { device::sync_block(at); }
inline void __syncwarp(unsigned mask = ~0u, device::Where at = {}) { device::sync_warp(mask, at); }

inline unsigned __ballot_sync(unsigned mask, int predicate, device::Where at = {}) {
  return device::vote("__ballot_sync", at, mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate, device::Where at = {}) {
  return device::vote("__any_sync", at, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate, device::Where at = {}) {
  return device::vote("__all_sync", at, mask, predicate == 0) == 0;
}

namespace device {

template <class T>
T shuffled(const char* what, Where at, unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles values of 2, 4 and 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = shuffle(what, at, mask, bits, source);
  memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}

}  // namespace device

// `width` cuts a warp in segments of that many lanes. A lane whose source would lie outside reads its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, device::Where at = {}) {
  const int first = int(device::lane) & ~(width - 1);
  return device::shuffled("__shfl_sync", at, mask, value, first | (source & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, device::Where at = {}) {
  const unsigned lane = device::lane, position = lane & (width - 1);
  return device::shuffled("__shfl_up_sync", at, mask, value, position >= delta ? lane - delta : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, device::Where at = {}) {
  const unsigned lane = device::lane, position = lane & (width - 1);
  return device::shuffled("__shfl_down_sync", at, mask, value, position + delta < unsigned(width) ? lane + delta : lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, device::Where at = {}) {
  const int lane = int(device::lane), end = (lane & ~(width - 1)) + width, other = lane ^ bits;  // segments before are in reach
  return device::shuffled("__shfl_xor_sync", at, mask, value, other < end ? other : lane);
}

// ---- Memory ---------------------------------------------------------------------------------------------------------------

template <class T>
T __ldg(const T* address) {
  return *address;
}

namespace device {

// Relaxed, as on the GPU: an atomic orders nothing but itself, and ThreadSanitizer holds kernels to that.
template <class T, class Update>
T atomic(T* address, Update update) {
  T old, next;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do next = update(old);
  while (!__atomic_compare_exchange(address, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace device

inline int atomicAdd(int* address, int value) {  // wraps around, as on the GPU
  return device::atomic(address, [=](int old) { return int(unsigned(old) + unsigned(value)); });
}
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return device::atomic(address, [=](unsigned old) { return old + value; });
}
inline float atomicAdd(float* address, float value) {
  return device::atomic(address, [=](float old) { return old + value; });
}
inline int atomicMax(int* address, int value) {
  return device::atomic(address, [=](int old) { return old < value ? value : old; });
}
inline unsigned atomicMax(unsigned* address, unsigned value) {
  return device::atomic(address, [=](unsigned old) { return old < value ? value : old; });
}

// ---- Arithmetic -----------------------------------------------------------------------------------------------------------
// The build forbids contraction to fused multiply-add, so plain operators round like the _rn intrinsics. nvcc may contract
// plain ones: only kernels that use the intrinsics compute the same bits on both.

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }  // CUDA too compares a mixed pair unsigned
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __expf(float a) { return expf(a); }  // the GPU's is less exact
inline float __int2float_rn(int a) { return float(a); }

namespace device {

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace device

inline int __float_as_int(float a) { return device::bit_cast<int>(a); }
inline unsigned __float_as_uint(float a) { return device::bit_cast<unsigned>(a); }
inline float __int_as_float(int a) { return device::bit_cast<float>(a); }
inline float __uint_as_float(unsigned a) { return device::bit_cast<float>(a); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }

namespace device {

inline int saturated(float whole) {  // PTX's conversion saturates, C++'s is undefined
  if (std::isnan(whole)) return 0;
  if (whole >= 2147483648.0f) return INT_MAX;
  if (whole < -2147483648.0f) return INT_MIN;
  return int(whole);
}

}  // namespace device

inline int __float2int_rn(float a) { return device::saturated(rintf(a)); }
inline int __float2int_rd(float a) { return device::saturated(floorf(a)); }

// Dot product of four signed bytes. The GPU's sum wraps around; here UBSan stops at it, as kernels must not let it come to that.
inline int __dp4a(int a, int b, int c) {
  for (int shift = 0; shift < 32; shift += 8) c += int(int8_t(uint32_t(a) >> shift)) * int(int8_t(uint32_t(b) >> shift));
  return c;
}

// Rounds once: the product is exact in float64, and so is the sum, but where the product is too small to change the result.
inline __half __hfma(__half a, __half b, __half c) {
  return __double2half(double(__half2float(a)) * double(__half2float(b)) + double(__half2float(c)));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  const __half low = __hfma(__low2half(a), __low2half(b), __low2half(c));
  return __halves2half2(low, __hfma(__high2half(a), __high2half(b), __high2half(c)));
}

// What the sanitizers must be told of, as they would take a switch of stacks for memory errors: AddressSanitizer the stacks,
// ThreadSanitizer which thread runs and who waits for whom. The runtime itself is compiled without them; kernels with.
#pragma once

#include <cstddef>

#ifdef DEVICE_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef DEVICE_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace sanitizer {

struct Fiber {  // one stack
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;   // AddressSanitizer's
  void* tsan_thread = nullptr;  // ThreadSanitizer's
};

// Before and after a switch. `last`: the fiber that is left never runs again.
inline void leave([[maybe_unused]] Fiber& from, [[maybe_unused]] Fiber& to, [[maybe_unused]] bool last) {
#ifdef DEVICE_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#ifdef DEVICE_TSAN
  __tsan_switch_to_fiber(to.tsan_thread, __tsan_switch_to_fiber_no_sync);
#endif
}
inline void entered([[maybe_unused]] Fiber& now, [[maybe_unused]] Fiber& from) {
#ifdef DEVICE_ASAN
  __sanitizer_finish_switch_fiber(now.fake_stack, &from.bottom, &from.size);  // tells where the main stack lies
  now.fake_stack = nullptr;
#endif
}

inline void create([[maybe_unused]] Fiber& fiber) {
#ifdef DEVICE_TSAN
  fiber.tsan_thread = __tsan_create_fiber(0);
#endif
}
inline void destroy([[maybe_unused]] Fiber& fiber) {
#ifdef DEVICE_TSAN
  __tsan_destroy_fiber(fiber.tsan_thread);
#endif
}
inline void adopt_current([[maybe_unused]] Fiber& fiber) {
#ifdef DEVICE_TSAN
  fiber.tsan_thread = __tsan_get_current_fiber();
#endif
}

// What was done before a release is seen after each acquire of the same address that follows it.
inline void release([[maybe_unused]] void* address) {
#ifdef DEVICE_TSAN
  __tsan_release(address);
#endif
}
inline void acquire([[maybe_unused]] void* address) {
#ifdef DEVICE_TSAN
  __tsan_acquire(address);
#endif
}

}  // namespace sanitizer

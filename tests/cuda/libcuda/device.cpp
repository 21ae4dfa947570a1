// Start, errors, the one device, its primary context, and what tests ask and set.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.hpp"

namespace driver {

namespace {

thread_local std::vector<CUcontext> current;
char context;  // its address is the primary context's handle

struct Error {
  CUresult status;
  const char *name, *text;
};
#define ERROR(name, text) {name, #name, text}
const Error kErrors[] = {
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_DEINITIALIZED, "driver shutting down"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    ERROR(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    ERROR(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"),
    ERROR(CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR(CUDA_ERROR_SYSTEM_NOT_READY, "system not yet initialized"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef ERROR

const Error* find_error(CUresult status) {
  const auto found = std::find_if(std::begin(kErrors), std::end(kErrors), [=](const Error& e) { return e.status == status; });
  return found == std::end(kErrors) ? nullptr : found;
}

std::string unversioned(std::string name) {
  const size_t at = name.rfind("_v");
  if (at != std::string::npos && at + 3 == name.size()) name.resize(at);
  return name;
}

int attribute(CUdevice_attribute which) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return capability() / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return capability() % 10;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 64 << 10;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return 40;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 3;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1590000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 5001000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 256;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 4 << 20;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
    default: return 0;
  }
}

}  // namespace

State& state() {
  static State& state = *new State;  // never destroyed: threads of the program may outlive static objects
  return state;
}

int capability() {
  const char* const set = getenv("AMSA_TEST_COMPUTE_CAPABILITY");
  int major = 7, minor = 5;
  if (set) sscanf(set, "%d.%d", &major, &minor);
  return 10 * major + minor;
}

CUresult begin(const char* function, unsigned needs) {
  State& s = state();
  const std::string name = unversioned(function);
  ++s.calls[name];
  const auto failure = s.failures.find(name);
  if (failure != s.failures.end() && failure->second.after-- <= 0) {
    const CUresult status = failure->second.status;
    s.failures.erase(failure);
    return status;
  }
  if ((needs & kInit) && !s.initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (needs & kContext) {
    if (in_host_function) return report(CUDA_ERROR_NOT_PERMITTED, name + " in a host function of a stream");
    if (current.empty() || !current.back()) return CUDA_ERROR_INVALID_CONTEXT;
    if (!s.retained) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (s.sticky) return s.sticky;
  }
  bool captured = false;
  for (const auto& capture : s.captures)
    if ((needs & kNoneCaptured) == kNoneCaptured || (needs & kUncaptured && forbids(*capture)))
      invalidate(*capture), captured = true;
  return captured ? report(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, name + " while a stream is captured") : CUDA_SUCCESS;
}

CUresult report(CUresult status, const std::string& message) {
  const Error* const error = find_error(status);
  fprintf(stderr, "libcuda: %s: %s\n", error ? error->name : "?", message.c_str());
  return status;
}

void fail(CUresult status, const std::string& message) {
  if (!state().sticky) state().sticky = report(status, message);
}

CUcontext primary() { return reinterpret_cast<CUcontext>(&context); }

std::string library() {
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(&driver::state), &info) ? info.dli_fname : "";
}

}  // namespace driver

using namespace driver;

API CUresult cuInit(unsigned flags) {
  return call(__func__, kNothing, [&](Lock&) {
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    state().initialised = true;
    return CUDA_SUCCESS;
  });
}

API CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

API CUresult cuGetErrorName(CUresult status, const char** name) {
  const Error* const error = find_error(status);
  *name = error ? error->name : nullptr;
  return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuGetErrorString(CUresult status, const char** text) {
  const Error* const error = find_error(status);
  *text = error ? error->text : nullptr;
  return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// The newest version of a function that there is here, as callers are of today.
API CUresult cuGetProcAddress_v2(const char* symbol, void** out, int, cuuint64_t, CUdriverProcAddressQueryResult* found) {
  static void* const self = dlopen(library().c_str(), RTLD_LAZY | RTLD_NOLOAD);
  *out = nullptr;
  for (const char* const version : {"_v3", "_v2", ""})
    if (self && !*out) *out = dlsym(self, (std::string(symbol) + version).c_str());
  if (found) *found = *out ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *out ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

#undef cuGetProcAddress
API CUresult cuGetProcAddress(const char* symbol, void** out, int version, cuuint64_t flags) {
  return cuGetProcAddress_v2(symbol, out, version, flags, nullptr);
}

// Undocumented tables. NVRTC looks for one to cache what it compiles: it does without where this fails, and dies where there is
// no such function.
API CUresult cuGetExportTable(const void** table, const CUuuid*) {
  *table = nullptr;
  return CUDA_ERROR_NOT_FOUND;
}

// ---- The device -----------------------------------------------------------------------------------------------------------

namespace {

template <class Body>
CUresult of_device(const char* function, CUdevice device, Body body) {
  return call(function, kInit, [&](Lock& lock) { return device == 0 ? body(lock) : CUDA_ERROR_INVALID_DEVICE; });
}

CUresult uuid(const char* function, CUuuid* out, CUdevice device) {
  return of_device(function, device, [&](Lock&) {
    memcpy(out->bytes, "amsa-cpu-driver", 16);
    return CUDA_SUCCESS;
  });
}

}  // namespace

API CUresult cuDeviceGetCount(int* count) {
  return call(__func__, kInit, [&](Lock&) {
    *count = 1;
    return CUDA_SUCCESS;
  });
}

API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return of_device(__func__, ordinal, [&](Lock&) {
    *device = 0;
    return CUDA_SUCCESS;
  });
}

API CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
  return of_device(__func__, device, [&](Lock&) {
    if (!name || size < 1) return CUDA_ERROR_INVALID_VALUE;
    snprintf(name, size_t(size), "CPU");
    return CUDA_SUCCESS;
  });
}

API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  return of_device(__func__, device, [&](Lock&) {
    *value = attribute(which);
    return CUDA_SUCCESS;
  });
}

API CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  return of_device(__func__, device, [&](Lock&) {
    *major = capability() / 10;
    *minor = capability() % 10;
    return CUDA_SUCCESS;
  });
}

API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  return of_device(__func__, device, [&](Lock&) {
    *bytes = state().memory;
    return CUDA_SUCCESS;
  });
}

API CUresult cuDeviceGetUuid_v2(CUuuid* out, CUdevice device) { return uuid(__func__, out, device); }
#undef cuDeviceGetUuid
API CUresult cuDeviceGetUuid(CUuuid* out, CUdevice device) { return uuid(__func__, out, device); }

// ---- Contexts -------------------------------------------------------------------------------------------------------------

API CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
  return of_device(__func__, device, [&](Lock&) {
    if (state().retained++ == 0) ++state().generation;
    *out = primary();
    return CUDA_SUCCESS;
  });
}

API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return of_device(__func__, device, [&](Lock&) {
    State& s = state();
    if (!s.retained) return CUDA_ERROR_INVALID_CONTEXT;
    if (--s.retained == 0) {  // what belongs to the context goes with it
      drop_work();
      s.arena.abandon();
      s.functions.clear();
      s.modules.clear();
    }
    return CUDA_SUCCESS;
  });
}

API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  return of_device(__func__, device, [&](Lock&) {
    *flags = 0;
    *active = state().retained > 0;
    return CUDA_SUCCESS;
  });
}

API CUresult cuCtxGetCurrent(CUcontext* out) {
  return call(__func__, kInit, [&](Lock&) {
    *out = current.empty() ? nullptr : current.back();
    return CUDA_SUCCESS;
  });
}

API CUresult cuCtxSetCurrent(CUcontext context) {
  return call(__func__, kInit, [&](Lock&) {
    if (context && (context != primary() || !state().retained)) return CUDA_ERROR_INVALID_CONTEXT;
    if (!current.empty()) current.pop_back();
    if (context) current.push_back(context);
    return CUDA_SUCCESS;
  });
}

API CUresult cuCtxPushCurrent_v2(CUcontext context) {
  return call(__func__, kInit, [&](Lock&) {
    if (context != primary() || !state().retained) return CUDA_ERROR_INVALID_CONTEXT;
    current.push_back(context);
    return CUDA_SUCCESS;
  });
}

API CUresult cuCtxPopCurrent_v2(CUcontext* out) {
  return call(__func__, kInit, [&](Lock&) {
    if (current.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (out) *out = current.back();
    current.pop_back();
    return CUDA_SUCCESS;
  });
}

API CUresult cuCtxGetDevice(CUdevice* device) {
  return call(__func__, kInit | kContext, [&](Lock&) {
    *device = 0;
    return CUDA_SUCCESS;
  });
}

API CUresult cuCtxGetApiVersion(CUcontext context, unsigned* version) {
  return call(__func__, kInit, [&](Lock&) {
    if (context != primary()) return CUDA_ERROR_INVALID_CONTEXT;
    *version = 13000;
    return CUDA_SUCCESS;
  });
}

API CUresult cuCtxGetId(CUcontext context, unsigned long long* out) {
  return call(__func__, kInit, [&](Lock&) {
    if (context != primary() || !state().retained) return CUDA_ERROR_INVALID_CONTEXT;
    *out = state().generation;
    return CUDA_SUCCESS;
  });
}

API CUresult cuCtxSynchronize() {
  return call(__func__, kInit | kContext | kNoneCaptured, [](Lock& lock) { return finish_all(lock); });
}

// ---- For tests ------------------------------------------------------------------------------------------------------------

#define TEST_API extern "C" __attribute__((visibility("default")))

namespace {

template <class Get>
uint64_t locked(Get get) {
  Lock lock(state().mutex);
  return uint64_t(get(state()));
}

}  // namespace

// What the program has made and not destroyed; memory too that went with its context.
TEST_API uint64_t amsa_test_live_allocations() { return locked([](State& s) { return s.arena.count(false); }); }
TEST_API uint64_t amsa_test_live_bytes() { return locked([](State& s) { return s.arena.bytes(false); }); }
TEST_API uint64_t amsa_test_live_host_allocations() { return locked([](State& s) { return s.arena.count(true); }); }
TEST_API uint64_t amsa_test_live_streams() { return locked([](State& s) { return s.streams.size(); }); }
TEST_API uint64_t amsa_test_live_events() { return locked([](State& s) { return s.events.size(); }); }
TEST_API uint64_t amsa_test_live_graphs() { return locked([](State& s) { return s.graphs.size() + s.executables.size(); }); }
TEST_API uint64_t amsa_test_live_modules() { return locked([](State& s) { return s.modules.size(); }); }

// Operations that are queued on any stream and have not run.
TEST_API uint64_t amsa_test_queued() {
  return locked([](State& s) {
    size_t queued = s.legacy->queue.size();
    for (const auto& stream : s.all) queued += stream->queue.size();
    return queued;
  });
}

// How much device memory there is. What is allocated stays.
TEST_API void amsa_test_set_memory(uint64_t bytes) {
  locked([=](State& s) { return s.memory = bytes; });
}

// A function, by its name without a version: after so many further calls, the next one does nothing and returns the status.
TEST_API void amsa_test_fail_next(const char* function, int status, int after) {
  locked([=](State& s) {
    s.failures[unversioned(function)] = {CUresult(status), after};
    return 0;
  });
}

TEST_API uint64_t amsa_test_calls(const char* function) {
  return locked([=](State& s) { return s.calls[unversioned(function)]; });
}

// As after the start, but for contexts and modules, which programs keep: everything else is gone, also what was queued, the
// error that sticks, counts of calls, failures and the memory's limit.
TEST_API void amsa_test_reset() {
  locked([](State& s) {
    drop_work();
    s.arena.abandon();
    s.arena.forget();
    s.streams.clear();
    s.events.clear();
    s.graphs.clear();
    s.executables.clear();
    s.calls.clear();
    s.failures.clear();
    s.sticky = CUDA_SUCCESS;
    s.memory = kMemory;
    return 0;
  });
}

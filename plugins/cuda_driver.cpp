#include "cuda_driver.hpp"

#include <dlfcn.h>

#include <memory>
#include <mutex>

namespace amsa {

namespace {

// Kernels as the library carries them; `embed.cmake` makes the table. PTX ends in a zero.
struct Code {
  const char* op;
  int64_t architecture;  // 75: compute capability 7.5
  int64_t is_ptx;
  const void* data;
};

extern "C" __attribute__((visibility("hidden"))) const Code amsa_kernels[];  // the last one's op is null

constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR

using Handle = void*;  // CUcontext, CUmodule, CUfunction, CUstream

class Driver {
 public:
  int (*cuCtxGetCurrent)(Handle*);
  int (*cuCtxGetDevice)(int*);
  int (*cuCtxGetId)(Handle, unsigned long long*);
  int (*cuDeviceGetAttribute)(int*, int, int);
  int (*cuModuleLoadData)(Handle*, const void*);
  int (*cuModuleUnload)(Handle);
  int (*cuModuleGetFunctionCount)(unsigned*, Handle);
  int (*cuModuleEnumerateFunctions)(Handle*, unsigned, Handle);
  int (*cuFuncGetName)(const char**, Handle);
  int (*cuFuncLoad)(Handle);
  int (*cuLaunchKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**, void**);
  int (*cuGetErrorName)(int, const char**);

  static const Driver& get() {
    static const Driver driver;  // where this throws, the next call tries again
    return driver;
  }

  void check(int status, const std::string& what) const {
    if (status == 0) return;
    const char* name = nullptr;
    cuGetErrorName(status, &name);
    throw std::runtime_error(what + ": " + (name != nullptr ? name : "error " + std::to_string(status)));
  }

 private:
  Driver() {
    Handle library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
      throw std::runtime_error("no NVIDIA driver on this machine (libcuda.so.1); engines can be built, not run");
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr)
        throw std::runtime_error(std::string("the NVIDIA driver has no ") + name + "; install one of CUDA 12.4 or later");
    };
    find(cuCtxGetCurrent, "cuCtxGetCurrent");
    find(cuCtxGetDevice, "cuCtxGetDevice");
    find(cuCtxGetId, "cuCtxGetId");
    find(cuDeviceGetAttribute, "cuDeviceGetAttribute");
    find(cuModuleLoadData, "cuModuleLoadData");
    find(cuModuleUnload, "cuModuleUnload");
    find(cuModuleGetFunctionCount, "cuModuleGetFunctionCount");
    find(cuModuleEnumerateFunctions, "cuModuleEnumerateFunctions");
    find(cuFuncGetName, "cuFuncGetName");
    find(cuFuncLoad, "cuFuncLoad");
    find(cuLaunchKernel, "cuLaunchKernel");
    find(cuGetErrorName, "cuGetErrorName");
  }
};

// The newest kernels that the device runs: machine code of the same major version and no higher minor, else PTX, which the
// driver compiles, of no newer device.
const Code& code_for(const OpSpec& op, int64_t device) {
  const Code* best = nullptr;
  std::string all;
  for (const Code* code = amsa_kernels; code->op != nullptr; ++code) {
    if (op.folder != std::string(code->op)) continue;
    all += (all.empty() ? "" : ", ") + std::string(code->is_ptx ? "compute_" : "sm_") + std::to_string(code->architecture);
    const bool runs = code->architecture <= device && (code->is_ptx || code->architecture / 10 == device / 10);
    const bool better = best == nullptr || (best->is_ptx && !code->is_ptx) ||
                        (best->is_ptx == code->is_ptx && best->architecture < code->architecture);
    if (runs && better) best = code;
  }
  if (best == nullptr)
    throw std::runtime_error("no kernels for compute capability " + std::to_string(device / 10) + "." +
                             std::to_string(device % 10) + "; there are " + all);
  return *best;
}

using Functions = std::map<std::string, Handle>;

// A module's kernels by name. Each is loaded now, not at its first launch as the driver would: that could be while a CUDA graph is
// captured, where loading is forbidden.
Functions functions_in(Handle module) {
  const Driver& driver = Driver::get();
  unsigned count = 0;
  driver.check(driver.cuModuleGetFunctionCount(&count, module), "cuModuleGetFunctionCount");
  std::vector<Handle> handles(count);
  driver.check(driver.cuModuleEnumerateFunctions(handles.data(), count, module), "cuModuleEnumerateFunctions");
  Functions functions;
  for (const Handle function : handles) {
    const char* name = "";
    driver.check(driver.cuFuncGetName(&name, function), "cuFuncGetName");
    driver.check(driver.cuFuncLoad(function), name);
    functions[name] = function;
  }
  return functions;
}

// An op's kernels, loaded into the current context.
Functions load(const OpSpec& op) {
  const Driver& driver = Driver::get();
  int device = 0, major = 0, minor = 0;
  driver.check(driver.cuCtxGetDevice(&device), "cuCtxGetDevice");
  driver.check(driver.cuDeviceGetAttribute(&major, kMajor, device), "cuDeviceGetAttribute");
  driver.check(driver.cuDeviceGetAttribute(&minor, kMinor, device), "cuDeviceGetAttribute");
  Handle module = nullptr;
  driver.check(driver.cuModuleLoadData(&module, code_for(op, 10 * major + minor).data), "kernels");
  try {
    return functions_in(module);
  } catch (...) {
    driver.cuModuleUnload(module);
    throw;
  }
}

// Of the current context. What is loaded stays until the process ends: a context takes its modules with it.
const Functions& functions_of(const OpSpec& op) {
  static std::mutex mutex;
  static std::map<std::pair<const OpSpec*, unsigned long long>, Functions> loaded;
  const Driver& driver = Driver::get();
  Handle context = nullptr;
  driver.check(driver.cuCtxGetCurrent(&context), "cuCtxGetCurrent");
  if (context == nullptr)
    throw std::runtime_error("no current CUDA context; make the device's primary context current first");
  unsigned long long id = 0;  // not its address: that of a context which is gone may be another's
  driver.check(driver.cuCtxGetId(context, &id), "cuCtxGetId");
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = loaded.find({&op, id});
  return found != loaded.end() ? found->second : loaded[{&op, id}] = load(op);
}

}  // namespace

void load_kernels(const OpSpec& op) { functions_of(op); }

void launch_all(const OpSpec& op, const std::vector<Launch>& launches, void* stream) {
  if (launches.empty()) return;
  const Driver& driver = Driver::get();
  const Functions& functions = functions_of(op);
  for (const Launch& x : launches) {
    const auto function = functions.find(x.kernel);
    if (function == functions.end()) throw std::runtime_error("there is no kernel " + x.kernel);
    void* arguments[] = {const_cast<unsigned char*>(x.params.data())};
    driver.check(driver.cuLaunchKernel(function->second, x.grid[0], x.grid[1], x.grid[2], x.block[0], x.block[1], x.block[2],
                                       x.shared, stream, arguments, nullptr),
                 "launch of " + x.kernel);
  }
}

}  // namespace amsa

// Modules and launches. A module is a real cubin, or PTX; of it only the kernels' names and the architecture are read, and what
// runs is the kernel of that name in the sources that this library was linked with.
#include <elf.h>

#include <cstring>
#include <fstream>
#include <regex>

#include "state.hpp"
// After the standard headers, whose words it redefines.
#include "../runtime/device.hpp"
#include "../runtime/scheduler.hpp"

namespace driver {

namespace {

constexpr unsigned kCudaMachine = 190, kEntry = 0x10;  // e_machine; in st_other: a kernel, no device function

template <class T>
const T* at(const void* image, size_t offset) {
  return reinterpret_cast<const T*>(static_cast<const char*>(image) + offset);
}

struct Image {
  bool fits;                 // the device
  std::string architecture;  // that it is for
  std::vector<std::string> kernels;
};

// Machine code runs on devices of the same major version and no lower minor.
Image read_cubin(const Elf64_Ehdr* header) {
  const int wanted = int(header->e_ident[EI_ABIVERSION] >= 8 ? header->e_flags >> 8 & 0xff : header->e_flags & 0xff);
  Image image{wanted / 10 == capability() / 10 && wanted <= capability(), "sm_" + std::to_string(wanted), {}};
  const auto* const sections = at<Elf64_Shdr>(header, header->e_shoff);
  for (unsigned i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* const strings = at<char>(header, sections[sections[i].sh_link].sh_offset);
    const auto* const symbols = at<Elf64_Sym>(header, sections[i].sh_offset);
    for (size_t s = 0; s < sections[i].sh_size / sizeof *symbols; ++s)
      if (ELF64_ST_TYPE(symbols[s].st_info) == STT_FUNC && symbols[s].st_shndx != SHN_UNDEF && symbols[s].st_other & kEntry)
        image.kernels.emplace_back(strings + symbols[s].st_name);
  }
  return image;
}

// PTX is compiled for the device, if it is for no newer one.
Image read_ptx(const std::string& text) {
  std::smatch target;
  if (!std::regex_search(text, target, std::regex("\\.target\\s+sm_(\\d+)"))) return {false, "no target", {}};
  Image image{std::stoi(target[1]) <= capability(), "compute_" + target[1].str(), {}};
  const std::regex entry("\\.entry\\s+(\\w+)");
  for (std::sregex_iterator found(text.begin(), text.end(), entry), end; found != end; ++found)
    image.kernels.push_back((*found)[1]);
  return image;
}

// Bytes of `__shared__` variables; cpu_driver.py writes the table beside the library.
unsigned static_shared(const std::string& kernel) {
  static const std::map<std::string, unsigned> table = [] {
    std::map<std::string, unsigned> sizes;
    const std::string path = library();
    std::ifstream file(path.substr(0, path.rfind('/') + 1) + "static_shared");
    if (!file) report(CUDA_ERROR_SYSTEM_NOT_READY, "no file static_shared beside " + path);
    for (std::string name; file >> name;) file >> sizes[name];
    return sizes;
  }();
  const auto found = table.find(kernel);
  return found == table.end() ? 0 : found->second;
}

CUresult load(const char* function, CUmodule* out, const void* data) {
  return call(function, kInit | kContext | kUncaptured, [&](Lock&) {
    if (!out || !data) return CUDA_ERROR_INVALID_VALUE;
    const auto* const header = static_cast<const Elf64_Ehdr*>(data);
    Image image;
    if (memcmp(data, ELFMAG, SELFMAG) == 0) {
      if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != kCudaMachine)
        return report(CUDA_ERROR_INVALID_IMAGE, "an ELF file that is no cubin");
      image = read_cubin(header);
    } else if (const char first = *static_cast<const char*>(data); first == '/' || first == '.' || first == '\n') {
      image = read_ptx(static_cast<const char*>(data));
    } else {
      return report(CUDA_ERROR_INVALID_IMAGE, "neither a cubin nor PTX");
    }
    if (!image.fits) return report(CUDA_ERROR_NO_BINARY_FOR_GPU, "a module for " + image.architecture);
    auto module = std::make_shared<Module>();
    *out = state().modules.add(module);
    for (const std::string& name : image.kernels) {
      auto kernel = std::make_shared<Function>(Function{name, *out, device::find_kernel(name)});
      module->handles.push_back(state().functions.add(kernel));
      module->functions.push_back(std::move(kernel));
    }
    return CUDA_SUCCESS;
  });
}

template <class Body>
CUresult of_module(const char* function, CUmodule handle, Body body) {
  return call(function, kInit | kContext, [&](Lock&) {
    const auto module = state().modules.find(handle);
    return module ? body(*module) : CUDA_ERROR_INVALID_HANDLE;
  });
}

template <class Body>
CUresult of_function(const char* function, unsigned needs, CUfunction handle, Body body) {
  return call(function, kInit | kContext | needs, [&](Lock&) {
    const auto kernel = state().functions.find(handle);
    return kernel ? body(kernel) : CUDA_ERROR_INVALID_HANDLE;
  });
}

device::Order order() {
  const std::string name = order_name();
  return name == "reversed"   ? device::Order::kReversed
         : name == "shuffled" ? device::Order::kShuffled
                              : device::Order::kForward;
}

void run(const Function& function, const device::Shape& shape, const std::vector<char>& params) {
  static std::mt19937 random(7);
  device::launch(*function.kernel, shape, params.data(), order(), random);
  if (const std::string overrun = state().arena.overrun(); !overrun.empty())
    fail(CUDA_ERROR_ILLEGAL_ADDRESS, function.name + " wrote before or behind " + overrun);
}

}  // namespace

}  // namespace driver

using namespace driver;

API CUresult cuModuleLoadData(CUmodule* out, const void* image) { return load(__func__, out, image); }

API CUresult cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned, CUjit_option*, void**) {
  return load(__func__, out, image);
}

API CUresult cuModuleUnload(CUmodule handle) {
  return call(__func__, kInit | kContext | kUncaptured, [&](Lock&) {
    const auto module = state().modules.find(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    for (const auto& function : module->functions) function->unloaded = true;
    for (const CUfunction function : module->handles) state().functions.remove(function);
    state().modules.remove(handle);
    return CUDA_SUCCESS;
  });
}

API CUresult cuModuleGetFunction(CUfunction* out, CUmodule handle, const char* name) {
  return of_module(__func__, handle, [&](const Module& module) {
    for (size_t i = 0; i < module.functions.size(); ++i)
      if (module.functions[i]->name == name) {
        *out = module.handles[i];
        return CUDA_SUCCESS;
      }
    return CUDA_ERROR_NOT_FOUND;
  });
}

API CUresult cuModuleGetFunctionCount(unsigned* count, CUmodule handle) {
  return of_module(__func__, handle, [&](const Module& module) {
    *count = unsigned(module.handles.size());
    return CUDA_SUCCESS;
  });
}

API CUresult cuModuleEnumerateFunctions(CUfunction* out, unsigned count, CUmodule handle) {
  return of_module(__func__, handle, [&](const Module& module) {
    for (size_t i = 0; i < module.handles.size() && i < count; ++i) out[i] = module.handles[i];
    return CUDA_SUCCESS;
  });
}

API CUresult cuFuncGetName(const char** name, CUfunction handle) {
  return of_function(__func__, kNothing, handle, [&](const std::shared_ptr<Function>& function) {
    *name = function->name.c_str();
    return CUDA_SUCCESS;
  });
}

API CUresult cuFuncGetModule(CUmodule* out, CUfunction handle) {
  return of_function(__func__, kNothing, handle, [&](const std::shared_ptr<Function>& function) {
    *out = function->module;
    return CUDA_SUCCESS;
  });
}

API CUresult cuFuncLoad(CUfunction handle) {
  return of_function(__func__, kUncaptured, handle, [](const std::shared_ptr<Function>& function) {
    function->loaded = true;
    return CUDA_SUCCESS;
  });
}

API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction handle) {
  return of_function(__func__, kNothing, handle, [&](const std::shared_ptr<Function>& function) {
    if (!function->kernel) return CUDA_ERROR_NOT_FOUND;
    *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? int(function->kernel->max_threads)
             : which == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES   ? int(static_shared(function->name))
                                                              : 0;
    return CUDA_SUCCESS;
  });
}

API CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                            unsigned block_y, unsigned block_z, unsigned shared, CUstream stream_handle, void** params,
                            void** extra) {
  return of_function(__func__, kNothing, handle, [&](const std::shared_ptr<Function>& function) {
    const auto stream = find_stream(stream_handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!function->kernel) return report(CUDA_ERROR_NOT_FOUND, "the sources have no kernel " + function->name);
    if (extra) return report(CUDA_ERROR_NOT_SUPPORTED, function->name + ": parameters in `extra`");
    const device::Kernel& kernel = *function->kernel;
    const device::Shape shape{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, static_shared(function->name)};
    if (const std::string why = device::refusal(kernel, shape); !why.empty()) return report(CUDA_ERROR_INVALID_VALUE, why);
    if (!params || !params[0]) return report(CUDA_ERROR_INVALID_VALUE, function->name + ": no parameters");
    // Loading may have to wait for all work, which a captured stream cannot; so the program has to do it before.
    if (stream->capture && !function->loaded) {
      invalidate(*stream->capture);
      return report(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, function->name + " is loaded by a launch that is captured");
    }
    function->loaded = true;
    Operation operation;
    operation.what = function->name;
    operation.function = function;
    const std::vector<char> copy(static_cast<char*>(params[0]), static_cast<char*>(params[0]) + kernel.params_size);
    for (size_t offset = 0; offset + sizeof(uintptr_t) <= copy.size(); offset += sizeof(uintptr_t)) {
      uintptr_t word;
      memcpy(&word, copy.data() + offset, sizeof word);
      if (state().arena.holds(word)) operation.touches.push_back({word, 0, Place::kPointer});
    }
    operation.work = [function, shape, copy] { run(*function, shape, copy); };
    return submit(stream, std::move(operation));
  });
}

#include "tensorrt_process.hpp"

#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>

#include <algorithm>
#include <atomic>
#include <cstdio>

namespace amsa {

namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

std::string file_name(const char* path) {
  const std::string whole = path != nullptr ? path : "";
  return whole.substr(whole.rfind('/') + 1);
}

// libnvinfer.so.11, libnvinfer_lean.so.11, libtensorrt_rtx.so.1, ..
bool is_tensorrt(const std::string& file) { return file.rfind("libnvinfer", 0) == 0 || file.rfind("libtensorrt", 0) == 0; }

std::string library_of(const void* address) {
  Dl_info found{};
  return dladdr(address, &found) != 0 ? file_name(found.dli_fname) : "";
}

// What a function without parameters returns in each TensorRT that has it. They are looked for by their files: a program may
// have loaded them for itself only, where dlsym(RTLD_DEFAULT, ..) does not look.
template <class Result>
std::vector<Result*> from_all(const char* function) {
  std::vector<std::string> paths;
  const auto collect = [](dl_phdr_info* info, size_t, void* into) {
    if (is_tensorrt(file_name(info->dlpi_name))) static_cast<std::vector<std::string>*>(into)->push_back(info->dlpi_name);
    return 0;
  };
  dl_iterate_phdr(collect, &paths);
  std::vector<Result*> results;
  for (const auto& path : paths) {
    void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    const auto call = reinterpret_cast<Result* (*)()>(dlsym(library, function));  // perhaps of a library that it depends on
    Result* result = call != nullptr ? call() : nullptr;
    if (result != nullptr && std::find(results.begin(), results.end(), result) == results.end()) results.push_back(result);
    dlclose(library);  // gives back what RTLD_NOLOAD took; it stays loaded
  }
  return results;
}

nvinfer1::ILogger* logger() {
  nvinfer1::ILoggerFinder* finder = logger_finder;
  if (finder != nullptr)
    if (nvinfer1::ILogger* found = finder->findLogger()) return found;
  const auto all = from_all<nvinfer1::ILogger>("getLogger");
  return all.empty() ? nullptr : all[0];
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

void log_error(const std::string& line) noexcept {
  try {
    if (nvinfer1::ILogger* found = logger()) {
      found->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
      return;
    }
  } catch (...) {  // then on stderr
  }
  std::fprintf(stderr, "%s\n", line.c_str());
}

bool is_in_rtx(const void* address) { return library_of(address).find("tensorrt_rtx") != std::string::npos; }

bool is_called_by_tensorrt() {
  void* callers[64];
  const int count = backtrace(callers, 64);
  return std::any_of(callers, callers + count, [](void* caller) { return is_tensorrt(library_of(caller)); });
}

std::vector<nvinfer1::IPluginRegistry*> loaded_registries() { return from_all<nvinfer1::IPluginRegistry>("getPluginRegistry"); }

}  // namespace amsa

// Calls the plugin library as TensorRT does, for Python. Its file's name decides whom the plugins take it for.

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

std::string logged;

class Log final : public ILogger, public ILoggerFinder {
 public:
  void log(Severity severity, const char* line) noexcept override {
    logged += (severity == Severity::kERROR ? "" : "not an error: ") + std::string(line) + "\n";
  }
  ILogger* findLogger() override { return this; }
} the_log;

IPluginCreatorInterface* const* creators = nullptr;
int32_t count_creators = 0;

template <class Interface>
Interface* as(void* plugin, PluginCapabilityType type) {
  return static_cast<Interface*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}

IPluginV3OneBuild* build(void* plugin) { return as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* runtime(void* plugin) { return as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME); }

Dims dims_of(int rank, const int64_t* sizes) {
  Dims dims{};
  dims.nbDims = rank;
  for (int i = 0; i < rank; ++i) dims.d[i] = sizes[i];
  return dims;
}

}  // namespace

extern "C" {

// How many creators the library has; or -1, and the reason in the log.
int open_library(const char* path, int with_log) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    logged += std::string(dlerror()) + "\n";
    return -1;
  }
  using Find = IPluginCreatorInterface* const*(int32_t&);
  if (with_log) reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&the_log);
  creators = reinterpret_cast<Find*>(dlsym(library, "getCreators"))(count_creators);
  return count_creators;
}

// What was logged since the last call.
const char* take_log() {
  static std::string taken;
  taken = std::move(logged);
  logged.clear();
  return taken.c_str();
}

// A plugin from fields as the ONNX parser makes them: text without a final zero; null, or what the library logs.
void* create(const char* name, int count, const char* const* names, const int32_t* numbers, const char* const* texts) {
  std::vector<PluginField> fields;
  for (int i = 0; i < count; ++i)
    if (texts[i] != nullptr)
      fields.emplace_back(names[i], texts[i], PluginFieldType::kCHAR, int32_t(std::string(texts[i]).size()));
    else
      fields.emplace_back(names[i], &numbers[i], PluginFieldType::kINT32, 1);
  const PluginFieldCollection collection{count, fields.data()};
  for (int i = 0; i < count_creators; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::string(creator->getPluginName()) == name) return creator->createPlugin("node", &collection, TensorRTPhase::kBUILD);
  }
  return nullptr;
}

// Another plugin from what one serializes.
void* create_again(void* plugin) {
  const auto* core = as<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
  for (int i = 0; i < count_creators; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::string(creator->getPluginName()) == core->getPluginName())
      return creator->createPlugin("again", runtime(plugin)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
  }
  return nullptr;
}

void* clone(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }
void* attach(void* plugin) { return runtime(plugin)->attachToContext(nullptr); }
void destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }

using Told = void(const char* name, int type, const void* data, size_t size);

void fields(void* plugin, Told* told) {
  const auto* all = runtime(plugin)->getFieldsToSerialize();
  for (int i = 0; i < all->nbFields; ++i) {
    const PluginField& f = all->fields[i];
    told(f.name, int(f.type), f.data, size_t(f.length) * (f.type == PluginFieldType::kINT32 ? 4 : 1));
  }
}

int supports(void* plugin, int position, const int* types, const int* formats, int channels, int inputs, int outputs) {
  std::vector<DynamicPluginTensorDesc> tensors(size_t(inputs + outputs));
  for (int i = 0; i <= position; ++i) {
    PluginTensorDesc& desc = tensors[size_t(i)].desc;
    desc.type = DataType(types[i]);
    desc.format = TensorFormat(formats[i]);
    const int64_t sizes[] = {1, channels, -1, -1};
    desc.dims = dims_of(4, sizes);
  }
  // A local, so that the call returns here and not to the caller's caller.
  const bool fits = build(plugin)->supportsFormatCombination(position, tensors.data(), inputs, outputs);
  return fits ? 1 : 0;
}

size_t workspace(void* plugin, int inputs, const int* ranks, const int64_t* sizes) {
  std::vector<DynamicPluginTensorDesc> tensors(static_cast<size_t>(inputs));
  for (int i = 0; i < inputs; sizes += ranks[i++]) tensors[size_t(i)].max = dims_of(ranks[i], sizes);
  return build(plugin)->getWorkspaceSize(tensors.data(), inputs, nullptr, 0);
}

int enqueue(void* plugin, int half, int inputs, const int* ranks, const int64_t* sizes, const void* const* in, void* const* out,
            void* scratch, void* stream) {
  std::vector<PluginTensorDesc> tensors(static_cast<size_t>(inputs));
  for (int i = 0; i < inputs; sizes += ranks[i++]) {
    tensors[size_t(i)].dims = dims_of(ranks[i], sizes);
    tensors[size_t(i)].type = half ? DataType::kHALF : DataType::kFLOAT;
  }
  return runtime(plugin)->enqueue(tensors.data(), nullptr, in, out, scratch, static_cast<cudaStream_t>(stream));
}
}

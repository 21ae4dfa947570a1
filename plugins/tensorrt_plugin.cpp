#include "tensorrt_plugin.hpp"

#include "cuda_driver.hpp"
#include "tensorrt_process.hpp"

namespace amsa {

namespace {

using nvinfer1::DataType, nvinfer1::TensorFormat;

// Runs a callback's work: nothing is thrown into TensorRT. What goes wrong is logged in one line that names the op.
template <class Result, class Work>
Result telling(const OpSpec& op, Result failed, const Work& work) noexcept {
  try {
    try {
      return work();
    } catch (const std::exception& e) {
      const std::string what = e.what();
      log_error(what.find(op.name) != std::string::npos ? what : std::string(op.name) + ": " + what);
    }
  } catch (...) {
    log_error("amsa: not enough memory");
  }
  return failed;
}

Value value_of(const OpSpec& op, const AttributeSpec& attribute, const nvinfer1::PluginField& field) {
  const auto wanted = attribute.is_text ? nvinfer1::PluginFieldType::kCHAR : nvinfer1::PluginFieldType::kINT32;
  const bool is_empty = field.data == nullptr || field.length < 1;
  if (field.type != wanted || (is_empty && !attribute.is_text))
    fail(op, std::string("attribute ") + attribute.name + " must be " +
                 (attribute.is_text ? "a text" : "a whole number of 32 bits"));
  if (!attribute.is_text) return int64_t(*static_cast<const int32_t*>(field.data));
  std::string value(is_empty ? "" : static_cast<const char*>(field.data), is_empty ? 0 : size_t(field.length));
  value.resize(value.find_last_not_of('\0') + 1);  // some count the final zero, some do not
  return value;
}

// The op's attributes from fields: as the ONNX parser makes them, or as `getFieldsToSerialize` did.
Attributes parsed(const OpSpec& op, const nvinfer1::PluginFieldCollection* fields) {
  Attributes attributes;
  for (int i = 0; fields != nullptr && i < fields->nbFields; ++i)
    for (const auto& attribute : op.attributes)
      if (std::string(attribute.name) == fields->fields[i].name)
        attributes[attribute.name] = value_of(op, attribute, fields->fields[i]);
  return checked(op, std::move(attributes));
}

Shape<int64_t> shape_of(const nvinfer1::Dims& dims) { return {dims.d, dims.d + std::max(dims.nbDims, 0)}; }

uint64_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(const Op& op, Attributes attributes) : op_(op), attributes_(std::move(attributes)) {
    numbers_.reserve(op.spec.attributes.size());  // fields point into it
    for (const auto& a : op.spec.attributes) {
      if (a.is_text) {
        const std::string& value = text(attributes_, a.name);
        fields_.emplace_back(a.name, value.data(), nvinfer1::PluginFieldType::kCHAR, int32_t(value.size()));
      } else {
        numbers_.push_back(int32_t(number(attributes_, a.name)));
        fields_.emplace_back(a.name, &numbers_.back(), nvinfer1::PluginFieldType::kINT32, 1);
      }
    }
    collection_ = {int32_t(fields_.size()), fields_.data()};
  }

  Plugin(const Plugin&) = delete;  // fields point into it: `clone` makes another

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    return telling<Plugin*>(op_.spec, nullptr, [&] { return new Plugin(op_, attributes_); });
  }

  const char* getPluginName() const noexcept override { return op_.spec.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kDomain; }
  int32_t getNbOutputs() const noexcept override { return int32_t(op_.spec.outputs.size()); }

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t, const nvinfer1::DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    return 0;
  }

  int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs, int32_t) const noexcept override {
    for (const auto& tensor : op_.spec.outputs) *outputs++ = tensor.type == Type::kFeatures ? inputs[0] : fixed_type(tensor);
    return 0;
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t count, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder& builder) noexcept override {
    return telling<int32_t>(op_.spec, 1, [&] {
      check_count(count);
      std::vector<Shape<Dim>> shapes;
      for (int i = 0; i < count; ++i) {
        shapes.emplace_back();
        for (int d = 0; d < inputs[i].nbDims; ++d) shapes.back().emplace_back(builder, *inputs[i].d[d]);
      }
      for (const auto& shape : op_.shapes(shapes, attributes_)) {
        outputs->nbDims = int32_t(shape.size());
        for (size_t d = 0; d < shape.size(); ++d) outputs->d[d] = shape[d].expr(builder);
        ++outputs;
      }
      return 0;
    });
  }

  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs,
                                 int32_t) noexcept override {
    // Who asks decides on the format, and a process may hold both TensorRTs.
    const bool rtx = is_in_rtx(__builtin_return_address(0));
    if (size_t(inputs) != op_.spec.inputs.size()) return false;
    const auto index = size_t(position);
    const TensorSpec& declared = index < size_t(inputs) ? op_.spec.inputs[index] : op_.spec.outputs[index - size_t(inputs)];
    const nvinfer1::PluginTensorDesc& desc = tensors[position].desc;
    if (declared.type != Type::kFeatures) return desc.type == fixed_type(declared) && desc.format == TensorFormat::kLINEAR;
    // The first feature tensor may be either type; the others are what it is.
    const bool type_fits = position == 0 ? desc.type == DataType::kHALF || desc.type == DataType::kFLOAT
                                         : desc.type == tensors[0].desc.type;
    if (rtx || desc.type == DataType::kFLOAT) return type_fits && desc.format == TensorFormat::kHWC;
    // Classic TensorRT knows plain HWC for 32 bits only. HWC8 is the same as long as there is nothing to pad.
    return type_fits && desc.format == TensorFormat::kHWC8 && desc.dims.nbDims > 1 && desc.dims.d[1] % 8 == 0;
  }

  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept override {
    return telling<size_t>(op_.spec, 0, [&] {
      check_count(count);
      Shapes shapes;
      for (int i = 0; i < count; ++i) shapes.push_back(shape_of(inputs[i].max));
      return size_t(op_.scratch(shapes, attributes_));
    });
  }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t, const nvinfer1::PluginTensorDesc*,
                        int32_t) noexcept override {
    return 0;
  }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return telling<nvinfer1::IPluginV3*>(op_.spec, nullptr, [&] {
      load_kernels(op_.spec);  // now: enqueue may run while a CUDA graph is captured
      return clone();
    });
  }

  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* described, const nvinfer1::PluginTensorDesc*, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return telling<int32_t>(op_.spec, 1, [&] {
      Shapes shapes;
      Addresses addresses;
      for (size_t i = 0; i < op_.spec.inputs.size(); ++i) {
        shapes.push_back(shape_of(described[i].dims));
        addresses.push_back(address(inputs[i]));
      }
      for (size_t i = 0; i < op_.spec.outputs.size(); ++i) addresses.push_back(address(outputs[i]));
      addresses.push_back(address(workspace));
      launch_all(op_.spec, op_.plan(shapes, addresses, described[0].type == DataType::kHALF, attributes_), stream);
      return 0;
    });
  }

 private:
  static DataType fixed_type(const TensorSpec& tensor) {
    return tensor.type == Type::kInt32 ? DataType::kINT32 : DataType::kFLOAT;
  }

  void check_count(int32_t count) const {
    const size_t wanted = op_.spec.inputs.size();
    if (size_t(count) != wanted)
      fail(op_.spec, "it has " + std::to_string(count) + " inputs; it must have " + std::to_string(wanted));
  }

  const Op& op_;
  const Attributes attributes_;
  std::vector<int32_t> numbers_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace

Creator::Creator(const Op& op) : op_(op) {
  // Only the op's own: the parser warns of every other attribute.
  for (const auto& a : op.spec.attributes)
    fields_.emplace_back(a.name, nullptr, a.is_text ? nvinfer1::PluginFieldType::kCHAR : nvinfer1::PluginFieldType::kINT32, 0);
  collection_ = {int32_t(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
  return telling<Plugin*>(op_.spec, nullptr, [&] { return new Plugin(op_, parsed(op_.spec, fields)); });
}

}  // namespace amsa

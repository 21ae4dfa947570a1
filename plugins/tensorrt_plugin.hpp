// The ops as TensorRT plugins (IPluginV3), for TensorRT and TensorRT-RTX alike: `tensorrt.py` in C++, with the same answers.
#pragma once

#include <NvInferRuntime.h>

#include "launch.hpp"
#include "tensorrt_dims.hpp"

namespace amsa {

// An op: its declaration, and how it runs.
struct Op {
  const OpSpec& spec;
  std::vector<Shape<Dim>> (*shapes)(const std::vector<Shape<Dim>>& inputs, const Attributes& attributes);
  // addresses: of inputs, outputs and scratch memory; half: features are float16
  std::vector<Launch> (*plan)(const Shapes& inputs, const Addresses& addresses, bool half, const Attributes& attributes);
  int64_t (*scratch)(const Shapes& inputs, const Attributes& attributes);
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Op& op);

  const char* getPluginName() const noexcept override { return op_.spec.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kDomain; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

 private:
  const Op& op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace amsa

// libamsa_plugins.so: what TensorRT looks for in it.

#include "deformable_sample/plan.hpp"
#include "patch_match/plan.hpp"
#include "tensorrt_plugin.hpp"
#include "tensorrt_process.hpp"

namespace {

using namespace amsa;

constexpr int kCreators = 2;

nvinfer1::IPluginCreatorInterface* const* creators() {
  static const Op patch_match{kPatchMatch, patch_match_shapes<Dim>, patch_match_plan, patch_match_scratch};
  static const Op deformable_sample{kDeformableSample, deformable_sample_shapes<Dim>, deformable_sample_plan,
                                    [](const Shapes&, const Attributes&) -> int64_t { return 0; }};
  static Creator matching(patch_match), sampling(deformable_sample);
  static nvinfer1::IPluginCreatorInterface* const all[kCreators] = {&matching, &sampling};
  return all;
}

// Not getCreator, which logs an error where there is none.
bool has_creator(const nvinfer1::IPluginRegistry& registry, const char* name) {
  int32_t count = 0;
  const auto* all = registry.getAllCreators(&count);
  return std::any_of(all, all + (all != nullptr ? count : 0), [&](nvinfer1::IPluginCreatorInterface* creator) {
    if (std::string(creator->getInterfaceInfo().kind) != "PLUGIN CREATOR_V3ONE") return false;
    const auto* known = static_cast<nvinfer1::IPluginCreatorV3One*>(creator);
    return std::string(known->getPluginName()) == name && std::string(known->getPluginNamespace()) == kDomain;
  });
}

// Registers the creators in the TensorRTs that are loaded: trtexec --staticPlugins, Triton and Polygraphy only open the library.
// Where TensorRT itself opens it, it asks for the creators, and gives up if it has them already.
class Registration {
 public:
  Registration() {
    if (is_called_by_tensorrt()) return;
    for (auto* registry : loaded_registries())
      for (int i = 0; i < kCreators; ++i) {
        auto* creator = static_cast<Creator*>(creators()[i]);
        if (!has_creator(*registry, creator->getPluginName()) && registry->registerCreator(*creator, kDomain))
          made_.emplace_back(registry, creator);
      }
  }

  ~Registration() {  // the library is closed, or the process ends: registries are older, so they are still there
    for (const auto& [registry, creator] : made_) registry->deregisterCreator(*creator);
  }

 private:
  std::vector<std::pair<nvinfer1::IPluginRegistry*, Creator*>> made_;
} registration;

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { set_logger_finder(finder); }

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = kCreators;
  return creators();
}
}

// The ops for ONNX Runtime: a custom-op library, which `SessionOptions.register_custom_ops_library` loads.
//
// No package ships ONNX Runtime's headers, so what is needed of its C interface is declared here. That interface is stable:
// functions are slots of a table whose order never changes, and newer versions only append. Version 16 (ONNX Runtime 1.16) is
// the first in which kernels report errors as a status.

#include <climits>

#include "cpu_common.hpp"
#include "deformable_sample/conv.hpp"
#include "patch_match/cpu.hpp"

namespace {

struct OrtStatus;
struct OrtValue;
struct OrtShape;   // OrtTensorTypeAndShapeInfo
struct OrtDomain;  // OrtCustomOpDomain
struct OrtSessionOptions;
struct OrtKernelInfo;
struct OrtKernelContext;

constexpr uint32_t kVersion = 16;
constexpr int kInvalidArgument = 2;  // OrtErrorCode
constexpr int kFloat = 1, kInt32 = 6, kFloat16 = 10;  // ONNXTensorElementDataType

using OrtApi = void*;  // an array of functions

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// A function of the table with its slot.
template <int kSlot, class Result, class... Arguments>
struct Slot {
  static Result call(const OrtApi* api, Arguments... arguments) {
    return reinterpret_cast<Result (*)(Arguments...)>(api[kSlot])(arguments...);
  }
};

using CreateStatus = Slot<0, OrtStatus*, int, const char*>;
using GetErrorMessage = Slot<2, const char*, const OrtStatus*>;
using CreateCustomOpDomain = Slot<26, OrtStatus*, const char*, OrtDomain**>;
using CustomOpDomainAdd = Slot<27, OrtStatus*, OrtDomain*, const void*>;
using AddCustomOpDomain = Slot<28, OrtStatus*, OrtSessionOptions*, OrtDomain*>;
using GetTensorMutableData = Slot<51, OrtStatus*, OrtValue*, void**>;
using GetDimensionsCount = Slot<61, OrtStatus*, const OrtShape*, size_t*>;
using GetDimensions = Slot<62, OrtStatus*, const OrtShape*, int64_t*, size_t>;
using GetTensorTypeAndShape = Slot<65, OrtStatus*, const OrtValue*, OrtShape**>;
using GetAttributeFloat = Slot<85, OrtStatus*, const OrtKernelInfo*, const char*, float*>;
using GetAttributeInt = Slot<86, OrtStatus*, const OrtKernelInfo*, const char*, int64_t*>;
using GetAttributeString = Slot<87, OrtStatus*, const OrtKernelInfo*, const char*, char*, size_t*>;
using GetInput = Slot<90, OrtStatus*, const OrtKernelContext*, size_t, const OrtValue**>;
using GetOutput = Slot<91, OrtStatus*, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**>;
using ReleaseStatus = Slot<93, void, OrtStatus*>;
using ReleaseShape = Slot<99, void, OrtShape*>;
using ReleaseDomain = Slot<101, void, OrtDomain*>;

// OrtCustomOp of version 16, and for safety the slots that later versions append.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const CustomOp*, size_t);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const CustomOp*, void*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
  void* reserved[8];
  bool half;  // ours: what the op takes
};

void check(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return;
  std::string message = GetErrorMessage::call(api, status);
  ReleaseStatus::call(api, status);
  throw amsa::Error(message);
}

// Runs work; null, or a status with the reason.
template <class Work>
OrtStatus* as_status(const OrtApi* api, const Work& work) noexcept {
  const char* message = amsa::guarded(work);
  return message == nullptr ? nullptr : CreateStatus::call(api, kInvalidArgument, message);
}

int64_t integer(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  check(api, GetAttributeInt::call(api, info, name, &value));
  return value;
}

std::string text(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  size_t size = 0;
  check(api, GetAttributeString::call(api, info, name, nullptr, &size));
  std::string value(size, '\0');
  check(api, GetAttributeString::call(api, info, name, &value[0], &size));
  value.resize(size > 0 ? size - 1 : 0);  // without the final zero
  return value;
}

// An attribute with a default: a graph may leave it out.
std::string text_or(const OrtApi* api, const OrtKernelInfo* info, const char* name, const char* otherwise) {
  size_t size = 0;
  OrtStatus* status = GetAttributeString::call(api, info, name, nullptr, &size);
  if (status == nullptr) return text(api, info, name);
  ReleaseStatus::call(api, status);
  return otherwise;
}

// The layout of `value`, which graphs say that are made for the CPU (engine/cpu_graphs.py); elsewhere it is NCHW.
bool value_is_channels_last(const OrtApi* api, const OrtKernelInfo* info) {
  int64_t value = 0;
  OrtStatus* status = GetAttributeInt::call(api, info, "value_channels_last", &value);
  if (status != nullptr) ReleaseStatus::call(api, status);
  return value != 0;
}

// Address of an input, and its shape into `shape`.
template <class T, size_t kRank>
const T* input(const OrtApi* api, const OrtKernelContext* context, size_t index, const char* name, int64_t (&shape)[kRank]) {
  const OrtValue* value = nullptr;
  check(api, GetInput::call(api, context, index, &value));
  OrtShape* info = nullptr;
  check(api, GetTensorTypeAndShape::call(api, value, &info));
  const struct Release {
    const OrtApi* api;
    OrtShape* info;
    ~Release() { ReleaseShape::call(api, info); }
  } release{api, info};
  size_t rank = 0;
  check(api, GetDimensionsCount::call(api, info, &rank));
  if (rank != kRank)
    throw amsa::Error(std::string(name) + " has " + std::to_string(rank) + " dimensions; it must have " + std::to_string(kRank));
  check(api, GetDimensions::call(api, info, shape, kRank));
  void* data = nullptr;  // the table has no function for data that is only read
  check(api, GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data));
  return static_cast<const T*>(data);
}

template <class T>
T* output(const OrtApi* api, OrtKernelContext* context, size_t index, const int64_t (&shape)[4]) {
  OrtValue* value = nullptr;
  check(api, GetOutput::call(api, context, index, shape, 4, &value));
  void* data = nullptr;
  check(api, GetTensorMutableData::call(api, value, &data));
  return static_cast<T*>(data);
}

struct PatchMatch {
  static constexpr const char* kName = "PatchMatch";
  static constexpr int kInputs = 4, kOutputs = 2;
  static int input_type(size_t index, int features) { return index < 2 ? features : kInt32; }
  static int output_type(size_t index, int) { return index == 0 ? kInt32 : kFloat; }

  const OrtApi* api;
  std::string schedule, arithmetic;
  AmsaPatchMatch attributes{};

  PatchMatch(const OrtApi* api, const OrtKernelInfo* info, bool half) : api(api) {
    schedule = text(api, info, "schedule");
    arithmetic = text_or(api, info, "arithmetic", "float");
    attributes.iterations = integer(api, info, "iterations");
    attributes.level = integer(api, info, "level");
    attributes.pad = integer(api, info, "pad");
    attributes.init_scale = integer(api, info, "init_scale");
    attributes.half = half;
    attributes.threads = amsa::default_threads();
    attributes.schedule = schedule.c_str();
    attributes.arithmetic = arithmetic.c_str();
    amsa::check_attributes(attributes);
  }

  void compute(OrtKernelContext* context) const {
    AmsaPatchMatch call = attributes;
    call.query = input<void>(api, context, 0, "PatchMatch: query", call.query_shape);
    call.ref = input<void>(api, context, 1, "PatchMatch: ref", call.ref_shape);
    call.valid = input<int32_t>(api, context, 2, "PatchMatch: valid", call.valid_shape);
    call.init = input<int32_t>(api, context, 3, "PatchMatch: init", call.init_shape);
    amsa::check_shapes(call);  // before the outputs' sizes are computed from them
    const int64_t height = call.query_shape[2] - 2 + 2 * call.pad, width = call.query_shape[3] - 2 + 2 * call.pad;
    call.match = output<int32_t>(api, context, 0, {call.ref_shape[0], 2, height, width});
    call.relevance = output<float>(api, context, 1, {call.ref_shape[0], 1, height, width});
    if (const char* message = amsa_patch_match(&call)) throw amsa::Error(std::string(message));
  }
};

// What DeformableSample and DeformableConv take alike.
AmsaDeformableSample sample_attributes(const OrtApi* api, const OrtKernelInfo* info, bool half) {
  AmsaDeformableSample attributes{};
  attributes.scale = integer(api, info, "scale");
  attributes.groups = integer(api, info, "groups");
  attributes.value_channels_last = value_is_channels_last(api, info);
  attributes.half = half;
  attributes.threads = amsa::default_threads();
  amsa::check_attributes(attributes);
  return attributes;
}

void sample_inputs(const OrtApi* api, OrtKernelContext* context, AmsaDeformableSample& call) {
  call.value = input<void>(api, context, 0, "DeformableSample: value", call.value_shape);
  if (call.value_channels_last) {
    const int64_t rows = call.value_shape[1], cols = call.value_shape[2], channels = call.value_shape[3];
    call.value_shape[1] = channels;
    call.value_shape[2] = rows;
    call.value_shape[3] = cols;
  }
  call.match = input<int32_t>(api, context, 1, "DeformableSample: match", call.match_shape);
  call.offset_mask = input<void>(api, context, 2, "DeformableSample: offset_mask", call.offset_mask_shape);
  amsa::check_shapes(call);
}

struct DeformableSample {
  static constexpr const char* kName = "DeformableSample";
  static constexpr int kInputs = 3, kOutputs = 1;
  static int input_type(size_t index, int features) { return index == 1 ? kInt32 : features; }
  static int output_type(size_t, int features) { return features; }

  const OrtApi* api;
  AmsaDeformableSample attributes;

  DeformableSample(const OrtApi* api, const OrtKernelInfo* info, bool half)
      : api(api), attributes(sample_attributes(api, info, half)) {}

  void compute(OrtKernelContext* context) const {
    AmsaDeformableSample call = attributes;
    sample_inputs(api, context, call);
    call.samples = output<void>(
        api, context, 0,
        {call.match_shape[0], 9 * call.value_shape[1], call.offset_mask_shape[2], call.offset_mask_shape[3]});
    if (const char* message = amsa_deformable_sample(&call)) throw amsa::Error(std::string(message));
  }
};

// Inputs after DeformableSample's: weight [filters, 9*C, 1, 1] and bias [filters].
struct DeformableConv {
  static constexpr const char* kName = "DeformableConv";
  static constexpr int kInputs = 5, kOutputs = 1;
  static int input_type(size_t index, int features) { return index == 1 ? kInt32 : features; }
  static int output_type(size_t, int features) { return features; }

  const OrtApi* api;
  AmsaDeformableConv attributes{};

  DeformableConv(const OrtApi* api, const OrtKernelInfo* info, bool half) : api(api) {
    attributes.sample = sample_attributes(api, info, half);
    check(api, GetAttributeFloat::call(api, info, "negative_slope", &attributes.negative_slope));
  }

  void compute(OrtKernelContext* context) const {
    AmsaDeformableConv call = attributes;
    sample_inputs(api, context, call.sample);
    int64_t weight_shape[4], bias_shape[1];
    call.weight = input<void>(api, context, 3, "DeformableConv: weight", weight_shape);
    call.bias = input<void>(api, context, 4, "DeformableConv: bias", bias_shape);
    call.filters = weight_shape[0];
    if (weight_shape[1] != 9 * call.sample.value_shape[1] || weight_shape[2] * weight_shape[3] != 1 ||
        bias_shape[0] != call.filters)
      throw amsa::Error("DeformableConv: weight and bias do not fit the value's channels");
    call.out = output<void>(api, context, 0,
                            {call.sample.match_shape[0], call.filters, call.sample.offset_mask_shape[2],
                             call.sample.offset_mask_shape[3]});
    if (const char* message = amsa_deformable_conv(&call)) throw amsa::Error(std::string(message));
  }
};

template <class Kernel>
CustomOp custom_op(bool half) {
  CustomOp op{};
  op.version = kVersion;
  op.half = half;
  op.GetName = [](const CustomOp*) { return Kernel::kName; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputType = [](const CustomOp* self, size_t index) { return Kernel::input_type(index, self->half ? kFloat16 : kFloat); };
  op.GetOutputType = [](const CustomOp* self, size_t index) { return Kernel::output_type(index, self->half ? kFloat16 : kFloat); };
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return Kernel::kInputs; };
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return Kernel::kOutputs; };
  // All inputs and outputs are required and in ordinary memory; none is variadic.
  op.GetInputCharacteristic = op.GetOutputCharacteristic = op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  op.CreateKernelV2 = [](const CustomOp* self, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return as_status(api, [&] { *kernel = new Kernel(api, info, self->half); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto* self = static_cast<const Kernel*>(kernel);
    return as_status(self->api, [&] { self->compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.InferOutputShapeFn = [](const CustomOp*, void*) -> OrtStatus* { return nullptr; };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return INT_MAX; };
  op.GetMayInplace = op.GetAliasMap = [](int**, int**) -> size_t { return 0; };
  op.ReleaseMayInplace = op.ReleaseAliasMap = [](int*, int*) {};
  return op;
}

}  // namespace

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kVersion);
  if (api == nullptr) {  // older than the version; the first version's table still reports it
    api = base->GetApi(1);
    return CreateStatus::call(api, kInvalidArgument, "amsa's kernels need ONNX Runtime 1.16 or later");
  }
  return as_status(api, [&] {
    // Sessions refer to the domain and its ops for as long as the process lives.
    static const CustomOp ops[] = {custom_op<PatchMatch>(false), custom_op<PatchMatch>(true),
                                   custom_op<DeformableSample>(false), custom_op<DeformableSample>(true),
                                   custom_op<DeformableConv>(false), custom_op<DeformableConv>(true)};
    static OrtDomain* const domain = [&] {
      OrtDomain* made = nullptr;
      check(api, CreateCustomOpDomain::call(api, "amsa", &made));
      try {
        for (const CustomOp& op : ops) check(api, CustomOpDomainAdd::call(api, made, &op));
      } catch (...) {
        ReleaseDomain::call(api, made);
        throw;
      }
      return made;
    }();
    check(api, AddCustomOpDomain::call(api, options, domain));
  });
}

// The C++ plans and declarations as a shared library, so that Python can compare them with its own.

#include "deformable_sample/plan.hpp"
#include "patch_match/plan.hpp"

namespace {

using amsa::Attributes, amsa::OpSpec, amsa::Shapes;

const OpSpec& op_named(const std::string& name) { return name == "PatchMatch" ? amsa::kPatchMatch : amsa::kDeformableSample; }

// Attributes as Python passes them: names, and for each a number or else text.
Attributes attributes_of(int count, const char* const* names, const int64_t* numbers, const char* const* texts) {
  Attributes attributes;
  for (int i = 0; i < count; ++i)
    attributes[names[i]] = texts[i] != nullptr ? amsa::Value(texts[i]) : amsa::Value(numbers[i]);
  return attributes;
}

Shapes shapes_of(const OpSpec& op, const int* ranks, const int64_t* sizes) {
  Shapes shapes;
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    shapes.emplace_back(sizes, sizes + ranks[i]);
    sizes += ranks[i];
  }
  return shapes;
}

}  // namespace

extern "C" {

using Told = void(const char* kernel, const unsigned* grid, const unsigned* block, unsigned shared, const void* params,
                  size_t size);

// Tells every launch of a call, then under "shape" every output's shape and under "scratch" the bytes of scratch memory.
// Null, or what is wrong.
const char* plan(const char* name, const int* ranks, const int64_t* sizes, const uint64_t* addresses, int count_addresses,
                 int half, int count, const char* const* names, const int64_t* numbers, const char* const* texts, Told* told) {
  static std::string message;
  try {
    const OpSpec& op = op_named(name);
    const bool matching = &op == &amsa::kPatchMatch;
    const Attributes given = attributes_of(count, names, numbers, texts);
    const Shapes shapes = shapes_of(op, ranks, sizes);
    const amsa::Addresses at(addresses, addresses + count_addresses);
    const unsigned none[3] = {};
    const auto launches = (matching ? amsa::patch_match_plan : amsa::deformable_sample_plan)(shapes, at, half != 0, given);
    for (const auto& x : launches) told(x.kernel.c_str(), x.grid.data(), x.block.data(), x.shared, x.params.data(), x.size);
    const Attributes attributes = amsa::checked(op, given);
    for (const auto& shape : matching ? amsa::patch_match_shapes(shapes, attributes)
                                      : amsa::deformable_sample_shapes(shapes, attributes))
      told("shape", none, none, 0, shape.data(), shape.size() * sizeof(int64_t));
    const int64_t scratch = matching ? amsa::patch_match_scratch(shapes, attributes) : 0;
    told("scratch", none, none, 0, &scratch, sizeof scratch);
    return nullptr;
  } catch (const std::exception& e) {
    message = e.what();
    return message.c_str();
  }
}

// The declaration of an op, a line for each tensor and attribute.
const char* declaration(const char* name) {
  static std::string lines;
  const OpSpec& op = op_named(name);
  const char* const types[] = {"T", "float32", "int32"};
  lines = std::string(op.name) + " " + op.folder + " " + amsa::kDomain + " " + amsa::kVersion + "\n";
  for (const auto& t : op.inputs) lines += std::string("input ") + t.name + " " + types[int(t.type)] + "\n";
  for (const auto& t : op.outputs) lines += std::string("output ") + t.name + " " + types[int(t.type)] + "\n";
  for (const auto& a : op.attributes) {
    lines += std::string("attribute ") + a.name + (a.is_text ? " str" : " int");
    for (const auto& choice : a.choices) lines += " " + amsa::shown(choice);
    for (const auto& value : a.otherwise) lines += " default " + amsa::shown(value);
    lines += "\n";
  }
  return lines.c_str();
}
}

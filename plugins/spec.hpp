// How a custom op is declared: `spec.py` in C++, with the same errors. Nothing but the standard library.
//
// Sizes are a template parameter: whole numbers, or TensorRT's expressions while a network is built. Of those, what is not known
// yet compares as fitting.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace amsa {

constexpr const char* kDomain = "amsa";
constexpr const char* kVersion = "1";

enum class Type { kFeatures, kFloat32, kInt32 };  // features: float32 or float16, the same for all of them

struct TensorSpec {
  const char* name;
  Type type;
};

using Value = std::variant<int64_t, std::string>;

struct AttributeSpec {
  const char* name;
  bool is_text;
  std::vector<Value> choices;  // none: any number from 1 on
  std::vector<Value> otherwise;  // the default, where there is one
};

struct OpSpec {
  const char* name;
  const char* folder;  // where its kernels are
  std::vector<TensorSpec> inputs, outputs;
  std::vector<AttributeSpec> attributes;
};

using Attributes = std::map<std::string, Value>;

inline int64_t number(const Attributes& attributes, const char* name) { return std::get<int64_t>(attributes.at(name)); }
inline const std::string& text(const Attributes& attributes, const char* name) {
  return std::get<std::string>(attributes.at(name));
}

inline std::string text(int64_t value) { return std::to_string(value); }

// A value as Python shows it: text in quotes, what cannot be printed escaped, so that a message stays one line.
inline std::string shown(const Value& value) {
  if (const auto* whole = std::get_if<int64_t>(&value)) return std::to_string(*whole);
  const auto& raw = std::get<std::string>(value);
  const auto has = [&](char c) { return raw.find(c) != std::string::npos; };
  const char quote = has('\'') && !has('"') ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : raw) {
    const char* const names = "\tt\nn\rr\\\\";
    const char* named = names;
    while (*named != '\0' && *named != c) named += 2;
    if (*named != '\0' || c == quote) {
      out += {'\\', c == quote ? quote : named[1]};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      const char* const digits = "0123456789abcdef";
      out += {'\\', 'x', digits[c >> 4], digits[c & 15]};
    } else {
      out += c;
    }
  }
  return out + quote;
}

[[noreturn]] inline void fail(const OpSpec& op, const std::string& what) {
  throw std::invalid_argument(std::string(op.name) + ": " + what);
}

// The attributes, defaults filled in; std::invalid_argument for one that is missing or has a value that it must not have.
inline Attributes checked(const OpSpec& op, Attributes attributes) {
  for (const auto& a : op.attributes) {
    if (attributes.count(a.name) != 0) continue;
    if (a.otherwise.empty()) fail(op, std::string("attribute ") + a.name + " is missing");
    attributes[a.name] = a.otherwise[0];
  }
  for (const auto& a : op.attributes) {
    const Value& value = attributes[a.name];
    if (a.choices.empty()) {
      if (std::get<int64_t>(value) < 1) fail(op, std::string(a.name) + " is " + shown(value) + "; it must be at least 1");
    } else if (std::find(a.choices.begin(), a.choices.end(), value) == a.choices.end()) {
      std::string choices;
      for (const auto& choice : a.choices) choices += (choices.empty() ? "" : ", ") + shown(choice);
      fail(op, std::string(a.name) + " is " + shown(value) + "; it must be one of " + choices);
    }
  }
  return attributes;
}

template <class Size>
using Shape = std::vector<Size>;

inline std::string counted(const std::string& count, const char* what) { return count + " " + what + (count == "1" ? "" : "s"); }

template <class Size>
void check_rank(const OpSpec& op, const char* name, const Shape<Size>& shape, size_t rank) {
  if (shape.size() != rank)
    fail(op, name + (" has " + counted(std::to_string(shape.size()), "dimension")) + "; it must have " + std::to_string(rank));
}

// The batch that all other inputs must have or share, from the one that has it for certain.
template <class Size>
Size batch_of(const OpSpec& op, const char* name, const Shape<Size>& shape, size_t rank) {
  if (shape.empty()) check_rank(op, name, shape, rank);
  return shape[0];
}

template <class Size>
void check_shape(const OpSpec& op, const char* name, const Shape<Size>& shape, size_t rank, const Size& batch) {
  check_rank(op, name, shape, rank);
  if (shape[0] != 1 && shape[0] != batch)
    fail(op, name + (" has batch " + text(shape[0])) + "; it must be 1 or " + text(batch));
}

template <class Size>
void check_shape(const OpSpec& op, const char* name, const Shape<Size>& shape, size_t rank, const Size& batch,
                 int64_t channels) {
  check_shape(op, name, shape, rank, batch);
  if (shape[1] != channels)
    fail(op, name + (" has " + counted(text(shape[1]), "channel")) + "; it must have " + std::to_string(channels));
}

template <class Size>
std::string by(const Size& rows, const Size& cols) {
  return text(rows) + "x" + text(cols);
}

}  // namespace amsa

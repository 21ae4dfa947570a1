// Sizes while a network is built, for the ops' shapes to compute with: numbers, or TensorRT's expressions of what is not known.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>

namespace amsa {

using nvinfer1::DimensionOperation;

class Dim {
 public:
  Dim(int64_t value) : value_(value) {}  // implicit: formulas mix both
  Dim(nvinfer1::IExprBuilder& builder, const nvinfer1::IDimensionExpr& expr) : builder_(&builder) {
    if (expr.isConstant())
      value_ = expr.getConstantValue();
    else
      expr_ = &expr;
  }

  bool is_known() const { return expr_ == nullptr; }
  int64_t value() const { return value_; }

  const nvinfer1::IDimensionExpr* expr(nvinfer1::IExprBuilder& builder) const {
    return is_known() ? builder.constant(value_) : expr_;
  }

  friend Dim operator+(const Dim& a, const Dim& b) { return make(DimensionOperation::kSUM, a, b, a.value_ + b.value_); }
  friend Dim operator-(const Dim& a, const Dim& b) { return make(DimensionOperation::kSUB, a, b, a.value_ - b.value_); }
  friend Dim operator*(const Dim& a, const Dim& b) { return make(DimensionOperation::kPROD, a, b, a.value_ * b.value_); }
  friend Dim operator/(const Dim& a, int64_t b) { return make(DimensionOperation::kFLOOR_DIV, a, b, a.value_ / b); }

  // What is not known counts as fitting.
  friend int64_t operator%(const Dim& a, int64_t b) { return a.is_known() ? a.value_ % b : 0; }
  friend bool operator<(const Dim& a, int64_t b) { return a.is_known() && a.value_ < b; }
  friend bool operator>(const Dim& a, int64_t b) { return a.is_known() && a.value_ > b; }
  friend bool operator!=(const Dim& a, const Dim& b) { return a.is_known() && b.is_known() && a.value_ != b.value_; }

 private:
  static Dim make(DimensionOperation operation, const Dim& a, const Dim& b, int64_t value) {
    if (a.is_known() && b.is_known()) return value;
    nvinfer1::IExprBuilder& builder = *(a.is_known() ? b : a).builder_;
    return {builder, *builder.operation(operation, *a.expr(builder), *b.expr(builder))};
  }

  nvinfer1::IExprBuilder* builder_ = nullptr;
  const nvinfer1::IDimensionExpr* expr_ = nullptr;  // null: it is known
  int64_t value_ = 0;
};

inline std::string text(const Dim& dim) { return dim.is_known() ? std::to_string(dim.value()) : "?"; }

}  // namespace amsa

// What the linear layers refuse. Each function checks all arguments of one operator and returns the inputs of
// a column, K.
#pragma once

#include "checks.h"

namespace dualscale {

// 255 * 128 * 65536 < 2^31: no sum of products of bytes overflows.
constexpr int64_t kMaxDepth = 1 << 16;
constexpr int64_t kMinGroup = 32, kMaxGroup = 1024;

inline void check_contiguous(const Argument& argument, const Tensor& tensor) {
  if (!tensor.is_contiguous()) {
    refuse(argument, "is not contiguous", "contiguous memory");
  }
}

// A parameter of any type.
inline void check_typed_parameter(const Argument& argument, const Tensor& tensor, ScalarType type,
                                  std::initializer_list<int64_t> sizes, const Tensor& first) {
  check_type(argument, tensor, type);
  check_shape(argument, tensor, sizes);
  check_same_device(argument, tensor, first);
  check_contiguous(argument, tensor);
}

// int8 activations with their code and row scales; returns K.
inline int64_t checked_linear_codes(const char* op, const Tensor& x, const OptionalTensor& x_code, bool knee,
                                    const OptionalTensor& row_scale) {
  check_type({op, "x"}, x, ScalarType::Char);
  check_channels({op, "x"}, x);
  check_last_stride({op, "x"}, x);
  const int64_t depth = x.size(x.dim() - 1);
  if (depth > kMaxDepth) {
    refuse({op, "x"}, "has " + std::to_string(depth) + " channels", "at most " + std::to_string(kMaxDepth));
  }
  check_code({op, "x_code"}, x_code, depth, Codes::kKneeOneRow, x);
  if (knee && !x_code) {
    refuse({op, "knee"}, "is true without x_code", "false, or an x_code");
  }
  check_parameter({op, "row_scale"}, row_scale, {x.numel() / depth}, x);
  return depth;
}

// int8 weights (N, K) with one scale a column of the result; returns N.
inline int64_t checked_int8_weight(const char* op, const Tensor& x, const Tensor& weight,
                                   const Tensor& weight_scale) {
  check_typed_parameter({op, "weight"}, weight, ScalarType::Char, {-1, x.size(x.dim() - 1)}, x);
  check_parameter({op, "weight_scale"}, weight_scale, {weight.size(0)}, x);
  return weight.size(0);
}

// Packed 4-bit weights (N, K/2) with one scale a group; returns N.
inline int64_t checked_int4_weight(const char* op, const Tensor& x, const Tensor& weight,
                                   const Tensor& weight_scale, int64_t group_size) {
  const int64_t depth = x.size(x.dim() - 1);
  if (depth % 8 != 0) {
    refuse({op, "x"}, "has " + std::to_string(depth) + " channels",
           "a multiple of 8, because 4-bit weights are packed by eight");
  }
  if (group_size < kMinGroup || group_size > kMaxGroup || (group_size & (group_size - 1)) != 0) {
    refuse({op, "group_size"}, "is " + std::to_string(group_size),
           "a power of two from " + std::to_string(kMinGroup) + " to " + std::to_string(kMaxGroup));
  }
  check_typed_parameter({op, "weight"}, weight, ScalarType::Byte, {-1, depth / 2}, x);
  const int64_t groups = (depth + group_size - 1) / group_size;
  check_typed_parameter({op, "weight_scale"}, weight_scale, ScalarType::Half, {weight.size(0), groups}, x);
  return weight.size(0);
}

// What becomes of the sums of `columns` columns.
inline void check_linear_end(const char* op, const Tensor& x, int64_t columns, const OptionalTensor& bias,
                             const OptionalTensor& code, ScalarType dtype) {
  check_parameter({op, "bias"}, bias, {columns}, x);
  check_code({op, "code"}, code, columns, Codes::kKnee, x);
  if (!code) {
    check_result_type({op, "dtype"}, dtype);
  }
}

inline int64_t checked_linear_w8a8(const Tensor& x, const OptionalTensor& x_code, bool knee,
                                   const OptionalTensor& row_scale, const Tensor& weight,
                                   const Tensor& weight_scale, const Tensor& weight_sum,
                                   const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype) {
  const char* op = "linear_w8a8";
  const int64_t depth = checked_linear_codes(op, x, x_code, knee, row_scale);
  const int64_t columns = checked_int8_weight(op, x, weight, weight_scale);
  check_typed_parameter({op, "weight_sum"}, weight_sum, ScalarType::Int, {columns}, x);
  check_linear_end(op, x, columns, bias, code, dtype);
  return depth;
}

inline int64_t checked_linear_w4a8(const Tensor& x, const OptionalTensor& x_code, bool knee,
                                   const OptionalTensor& row_scale, const Tensor& weight,
                                   const Tensor& weight_scale, const Tensor& weight_sum, int64_t group_size,
                                   const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype) {
  const char* op = "linear_w4a8";
  const int64_t depth = checked_linear_codes(op, x, x_code, knee, row_scale);
  const int64_t columns = checked_int4_weight(op, x, weight, weight_scale, group_size);
  check_parameter({op, "weight_sum"}, weight_sum, {columns}, x);
  check_linear_end(op, x, columns, bias, code, dtype);
  return depth;
}

inline int64_t checked_linear_w8a16(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                                    const OptionalTensor& bias, const OptionalTensor& code,
                                    ScalarType dtype) {
  const char* op = "linear_w8a16";
  const int64_t depth = checked_rows(op, x);
  check_linear_end(op, x, checked_int8_weight(op, x, weight, weight_scale), bias, code, dtype);
  return depth;
}

inline int64_t checked_linear_w4a16(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                                    int64_t group_size, const OptionalTensor& bias,
                                    const OptionalTensor& code, ScalarType dtype) {
  const char* op = "linear_w4a16";
  const int64_t depth = checked_rows(op, x);
  check_linear_end(op, x, checked_int4_weight(op, x, weight, weight_scale, group_size), bias, code, dtype);
  return depth;
}

}  // namespace dualscale

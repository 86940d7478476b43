// What an operator refuses, said in one sentence: operator, argument, what was given, what is allowed.
//
// Shared by the CPU and CUDA sources. Every check is a function, so that a kernel's entry reads as a list of
// facts.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>

#include "code.h"

namespace dualscale {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// An argument of an operator, for messages.
struct Argument {
  const char* op;
  const char* name;
};

// `wrong` is what is the case, `allowed` what would be accepted.
[[noreturn]] inline void refuse(const Argument& argument, const std::string& wrong,
                                const std::string& allowed) {
  std::ostringstream message;
  message << "dualscale::" << argument.op << ": " << argument.name << " " << wrong << ", allowed is "
          << allowed;
  throw std::runtime_error(message.str());
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Double:
      return "float64";
    default:
      return torch::headeronly::toString(type);
  }
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16;
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text << (i ? ", " : "") << tensor.size(i);
  }
  text << ")";
  return text.str();
}

inline void check_type(const Argument& argument, const Tensor& tensor, ScalarType type) {
  if (tensor.scalar_type() != type) {
    refuse(argument, std::string("is ") + name_of(tensor.scalar_type()), name_of(type));
  }
}

inline void check_floating(const Argument& argument, const Tensor& tensor) {
  if (!is_floating(tensor.scalar_type())) {
    refuse(argument, std::string("is ") + name_of(tensor.scalar_type()), "float32, float16 or bfloat16");
  }
}

// The type asked for a floating-point result.
inline void check_result_type(const Argument& argument, ScalarType type) {
  if (!is_floating(type)) {
    refuse(argument, std::string("is ") + name_of(type), "float32, float16 or bfloat16");
  }
}

// Sizes; -1 stands for any.
inline void check_shape(const Argument& argument, const Tensor& tensor,
                        std::initializer_list<int64_t> sizes) {
  bool agrees = tensor.dim() == static_cast<int64_t>(sizes.size());
  std::ostringstream allowed;
  allowed << "shape (";
  int64_t i = 0;
  for (const int64_t size : sizes) {
    agrees = agrees && (size < 0 || tensor.size(i) == size);
    allowed << (i++ ? ", " : "") << (size < 0 ? std::string("any") : std::to_string(size));
  }
  if (!agrees) {
    refuse(argument, "has shape " + shape_of(tensor), allowed.str() + ")");
  }
}

inline void check_same_shape(const Argument& argument, const Tensor& tensor, const Tensor& other) {
  bool agrees = tensor.dim() == other.dim();
  for (int64_t i = 0; agrees && i < tensor.dim(); ++i) {
    agrees = tensor.size(i) == other.size(i);
  }
  if (!agrees) {
    refuse(argument, "has shape " + shape_of(tensor), "shape " + shape_of(other));
  }
}

// (batch, length, size) beside an activation of three dimensions, (batch, size) beside one of two.
inline void check_beside(const Argument& argument, const Tensor& tensor, const Tensor& first, int64_t size) {
  if (first.dim() == 3) {
    check_shape(argument, tensor, {first.size(0), first.size(1), size});
  } else {
    check_shape(argument, tensor, {first.size(0), size});
  }
}

inline void check_dim(const Argument& argument, const Tensor& tensor, int64_t dim) {
  if (tensor.dim() != dim) {
    refuse(argument, "has shape " + shape_of(tensor), std::to_string(dim) + " dimensions");
  }
}

// At least one dimension, the last of which is not empty.
inline void check_channels(const Argument& argument, const Tensor& tensor) {
  if (tensor.dim() < 1 || tensor.size(tensor.dim() - 1) < 1) {
    refuse(argument, "has shape " + shape_of(tensor), "(..., channels) with at least one channel");
  }
}

// Channels-last: neighbouring channels are neighbours in memory.
inline void check_last_stride(const Argument& argument, const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) > 1 && tensor.stride(last) != 1) {
    refuse(argument, "has last stride " + std::to_string(tensor.stride(last)), "1 (channels-last memory)");
  }
}

inline void check_same_device(const Argument& argument, const Tensor& tensor, const Tensor& other) {
  if (tensor.is_cuda() != other.is_cuda() ||
      (tensor.is_cuda() && tensor.get_device_index() != other.get_device_index())) {
    refuse(argument, "is on another device than the first argument", "one device for all arguments");
  }
}

// A parameter: fp32, of this shape, contiguous.
inline void check_parameter(const Argument& argument, const Tensor& tensor,
                            std::initializer_list<int64_t> sizes, const Tensor& first) {
  check_type(argument, tensor, ScalarType::Float);
  check_shape(argument, tensor, sizes);
  check_same_device(argument, tensor, first);
  if (!tensor.is_contiguous()) {
    refuse(argument, "is not contiguous", "contiguous memory");
  }
}

inline void check_parameter(const Argument& argument, const OptionalTensor& tensor,
                            std::initializer_list<int64_t> sizes, const Tensor& first) {
  if (tensor) {
    check_parameter(argument, *tensor, sizes, first);
  }
}

// Which codes an argument may have.
enum class Codes { kKneeOneRow, kKnee, kAny, kAnyOrPair };

inline bool is_knee(const Tensor& code) { return code.size(1) == kKneeWidth; }
inline bool is_pair(const OptionalTensor& code) {
  return code && code->dim() == 2 && code->size(1) == kPairWidth;
}

// A code for `channels` channels.
inline void check_code(const Argument& argument, const Tensor& code, int64_t channels, Codes allowed,
                       const Tensor& first) {
  check_type(argument, code, ScalarType::Float);
  check_same_device(argument, code, first);
  const bool rows =
      code.dim() == 2 && (code.size(0) == 1 || (allowed != Codes::kKneeOneRow && code.size(0) == channels));
  const bool any = allowed == Codes::kAny || allowed == Codes::kAnyOrPair;
  const bool width = code.dim() == 2 && (code.size(1) == kKneeWidth || (any && code.size(1) == kTableWidth) ||
                                         (allowed == Codes::kAnyOrPair && code.size(1) == kPairWidth));
  if (!rows || !width || !code.is_contiguous()) {
    std::ostringstream text;
    text << "contiguous (1" << (allowed == Codes::kKneeOneRow ? "" : " or " + std::to_string(channels))
         << ", " << kKneeWidth;
    if (any) {
      text << " or " << kTableWidth;
    }
    if (allowed == Codes::kAnyOrPair) {
      text << " or " << kPairWidth;
    }
    refuse(argument, "has shape " + shape_of(code), text.str() + ")");
  }
}

inline void check_code(const Argument& argument, const OptionalTensor& code, int64_t channels, Codes allowed,
                       const Tensor& first) {
  if (code) {
    check_code(argument, *code, channels, allowed, first);
  }
}

// An activation and its code: int8 with a code, floating point without.
inline void check_activation(const Argument& argument, const Tensor& tensor, const OptionalTensor& code,
                             Codes allowed, const Tensor& first) {
  if (code) {
    if (tensor.scalar_type() != ScalarType::Char) {
      refuse(argument, std::string("is ") + name_of(tensor.scalar_type()) + " though it has a code", "int8");
    }
  } else if (!is_floating(tensor.scalar_type())) {
    refuse(argument, std::string("is ") + name_of(tensor.scalar_type()) + " and has no code",
           "float32, float16 or bfloat16, or int8 with a code");
  }
  check_same_device(argument, tensor, first);
  check_last_stride(argument, tensor);
  if (code) {
    const std::string name = std::string(argument.name) + "_code";
    check_code({argument.op, name.c_str()}, *code, tensor.size(tensor.dim() - 1), allowed, first);
  }
}

// The two ways to encode rows exclude each other.
inline void check_row_code(const char* op, const OptionalTensor& code, bool per_token, int64_t channels,
                           ScalarType dtype, const Tensor& first) {
  if (per_token && code) {
    refuse({op, "code"}, "is given together with per_token", "one of the two");
  }
  check_code({op, "code"}, code, channels, Codes::kAny, first);
  if (!per_token && !code) {
    check_result_type({op, "dtype"}, dtype);
  }
}

// The input of an operator on rows; returns its channels.
inline int64_t checked_rows(const char* op, const Tensor& x) {
  check_channels({op, "x"}, x);
  check_floating({op, "x"}, x);
  check_last_stride({op, "x"}, x);
  return x.size(x.dim() - 1);
}

// All of rms_norm_quant's arguments; returns the channels.
inline int64_t checked_norm(const char* op, const Tensor& x, const OptionalTensor& residual,
                            const Tensor& weight, const OptionalTensor& code, bool per_token,
                            ScalarType residual_dtype, ScalarType dtype) {
  const int64_t channels = checked_rows(op, x);
  if (residual) {
    check_floating({op, "residual"}, *residual);
    check_same_shape({op, "residual"}, *residual, x);
    check_same_device({op, "residual"}, *residual, x);
    check_last_stride({op, "residual"}, *residual);
  }
  check_parameter({op, "weight"}, weight, {channels}, x);
  check_result_type({op, "residual_dtype"}, residual_dtype);
  check_row_code(op, code, per_token, channels, dtype, x);
  return channels;
}

// All of gated_rms_norm_quant's arguments; returns the channels.
inline int64_t checked_gated_norm(const char* op, const Tensor& x, const Tensor& z,
                                  const OptionalTensor& z_code, const Tensor& weight, int64_t group_size,
                                  const OptionalTensor& code, bool per_token, ScalarType dtype) {
  const int64_t channels = checked_rows(op, x);
  check_same_shape({op, "z"}, z, x);
  check_activation({op, "z"}, z, z_code, Codes::kKneeOneRow, x);
  check_parameter({op, "weight"}, weight, {channels}, x);
  if (group_size < 1 || channels % group_size != 0) {
    refuse({op, "group_size"}, "is " + std::to_string(group_size),
           "a divisor of " + std::to_string(channels) + ", the number of channels");
  }
  check_row_code(op, code, per_token, channels, dtype, x);
  return channels;
}

// All of hadamard_quant's arguments; returns the channels.
inline int64_t checked_hadamard(const char* op, const Tensor& x, const Tensor& base,
                                const OptionalTensor& code, bool per_token, ScalarType dtype) {
  const int64_t channels = checked_rows(op, x);
  check_dim({op, "base"}, base, 2);
  const int64_t m = base.size(0);
  check_parameter({op, "base"}, base, {m, m}, x);
  const int64_t segment = m > 0 && channels % m == 0 ? channels / m : 0;
  if (segment == 0 || (segment & (segment - 1)) != 0) {
    refuse({op, "x"}, "has " + std::to_string(channels) + " channels",
           "the order of base (" + std::to_string(m) + ") times a power of two");
  }
  check_row_code(op, code, per_token, channels, dtype, x);
  return channels;
}

}  // namespace dualscale

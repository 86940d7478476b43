// What selective_scan and selective_state_update refuse, and the sizes that follow from arguments that are
// not refused.
//
// Shared by the CPU and CUDA sources, as checks.h.
#pragma once

#include "pairs.h"

namespace dualscale {

constexpr int64_t kMaxStates = 256;

// The arguments that a sequence and one token have in common.
struct SelectiveArguments {
  const char* op;
  const Tensor& u;
  const OptionalTensor& u_code;
  const Tensor& delta;
  const OptionalTensor& delta_code;
  const Tensor& A;
  const Tensor& B;
  const OptionalTensor& B_code;
  const Tensor& C;
  const OptionalTensor& C_code;
  const OptionalTensor& D;
  const OptionalTensor& z;
  const OptionalTensor& z_code;
  const OptionalTensor& delta_bias;
  const OptionalTensor& u_mask;
  const OptionalTensor& u_outliers;
};

// length is 1 for one token. Only batch and length may be 0.
struct SelectiveSizes {
  int64_t batch, length, channels, states;
  SelectorView selectors;  // of u
};

// Everything but the states; `dims` is 3 for a sequence, 2 for one token.
inline SelectiveSizes checked_selective(const SelectiveArguments& in, int64_t dims, ScalarType dtype) {
  const char* op = in.op;
  const Tensor& u = in.u;
  check_dim({op, "u"}, u, dims);
  check_channels({op, "u"}, u);
  check_activation({op, "u"}, u, in.u_code, Codes::kAnyOrPair, u);
  const int64_t channels = u.size(dims - 1);
  check_dim({op, "A"}, in.A, 2);
  const int64_t states = in.A.size(1);
  check_parameter({op, "A"}, in.A, {channels, states}, u);
  if (states < 1 || states > kMaxStates) {
    refuse({op, "A"}, "has " + std::to_string(states) + " states", "1 to " + std::to_string(kMaxStates));
  }
  const auto check = [&](const char* name, const Tensor& tensor, const OptionalTensor& code, int64_t size) {
    check_beside({op, name}, tensor, u, size);
    check_activation({op, name}, tensor, code, Codes::kKneeOneRow, u);
    if (code.has_value() != in.delta_code.has_value()) {
      refuse({op, name}, code ? "is int8 but delta is not" : "is floating point but delta is int8",
             "int8 for all of delta, B, C and z, or for none");
    }
  };
  check("delta", in.delta, in.delta_code, channels);
  check("B", in.B, in.B_code, states);
  check("C", in.C, in.C_code, states);
  if (in.z) {
    check("z", *in.z, in.z_code, channels);
  }
  check_parameter({op, "D"}, in.D, {channels}, u);
  check_parameter({op, "delta_bias"}, in.delta_bias, {channels}, u);
  check_result_type({op, "dtype"}, dtype);
  const int64_t length = dims == 3 ? u.size(1) : 1;
  return {u.size(0), length, channels, states,
          checked_selectors(op, "u_mask", "u_outliers", in.u_code, in.u_mask, in.u_outliers, length, channels,
                            u)};
}

// The state before: any strides but the last.
inline void check_ssm_state(const Argument& argument, const Tensor& state, const Tensor& u, const Tensor& A) {
  check_type(argument, state, ScalarType::Float);
  check_shape(argument, state, {u.size(0), A.size(0), A.size(1)});
  check_same_device(argument, state, u);
  check_last_stride(argument, state);
}

}  // namespace dualscale

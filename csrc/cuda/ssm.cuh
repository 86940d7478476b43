// What the selective scan and its one-token form share: softplus and the checks of
// their common arguments.
#pragma once

#include "four.cuh"

namespace dualscale {

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), the latter by a polynomial that is relatively exact to 1e-7 also
// where the result is small; the logarithm instruction is only absolutely exact, and shares its unit with the
// exponential. The exponential is the accurate one: the state remembers errors of delta.
__device__ __forceinline__ float softplus(float x) {
  const float e = expf(-fabsf(x));
  float p = -0.0032440258655697107f;
  p = fmaf(p, e, 0.01985146477818489f);
  p = fmaf(p, e, -0.05695953965187073f);
  p = fmaf(p, e, 0.10603655129671097f);
  p = fmaf(p, e, -0.15305593609809875f);
  p = fmaf(p, e, 0.1967593878507614f);
  p = fmaf(p, e, -0.24954134225845337f);
  p = fmaf(p, e, 0.3332996368408203f);
  p = fmaf(p, e, -0.4999990165233612f);
  p = fmaf(p, e, 1.0f);
  return fmaf(p, e, fmaxf(x, 0.0f));
}

struct SsmArguments {
  Input u, delta, B, C, z;
  const float* A;
  const float* D;
  const float* delta_bias;
  int64_t batch, length, channels;
  int states;
};

constexpr int kMaxStates = 256;

// Everything but the states. `dims` is 3 for a sequence, 2 for one token.
inline SsmArguments checked_ssm(const char* op, int64_t dims, const Tensor& u, const OptionalTensor& u_code,
                                const Tensor& delta, const OptionalTensor& delta_code, const Tensor& A,
                                const Tensor& B, const OptionalTensor& B_code, const Tensor& C,
                                const OptionalTensor& C_code, const OptionalTensor& D,
                                const OptionalTensor& z, const OptionalTensor& z_code,
                                const OptionalTensor& delta_bias, ScalarType dtype) {
  check_dim({op, "u"}, u, dims);
  check_channels({op, "u"}, u);
  const int64_t channels = u.size(dims - 1);
  check_activation({op, "u"}, u, u_code, Codes::kAny, u);
  check_dim({op, "A"}, A, 2);
  const int64_t states = A.size(1);
  check_parameter({op, "A"}, A, {channels, states}, u);
  if (states < 1 || states > kMaxStates) {
    refuse({op, "A"}, "has " + std::to_string(states) + " states", "1 to " + std::to_string(kMaxStates));
  }
  const auto check = [&](const char* name, const Tensor& tensor, const OptionalTensor& code, int64_t size) {
    if (dims == 3) {
      check_shape({op, name}, tensor, {u.size(0), u.size(1), size});
    } else {
      check_shape({op, name}, tensor, {u.size(0), size});
    }
    check_activation({op, name}, tensor, code, Codes::kKneeOneRow, u);
    if (code.has_value() != delta_code.has_value()) {
      refuse({op, name}, code ? "is int8 but delta is not" : "is floating point but delta is int8",
             "int8 for all of delta, B, C and z, or for none");
    }
  };
  check("delta", delta, delta_code, channels);
  check("B", B, B_code, states);
  check("C", C, C_code, states);
  if (z) {
    check("z", *z, z_code, channels);
  }
  check_parameter({op, "D"}, D, {channels}, u);
  check_parameter({op, "delta_bias"}, delta_bias, {channels}, u);
  check_result_type({op, "dtype"}, dtype);
  return {input_of(u, u_code),
          input_of(delta, delta_code),
          input_of(B, B_code),
          input_of(C, C_code),
          input_of(z, z_code),
          floats(A),
          floats(D),
          floats(delta_bias),
          u.size(0),
          dims == 3 ? u.size(1) : 1,
          channels,
          static_cast<int>(states)};
}

// The state before: any strides but the last.
inline void check_ssm_state(const Argument& argument, const Tensor& state, const Tensor& u, const Tensor& A) {
  check_type(argument, state, ScalarType::Float);
  check_shape(argument, state, {u.size(0), A.size(0), A.size(1)});
  check_same_device(argument, state, u);
  check_last_stride(argument, state);
}

}  // namespace dualscale

// What the selective scan and its one-token form share: softplus and their common arguments.
#pragma once

#include "four.cuh"
#include "ssm_checks.h"

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

// Everything but the states. `dims` is 3 for a sequence, 2 for one token.
inline SsmArguments checked_ssm(const char* op, int64_t dims, const Tensor& u, const OptionalTensor& u_code,
                                const Tensor& delta, const OptionalTensor& delta_code, const Tensor& A,
                                const Tensor& B, const OptionalTensor& B_code, const Tensor& C,
                                const OptionalTensor& C_code, const OptionalTensor& D,
                                const OptionalTensor& z, const OptionalTensor& z_code,
                                const OptionalTensor& delta_bias, ScalarType dtype) {
  const SelectiveSizes sizes = checked_selective(
      {op, u, u_code, delta, delta_code, A, B, B_code, C, C_code, D, z, z_code, delta_bias}, dims, dtype);
  return {input_of(u, u_code), input_of(delta, delta_code),
          input_of(B, B_code), input_of(C, C_code),
          input_of(z, z_code), floats(A),
          floats(D),           floats(delta_bias),
          sizes.batch,         sizes.length,
          sizes.channels,      static_cast<int>(sizes.states)};
}

}  // namespace dualscale

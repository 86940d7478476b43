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

inline SsmArguments ssm_of(const SelectiveArguments& in, const SelectiveSizes& sizes) {
  return {input_of(in.u, in.u_code),
          input_of(in.delta, in.delta_code),
          input_of(in.B, in.B_code),
          input_of(in.C, in.C_code),
          input_of(in.z, in.z_code),
          floats(in.A),
          floats(in.D),
          floats(in.delta_bias),
          sizes.batch,
          sizes.length,
          sizes.channels,
          static_cast<int>(sizes.states)};
}

}  // namespace dualscale

// Knee codes for rows: Knee::encode's bits with the last step, to leave out a fraction, left to the packing.
#pragma once

#include "vector.cuh"

namespace dualscale {

// Whether a code is scale * q with limits that packing keeps, or that are below zero: then NaN, which is
// encoded as 0 is, and what saturates above need no step of their own.
__device__ __forceinline__ bool is_symmetric(const Knee& knee) {
  return knee.is_straight() && knee.zero == 0.0f && knee.qmax >= 127.0f && knee.qmin <= 0.0f;
}

// Codes before_packing.
template <int N>
__device__ __forceinline__ void encode_symmetric(const Knee& knee, float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x[i] = before_packing(max_or_nan(mul_rn(x[i], knee.inv_scale), knee.qmin));
  }
}

// Limits are integers, so that it does not matter whether they are applied before or after rounding.
template <int N>
__device__ __forceinline__ void encode_knee(const Knee& knee, float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float number = x[i] == x[i] ? x[i] : 0.0f;
    float t = mul_rn(number, knee.inv_scale);
    t = min_of(max_of(t, -kCodeSpaceLimit), kCodeSpaceLimit);
    t = add_rn(t, knee.zero);
    t = add_rn(t, mul_rn(knee.inv_gain, max_of(add_rn(t, -knee.knee), 0.0f)));
    x[i] = before_packing(min_of(max_of(t, knee.qmin), knee.qmax));
  }
}

}  // namespace dualscale

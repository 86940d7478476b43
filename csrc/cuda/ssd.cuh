// What the operators of state space duality share.
#pragma once

#include "../ssd_checks.h"
#include "ssm.cuh"

namespace dualscale {

// delta' = clamp(softplus(delta + bias), low, high); NaN stays NaN.
__device__ __forceinline__ float step_size(float delta, float bias, float low, float high) {
  const float step = softplus(delta + bias);
  return step < low ? low : step > high ? high : step;
}

// A state in memory, fp32 or fp16: (batch, heads, head_dim, states), the last stride 1.
struct StateView {
  void* data = nullptr;
  Kind kind = Kind::kFloat;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0;

  __device__ __forceinline__ int64_t offset(int64_t batch, int64_t head, int64_t row) const {
    return batch * batch_stride + head * head_stride + row * row_stride;
  }
};

inline StateView state_view(const OptionalTensor& state) {
  if (!state) {
    return {};
  }
  return {state->data_ptr(), kind_of(*state), state->stride(0), state->stride(1), state->stride(2)};
}

// Everything but the tensors' tiles and states.
struct SsdCommon {
  Input delta;
  const float* A;
  const float* D;
  const float* delta_bias;
  float low, high;
  int64_t batch, length;
  int heads, head_dim, groups, states;

  __host__ __device__ int heads_of_a_group() const { return heads / groups; }
};

inline SsdCommon ssd_common(const SsdArguments& in, const SsdSizes& sizes) {
  return {input_of(in.delta, in.delta_code),
          floats(in.A),
          floats(in.D),
          floats(in.delta_bias),
          static_cast<float>(in.delta_min),
          static_cast<float>(in.delta_max),
          sizes.batch,
          sizes.length,
          static_cast<int>(sizes.heads),
          static_cast<int>(sizes.head_dim),
          static_cast<int>(sizes.groups),
          static_cast<int>(sizes.states)};
}

}  // namespace dualscale

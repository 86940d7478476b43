// What becomes of the integer sums of a W8A8 product: the code of x is taken out, scales and bias go in, and
// the result is encoded if it has a code. Shared by the epilogue of the matrix product and the few-rows
// kernel.
#pragma once

#include "four.cuh"

namespace dualscale {

struct Epilogue {
  const float* x_code;  // null: symmetric codes, scale 1
  bool knee;
  const float* row_scale;
  const float* weight_scale;
  const int32_t* weight_sum;
  const float* bias;
  CodeView code;
  Kind kind;
  void* y;
  int64_t columns;
};

// The knee term of x needs sums over max(q - knee, 0), which must fit eight bits: below zero the knee is
// turned round, by max(q - knee, 0) = (q - knee) + max(knee - q, 0).
struct KneeTerm {
  int knee;
  bool turned;

  static __device__ __forceinline__ KneeTerm of(const float* x_code) {
    const float knee = fminf(fmaxf(Knee::load(x_code).knee, -kCodeSpaceLimit), kCodeSpaceLimit);
    return {__float2int_rn(knee), knee < 0.0f};
  }

  // max(q - knee, 0), or max(knee - q, 0), of four codes.
  __device__ __forceinline__ uint32_t excess(uint32_t codes) const {
    const int clamped = min(max(knee, -128), 127);
    const uint32_t four = (clamped & 0xff) * 0x01010101u;
    return turned ? __vsub4(four, __vmins4(codes, four)) : __vsub4(__vmaxs4(codes, four), four);
  }
};

// The parameters of one output column.
struct Column {
  float scale, bias, gain;
  int zero_sum;
  int64_t knee_sum;
  bool turned;
  int64_t index;

  __device__ __forceinline__ Column(const Epilogue& e, int64_t n)
      : gain(0), zero_sum(0), knee_sum(0), turned(false) {
    index = min(n, e.columns - 1);
    scale = e.weight_scale[index];
    bias = e.bias ? e.bias[index] : 0.0f;
    if (e.x_code == nullptr) {
      return;
    }
    const Knee code = Knee::load(e.x_code);
    const int sum = e.weight_sum[index];
    scale *= code.scale;
    zero_sum = __float2int_rn(code.zero) * sum;
    if (e.knee) {
      const KneeTerm term = KneeTerm::of(e.x_code);
      gain = code.gain;
      turned = term.turned;
      knee_sum = static_cast<int64_t>(term.knee) * sum;
    }
  }

  __device__ __forceinline__ float value(const Epilogue& e, int sum, int excess, int64_t row) const {
    float total = static_cast<float>(sum - zero_sum);
    if (e.knee) {
      total = fmaf(gain, static_cast<float>(turned ? sum - knee_sum + excess : excess), total);
    }
    float y = total * scale;
    if (e.row_scale != nullptr) {
      y *= e.row_scale[row];
    }
    y += bias;
    if (e.code.rows == nullptr) {
      return y;
    }
    const int64_t code = e.code.per_channel ? index : 0;
    return Knee::load(e.code.rows + code * kKneeWidth).encode(y);
  }
};

struct Product {
  const int8_t* x;
  int64_t x_stride, rows, depth;
  const int8_t* weight;
  bool aligned;  // whether 16 codes may be loaded at once
};

// Own product for few rows, or for sizes that the library refuses.
void multiply_few_rows(const Product& product, const Epilogue& epilogue, cudaStream_t stream);

}  // namespace dualscale

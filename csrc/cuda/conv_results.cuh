// What becomes of the convolution's outputs: codes of a knee, codes of a table, or floating point. Each takes
// SiLU as two factors (silu_terms), of which the second carries factor().
#pragma once

#include "conv.cuh"

namespace dualscale {

// Codes as Knee::encode has them but for some 1e-4 of a step: another code only next to a tie. The coarse
// piece bends down, so that the lesser of the two applies.
//
// kLean: limits that packing bytes does not keep are known not to be reached; the codes are the same.
template <int kCodes>
struct KneeResult {
  using Out = int8_t;
  static constexpr bool kFinite = true;
  SiluFactor scale[kCodes];
  float zero[kCodes], slope[kCodes], bend[kCodes], low[kCodes], high[kCodes];

  __device__ KneeResult(const CodeView& code, const float*, int64_t channel, int valid) {
#pragma unroll
    for (int i = 0; i < kCodes; ++i) {
      const Knee knee = Knee::load(code.rows + (kCodes == 1 ? 0 : channel + min(i, valid - 1)) * kKneeWidth);
      // Beyond these limits zero is the only value that is not saturated, or the only one that there is.
      scale[i] = SiluFactor::of(-kLn2 * fminf(fmaxf(knee.inv_scale, 0x1p-60f), 0x1p60f));
      zero[i] = knee.zero;
      slope[i] = 1.0f + knee.inv_gain;
      bend[i] = -knee.inv_gain * knee.knee;
      low[i] = knee.qmin;
      high[i] = knee.qmax;
    }
  }

  __device__ __forceinline__ SiluFactor factor(int i) const { return scale[kCodes == 1 ? 0 : i]; }

  __device__ __forceinline__ bool is_lean() const {
    constexpr float kLeastSilu = -0.2785f, kUnit = -kLog2e / SiluFactor::kLeast;
    bool lean = true;
#pragma unroll
    for (int c = 0; c < kCodes; ++c) {
      const float least = fmaf(kLeastSilu * kUnit, scale[c].paired, zero[c]);
      const float lowest = fminf(least, fmaf(least, slope[c], bend[c]));
      lean = lean && high[c] >= 127.0f && (low[c] <= -128.0f || lowest >= low[c]);
    }
    return lean;
  }

  // kMayBeNan: inputs were not codes.
  template <bool kLean, bool kMayBeNan>
  __device__ __forceinline__ Raw<int8_t, kConvVector> result(const SiluTerm (&term)[kConvVector]) const {
    float q[kConvVector];
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      const int c = kCodes == 1 ? 0 : i;
      float fine = fmaf(term[i].numerator, term[i].reciprocal, zero[c]);
      if constexpr (kMayBeNan) {
        fine = fine == fine ? fine : zero[c];
      }
      q[i] = fminf(fine, fmaf(fine, slope[c], bend[c]));
      if constexpr (!kLean) {
        q[i] = fmaxf(fminf(q[i], high[c]), low[c]);
      }
    }
    return pack_nearest(q);
  }
};

// A table that all channels share lies in shared memory (`shared`).
struct TableResult {
  using Out = int8_t;
  static constexpr bool kFinite = true;
  const float* first;
  int64_t step;
  int last;

  __device__ TableResult(const CodeView& code, const float* shared, int64_t channel, int valid)
      : first(code.per_channel ? code.rows + channel * kTableWidth : shared),
        step(code.per_channel ? kTableWidth : 0),
        last(valid - 1) {}

  __device__ __forceinline__ SiluFactor factor(int) const { return SiluFactor::plain(); }
  __device__ __forceinline__ bool is_lean() const { return true; }

  template <bool, bool>
  __device__ __forceinline__ Raw<int8_t, kConvVector> result(const SiluTerm (&term)[kConvVector]) const {
    float q[kConvVector];
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      q[i] = Table::load(first + min(i, last) * step).encode(term[i].numerator * term[i].reciprocal);
    }
    return pack<int8_t, kConvVector>(q);
  }
};

template <class T>
struct FloatResult {
  using Out = T;
  static constexpr bool kFinite = false;

  __device__ FloatResult(const CodeView&, const float*, int64_t, int) {}

  __device__ __forceinline__ SiluFactor factor(int) const { return SiluFactor::plain(); }
  __device__ __forceinline__ bool is_lean() const { return true; }

  template <bool, bool>
  __device__ __forceinline__ Raw<T, kConvVector> result(const SiluTerm (&term)[kConvVector]) const {
    float y[kConvVector];
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      y[i] = term[i].numerator * term[i].reciprocal;
    }
    return pack<T, kConvVector>(y);
  }
};

// Calls f with the type that makes the result.
template <class F>
void dispatch_result(const CodeView& code, ScalarType dtype, F&& f) {
  if (code.rows == nullptr) {
    return dispatch_floating(dtype,
                             [&](auto type) { f(Type<FloatResult<typename decltype(type)::type>>{}); });
  }
  if (code.is_table) {
    return f(Type<TableResult>{});
  }
  code.per_channel ? f(Type<KneeResult<kConvVector>>{}) : f(Type<KneeResult<1>>{});
}

// Copies the table that all channels share.
template <class Result>
__device__ __forceinline__ void load_shared_table(const CodeView& code, float* shared) {
  if constexpr (std::is_same_v<Result, TableResult>) {
    if (!code.per_channel) {
      for (int i = threadIdx.x; i < kTableWidth; i += blockDim.x) {
        shared[i] = code.rows[i];
      }
      __syncthreads();
    }
  }
}

// Whether reciprocals may be taken two at a time: where no input is NaN, and no result.
template <class T, class Result>
constexpr bool kPairsReciprocals = sizeof(T) == 1 && Result::kFinite;

// Whether one of the results may be NaN.
template <class T>
constexpr bool kMayBeNan = sizeof(T) > 1;

}  // namespace dualscale

// The causal depthwise convolution of one thread's channels, shared by conv.cu and conv_update.cu.
//
// Activations are multiplied by -log2(e) with the weights, so that SiLU(y) = y / (1 + 2^p) needs no product
// before the exponential; with codes the weights carry the scale of x too. Results are p / (1 + 2^p) =
// SiLU(y) / -ln 2, and the constant goes into the parameters of the result's code.
#pragma once

#include "launch.cuh"
#include "vector.cuh"

namespace dualscale {

constexpr int kConvVector = 8;
constexpr int kMaxTaps = 4;

struct ConvParameters {
  const float* x_code;  // null when x is floating point
  const float* weight;  // (channels, taps)
  const float* bias;
  CodeView code;
  int taps;
  int64_t channels;
  bool aligned;  // whether the four weights of a channel may be loaded at once
};

// kFast: four taps, whose weights may be loaded at once.
template <class T, bool kFast>
struct Convolution {
  float weight[kMaxTaps][kConvVector];
  float bias[kConvVector];
  Pieces pieces;
  int taps;

  // With `mute`, a channel whose parameters are NaN gives 0, which is what NaN is encoded as.
  __device__ Convolution(const ConvParameters& p, int64_t channel, int valid, bool mute) : taps(p.taps) {
    float scale = -kLog2e;
    if constexpr (sizeof(T) == 1) {
      const Knee knee = Knee::load(p.x_code);
      pieces = Pieces::of(knee);
      scale *= knee.scale;
    }
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      const bool exists = i < valid;
      bias[i] = exists && p.bias ? -kLog2e * p.bias[channel + i] : 0.0f;
      float sum = bias[i];
      const float4 four =
          kFast || (taps == kMaxTaps && exists && p.aligned)
              ? *reinterpret_cast<const float4*>(p.weight + (channel + i) * kMaxTaps)
              : make_float4(weight_of(p, channel + i, 0, exists), weight_of(p, channel + i, 1, exists),
                            weight_of(p, channel + i, 2, exists), weight_of(p, channel + i, 3, exists));
      weight[0][i] = scale * four.x;
      weight[1][i] = scale * four.y;
      weight[2][i] = scale * four.z;
      weight[3][i] = scale * four.w;
      sum += fabsf(weight[0][i]) + fabsf(weight[1][i]) + fabsf(weight[2][i]) + fabsf(weight[3][i]);
      if (mute && sum != sum) {
        bias[i] = 0.0f;
#pragma unroll
        for (int k = 0; k < kMaxTaps; ++k) {
          weight[k][i] = 0.0f;
        }
      }
    }
  }

  // The k-th of four weights; with fewer taps the first are missing, so that the last tap meets the newest
  // input.
  static __device__ __forceinline__ float weight_of(const ConvParameters& p, int64_t channel, int k,
                                                    bool exists) {
    const int tap = k - (kMaxTaps - p.taps);
    return exists && tap >= 0 ? p.weight[channel * p.taps + tap] : 0.0f;
  }

  __device__ __forceinline__ void values(const Raw<T, kConvVector>& raw, float (&x)[kConvVector]) const {
    if constexpr (sizeof(T) == 1) {
#pragma unroll
      for (int i = 0; i < kConvVector; ++i) {
        x[i] = pieces.value(biased_byte(raw.word[i / 4] ^ 0x80808080u, i % 4));
      }
    } else {
      unpack(raw, x);
    }
  }

  // x[0] is the oldest input. Taps that do not exist are skipped: 0 * inf would be NaN.
  __device__ __forceinline__ float silu_over_ln2(int i, float x0, float x1, float x2, float x3) const {
    float p = bias[i];
    if (kFast || taps > 3) {
      p = fmaf(weight[0][i], x0, p);
    }
    if (kFast || taps > 2) {
      p = fmaf(weight[1][i], x1, p);
    }
    p = fmaf(weight[2][i], x2, p);
    p = fmaf(weight[3][i], x3, p);
    return p * reciprocal_approx(1.0f + exp2_approx(p));
  }
};

// Codes by a saturating multiply-add: the code as a fraction of [qmin, qmax], once by the fine and once by
// the coarse piece, of which the smaller applies. A few 1e-5 of a step from Knee::encode, so that the code is
// another only next to a tie, where the approximate exponential decides as well.
template <int kCodes>
struct KneeResult {
  using Out = int8_t;
  static constexpr bool kMutesNan = true;
  float slope[kCodes], offset[kCodes], coarse_slope[kCodes], coarse_offset[kCodes], range[kCodes],
      base[kCodes];

  __device__ KneeResult(const CodeView& code, const float*, int64_t channel, int valid) {
#pragma unroll
    for (int i = 0; i < kCodes; ++i) {
      const Knee knee = Knee::load(code.rows + (kCodes == 1 ? 0 : channel + min(i, valid - 1)) * kKneeWidth);
      const float ratio = 1.0f + knee.inv_gain;
      range[i] = fmaxf(knee.qmax - knee.qmin, 1.0f);
      base[i] = kIntegerBias + knee.qmin;
      const float unit = 1.0f / range[i];
      slope[i] = -kLn2 * knee.inv_scale * unit;
      offset[i] = (knee.zero - knee.qmin) * unit;
      coarse_slope[i] = slope[i] * ratio;
      coarse_offset[i] = (knee.zero * ratio - knee.inv_gain * knee.knee - knee.qmin) * unit;
    }
  }

  __device__ __forceinline__ Raw<int8_t, kConvVector> result(const float (&s)[kConvVector]) const {
    uint32_t bits[kConvVector];
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      const int c = kCodes == 1 ? 0 : i;
      const float fine = fma_saturated(s[i], slope[c], offset[c]);
      const float coarse = fma_saturated(s[i], coarse_slope[c], coarse_offset[c]);
      bits[i] = __float_as_uint(fmaf(fminf(fine, coarse), range[c], base[c]));
    }
    Raw<int8_t, kConvVector> raw;
    raw.word[0] = pack_bytes(bits[0], bits[1], bits[2], bits[3]);
    raw.word[1] = pack_bytes(bits[4], bits[5], bits[6], bits[7]);
    return raw;
  }
};

// A table that all channels share lies in shared memory (`shared`).
struct TableResult {
  using Out = int8_t;
  static constexpr bool kMutesNan = true;
  const float* first;
  int64_t step;
  int last;

  __device__ TableResult(const CodeView& code, const float* shared, int64_t channel, int valid)
      : first(code.per_channel ? code.rows + channel * kTableWidth : shared),
        step(code.per_channel ? kTableWidth : 0),
        last(valid - 1) {}

  __device__ __forceinline__ Raw<int8_t, kConvVector> result(const float (&s)[kConvVector]) const {
    float q[kConvVector];
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      q[i] = Table::load(first + min(i, last) * step).encode(-kLn2 * s[i]);
    }
    return pack<int8_t, kConvVector>(q);
  }
};

template <class T>
struct FloatResult {
  using Out = T;
  static constexpr bool kMutesNan = false;

  __device__ FloatResult(const CodeView&, const float*, int64_t, int) {}

  __device__ __forceinline__ Raw<T, kConvVector> result(const float (&s)[kConvVector]) const {
    float y[kConvVector];
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      y[i] = -kLn2 * s[i];
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

inline ConvParameters checked_parameters(const char* op, const Tensor& x, const OptionalTensor& x_code,
                                         const Tensor& weight, const OptionalTensor& bias,
                                         const OptionalTensor& code, ScalarType dtype,
                                         Codes allowed = Codes::kAny) {
  const int64_t channels = x.size(x.dim() - 1);
  check_channels({op, "x"}, x);
  check_activation({op, "x"}, x, x_code, Codes::kKneeOneRow, x);
  check_dim({op, "weight"}, weight, 2);
  if (weight.size(1) < 2 || weight.size(1) > kMaxTaps) {
    refuse({op, "weight"}, "has " + std::to_string(weight.size(1)) + " taps", "2, 3 or 4");
  }
  check_parameter({op, "weight"}, weight, {channels, weight.size(1)}, x);
  check_parameter({op, "bias"}, bias, {channels}, x);
  check_code({op, "code"}, code, channels, allowed, x);
  if (!code) {
    check_result_type({op, "dtype"}, dtype);
  }
  return {
      floats(x_code), floats(weight),        floats(bias), view_of(code), static_cast<int>(weight.size(1)),
      channels,       is_aligned(weight, 16)};
}

inline void check_state(const Argument& argument, const Tensor& state, const Tensor& x, int64_t taps,
                        int64_t channels) {
  check_shape(argument, state, {x.size(0), taps - 1, channels});
  check_type(argument, state, x.scalar_type());
  check_same_device(argument, state, x);
  check_last_stride(argument, state);
}

}  // namespace dualscale

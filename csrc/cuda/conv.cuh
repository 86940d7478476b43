// The causal depthwise convolution of one thread's channels, shared by conv.cu and conv_update.cu: taps, and
// SiLU up to the multiplication that conv_results.cuh finishes it with.
//
// Activations are multiplied by -log2(e) with the weights, so that SiLU(y) = -ln 2 p / (1 + 2^p) needs no
// product before the exponential; with codes the weights carry the scale of x too.
#pragma once

#include "ahead.cuh"
#include "launch.cuh"
#include "vector.cuh"

namespace dualscale {

constexpr int kConvVector = 8;
constexpr int kMaxTaps = 4;

// What to turn, with an eye on benchmarks/kernels.py --only conv. Of a thread's eight channels the first
// kPairedChannels get their reciprocals two at a time: the special function unit, which makes exponentials
// and reciprocals at an eighth of the rate of additions, has half a reciprocal less to do for each, the
// other units one and a half instruction more. All eight were fastest.
constexpr int kPairedChannels = 8;
constexpr int kConvThreads = 128;  // of a block that walks sequences
constexpr int kConvBlocks = 4;     // of them a multiprocessor, for which a thread gets 128 registers
constexpr int kTurn = 4;           // rows on their way while as many are computed
constexpr int kLeastRows = 8;      // of a thread, where the chip is not full
constexpr int kMostRows = 256;     // of a thread before the next one begins
constexpr int kTokenThreads = 64;  // of a block that makes one token
constexpr int kTokenBatch = 4;     // sequences of such a thread, where there are many

struct ConvParameters {
  const float* x_code;  // null when x is floating point
  const float* weight;  // (channels, taps)
  const float* bias;
  CodeView code;
  int taps;
  int64_t channels;
  bool aligned;  // whether the four weights of a channel, and eight biases, may be loaded as vectors
};

// Brings the parameters of a thread's channels near before the kernels before are done.
__device__ __forceinline__ void prefetch_parameters(const ConvParameters& p, int64_t channel, int valid) {
  constexpr int kSector = 8;  // floats that one prefetch surely brings
  for (int i = 0; i < valid * p.taps; i += kSector) {
    prefetch_sector(p.weight + channel * p.taps + i);
  }
  if (p.bias && valid > 0) {
    prefetch_sector(p.bias + channel);
  }
  if (p.code.rows && p.code.per_channel && !p.code.is_table) {
    for (int i = 0; i < valid * kKneeWidth; i += kSector) {
      prefetch_sector(p.code.rows + channel * kKneeWidth + i);
    }
  }
}

// Where the 32 threads of a warp exchange weights: 16 bytes a channel, and as much again after each thread's
// eight, so that neither its reads nor its writes meet in a bank.
struct WeightExchange {
  float4 slot[32 * (kConvVector + 1)];
};

// The sums of the next three outputs, as far as their inputs are known.
struct ConvSums {
  float sum[kMaxTaps - 1][kConvVector];
};

// kFast: four taps, whole vectors, and parameters that may be loaded as vectors; then all 32 threads of a
// warp make theirs together, with an exchange of the warp's own.
template <class T, bool kFast>
struct Convolution {
  float weight[kMaxTaps][kConvVector];
  float bias[kConvVector];
  Pieces pieces;
  int taps;
  bool is_straight = true;  // whether the code of x has no knee

  // With `finite`, a channel that has a NaN among its parameters gives 0, which is what NaN is encoded as,
  // and infinite ones become large: no result is NaN then.
  __device__ Convolution(const ConvParameters& p, int64_t channel, int valid, bool finite,
                         WeightExchange* exchange)
      : taps(p.taps) {
    load(p, channel, valid, exchange);
    float scale = -kLog2e;
    if constexpr (sizeof(T) == 1) {
      const Knee knee = Knee::load(p.x_code);
      pieces = Pieces::of(knee);
      pieces.origin = kIntegerBias + knee.zero;
      is_straight = knee.gain == 0.0f;
      scale *= knee.scale;
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      bias[i] *= -kLog2e;
      sum += fabsf(bias[i]);
#pragma unroll
      for (int k = 0; k < kMaxTaps; ++k) {
        weight[k][i] *= scale;
        sum += fabsf(weight[k][i]);
      }
    }
    if (finite && !(sum <= kFinite)) {
      make_finite();
    }
  }

  __device__ __forceinline__ ConvSums start() const {
    ConvSums s;
#pragma unroll
    for (int k = 0; k < kMaxTaps - 1; ++k) {
#pragma unroll
      for (int i = 0; i < kConvVector; ++i) {
        s.sum[k][i] = bias[i];
      }
    }
    return s;
  }

  // One row of inputs; p[i] becomes its output. Each output is bias, oldest input, ..., newest input, added
  // in this order. Taps that do not exist are skipped: 0 * inf would be NaN.
  __device__ __forceinline__ void feed(ConvSums& s, const float (&x)[kConvVector],
                                       float (&p)[kConvVector]) const {
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      p[i] = fmaf(weight[3][i], x[i], s.sum[0][i]);
      s.sum[0][i] = fmaf(weight[2][i], x[i], s.sum[1][i]);
      s.sum[1][i] = kFast || taps > 2 ? fmaf(weight[1][i], x[i], s.sum[2][i]) : s.sum[2][i];
      s.sum[2][i] = kFast || taps > 3 ? fmaf(weight[0][i], x[i], bias[i]) : bias[i];
    }
  }

  // kStraight: the code of x is known to have no knee; the values are the same.
  template <bool kStraight>
  __device__ __forceinline__ void values(const Raw<T, kConvVector>& raw, float (&x)[kConvVector]) const {
    if constexpr (sizeof(T) == 1) {
#pragma unroll
      for (int i = 0; i < kConvVector; ++i) {
        const float biased = biased_code(raw.word[i / 4], i % 4);
        x[i] = kStraight ? biased - pieces.origin : pieces.value(biased);
      }
    } else {
      unpack(raw, x);
    }
  }

 private:
  static constexpr float kFinite = 0x1p90f;

  __device__ __forceinline__ void load(const ConvParameters& p, int64_t channel, int valid,
                                       WeightExchange* exchange) {
    if constexpr (kFast) {
      // A thread's weights are 128 bytes, so that a load of its own would touch 32 lines a warp. In the j-th
      // load the warp reads those of threads 4 j to 4 j + 3 instead.
      const unsigned lane = threadIdx.x % 32, vector = static_cast<unsigned>(channel / kConvVector);
      const float4* from = reinterpret_cast<const float4*>(p.weight);
      float4 other[kConvVector];
#pragma unroll
      for (int j = 0; j < kConvVector; ++j) {
        const unsigned owner = __shfl_sync(0xffffffffu, vector, 4 * j + lane / kConvVector);
        other[j] = from[static_cast<int64_t>(owner) * kConvVector + lane % kConvVector];
      }
#pragma unroll
      for (int j = 0; j < kConvVector; ++j) {
        exchange->slot[36 * j + lane + lane / kConvVector] = other[j];
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kConvVector; ++i) {
        const float4 four = exchange->slot[lane * (kConvVector + 1) + i];
        weight[0][i] = four.x, weight[1][i] = four.y, weight[2][i] = four.z, weight[3][i] = four.w;
        bias[i] = 0.0f;
      }
      if (p.bias) {
        unpack(load_raw<float, kConvVector>(p.bias + channel, true, kConvVector), bias);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kConvVector; ++i) {
        bias[i] = i < valid && p.bias ? p.bias[channel + i] : 0.0f;
#pragma unroll
        for (int k = 0; k < kMaxTaps; ++k) {  // with fewer taps the first of four are missing
          const int tap = k - (kMaxTaps - taps);
          weight[k][i] = i < valid && tap >= 0 ? p.weight[(channel + i) * taps + tap] : 0.0f;
        }
      }
    }
  }

  __device__ __forceinline__ void make_finite() {
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      float sum = fabsf(bias[i]);
#pragma unroll
      for (int k = 0; k < kMaxTaps; ++k) {
        sum += fabsf(weight[k][i]);
      }
      const float limit = sum == sum ? kFinite : 0.0f;  // the minimum of NaN and 0 is 0
      bias[i] = fmaxf(fminf(bias[i], limit), -limit);
#pragma unroll
      for (int k = 0; k < kMaxTaps; ++k) {
        weight[k][i] = fmaxf(fminf(weight[k][i], limit), -limit);
      }
    }
  }
};

// By what SiLU(y) / -ln 2 is multiplied on its way, in the two forms in which it is applied.
struct SiluFactor {
  static constexpr float kLeast = 0x1p-62f;
  float paired, inverse;

  static __device__ __forceinline__ SiluFactor of(float factor) {
    return {factor * kLeast, reciprocal_approx(factor)};
  }
  // For SiLU itself.
  static __device__ __forceinline__ SiluFactor plain() { return {-kLn2 * kLeast, -kLog2e}; }
};

// factor * p / (1 + 2^p) as a product that is left to whoever wants to add to it.
struct SiluTerm {
  float numerator, reciprocal;
};

__device__ __forceinline__ SiluTerm silu_alone(float p, const SiluFactor& factor) {
  return {p, reciprocal_approx(fmaf(exp2_approx(p), factor.inverse, factor.inverse))};
}

// Of two channels a and b, p_a d_b / (d_a d_b) needs one reciprocal for both. Their denominators are kept in
// [2^-62, 1] by a saturating addition, so that neither the product nor its reciprocal leaves the range of
// fp32: 1 + 2^p counts as 2^62 beyond it, where SiLU is 2^-56 at most. A NaN would reach the neighbour.
__device__ __forceinline__ SiluTerm silu_paired(float p, float other, const SiluFactor& factor) {
  const float own = fma_saturated(exp2_approx(p), SiluFactor::kLeast, SiluFactor::kLeast);
  const float theirs = fma_saturated(exp2_approx(other), SiluFactor::kLeast, SiluFactor::kLeast);
  return {p * theirs, reciprocal_approx(own * theirs) * factor.paired};
}

// All eight channels; kPaired is for inputs that have no NaN.
template <bool kPaired, class Result>
__device__ __forceinline__ void silu_terms(const float (&p)[kConvVector], const Result& result,
                                           SiluTerm (&term)[kConvVector]) {
#pragma unroll
  for (int i = 0; i < kConvVector; ++i) {
    term[i] = kPaired && i < kPairedChannels ? silu_paired(p[i], p[i ^ 1], result.factor(i))
                                             : silu_alone(p[i], result.factor(i));
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
  return {floats(x_code),
          floats(weight),
          floats(bias),
          view_of(code),
          static_cast<int>(weight.size(1)),
          channels,
          is_aligned(weight, 16) && is_aligned(bias, 16)};
}

inline void check_state(const Argument& argument, const Tensor& state, const Tensor& x, int64_t taps,
                        int64_t channels) {
  check_shape(argument, state, {x.size(0), taps - 1, channels});
  check_type(argument, state, x.scalar_type());
  check_same_device(argument, state, x);
  check_last_stride(argument, state);
}

}  // namespace dualscale

// The middle of a layer's step: x_proj, dt_proj, the states. Blocks add their channels' parts of x_proj's
// sums, and each then does all of what follows for its own channels.
#pragma once

#include "layer_exchange.cuh"
#include "ssm.cuh"

namespace dualscale {

#if defined(DUALSCALE_BULK)

// A half as a multiple of 2^-24, which every finite one is.
__device__ __forceinline__ long long fixed_point(__half x) {
  const int bits = __half_as_ushort(x), exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const long long size = exponent == 0 ? mantissa : static_cast<long long>(1024 + mantissa) << (exponent - 1);
  return bits >> 15 != 0 ? -size : size;
}
constexpr float kFixedUnit = 1.0f / (1 << 24);

template <int kBits, bool kKnee>
class LayerState {
 public:
  using Sum = std::conditional_t<kBits == 8, int, float>;
  using SumOfRow = Sum;  // of weights, as they lie in memory

  __device__ __forceinline__ LayerState(const LayerContext& context, LayerExchange& exchange)
      : k(context), a(context.a), s(context.s), exchange_(exchange) {}

  // Begins to bring near what no kernel of the step writes, and the states.
  __device__ __forceinline__ void start() const {
    if (has_row()) {
      prefetch_sector(mix_row());
      prefetch_sector(mix_row() + a.own * kBits / 8 - 1);
    }
    for (int i = 0; i < kRounds; ++i) {
      if (updates(i)) {
        prefetch_sector(state_at(i));
      }
    }
  }

  // This thread's row of x_proj, of this block's channels, and its four states of a channel, after
  // await_earlier(); for later.
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < kMixWords; ++i) {
      mix_[i] = 0;
    }
    if (has_row()) {
      load_mix();
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (updates(i)) {
        unpack(load_raw<float, 4>(state_at(i), true, 4), h_[i]);
      }
    }
  }

  // This block's part of x_proj's sums.
  __device__ __forceinline__ void send() {
    if (!has_row()) {
      return;
    }
    const int row = threadIdx.x;  // what receive() needs comes while it waits
    fetched_ = {kBits == 8 ? static_cast<const float*>(a.mix_scale)[row] : 1.0f, 0.0f,
                static_cast<const SumOfRow*>(a.mix_sum)[row]};
    for (int b = 0; b < a.batch; ++b) {
      if constexpr (kBits == 8) {
        const int plain = part_of(s.u[b]);
        exchange_.add(b, 0, threadIdx.x,
                      kKnee ? LayerExchange::both(plain, part_of(s.over[b])) : LayerExchange::biased(plain));
      } else {
        send_part(b, 0, s.u[b]);
        if constexpr (kKnee) {
          send_part(b, 2, s.over[b]);
        }
      }
    }
  }

  // Codes of dt, and values of B and C.
  __device__ __forceinline__ void receive() {
    if (has_row()) {
#pragma unroll 1
      for (int first = 0; first < a.batch; first += 2) {
        long long total[2][kKinds];
        exchange_.template await_sums<2, kKinds>(first, threadIdx.x, total);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (first + i < a.batch) {
            keep(first + i, value_of(total[i]));
          }
        }
      }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      exchange_.end();
    }
    __syncthreads();
  }

  // dt_proj and one step of the states; sends y.
  __device__ __forceinline__ void update() {
    float rate[4] = {};
    if (owned() < a.own) {
      unpack(load_raw<float, 4>(k.parameter(kRate) + kLayerStates * owned() + 4 * part(), true, 4), rate);
    }
#pragma unroll 1
    for (int i = 0; sequence(i) < a.batch; ++i) {  // the same for whole warps
      const int b = sequence(i);
      const float sum_of_delta = delta_sum(b);
      const int c = min(owned(), a.own - 1);
      const Knee code = Knee::load(k.parameter(kDeltaCode));
      const float coded = code.decode(code.encode(sum_of_delta));
      const float delta = softplus(coded + (a.has_delta_bias ? k.parameter(kDeltaBias)[c] : 0.0f));
      const float u = Knee::load(k.parameter(kUCode)).decode(static_cast<float>(s.u[b][c]));
      const float4 B = *reinterpret_cast<const float4*>(&s.B[b][4 * part()]);
      const float4 C = *reinterpret_cast<const float4*>(&s.C[b][4 * part()]);
      const float in[4] = {B.x, B.y, B.z, B.w}, out[4] = {C.x, C.y, C.z, C.w};
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        h_[0][j] = fmaf(exp2_approx(kLog2e * delta * rate[j]), h_[0][j], delta * u * in[j]);
        sum = fmaf(h_[0][j], out[j], sum);
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      float y = a.has_skip ? fmaf(k.parameter(kSkip)[c], u, sum) : sum;
      y *= s.gate[b][c];
      const uint32_t half = __half_as_ushort(__float2half_rn(y));
      const uint32_t next = __shfl_down_sync(0xffffffffu, half, 4);  // the next channel's
      if (owned() < a.own) {
        if (k.lane % 8 == 0) {
          exchange_.send_values(b, k.first_channel() + c, half | next << 16);
        }
        store_raw(state_at(i), pack<float, 4>(h_[0]), true, 4);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        h_[0][j] = h_[kRounds - 1][j];
      }
    }
    __syncthreads();
  }

 private:
  static constexpr int kMixWords = kMostOwn * kBits / 32;
  static constexpr int kKinds = kBits == 8 ? 1 : kKnee ? 4 : 2;  // words of the sums of a row
  static constexpr int kHalf = kLayerThreads / 2;                // threads of a sequence: four a channel
  static constexpr int kRounds = kLayerBatch / 2;
  static_assert(kHalf % 32 == 0 && kHalf >= 4 * kMostOwn,
                "half of the block holds a sequence, in whole warps");
  static_assert(kRounds == 2, "the second round's states follow the first's");
  static_assert(kSumKinds >= 4, "two words of two sums");

  __device__ __forceinline__ bool has_row() const { return static_cast<int>(threadIdx.x) < a.mix_rows(); }
  __device__ __forceinline__ int owned() const { return threadIdx.x % kHalf / 4; }
  __device__ __forceinline__ int part() const { return threadIdx.x % 4; }
  __device__ __forceinline__ int sequence(int round) const { return threadIdx.x / kHalf + 2 * round; }
  __device__ __forceinline__ bool updates(int round) const {
    return owned() < a.own && sequence(round) < a.batch;
  }
  __device__ __forceinline__ float* state_at(int round) const {
    return a.state + sequence(round) * a.state_stride +
           static_cast<int64_t>(k.first_channel() + owned()) * kLayerStates + 4 * part();
  }
  __device__ __forceinline__ const uint8_t* mix_row() const {
    return a.mix_weight + (static_cast<int64_t>(threadIdx.x) * a.channels + k.first_channel()) * kBits / 8;
  }

  __device__ __forceinline__ void load_mix() {
#pragma unroll
    for (int i = 0; i < kMostOwn / kChannelStep; ++i) {
      if (kChannelStep * i < a.own) {
        if constexpr (kBits == 8) {
          const uint2 two = *reinterpret_cast<const uint2*>(mix_row() + 8 * i);
          mix_[2 * i] = two.x;
          mix_[2 * i + 1] = two.y;
        } else {
          mix_[i] = *reinterpret_cast<const uint32_t*>(mix_row() + 4 * i);
        }
      }
    }
    if constexpr (kBits == 4) {
      const __half* const scales = static_cast<const __half*>(a.mix_scale) + threadIdx.x * a.mix.count;
      scale_[0] = scales[group_of(0)];
      scale_[1] = scales[group_of(a.own - 1)];
    }
  }

  // Of a channel of this block; its channels are of two groups at most.
  __device__ __forceinline__ int group_of(int own) const { return (k.first_channel() + own) >> a.mix.shift; }

  // Eight four-bit weights, each sixteen times itself, times eight codes.
  static __device__ __forceinline__ int nibbles(uint32_t weights, uint32_t low, uint32_t high, int sum) {
    sum = __dp4a(static_cast<int>(weights << 4 & 0xf0f0f0f0u), static_cast<int>(low), sum);
    return __dp4a(static_cast<int>(weights & 0xf0f0f0f0u), static_cast<int>(high), sum);
  }

  static __device__ __forceinline__ void load_own(const int8_t* codes, uint32_t (&word)[kMostOwn / 4]) {
#pragma unroll
    for (int i = 0; i < kMostOwn / 8; ++i) {
      const uint2 two = reinterpret_cast<const uint2*>(codes)[i];
      word[2 * i] = two.x;
      word[2 * i + 1] = two.y;
    }
  }

  // Of weights of eight bits; codes beyond the block's meet weights of zero.
  __device__ __forceinline__ int part_of(const int8_t* codes) const {
    uint32_t word[kMostOwn / 4];
    load_own(codes, word);
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kMostOwn / 4; ++i) {
      sum = __dp4a(static_cast<int>(mix_[i]), static_cast<int>(word[i]), sum);
    }
    return sum;
  }

  // Of four bits, in words `kind` and the next one.
  __device__ __forceinline__ void send_part(int b, int kind, const int8_t* codes) const {
    if constexpr (kBits == 4) {
      uint32_t word[kMostOwn / 4];
      load_own(codes, word);
      int sum[2] = {};
#pragma unroll
      for (int i = 0; i < kMixWords; ++i) {
        const bool second = kChannelStep * i < a.own && group_of(kChannelStep * i) != group_of(0);
        const int both = nibbles(mix_[i], word[2 * i], word[2 * i + 1], 0) / 16;  // no remainder
        sum[0] += second ? 0 : both;
        sum[1] += second ? both : 0;
      }
      const long long total = sum[0] * fixed_point(scale_[0]) + sum[1] * fixed_point(scale_[1]);
      exchange_.add(b, kind, threadIdx.x, static_cast<uint32_t>(total));
      exchange_.add(b, kind + 1, threadIdx.x, LayerExchange::biased(static_cast<int>(total >> 32)));
    }
  }

  // What a column of x_proj is before it is encoded.
  __device__ __forceinline__ float value_of(const long long (&total)[kKinds]) const {
    Epilogue e{};
    e.x_code = k.parameter(kUCode);
    e.knee = kKnee;
    const auto column = Column<Sum>::of(e, fetched_);
    if constexpr (kBits == 8) {
      const int plain = kKnee ? exchange_.first_of(total[0]) : static_cast<int>(exchange_.unbiased(total[0]));
      return finish<kKnee>(e, column, plain, kKnee ? exchange_.second_of(total[0]) : 0, 0);
    } else {
      const float plain = float_of(total[0], total[1]);
      float sum = plain;
      if constexpr (kKnee) {
        const KneeTerm term = KneeTerm::of(e.x_code);
        const float over = float_of(total[2], total[3]);
        sum = fmaf(term.gain, over, term.turned ? fmaf(term.gain, plain, plain) : plain);
      }
      return finish<false>(e, column, sum, 0.0f, 0);
    }
  }

  // The sums of low and high words: a number of 63 bits, rounded once.
  __device__ __forceinline__ float float_of(long long low, long long high) const {
    return static_cast<float>((exchange_.unbiased(high) << 32) + low) * kFixedUnit;
  }

  // A column of x_proj of a sequence.
  __device__ __forceinline__ void keep(int b, float y) const {
    const int n = threadIdx.x;
    const LayerPiece piece = n < a.ranks ? kDtCode : n < a.ranks + kLayerStates ? kBCode : kCCode;
    const float code = Knee::load(k.parameter(piece)).encode(y);
    if (n < a.ranks) {
      s.dt[b][n] = static_cast<int8_t>(__float2int_rn(code));
    } else {
      float* const to = piece == kBCode ? s.B[b] : s.C[b];
      to[(n - a.ranks) % kLayerStates] = Scaled::of(k.parameter(piece)).value(kByteBias + code);
    }
  }

  // dt_proj of this thread's channel; four lanes share it, eight codes at a time. Its weights may have eight
  // bits where the others have four: a model's rank is seldom a whole number of groups.
  __device__ __forceinline__ float delta_sum(int b) const {
    if constexpr (kBits == 4) {
      if (a.delta.count > 0) {
        return packed_delta_sum(b);
      }
    }
    const int c = min(owned(), a.own - 1);
    const uint8_t* const row = k.template parameter<uint8_t>(kDeltaWeight) + c * a.ranks;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kMostRanks / 32; ++i) {
      const int unit = part() + 4 * i;
      if (8 * unit < a.ranks) {
        const uint2 codes = *reinterpret_cast<const uint2*>(s.dt[b] + 8 * unit);
        const uint2 w = *reinterpret_cast<const uint2*>(row + 8 * unit);
        sum = __dp4a(static_cast<int>(w.x), static_cast<int>(codes.x), sum);
        sum = __dp4a(static_cast<int>(w.y), static_cast<int>(codes.y), sum);
      }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    Epilogue e = delta_end();
    e.weight_scale = k.parameter(kDeltaScale);
    return finish<false>(e, Column<int>::of(e, Column<int>::fetch(e, c)), sum, 0, b);
  }

  __device__ __forceinline__ Epilogue delta_end() const {
    Epilogue e{};
    e.x_code = k.parameter(kDtCode);
    e.weight_sum = k.parameter(kDeltaSum);
    e.columns = a.own;
    return e;
  }

  __device__ __forceinline__ float packed_delta_sum(int b) const {
    const int c = min(owned(), a.own - 1);
    const uint8_t* const row = k.template parameter<uint8_t>(kDeltaWeight) + c * a.ranks / 2;
    int sum[2] = {};
#pragma unroll
    for (int i = 0; i < kMostRanks / 32; ++i) {
      const int unit = part() + 4 * i;
      if (8 * unit < a.ranks) {
        const uint2 codes = *reinterpret_cast<const uint2*>(s.dt[b] + 8 * unit);
        const int both = nibbles(*reinterpret_cast<const uint32_t*>(row + 4 * unit), codes.x, codes.y, 0);
        const bool second = 8 * unit >> a.delta.shift != 0;
        sum[0] += second ? 0 : both;
        sum[1] += second ? both : 0;
      }
    }
#pragma unroll
    for (int distance = 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], distance);
      }
    }
    const Epilogue e = delta_end();
    const __half* const scale = k.template parameter<__half>(kDeltaScale) + c * a.delta.count;
    float total = __half2float(scale[0]) * static_cast<float>(sum[0]);
    if (a.delta.count > 1) {
      total = __fadd_rn(total, __fmul_rn(__half2float(scale[1]), static_cast<float>(sum[1])));
    }
    return finish<false>(e, Column<float>::of(e, Column<float>::fetch(e, c)), total * (1.0f / 16), 0.0f, b);
  }

  const LayerContext& k;
  const LayerStep& a;
  LayerShared& s;
  LayerExchange& exchange_;
  uint32_t mix_[kMixWords];
  typename Column<Sum>::Fetched fetched_;
  __half scale_[2];
  float h_[kRounds][4];
};

#endif

}  // namespace dualscale

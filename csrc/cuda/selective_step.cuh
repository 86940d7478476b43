// All of a Mamba-1 mixer between its two large projections, for one token of a few sequences: convolution,
// x_proj, dt_proj, the state's update, gate, Hadamard transform, encode. Sixteen blocks that form a cluster
// share a sequence and meet twice.
//
// Alone, each of these is over in less time than a launch takes. Here a block owns 1/16 of the channels: of
// each of the m segments of the Hadamard transform the columns [rank J, (rank + 1) J). So it needs no channel
// of another block until x_proj's sums, of which every block makes its channels' part, and again for the last
// four levels of the transform. Its weights come to shared memory while the projection before still runs.
#pragma once

#include <cooperative_groups.h>

#include "ahead.cuh"
#include "bulk.cuh"
#include "conv.cuh"
#include "linear.cuh"
#include "mma.cuh"
#include "ssm.cuh"

namespace dualscale {

constexpr int kStepBlocks = 16;    // of a cluster
constexpr int kStepThreads = 512;  // one a channel, or more
constexpr int kStepStates = 16;
constexpr int kStepVector = 16;  // codes, or bytes, that are taken at once

// A product with quantized weights inside the step.
struct StepProduct {
  const uint8_t* weight;
  const __half* group_scale;  // with four bits
  int depth, groups, group_shift;
  Epilogue end;
};

struct SelectiveStep {
  ConvParameters conv;
  const int8_t* x;
  const int8_t* z;
  int64_t x_stride, z_stride;
  int8_t* conv_state;
  int64_t conv_batch_stride, conv_row_stride;
  StepProduct mix, delta;  // x_proj, dt_proj
  const float* z_code;
  float* state;
  int64_t state_stride;
  const float* A;
  const float* D;
  const float* delta_bias;
  const float* base;
  CodeView code;
  Kind kind;  // that y has before the transform
  int8_t* out;
  int channels, segments, log2_segment, rank_columns, ranks;  // the rank of delta
  float factor;                                               // 1 / sqrt(channels)
  bool reads_ahead;
};

// Where everything lies in shared memory, in bytes.
struct StepLayout {
  int own;  // channels of a block
  int mix_stride, delta_stride;
  int delta_at, sums_at, over_at, small_at, base_at, size;
};

inline int odd_pieces(int bytes) { return ((bytes + kStepVector - 1) / kStepVector | 1) * kStepVector; }

// Small arrays behind the sums: what the phases hand on.
struct StepShared {
  float B[kStepStates], C[kStepStates];
  float y[kStepThreads];
  alignas(16) int8_t u[kStepThreads];
  alignas(16) int8_t over[kStepThreads];  // beyond the knee
  alignas(16) int8_t dt[kStepThreads];
  alignas(16) uint32_t mine[2][kStepThreads];    // this block's sums, of x_proj
  float columns[kStepBlocks][kStepThreads / kStepBlocks];  // for the last levels of the transform
};

#if defined(DUALSCALE_BULK)

namespace groups = cooperative_groups;

template <int kMixBits, int kDeltaBits, bool kKnee>
class StepBlock {
 public:
  using MixSum = std::conditional_t<kMixBits == 8, int, float>;
  using DeltaSum = std::conditional_t<kDeltaBits == 8, int, float>;

  __device__ StepBlock(const SelectiveStep& step, const StepLayout& layout, uint8_t* memory)
      : a(step),
        l(layout),
        memory_(memory),
        s(*reinterpret_cast<StepShared*>(memory + layout.small_at)),
        batch(blockIdx.x / kStepBlocks),
        rank(static_cast<int>(groups::this_cluster().block_rank())),
        exists(static_cast<int>(threadIdx.x) < layout.own),
        channel(channel_of(min(static_cast<int>(threadIdx.x), layout.own - 1))) {}

  // Begins to fetch what the projection before does not write.
  __device__ __forceinline__ void start() {
    copy_mix_weights();
    copy_delta_weights();
    for (int i = threadIdx.x; i < a.segments * a.segments; i += kStepThreads) {
      reinterpret_cast<float*>(memory_ + l.base_at)[i] = a.base[i];
    }
    if (exists) {
      for (int n = 0; n < kStepStates; n += kSectorFloats) {
        prefetch_sector(state_at() + n);
        prefetch_sector(a.A + int64_t{channel} * kStepStates + n);
      }
      skip = a.D ? a.D[channel] : 0.0f;
      bias = a.delta_bias ? a.delta_bias[channel] : 0.0f;
      delta_column = Column<DeltaSum>::of(a.delta.end, Column<DeltaSum>::fetch(a.delta.end, channel));
      if constexpr (kDeltaBits == 4) {
        for (int g = 0; g < min(a.delta.groups, kDeltaGroups); ++g) {
          delta_scale[g] = __half2float(a.delta.group_scale[int64_t{channel} * a.delta.groups + g]);
        }
      }
    }
  }

  // u of this block's channels, eight a thread; the window of inputs is shifted in place.
  template <class Convolve, class Result>
  __device__ __forceinline__ void convolve(const Convolve& conv, const Result& result) {
    const int first = kConvVector * threadIdx.x;
    if (first < l.own) {
      const int from = channel_of(first);
      int8_t* const state = a.conv_state + batch * a.conv_batch_stride + from;
      float window[kMaxTaps][kConvVector] = {};
      Raw<int8_t, kConvVector> raw[kMaxTaps];
#pragma unroll
      for (int k = 0; k < kMaxTaps; ++k) {
        const int tap = k - (kMaxTaps - a.conv.taps);
        if (k == kMaxTaps - 1) {
          raw[k] = load_raw<int8_t, kConvVector>(a.x + batch * a.x_stride + from, true, kConvVector);
        } else if (tap >= 0) {
          raw[k] = load_raw<int8_t, kConvVector>(state + tap * a.conv_row_stride, true, kConvVector);
        }
        if (tap >= 0) {
          conv.values(raw[k], window[k]);
        }
      }
#pragma unroll
      for (int k = 1; k < kMaxTaps; ++k) {
        const int row = k - 1 - (kMaxTaps - a.conv.taps);
        if (row >= 0) {
          store_raw(state + row * a.conv_row_stride, raw[k], true, kConvVector);
        }
      }
      float y[kConvVector];
#pragma unroll
      for (int i = 0; i < kConvVector; ++i) {
        y[i] = conv.silu_over_ln2(i, window[0][i], window[1][i], window[2][i], window[3][i]);
      }
      Raw<int8_t, kConvVector> codes = result.result(y);
      store_raw(s.u + first, codes, true, kConvVector);
      if constexpr (kKnee) {
        const KneeTerm term = KneeTerm::of(a.mix.end.x_code);
        codes.word[0] = term.excess(codes.word[0]);
        codes.word[1] = term.excess(codes.word[1]);
        store_raw(s.over + first, codes, true, kConvVector);
      }
    }
  }

  // x_proj: every block's part of all columns goes to every block, which adds them in the same order.
  __device__ __forceinline__ void mix() {
    const int columns = static_cast<int>(a.mix.end.columns);
    const bool is_column = static_cast<int>(threadIdx.x) < columns;
    const auto fetched = Column<MixSum>::fetch(a.mix.end, min(static_cast<int>(threadIdx.x), columns - 1));
    const Knee knee = output_knee(a.mix.end, threadIdx.x);
    // Two threads a column take sixteen codes, or eight, in turn.
    for (int n = threadIdx.x / 2; n < ceil_to(columns, kStepThreads / 2); n += kStepThreads / 2) {
      MixSum sum = 0, beyond = 0;
      if (n < columns) {
        mix_column(n, sum, beyond);
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      beyond += __shfl_xor_sync(0xffffffffu, beyond, 1);
      if (n < columns && threadIdx.x % 2 == 0) {
        memcpy(&s.mine[0][n], &sum, 4);
        memcpy(&s.mine[1][n], &beyond, 4);
      }
    }
    __syncthreads();
    groups::this_cluster().barrier_wait();  // every block has begun
    send_sums(columns);
    groups::this_cluster().sync();
    if (is_column) {
      MixSum total[2] = {};
#pragma unroll
      for (int from = 0; from < kStepBlocks; ++from) {
        total[0] += sums_of<MixSum>(l.sums_at)[from * columns + threadIdx.x];
        if constexpr (kOver) {
          total[1] += sums_of<MixSum>(l.over_at)[from * columns + threadIdx.x];
        }
      }
      if constexpr (kMixBits == 4) {
        total[0] *= kNibbleUnit;
      }
      const Column<MixSum> column = Column<MixSum>::of(a.mix.end, fetched);
      keep(threadIdx.x, knee, knee.encode(finish<kOver>(a.mix.end, column, total[0], total[1], batch)));
    }
    __syncthreads();
  }

  // dt_proj and one step of the state, a channel a thread.
  __device__ __forceinline__ void update() {
    float y = 0.0f;
    if (exists) {
      const Knee code = output_knee(a.delta.end, channel);
      const float coded =
          code.decode(code.encode(finish<false>(a.delta.end, delta_column, delta_sum(), DeltaSum(0), batch)));
      const float delta = softplus(coded + bias);
      const float u = Knee::load(a.mix.end.x_code).decode(s.u[threadIdx.x]);
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kStepStates; ++n) {
        h[n] = fmaf(exp2_approx(kLog2e * delta * rate[n]), h[n], delta * u * s.B[n]);
        sum = fmaf(h[n], s.C[n], sum);
      }
      store_raw(state_at(), pack<float, kStepStates>(h), true, kStepStates);
      y = a.D ? fmaf(skip, u, sum) : sum;
      y *= silu(Knee::load(a.z_code).decode(gate));
      y = a.kind == Kind::kHalf       ? to_float(from_float<__half>(y))
          : a.kind == Kind::kBFloat16 ? to_float(from_float<__nv_bfloat16>(y))
                                      : y;
    }
    s.y[threadIdx.x] = y;
  }

  // What the update needs, on its way while blocks wait for each other.
  __device__ __forceinline__ void load_state() {
    if (exists) {
      gate = static_cast<float>(a.z[batch * a.z_stride + channel]);
      unpack(load_raw<float, kStepStates>(state_at(), true, kStepStates), h);
      unpack(load_raw<float, kStepStates>(a.A + int64_t{channel} * kStepStates, true, kStepStates), rate);
    }
  }

  // The base, this block's columns of each segment, and, of columns that all blocks hand over, the rest.
  __device__ __forceinline__ void transform() {
    const float* const base = reinterpret_cast<const float*>(memory_ + l.base_at);
    const int columns = a.rank_columns, segment = threadIdx.x / columns, column = threadIdx.x % columns;
    __syncthreads();
    float v = 0.0f;
    if (exists) {
      for (int from = 0; from < a.segments; ++from) {
        v = fmaf(base[segment * a.segments + from], s.y[from * columns + column], v);
      }
    }
    int width = 1;
    for (; width < min(columns, 32); width *= 2) {
      v = fmaf(v, (column & width) != 0 ? -1.0f : 1.0f, __shfl_xor_sync(0xffffffffu, v, width));
    }
    for (; width < columns; width *= 2) {
      __syncthreads();
      s.y[threadIdx.x] = v;
      __syncthreads();
      v = fmaf(v, (column & width) != 0 ? -1.0f : 1.0f, s.y[threadIdx.x ^ width]);
    }
    auto cluster = groups::this_cluster();
    if (exists) {
      float* const to = cluster.map_shared_rank(&s.columns[0][0], threadIdx.x % kStepBlocks);
      to[rank * (kStepThreads / kStepBlocks) + threadIdx.x / kStepBlocks] = v;
    }
    cluster.sync();
    const int part = threadIdx.x % kStepBlocks, place = threadIdx.x / kStepBlocks;
    v = exists ? s.columns[part][place] : 0.0f;
#pragma unroll
    for (int distance = 1; distance < kStepBlocks; distance *= 2) {
      v = fmaf(v, (part & distance) != 0 ? -1.0f : 1.0f, __shfl_xor_sync(0xffffffffu, v, distance));
    }
    if (exists) {
      const int own = place * kStepBlocks + rank;
      const int n = (own / columns << a.log2_segment) + part * columns + own % columns;
      const Knee code = Knee::load(a.code.rows + (a.code.per_channel ? n * kKneeWidth : 0));
      a.out[batch * a.channels + n] = static_cast<int8_t>(__float2int_rn(code.encode(a.factor * v)));
    }
  }

  // The channel that stands at a place of this block's.
  __device__ __forceinline__ int channel_of(int own) const {
    return (own / a.rank_columns << a.log2_segment) + rank * a.rank_columns + own % a.rank_columns;
  }

 private:
  static constexpr bool kOver = kKnee && kMixBits == 8;  // sums beyond the knee are added at the end
  static constexpr int kDeltaGroups = 8;
  static constexpr int kSectorFloats = 8;
  static constexpr float kNibbleUnit = 1.0f / 16;  // a four-bit code lies in the high half of a byte

  static __device__ __forceinline__ int ceil_to(int n, int multiple) {
    return (n + multiple - 1) / multiple * multiple;
  }

  template <class Sum>
  __device__ __forceinline__ const Sum* sums_of(int at) const {
    return reinterpret_cast<const Sum*>(memory_ + at);
  }

  __device__ __forceinline__ float* state_at() const {
    return a.state + batch * a.state_stride + int64_t{channel} * kStepStates;
  }

  // Pieces of at most sixteen bytes of each row of x_proj: a segment's columns of this block, one after the
  // other.
  __device__ __forceinline__ void copy_mix_weights() const {
    const int piece = min(a.rank_columns * kMixBits / 8, kStepVector);
    const int pieces = l.own * kMixBits / 8 / piece, codes = piece * 8 / kMixBits;
    const uint32_t to = shared_address(memory_);
    for (int i = threadIdx.x; i < static_cast<int>(a.mix.end.columns) * pieces; i += kStepThreads) {
      const int row = i / pieces, at = i % pieces;
      const uint8_t* const from =
          a.mix.weight + (int64_t{row} * a.channels + channel_of(at * codes)) * kMixBits / 8;
      copy(to + row * l.mix_stride + at * piece, from, piece);
    }
  }

  __device__ __forceinline__ void copy_delta_weights() const {
    const int bytes = a.delta.depth * kDeltaBits / 8, piece = bytes % kStepVector == 0 ? kStepVector : 8;
    const int pieces = bytes / piece;
    const uint32_t to = shared_address(memory_ + l.delta_at);
    for (int i = threadIdx.x; i < l.own * pieces; i += kStepThreads) {
      const int row = i / pieces, at = i % pieces * piece;
      copy(to + row * l.delta_stride + at, a.delta.weight + int64_t{channel_of(row)} * bytes + at, piece);
    }
  }

  static __device__ __forceinline__ void copy(uint32_t to, const uint8_t* from, int bytes) {
    if (bytes == 16) {
      copy_async<16>(to, from);
    } else if (bytes == 8) {
      copy_async<8>(to, from);
    } else {
      copy_async<4>(to, from);
    }
  }

  // Half of this block's part of a column of x_proj.
  __device__ __forceinline__ void mix_column(int n, MixSum& sum, MixSum& beyond) const {
    const uint8_t* const row = memory_ + n * l.mix_stride;
    if constexpr (kMixBits == 8) {
      for (int k = threadIdx.x % 2 * kStepVector; k < l.own; k += 2 * kStepVector) {
        const uint4 w = *reinterpret_cast<const uint4*>(row + k);
        const uint4 q = *reinterpret_cast<const uint4*>(s.u + k);
        sum = __dp4a(static_cast<int>(w.x), static_cast<int>(q.x), sum);
        sum = __dp4a(static_cast<int>(w.y), static_cast<int>(q.y), sum);
        sum = __dp4a(static_cast<int>(w.z), static_cast<int>(q.z), sum);
        sum = __dp4a(static_cast<int>(w.w), static_cast<int>(q.w), sum);
        if constexpr (kKnee) {
          const uint4 o = *reinterpret_cast<const uint4*>(s.over + k);
          beyond = __dp4a(static_cast<int>(w.x), static_cast<int>(o.x), beyond);
          beyond = __dp4a(static_cast<int>(w.y), static_cast<int>(o.y), beyond);
          beyond = __dp4a(static_cast<int>(w.z), static_cast<int>(o.z), beyond);
          beyond = __dp4a(static_cast<int>(w.w), static_cast<int>(o.w), beyond);
        }
      }
    } else {
      const KneeTerm term = kKnee ? KneeTerm::of(a.mix.end.x_code) : KneeTerm{};
      for (int k = threadIdx.x % 2 * 8; k < l.own; k += 16) {
        const uint2 q = *reinterpret_cast<const uint2*>(s.u + k);
        const uint32_t w = *reinterpret_cast<const uint32_t*>(row + k / 2);
        const int part = nibbles(w, q, 0);
        const int group = channel_of(k) >> a.mix.group_shift;
        const float scale = __half2float(a.mix.group_scale[n * a.mix.groups + group]);
        float value = static_cast<float>(part);
        if constexpr (kKnee) {
          value = term.joined(part, nibbles(w, *reinterpret_cast<const uint2*>(s.over + k), 0));
        }
        sum = fmaf(scale, value, sum);
      }
    }
  }

  // Eight four-bit weights, each sixteen times itself, times eight codes.
  static __device__ __forceinline__ int nibbles(uint32_t weights, uint2 codes, int sum) {
    sum = __dp4a(static_cast<int>(weights << 4 & 0xf0f0f0f0u), static_cast<int>(codes.x), sum);
    return __dp4a(static_cast<int>(weights & 0xf0f0f0f0u), static_cast<int>(codes.y), sum);
  }

  __device__ __forceinline__ void send_sums(int columns) const {
    auto cluster = groups::this_cluster();
    const int pieces = columns / 4;
    for (int i = threadIdx.x; i < pieces * kStepBlocks; i += kStepThreads) {
      const int to = i / pieces, at = i % pieces;
      auto* const sums = cluster.map_shared_rank(reinterpret_cast<uint4*>(memory_ + l.sums_at), to);
      sums[rank * pieces + at] = reinterpret_cast<const uint4*>(s.mine[0])[at];
      if constexpr (kOver) {
        auto* const over = cluster.map_shared_rank(reinterpret_cast<uint4*>(memory_ + l.over_at), to);
        over[rank * pieces + at] = reinterpret_cast<const uint4*>(s.mine[1])[at];
      }
    }
  }

  // A column of x_proj: a code of dt, or the value of B or C.
  __device__ __forceinline__ void keep(int n, const Knee& knee, float code) {
    if (n < a.ranks) {
      s.dt[n] = static_cast<int8_t>(__float2int_rn(code));
    } else if (n < a.ranks + kStepStates) {
      s.B[n - a.ranks] = knee.decode(code);
    } else {
      s.C[n - a.ranks - kStepStates] = knee.decode(code);
    }
  }

  __device__ __forceinline__ DeltaSum delta_sum() const {
    const uint8_t* const row = memory_ + l.delta_at + threadIdx.x * l.delta_stride;
    if constexpr (kDeltaBits == 8) {
      int sum = 0;
      for (int k = 0; k < a.ranks; k += kStepVector) {
        const uint4 w = *reinterpret_cast<const uint4*>(row + k);
        const uint4 q = *reinterpret_cast<const uint4*>(s.dt + k);
        sum = __dp4a(static_cast<int>(w.x), static_cast<int>(q.x), sum);
        sum = __dp4a(static_cast<int>(w.y), static_cast<int>(q.y), sum);
        sum = __dp4a(static_cast<int>(w.z), static_cast<int>(q.z), sum);
        sum = __dp4a(static_cast<int>(w.w), static_cast<int>(q.w), sum);
      }
      return sum;
    } else {
      float sum = 0.0f;
#pragma unroll
      for (int g = 0; g < kDeltaGroups; ++g) {
        int part = 0;
        for (int k = g << a.delta.group_shift; k < min(g + 1 << a.delta.group_shift, a.ranks); k += 8) {
          const uint2 q = *reinterpret_cast<const uint2*>(s.dt + k);
          part = nibbles(*reinterpret_cast<const uint32_t*>(row + k / 2), q, part);
        }
        sum = fmaf(g < a.delta.groups ? delta_scale[g] : 0.0f, static_cast<float>(part), sum);
      }
      return sum * kNibbleUnit;
    }
  }

  const SelectiveStep& a;
  const StepLayout& l;
  uint8_t* const memory_;
  StepShared& s;
  const int64_t batch;
  const int rank;
  const bool exists;  // whether this thread has a channel
  const int channel;
  float h[kStepStates], rate[kStepStates];
  float skip, bias, gate, delta_scale[kDeltaGroups];
  Column<DeltaSum> delta_column;
};

#endif

template <int kMixBits, int kDeltaBits, bool kKnee>
__global__ void __launch_bounds__(kStepThreads, 1)
    selective_token(const __grid_constant__ SelectiveStep a, const __grid_constant__ StepLayout layout) {
#if defined(DUALSCALE_BULK)
  extern __shared__ __align__(128) uint8_t memory[];
  groups::this_cluster().barrier_arrive();
  if (!a.reads_ahead) {
    await_earlier();
  }
  StepBlock<kMixBits, kDeltaBits, kKnee> block(a, layout, memory);
  block.start();
  const int first = block.channel_of(min(kConvVector * static_cast<int>(threadIdx.x), layout.own - kConvVector));
  const Convolution<int8_t, false> conv(a.conv, first, kConvVector, true);
  const KneeResult<1> result(a.conv.code, nullptr, first, kConvVector);
  if (a.reads_ahead) {
    await_earlier();
  }
  admit_later();
  block.convolve(conv, result);
  wait_for_copies();
  __syncthreads();
  block.load_state();
  block.mix();
  block.update();
  block.transform();
#endif
}

}  // namespace dualscale

// What a block of the scan of ssd_scan.cuh reads: where its inputs lie, how they are decoded, and the steps.
#pragma once

#include "ssd.cuh"
#include "ssd_tiles.cuh"

namespace dualscale {

constexpr int kHeadTile = 64;  // channels of a head that a block takes
constexpr int kWarpRows = 16;  // of the state, to one set of sums
constexpr int kSpan = 32;      // tokens between two updates of the state
constexpr int kSpans = kChunk / kSpan;

struct SsdScan {
  SsdCommon in;
  TileInput x, B, C;
  int head_blocks, tiles;  // blocks that share the heads of a group, the channels of a head
  StateView initial, last;
  void* y;
};

template <class T, int kStates, int kWarps, int kSlices>
struct SsdInputs {
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kHeads = kWarps * kSlices * kWarpRows / kHeadTile;
  using StateTile = Tile<T, kThreads, kStates>;
  using ChannelTile = Tile<T, kThreads, kHeads * kHeadTile>;
  static constexpr int kScoreStride = kSpan + 8;

  // Of one head, in one chunk; sums run from the beginning of each span.
  struct Steps {
    alignas(16) float sum[kChunk];    // of delta' A log2(e) up to and with the token
    alignas(16) float grow[kChunk];   // 2^sum
    alignas(16) float step[kChunk];   // delta', times what B's decoding left out
    alignas(16) T weight[2][kChunk];  // step 2^(last sum - sum), in two parts
    alignas(16) float decay[kSpans];  // 2^(last sum)
  };

  struct Shared {
    typename ChannelTile::Code x_code;
    typename StateTile::Code B_code, C_code;
    alignas(16) T x[kChunk * ChannelTile::kStride];
    alignas(16) T B[kChunk * StateTile::kStride];
    alignas(16) T C[kChunk * StateTile::kStride];
    alignas(16) T scores[kHeads][kSpans][kSpan * kScoreStride];
    Steps steps[2][kHeads];                     // of this chunk and the next
    alignas(16) float out[kHeads * kHeadTile];  // what y's channels are multiplied by
    float rate[kHeads], bias[kHeads],
        skip[kHeads];  // A log2(e), delta's bias, D over what C's decoding left out
    float B_rest, C_rest;
    // What the block works on; here because every register counts. heads: how many of the block's exist.
    int batch, group, first_head, heads, first_p;
  };

  const SsdScan& a;
  Shared& s;
  char* memory;

  __device__ SsdInputs(const SsdScan& arguments, char* shared)
      : a(arguments), s(*reinterpret_cast<Shared*>(shared)), memory(shared) {
    if (threadIdx.x == 0) {
      unsigned index = blockIdx.x;
      s.first_p = static_cast<int>(index % a.tiles) * kHeadTile;
      index /= a.tiles;
      const int heads_of_a_group = a.in.heads_of_a_group();
      const int first = static_cast<int>(index % a.head_blocks) * kHeads;
      index /= a.head_blocks;
      s.group = static_cast<int>(index % a.in.groups);
      s.batch = static_cast<int>(index / a.in.groups);
      s.first_head = s.group * heads_of_a_group + first;
      s.heads = min(heads_of_a_group - first, kHeads);
    }
    __syncthreads();
  }

  // What a thread of a warp works on.
  struct Own {
    unsigned lane, warp;
    int head;    // which of the block's heads
    int column;  // its first channel in that head's tile

    __device__ __forceinline__ Own() {
      const unsigned thread = thread_now();
      lane = thread % 32;
      warp = thread / 32;
      head = warp * kSlices * kWarpRows / kHeadTile;
      column = warp * kSlices * kWarpRows % kHeadTile;
    }
  };

  // Whether some of this warp's channels exist.
  __device__ __forceinline__ bool is_active() const {
    const Own own;
    return own.head < s.heads && s.first_p + own.column < a.in.head_dim;
  }

  __device__ __forceinline__ auto channels_part(int start) const {
    const unsigned thread = thread_now();
    const int column = thread % ChannelTile::kPieces * kPiece;
    const int head = column / kHeadTile, p = s.first_p + column % kHeadTile;
    const int valid = head < s.heads ? min(max(a.in.head_dim - p, 0), kPiece) : 0;
    return typename ChannelTile::Part(a.x, s.batch * a.x.in.batch_stride + start * a.x.in.row_stride, thread,
                                      (s.first_head + head) * a.in.head_dim + p, valid, memory);
  }

  __device__ __forceinline__ auto states_part(const TileInput& input, int start) const {
    const unsigned thread = thread_now();
    const int n = thread % StateTile::kPieces * kPiece;
    const int valid = min(max(a.in.states - n, 0), kPiece);
    return typename StateTile::Part(input, s.batch * input.in.batch_stride + start * input.in.row_stride,
                                    thread, s.group * a.in.states + n, valid, memory);
  }

  static __device__ __forceinline__ const float* code_row(const Input& input, int64_t channel) {
    return input.code.rows == nullptr || input.code.is_table
               ? nullptr
               : input.code.rows + (input.code.per_channel ? channel * kKneeWidth : 0);
  }

  static __device__ __forceinline__ bool has_rows(const Input& input) {
    return input.code.per_channel && !input.code.is_table;
  }

  // Where all channels of B or C share a code, what decoding leaves out is one number.
  __device__ __forceinline__ void set_codes() {
    const bool B_rows = has_rows(a.B.in), C_rows = has_rows(a.C.in), empty = a.in.length == 0;
    for (int n = threadIdx.x; n < kStates; n += kThreads) {
      const int channel = s.group * a.in.states + n;
      const bool exists = n < a.in.states;
      set_code(s.B_code, n, exists ? code_row(a.B.in, channel) : nullptr);
      set_code(s.C_code, n, exists ? code_row(a.C.in, channel) : nullptr);
      if (n == 0) {
        s.B_rest = B_rows || empty ? 1.0f : s.B_code.rest[0];
        s.C_rest = C_rows || empty ? 1.0f : s.C_code.rest[0];
      }
      const float both = (B_rows ? s.B_code.rest[n] : 1.0f) * (C_rows ? s.C_code.rest[n] : 1.0f);
      s.C_code.after[n] = __float2half_rn(both);
      s.B_code.rest[n] = B_rows && !empty ? s.B_code.rest[n] : 1.0f;
    }
    __syncthreads();
    if (threadIdx.x < kHeads) {
      const int head = threadIdx.x;
      const bool exists = head < s.heads;
      s.rate[head] = exists ? kLog2e * a.in.A[s.first_head + head] : 0.0f;
      s.bias[head] = exists && a.in.delta_bias ? a.in.delta_bias[s.first_head + head] : 0.0f;
      s.skip[head] = exists && a.in.D ? a.in.D[s.first_head + head] / s.C_rest : 0.0f;
    }
    for (int c = threadIdx.x; c < kHeads * kHeadTile; c += kThreads) {
      const int head = c / kHeadTile, p = s.first_p + c % kHeadTile;
      const bool exists = head < s.heads && p < a.in.head_dim;
      set_code(s.x_code, c, exists ? code_row(a.x.in, (s.first_head + head) * a.in.head_dim + p) : nullptr);
      s.x_code.rest[c] = empty ? 1.0f : s.x_code.rest[c];
      s.out[c] = s.x_code.rest[c] * s.C_rest;
    }
  }

  __device__ __forceinline__ int rows_from(int start) const {
    return min(static_cast<int>(a.in.length) - start, kChunk);
  }

  // Starts the loads of the chunk at `start`.
  __device__ __forceinline__ void fetch(int start) {
    const int rows = rows_from(start);
    ChannelTile::fetch(channels_part(start), rows);
    StateTile::fetch(states_part(a.B, start), rows);
    StateTile::fetch(states_part(a.C, start), rows);
  }

  __device__ __forceinline__ void decode(int start) {
    const int rows = rows_from(start);
    wait_for_copies();
    ChannelTile::decode(channels_part(start), s.x_code, false, rows, s.x);
    StateTile::decode(states_part(a.B, start), s.B_code, false, rows, s.B);
    StateTile::decode(states_part(a.C, start), s.C_code, has_rows(a.B.in) || has_rows(a.C.in), rows, s.C);
  }

  // The last warps set the steps, one head each.
  static __device__ __forceinline__ int head_of_steps(const Own& own) {
    return static_cast<int>(own.warp) - (kWarps - kHeads);
  }

  // delta of two neighbouring tokens as it lies in memory, loaded long before it is needed.
  __device__ __forceinline__ void load_steps(int start, uint32_t (&bits)[2]) const {
    const Own own;
    const int head = head_of_steps(own);
    if (head < 0 || head >= s.heads || start >= static_cast<int>(a.in.length)) {
      return;
    }
    const int64_t from = s.batch * a.in.delta.batch_stride + s.first_head + head;
    const int row = start + 2 * static_cast<int>(own.lane), last = static_cast<int>(a.in.length) - 1;
    bits[0] = load_bits(a.in.delta, from + min(row, last) * a.in.delta.row_stride);
    bits[1] = load_bits(a.in.delta, from + min(row + 1, last) * a.in.delta.row_stride);
  }

  __device__ __forceinline__ void set_steps(int start, const uint32_t (&bits)[2]) {
    const Own own;
    const int head = head_of_steps(own), lane = static_cast<int>(own.lane);
    if (head < 0 || start >= static_cast<int>(a.in.length)) {
      return;
    }
    const int rows = rows_from(start);
    float step[2] = {}, sum[2] = {};
    if (head < s.heads) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float delta = value_of_bits(a.in.delta, bits[j], 0);
        step[j] = 2 * lane + j < rows ? step_size(delta, s.bias[head], a.in.low, a.in.high) : 0.0f;
        sum[j] = 2 * lane + j < rows ? step[j] * s.rate[head] : 0.0f;
      }
    }
    constexpr int kLanes = kSpan / 2;
    float before = sum[0] + sum[1];
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) {
      const float lower = __shfl_up_sync(0xffffffffu, before, distance, kLanes);
      before += lane % kLanes >= distance ? lower : 0.0f;
    }
    const float last = __shfl_sync(0xffffffffu, before, kLanes - 1, kLanes);
    before = __shfl_up_sync(0xffffffffu, before, 1, kLanes);
    sum[0] += lane % kLanes > 0 ? before : 0.0f;
    sum[1] += sum[0];
    float weight[2], rest[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      step[j] *= s.B_rest;
      weight[j] = step[j] * exp2_approx(last - sum[j]);
      rest[j] = weight[j] - to_float(from_float<T>(weight[j]));
    }
    Steps& to = s.steps[start / kChunk % 2][head];
    reinterpret_cast<float2*>(to.sum)[lane] = make_float2(sum[0], sum[1]);
    reinterpret_cast<float2*>(to.grow)[lane] = make_float2(exp2_approx(sum[0]), exp2_approx(sum[1]));
    reinterpret_cast<float2*>(to.step)[lane] = make_float2(step[0], step[1]);
    reinterpret_cast<uint32_t*>(to.weight[0])[lane] = pack_pair<T>(weight[0], weight[1]);
    reinterpret_cast<uint32_t*>(to.weight[1])[lane] = pack_pair<T>(rest[0], rest[1]);
    if (lane % kLanes == 0) {
      to.decay[lane / kLanes] = exp2_approx(last);
    }
  }
};

}  // namespace dualscale

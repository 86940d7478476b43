// State space duality token by token in fp32: for one token, bound by the memory that holds the state, and
// for sequences whose result is fp32.
//
// `kLanes` neighbouring threads share a row of the state, `kWidth` neighbouring states each; a thread works
// on `kRows` rows at a time. A head's inputs are decoded once a block, one value a thread, into shared
// memory.
#pragma once

#include "ahead.cuh"
#include "ssd.cuh"

namespace dualscale {

constexpr int kStepThreads = 128;

struct SsdSteps {
  SsdCommon in;
  Input x, B, C;
  StateView before, after;
  void* y;
  Kind result;
  int rows, tiles;     // rows of the state that a block takes (kMaxRows at most), blocks that share a head
  bool state_aligned;  // kWidth states may be moved as one vector
};

template <int kLanes, int kRows>
struct RowSums {
  static constexpr int kKept = kRows > kLanes ? kRows / kLanes : 1;    // rows of which a thread gets the sum
  static constexpr int kCopies = kLanes > kRows ? kLanes / kRows : 1;  // threads that get the same sum

  // Sums over the lanes; thread `lane` ends with those of rows first_row(lane) to first_row(lane) + kKept
  // - 1. Halves of the rows are traded for as long as there are any, which takes half the shuffles each time.
  static __device__ __forceinline__ void reduce(float (&sum)[kRows], int lane) {
    int rows = kRows;
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      if (rows > 1) {
        rows /= 2;
        const bool upper = (lane & distance) != 0;
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i) {
          if (i < rows) {
            const float other = __shfl_xor_sync(0xffffffffu, upper ? sum[i] : sum[i + rows], distance);
            sum[i] = (upper ? sum[i + rows] : sum[i]) + other;
          }
        }
      } else {
        sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], distance);
      }
    }
  }

  static __device__ __forceinline__ int first_row(int lane) { return lane / kCopies * kKept; }
};

template <int kWidth, int kLanes, int kRows, int kTokens>
struct StepBlock {
  static constexpr int kStates = kWidth * kLanes;
  static constexpr int kSlots = kStepThreads / kLanes;
  static constexpr int kRowsAtOnce = kSlots * kRows;
  static constexpr int kMaxRows = kRowsAtOnce > 64 ? kRowsAtOnce : 64;
  using Sums = RowSums<kLanes, kRows>;

  struct Shared {
    float B[kTokens][kStates];
    float C[kTokens][kStates];
    float x[kTokens][kMaxRows];
    float step[kTokens];
    float decay[kTokens];
  };

  const SsdSteps& a;
  Shared& s;
  int64_t batch;
  int head, first_p, lane, slot;

  __device__ StepBlock(const SsdSteps& arguments, Shared& shared) : a(arguments), s(shared) {
    first_p = static_cast<int>(blockIdx.x % a.tiles) * a.rows;
    const unsigned index = blockIdx.x / a.tiles;
    head = static_cast<int>(index % a.in.heads);
    batch = index / a.in.heads;
    lane = threadIdx.x % kLanes;
    slot = threadIdx.x / kLanes;
  }

  static __device__ __forceinline__ int64_t offset(const Input& input, int64_t batch, int64_t token) {
    return batch * input.batch_stride + token * input.row_stride;
  }

  // Decodes `count` tokens; states that only pad are zero.
  __device__ __forceinline__ void decode(int64_t first, int count) {
    const int64_t states = static_cast<int64_t>(head / a.in.heads_of_a_group()) * a.in.states;
    for (int i = threadIdx.x; i < count * kStates; i += kStepThreads) {
      const int t = i / kStates, n = i % kStates;
      const bool exists = n < a.in.states;
      const int64_t channel = states + n;
      s.B[t][n] = exists ? one_value(a.B, offset(a.B, batch, first + t) + channel, channel) : 0.0f;
      s.C[t][n] = exists ? one_value(a.C, offset(a.C, batch, first + t) + channel, channel) : 0.0f;
    }
    for (int i = threadIdx.x; i < count * kMaxRows; i += kStepThreads) {
      const int t = i / kMaxRows, p = i % kMaxRows;
      const int64_t channel = static_cast<int64_t>(head) * a.in.head_dim + first_p + p;
      const bool exists = p < a.rows && first_p + p < a.in.head_dim;
      s.x[t][p] = exists ? one_value(a.x, offset(a.x, batch, first + t) + channel, channel) : 0.0f;
    }
    if (static_cast<int>(threadIdx.x) < count) {
      const int t = threadIdx.x;
      const float delta = one_value(a.in.delta, offset(a.in.delta, batch, first + t) + head, 0);
      const float bias = a.in.delta_bias ? a.in.delta_bias[head] : 0.0f;
      s.step[t] = step_size(delta, bias, a.in.low, a.in.high);
      s.decay[t] = expf(s.step[t] * a.in.A[head]);
    }
  }

  static __device__ __forceinline__ void read(const float* from, float (&x)[kWidth]) {
#pragma unroll
    for (int j = 0; j < kWidth; j += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + j);
      x[j] = four.x;
      x[j + 1] = four.y;
      x[j + 2] = four.z;
      x[j + 3] = four.w;
    }
  }

  // Row i of this thread, in the block's tile, when its first slot begins at `first`.
  __device__ __forceinline__ int row(int first, int i) const { return first + i * kSlots + slot; }

  // One token for kRows rows; `t` is its place in shared memory.
  __device__ __forceinline__ void advance(int first, int t, int64_t token, float (&h)[kRows][kWidth]) const {
    float B[kWidth], C[kWidth], sum[kRows];
    read(&s.B[t][lane * kWidth], B);
    read(&s.C[t][lane * kWidth], C);
    const float decay = s.decay[t], step = s.step[t];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float input = step * s.x[t][row(first, i)];
      sum[i] = 0.0f;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        h[i][j] = fmaf(decay, h[i][j], input * B[j]);
        sum[i] = fmaf(h[i][j], C[j], sum[i]);
      }
    }
    Sums::reduce(sum, lane);
    if (lane % Sums::kCopies != 0) {
      return;
    }
    const float skip = a.in.D ? a.in.D[head] : 0.0f;
#pragma unroll
    for (int i = 0; i < Sums::kKept; ++i) {
      const int r = row(first, Sums::first_row(lane) + i);
      if (r < a.rows && first_p + r < a.in.head_dim) {
        const float only[4] = {fmaf(skip, s.x[t][r], sum[i])};
        const int64_t at = ((batch * a.in.length + token) * a.in.heads + head) * a.in.head_dim + first_p + r;
        store_four(a.y, a.result, at, only, false, 1);
      }
    }
  }
};

// One token. S is the type of the state.
template <class S, int kWidth, int kLanes>
__global__ void __launch_bounds__(kStepThreads) ssd_update(const __grid_constant__ SsdSteps a) {
  constexpr int kRows = 4;
  using Block = StepBlock<kWidth, kLanes, kRows, 1>;
  __shared__ __align__(16) typename Block::Shared shared;
  Block block(a, shared);
  const int n = block.lane * kWidth, present = min(max(a.in.states - n, 0), kWidth);
  Raw<S, kWidth> raw[kRows];
  S* state = static_cast<S*>(a.before.data) + a.before.offset(block.batch, block.head, block.first_p) + n;
  const auto valid = [&](int first, int i) {
    const int r = block.row(first, i);
    return r < a.rows && block.first_p + r < a.in.head_dim ? present : 0;
  };
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      raw[i] = load_raw<S, kWidth>(state + block.row(first, i) * a.before.row_stride, a.state_aligned,
                                   valid(first, i));
    }
  };
#pragma unroll
  for (int i = 0; i < kRows; ++i) {  // no kernel of the same step has written the state
    if (valid(0, i) > 0) {
      prefetch_sector(state + block.row(0, i) * a.before.row_stride);
    }
  }
  await_earlier();
  admit_later();
  load(0);
  block.decode(0, 1);
  __syncthreads();
#pragma unroll 1
  for (int first = 0; first < a.rows; first += Block::kRowsAtOnce) {
    float h[kRows][kWidth];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      unpack(raw[i], h[i]);
    }
    if (first + Block::kRowsAtOnce < a.rows) {
      load(first + Block::kRowsAtOnce);
    }
    block.advance(first, 0, 0, h);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      store_raw(state + block.row(first, i) * a.before.row_stride, pack<S, kWidth>(h[i]), a.state_aligned,
                valid(first, i));
    }
  }
}

// A sequence; the state stays in registers.
template <int kLanes, int kRows>
__global__ void __launch_bounds__(kStepThreads, 4) ssd_steps(const __grid_constant__ SsdSteps a) {
  constexpr int kWidth = 8, kTokens = 16;
  using Block = StepBlock<kWidth, kLanes, kRows, kTokens>;
  __shared__ __align__(16) typename Block::Shared shared;
  Block block(a, shared);
  float h[kRows][kWidth];
  const auto for_each = [&](const StateView& view, auto&& f) {
    const int64_t at = view.offset(block.batch, block.head, block.first_p);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = block.row(0, i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int n = block.lane * kWidth + j;
        const bool exists = r < a.rows && block.first_p + r < a.in.head_dim && n < a.in.states;
        f(h[i][j], at + r * view.row_stride + n, exists);
      }
    }
  };
  for_each(a.before, [&](float& value, int64_t at, bool exists) {
    value = !exists || a.before.data == nullptr ? 0.0f
            : a.before.kind == Kind::kHalf      ? __half2float(static_cast<const __half*>(a.before.data)[at])
                                                : static_cast<const float*>(a.before.data)[at];
  });
  for (int64_t first = 0; first < a.in.length; first += kTokens) {
    const int count = static_cast<int>(min(a.in.length - first, static_cast<int64_t>(kTokens)));
    __syncthreads();
    block.decode(first, count);
    __syncthreads();
#pragma unroll 1
    for (int t = 0; t < count; ++t) {
      block.advance(0, t, first + t, h);
    }
  }
  for_each(a.after, [&](float& value, int64_t at, bool exists) {
    if (exists && a.after.kind == Kind::kHalf) {
      static_cast<__half*>(a.after.data)[at] = __float2half_rn(value);
    } else if (exists) {
      static_cast<float*>(a.after.data)[at] = value;
    }
  });
}

}  // namespace dualscale

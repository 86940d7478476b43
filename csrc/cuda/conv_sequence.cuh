// The kernel of causal_conv1d_encode: a thread owns eight adjacent channels and walks a chunk of the
// sequence, four rows a turn. The loads of the next four are in flight while it computes, and the window of
// inputs moves through registers by renaming.
#pragma once

#include "conv.cuh"
#include "conv_pairs.cuh"

namespace dualscale {

constexpr int kConvThreads = 128;
constexpr int kTurn = 4;

struct Sequence {
  int64_t length, batch_stride, row_stride, initial_batch_stride, initial_row_stride;
  unsigned vectors, chunks, batch;
  int chunk;
  bool x_aligned, initial_aligned, out_aligned;
};

// Inputs before the chunk: from the sequence, from the initial state, or zero.
template <class T, class Conv>
__device__ __forceinline__ void before(const Conv& conv, const T* x, const T* initial, const Sequence& s,
                                       int64_t t, int valid, float (&value)[kConvVector]) {
  const int64_t state_row = t + conv.taps - 1;
  if (t >= 0) {
    conv.values(load_raw<T, kConvVector>(x + t * s.row_stride, s.x_aligned, valid), value);
  } else if (initial != nullptr && state_row >= 0) {
    conv.values(
        load_raw<T, kConvVector>(initial + state_row * s.initial_row_stride, s.initial_aligned, valid),
        value);
  } else {
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      value[i] = 0.0f;
    }
  }
}

// kFast: four taps, whole vectors, aligned rows; then whole turns run without a branch, so that the chains of
// all their elements overlap.
//
// With lists (Selectors) a segment of eight threads has 64 channels, whether they exist or not, and a chunk
// whole tiles; all threads of a warp take the same turns.
template <class T, class Result, bool kFast, class Selectors = NoSelectors>
__global__ void __launch_bounds__(kConvThreads)
    convolve(const T* x, const T* initial, typename Result::Out* out, ConvParameters p, Sequence s,
             Selectors selectors) {
  __shared__ float table[std::is_same_v<Result, TableResult> ? kTableWidth : 1];
  load_shared_table<Result>(p.code, table);
  const unsigned item = blockIdx.x * kConvThreads + threadIdx.x;
  const int64_t channel = static_cast<int64_t>(item % s.vectors) * kConvVector;
  const int64_t first = static_cast<int64_t>(item / s.vectors % s.chunks) * s.chunk;
  int64_t batch = item / s.vectors / s.chunks;
  [[maybe_unused]] const bool is_surplus = batch >= s.batch;
  if constexpr (Selectors::kLists) {
    batch = is_surplus ? s.batch - 1 : batch;
  } else if (batch >= s.batch) {
    return;
  }
  int left = static_cast<int>(min(static_cast<int64_t>(s.chunk), s.length - first));
  if constexpr (Selectors::kLists) {
    left = is_surplus ? 0 : left;
  }
  const int valid =
      kFast ? kConvVector : static_cast<int>(min(static_cast<int64_t>(kConvVector), p.channels - channel));
  const bool x_aligned = kFast || s.x_aligned, out_aligned = kFast || s.out_aligned;
  x += batch * s.batch_stride + channel;
  initial += initial == nullptr ? 0 : batch * s.initial_batch_stride + channel;
  out += (batch * s.length + first) * p.channels + channel;

  const Convolution<T, kFast> conv(p, channel, valid, Result::kMutesNan);
  const Result result(p.code, table, channel, valid);
  float window[kMaxTaps - 1 + kTurn][kConvVector];
#pragma unroll
  for (int k = 0; k < kMaxTaps - 1; ++k) {
    before(conv, x, initial, s, first - (kMaxTaps - 1) + k, valid, window[k]);
  }
  Raw<T, kConvVector> next[kTurn];
  const T* row = x + first * s.row_stride;
  const auto fetch = [&](int rows) {
#pragma unroll
    for (int r = 0; r < kTurn; ++r) {
      if (r < rows) {
        next[r] = load_raw<T, kConvVector>(row, x_aligned, valid);
      }
      row += s.row_stride;
    }
  };
  [[maybe_unused]] __shared__ uint32_t kept[Selectors::kLists ? kTileWords : 1][kConvThreads];
  [[maybe_unused]] SelectorSink<Selectors> sink(selectors, kept, batch, first, channel, p.channels, left);
  const auto turn = [&](int rows, int rows_after) {
#pragma unroll
    for (int r = 0; r < kTurn; ++r) {
      conv.values(next[r], window[kMaxTaps - 1 + r]);
    }
    fetch(rows_after);
#pragma unroll
    for (int r = 0; r < kTurn; ++r) {
      float y[kConvVector];
#pragma unroll
      for (int i = 0; i < kConvVector; ++i) {
        y[i] = conv.silu_over_ln2(i, window[r][i], window[r + 1][i], window[r + 2][i], window[r + 3][i]);
        if (Result::kMutesNan && sizeof(T) > 1) {
          y[i] = y[i] == y[i] ? y[i] : 0.0f;
        }
      }
      if constexpr (Selectors::kPairs) {
        sink.row(out, result, y, r, r < rows, out_aligned, valid);
      } else if (r < rows) {
        store_raw(out, result.result(y), out_aligned, valid);
      }
      out += p.channels;
    }
    if constexpr (Selectors::kLists) {
      sink.turn();
    }
#pragma unroll
    for (int k = 0; k < kMaxTaps - 1; ++k) {
#pragma unroll
      for (int i = 0; i < kConvVector; ++i) {
        window[k][i] = window[k + kTurn][i];
      }
    }
  };
  fetch(left);
  int done = 0;
  if constexpr (kFast) {
    const int whole = !Selectors::kLists || __all_sync(0xffffffffu, left == s.chunk) ? left : 0;
    for (; done + 2 * kTurn <= whole; done += kTurn) {
      turn(kTurn, kTurn);
    }
  }
  for (const int end = Selectors::kLists ? s.chunk : left; done < end; done += kTurn) {
    turn(left - done, left - done - kTurn);
  }
}

// All that a launch of it needs, once the type of the result is known.
struct SequenceCall {
  const Tensor& x;
  const OptionalTensor& initial;
  Tensor& out;
  const ConvParameters& p;
  Sequence s;
  unsigned grid;
  cudaStream_t stream;
};

template <class T, class Result, class Selectors>
void launch_sequence(const SequenceCall& call, const Selectors& selectors) {
  const ConvParameters& p = call.p;
  Sequence s = call.s;
  s.x_aligned = is_aligned(call.x, Raw<T, kConvVector>::kAlignment);
  s.initial_aligned = is_aligned(call.initial, Raw<T, kConvVector>::kAlignment);
  s.out_aligned = p.channels % kConvVector == 0;
  const bool fast = p.taps == kMaxTaps && p.aligned && s.x_aligned && s.initial_aligned && s.out_aligned &&
                    s.vectors * static_cast<int64_t>(kConvVector) == p.channels;
  const auto kernel = fast ? convolve<T, Result, true, Selectors> : convolve<T, Result, false, Selectors>;
  kernel<<<call.grid, kConvThreads, 0, call.stream>>>(
      static_cast<const T*>(call.x.data_ptr()), data<T>(call.initial),
      static_cast<typename Result::Out*>(call.out.data_ptr()), p, s, selectors);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// In conv_pairs.cu.
void launch_pairs(const SequenceCall& call, const SelectorView& view);

}  // namespace dualscale

// Causal depthwise convolution + bias + SiLU + encode over a sequence.
//
// A thread owns eight adjacent channels and walks a chunk of the sequence, four rows a turn: the loads of the
// next four are in flight while it computes, and the window of inputs moves through registers by renaming.
#include "conv.cuh"

namespace dualscale {
namespace {

constexpr int kThreads = 128;
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
template <class T, class Result, bool kFast>
__global__ void __launch_bounds__(kThreads)
    convolve(const T* x, const T* initial, typename Result::Out* out, ConvParameters p, Sequence s) {
  __shared__ float table[std::is_same_v<Result, TableResult> ? kTableWidth : 1];
  load_shared_table<Result>(p.code, table);
  const unsigned item = blockIdx.x * kThreads + threadIdx.x;
  const int64_t channel = static_cast<int64_t>(item % s.vectors) * kConvVector;
  const int64_t first = static_cast<int64_t>(item / s.vectors % s.chunks) * s.chunk;
  const int64_t batch = item / s.vectors / s.chunks;
  if (batch >= s.batch) {
    return;
  }
  const int left = static_cast<int>(min(static_cast<int64_t>(s.chunk), s.length - first));
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
      if (r < rows) {
        store_raw(out, result.result(y), out_aligned, valid);
      }
      out += p.channels;
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
    for (; done + 2 * kTurn <= left; done += kTurn) {
      turn(kTurn, kTurn);
    }
  }
  for (; done < left; done += kTurn) {
    turn(left - done, left - done - kTurn);
  }
}

// A chunk long enough that its first three rows hardly cost, short enough to fill the chip.
int chunk_of(int64_t length, int64_t vectors, int64_t batch, int device) {
  const int64_t wanted = static_cast<int64_t>(multiprocessors(device)) * 192;
  int64_t chunk = 64;
  while (chunk > 8 && vectors * batch * ceil_div(length, chunk) < wanted) {
    chunk /= 2;
  }
  return static_cast<int>(chunk);
}

Tensor causal_conv1d_encode(const Tensor& x, const OptionalTensor& x_code, const Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& initial,
                            const OptionalTensor& code, ScalarType dtype) {
  const char* op = "causal_conv1d_encode";
  check_dim({op, "x"}, x, 3);
  const ConvParameters p = checked_parameters(op, x, x_code, weight, bias, code, dtype);
  if (initial) {
    check_state({op, "initial"}, *initial, x, p.taps, p.channels);
  }
  Tensor out = torch::stable::new_empty(x, x.sizes(), code ? ScalarType::Char : dtype);
  if (x.numel() == 0) {
    return out;
  }
  const OnDevice device(x);
  Sequence s{x.size(1), x.stride(0), x.stride(1)};
  s.initial_batch_stride = initial ? initial->stride(0) : 0;
  s.initial_row_stride = initial ? initial->stride(1) : 0;
  s.vectors = static_cast<unsigned>(ceil_div(p.channels, kConvVector));
  s.chunk = chunk_of(s.length, s.vectors, x.size(0), x.get_device_index());
  s.chunks = static_cast<unsigned>(ceil_div(s.length, s.chunk));
  s.batch = static_cast<unsigned>(x.size(0));
  const int64_t items = static_cast<int64_t>(s.vectors) * s.chunks * x.size(0);
  if (items > std::numeric_limits<int32_t>::max()) {
    refuse({op, "x"}, "has shape " + shape_of(x), "at most 2^31 pieces of 8 channels and 64 rows");
  }
  const unsigned grid = grid_of(op, ceil_div(items, kThreads));
  dispatch_activation(x.scalar_type(), [&](auto input) {
    using T = typename decltype(input)::type;
    s.x_aligned = is_aligned(x, Raw<T, kConvVector>::kAlignment);
    s.initial_aligned = is_aligned(initial, Raw<T, kConvVector>::kAlignment);
    dispatch_result(p.code, dtype, [&](auto result) {
      using Result = typename decltype(result)::type;
      s.out_aligned = p.channels % kConvVector == 0;
      const bool fast = p.taps == kMaxTaps && p.aligned && s.x_aligned && s.initial_aligned && s.out_aligned;
      const auto kernel = fast ? convolve<T, Result, true> : convolve<T, Result, false>;
      kernel<<<grid, kThreads, 0, device.stream>>>(static_cast<const T*>(x.data_ptr()), data<T>(initial),
                                                   static_cast<typename Result::Out*>(out.data_ptr()), p, s);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return out;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("causal_conv1d_encode", TORCH_BOX(&dualscale::causal_conv1d_encode));
}

// Causal depthwise convolution + bias + SiLU + encode for one token; the window of inputs is shifted in
// place.
#include "ahead.cuh"
#include "conv_pairs.cuh"

namespace dualscale {
namespace {

constexpr int kThreads = 128;

struct Token {
  int64_t x_stride, state_batch_stride, state_row_stride;
  unsigned vectors, batch;
  bool x_aligned, state_aligned, out_aligned;
};

// What a thread will read that no kernel of the same step has written: parameters and the state.
template <class T>
__device__ __forceinline__ void prefetch_token(const ConvParameters& p, const T* state, int64_t channel,
                                               int valid, int64_t state_row_stride) {
  constexpr int kSector = 8;  // floats that one prefetch surely brings
  const float* weight = p.weight + channel * p.taps;
  for (int i = 0; i < valid * p.taps; i += kSector) {
    prefetch_sector(weight + i);
  }
  if (p.bias) {
    prefetch_sector(p.bias + channel);
  }
  if (p.code.rows && p.code.per_channel && !p.code.is_table) {
    for (int i = 0; i < valid * kKneeWidth; i += kSector) {
      prefetch_sector(p.code.rows + channel * kKneeWidth + i);
    }
  }
  for (int row = 0; row + 1 < p.taps; ++row) {
    prefetch_sector(state + row * state_row_stride);
  }
}

// With lists (Selectors) all threads of a warp go on to the end; those beyond the batch only take part.
template <class T, class Result, class Selectors>
__global__ void __launch_bounds__(kThreads) convolve_token(const T* x, T* state, typename Result::Out* out,
                                                           ConvParameters p, Token s, Selectors selectors) {
  __shared__ float table[std::is_same_v<Result, TableResult> ? kTableWidth : 1];
  const unsigned item = blockIdx.x * kThreads + threadIdx.x;
  const int64_t channel = static_cast<int64_t>(item % s.vectors) * kConvVector;
  const int64_t wanted = item / s.vectors;
  const int64_t batch = Selectors::kLists ? min(wanted, static_cast<int64_t>(s.batch) - 1) : wanted;
  const int valid = static_cast<int>(min(static_cast<int64_t>(kConvVector), p.channels - channel));
  x += batch * s.x_stride + channel;
  state += batch * s.state_batch_stride + channel;
  if (batch < s.batch && (!Selectors::kLists || valid > 0)) {
    prefetch_token(p, state, channel, valid, s.state_row_stride);
  }
  await_earlier();
  admit_later();
  load_shared_table<Result>(p.code, table);
  if (!Selectors::kLists && batch >= s.batch) {
    return;
  }
  const Convolution<T, false> conv(p, channel, valid, Result::kMutesNan);
  const Result result(p.code, table, channel, valid);

  float window[kMaxTaps][kConvVector] = {};
  Raw<T, kConvVector> raw[kMaxTaps];
#pragma unroll
  for (int k = 0; k < kMaxTaps; ++k) {
    const int tap = k - (kMaxTaps - p.taps);
    if (k == kMaxTaps - 1) {
      raw[k] = load_raw<T, kConvVector>(x, s.x_aligned, valid);
    } else if (tap >= 0) {
      raw[k] = load_raw<T, kConvVector>(state + tap * s.state_row_stride, s.state_aligned, valid);
    }
    if (tap >= 0) {
      conv.values(raw[k], window[k]);
    }
  }
#pragma unroll
  for (int k = 1; k < kMaxTaps; ++k) {
    const int row = k - 1 - (kMaxTaps - p.taps);
    if (row >= 0 && (!Selectors::kLists || wanted < s.batch)) {
      store_raw(state + row * s.state_row_stride, raw[k], s.state_aligned, valid);
    }
  }
  float y[kConvVector];
#pragma unroll
  for (int i = 0; i < kConvVector; ++i) {
    y[i] = conv.silu_over_ln2(i, window[0][i], window[1][i], window[2][i], window[3][i]);
    if (Result::kMutesNan && sizeof(T) > 1) {
      y[i] = y[i] == y[i] ? y[i] : 0.0f;
    }
  }
  if constexpr (Selectors::kPairs) {
    out += batch * p.channels + channel;
    const bool exists = wanted < s.batch;
    [[maybe_unused]] __shared__ uint32_t kept[Selectors::kLists ? kTileWords : 1][kThreads];
    SelectorSink<Selectors> sink(selectors, kept, batch, 0, channel, p.channels, exists ? 1 : 0);
    sink.row(out, result, y, 0, exists, s.out_aligned, valid);
    sink.close();
  } else {
    store_raw(out + batch * p.channels + channel, result.result(y), s.out_aligned, valid);
  }
}

Tensor causal_conv1d_update(const Tensor& x, const OptionalTensor& x_code, const Tensor& state,
                            const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& code,
                            ScalarType dtype, const OptionalTensor& mask, const OptionalTensor& outliers) {
  const char* op = "causal_conv1d_update";
  check_dim({op, "x"}, x, 2);
  const ConvParameters p = checked_parameters(op, x, x_code, weight, bias, code, dtype, Codes::kAnyOrPair);
  check_state({op, "state"}, state, x, p.taps, p.channels);
  const SelectorView selectors =
      checked_selectors(op, "mask", "outliers", code, mask, outliers, 1, p.channels, x);
  Tensor out = torch::stable::new_empty(x, x.sizes(), code ? ScalarType::Char : dtype);
  if (x.numel() == 0) {
    return out;
  }
  const OnDevice device(x);
  Token s{x.stride(0), state.stride(0), state.stride(1)};
  s.vectors = static_cast<unsigned>(ceil_div(p.channels, kConvVector));
  if (selectors.lists != nullptr) {  // whole tiles
    s.vectors = static_cast<unsigned>(ceil_div(s.vectors, kSegment) * kSegment);
  }
  s.batch = static_cast<unsigned>(x.size(0));
  s.out_aligned = p.channels % kConvVector == 0;
  const unsigned grid = grid_of(op, ceil_div(static_cast<int64_t>(s.vectors) * s.batch, kThreads));
  dispatch_activation(x.scalar_type(), [&](auto input) {
    using T = typename decltype(input)::type;
    s.x_aligned = is_aligned(x, Raw<T, kConvVector>::kAlignment);
    s.state_aligned = is_aligned(state, Raw<T, kConvVector>::kAlignment);
    const auto run = [&](auto result, auto own) {
      using Result = typename decltype(result)::type;
      launch_early(convolve_token<T, Result, decltype(own)>, grid, kThreads, 0, x.get_device_index(),
                   device.stream, static_cast<const T*>(x.data_ptr()), static_cast<T*>(state.data_ptr()),
                   static_cast<typename Result::Out*>(out.data_ptr()), p, s, own);
    };
    if (selectors.mask == nullptr) {
      dispatch_result(p.code, dtype, [&](auto result) { run(result, NoSelectors{}); });
    } else {
      dispatch_pairs(
          p.code, [&](auto result) { dispatch_selectors(selectors, [&](auto own) { run(result, own); }); });
    }
  });
  return out;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("causal_conv1d_update", TORCH_BOX(&dualscale::causal_conv1d_update));
}

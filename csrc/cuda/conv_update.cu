// Causal depthwise convolution + bias + SiLU + encode for one token; the window of inputs is shifted in
// place. A thread has eight channels, and of many sequences some each, whose taps it reads once.
#include "conv_pairs.cuh"

namespace dualscale {
namespace {

struct Token {
  int64_t x_stride, state_batch_stride, state_row_stride;
  unsigned vectors, batch;
  bool x_aligned, state_aligned, out_aligned;
};

// Sequences of a thread where there are many; their inputs wait in registers.
template <class T>
constexpr int kManySequences = sizeof(T) == 1   ? kTokenBatch
                               : sizeof(T) == 2 ? (kTokenBatch + 1) / 2
                                                : 1;

// All threads of a warp go on to the end, where they exchange weights or write lists (Selectors) together.
// Those beyond the batch only take part.
template <class T, class Result, bool kFast, int kSequences, class Selectors>
__global__ void __launch_bounds__(kTokenThreads)
    convolve_token(const T* x, T* state, typename Result::Out* out, ConvParameters p, Token s,
                   Selectors selectors) {
  static_assert(kSequences == 1 || !Selectors::kPairs, "a list is written for one sequence at a time");
  __shared__ float table[std::is_same_v<Result, TableResult> ? kTableWidth : 1];
  const unsigned item = blockIdx.x * kTokenThreads + threadIdx.x;
  const int64_t channel = static_cast<int64_t>(item % s.vectors) * kConvVector;
  const int64_t first = static_cast<int64_t>(item / s.vectors) * kSequences;
  const int valid =
      kFast ? kConvVector : static_cast<int>(min(static_cast<int64_t>(kConvVector), p.channels - channel));
  const bool x_aligned = kFast || s.x_aligned, state_aligned = kFast || s.state_aligned;
  const int taps = kFast ? kMaxTaps : p.taps, missing = kMaxTaps - taps;
  const int count = static_cast<int>(max(min(s.batch - first, static_cast<int64_t>(kSequences)), int64_t{0}));
  x += first * s.x_stride + channel;
  state += first * s.state_batch_stride + channel - missing * s.state_row_stride;
  out += first * p.channels + channel;
  if (first == 0) {
    prefetch_parameters(p, channel, valid);
  }
#pragma unroll
  for (int j = 0; j < kSequences; ++j) {
#pragma unroll
    for (int k = 0; k < kMaxTaps - 1; ++k) {
      if (j < count && k >= missing && valid > 0) {
        prefetch_sector(state + j * s.state_batch_stride + k * s.state_row_stride);
      }
    }
  }
  await_earlier();
  admit_later();
  load_shared_table<Result>(p.code, table);

  // The k-th of four inputs, the last of them x; with fewer taps the first are missing.
  Raw<T, kConvVector> raw[kSequences][kMaxTaps];
#pragma unroll
  for (int j = 0; j < kSequences; ++j) {
#pragma unroll
    for (int k = 0; k < kMaxTaps; ++k) {
      if (j < count && k >= missing) {
        raw[j][k] = k == kMaxTaps - 1
                        ? load_raw<T, kConvVector>(x + j * s.x_stride, x_aligned, valid)
                        : load_raw<T, kConvVector>(state + j * s.state_batch_stride + k * s.state_row_stride,
                                                   state_aligned, valid);
      }
    }
  }
  __shared__ WeightExchange exchange[kFast ? kTokenThreads / 32 : 1];
  const Convolution<T, kFast> conv(p, channel, valid, Result::kFinite,
                                   &exchange[kFast ? threadIdx.x / 32 : 0]);
  const Result result(p.code, table, channel, valid);
#pragma unroll
  for (int j = 0; j < kSequences; ++j) {
    const bool exists = j < count;
    ConvSums sums = conv.start();
    float sum[kConvVector];
    SiluTerm term[kConvVector];
#pragma unroll
    for (int k = 0; k < kMaxTaps; ++k) {
      if (k >= missing) {
        float value[kConvVector];
        conv.template values<false>(raw[j][k], value);
        conv.feed(sums, value, sum);
      }
    }
#pragma unroll
    for (int k = 1; k < kMaxTaps; ++k) {
      if (exists && k > missing) {
        store_raw(state + j * s.state_batch_stride + (k - 1) * s.state_row_stride, raw[j][k], state_aligned,
                  valid);
      }
    }
    silu_terms<kPairsReciprocals<T, Result>>(sum, result, term);
    if constexpr (Selectors::kPairs) {
      uint32_t bits;
      const auto codes = result.template result<kMayBeNan<T>>(term, bits);
      [[maybe_unused]] __shared__ uint32_t kept[Selectors::kLists ? kTileWords : 1][kTokenThreads];
      const int64_t batch = min(first, static_cast<int64_t>(s.batch) - 1);
      SelectorSink<Selectors> sink(selectors, kept, batch, 0, channel, p.channels, exists ? 1 : 0);
      sink.row(out, codes, bits, 0, exists, kFast || s.out_aligned, valid);
      sink.close();
    } else if (exists) {
      store_raw(out + j * p.channels, result.template result<false, kMayBeNan<T>>(term),
                kFast || s.out_aligned, valid);
    }
  }
}

struct TokenCall {
  const Tensor& x;
  const Tensor& state;
  Tensor& out;
  const ConvParameters& p;
  Token s;
  cudaStream_t stream;
};

template <class T, class Result, bool kFast, int kSequences, class Selectors>
void launch_token(const TokenCall& call, const Token& s, const Selectors& selectors) {
  const int64_t items = s.vectors * ceil_div(s.batch, kSequences);
  launch_early(convolve_token<T, Result, kFast, kSequences, Selectors>,
               grid_of("causal_conv1d_update", ceil_div(items, kTokenThreads)), kTokenThreads, 0,
               call.x.get_device_index(), call.stream, static_cast<const T*>(call.x.data_ptr()),
               static_cast<T*>(call.state.data_ptr()),
               static_cast<typename Result::Out*>(call.out.data_ptr()), call.p, s, selectors);
}

template <class T, class Result, class Selectors>
void run_token(const TokenCall& call, const Selectors& selectors) {
  const ConvParameters& p = call.p;
  Token s = call.s;
  s.x_aligned = is_aligned(call.x, Raw<T, kConvVector>::kAlignment);
  s.state_aligned = is_aligned(call.state, Raw<T, kConvVector>::kAlignment);
  s.out_aligned = p.channels % kConvVector == 0;
  const bool fast = p.taps == kMaxTaps && p.aligned && s.x_aligned && s.state_aligned && s.out_aligned &&
                    s.vectors * static_cast<int64_t>(kConvVector) == p.channels;
  if (!fast) {
    return launch_token<T, Result, false, 1>(call, s, selectors);
  }
  if constexpr (!Selectors::kPairs && kManySequences<T> > 1) {
    constexpr int64_t kFew = 512;  // threads of a multiprocessor that have work enough with one sequence each
    if (static_cast<int64_t>(s.vectors) * s.batch > multiprocessors(call.x.get_device_index()) * kFew) {
      return launch_token<T, Result, true, kManySequences<T>>(call, s, selectors);
    }
  }
  launch_token<T, Result, true, 1>(call, s, selectors);
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
  const TokenCall call{x, state, out, p, s, device.stream};
  dispatch_activation(x.scalar_type(), [&](auto input) {
    using T = typename decltype(input)::type;
    const auto run = [&](auto result, const auto& own) {
      run_token<T, typename decltype(result)::type>(call, own);
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

// Causal depthwise convolution + bias + SiLU + encode over a sequence: which kernel runs. It is in
// conv_sequence.cuh.
#include "conv_sequence.cuh"

namespace dualscale {
namespace {

// Rows of a thread: as many as fill the chip a whole number of times, so that no part of it waits for the last
// blocks, and each as long as that allows, since what comes before a thread's first row costs as much as some
// five rows.
int chunk_of(int64_t length, int64_t columns, int device) {
  const int64_t places = static_cast<int64_t>(multiprocessors(device)) * kConvBlocks * kConvThreads;
  const int64_t times = ceil_div(columns * length, places * kMostRows);
  const int64_t chunks = std::max<int64_t>(places * times / columns, 1);
  const int64_t rows = ceil_div(ceil_div(length, chunks), kTurn) * kTurn;
  return static_cast<int>(std::max<int64_t>(rows, kLeastRows));
}

Tensor causal_conv1d_encode(const Tensor& x, const OptionalTensor& x_code, const Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& initial,
                            const OptionalTensor& code, ScalarType dtype, const OptionalTensor& mask,
                            const OptionalTensor& outliers) {
  const char* op = "causal_conv1d_encode";
  check_dim({op, "x"}, x, 3);
  const ConvParameters p = checked_parameters(op, x, x_code, weight, bias, code, dtype, Codes::kAnyOrPair);
  if (initial) {
    check_state({op, "initial"}, *initial, x, p.taps, p.channels);
  }
  const SelectorView selectors =
      checked_selectors(op, "mask", "outliers", code, mask, outliers, x.size(1), p.channels, x);
  Tensor out = torch::stable::new_empty(x, x.sizes(), code ? ScalarType::Char : dtype);
  if (x.numel() == 0) {
    return out;
  }
  const OnDevice device(x);
  Sequence s{x.size(1), x.stride(0), x.stride(1)};
  s.initial_batch_stride = initial ? initial->stride(0) : 0;
  s.initial_row_stride = initial ? initial->stride(1) : 0;
  s.vectors = static_cast<unsigned>(ceil_div(p.channels, kConvVector));
  s.chunk = chunk_of(s.length, s.vectors * x.size(0), x.get_device_index());
  if (selectors.lists != nullptr) {  // whole tiles
    s.vectors = static_cast<unsigned>(ceil_div(s.vectors, kSegment) * kSegment);
    s.chunk = static_cast<int>(ceil_div(s.chunk, kListTokens)) * kListTokens;
  }
  s.chunks = static_cast<unsigned>(ceil_div(s.length, s.chunk));
  s.batch = static_cast<unsigned>(x.size(0));
  const int64_t items = static_cast<int64_t>(s.vectors) * s.chunks * x.size(0);
  if (items > std::numeric_limits<int32_t>::max()) {
    refuse({op, "x"}, "has shape " + shape_of(x), "at most 2^31 pieces of 8 channels and 8 rows");
  }
  const SequenceCall call{x, initial, out, p, s, grid_of(op, ceil_div(items, kConvThreads)), device.stream};
  if (selectors.mask != nullptr) {
    launch_pairs(call, selectors);
    return out;
  }
  dispatch_activation(x.scalar_type(), [&](auto input) {
    dispatch_result(p.code, dtype, [&](auto result) {
      launch_sequence<typename decltype(input)::type, typename decltype(result)::type>(call, NoSelectors{});
    });
  });
  return out;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("causal_conv1d_encode", TORCH_BOX(&dualscale::causal_conv1d_encode));
}

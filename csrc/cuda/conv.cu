// Causal depthwise convolution + bias + SiLU + encode over a sequence: which kernel runs. It is in
// conv_sequence.cuh.
#include "conv_sequence.cuh"

namespace dualscale {
namespace {

Tensor causal_conv1d_encode(const Tensor& x, const OptionalTensor& x_code, const Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& initial,
                            const OptionalTensor& code, ScalarType dtype, const OptionalTensor& mask,
                            const OptionalTensor& outliers) {
  const char* op = kConvName;
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
  s.batch = static_cast<unsigned>(x.size(0));
  const SequenceCall call{x, initial, out, p, s, device.stream};
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

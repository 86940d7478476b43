// One token of a Mamba-1 mixer between its two large projections, as one kernel; since Hopper.
#include "selective_step.cuh"

#include "../linear_checks.h"

namespace dualscale {
namespace {

constexpr const char* kOp = "selective_step";
constexpr int64_t kMostBatch = 65535;

// The names of a product's arguments, for messages.
struct ProductNames {
  const char *weight, *scale, *sum, *group;
};

StepProduct product_of(const ProductNames& names, const Tensor& first, int64_t depth, int64_t columns,
                       const Tensor& weight, const Tensor& scale, const Tensor& sum, int64_t group,
                       const Epilogue& end) {
  StepProduct p{static_cast<const uint8_t*>(weight.data_ptr()), nullptr, static_cast<int>(depth), 0, 0, end};
  p.end.columns = columns;
  p.end.weight_sum = sum.data_ptr();
  if (group == 0) {
    check_typed_parameter({kOp, names.weight}, weight, ScalarType::Char, {columns, depth}, first);
    check_parameter({kOp, names.scale}, scale, {columns}, first);
    check_typed_parameter({kOp, names.sum}, sum, ScalarType::Int, {columns}, first);
    p.end.weight_scale = floats(scale);
    return p;
  }
  if (group < kMinGroup || group > kMaxGroup || (group & (group - 1)) != 0) {
    refuse({kOp, names.group}, "is " + std::to_string(group),
           "0 for int8 weights, or a power of two from " + std::to_string(kMinGroup) + " to " +
               std::to_string(kMaxGroup));
  }
  const int64_t groups = ceil_div(depth, group);
  check_typed_parameter({kOp, names.weight}, weight, ScalarType::Byte, {columns, depth / 2}, first);
  check_typed_parameter({kOp, names.scale}, scale, ScalarType::Half, {columns, groups}, first);
  check_parameter({kOp, names.sum}, sum, {columns}, first);
  p.group_scale = static_cast<const __half*>(scale.data_ptr());
  p.groups = static_cast<int>(groups);
  while (int64_t{1} << p.group_shift < group) {
    ++p.group_shift;
  }
  return p;
}

void check_multiple(const Argument& argument, const char* what, int64_t given, int64_t of) {
  if (given % of != 0) {
    refuse(argument, "has " + std::to_string(given) + " " + what, "a multiple of " + std::to_string(of));
  }
}

// How the channels are dealt out; refuses what does not divide.
void share_channels(SelectiveStep& a, const Tensor& x, const Tensor& base) {
  check_dim({kOp, "base"}, base, 2);
  const int64_t channels = x.size(1), m = base.size(0);
  check_parameter({kOp, "base"}, base, {m, m}, x);
  const int64_t segment = m > 0 ? channels / m : 0, own = channels / kStepBlocks;
  const bool divides = m > 0 && segment * m == channels && (segment & (segment - 1)) == 0 &&
                       segment >= kStepBlocks * kConvVector && own % 32 == 0 && own <= kStepThreads;
  if (!divides) {
    refuse({kOp, "x"}, "has " + std::to_string(channels) + " channels in " + std::to_string(m) + " segments",
           "segments of a power of two, 128 or more, and a multiple of 512 channels up to 8192");
  }
  a.channels = static_cast<int>(channels);
  a.segments = static_cast<int>(m);
  while (int64_t{1} << a.log2_segment < segment) {
    ++a.log2_segment;
  }
  a.rank_columns = static_cast<int>(segment / kStepBlocks);
  a.factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(channels)));
}

StepLayout lay_out(const SelectiveStep& a, int mix_bits, int delta_bits) {
  StepLayout l{};
  const int columns = static_cast<int>(a.mix.end.columns);
  l.own = a.channels / kStepBlocks;
  l.mix_stride = odd_pieces(l.own * mix_bits / 8);
  l.delta_stride = odd_pieces(a.delta.depth * delta_bits / 8);
  l.delta_at = columns * l.mix_stride;
  l.sums_at = l.delta_at + l.own * l.delta_stride;
  l.over_at = l.sums_at + kStepBlocks * columns * 4;
  l.small_at = l.over_at + kStepBlocks * columns * 4;
  l.base_at = l.small_at + static_cast<int>(ceil_div(sizeof(StepShared), 16) * 16);
  l.size = l.base_at + a.segments * a.segments * 4;
  return l;
}

template <class Kernel>
void launch(Kernel kernel, const SelectiveStep& a, const StepLayout& layout, int64_t batch, int device,
            cudaStream_t stream) {
  if (layout.size > shared_limit(device)) {
    refuse({kOp, "x"}, "needs " + std::to_string(layout.size) + " bytes of shared memory a block",
           "at most " + std::to_string(shared_limit(device)) + " on this GPU");
  }
  allow_shared(kernel, layout.size);
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kStepBlocks, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(batch * kStepBlocks));
  config.blockDim = dim3(kStepThreads);
  config.dynamicSmemBytes = layout.size;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, a, layout));
}

template <int kMixBits, int kDeltaBits>
void launch(const SelectiveStep& a, int64_t batch, int device, cudaStream_t stream) {
  const StepLayout layout = lay_out(a, kMixBits, kDeltaBits);
  a.mix.end.knee ? launch(selective_token<kMixBits, kDeltaBits, true>, a, layout, batch, device, stream)
                 : launch(selective_token<kMixBits, kDeltaBits, false>, a, layout, batch, device, stream);
}

Tensor selective_step(const Tensor& x, const Tensor& x_code, const Tensor& z, const Tensor& z_code,
                      const Tensor& conv_state, const Tensor& conv_weight, const OptionalTensor& conv_bias,
                      const Tensor& u_code, bool knee, const Tensor& x_proj_weight,
                      const Tensor& x_proj_scale, const Tensor& x_proj_sum, int64_t x_proj_group,
                      const Tensor& x_proj_code, const Tensor& dt_proj_weight, const Tensor& dt_proj_scale,
                      const Tensor& dt_proj_sum, int64_t dt_proj_group, const Tensor& delta_code,
                      const Tensor& state, const Tensor& A, const OptionalTensor& D,
                      const OptionalTensor& delta_bias, const Tensor& base, const Tensor& code,
                      ScalarType dtype, bool reads_ahead) {
  SelectiveStep a{};
  check_dim({kOp, "x"}, x, 2);
  a.conv = checked_parameters(kOp, x, x_code, conv_weight, conv_bias, u_code, dtype);
  check_type({kOp, "x"}, x, ScalarType::Char);
  share_channels(a, x, base);
  const int64_t batch = x.size(0), channels = a.channels;
  check_result_type({kOp, "dtype"}, dtype);
  check_same_shape({kOp, "z"}, z, x);
  check_activation({kOp, "z"}, z, z_code, Codes::kKneeOneRow, x);
  check_state({kOp, "conv_state"}, conv_state, x, a.conv.taps, channels);
  check_code({kOp, "u_code"}, u_code, channels, Codes::kKneeOneRow, x);
  check_code({kOp, "delta_code"}, delta_code, channels, Codes::kKneeOneRow, x);
  check_code({kOp, "code"}, code, channels, Codes::kKnee, x);
  check_parameter({kOp, "A"}, A, {channels, kStepStates}, x);
  check_parameter({kOp, "D"}, D, {channels}, x);
  check_parameter({kOp, "delta_bias"}, delta_bias, {channels}, x);
  check_ssm_state({kOp, "state"}, state, x, A);
  check_dim({kOp, "dt_proj_weight"}, dt_proj_weight, 2);
  const int64_t rank = dt_proj_weight.size(1) * (dt_proj_group ? 2 : 1), columns = rank + 2 * kStepStates;
  check_multiple({kOp, "dt_proj_weight"}, "inputs", rank, kStepVector);
  check_code({kOp, "x_proj_code"}, x_proj_code, columns, Codes::kKnee, x);
  check_shape({kOp, "x_proj_code"}, x_proj_code, {columns, kKneeWidth});
  if (columns > kStepThreads || (dt_proj_group && ceil_div(rank, dt_proj_group) > 8)) {
    refuse({kOp, "dt_proj_weight"}, "has " + std::to_string(rank) + " inputs",
           "480 at most, in 8 groups at most");
  }
  Epilogue end{};
  end.x_code = floats(u_code);
  end.knee = knee;
  end.code = {floats(x_proj_code), true, false};
  a.mix = product_of({"x_proj_weight", "x_proj_scale", "x_proj_sum", "x_proj_group"}, x, channels, columns,
                     x_proj_weight, x_proj_scale, x_proj_sum, x_proj_group, end);
  end.x_code = floats(x_proj_code);  // all columns of dt have one code
  end.knee = false;
  end.code = view_of(delta_code);
  a.delta = product_of({"dt_proj_weight", "dt_proj_scale", "dt_proj_sum", "dt_proj_group"}, x, rank, channels,
                       dt_proj_weight, dt_proj_scale, dt_proj_sum, dt_proj_group, end);
  for (const Tensor* const tensor : {&x, &z, &conv_state, &conv_weight, &x_proj_weight, &dt_proj_weight,
                                     &state, &A}) {
    if (!is_aligned(*tensor, tensor == &x || tensor == &z || tensor == &conv_state ? kConvVector : 16)) {
      refuse({kOp, "an argument"}, "does not begin, row by row, at a multiple of 16 bytes, or 8 of codes",
             "memory as torch allocates it");
    }
  }
  if (batch > kMostBatch) {
    refuse({kOp, "x"}, "has a batch of " + std::to_string(batch), "at most " + std::to_string(kMostBatch));
  }
  Tensor out = torch::stable::new_empty(x, {batch, channels}, ScalarType::Char);
  const int index = x.get_device_index();
  if (compute_major(index) < 9) {
    refuse({kOp, "x"}, "lies on a GPU of compute capability " + std::to_string(compute_major(index)) + ".x",
           "9.0 or newer; use the operators that this one joins");
  }
  if (batch == 0) {
    return out;
  }
  const OnDevice device(x);
  a.x = static_cast<const int8_t*>(x.data_ptr());
  a.z = static_cast<const int8_t*>(z.data_ptr());
  a.x_stride = x.stride(0);
  a.z_stride = z.stride(0);
  a.conv_state = static_cast<int8_t*>(conv_state.data_ptr());
  a.conv_batch_stride = conv_state.stride(0);
  a.conv_row_stride = conv_state.stride(1);
  a.z_code = floats(z_code);
  a.state = static_cast<float*>(state.data_ptr());
  a.state_stride = state.stride(0);
  a.A = floats(A);
  a.D = floats(D);
  a.delta_bias = floats(delta_bias);
  a.base = floats(base);
  a.code = view_of(code);
  a.kind = kind_of(dtype);
  a.out = static_cast<int8_t*>(out.data_ptr());
  a.ranks = static_cast<int>(rank);
  a.reads_ahead = reads_ahead;
  if (x_proj_group == 0) {
    dt_proj_group == 0 ? launch<8, 8>(a, batch, index, device.stream)
                       : launch<8, 4>(a, batch, index, device.stream);
  } else {
    dt_proj_group == 0 ? launch<4, 8>(a, batch, index, device.stream)
                       : launch<4, 4>(a, batch, index, device.stream);
  }
  return out;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("selective_step", TORCH_BOX(&dualscale::selective_step));
}

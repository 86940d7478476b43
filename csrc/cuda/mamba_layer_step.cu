// One token of a whole Mamba-1 layer as one kernel; since Hopper.
#include "layer_kernel.cuh"

#include "../linear_checks.h"

namespace dualscale {
namespace {

constexpr const char* kOp = "mamba_layer_step";
constexpr int kMostSlots = 32;

// A product with quantized weights, with the names of its arguments for messages.
struct Weights {
  const char *name, *scale_name, *sum_name;
  const Tensor &weight, &scale, &sum;
};

void refuse_size(const char* argument, const char* what, int64_t given, const std::string& allowed) {
  refuse({kOp, argument}, "has " + std::to_string(given) + " " + what, allowed);
}

// Returns the groups of a row of four-bit weights.
LayerGroups check_weights(const Weights& w, const Tensor& first, int64_t rows, int64_t depth, int64_t group) {
  LayerGroups groups{};
  if (group == 0) {
    check_typed_parameter({kOp, w.name}, w.weight, ScalarType::Char, {rows, depth}, first);
    check_parameter({kOp, w.scale_name}, w.scale, {rows}, first);
    check_typed_parameter({kOp, w.sum_name}, w.sum, ScalarType::Int, {rows}, first);
  } else {
    groups.count = static_cast<int>(ceil_div(depth, group));
    while (int64_t{1} << groups.shift < group) {
      ++groups.shift;
    }
    check_typed_parameter({kOp, w.name}, w.weight, ScalarType::Byte, {rows, depth / 2}, first);
    check_typed_parameter({kOp, w.scale_name}, w.scale, ScalarType::Half, {rows, groups.count}, first);
    check_parameter({kOp, w.sum_name}, w.sum, {rows}, first);
  }
  return groups;
}

// Blocks of a launch: so few channels each that there are no more blocks than may be.
int own_channels(int64_t channels) {
  int64_t own = kChannelStep;
  while (own <= kMostOwn && (channels % own != 0 || channels / own > kMostBlocks)) {
    own += kChannelStep;
  }
  return static_cast<int>(own);
}

// How channels and segments are dealt out; refuses what does not divide.
void share_out(LayerStep& a, int64_t channels, int64_t order) {
  a.own = own_channels(channels);
  if (a.own > kMostOwn || channels != 2 * int64_t{a.width}) {
    refuse_size("A", "rows", channels,
                "twice the width, and a multiple of 8, 16, 24, 32 or 40 that 128 blocks can share");
  }
  a.channels = static_cast<int>(channels);
  a.blocks = a.channels / a.own;
  a.base_order = static_cast<int>(order);
  a.segments = order == 1 ? kMadeSegments : a.base_order;
  const int columns = a.segments > 0 ? a.channels / a.segments : 0;
  if (a.segments > kMostSegments || a.segments % 4 != 0 || columns * a.segments != a.channels ||
      (columns != 4 * kSlowestColumns && columns != 8 * kSlowestColumns)) {
    refuse_size("base", "rows", order,
                "1, with 2048 or 4096 channels, or a 128th or 256th of the channels up to 32");
  }
  a.log2_segment = columns == 4 * kSlowestColumns ? 7 : 8;
  a.factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(channels)));
}

// Adds a piece behind the ones before; `at` is where the next one may begin.
void place(LayerStep& a, LayerPiece which, const void* from, int64_t bytes, bool is_own, int& at) {
  if (from == nullptr) {
    return;
  }
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    refuse({kOp, "an argument"},
           "does not begin, or its part for a block does not end, at a multiple of 16 bytes",
           "memory as torch allocates it, and sizes as those of published models");
  }
  a.pieces[which] = {from, static_cast<int>(is_own ? bytes : 0), static_cast<int>(bytes), at};
  at += static_cast<int>(bytes);
}

// The shared memory of a block, of which a multiprocessor has room for two; parameters lie in it already,
// those that are not needed to the end from `room` up to `at`.
void lay_out(LayerStep& a, int bits, int room, int at, int limit) {
  LayerLayout& l = a.at;
  l.row = at;
  l.row_stride = a.width + kRowSkew;
  l.scratch = l.code = room;
  l.code_stride = a.channels + kRowSkew;
  const int scratch = a.segments * ((1 << a.log2_segment) + kSegmentPad) * static_cast<int>(sizeof(float));
  const int end = std::max({at + a.batch * l.row_stride, room + scratch, room + a.batch * l.code_stride});
  l.ring = static_cast<int>(ceil_div(end, 128) * 128);
  l.slot_bytes = 4 * a.width + kRowSkew;
  const bool eight = bits == 8;
  const int in_rows = eight ? SlotRows<8>::kIn : SlotRows<4>::kIn, out_rows = in_rows / 2;
  const int slotted = std::min(a.out_rows(), eight ? SlotRows<8>::kSlotted : SlotRows<4>::kSlotted);
  const int out_slots = static_cast<int>(ceil_div(slotted, out_rows));
  l.slot_shift = 0;
  while (1 << l.slot_shift < std::min(2 * a.own / in_rows + out_slots, kMostSlots) &&
         l.ring + (2 << l.slot_shift) * l.slot_bytes <= limit) {
    ++l.slot_shift;
  }
  const int slots = 1 << l.slot_shift;
  l.size = l.ring + slots * l.slot_bytes;
  if (l.size > limit || slots * in_rows < kTilesAtOnce * kTileRows || slots < out_slots) {
    refuse_size("hidden", "channels", a.width,
                "sizes of which two blocks fit a multiprocessor: those of published models");
  }
}

// All arguments of the operator, as they are given.
struct LayerArguments {
  const Tensor& hidden;
  const OptionalTensor& residual;
  const Tensor& norm_weight;
  const Tensor &in_code, &in_weight, &in_scale, &in_sum, &x_code, &z_code;
  const Tensor &conv_state, &conv_weight;
  const OptionalTensor& conv_bias;
  const Tensor &u_code, &x_proj_weight, &x_proj_scale, &x_proj_sum, &dt_code, &B_code, &C_code;
  const Tensor &dt_proj_weight, &dt_proj_scale, &dt_proj_sum, &delta_code;
  const Tensor &state, &A;
  const OptionalTensor &D, &delta_bias;
  const Tensor &base, &out_code, &out_weight, &out_scale, &out_sum;
  int64_t group_size;
  const Tensor& workspace;
};

void check_codes(const LayerArguments& in) {
  const std::pair<const char*, const Tensor&> codes[] = {
      {"in_code", in.in_code}, {"x_code", in.x_code},         {"z_code", in.z_code},
      {"u_code", in.u_code},   {"dt_code", in.dt_code},       {"B_code", in.B_code},
      {"C_code", in.C_code},   {"delta_code", in.delta_code}, {"out_code", in.out_code}};
  for (const auto& [name, code] : codes) {
    check_code({kOp, name}, code, 1, Codes::kKneeOneRow, in.hidden);
  }
}

// Sizes that follow from the arguments; everything but states and workspace is checked.
LayerStep checked_step(const LayerArguments& in, ScalarType residual_dtype) {
  LayerStep a{};
  check_dim({kOp, "hidden"}, in.hidden, 2);
  checked_norm(kOp, in.hidden, in.residual, in.norm_weight, in.in_code, false, residual_dtype,
               ScalarType::Half);
  check_type({kOp, "hidden"}, in.hidden, ScalarType::Half);
  check_dim({kOp, "A"}, in.A, 2);
  check_dim({kOp, "base"}, in.base, 2);
  check_dim({kOp, "dt_proj_weight"}, in.dt_proj_weight, 2);
  check_codes(in);
  const int64_t batch = in.hidden.size(0), width = in.hidden.size(1), channels = in.A.size(0);
  const int64_t group = in.group_size;
  // dt_proj may have eight bits where the others have four.
  const int64_t delta_group = in.dt_proj_weight.scalar_type() == ScalarType::Char ? 0 : group;
  const int64_t rank = in.dt_proj_weight.size(1) * (delta_group ? 2 : 1);
  if (batch > kLayerBatch || width > kMostWidth || width % 256 != 0) {
    refuse({kOp, "hidden"}, "has shape " + shape_of(in.hidden),
           "4 rows at most of 256, 512, ... 2560 channels");
  }
  if (group != 0 && (group < 128 || group > kMaxGroup || (group & (group - 1)) != 0)) {
    refuse({kOp, "group_size"}, "is " + std::to_string(group),
           "0 for int8 weights, or 128, 256, 512 or 1024");
  }
  a.batch = static_cast<int>(batch);
  a.width = static_cast<int>(width);
  share_out(a, channels, in.base.size(0));
  if (rank % kChannelStep != 0 || rank > kMostRanks || rank + 2 * kLayerStates > kLayerThreads) {
    refuse_size("dt_proj_weight", "inputs", rank, "a multiple of 8 up to 256");
  }
  a.ranks = static_cast<int>(rank);
  const Tensor& first = in.hidden;
  a.in = check_weights({"in_weight", "in_scale", "in_sum", in.in_weight, in.in_scale, in.in_sum}, first,
                       2 * channels, width, group);
  a.mix = check_weights(
      {"x_proj_weight", "x_proj_scale", "x_proj_sum", in.x_proj_weight, in.x_proj_scale, in.x_proj_sum},
      first, a.mix_rows(), channels, group);
  a.delta = check_weights(
      {"dt_proj_weight", "dt_proj_scale", "dt_proj_sum", in.dt_proj_weight, in.dt_proj_scale, in.dt_proj_sum},
      first, channels, rank, delta_group);
  a.last = check_weights({"out_weight", "out_scale", "out_sum", in.out_weight, in.out_scale, in.out_sum},
                         first, width, channels, group);
  check_dim({kOp, "conv_weight"}, in.conv_weight, 2);
  a.taps = static_cast<int>(in.conv_weight.size(1));
  if (a.taps < 2 || a.taps > kMaxTaps) {
    refuse_size("conv_weight", "taps", a.taps, "2, 3 or 4");
  }
  check_parameter({kOp, "conv_weight"}, in.conv_weight, {channels, a.taps}, first);
  check_parameter({kOp, "conv_bias"}, in.conv_bias, {channels}, first);
  check_parameter({kOp, "A"}, in.A, {channels, kLayerStates}, first);
  check_parameter({kOp, "D"}, in.D, {channels}, first);
  check_parameter({kOp, "delta_bias"}, in.delta_bias, {channels}, first);
  check_parameter({kOp, "base"}, in.base, {in.base.size(0), in.base.size(0)}, first);
  return a;
}

void check_states(LayerStep& a, const LayerArguments& in) {
  const int64_t batch = a.batch, channels = a.channels;
  check_shape({kOp, "conv_state"}, in.conv_state, {batch, a.taps - 1, channels});
  check_type({kOp, "conv_state"}, in.conv_state, ScalarType::Char);
  check_same_device({kOp, "conv_state"}, in.conv_state, in.hidden);
  check_last_stride({kOp, "conv_state"}, in.conv_state);
  check_type({kOp, "state"}, in.state, ScalarType::Float);
  check_shape({kOp, "state"}, in.state, {batch, channels, kLayerStates});
  check_same_device({kOp, "state"}, in.state, in.hidden);
  check_last_stride({kOp, "state"}, in.state);
  if (in.state.stride(1) != kLayerStates || !is_aligned(in.state, 16)) {
    refuse({kOp, "state"}, "has gaps between channels, or is not aligned to 16 bytes",
           "states one behind another");
  }
  a.half_words = half_words(a.mix_rows(), a.channels);
  check_typed_parameter({kOp, "workspace"}, in.workspace, ScalarType::Long,
                        {kEpochWords + 2 * int64_t{a.half_words}}, in.hidden);
  if (!is_aligned(in.workspace, 16)) {
    refuse({kOp, "workspace"}, "is not aligned", "memory as torch allocates it");
  }
  a.conv_state = static_cast<int8_t*>(in.conv_state.data_ptr());
  a.conv_batch_stride = in.conv_state.stride(0);
  a.conv_row_stride = in.conv_state.stride(1);
  a.state = static_cast<float*>(in.state.data_ptr());
  a.state_stride = in.state.stride(0);
  a.workspace = static_cast<unsigned long long*>(in.workspace.data_ptr());
}

// What a block copies first, and where everything lies.
void place_all(LayerStep& a, const LayerArguments& in, int limit) {
  const int64_t own = a.own, out = a.out_rows(), bits = in.group_size ? 4 : 8;
  const auto scale_bytes = [](int64_t rows, const LayerGroups& groups) {
    return rows * (groups.count == 0 ? 4 : 2 * groups.count);
  };
  const auto rest = [](const void* from, int64_t bytes) { return static_cast<const uint8_t*>(from) + bytes; };
  a.at.barriers = 0;
  a.at.small = (8 * (kMostSlots + 1) + 15) / 16 * 16;
  a.at.partial = a.at.small + static_cast<int>(sizeof(LayerShared));
  a.at.base = a.at.partial;
  int at = a.at.partial + std::max({2 * kTilesAtOnce * LayerProduct<8>::kPartialBytes,
                                    kMostOutTiles * LayerProduct<8>::kPartialBytes,
                                    kMostSegments * kBaseStride * static_cast<int>(sizeof(__half))});
  const auto code = [&](LayerPiece which, const Tensor& rows) {
    place(a, which, rows.data_ptr(), kKneeWidth * sizeof(float), false, at);
  };
  const auto piece = [&](LayerPiece which, const void* from, int64_t bytes) {
    place(a, which, from, bytes, true, at);
  };
  code(kOutCode, in.out_code);
  piece(kOutScale, in.out_scale.data_ptr(), scale_bytes(out, a.last));
  piece(kOutSum, in.out_sum.data_ptr(), out * 4);
  const int room = at;
  code(kInCode, in.in_code), code(kXCode, in.x_code), code(kZCode, in.z_code), code(kUCode, in.u_code);
  code(kDtCode, in.dt_code), code(kBCode, in.B_code), code(kCCode, in.C_code),
      code(kDeltaCode, in.delta_code);
  const int64_t in_scale = scale_bytes(own, a.in), in_scales = scale_bytes(a.channels, a.in);
  piece(kInScaleX, in.in_scale.data_ptr(), in_scale);
  piece(kInScaleZ, rest(in.in_scale.data_ptr(), in_scales), in_scale);
  piece(kInSumX, in.in_sum.data_ptr(), own * 4);
  piece(kInSumZ, rest(in.in_sum.data_ptr(), int64_t{a.channels} * 4), own * 4);
  piece(kConvWeight, in.conv_weight.data_ptr(), own * a.taps * 4);
  piece(kConvBias, floats(in.conv_bias), own * 4);
  piece(kDeltaWeight, in.dt_proj_weight.data_ptr(), own * a.ranks / (a.delta.count == 0 ? 1 : 2));
  piece(kDeltaScale, in.dt_proj_scale.data_ptr(), scale_bytes(own, a.delta));
  piece(kDeltaSum, in.dt_proj_sum.data_ptr(), own * 4);
  piece(kDeltaBias, floats(in.delta_bias), own * 4);
  piece(kRate, in.A.data_ptr(), own * kLayerStates * 4);
  piece(kSkip, floats(in.D), own * 4);
  lay_out(a, static_cast<int>(bits), room, at, limit);
}

// How many blocks of a kernel a chip has room for; asked once for a size.
template <int kBits, bool kKnee>
int room_for(int size, int device) {
  static thread_local int known_device = -1, known_size = -1, known = 0;
  if (device != known_device || size != known_size) {
    const auto kernel = layer_step<kBits, kKnee>;
    allow_shared(kernel, size);
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                        cudaSharedmemCarveoutMaxShared));
    int blocks = 0;
    STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kLayerThreads, size));
    known = blocks * multiprocessors(device);
    known_device = device;
    known_size = size;
  }
  return known;
}

template <int kBits, bool kKnee>
void launch(const LayerStep& a, int device, cudaStream_t stream) {
  const int room = room_for<kBits, kKnee>(a.at.size, device), processors = multiprocessors(device);
  // Those without a share hold places, so that each multiprocessor has one block of a launch.
  const int blocks = processors >= a.blocks && processors - a.blocks < kEpochWords ? processors : a.blocks;
  if (room < 2 * blocks) {  // two launches lie beside each other
    refuse({kOp, "hidden"}, "lies on a GPU with room for " + std::to_string(room) + " blocks",
           std::to_string(2 * blocks) + "; use the operators that this one joins");
  }
  launch_early(layer_step<kBits, kKnee>, dim3(blocks), kLayerThreads, a.at.size, device, stream, a);
}

std::tuple<Tensor, Tensor> run(const LayerArguments& in, double eps, bool knee, ScalarType residual_dtype,
                               bool reads_ahead) {
  LayerStep a = checked_step(in, residual_dtype);
  check_states(a, in);
  const int index = in.hidden.get_device_index();
  if (compute_major(index) < 9) {
    refuse({kOp, "hidden"},
           "lies on a GPU of compute capability " + std::to_string(compute_major(index)) + ".x",
           "9.0 or newer; use the operators that this one joins");
  }
  Tensor out = torch::stable::new_empty(in.hidden, in.hidden.sizes(), ScalarType::Half);
  Tensor total = torch::stable::new_empty(in.hidden, in.hidden.sizes(), residual_dtype);
  if (a.batch == 0) {
    return {out, total};
  }
  const OnDevice device(in.hidden);
  const int limit = attribute_of<cudaDevAttrMaxSharedMemoryPerMultiprocessor>(index) / 2 -
                    attribute_of<cudaDevAttrReservedSharedMemoryPerBlock>(index);
  place_all(a, in, limit);
  const Rows hidden = rows_of(in.hidden), residual = in.residual ? rows_of(*in.residual) : hidden;
  a.hidden = static_cast<const __half*>(hidden.tensor.data_ptr());
  a.hidden_stride = hidden.stride;
  a.residual = in.residual ? row_input(residual) : Input{};
  if (!is_aligned(hidden.tensor, 16) || !a.residual.aligned || !is_aligned(in.norm_weight, 16) ||
      !is_aligned(in.x_proj_weight, 8) || !is_aligned(in.in_weight, 16) || !is_aligned(in.out_weight, 16)) {
    refuse({kOp, "an argument"}, "does not begin, row by row, at a multiple of 16 bytes",
           "memory as torch allocates it");
  }
  a.total = total.data_ptr();
  a.total_kind = kind_of(total);
  a.out = static_cast<__half*>(out.data_ptr());
  a.norm_weight = floats(in.norm_weight);
  a.eps = static_cast<float>(eps);
  a.in_weight = static_cast<const uint8_t*>(in.in_weight.data_ptr());
  a.mix_weight = static_cast<const uint8_t*>(in.x_proj_weight.data_ptr());
  a.mix_scale = in.x_proj_scale.data_ptr();
  a.mix_sum = in.x_proj_sum.data_ptr();
  a.out_weight = static_cast<const uint8_t*>(in.out_weight.data_ptr());
  a.base = floats(in.base);
  a.has_conv_bias = in.conv_bias.has_value();
  a.has_skip = in.D.has_value();
  a.has_delta_bias = in.delta_bias.has_value();
  a.reads_ahead = reads_ahead;
  if (in.group_size == 0) {
    knee ? launch<8, true>(a, index, device.stream) : launch<8, false>(a, index, device.stream);
  } else {
    knee ? launch<4, true>(a, index, device.stream) : launch<4, false>(a, index, device.stream);
  }
  return {out, total};
}

std::tuple<Tensor, Tensor> mamba_layer_step(
    const Tensor& hidden, const OptionalTensor& residual, const Tensor& norm_weight, double eps,
    const Tensor& in_code, const Tensor& in_weight, const Tensor& in_scale, const Tensor& in_sum,
    const Tensor& x_code, const Tensor& z_code, const Tensor& conv_state, const Tensor& conv_weight,
    const OptionalTensor& conv_bias, const Tensor& u_code, bool knee, const Tensor& x_proj_weight,
    const Tensor& x_proj_scale, const Tensor& x_proj_sum, const Tensor& dt_code, const Tensor& B_code,
    const Tensor& C_code, const Tensor& dt_proj_weight, const Tensor& dt_proj_scale,
    const Tensor& dt_proj_sum, const Tensor& delta_code, const Tensor& state, const Tensor& A,
    const OptionalTensor& D, const OptionalTensor& delta_bias, const Tensor& base, const Tensor& out_code,
    const Tensor& out_weight, const Tensor& out_scale, const Tensor& out_sum, int64_t group_size,
    ScalarType residual_dtype, const Tensor& workspace, bool reads_ahead) {
  const LayerArguments given{
      hidden,       residual,   norm_weight, in_code,     in_weight,  in_scale,       in_sum,
      x_code,       z_code,     conv_state,  conv_weight, conv_bias,  u_code,         x_proj_weight,
      x_proj_scale, x_proj_sum, dt_code,     B_code,      C_code,     dt_proj_weight, dt_proj_scale,
      dt_proj_sum,  delta_code, state,       A,           D,          delta_bias,     base,
      out_code,     out_weight, out_scale,   out_sum,     group_size, workspace};
  return run(given, eps, knee, residual_dtype, reads_ahead);
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("mamba_layer_step", TORCH_BOX(&dualscale::mamba_layer_step));
}

// State space duality over a sequence. The kernels are in ssd_scan.cuh (half types) and ssd_steps.cuh (fp32).
#include "ssd_launch.cuh"
#include "ssd_steps.cuh"

namespace dualscale {
namespace {

constexpr int64_t kMaxHalfLength = int64_t{1} << 30;  // the kernels count tokens and channels in 32 bits

template <int kLanes, int kRows>
void launch_steps(SsdSteps a, const OnDevice& device) {
  a.rows = StepBlock<8, kLanes, kRows, 16>::kRowsAtOnce;
  a.tiles = static_cast<int>(ceil_div(a.in.head_dim, a.rows));
  const int64_t blocks = a.in.batch * a.in.heads * a.tiles;
  ssd_steps<kLanes, kRows><<<grid_of("ssd_scan", blocks), kStepThreads, 0, device.stream>>>(a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_fp32(const SsdSteps& a, const OnDevice& device) {
  if (a.in.states <= 16) {
    launch_steps<2, 1>(a, device);
  } else if (a.in.states <= 32) {
    launch_steps<4, 2>(a, device);
  } else if (a.in.states <= 64) {
    launch_steps<8, 4>(a, device);
  } else if (a.in.states <= 128) {
    launch_steps<16, 8>(a, device);
  } else {
    launch_steps<32, 8>(a, device);
  }
}

std::tuple<Tensor, Tensor> run_ssd_scan(const Tensor& x, const OptionalTensor& x_code, const Tensor& delta,
                                        const OptionalTensor& delta_code, const Tensor& A, const Tensor& B,
                                        const OptionalTensor& B_code, const Tensor& C,
                                        const OptionalTensor& C_code, const OptionalTensor& D,
                                        const OptionalTensor& delta_bias, double delta_min, double delta_max,
                                        int64_t groups, const OptionalTensor& initial, int64_t chunk,
                                        ScalarType state_dtype, ScalarType dtype) {
  const SsdArguments arguments{"ssd_scan", x,      x_code, delta,      delta_code, A,         B,     B_code,
                               C,          C_code, D,      delta_bias, delta_min,  delta_max, groups};
  const SsdSizes sizes = checked_ssd_scan(arguments, initial, chunk, state_dtype, dtype);
  Tensor y = torch::stable::new_empty(x, x.sizes(), dtype);
  Tensor last =
      torch::stable::new_empty(x, {sizes.batch, sizes.heads, sizes.head_dim, sizes.states}, state_dtype);
  if (last.numel() == 0) {
    return {y, last};
  }
  const OnDevice device(x);
  const int index = x.get_device_index();
  const SsdCommon in = ssd_common(arguments, sizes);
  const StateView before = state_view(initial), after = state_view(last);
  if (dtype == ScalarType::Float) {
    launch_fp32({in, input_of(x, x_code), input_of(B, B_code), input_of(C, C_code), before, after,
                 y.data_ptr(), Kind::kFloat, 0, 0, false},
                device);
    return {y, last};
  }
  if (sizes.length > kMaxHalfLength || sizes.channels() > kMaxHalfLength) {
    refuse({"ssd_scan", "x"}, "has shape " + shape_of(x), "at most 2^30 tokens and channels");
  }
  const SsdScan a{in,
                  ssd_tile(x, x_code, sizes.head_dim),
                  ssd_tile(B, B_code, sizes.states),
                  ssd_tile(C, C_code, sizes.states),
                  0,
                  0,
                  before,
                  after,
                  y.data_ptr()};
  if (dtype == ScalarType::Half) {
    run_ssd_scan_float16(a, device, index);
  } else {
    run_ssd_scan_bfloat16(a, device, index);
  }
  return {y, last};
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) { m.impl("ssd_scan", TORCH_BOX(&dualscale::run_ssd_scan)); }

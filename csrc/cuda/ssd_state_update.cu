// One token of state space duality: the state is read and written once. The kernel is in ssd_steps.cuh.
#include "ssd_steps.cuh"

namespace dualscale {
namespace {

template <class S, int kWidth, int kLanes>
void launch(SsdSteps a, const OnDevice& device, int index) {
  using Block = StepBlock<kWidth, kLanes, 4, 1>;
  // A block decodes its head's inputs once, so it takes as many rows as leave every multiprocessor some
  // blocks.
  const int64_t heads = a.in.batch * a.in.heads;
  a.rows = Block::kMaxRows;
  while (a.rows > Block::kRowsAtOnce &&
         heads * ceil_div(a.in.head_dim, a.rows) < int64_t{4} * multiprocessors(index)) {
    a.rows /= 2;
  }
  a.tiles = static_cast<int>(ceil_div(a.in.head_dim, a.rows));
  launch_early(ssd_update<S, kWidth, kLanes>, grid_of("ssd_state_update", heads * a.tiles), kStepThreads, 0,
               index, device.stream, a);
}

template <class S>
void launch_states(const SsdSteps& a, const OnDevice& device, int index) {
  constexpr int kWidth = 16 / sizeof(S);  // 16 bytes a thread
  if (a.in.states <= 4 * kWidth) {
    launch<S, kWidth, 4>(a, device, index);
  } else if (a.in.states <= 8 * kWidth) {
    launch<S, kWidth, 8>(a, device, index);
  } else if (a.in.states <= 16 * kWidth) {
    launch<S, kWidth, 16>(a, device, index);
  } else if (a.in.states <= 32 * kWidth) {
    launch<S, kWidth, 32>(a, device, index);
  } else {
    launch<S, 8, 32>(a, device, index);
  }
}

Tensor ssd_state_update(const Tensor& state, const Tensor& x, const OptionalTensor& x_code,
                        const Tensor& delta, const OptionalTensor& delta_code, const Tensor& A,
                        const Tensor& B, const OptionalTensor& B_code, const Tensor& C,
                        const OptionalTensor& C_code, const OptionalTensor& D,
                        const OptionalTensor& delta_bias, double delta_min, double delta_max, int64_t groups,
                        ScalarType dtype) {
  const SsdArguments arguments{
      "ssd_state_update", x,         x_code,    delta, delta_code, A, B, B_code, C, C_code, D,
      delta_bias,         delta_min, delta_max, groups};
  const SsdSizes sizes = checked_ssd_state_update(arguments, state, dtype);
  Tensor y = torch::stable::new_empty(x, x.sizes(), dtype);
  if (y.numel() == 0) {
    return y;
  }
  const OnDevice device(x);
  const int index = x.get_device_index();
  const StateView view = state_view(state);
  SsdSteps a{ssd_common(arguments, sizes),
             input_of(x, x_code),
             input_of(B, B_code),
             input_of(C, C_code),
             view,
             view,
             y.data_ptr(),
             kind_of(dtype),
             0,
             0,
             is_aligned(state, 16)};
  if (view.kind == Kind::kHalf) {
    launch_states<__half>(a, device, index);
  } else {
    launch_states<float>(a, device, index);
  }
  return y;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("ssd_state_update", TORCH_BOX(&dualscale::ssd_state_update));
}

// One token of the selective scan: which kernel runs for which sizes. The work is in state_update.cuh.
#include "state_update.cuh"

namespace dualscale {
namespace {

// Blocks of a multiprocessor, at least.
constexpr int resident(bool fast) { return fast ? 5 : 4; }

template <int kLanes, bool kFast, class Selectors>
__global__ void __launch_bounds__(kUpdateThreads, resident(kFast)) update(const __grid_constant__ Token a) {
  using Run = Update<kLanes, kFast, Selectors>;
  __shared__ __align__(16) typename Run::Shared shared;
  Run run(a, shared);
  run.run();
}

// As many blocks as run at once, each with an equal share of the sequences.
template <class Selectors>
void launch(const Token& a, Selectors, bool fast, const Tensor& u, cudaStream_t stream) {
  const auto run = [&](auto kernel, int lanes) {
    const int device = u.get_device_index();
    const unsigned along = grid_of("selective_state_update", ceil_div(a.in.channels * lanes, kUpdateThreads));
    const int64_t groups = ceil_div(a.in.batch, kSequences);
    const int64_t most = std::max<int64_t>(int64_t{resident(fast)} * multiprocessors(device) / along, 1);
    const int64_t turns = ceil_div(groups, std::min(groups, most));
    launch_early(kernel, dim3(along, static_cast<unsigned>(ceil_div(groups, turns))), kUpdateThreads, 0,
                 device, stream, a);
  };
  if (fast) {
    run(update<4, true, Selectors>, 4);
  } else if (a.in.states <= 16) {
    run(update<4, false, Selectors>, 4);
  } else {
    run(update<16, false, Selectors>, 16);
  }
}

Tensor selective_state_update(const Tensor& state, const Tensor& u, const OptionalTensor& u_code,
                              const Tensor& delta, const OptionalTensor& delta_code, const Tensor& A,
                              const Tensor& B, const OptionalTensor& B_code, const Tensor& C,
                              const OptionalTensor& C_code, const OptionalTensor& D, const OptionalTensor& z,
                              const OptionalTensor& z_code, const OptionalTensor& delta_bias,
                              ScalarType dtype, const OptionalTensor& u_mask,
                              const OptionalTensor& u_outliers) {
  const char* op = "selective_state_update";
  const SelectiveArguments given{op, u,      u_code, delta, delta_code, A,          B,      B_code,
                                 C,  C_code, D,      z,     z_code,     delta_bias, u_mask, u_outliers};
  const SelectiveSizes sizes = checked_selective(given, 2, dtype);
  Token a{ssm_of(given, sizes)};
  a.selectors = sizes.selectors;
  check_ssm_state({op, "state"}, state, u, A);
  Tensor y = torch::stable::new_empty(u, u.sizes(), dtype);
  if (y.numel() == 0) {
    return y;
  }
  const OnDevice device(u);
  a.state = static_cast<float*>(state.data_ptr());
  a.batch_stride = state.stride(0);
  a.channel_stride = state.stride(1);
  a.y = y.data_ptr();
  a.result = kind_of(y);
  a.state_aligned = a.in.states % 4 == 0 && is_aligned(state, 16) && is_aligned(A, 16);
  const bool pairs = is_pair(u_code);
  const bool all_codes = u_code && (pairs || !a.in.u.code.is_table) && delta_code;
  const bool fast = all_codes && a.in.states == 16 && a.state_aligned;
  const auto run = [&](auto selectors) { launch(a, selectors, fast, u, device.stream); };
  pairs ? dispatch_selectors(a.selectors, run) : run(NoSelectors{});
  return y;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("selective_state_update", TORCH_BOX(&dualscale::selective_state_update));
}

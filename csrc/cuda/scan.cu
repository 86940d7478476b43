// Selective scan: which kernel runs for which sizes. The kernels are in scan_kernel.cuh.
#include "scan_kernel.cuh"

namespace dualscale {
namespace {

// How many states a thread should keep of 16: fewer make more threads, which small problems need to fill the
// chip, and repeat the work that all threads of a channel share. The cost is in instructions a time step.
int states_per_thread(const ScanArguments& a, int device) {
  constexpr struct {
    int states, channels, cost;
  } kChoices[] = {{2, 16, 22}, {4, 32, 39}, {8, 64, 73}};
  int best = 8;
  int64_t lowest = std::numeric_limits<int64_t>::max();
  for (const auto& choice : kChoices) {
    const int64_t blocks = a.in.batch * ceil_div(a.in.channels, choice.channels);
    const int64_t cost = ceil_div(blocks, multiprocessors(device)) * choice.cost;
    if (cost < lowest) {
      lowest = cost;
      best = choice.states;
    }
  }
  return best;
}

template <bool kAllCodes, bool kFast>
void launch_sixteen(const ScanArguments& a, int states, cudaStream_t stream) {
  switch (states) {
    case 2:
      return launch_scan<kAllCodes, kFast, 2, 8, kAllCodes ? 5 : 4>(a, stream);
    case 4:
      return launch_scan<kAllCodes, kFast, 4, 4, 5>(a, stream);
    default:
      return launch_scan<kAllCodes, kFast, 8, 2, kFast ? 5 : kAllCodes ? 4 : 3>(a, stream);
  }
}

void launch_any(const ScanArguments& a, cudaStream_t stream) {
  if (a.in.states <= 4) {
    return launch_scan<false, false, 4, 1, 3>(a, stream);
  }
  if (a.in.states <= 8) {
    return launch_scan<false, false, 8, 1, 2>(a, stream);
  }
  if (a.in.states <= 32) {
    return launch_scan<false, false, 8, 4, 4>(a, stream);
  }
  if (a.in.states <= 64) {
    return launch_scan<false, false, 8, 8, 4>(a, stream);
  }
  if (a.in.states <= 128) {
    return launch_scan<false, false, 8, 16, 4>(a, stream);
  }
  launch_scan<false, false, 8, 32, 4>(a, stream);
}

std::tuple<Tensor, Tensor> selective_scan(const Tensor& u, const OptionalTensor& u_code, const Tensor& delta,
                                          const OptionalTensor& delta_code, const Tensor& A, const Tensor& B,
                                          const OptionalTensor& B_code, const Tensor& C,
                                          const OptionalTensor& C_code, const OptionalTensor& D,
                                          const OptionalTensor& z, const OptionalTensor& z_code,
                                          const OptionalTensor& delta_bias, const OptionalTensor& initial,
                                          ScalarType dtype, const OptionalTensor& u_mask,
                                          const OptionalTensor& u_outliers) {
  const char* op = "selective_scan";
  const SelectiveArguments given{op, u,      u_code, delta, delta_code, A,          B,      B_code,
                                 C,  C_code, D,      z,     z_code,     delta_bias, u_mask, u_outliers};
  const SelectiveSizes sizes = checked_selective(given, 3, dtype);
  ScanArguments a{ssm_of(given, sizes)};
  a.selectors = sizes.selectors;
  OptionalTensor before;
  if (initial) {
    check_ssm_state({op, "initial"}, *initial, u, A);
    before = initial->is_contiguous() ? *initial : torch::stable::contiguous(*initial);
  }
  Tensor y = torch::stable::new_empty(u, u.sizes(), dtype);
  Tensor last = torch::stable::new_empty(A, {u.size(0), A.size(0), A.size(1)}, ScalarType::Float);
  if (last.numel() == 0) {
    return {y, last};
  }
  const OnDevice device(u);
  a.initial = floats(before);
  a.last = static_cast<float*>(last.data_ptr());
  a.y = y.data_ptr();
  a.result = kind_of(y);
  const bool all_codes = u_code && delta_code && B_code && C_code && (!z || z_code);
  const bool any = a.in.states <= 8 || a.in.states > 16;
  if (any && a.selectors.mask == nullptr) {
    launch_any(a, device.stream);
    return {y, last};
  }
  const int states = states_per_thread(a, u.get_device_index());
  const bool fast = a.in.states == 16 && a.in.channels % (8 * states) == 0 && a.in.u.aligned &&
                    a.in.delta.aligned && a.in.B.aligned && a.in.C.aligned && a.in.z.aligned;
  if (a.selectors.mask != nullptr) {
    launch_pairs(a, all_codes && fast, states, device.stream);
  } else if (!all_codes) {
    launch_sixteen<false, false>(a, states, device.stream);
  } else if (fast) {
    launch_sixteen<true, true>(a, states, device.stream);
  } else {
    launch_sixteen<true, false>(a, states, device.stream);
  }
  return {y, last};
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("selective_scan", TORCH_BOX(&dualscale::selective_scan));
}

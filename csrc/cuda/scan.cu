// Selective scan: which kernel runs for which sizes. The kernels are in scan_kernel.cuh.
#include "scan_kernel.cuh"

namespace dualscale {
namespace {

// How many of sixteen states a lane should keep: fewer make more warps, which small problems need to fill the
// chip, and repeat what all lanes of a channel do alike. The cost is in instructions a token.
int states_of_lane(const ScanArguments& a, int device) {
  constexpr struct {
    int states, channels, cost;
  } kChoices[] = {{2, 16, 25}, {4, 32, 43}, {8, 64, 81}};
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

void launch_any(const ScanArguments& a, cudaStream_t stream) {
  if (a.in.states <= 32) {
    return launch_scan<ScanShape<false, 4, 8>, 4>(a, stream);
  }
  if (a.in.states <= 64) {
    return launch_scan<ScanShape<false, 8, 8>, 4>(a, stream);
  }
  if (a.in.states <= 128) {
    return launch_scan<ScanShape<false, 16, 8>, 3>(a, stream);
  }
  launch_scan<ScanShape<false, 32, 8>, 2>(a, stream);
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
  constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max() - 1024;  // tokens are counted in 32 bits
  if (sizes.length > kMaxLength) {
    refuse({op, "u"}, "has " + std::to_string(sizes.length) + " tokens",
           "at most " + std::to_string(kMaxLength));
  }
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
  const int states = states_of_lane(a, u.get_device_index());
  const bool pairs = is_pair(u_code);
  const bool all_codes = u_code && (pairs || !a.in.u.code.is_table) && delta_code && a.in.states == 16;
  if (pairs) {
    launch_pairs(a, all_codes, states, device.stream);
  } else if (a.in.states > 16) {
    launch_any(a, device.stream);
  } else if (all_codes) {
    launch_sixteen<true>(a, states, device.stream);
  } else {
    launch_sixteen<false>(a, states, device.stream);
  }
  return {y, last};
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("selective_scan", TORCH_BOX(&dualscale::selective_scan));
}

// Selective scans of u with two scales: the kernels of scan_kernel.cuh that read selectors. What no model
// asks for runs as a few general ones.
#include "scan_kernel.cuh"

namespace dualscale {
namespace {

template <class Selectors>
void launch(const ScanArguments& a, bool all_codes, int states, cudaStream_t stream) {
  if (all_codes) {
    return launch_sixteen<true, Selectors>(a, states, stream);
  }
  if (a.in.states <= 16) {
    return launch_scan<ScanShape<false, 4, 4>, 4, Selectors>(a, stream);
  }
  if (a.in.states <= 64) {
    return launch_scan<ScanShape<false, 8, 8>, 4, Selectors>(a, stream);
  }
  launch_scan<ScanShape<false, 32, 8>, 2, Selectors>(a, stream);
}

}  // namespace

void launch_pairs(const ScanArguments& a, bool all_codes, int states, cudaStream_t stream) {
  dispatch_selectors(a.selectors,
                     [&](auto selectors) { launch<decltype(selectors)>(a, all_codes, states, stream); });
}

}  // namespace dualscale

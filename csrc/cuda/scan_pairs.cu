// Selective scans of u with two scales: the kernels of scan_kernel.cuh that read selectors. What no model
// asks for runs as a few general ones.
#include "scan_kernel.cuh"

namespace dualscale {
namespace {

template <class Selectors>
void launch(const ScanArguments& a, bool fast, int states, cudaStream_t stream) {
  if (fast) {
    switch (states) {
      case 2:
        return launch_scan<true, true, 2, 8, 5, Selectors>(a, stream);
      case 4:
        return launch_scan<true, true, 4, 4, 5, Selectors>(a, stream);
      default:
        return launch_scan<true, true, 8, 2, 5, Selectors>(a, stream);
    }
  }
  if (a.in.states <= 4) {
    return launch_scan<false, false, 4, 1, 3, Selectors>(a, stream);
  }
  if (a.in.states <= 16) {
    return launch_scan<false, false, 4, 4, 4, Selectors>(a, stream);
  }
  if (a.in.states <= 64) {
    return launch_scan<false, false, 8, 8, 3, Selectors>(a, stream);
  }
  launch_scan<false, false, 8, 32, 4, Selectors>(a, stream);
}

}  // namespace

void launch_pairs(const ScanArguments& a, bool fast, int states, cudaStream_t stream) {
  dispatch_selectors(a.selectors,
                     [&](auto selectors) { launch<decltype(selectors)>(a, fast, states, stream); });
}

}  // namespace dualscale

// State space duality over a sequence with products in bfloat16.
#include "ssd_launch.cuh"

namespace dualscale {

void run_ssd_scan_bfloat16(const SsdScan& a, const OnDevice& device, int index) {
  launch_ssd_states<__nv_bfloat16>(a, device, index);
}

}  // namespace dualscale

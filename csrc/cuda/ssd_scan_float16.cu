// State space duality over a sequence with products in float16.
#include "ssd_launch.cuh"

namespace dualscale {

void run_ssd_scan_float16(const SsdScan& a, const OnDevice& device, int index) {
  launch_ssd_states<__half>(a, device, index);
}

}  // namespace dualscale

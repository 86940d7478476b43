// How many blocks a kernel shall leave registers for.
#pragma once

namespace dualscale {

// Chosen on Hopper; elsewhere one fewer leaves the compiler, which allocates registers differently there,
// enough of them.
constexpr int resident_blocks(int wanted) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  return wanted - 1;
#else
  return wanted;
#endif
}

}  // namespace dualscale

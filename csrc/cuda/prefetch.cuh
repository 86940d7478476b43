// What a kernel will read is brought into the L2 cache before the kernels before it are done. That is no
// read: writes of all multiprocessors meet there, so that nothing old is seen later.
#pragma once

namespace dualscale {

// 32 bytes, at least.
__device__ __forceinline__ void prefetch_sector(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
}

}  // namespace dualscale

// Kernels that begin while the one before them ends (programmatic dependent launch, CUDA programming guide,
// "Programmatic Dependent Launch and Synchronization"): what a block does before it needs the other's
// results, and the launch itself, then cost no time of their own. GPUs older than Hopper launch as ever.
//
// Nothing may be read, and nothing written, before await_earlier(), weights included: whoever changed them
// may be the kernel before. Only where a caller promises that it does not (constant_weight of the linear
// layers) are weights read earlier.
#pragma once

#include <cuda_runtime.h>

#include "launch.cuh"

namespace dualscale {

// Waits until the kernels before are done and all that they wrote is seen. Every thread calls it, so that
// whoever waits for this kernel has waited for those too.
__device__ __forceinline__ void await_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks begin as soon as there is room for them.
__device__ __forceinline__ void admit_later() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Brings 32 bytes, at least, into the L2 cache before the kernels before are done. That is no read: writes of
// all multiprocessors meet there, so that nothing old is seen later.
__device__ __forceinline__ void prefetch_sector(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
}

// Launches a kernel that calls await_earlier().
template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, size_t shared, int device,
                  cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = compute_major(device) >= 9 ? 1 : 0;
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace dualscale

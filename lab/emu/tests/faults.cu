// Kernels with a fault each: tests/faults.sh says which message is wanted.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
extern "C" void emu_option(const char*, long);
__device__ uint32_t smem(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ void wait(uint32_t bar, uint32_t parity) { asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}" ::"r"(bar), "r"(parity) : "memory"); }
__global__ void no_syncwarp(int* out) { __shared__ volatile int s[32]; s[threadIdx.x] = threadIdx.x + 1; out[threadIdx.x] = s[31 - threadIdx.x]; }
__global__ void no_proxy_fence(int* out) {
  __shared__ alignas(128) int s[64]; s[threadIdx.x] = threadIdx.x; __syncthreads();
  if (threadIdx.x == 0) asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 256;\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::"l"(out), "r"(smem(s)) : "memory");
}
__global__ void deadlock(int* out) { __shared__ alignas(8) uint64_t bar; if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 2;" ::"r"(smem(&bar))); __syncthreads(); if (threadIdx.x == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem(&bar)) : "memory"); wait(smem(&bar), 0); out[threadIdx.x] = 1; }
__global__ void outside(int* out) { out[threadIdx.x + 65536] = 1; }
__global__ void misaligned(int* out) { *reinterpret_cast<int4*>(out + 1) = int4{}; }
__global__ void not_met(int* out, unsigned* counter) {  // all threads write, thread 0 signals without waiting for the others
  out[blockIdx.x * 64 + threadIdx.x] = 7; if (threadIdx.x == 0) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory"); unsigned n; do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(counter) : "memory"); while (n < gridDim.x); }
  __syncthreads(); out[1024 + blockIdx.x * 64 + threadIdx.x] = out[(blockIdx.x + 1) % gridDim.x * 64 + threadIdx.x];
}
__global__ void relaxed(int* out, unsigned* counter) {  // no fence before a relaxed signal
  if (threadIdx.x == 0) out[blockIdx.x] = 7; if (threadIdx.x == 0) { asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory"); unsigned n; do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(counter) : "memory"); while (n < gridDim.x); out[64 + blockIdx.x] = out[(blockIdx.x + 1) % gridDim.x]; }
}
__global__ void too_many(int* out, unsigned* counter) { __shared__ int big[11000]; big[threadIdx.x] = 1; if (threadIdx.x == 0) { atomicAdd(counter, 1); while (*reinterpret_cast<volatile unsigned*>(counter) < gridDim.x) __nanosleep(10); } out[threadIdx.x] = big[threadIdx.x]; }
__global__ void different_counts(int* out) { if (threadIdx.x < 32) asm volatile("bar.sync 3, 64;"); else asm volatile("bar.sync 3, 96;"); out[0] = 1; }
__global__ void uninitialised(int* out) { __shared__ int s[64]; if (threadIdx.x < 32) s[threadIdx.x] = 1; __syncthreads(); out[threadIdx.x] = s[63 - threadIdx.x]; }
__global__ void __cluster_dims__(2) gone(int* out) { __shared__ alignas(8) uint64_t bar; uint32_t rank, to; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)); if (rank == 1) { out[0] = 3; return; } for (int i = 0; i < 100; ++i) __syncthreads(); asm("mapa.shared::cluster.u32 %0, %1, 1;" : "=r"(to) : "r"(smem(&bar))); if (threadIdx.x == 0) asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(to) : "memory"); }
__global__ void no_wait(const int* x, int* out) { __shared__ alignas(16) int s[128]; asm volatile("cp.async.ca.shared.global [%0], [%1], 16;\ncp.async.commit_group;" ::"r"(smem(s + 4 * threadIdx.x)), "l"(x + 4 * threadIdx.x) : "memory"); __syncthreads(); if (threadIdx.x == 0) { int t = 0; for (int i = 0; i < 128; ++i) t += s[i]; out[0] = t; } }
__global__ void unwaited_bulk(const int* x, int* out) { __shared__ alignas(16) int s[128]; __shared__ alignas(8) uint64_t bar; if (threadIdx.x == 0) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(smem(&bar))); asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 512, [%2];" ::"r"(smem(s)), "l"(x), "r"(smem(&bar)) : "memory"); } out[threadIdx.x] = 1; }
int main(int argc, char** argv) {
  int *x, *out; unsigned* counter; cudaMalloc((void**)&x, 4096 * 4); cudaMalloc((void**)&out, 65536 * 4); cudaMalloc((void**)&counter, 4); cudaMemset(counter, 0, 4); cudaMemset(x, 0, 16384);
  const int which = atoi(argv[1]); emu_option("seed", argc > 2 ? atol(argv[2]) : 0); emu_option("races", 2); emu_option("uninitialised", 1); if (argc > 2) emu_option("diverge", 1);
  switch (which) {
    case 0: no_syncwarp<<<1, 32>>>(out); for (int i = 0; i < 32; ++i) if (out[i] != 32 - i) { printf("wrong result\n"); break; } break;
    case 1: no_proxy_fence<<<1, 64>>>(out); break; case 2: deadlock<<<1, 64>>>(out); break; case 3: outside<<<1, 64>>>(out); break; case 4: misaligned<<<1, 1>>>(out); break;
    case 5: not_met<<<4, 64>>>(out, counter); break; case 6: relaxed<<<4, 64>>>(out, counter); break; case 7: too_many<<<132 * 5 + 1, 64>>>(out, counter); break; case 8: different_counts<<<1, 64>>>(out); break;
    case 9: uninitialised<<<1, 64>>>(out); break; case 10: gone<<<2, 64>>>(out); break; case 11: no_wait<<<1, 32>>>(x, out); if (out[0]) printf("wrong result\n"); break; case 12: unwaited_bulk<<<1, 32>>>(x, out); break;
  }
  if (cudaError_t e = cudaGetLastError()) printf("%s\n", cudaGetErrorString(e)); return 0;
}

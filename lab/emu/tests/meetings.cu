// Blocks that meet: through global memory, in clusters, by st.async, by multicast.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <cuda_runtime.h>
#include <cooperative_groups.h>
extern "C" void emu_option(const char*, long);
namespace cg = cooperative_groups;
#define CHECK(x) do { if (!(x)) { printf("FAILED line %d: %s\n", __LINE__, #x); exit(1); } } while (0)
static void finish() { cudaError_t e = cudaGetLastError(); if (e) { printf("%s\n", cudaGetErrorString(e)); exit(1); } }

// a grid barrier by red.release and ld.acquire
__device__ void meet(unsigned* counter, unsigned wanted) {
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    unsigned seen;
    do { asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory"); if (seen < wanted) __nanosleep(20); } while (seen < wanted);
  }
  __syncthreads();
}
__global__ void grid_sum(const int* x, int* parts, int* out, unsigned* counter, int rounds) {
  for (int r = 0; r < rounds; ++r) {
    if (threadIdx.x == 0) parts[blockIdx.x] = x[blockIdx.x] + r;
    meet(counter, (2 * r + 1) * gridDim.x);
    int s = 0;
    for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) s += parts[i];
    for (int d = 16; d; d /= 2) s += __shfl_xor_sync(~0u, s, d);
    __shared__ int all[32];
    if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x == 0) { int t = 0; for (int i = 0; i < blockDim.x / 32; ++i) t += all[i]; out[r * gridDim.x + blockIdx.x] = t; }
    meet(counter, (2 * r + 2) * gridDim.x);
  }
}
// distributed shared memory
__global__ void __cluster_dims__(4, 1, 1) neighbours(int* out) {
  __shared__ int mine[64];
  auto cluster = cg::this_cluster();
  mine[threadIdx.x] = cluster.block_rank() * 1000 + threadIdx.x;
  cluster.sync();
  int* other = cluster.map_shared_rank(mine, (cluster.block_rank() + 1) % 4);
  out[blockIdx.x * 64 + threadIdx.x] = other[63 - threadIdx.x];
  cluster.sync();
}
__device__ uint32_t smem(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ void wait(uint32_t bar, uint32_t parity) {
  asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}" ::"r"(bar), "r"(parity) : "memory");
}
// every block sends 16 bytes to every block of its cluster by st.async, and counts arrivals remotely
__global__ void exchange(int* out, int rounds) {
  __shared__ alignas(16) int box[2][16][4];
  __shared__ alignas(8) uint64_t full[2], empty[2];
  uint32_t rank, size;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)); asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  if (threadIdx.x == 0) {
    for (int b = 0; b < 2; ++b) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(smem(&full[b]))); asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem(&empty[b])), "r"(size)); }
    asm volatile("fence.mbarrier_init.release.cluster;");
  }
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  for (int r = 0; r < rounds; ++r) {
    const int b = r & 1; const uint32_t parity = r >> 1 & 1;
    if (threadIdx.x == 0) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem(&full[b])), "r"(16 * size) : "memory");
    if (r >= 2) wait(smem(&empty[b]), parity ^ 1);
    if (threadIdx.x < size) {
      uint32_t to, bar;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(smem(&box[b][rank][0])), "r"(threadIdx.x));
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(bar) : "r"(smem(&full[b])), "r"(threadIdx.x));
      asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to), "r"(rank), "r"(r), "r"(rank * r), "r"(7), "r"(bar) : "memory");
    }
    wait(smem(&full[b]), parity);
    if (threadIdx.x < size) { int s = 0; for (int i = 0; i < 4; ++i) s = s * 31 + box[b][threadIdx.x][i]; out[(r * gridDim.x + blockIdx.x) * 16 + threadIdx.x] = s; }
    __syncthreads();
    if (threadIdx.x < size) { uint32_t bar; asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(bar) : "r"(smem(&empty[b])), "r"(threadIdx.x)); asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory"); }
  }
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// one block copies for all by multicast
__global__ void __cluster_dims__(2, 1, 1) spread(const int* x, int* out) {
  __shared__ alignas(128) int tile[256]; __shared__ alignas(8) uint64_t bar;
  uint32_t rank; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  if (threadIdx.x == 0) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(smem(&bar))); asm volatile("fence.mbarrier_init.release.cluster;"); asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 1024;" ::"r"(smem(&bar)) : "memory"); }
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  if (threadIdx.x == 0) asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], 512, [%2], %3;" ::"r"(smem(tile + 128 * rank)), "l"(x + 128 * rank), "r"(smem(&bar)), "h"((uint16_t)3) : "memory");
  wait(smem(&bar), 0);
  for (int i = threadIdx.x; i < 256; i += blockDim.x) out[blockIdx.x * 256 + i] = tile[i] * 2;
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x) tile[i] = tile[i] + blockIdx.x;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) { asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 1024;\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::"l"(out + 1024 + blockIdx.x * 256), "r"(smem(tile)) : "memory"); }
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// named barriers: producers and consumers
__global__ void named(int* out) {
  __shared__ int slot[64]; const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int r = 0; r < 5; ++r) {
    if (warp < 2) { asm volatile("bar.sync 1, 128;" ::: "memory"); slot[threadIdx.x] = r * 100 + threadIdx.x; __threadfence_block(); asm volatile("bar.arrive 2, 128;" ::: "memory"); }
    else { asm volatile("bar.arrive 1, 128;" ::: "memory"); asm volatile("bar.sync 2, 128;" ::: "memory"); out[r * 64 + threadIdx.x - 64] = slot[63 - (threadIdx.x - 64)]; }
  }
  int n = __syncthreads_count(lane < 3); if (threadIdx.x == 0) out[320] = n; if (threadIdx.x == 1) out[321] = __syncthreads_or(0);
  else { int o = __syncthreads_or(threadIdx.x == 77); if (threadIdx.x == 5) out[322] = o; }
}
int main(int argc, char** argv) {
  const long seed = argc > 1 ? atol(argv[1]) : 0; emu_option("seed", seed); if (seed) { emu_option("diverge", seed % 2); emu_option("async", seed % 3); emu_option("spurious", 1); }
  emu_option("races", 2);
  
  int *x, *parts, *out; unsigned* counter;
  cudaMalloc((void**)&x, 4096 * 4); cudaMalloc((void**)&parts, 4096 * 4); cudaMalloc((void**)&out, 65536 * 4); cudaMalloc((void**)&counter, 4); cudaMemset(counter, 0, 4);
  for (int i = 0; i < 4096; ++i) x[i] = i * 7 + 3;
  const int grid = 264, rounds = 3; grid_sum<<<grid, 96>>>(x, parts, out, counter, rounds); finish();
  for (int r = 0; r < rounds; ++r) { int s = 0; for (int i = 0; i < grid; ++i) s += x[i] + r; for (int i = 0; i < grid; ++i) CHECK(out[r * grid + i] == s); }
  neighbours<<<8, 64>>>(out); finish();
  for (int b = 0; b < 8; ++b) for (int t = 0; t < 64; ++t) CHECK(out[b * 64 + t] == (b % 4 + 1) % 4 * 1000 + 63 - t);
  for (int size : {1, 2, 8, 16}) {
    cudaLaunchConfig_t c{}; c.gridDim = dim3(2 * size); c.blockDim = dim3(64); cudaLaunchAttribute a{}; a.id = cudaLaunchAttributeClusterDimension; a.val.clusterDim.x = size; a.val.clusterDim.y = 1; a.val.clusterDim.z = 1; c.attrs = &a; c.numAttrs = 1;
    if (size > 8) cudaFuncSetAttribute((const void*)exchange, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    cudaLaunchKernelEx(&c, exchange, out, 7); finish();
    for (int r = 0; r < 7; ++r) for (int b = 0; b < 2 * size; ++b) for (int t = 0; t < size; ++t) { int s = 0; for (int v : {t, r, t * r, 7}) s = s * 31 + v; CHECK(out[(r * 2 * size + b) * 16 + t] == s); }
  }
  spread<<<2, 64>>>(x, out); finish();
  for (int b = 0; b < 2; ++b) for (int i = 0; i < 256; ++i) { CHECK(out[b * 256 + i] == 2 * x[i]); CHECK(out[1024 + b * 256 + i] == x[i] + b); }
  named<<<1, 128>>>(out); 
  { cudaError_t e = cudaGetLastError(); if (e) { printf("%s\n", cudaGetErrorString(e)); } }
  for (int r = 0; r < 5; ++r) for (int t = 0; t < 64; ++t) CHECK(out[r * 64 + t] == r * 100 + 63 - t);
  CHECK(out[320] == 12);
  printf("meetings: all right (seed %ld)\n", seed); return 0;
}

// Hopper's asynchronous parts, as thin as they come, beside those of bulk.cuh: copies of boxes of a tensor
// (TMA), and products of int8 matrices by a group of four warps (wgmma). Only in code for sm_90a.
//
// A tile of codes lies in shared memory as rows of 128 bytes, in the 128-byte swizzle of the copies: of each
// eight rows, row r holds its sixteen-byte pieces in the order piece ^ r. Tiles begin at multiples of 1024
// bytes.
#pragma once

#include <cuda.h>

#include "bulk.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DUALSCALE_HOPPER 1
#endif

namespace dualscale {

constexpr int kLineBytes = 128;      // of a row of a tile: codes of one step
constexpr int kCodesOfProduct = 32;  // that one product takes of each row

#if defined(DUALSCALE_HOPPER)

// Arrives at the same barrier of block `rank` of the cluster. Without the order of a release in the whole
// cluster, which would wait for memory: what a barrier here hands on was read by products that have ended, or
// comes by a copy.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Arrives at a barrier of this block.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// A box of the tensor at (column, row) into shared memory; with blocks other than 0 into that of each block
// of the cluster whose bit is set, where it counts for the same barrier.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column,
                                         int row, uint16_t blocks) {
  if (blocks == 0) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
        "%4}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], "
        "[%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
        : "memory");
  }
}

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Waits for all threads of the cluster, not for what they wrote: that would be a fence of the whole device.
// Barriers in shared memory are known to the others after `fence_for_cluster`.
__device__ __forceinline__ void cluster_meet() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
__device__ __forceinline__ void fence_for_cluster() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Fetches the description of a tensor, which a copy would have to wait for.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Where in block `rank` of the cluster lies what lies at an address here.
__device__ __forceinline__ uint32_t address_in_block(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// Two words to an address in a block of the cluster, whose barrier counts the bytes.
__device__ __forceinline__ void send_pair(uint32_t to, const int32_t (&v)[2], uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
      "r"(v[0]), "r"(v[1]), "r"(barrier)
      : "memory");
}

// Two words to and from shared memory.
__device__ __forceinline__ void store_pair(uint32_t address, const int32_t (&v)[2]) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(v[0]), "r"(v[1]) : "memory");
}
__device__ __forceinline__ int2 load_pair(uint32_t address) {
  int2 v;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}

// Whether a condition holds for every one of `threads` threads, whole warps; barrier number `id` among them.
__device__ __forceinline__ bool all_of(bool condition, int id, int threads) {
  int all;
  asm volatile(
      "{\n.reg .pred in, out;\nsetp.ne.s32 in, %1, 0;\nbarrier.cta.red.and.pred out, %2, %3, in;\n"
      "selp.s32 %0, 1, 0, out;\n}"
      : "=r"(all)
      : "r"(static_cast<int>(condition)), "r"(id), "r"(threads)
      : "memory");
  return all != 0;
}

// What a product reads of a tile: where it begins, eight rows of 128 bytes after another, swizzled.
__device__ __forceinline__ uint64_t tile_view(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

// The view moved by so many products.
__device__ __forceinline__ uint64_t moved(uint64_t view, int products) {
  return view + products * (kCodesOfProduct >> 4);
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kOpen>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOpen) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#define DUALSCALE_SUMS_8(s, i)                                                                \
  "+r"(s[i]), "+r"(s[i + 1]), "+r"(s[i + 2]), "+r"(s[i + 3]), "+r"(s[i + 4]), "+r"(s[i + 5]), \
      "+r"(s[i + 6]), "+r"(s[i + 7])
#define DUALSCALE_NEXT_SUMS(s, i) DUALSCALE_SUMS_8(s, i), DUALSCALE_SUMS_8(s, i + 8)
#define DUALSCALE_SUMS_16(s) DUALSCALE_NEXT_SUMS(s, 0)
#define DUALSCALE_SUMS_32(s) DUALSCALE_SUMS_16(s), DUALSCALE_NEXT_SUMS(s, 16)
#define DUALSCALE_SUMS_48(s) DUALSCALE_SUMS_32(s), DUALSCALE_NEXT_SUMS(s, 32)
#define DUALSCALE_SUMS_64(s) DUALSCALE_SUMS_48(s), DUALSCALE_NEXT_SUMS(s, 48)
#define DUALSCALE_SUMS_80(s) DUALSCALE_SUMS_64(s), DUALSCALE_NEXT_SUMS(s, 64)

#define DUALSCALE_NUMBERS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define DUALSCALE_NUMBERS_32 \
  DUALSCALE_NUMBERS_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DUALSCALE_NUMBERS_48 \
  DUALSCALE_NUMBERS_32       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define DUALSCALE_NUMBERS_64 \
  DUALSCALE_NUMBERS_48       \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DUALSCALE_NUMBERS_80 \
  DUALSCALE_NUMBERS_64       \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"

// sums (64 x columns, a thread's part) += A (64 x 32 codes) B^T (columns x 32 codes), or = where not `add`. A
// comes from a tile, or from registers as the fragments of four 16 x 32 products.
#define DUALSCALE_PRODUCT(COLUMNS, COUNT, A, B, C, D, E, F)                                               \
  __device__ __forceinline__ void multiply(int32_t (&s)[COUNT], uint64_t a, uint64_t b, bool add) {       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" C                                                   \
                 ", 0;\n"                                                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k32.s32.s8.s8 {" DUALSCALE_NUMBERS_##COUNT \
                 "}, %" A ", %" B ", p;\n}"                                                               \
                 : DUALSCALE_SUMS_##COUNT(s)                                                              \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                           \
  }                                                                                                       \
  __device__ __forceinline__ void multiply(int32_t (&s)[COUNT], const uint32_t (&a)[4], uint64_t b,       \
                                           bool add) {                                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" F                                                   \
                 ", 0;\n"                                                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k32.s32.s8.s8 {" DUALSCALE_NUMBERS_##COUNT \
                 "}, {%" A ", %" B ", %" C ", %" D "}, %" E ", p;\n}"                                     \
                 : DUALSCALE_SUMS_##COUNT(s)                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));       \
  }
DUALSCALE_PRODUCT(32, 16, "16", "17", "18", "19", "20", "21")
DUALSCALE_PRODUCT(64, 32, "32", "33", "34", "35", "36", "37")
DUALSCALE_PRODUCT(96, 48, "48", "49", "50", "51", "52", "53")
DUALSCALE_PRODUCT(128, 64, "64", "65", "66", "67", "68", "69")
DUALSCALE_PRODUCT(160, 80, "80", "81", "82", "83", "84", "85")

#endif

}  // namespace dualscale

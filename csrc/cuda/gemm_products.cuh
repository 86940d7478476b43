// What the products on a Hopper GPU share: the ring of steps in shared memory, and integer sums of 64 rows.
#pragma once

#include "linear.cuh"
#include "wgmma.cuh"

namespace dualscale {

constexpr int kGroupRows = 64;  // of a product of a group of four warps
constexpr int kProducts = kLineBytes / kCodesOfProduct;

#if defined(DUALSCALE_HOPPER)

// A place in the ring. Barriers of a ring: one a stage that says it is full, then one a stage that says it is
// empty. Whoever fills begins with phase 1, so that the first round finds all stages empty.
struct Place {
  int stage = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance(int stages) {
    stage = stage + 1 == stages ? 0 : stage + 1;
    phase ^= stage == 0;
  }
  __device__ __forceinline__ void skip(int steps, int stages) {
    const int at = stage + steps;
    phase ^= at / stages & 1;
    stage = at % stages;
  }
};

// The fragment of x for a product of a step: two matrices of rows, two of codes each.
__device__ __forceinline__ void load_fragment(uint32_t tile, int product, uint32_t (&a)[4]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  load_matrices(tile + row * kLineBytes + ((2 * product + lane / 16) ^ (row % 8)) * 16, a);
}

// Exact sums of 64 rows and some columns, a thread's part; with a knee, x passes through registers, where its
// part beyond the knee is made, which has sums of its own.
template <int kColumns, bool kKnee>
struct Sums {
  static constexpr int kCount = kColumns / 2;
  int32_t plain[kCount], beyond[kKnee ? kCount : 1];

  // Not for their values, which the first product replaces: so that no register keeps those of the tile
  // before.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      plain[i] = 0;
      beyond[kKnee ? i : 0] = 0;
    }
  }

  // Starts products of a step, from the `first` on: rows of x at `rows` times weights at `columns`, tiles in
  // shared memory. The first replaces the sums unless `add`.
  template <int kPart>
  __device__ __forceinline__ void start(uint32_t rows, uint32_t columns, int first, const KneeTerm& term,
                                        bool add) {
    const uint64_t weight = tile_view(columns), row = tile_view(rows);
    uint32_t codes[kPart][4], over[kPart][4];
    if constexpr (kKnee) {
#pragma unroll
      for (int p = 0; p < kPart; ++p) {
        load_fragment(rows, first + p, codes[p]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          over[p][i] = term.excess(codes[p][i]);
        }
      }
    }
    products_begin();
#pragma unroll
    for (int p = 0; p < kPart; ++p) {
      if constexpr (kKnee) {
        multiply(plain, codes[p], moved(weight, first + p), add || p > 0);
        multiply(beyond, over[p], moved(weight, first + p), add || p > 0);
      } else {
        multiply(plain, moved(row, first + p), moved(weight, first + p), add || p > 0);
      }
    }
    products_commit();
  }
};

#endif

}  // namespace dualscale

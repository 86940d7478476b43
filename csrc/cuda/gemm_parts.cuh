// The sums of a tile of some rows on their way to who finishes them. Where the blocks of a cluster share the
// depth, whoever will finish a piece is sent the others' sums of it, to a place for each sender: nobody waits
// for more than that, and sums are always added in the same order.
#pragma once

#include "gemm_finish.cuh"
#include "some_grid.h"

namespace dualscale {

// What a launch says to its blocks.
struct SomeGrid {
  int64_t rows;
  int steps;                             // of 128 codes
  int tiles, column_groups;              // of a cluster's blocks together; those side by side
  int groups, width, parts, neighbours;  // as in SomeCut
  int x_bytes, step_bytes, stage_bytes;  // as in SomeLayout
  int stages;
  int sums_at, parameters_at, barriers_at;  // bytes
  bool constant_weight;                     // whether the weights may be read before earlier kernels are done
};

// A place for every row's scale, beside the columns' parameters.
template <int kColumns, bool kKnee>
struct SomeParameters {
  Columns<int32_t, kColumns, kKnee> columns;
  float row_scale[kMostRowsOfBlock];
};

#if defined(DUALSCALE_HOPPER)

// With parts, the n-th piece is finished by block n % parts of the cluster, which has places for it, one a
// part; else by the warp that has its sums, which go through the warp's only place. Each exists twice with a
// knee.
template <int kColumns, bool kKnee>
struct Parts {
  static constexpr int kPieces = kColumns / kChunkColumns;  // side by side, at most
  static constexpr int kArrays = kKnee ? 2 : 1;

  const SomeGrid& grid;
  uint32_t memory, barrier;
  int part, across, count;  // of the block; pieces side by side; all pieces

  __device__ __forceinline__ Parts(const SomeGrid& grid, uint32_t memory, uint32_t barrier, int part,
                                   int64_t rows)
      : grid(grid), memory(memory), barrier(barrier), part(part) {
    across = (grid.width + kChunkColumns - 1) / kChunkColumns;
    count = across * static_cast<int>(min((rows + 15) / 16, int64_t{grid.groups * kGroupRows / 16}));
  }

  // Says how much will come, before any of it is waited for. A cluster whose blocks share the depth has one
  // tile, so that the barrier has one round.
  __device__ __forceinline__ void expect() const {
    if (grid.parts > 1 && threadIdx.x == 0) {
      const int own = (count - part + grid.parts - 1) / grid.parts;
      barrier_expect(barrier, own * grid.parts * kArrays * kPieceBytes);
    }
  }

  __device__ __forceinline__ uint32_t place(int n, int from, int array) const {
    const int slot = grid.parts > 1 ? n / grid.parts * grid.parts + from : static_cast<int>(threadIdx.x) / 32;
    return memory + (slot * kArrays + array) * kPieceBytes;
  }

  // This thread's sums of a piece into its place, here or in the block that finishes it.
  __device__ __forceinline__ void put(const int32_t* sums, int n, int array) const {
    const int owner = n % grid.parts;
    const uint32_t to = place(n, part, array);
    each_four(sums, [&](int offset, const int32_t(&v)[4]) {
      if (grid.parts > 1) {
        send_four(address_in_block(to + offset, owner), v, address_in_block(barrier, owner));
      } else {
        store_shared(to + offset, v);
      }
    });
  }

  // All of this thread's pieces, or one of them: registers have fixed numbers.
  __device__ __forceinline__ void put(const Sums<kColumns, kKnee>& sums, int only) const {
    const int band = threadIdx.x / 32;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int n = band * across + piece;
      if (piece < across && n < count && (only < 0 || only == n)) {
        put(sums.plain + piece * kPieceSums, n, 0);
        if constexpr (kKnee) {
          put(sums.beyond + piece * kPieceSums, n, 1);
        }
      }
    }
  }

  // Half of the rows of the n-th piece of a tile.
  template <Encoding kEncoding>
  __device__ __forceinline__ void finish_half(const Epilogue& e,
                                              const SomeParameters<kColumns, kKnee>& parameters,
                                              const ResultCode& code, int n, int half, int64_t first_row,
                                              int64_t first_column, bool turned) const {
    const int inside = n % across * kChunkColumns + threadIdx.x % 4 * 8;
    const int own_row = n / across * 16 + half * 8 + threadIdx.x % 32 / 4;
    const EightResults at{inside, first_row + own_row, first_column + inside, parameters.row_scale[own_row]};
    if (at.row >= grid.rows || inside >= grid.width || at.column >= e.columns) {
      return;
    }
    int total[8] = {}, beyond[8] = {};
    for (int from = 0; from < grid.parts; ++from) {
      add_eight(place(n, from, 0), half, total);
      if constexpr (kKnee) {
        add_eight(place(n, from, 1), half, beyond);
      }
    }
    finish_eight<kEncoding, kKnee>(e, parameters.columns, code, total, beyond, turned, at);
  }

  // From the sums in registers to memory.
  template <Encoding kEncoding>
  __device__ __forceinline__ void finish(const Epilogue& e, const SomeParameters<kColumns, kKnee>& parameters,
                                         const ResultCode& code, const Sums<kColumns, kKnee>& sums, int64_t row,
                                         int64_t column, bool turned) const {
    const int warp = threadIdx.x / 32, stride = grid.parts > 1 ? 4 * grid.groups * grid.parts : 1;
    const int first = grid.parts > 1 ? warp * grid.parts + part : warp * across;
    const int end = grid.parts > 1 ? count : min(first + across, count);
    if (grid.parts > 1) {
      put(sums, -1);
      if (first < end) {
        barrier_wait(barrier, 0);
      }
    }
#pragma unroll 1
    for (int n = first; n < end; n += stride) {
      if (grid.parts == 1) {
        put(sums, n);
        __syncwarp();
      }
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        finish_half<kEncoding>(e, parameters, code, n, half, row, column, turned);
      }
      __syncwarp();  // the place has been read before the next piece is put there
    }
  }
};

#endif

}  // namespace dualscale

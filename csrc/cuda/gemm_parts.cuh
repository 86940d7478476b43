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

// With parts, the n-th piece is finished by the block that has part n % parts of the same columns, which has
// places for it, one a part; else by the warp that has its sums, which go through the warp's only place. Each
// exists twice with a knee.
template <int kColumns, bool kKnee>
struct Parts {
  static constexpr int kPieces = kColumns / kChunkColumns;  // side by side, at most
  static constexpr int kArrays = kKnee ? 2 : 1;

  const SomeGrid& grid;
  uint32_t memory, barrier;
  int part, first_block;  // of the block; of the cluster's blocks that have the same columns
  int across, count;      // pieces side by side; all pieces

  __device__ __forceinline__ Parts(const SomeGrid& grid, uint32_t memory, uint32_t barrier, int part,
                                   int first_block, const TilePlace& tile)
      : grid(grid), memory(memory), barrier(barrier), part(part), first_block(first_block) {
    across = (grid.width + kChunkColumns - 1) / kChunkColumns;
    count = across * ((tile.rows + 15) / 16);
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

  // This thread's sums of one of its pieces into the place here, ...
  __device__ __forceinline__ void put(const Sums<kColumns, kKnee>& sums, int n) const {
    with_number<kPieces>(n % across, [&](auto number) {
      constexpr int first = decltype(number)::value * kPieceSums;
      each_pair(sums.plain + first,
                [&](int offset, const int32_t (&v)[2]) { store_pair(place(n, 0, 0) + offset, v); });
      if constexpr (kKnee) {
        each_pair(sums.beyond + first,
                  [&](int offset, const int32_t (&v)[2]) { store_pair(place(n, 0, 1) + offset, v); });
      }
    });
  }

  // ... or all of them to the blocks that finish them.
  __device__ __forceinline__ void send(const Sums<kColumns, kKnee>& sums) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int n = threadIdx.x / 32 * across + piece, owner = first_block + n % grid.parts;
      if (piece < across && n < count) {
        const uint32_t to = address_in_block(place(n, part, 0), owner),
                       arrived = address_in_block(barrier, owner);
        each_pair(sums.plain + piece * kPieceSums,
                  [&](int offset, const int32_t (&v)[2]) { send_pair(to + offset, v, arrived); });
        if constexpr (kKnee) {
          each_pair(sums.beyond + piece * kPieceSums, [&](int offset, const int32_t (&v)[2]) {
            send_pair(to + kPieceBytes + offset, v, arrived);
          });
        }
      }
    }
  }

  // Rows of the n-th piece of a tile: all, or those of one half.
  template <Encoding kEncoding, int kCount>
  __device__ __forceinline__ void finish_rows(const Epilogue& e,
                                              const SomeParameters<kColumns, kKnee>& parameters,
                                              const ResultCode& code, int n, int half, const TilePlace& tile,
                                              bool turned) const {
    const int inside = half * 8 + threadIdx.x % 32 / 4, row = n / across * 16 + inside;
    EightResults at(e, tile, row, n % across * kChunkColumns + threadIdx.x % 4 * 8);
    at.row_scale[0] = parameters.row_scale[row];
    at.row_scale[1] = parameters.row_scale[row + 8 - half * 8];
    if (row >= tile.rows || at.column >= tile.columns) {
      return;
    }
    int total[kCount] = {}, beyond[kCount] = {};
    for (int from = 0; from < grid.parts; ++from) {
      add_eights(place(n, from, 0), inside, total);
      if constexpr (kKnee) {
        add_eights(place(n, from, 1), inside, beyond);
      }
    }
    finish_eights<kEncoding, kKnee>(e, parameters.columns, code, total, beyond, turned, tile, at);
  }

  // From the sums in registers to memory.
  template <Encoding kEncoding>
  __device__ __forceinline__ void finish(const Epilogue& e, const SomeParameters<kColumns, kKnee>& parameters,
                                         const ResultCode& code, const Sums<kColumns, kKnee>& sums,
                                         const TilePlace& tile, bool turned) const {
    const int warp = threadIdx.x / 32, stride = grid.parts > 1 ? 4 * grid.groups * grid.parts : 1;
    const int first = grid.parts > 1 ? warp * grid.parts + part : warp * across;
    const int end = grid.parts > 1 ? count : min(first + across, count);
    if (grid.parts > 1) {
      send(sums);
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
      constexpr int kCount = kKnee ? 8 : 16;
#pragma unroll 1
      for (int half = 0; half < 16 / kCount; ++half) {
        finish_rows<kEncoding, kCount>(e, parameters, code, n, half, tile, turned);
      }
      __syncwarp();  // the place has been read before the next piece is put there
    }
  }
};

#endif

}  // namespace dualscale

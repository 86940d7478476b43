// The sums of a tile on their way through shared memory, from which whole pieces of rows are finished. Where
// the blocks of a cluster share the depth, whoever will finish a piece is sent the others' sums of it, to a
// place for each sender: nobody waits for more than that, and sums are always added in the same order.
#pragma once

#include "eight.cuh"
#include "gemm_columns.cuh"
#include "some_grid.h"

namespace dualscale {

// What a launch says to its blocks.
struct SomeGrid {
  int64_t rows;
  int steps;                                // of 128 codes
  int tiles, column_groups;                 // of a cluster's blocks together; those side by side
  int groups, width, parts, neighbours;     // as in SomeCut
  int x_bytes, step_bytes, stage_bytes;     // as in SomeLayout
  int stages;
  int sums_at, parameters_at, barriers_at;  // bytes
  bool constant_weight;                     // whether the weights may be read before earlier kernels are done
};

#if defined(DUALSCALE_HOPPER)

// Pieces of 16 rows, a warp's, and 32 columns. With parts, the n-th is finished by block n % parts of the
// cluster, which has places for it, one a part; else by the warp that has its sums, which go through the
// warp's only place. Each exists twice with a knee.
template <int kColumns, bool kKnee>
struct Parts {
  static constexpr int kPieces = kColumns / kChunkColumns;  // side by side, at most
  static constexpr int kValues = kPieceBytes / 4 / 32;      // of a lane
  static constexpr int kArrays = kKnee ? 2 : 1;

  const SomeGrid& grid;
  uint8_t* memory;
  uint32_t barrier;
  int part, across, count;  // of the block; pieces side by side; all pieces

  __device__ __forceinline__ Parts(const SomeGrid& grid, uint8_t* memory, uint32_t barrier, int part,
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
    return shared_address(memory) + (slot * kArrays + array) * kPieceBytes;
  }

  // In a place, the eights of columns lie one after the other. In each, lane 4 g + q has sixteen bytes for
  // columns 2 q and 2 q + 1 of rows g and g + 8, whose order changes from one eight to the next; so that
  // neither the writers of sixteen bytes nor the readers of eight meet in a bank.
  static __device__ __forceinline__ int offset(int eight, int g, int q) {
    return eight * 512 + (8 * q + ((g + 2 * q + eight / 2 * 4) & 7)) * 16;
  }

  // This thread's sums of a piece into its place, here or in the block that finishes it.
  __device__ __forceinline__ void put(const int32_t* sums, int n, int array) const {
    const int lane = threadIdx.x % 32, owner = n % grid.parts;
    const uint32_t to = place(n, part, array);
#pragma unroll
    for (int eight = 0; eight < kChunkColumns / 8; ++eight) {
      const int32_t* const four = sums + 4 * eight;
      const int swap = eight % 2 * 2;
      const int32_t v[4] = {four[swap], four[swap + 1], four[2 - swap], four[3 - swap]};
      const uint32_t at = to + offset(eight, lane / 4, lane % 4);
      if (grid.parts > 1) {
        send_four(address_in_block(at, owner), v, address_in_block(barrier, owner));
      } else {
        store_shared(at, v);
      }
    }
  }

  // All of this thread's pieces, or one of them: registers have fixed numbers.
  __device__ __forceinline__ void put(const Sums<kColumns, kKnee>& sums, int only) const {
    const int band = threadIdx.x / 32;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int n = band * across + piece;
      if (piece < across && n < count && (only < 0 || only == n)) {
        put(sums.plain + piece * kValues, n, 0);
        if constexpr (kKnee) {
          put(sums.beyond + piece * kValues, n, 1);
        }
      }
    }
  }

  // Eight columns of a row from all parts.
  __device__ __forceinline__ void add(int n, int array, int half, int (&total)[8]) const {
    const int eight = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
    for (int from = 0; from < grid.parts; ++from) {
      const uint32_t at = place(n, from, array) + ((half ^ eight) & 1) * 8;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int2 pair = load_pair(at + offset(eight, g, q));
        total[2 * q] += pair.x;
        total[2 * q + 1] += pair.y;
      }
    }
  }

  // Eight columns of a row of the n-th piece, to memory.
  template <Encoding kEncoding, class Parameters>
  __device__ __forceinline__ void finish_eight(const Epilogue& e, const Parameters& parameters,
                                               const ResultCode& code, int n, int half, int64_t first_row,
                                               int64_t first_column, bool turned) const {
    const int inside = n % across * kChunkColumns + threadIdx.x % 4 * 8;
    const int own_row = n / across * 16 + half * 8 + threadIdx.x % 32 / 4;
    const int64_t row = first_row + own_row, column = first_column + inside;
    if (row >= grid.rows || inside >= grid.width || column >= e.columns) {
      return;
    }
    int total[8] = {}, beyond[8] = {};
    add(n, 0, half, total);
    if constexpr (kKnee) {
      add(n, 1, half, beyond);
    }
    float v[8];
    const auto find = [&](auto is_turned) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const Column<int32_t> own = parameters.columns.get(inside + i, decltype(is_turned)::value);
        v[i] = value_of<kKnee>(own, total[i], beyond[i], parameters.row_scale[own_row]);
      }
    };
    if (kKnee && turned) {
      find(std::true_type{});
    } else {
      find(std::false_type{});
    }
    code.template encode<kEncoding>(e, v, [&](int i) { return column + i; });
    store_eight<false>(e.y, e.kind, row * e.columns + column, v, e.columns % 8 == 0,
                       static_cast<int>(min(e.columns - column, int64_t{8})));
  }

  // From the sums in registers to memory.
  template <Encoding kEncoding, class Parameters>
  __device__ __forceinline__ void finish(const Epilogue& e, const Parameters& parameters,
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
        finish_eight<kEncoding>(e, parameters, code, n, half, row, column, turned);
      }
      __syncwarp();
    }
  }
};

#endif

}  // namespace dualscale

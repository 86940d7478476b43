// Which tiles of a product of many rows a block of a cluster has, and the copies that bring them.
#pragma once

#include "gemm_products.cuh"

namespace dualscale {

constexpr int kTileRows = 128;
constexpr int kGroupedTiles = 8;  // of a cluster, above each other, before the next columns' weights

struct Grid {
  int64_t rows;
  int steps, row_tiles, column_tiles;
  int cluster_rows, cluster_columns;  // tiles of a cluster: 1 or 2
  const float* group_scale;
  int64_t padded_columns;
  int group_steps;  // of a group that takes whole steps
  int64_t groups;
};

#if defined(DUALSCALE_HOPPER)

// Where a block stands in its cluster.
struct Seat {
  int row, column;
  int listener;  // the block that this lane tells of an empty stage, or none

  __device__ __forceinline__ explicit Seat(const Grid& grid) : row(0), column(0), listener(-1) {
    const int lane = threadIdx.x % 32, rank = static_cast<int>(cluster_rank());
    row = rank % grid.cluster_rows;
    column = rank / grid.cluster_rows;
    if (lane == 0) {
      listener = rank;
    } else if (lane == 1 && grid.cluster_columns > 1) {
      listener = row + (1 - column) * grid.cluster_rows;
    } else if (lane == 2 && grid.cluster_rows > 1) {
      listener = 1 - row + column * grid.cluster_rows;
    }
  }
  // How many blocks tell this one.
  static __device__ __forceinline__ int tellers(const Grid& grid) {
    return grid.cluster_rows + grid.cluster_columns - 1;
  }
};

// Where a tile lies: groups of row tiles, in each of them column by column.
struct Tile {
  int row, column;

  static __device__ __forceinline__ int across(const Grid& grid) {
    return (grid.column_tiles + grid.cluster_columns - 1) / grid.cluster_columns;
  }
  static __device__ __forceinline__ int down(const Grid& grid) {
    return (grid.row_tiles + grid.cluster_rows - 1) / grid.cluster_rows;
  }
  static __device__ __forceinline__ Tile of(const Grid& grid, int index, const Seat& seat) {
    const int in_group = kGroupedTiles * across(grid), first = index / in_group * kGroupedTiles;
    const int height = min(kGroupedTiles, down(grid) - first), rest = index % in_group;
    return {(first + rest % height) * grid.cluster_rows + seat.row,
            rest / height * grid.cluster_columns + seat.column};
  }
  static __device__ __forceinline__ int first(const Grid& grid) {
    return blockIdx.x / (grid.cluster_rows * grid.cluster_columns);
  }
  static __device__ __forceinline__ int stride(const Grid& grid) {
    return gridDim.x / (grid.cluster_rows * grid.cluster_columns);
  }
  static __device__ __forceinline__ int count(const Grid& grid) { return across(grid) * down(grid); }
};

// Copies the steps of all tiles of the block, as far ahead as there is room. A half that two blocks have in
// common comes from the one whose seat has its number.
template <class G>
__device__ __forceinline__ void copy_tiles(const CUtensorMap* x, const CUtensorMap* weight, const Grid& grid,
                                           uint8_t* memory) {
  const uint32_t tiles = shared_address(memory), barriers = tiles + G::kBarriersAt;
  constexpr int kRowHalf = G::kRowBytes / 2, kColumnHalf = G::kColumnBytes / 2;
  const Seat seat(grid);
  const bool share_rows = grid.cluster_columns > 1, share_columns = grid.cluster_rows > 1;
  const auto to_row = static_cast<uint16_t>(share_rows ? (1u | 1u << grid.cluster_rows) << seat.row : 0);
  const auto to_column = static_cast<uint16_t>(share_columns ? 3u << seat.column * grid.cluster_rows : 0);
  Place place{0, 1};
  for (int index = Tile::first(grid); index < Tile::count(grid); index += Tile::stride(grid)) {
    const Tile tile = Tile::of(grid, index, seat);
    for (int step = 0; step < grid.steps; ++step) {
      const uint32_t full = barriers + place.stage * 8, to = tiles + place.stage * G::kStageBytes;
      barrier_wait(barriers + (G::kStages + place.stage) * 8, place.phase);
      barrier_expect(full, G::kStageBytes);
      for (int half = 0; half < 2; ++half) {
        if (!share_rows || half == seat.column) {
          copy_box(to + half * kRowHalf, x, full, step * kLineBytes, tile.row * kTileRows + half * kGroupRows,
                   to_row);
        }
        if (!share_columns || half == seat.row) {
          copy_box(to + G::kRowBytes + half * kColumnHalf, weight, full, step * kLineBytes,
                   tile.column * G::kTileColumns + half * G::kTileColumns / 2, to_column);
        }
      }
      place.advance(G::kStages);
    }
  }
}

#endif

}  // namespace dualscale

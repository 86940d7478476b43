// The product of many rows of int8 with int8 weights on a Hopper GPU (wgmma).
//
// A block computes tiles of 128 rows one after another. One of its three groups of four warps copies steps of
// 128 codes of x and of the weights into shared memory, several steps ahead; the other two multiply 64 rows
// each and finish their sums in registers. Two blocks that form a cluster have neighbouring rows and the same
// columns: each copies half of the weights for both, because it is the second level of the cache that would
// run dry first.
//
// Variants: with the knee term, x passes through registers, where its part beyond the knee is made, and has a
// second set of sums; with group scales, integer sums of a group are added to floating-point ones.
#pragma once

#include "gemm_finish.cuh"

namespace dualscale {

constexpr int kTileRows = 128;
constexpr int kGroupRows = 64;  // of a group of four warps
constexpr int kGemmThreads = 3 * 128;
constexpr int kGroupedTiles = 8;  // pairs of row tiles that are walked before the next columns' weights
constexpr int kProducts = kLineBytes / kCodesOfProduct;

// kFlush: products after which a group may end (1, 2 or 4), or 0 where a column has one scale.
template <int kColumns, bool kKnee, int kFlush>
struct Gemm {
  using Sum = std::conditional_t<kFlush == 0, int32_t, float>;
  static constexpr int kTileColumns = kColumns;
  static constexpr int kSums = kColumns / 2;  // of a thread
  static constexpr int kRowBytes = kTileRows * kLineBytes, kColumnBytes = kColumns * kLineBytes;
  static constexpr int kStages = kColumns > 128 ? 4 : 6, kStageBytes = kRowBytes + kColumnBytes;
  static constexpr int kTileBytes = kStages * kStageBytes;
  using Parameters = Columns<Sum, kColumns, kKnee && kFlush == 0>;
  static constexpr int kStrips = kTileBytes, kParameters = kStrips + 8 * kStripBytes;
  static constexpr int kBarriers = kParameters + (sizeof(Parameters) + 15) / 16 * 16;
  static constexpr int kShared = kBarriers + 2 * kStages * 8;
};

#if defined(DUALSCALE_HOPPER)

// Where a tile lies: groups of row tiles, in each of them column by column.
struct Tile {
  int row, column;

  static __device__ __forceinline__ Tile of(const Grid& grid, int index, int rank) {
    const int pairs = (grid.row_tiles + grid.cluster - 1) / grid.cluster;
    const int in_group = kGroupedTiles * grid.column_tiles, first = index / in_group * kGroupedTiles;
    const int height = min(kGroupedTiles, pairs - first), rest = index % in_group;
    return {(first + rest % height) * grid.cluster + rank, rest / height};
  }
  static __device__ __forceinline__ int count(const Grid& grid) {
    return (grid.row_tiles + grid.cluster - 1) / grid.cluster * grid.column_tiles;
  }
};

// The fragment of x for a product of a step: two matrices of rows, two of codes each.
__device__ __forceinline__ void load_fragment(uint32_t tile, int product, uint32_t (&a)[4]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  load_matrices(tile + row * kLineBytes + ((2 * product + lane / 16) ^ (row % 8)) * 16, a);
}

// A place in the ring of steps.
template <class G>
struct Place {
  int stage = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance() {
    stage = stage + 1 == G::kStages ? 0 : stage + 1;
    phase ^= stage == 0;
  }
};

// Copies the steps of all tiles of the block, as far ahead as there is room.
template <class G>
__device__ __forceinline__ void copy_tiles(const CUtensorMap* x, const CUtensorMap* weight, const Grid& grid,
                                           uint32_t tiles, uint32_t barriers, int rank) {
  constexpr int kHalf = G::kColumnBytes / 2;
  Place<G> place{0, 1};  // the first round finds the room free
  for (int index = blockIdx.x / grid.cluster; index < Tile::count(grid); index += gridDim.x / grid.cluster) {
    const Tile tile = Tile::of(grid, index, rank);
    for (int step = 0; step < grid.steps; ++step) {
      const uint32_t full = barriers + place.stage * 8, to = tiles + place.stage * G::kStageBytes;
      barrier_wait(barriers + (G::kStages + place.stage) * 8, place.phase);
      barrier_expect(full, G::kStageBytes);
      copy_box(to, x, full, step * kLineBytes, tile.row * kTileRows, 0);
      for (int half = 0; half < 2; ++half) {
        const int row = tile.column * G::kTileColumns + half * G::kTileColumns / 2;
        if (grid.cluster == 1 || half == rank) {
          copy_box(to + G::kRowBytes + half * kHalf, weight, full, step * kLineBytes, row,
                   grid.cluster == 1 ? 0 : 3);
        }
      }
      place.advance();
    }
  }
}

// The scales of a group for the columns of this thread, fetched before they are needed.
template <int kSums>
struct GroupScales {
  float2 scale[kSums / 4];

  __device__ __forceinline__ void load(const Grid& grid, int64_t group, int64_t column) {
    const float* const from =
        grid.group_scale + min(group, grid.groups - 1) * grid.padded_columns + column + threadIdx.x % 4 * 2;
#pragma unroll
    for (int k = 0; k < kSums / 4; ++k) {
      scale[k] = *reinterpret_cast<const float2*>(from + 8 * k);
    }
  }

  // total += scale * sums
  template <bool kKnee, int kBeyond>
  __device__ __forceinline__ void add(const KneeTerm& term, const int32_t (&sums)[kSums],
                                      const int32_t (&beyond)[kBeyond], float (&total)[kSums]) const {
#pragma unroll
    for (int at = 0; at < kSums; ++at) {
      const float sum = kKnee ? term.joined(sums[at], beyond[kKnee ? at : 0]) : static_cast<float>(sums[at]);
      total[at] = fmaf(at % 2 ? scale[at / 4].y : scale[at / 4].x, sum, total[at]);
    }
  }
};

// What the two groups of warps that multiply have at hand.
template <int kColumns, bool kKnee, int kFlush>
struct Multiplier {
  using G = Gemm<kColumns, kKnee, kFlush>;
  using Sum = typename G::Sum;
  const Epilogue& e;
  const Grid& grid;
  uint32_t tiles, barriers;
  KneeTerm term;
  Place<G> place;
  int32_t sums[G::kSums], beyond[kKnee ? G::kSums : 1];

  // Not for their values, which the first product replaces: so that no register keeps those of the tile
  // before.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < G::kSums; ++i) {
      sums[i] = 0;
      beyond[kKnee ? i : 0] = 0;
    }
  }
  __device__ __forceinline__ uint32_t rows() const {
    return tiles + place.stage * G::kStageBytes + (threadIdx.x / 128 - 1) * kGroupRows * kLineBytes;
  }
  __device__ __forceinline__ void release(int stage) const {
    const int lane = threadIdx.x % 32;
    if (lane < grid.cluster) {
      barrier_arrive(barriers + (G::kStages + stage) * 8, lane);
    }
  }

  // Issues products of the step at hand from the `first` on; x comes from `codes`, what lies beyond the knee
  // from `over`.
  template <int kCount>
  __device__ __forceinline__ void issue(int first, const uint32_t (&codes)[kCount][4],
                                        const uint32_t (&over)[kCount][4], bool add) {
    const uint64_t weight = tile_view(tiles + place.stage * G::kStageBytes + G::kRowBytes),
                   row = tile_view(rows());
    products_begin();
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      if constexpr (kKnee) {
        multiply(sums, codes[p], moved(weight, first + p), add || p > 0);
        multiply(beyond, over[p], moved(weight, first + p), add || p > 0);
      } else {
        multiply(sums, moved(row, first + p), moved(weight, first + p), add || p > 0);
      }
    }
    products_commit();
  }
  template <int kCount>
  __device__ __forceinline__ void fetch(int first, uint32_t (&codes)[kCount][4],
                                        uint32_t (&over)[kCount][4]) const {
    if constexpr (kKnee) {
#pragma unroll
      for (int p = 0; p < kCount; ++p) {
        load_fragment(rows(), first + p, codes[p]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          over[p][i] = term.excess(codes[p][i]);
        }
      }
    }
  }

  // Exact sums of all steps: without a knee, a step's products run while the next step arrives.
  __device__ __forceinline__ void sum_steps() {
    constexpr int kOpen = kKnee ? 0 : 1;
    int last = 0;
    clear();
    for (int step = 0; step < grid.steps; ++step) {
      uint32_t codes[kProducts][4], over[kProducts][4];
      barrier_wait(barriers + place.stage * 8, place.phase);
      fetch(0, codes, over);
      issue(0, codes, over, step > 0);
      products_wait<kOpen>();
      if (step >= kOpen) {
        release(kKnee ? place.stage : last);
      }
      last = place.stage;
      place.advance();
    }
    if constexpr (!kKnee) {
      products_wait<0>();
      release(last);
    }
  }

  // Sums of groups, times their scales. A group takes whole steps, or a step has several.
  __device__ __forceinline__ void sum_groups(int64_t column, float (&total)[G::kSums]) {
    constexpr int kPart = kFlush ? kFlush : kProducts, kParts = kProducts / kPart;
    clear();
    for (int step = 0; step < grid.steps; ++step) {
      barrier_wait(barriers + place.stage * 8, place.phase);
      const bool begins = kParts > 1 || step % grid.group_steps == 0;
      const bool ends = kParts > 1 || (step + 1) % grid.group_steps == 0 || step + 1 == grid.steps;
#pragma unroll 1
      for (int part = 0; part < kParts; ++part) {
        GroupScales<G::kSums> scales;
        uint32_t codes[kPart][4], over[kPart][4];
        if (ends) {
          scales.load(grid, kParts > 1 ? step * kParts + part : step / grid.group_steps, column);
        }
        fetch(part * kPart, codes, over);
        issue(part * kPart, codes, over, !begins);
        products_wait<0>();
        if (ends) {
          scales.template add<kKnee>(term, sums, beyond, total);
        }
      }
      release(place.stage);
      place.advance();
    }
  }
};

// The parameters of a tile's columns, one column a thread: fetched before its products, in shared memory
// after them.
template <class Sum, int kColumns, bool kKnee>
struct NextColumns {
  static_assert(kColumns <= 256);
  typename Column<Sum>::Fetched fetched;
  float4 code[2], first[2];
  int n;

  __device__ __forceinline__ NextColumns(const Epilogue& e, int64_t column) : n(threadIdx.x - 128) {
    if (n < kColumns) {
      fetched = Column<Sum>::fetch(e, column + n);
      if (e.code.per_channel) {
        const auto* const rows = reinterpret_cast<const float4*>(e.code.rows);
        const int64_t mine = min(column + n, e.columns - 1);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          code[i] = rows[2 * mine + i];
          first[i] = rows[2 * column + i];
        }
      }
    }
  }

  // Whether all columns have one output code.
  __device__ __forceinline__ bool set(const Epilogue& e, Columns<Sum, kColumns, kKnee>& columns) const {
    bool same = true;
    if (n < kColumns) {
      columns.set(n, Column<Sum>::of(e, fetched));
      if (e.code.per_channel) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          same = same && code[i].x == first[i].x && code[i].y == first[i].y && code[i].z == first[i].z &&
                 code[i].w == first[i].w;
        }
      }
    }
    return all_of_group(same);
  }
};

template <int kColumns, bool kKnee, int kFlush>
__device__ __forceinline__ void multiply_tiles(const CUtensorMap* y, const Epilogue& e, const Grid& grid,
                                               uint8_t* memory, uint32_t barriers, int rank) {
  using G = Gemm<kColumns, kKnee, kFlush>;
  using Sum = typename G::Sum;
  const int warp = threadIdx.x / 32 - 4;
  auto& columns = *reinterpret_cast<typename G::Parameters*>(memory + G::kParameters);
  const KneeTerm term = kKnee ? KneeTerm::of(e.x_code) : KneeTerm{};
  const Finisher<kColumns, kKnee && kFlush == 0, Sum> finisher{
      e, grid, y, columns, memory + G::kStrips + warp * kStripBytes, term.turned};
  Multiplier<kColumns, kKnee, kFlush> m{e, grid, shared_address(memory), barriers, term};
  for (int index = blockIdx.x / grid.cluster; index < Tile::count(grid); index += gridDim.x / grid.cluster) {
    const Tile tile = Tile::of(grid, index, rank);
    const int64_t column = static_cast<int64_t>(tile.column) * kColumns;
    const int64_t row = static_cast<int64_t>(tile.row) * kTileRows + warp * 16;
    const NextColumns<Sum, kColumns, kKnee && kFlush == 0> next(e, column);
    if constexpr (kFlush == 0) {
      m.sum_steps();
      finisher.run(m.sums, m.beyond, row, column, next.set(e, columns));
    } else {
      float total[G::kSums] = {};
      m.sum_groups(column, total);
      finisher.run(total, total, row, column, next.set(e, columns));
    }
    all_of_group(true);  // the columns' parameters have been read before the next tile's are written
  }
  if (threadIdx.x % 32 == 0) {
    boxes_wait<0>();
  }
}

#endif

template <int kColumns, bool kKnee, int kFlush>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap weight,
         const __grid_constant__ CUtensorMap y, const __grid_constant__ Epilogue e,
         const __grid_constant__ Grid grid) {
#if defined(DUALSCALE_HOPPER)
  using G = Gemm<kColumns, kKnee, kFlush>;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t tiles = shared_address(memory), barriers = tiles + G::kBarriers;
  const int rank = grid.cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < G::kStages; ++i) {
      barrier_init(barriers + i * 8, 1);
      barrier_init(barriers + (G::kStages + i) * 8, 8 * grid.cluster);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();
  if (threadIdx.x < 128) {
    give_registers<24>();
    if (threadIdx.x == 0) {
      copy_tiles<G>(&x, &weight, grid, tiles, barriers, rank);
    }
    __syncwarp();
  } else {
    take_registers<240>();
    multiply_tiles<kColumns, kKnee, kFlush>(&y, e, grid, memory, barriers, rank);
  }
  cluster_sync();  // another block's copies and arrivals reach into this one until the end
#endif
}

}  // namespace dualscale

// The product of many rows of int8 with int8 weights on a Hopper GPU (wgmma).
//
// A block computes tiles of 128 rows one after another. One of its three groups of four warps copies steps of
// 128 codes of x and of the weights into shared memory, several steps ahead; the other two multiply. They are
// two teams, which take tiles in turn, so that one finishes its sums while the other keeps the tensor cores
// at work; or one team, each with 64 rows of the same tile. Blocks of a cluster have neighbouring tiles: each
// copies half of the rows, or of the weights, that it has in common with another, for both, because it is the
// second level of the cache that would run dry first.
//
// Variants: with the knee term, x passes through registers, where its part beyond the knee is made, and has a
// second set of sums; with group scales, integer sums of a group are added to floating-point ones. For these
// the registers suffice for one team.
#pragma once

#include "ahead.cuh"
#include "gemm_finish.cuh"
#include "gemm_tiles.cuh"

namespace dualscale {

constexpr int kGemmThreads = 3 * 128;
constexpr int kMostBytes = 227 * 1024;

// kFlush: products after which a group may end (1, 2 or 4), or 0 where a column has one scale.
template <int kTeams, int kColumns, bool kKnee, int kFlush>
struct Gemm {
  using Sum = std::conditional_t<kFlush == 0, int32_t, float>;
  static constexpr bool kBeyond = kKnee && kFlush == 0;
  using Parameters = Columns<Sum, kColumns, kBeyond>;  // of a team
  static constexpr int kTeamCount = kTeams, kTileColumns = kColumns;
  static constexpr int kTiles = kTeams;          // of 64 rows, that a group of warps multiplies
  static constexpr int kTeamWarps = 8 / kTeams;  // that finish a tile
  static constexpr int kSums = kColumns / 2;     // of a thread and 64 rows
  static constexpr int kRowBytes = kTileRows * kLineBytes, kColumnBytes = kColumns * kLineBytes;
  static constexpr int kStageBytes = kRowBytes + kColumnBytes;
  static constexpr int kPieces = 8 * kPieceBytes * (kBeyond ? 2 : 1);  // a place for each warp
  static constexpr int kRest = kPieces + kTeams * static_cast<int>(sizeof(Parameters)) + 256;
  static constexpr int kStages = (kMostBytes - kRest) / kStageBytes;
  static constexpr int kPiecesAt = kStages * kStageBytes, kParametersAt = kPiecesAt + kPieces;
  static constexpr int kBarriersAt = kParametersAt + kTeams * static_cast<int>(sizeof(Parameters));
  static constexpr int kShared = kBarriersAt + (2 * kStages + kTeams) * 8;
};

#if defined(DUALSCALE_HOPPER)

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

// A stage's barrier tells rounds apart by one bit, so that a team must not wait for a stage before all stages
// of the tile before have been full: the other team says so when it has begun with the last of them.
struct Turns {
  uint32_t barriers;  // a team's own
  int team, number;   // of the next tile of the team

  __device__ __forceinline__ void await() {
    if (team > 0 || number > 0) {
      barrier_wait(barriers + team * 8, (number - 1 + team) & 1);
    }
    ++number;
  }
  __device__ __forceinline__ void pass_on() const {
    if (threadIdx.x % 32 == 0) {
      barrier_arrive(barriers + (1 - team) * 8);
    }
  }
};

// What a group of warps that multiplies has at hand.
template <class G, bool kKnee, int kFlush>
struct Multiplier {
  using Sum = typename G::Sum;
  const Grid& grid;
  uint32_t tiles, barriers;
  int listener;
  KneeTerm term;
  Turns turns;
  Place place;
  Sums<G::kTileColumns, kKnee> sums[G::kTiles];
  float total[kFlush ? G::kSums : 1];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int tile = 0; tile < G::kTiles; ++tile) {
      sums[tile].clear();
    }
  }
  __device__ __forceinline__ uint32_t stage() const { return tiles + place.stage * G::kStageBytes; }
  // With one team, each group has the rows of its number.
  __device__ __forceinline__ uint32_t rows(int tile) const {
    const int own = G::kTeamCount > 1 ? tile : threadIdx.x / 128 - 1;
    return stage() + own * kGroupRows * kLineBytes;
  }
  __device__ __forceinline__ void release(int stage) const {
    if (listener >= 0) {
      barrier_arrive(barriers + (G::kStages + stage) * 8, listener);
    }
  }

  // Exact sums of all steps: the products of a step, or with a knee of half a one, run while the next arrives
  // and, with a knee, passes through the registers.
  __device__ __forceinline__ void sum_steps() {
    constexpr int kPart = kKnee ? kProducts / 2 : kProducts;
    int last = 0;
    clear();
    if constexpr (G::kTeamCount > 1) {
      turns.await();
    }
    for (int step = 0; step < grid.steps; ++step) {
      barrier_wait(barriers + place.stage * 8, place.phase);
#pragma unroll
      for (int first = 0; first < kProducts; first += kPart) {
#pragma unroll
        for (int tile = 0; tile < G::kTiles; ++tile) {
          sums[tile].template start<kPart>(rows(tile), stage() + G::kRowBytes, first, term,
                                           step > 0 || first > 0);
        }
        products_wait<G::kTiles>();
        if (step > 0 && first == 0) {
          release(last);
        }
      }
      last = place.stage;
      place.advance(G::kStages);
    }
    if constexpr (G::kTeamCount > 1) {
      turns.pass_on();
    }
    products_wait<0>();
    release(last);
  }

  // Sums of groups, times their scales. A group takes whole steps, or a step has several.
  __device__ __forceinline__ void sum_groups(int64_t column) {
    constexpr int kPart = kFlush ? kFlush : kProducts, kParts = kProducts / kPart;
    clear();
#pragma unroll
    for (int i = 0; i < (kFlush ? G::kSums : 1); ++i) {
      total[i] = 0.0f;
    }
    for (int step = 0; step < grid.steps; ++step) {
      barrier_wait(barriers + place.stage * 8, place.phase);
      const bool begins = kParts > 1 || step % grid.group_steps == 0;
      const bool ends = kParts > 1 || (step + 1) % grid.group_steps == 0 || step + 1 == grid.steps;
#pragma unroll 1
      for (int part = 0; part < kParts; ++part) {
        GroupScales<G::kSums> scales;
        if (ends) {
          scales.load(grid, kParts > 1 ? step * kParts + part : step / grid.group_steps, column);
        }
        sums[0].template start<kPart>(rows(0), stage() + G::kRowBytes, part * kPart, term, !begins);
        products_wait<0>();
        if (ends) {
          scales.template add<kKnee>(term, sums[0].plain, sums[0].beyond, total);
        }
      }
      release(place.stage);
      place.advance(G::kStages);
    }
  }

  // This thread's sums of the n-th piece to shared memory.
  __device__ __forceinline__ void put(uint32_t piece, int n) const {
    constexpr int kAcross = G::kTileColumns / kChunkColumns;
    const auto store = [&](int offset, const int32_t (&v)[2]) { store_pair(piece + offset, v); };
    with_number<G::kTiles * kAcross>(n, [&](auto number) {
      constexpr int i = decltype(number)::value, first = i % kAcross * kPieceSums;
      if constexpr (kFlush > 0) {
        each_pair(total + first, store);
      } else {
        each_pair(sums[i / kAcross].plain + first, store);
      }
      if constexpr (G::kBeyond) {
        each_pair(sums[i / kAcross].beyond + first,
                  [&](int offset, const int32_t (&v)[2]) { store_pair(piece + kPieceBytes + offset, v); });
      }
    });
  }

  // Scales and encodes a piece, of which this lane has eight columns of two rows: both at once, or with a
  // knee one after the other.
  template <Encoding kEncoding>
  __device__ __forceinline__ void finish_piece(const Epilogue& e, const typename G::Parameters& columns,
                                               const ResultCode& code, uint32_t piece, const TilePlace& tile,
                                               EightResults at) const {
    constexpr int kCount = G::kBeyond ? 8 : 16;
    const int row = threadIdx.x % 32 / 4;
#pragma unroll 1
    for (int half = 0; half < 16 / kCount && at.row < tile.rows; ++half) {
      Sum found[kCount] = {}, beyond[kCount] = {};
      add_eights(piece, row + half * 8, found);
      if constexpr (G::kBeyond) {
        add_eights(piece + kPieceBytes, row + half * 8, beyond);
      }
      finish_eights<kEncoding, G::kBeyond>(e, columns, code, found, beyond, term.turned, tile, at);
      at.row += 8;
      at.first += 8 * e.columns;
      at.row_scale[0] = at.row_scale[1];
    }
  }

  // Scales and encodes the sums of a tile.
  template <Encoding kEncoding>
  __device__ __forceinline__ void finish(const Epilogue& e, const typename G::Parameters& columns,
                                         const ResultCode& code, uint32_t place,
                                         const TilePlace& tile) const {
    constexpr int kAcross = G::kTileColumns / kChunkColumns;
    const int lane = threadIdx.x % 32, first_row = (threadIdx.x / 32 - 4) % G::kTeamWarps * 16;
    EightResults at(e, tile, first_row + lane / 4, lane % 4 * 8);
#pragma unroll 1
    for (int n = 0; first_row + n / kAcross * kGroupRows < tile.rows && n < G::kTiles * kAcross;
         n += kAcross) {
      if (e.row_scale != nullptr) {
        at.row_scale[0] = e.row_scale[tile.row + min(at.row, tile.rows - 1)];
        at.row_scale[1] = e.row_scale[tile.row + min(at.row + 8, tile.rows - 1)];
      }
#pragma unroll 1
      for (int piece = 0; piece * kChunkColumns < tile.columns; ++piece) {
        put(place, n + piece);
        __syncwarp();
        if (at.column < tile.columns) {
          finish_piece<kEncoding>(e, columns, code, place, tile, at);
        }
        __syncwarp();  // the place has been read before the next piece is put there
        at.column += kChunkColumns;
        at.first += kChunkColumns;
      }
      at = EightResults(e, tile, at.row + kGroupRows, lane % 4 * 8);
    }
  }
};

template <int kTeams, int kColumns, bool kKnee, int kFlush>
__device__ __forceinline__ void multiply_tiles(const Epilogue& e, const Grid& grid, uint8_t* memory) {
  using G = Gemm<kTeams, kColumns, kKnee, kFlush>;
  using Next = NextColumn<typename G::Sum, kColumns, G::kBeyond>;
  constexpr int kTeamThreads = 32 * G::kTeamWarps, kEach = (kColumns + kTeamThreads - 1) / kTeamThreads;
  const int warp = threadIdx.x / 32 - 4, team = kTeams > 1 ? warp / 4 : 0,
            thread = (threadIdx.x - 128) % kTeamThreads;
  auto& columns = reinterpret_cast<typename G::Parameters*>(memory + G::kParametersAt)[team];
  const uint32_t tiles = shared_address(memory), barriers = tiles + G::kBarriersAt,
                 piece = tiles + G::kPiecesAt + warp * (G::kPieces / 8);
  const KneeTerm term = kKnee ? KneeTerm::of(e.x_code) : KneeTerm{};
  Multiplier<G, kKnee, kFlush> m{
      grid, tiles, barriers, Seat(grid).listener, term, {barriers + 2 * G::kStages * 8, team, 0}};
  m.place.skip(team * grid.steps, G::kStages);
  for (int index = Tile::first(grid) + team * Tile::stride(grid); index < Tile::count(grid);
       index += kTeams * Tile::stride(grid)) {
    const Tile tile = Tile::of(grid, index, Seat(grid));  // whose registers nothing else should hold
    const int64_t column = static_cast<int64_t>(tile.column) * kColumns;
    const Next first(e, columns, column, thread, kColumns);
    const Next second(e, columns, column, thread + kTeamThreads, kEach > 1 ? kColumns : 0);
    if constexpr (kFlush == 0) {
      m.sum_steps();
    } else {
      m.sum_groups(column);
    }
    first.set(e);
    second.set(e);
    const TilePlace place(e, grid.rows, static_cast<int64_t>(tile.row) * kTileRows, column, kTileRows,
                          kColumns);
    const ResultCode code{e.code.rows ? output_knee(e, column) : Knee{},
                          all_of(first.same && second.same, 1 + team, kTeamThreads)};
    code.choose(e, [&](auto encoding) {
      m.template finish<decltype(encoding)::value>(e, columns, code, piece, place);
    });
    all_of(true, 1 + team, kTeamThreads);  // the parameters have been read before the next ones are written
    m.place.skip((kTeams - 1) * grid.steps, G::kStages);  // the other team's
  }
}

#endif

template <int kTeams, int kColumns, bool kKnee, int kFlush>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap weight,
         const __grid_constant__ Epilogue e, const __grid_constant__ Grid grid) {
#if defined(DUALSCALE_HOPPER)
  using G = Gemm<kTeams, kColumns, kKnee, kFlush>;
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t barriers = shared_address(memory) + G::kBarriersAt;
  if (threadIdx.x == 0) {
    prefetch_map(&x);
    prefetch_map(&weight);
    for (int i = 0; i < G::kStages; ++i) {
      barrier_init(barriers + i * 8, 1);
      barrier_init(barriers + (G::kStages + i) * 8, G::kTeamWarps * Seat::tellers(grid));
    }
    for (int team = 0; team < kTeams; ++team) {
      barrier_init(barriers + (2 * G::kStages + team) * 8, G::kTeamWarps);
    }
    fence_for_cluster();
    fence_for_copies();
  }
  __syncwarp();
  cluster_meet();
  await_earlier();
  admit_later();
  if (threadIdx.x < 128) {
    give_registers<24>();
    if (threadIdx.x == 0) {
      copy_tiles<G>(&x, &weight, grid, memory);
    }
    __syncwarp();
  } else {
    take_registers<240>();
    multiply_tiles<kTeams, kColumns, kKnee, kFlush>(e, grid, memory);
  }
  cluster_meet();  // another block's copies and arrivals reach into this one until the end
#endif
}

}  // namespace dualscale

// The product of some rows of int8 with int8 weights on a Hopper GPU (wgmma): bound by fetching the weights,
// each of which one block alone takes, but for many rows of few columns.
//
// A block multiplies up to 128 rows, 64 a group of four warps, with the weights of a few columns: as many as
// keep all processors at work, which the tensor cores have time for. One more warp copies steps of 128 codes
// of x and of the weights into a ring in shared memory. Blocks of a cluster share the depth of the same
// columns, and add their sums in each other's shared memory (gemm_parts.cuh); or they have neighbouring
// columns, and share x: in turn each copies a step of it for all of them.
#pragma once

#include "ahead.cuh"
#include "gemm_parts.cuh"

namespace dualscale {

constexpr int kMostThreads = kMostRowsOfBlock / kGroupRows * 128 + 32;

#if defined(DUALSCALE_HOPPER)

// The part of a block in the work: tiles, and of each some steps.
struct SomeWork {
  const SomeGrid& grid;
  int part, neighbour;

  __device__ __forceinline__ explicit SomeWork(const SomeGrid& grid) : grid(grid), part(0), neighbour(0) {
    if (grid.parts * grid.neighbours > 1) {
      const int rank = static_cast<int>(cluster_rank());
      part = rank % grid.parts;
      neighbour = rank / grid.parts;
    }
  }
  __device__ __forceinline__ int first_step() const { return grid.steps * part / grid.parts; }
  __device__ __forceinline__ int end_step() const { return grid.steps * (part + 1) / grid.parts; }
  __device__ __forceinline__ int first() const { return blockIdx.x / (grid.parts * grid.neighbours); }
  __device__ __forceinline__ int after(int tile) const {
    return tile + gridDim.x / (grid.parts * grid.neighbours);
  }
  __device__ __forceinline__ int row(int tile) const {
    return tile / grid.column_groups * grid.groups * kGroupRows;
  }
  __device__ __forceinline__ int column(int tile) const {
    return (tile % grid.column_groups * grid.neighbours + neighbour) * grid.width;
  }
  // The block of this part of the depth that has the n-th of the neighbouring columns.
  __device__ __forceinline__ int block_of(int n) const { return n * grid.parts + part; }
};

// What the warp that copies does.
struct SomeCopies {
  const CUtensorMap* x;
  const CUtensorMap* weight;
  const SomeWork& work;
  uint32_t ring, barriers;

  __device__ __forceinline__ void prepare() const {
    const SomeGrid& grid = work.grid;
    prefetch_map(x);
    prefetch_map(weight);
    for (int i = 0; i < grid.stages; ++i) {
      barrier_init(barriers + i * 8, 1);
      barrier_init(barriers + (grid.stages + i) * 8, 4 * grid.groups * grid.neighbours);
    }
    barrier_init(barriers + 2 * grid.stages * 8, 1);
    fence_for_cluster();
    fence_for_copies();
  }

  // A full stage holds what this block copies and what others copy for it.
  __device__ __forceinline__ void copy_weights(int stage, int tile, int step) const {
    const uint32_t full = barriers + stage * 8;
    barrier_expect(full, work.grid.step_bytes);
    copy_box(ring + stage * work.grid.stage_bytes + work.grid.x_bytes, weight, full, step * kLineBytes,
             work.column(tile), 0);
  }

  // The weights of the first tile for which there is room; returns how many steps.
  __device__ __forceinline__ int start_weights() const {
    const int first = work.first_step(), count = min(work.grid.stages, work.end_step() - first);
    for (int i = 0; i < count; ++i) {
      copy_weights(i, work.first(), first + i);
    }
    return count;
  }

  // Everything else, as far ahead as there is room. A stage is empty when all the neighbours are done with
  // it, and only then is any of it copied, here or by whom x comes from: a barrier's count of a round begins
  // after the one before has ended.
  __device__ __forceinline__ void run(int started) const {
    const SomeGrid& grid = work.grid;
    uint16_t mask = 0;
    for (int n = 0; n < grid.neighbours && grid.neighbours > 1; ++n) {
      mask = static_cast<uint16_t>(mask | 1u << work.block_of(n));
    }
    Place place{0, 1};
    int turn = 0;
    for (int tile = work.first(); tile < grid.tiles; tile = work.after(tile)) {
      for (int step = work.first_step(); step < work.end_step(); ++step) {
        barrier_wait(barriers + (grid.stages + place.stage) * 8, place.phase);
        if (started > 0) {
          --started;
        } else {
          copy_weights(place.stage, tile, step);
        }
        if (turn == work.neighbour) {
          copy_box(ring + place.stage * grid.stage_bytes, x, barriers + place.stage * 8, step * kLineBytes,
                   work.row(tile), mask);
        }
        turn = turn + 1 == grid.neighbours ? 0 : turn + 1;
        place.advance(grid.stages);
      }
    }
  }
};

// What the warps that multiply do.
template <int kColumns, bool kKnee>
struct SomeSums {
  const SomeWork& work;
  uint32_t ring, barriers;
  KneeTerm term;
  Place place;
  Sums<kColumns, kKnee> sums;

  // To all whose x this block may get.
  __device__ __forceinline__ void release(int stage) const {
    const int lane = threadIdx.x % 32;
    if (lane < work.grid.neighbours) {
      barrier_arrive(barriers + (work.grid.stages + stage) * 8, work.block_of(lane));
    }
  }

  // The products of a step, or with a knee of half a one, run while the next arrives and, with a knee, passes
  // through the registers.
  __device__ __forceinline__ void sum_steps() {
    constexpr int kPart = kKnee ? kProducts / 2 : kProducts;
    const SomeGrid& grid = work.grid;
    const uint32_t rows = ring + threadIdx.x / 128 * kGroupRows * kLineBytes, columns = ring + grid.x_bytes;
    int last = -1;
    sums.clear();
    for (int step = work.first_step(); step < work.end_step(); ++step) {
      const int at = place.stage * grid.stage_bytes;
      barrier_wait(barriers + place.stage * 8, place.phase);
#pragma unroll
      for (int first = 0; first < kProducts; first += kPart) {
        sums.template start<kPart>(rows + at, columns + at, first, term, last >= 0 || first > 0);
        products_wait<1>();
        if (first == 0 && last >= 0) {
          release(last);
        }
      }
      last = place.stage;
      place.advance(grid.stages);
    }
    products_wait<0>();
    release(last);
  }
};

template <int kColumns, bool kKnee>
__device__ __forceinline__ void multiply_some(const Epilogue& e, const SomeWork& work, uint8_t* memory,
                                              uint32_t barriers) {
  const SomeGrid& grid = work.grid;
  const int thread = threadIdx.x, threads = grid.groups * 128;
  auto& parameters = *reinterpret_cast<SomeParameters<kColumns, kKnee>*>(memory + grid.parameters_at);
  const KneeTerm term = kKnee ? KneeTerm::of(e.x_code) : KneeTerm{};
  SomeSums<kColumns, kKnee> m{work, shared_address(memory), barriers, term};
  for (int tile = work.first(); tile < grid.tiles; tile = work.after(tile)) {
    const int64_t row = work.row(tile), column = work.column(tile);
    const TilePlace place(e, grid.rows, row, column, grid.groups * kGroupRows, grid.width);
    const Parts<kColumns, kKnee> parts(grid, m.ring + grid.sums_at, barriers + 2 * grid.stages * 8, work.part,
                                       work.neighbour * grid.parts, place);
    parts.expect();
    const NextColumn<int32_t, kColumns, kKnee> next(e, parameters.columns, column, thread, grid.width);
    const ResultCode code{e.code.rows ? output_knee(e, column) : Knee{}, true};
    if (thread < grid.groups * kGroupRows) {
      parameters.row_scale[thread] = e.row_scale ? e.row_scale[min(row + thread, grid.rows - 1)] : 1.0f;
    }
    next.set(e);  // while the first steps arrive
    m.sum_steps();
    const bool same = all_of(next.same, 1, threads);  // and the parameters are there
    ResultCode{code.first, same}.choose(e, [&](auto encoding) {
      parts.template finish<decltype(encoding)::value>(e, parameters, ResultCode{code.first, same}, m.sums,
                                                       place, term.turned);
    });
    all_of(true, 1, threads);  // the parameters have been read before the next tile's are written
  }
}

#endif

template <int kColumns, bool kKnee>
__global__ void __launch_bounds__(kMostThreads, 1)
    some_rows(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap weight,
              const __grid_constant__ Epilogue e, const __grid_constant__ SomeGrid grid) {
#if defined(DUALSCALE_HOPPER)
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t ring = shared_address(memory), barriers = ring + grid.barriers_at;
  const SomeWork work(grid);
  const bool copies = static_cast<int>(threadIdx.x) >= grid.groups * 128, leads = threadIdx.x % 32 == 0;
  const SomeCopies copy{&x, &weight, work, ring, barriers};
  int started = 0;
  if (copies) {
    if (leads) {
      copy.prepare();
      if (grid.constant_weight) {
        started = copy.start_weights();
      }
    }
    __syncwarp();
  }
  cluster_meet();  // all barriers of the cluster are there
  await_earlier();
  admit_later();
  if (copies) {
    if (leads) {
      copy.run(started);
    }
    __syncwarp();
  } else {
    multiply_some<kColumns, kKnee>(e, work, memory, barriers);
  }
  cluster_meet();  // others' copies, sums and arrivals reach into this block until the end
#endif
}

}  // namespace dualscale

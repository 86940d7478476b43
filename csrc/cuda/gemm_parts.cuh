// A tile whose depth is shared by the blocks of a cluster: which steps each block takes, and how the sums
// come together. Whoever will finish some of the tile is sent the others' sums of it, to a place for each
// sender: no memory is needed, nobody waits for more than that, and sums are always added in the same order.
#pragma once

#include "gemm_finish.cuh"

namespace dualscale {

constexpr int kMostSplit = 8;  // blocks of a cluster, on any chip
constexpr int kChunkBytes = 16 * kChunkColumns * 4;

// Places for chunks, however many blocks share them evenly.
constexpr int places_of(int chunks) {
  int most = 0;
  for (int split = 1; split <= kMostSplit; ++split) {
    const int places = (chunks + split - 1) / split * split;
    most = places > most ? places : most;
  }
  return most;
}

#if defined(DUALSCALE_HOPPER)

// Blocks take steps in turn, but those of a group with one scale stay together: the first of a block, ...
template <bool kCut>
__device__ __forceinline__ int first_step(const Grid& grid, int rank) {
  return kCut ? rank * grid.group_steps : 0;
}

// ... and the one after `step`.
template <bool kCut>
__device__ __forceinline__ int step_after(const Grid& grid, int step) {
  ++step;
  return kCut && step % grid.group_steps == 0 ? step + (grid.split - 1) * grid.group_steps : step;
}

// Chunks of 16 rows and 32 columns of a tile: the n-th is finished by block n % split of the cluster. Its
// sums lie as the threads of a warp hold them, four by four.
template <class G>
struct Parts {
  using Sum = typename G::Sum;
  static constexpr int kChunks = G::kTileColumns / kChunkColumns;  // side by side
  static constexpr int kGroupChunks = G::kGroupColumns / kChunkColumns, kFours = 4;
  static constexpr int kValues = 4 * kFours;  // of a thread
  static constexpr int kArrays = G::kBeyond ? 2 : 1;

  const Grid& grid;
  uint8_t* memory;
  uint32_t barrier;
  int rank, count;  // of the block; of chunks

  __device__ __forceinline__ Parts(const Grid& grid, uint8_t* memory, uint32_t barrier, int rank, int64_t row)
      : grid(grid), memory(memory), barrier(barrier), rank(rank) {
    count = kChunks * static_cast<int>(min((grid.rows - row + 15) / 16, int64_t{kGroupRows / 16}));
  }

  // How many chunks this block will finish.
  __device__ __forceinline__ int own() const { return (count - rank + grid.split - 1) / grid.split; }

  // Says what will come; one thread does.
  __device__ __forceinline__ void expect() const {
    barrier_expect(barrier, own() * grid.split * kArrays * kChunkBytes);
  }

  // A lane's place for the sums that block `from` has of the n-th chunk, in the block that finishes it.
  __device__ __forceinline__ uint8_t* place(int n, int from, int array) const {
    const int slot = (n / grid.split * grid.split + from) * kArrays + array;
    return memory + slot * kChunkBytes + threadIdx.x % 32 * 16;
  }

  // Sends this warp's sums.
  template <int kCount>
  __device__ __forceinline__ void send(int array, const Sum (&sums)[kCount]) const {
    const int warp = threadIdx.x % 128 / 32, group = threadIdx.x / 128 - 1;
#pragma unroll
    for (int chunk = 0; chunk < kGroupChunks; ++chunk) {
      const int n = warp * kChunks + group * kGroupChunks + chunk;
      if (n < count) {
        const uint32_t to = address_in_block(shared_address(place(n, rank, array)), n % grid.split);
        const uint32_t arrived = address_in_block(barrier, n % grid.split);
#pragma unroll
        for (int four = 0; four < kFours; ++four) {
          uint4 v;
          memcpy(&v, &sums[chunk * kValues + 4 * four], 16);
          send_four(to + four * 32 * 16, v, arrived);
        }
      }
    }
  }

  // Adds what all the blocks have of the n-th chunk.
  template <int kCount>
  __device__ __forceinline__ void add(int n, int array, Sum (&total)[kCount]) const {
    static_assert(kCount == kValues);
#pragma unroll 2
    for (int from = 0; from < grid.split; ++from) {
      const uint32_t at = shared_address(place(n, from, array));
#pragma unroll
      for (int four = 0; four < kFours; ++four) {
        const uint4 v = load_shared(at + four * 32 * 16);
        Sum part[4];
        memcpy(part, &v, 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[4 * four + i] += part[i];
        }
      }
    }
  }

  // Finishes this block's chunks of the tile at (row, column), a warp each.
  template <class Finisher>
  __device__ __forceinline__ void finish(const Finisher& finisher, int64_t row, int64_t column,
                                         bool uniform) const {
    const int warp = threadIdx.x / 32 - 4;
    if (warp >= own()) {
      return;
    }
    barrier_wait(barrier, 0);
#pragma unroll 1
    for (int n = warp * grid.split + rank; n < count; n += 8 * grid.split) {
      Sum total[kValues] = {}, beyond[G::kBeyond ? kValues : 1] = {};
      add(n, 0, total);
      if constexpr (G::kBeyond) {
        add(n, 1, beyond);
      }
      if (threadIdx.x % 32 == 0) {
        boxes_wait<0>();  // the chunk before this one has left the strip
      }
      const int first = n % kChunks * kChunkColumns;
      finisher.run(total, beyond, row + n / kChunks * 16, column + first, first, uniform);
    }
  }
};

#endif

}  // namespace dualscale

// What a product of a few rows multiplies, and how it comes to the warps.
//
// The order of the depth is free as long as both operands agree, so that a lane takes neighbouring weights,
// 16 bytes where the groups allow it, and the matching values of x. In this wide form the rows of weights
// come to shared memory by copies that no warp waits with (bulk.cuh): the loads of a warp stand in one queue,
// where those of the last steps would keep the first from being multiplied. One copy brings all of a block,
// or, where that is too much, chunks of each row follow each other.
#pragma once

#include "bulk.cuh"
#include "linear.cuh"
#include "small_codes.cuh"

namespace dualscale {

constexpr int kFewColumns = 16;  // of a warp
constexpr int kRowsOfTile = 8;

// kBytes of weights a lane and row take; each warp takes four times as many at once.
template <class X, int kBits, int kBytes, int kTiles, bool kKnee>
struct FewRows {
  using Value = X;
  static constexpr int kBitsOfWeight = kBits, kLaneBytes = kBytes, kTilesOfRows = kTiles;
  static constexpr bool kCodes = std::is_same_v<X, int8_t>;
  static constexpr bool kExact = kCodes && kBits == 8;
  using Sum = std::conditional_t<kExact, int, float>;    // of everything
  using Part = std::conditional_t<kCodes, int, float>;   // of a group
  static constexpr int kDepth = kBytes * 8 / kBits;      // of a lane
  static constexpr int kStep = 4 * kDepth;               // of a warp
  static constexpr int kStepBytes = 4 * kBytes;          // of a row of weights
  static constexpr float kCodeUnit = 1.0f / 16;          // a four-bit code lies in the high half of a byte
  static constexpr int kSums = kExact && kKnee ? 2 : 1;  // sums beyond the knee are added at the end
  static constexpr int kResults = kFewColumns * kRowsOfTile * kTiles;
  static constexpr bool kWide = kBytes == 16, kStaged = kWide && kTiles == 1, kKneeAtEnd = kKnee && kExact;
  using Weights = Raw<uint8_t, kBytes>;
  using Values = Raw<X, kDepth>;

  // How many of a lane's values from k on exist.
  static __device__ __forceinline__ int left(int depth, int k) {
    return kWide ? (k < depth ? kDepth : 0) : max(min(depth - k, kDepth), 0);
  }

  static __device__ __forceinline__ void multiply_values(Part (&sum)[4], const uint32_t (&a)[4],
                                                         uint32_t first, uint32_t second) {
    dualscale::multiply_add<X>(sum, a, low_halves(first, second), high_halves(first, second));
  }

  // The sums of one step: 16 x 8 for each tile, and those beyond the knee.
  static __device__ __forceinline__ void step(const Weights (&w)[2], const Values& x, const KneeTerm& term,
                                              Part (&sum)[4], Part (&beyond)[4]) {
    if constexpr (kCodes) {
#pragma unroll
      for (int i = 0; i < kDepth / 8; ++i) {
        uint32_t a[4];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          // A four-bit code in the high half of a byte stands for 16 times itself.
          a[r] = kBits == 4 ? w[r].word[i] << 4 & 0xf0f0f0f0u : w[r].word[2 * i];
          a[r + 2] = kBits == 4 ? w[r].word[i] & 0xf0f0f0f0u : w[r].word[2 * i + 1];
        }
        multiply_add(sum, a, x.word[2 * i], x.word[2 * i + 1]);
        if constexpr (kKnee) {
          multiply_add(beyond, a, term.excess(x.word[2 * i]), term.excess(x.word[2 * i + 1]));
        }
      }
    } else if constexpr (kBits == 4) {
#pragma unroll
      for (int i = 0; i < kDepth / 8; ++i) {
        uint32_t low[4], high[4];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          low[r] = pair_of_nibbles<X, 0>(w[r].word[i]);
          high[r] = pair_of_nibbles<X, 4>(w[r].word[i]);
          low[r + 2] = pair_of_nibbles<X, 8>(w[r].word[i]);
          high[r + 2] = pair_of_nibbles<X, 12>(w[r].word[i]);
        }
        multiply_values(sum, low, x.word[4 * i], x.word[4 * i + 1]);
        multiply_values(sum, high, x.word[4 * i + 2], x.word[4 * i + 3]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kDepth / 4; ++i) {
        uint32_t a[4];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          a[r] = pair_of_bytes<X>(w[r].word[i], false);
          a[r + 2] = pair_of_bytes<X>(w[r].word[i], true);
        }
        dualscale::multiply_add<X>(sum, a, x.word[2 * i], x.word[2 * i + 1]);
      }
    }
  }
};

// How a block shares the work, and what lies where in its shared memory.
struct FewGrid {
  int groups;       // of the depth, each with a scale
  int group_shift;  // of the number of the first weight to that of its group
  int split_shift;  // of the number of warps that share the depth of some columns
  int pieces;       // of sixteen columns, of a block
  int steps;        // of the depth
  // Of the wide form.
  int chunk_steps, chunks;       // of a row of weights
  int stages;                    // chunks that lie in shared memory at once
  int row_stride, x_stride;      // bytes
  int x_at, scales_at, sums_at;  // bytes; the weights begin at 0
  int barriers_at;               // one a stage, and one of x and the scales
  bool is_ragged;                // whether some lanes have nothing in the last step
  bool copies_scales;            // whether the scales begin at a multiple of sixteen bytes
};

template <class F>
class FewInputs {
 public:
  typename F::Weights weight[2];
  float scale[2];

  // `last` is the last of the block's columns, `count` the number of rows of x.
  __device__ __forceinline__ FewInputs(const Product& p, const FewGrid& grid, int64_t block_column, int last,
                                       int64_t first_row, int count, uint8_t* memory)
      : p_(p), grid_(grid), depth_(static_cast<int>(p.depth)), columns_(last + 1), count_(count) {
    const int lane = threadIdx.x % 32, piece = threadIdx.x / 32 >> grid.split_shift;
    weights_ = static_cast<const uint8_t*>(p.weight) + block_column * row_bytes();
    scales_ = p.group_scale + block_column * grid.groups;
    x_ = static_cast<const X*>(p.x) + first_row * p.x_stride;
    memory_ = shared_address(memory);
    shared_scales_ = reinterpret_cast<__half*>(memory + grid.scales_at);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      column_[r] = min(piece * kFewColumns + lane / 4 + 8 * r, last);
      slot_[r] = memory_ + column_[r] * grid.row_stride + lane % 4 * F::kLaneBytes;
    }
    x_slot_ = memory_ + grid.x_at + min(lane / 4, count - 1) * grid.x_stride +
              lane % 4 * F::kDepth * static_cast<int>(sizeof(X));
  }

  // Before anything is waited for.
  __device__ __forceinline__ void prepare() const {
#if defined(DUALSCALE_BULK)
    if (F::kWide && threadIdx.x == 0) {
#pragma unroll 1
      for (int i = 0; i <= grid_.stages; ++i) {
        barrier_init(barrier(i), 1);
      }
      fence_for_copies();
    }
    if constexpr (F::kWide) {
      __syncthreads();
    }
#endif
  }

  // Starts the copy of x. The first thread does, or, before Hopper, every thread; as those below.
  __device__ __forceinline__ void start_x() const {
    if constexpr (F::kWide) {
      const int x_bytes = F::kStaged ? depth_ * static_cast<int>(sizeof(X)) : 0;
      expect(grid_.stages, count_ * x_bytes + scale_bytes());
      if constexpr (F::kStaged) {
        start_rows(x_, p_.x_stride * static_cast<int64_t>(sizeof(X)), x_bytes, count_, memory_ + grid_.x_at,
                   grid_.x_stride, grid_.stages);
      }
    }
  }

  // Starts the copies of the scales and of all the weights there is room for.
  __device__ __forceinline__ void start_weights() const {
    if constexpr (F::kWide) {
      const int whole = scale_bytes();
      if (F::kBitsOfWeight == 4 && whole > 0) {
        start_rows(scales_, whole, whole, 1, memory_ + grid_.scales_at, whole, grid_.stages);
      }
#pragma unroll 1
      for (int chunk = 0; chunk < grid_.stages; ++chunk) {
        start_chunk(chunk);
      }
      if (F::kBitsOfWeight == 4 && whole == 0) {
        for (int i = threadIdx.x; i < columns_ * grid_.groups; i += blockDim.x) {
          shared_scales_[i] = scales_[i];
        }
        __syncthreads();
      }
    }
  }

  // Waits for x and the scales.
  __device__ __forceinline__ void await_small() const {
    if constexpr (F::kWide) {
      await(grid_.stages, 0);
    }
  }

  __device__ __forceinline__ void await_chunk(int chunk) const {
    if constexpr (F::kWide) {
      await(chunk % grid_.stages, chunk / grid_.stages & 1);
    }
  }

  // When a chunk has been multiplied: the next one that lies where it lay.
  __device__ __forceinline__ void replace_chunk(int chunk) const {
    if (F::kWide && grid_.stages < grid_.chunks) {
      __syncthreads();
      if (chunk + grid_.stages < grid_.chunks) {
        start_chunk(chunk + grid_.stages);
      }
    }
  }

  // Takes the weights of a step, which is the `inside`-th of its chunk.
  __device__ __forceinline__ void take(int chunk, int inside) {
    const int step = chunk * grid_.chunk_steps + inside, first = step * F::kStep;
    const int left = F::left(depth_, first + static_cast<int>(threadIdx.x % 4) * F::kDepth);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (F::kWide) {
        const int stage = chunk % grid_.stages * grid_.pieces * kFewColumns * grid_.row_stride;
        const uint4 four = load_shared(slot_[r] + stage + inside * F::kStepBytes);
        weight[r] = {{four.x, four.y, four.z, four.w}};
        if (grid_.is_ragged && left == 0) {
          weight[r] = {};
        }
      } else {
        const uint8_t* const from = weights_ + column_[r] * row_bytes() + threadIdx.x % 4 * F::kLaneBytes;
        weight[r] =
            load_raw<uint8_t, F::kLaneBytes>(from + step * F::kStepBytes, false, left * F::kBitsOfWeight / 8);
      }
      if constexpr (F::kBitsOfWeight == 4) {
        const int at = column_[r] * grid_.groups + (min(first, depth_ - 1) >> grid_.group_shift);
        scale[r] = __half2float(F::kWide ? shared_scales_[at] : scales_[at]);
      }
    }
  }

  // The values of x that belong to the weights of a step, of the row of tile `tile` that this lane
  // multiplies.
  __device__ __forceinline__ typename F::Values values(int chunk, int inside, int tile) const {
    const int k = (chunk * grid_.chunk_steps + inside) * F::kStep + threadIdx.x % 4 * F::kDepth;
    const int left = F::left(depth_, k);
    if constexpr (F::kStaged) {
      typename F::Values x{};
      const uint32_t from =
          x_slot_ + (chunk * grid_.chunk_steps + inside) * F::kStep * static_cast<int>(sizeof(X));
      if (!grid_.is_ragged || left > 0) {
#pragma unroll
        for (int j = 0; j < F::Values::kWords / 4; ++j) {
          const uint4 four = load_shared(from + 16 * j);
          x.word[4 * j] = four.x;
          x.word[4 * j + 1] = four.y;
          x.word[4 * j + 2] = four.z;
          x.word[4 * j + 3] = four.w;
        }
      }
      return x;
    }
    const int row = min(tile * kRowsOfTile + static_cast<int>(threadIdx.x) % 32 / 4, count_ - 1);
    return load_raw<X, F::kDepth>(x_ + row * p_.x_stride + k, F::kWide && left > 0, left);
  }

 private:
  using X = typename F::Value;

  __device__ __forceinline__ int64_t row_bytes() const { return p_.depth * F::kBitsOfWeight / 8; }
  // Of the scales, if a copy can bring them.
  __device__ __forceinline__ int scale_bytes() const {
    if (F::kBitsOfWeight == 8 || !grid_.copies_scales) {
      return 0;
    }
    const int bytes = columns_ * grid_.groups * static_cast<int>(sizeof(__half));
    return bytes % 16 == 0 ? bytes : 0;
  }
  __device__ __forceinline__ uint32_t barrier(int i) const { return memory_ + grid_.barriers_at + 8 * i; }

  __device__ __forceinline__ void start_chunk(int chunk) const {
    const int stage = chunk % grid_.stages, from = chunk * grid_.chunk_steps * F::kStepBytes;
    const int bytes = min(grid_.chunk_steps * F::kStepBytes, static_cast<int>(row_bytes()) - from);
    expect(stage, columns_ * bytes);
    start_rows(weights_ + from, row_bytes(), bytes, columns_,
               memory_ + stage * grid_.pieces * kFewColumns * grid_.row_stride, grid_.row_stride, stage);
  }

  __device__ __forceinline__ void expect(int counter, int bytes) const {
#if defined(DUALSCALE_BULK)
    if (threadIdx.x == 0) {
      barrier_expect(barrier(counter), bytes);
    }
#endif
  }

  // Copies rows of some bytes, a multiple of sixteen.
  __device__ __forceinline__ void start_rows(const void* from, int64_t from_stride, int bytes, int rows,
                                             uint32_t to, int to_stride, int counter) const {
    const auto* const source = static_cast<const uint8_t*>(from);
#if defined(DUALSCALE_BULK)
    if (threadIdx.x == 0) {
      if (to_stride == bytes && from_stride == bytes) {  // one copy, since each takes long to start
        bytes *= rows;
        rows = 1;
      }
#pragma unroll 1
      for (int row = 0; row < rows; ++row) {
        copy_bulk(to + row * to_stride, source + row * from_stride, bytes, barrier(counter));
      }
    }
#else
    const int pieces = bytes / 16;
    for (int i = threadIdx.x; i < rows * pieces; i += blockDim.x) {
      const int row = i / pieces, at = i % pieces * 16;
      copy_async<16>(to + row * to_stride + at, source + row * from_stride + at);
    }
#endif
  }

  __device__ __forceinline__ void await(int counter, int parity) const {
#if defined(DUALSCALE_BULK)
    barrier_wait(barrier(counter), parity);
#else
    wait_for_copies();
    __syncthreads();
#endif
  }

  const Product& p_;
  const FewGrid& grid_;
  const uint8_t* weights_;
  const __half* scales_;
  const X* x_;
  __half* shared_scales_;
  uint32_t memory_, slot_[2], x_slot_;
  int column_[2];
  int depth_, columns_, count_;
};

}  // namespace dualscale

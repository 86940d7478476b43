// The product of a few rows with quantized weights: bound by reading the weights, once.
//
// A warp multiplies 16 columns' weights with up to 8 kTiles rows of x on the tensor cores, where the weights
// are the larger operand and a row of x is a column. The order of the depth is free as long as both operands
// agree, so that a lane takes neighbouring weights, 16 bytes where the groups allow it, and the matching
// values of x from the cache. Several warps share the depth of the same columns and add their sums in shared
// memory.
#pragma once

#include "linear.cuh"
#include "small_codes.cuh"

namespace dualscale {

constexpr int kFewThreads = 256;
constexpr int kFewWarps = kFewThreads / 32;
constexpr int kFewestWarps = 4, kMostWarps = 16;  // of a block
constexpr int64_t kResidentWarps = 20;            // of a processor, with the registers that a thread has
constexpr int64_t kFillingWarps = 8;
// Threads that a block never has, so that a thread gets 96 registers and five blocks of four warps fit a
// processor. The code for Blackwell needs more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kRegisterBound = 512;
#else
constexpr int kRegisterBound = 640;
#endif
constexpr int64_t kMostStaged = 96 * 1024;
constexpr int kFewColumns = 16;  // of a warp
constexpr int kRowsOfTile = 8;

// kBytes of weights a lane and row take; each warp takes four times as many at once.
template <class X, int kBits, int kBytes, int kTiles, bool kKnee>
struct FewRows {
  static constexpr bool kCodes = std::is_same_v<X, int8_t>;
  static constexpr bool kExact = kCodes && kBits == 8;
  using Sum = std::conditional_t<kExact, int, float>;    // of everything
  using Part = std::conditional_t<kCodes, int, float>;   // of a group
  static constexpr int kDepth = kBytes * 8 / kBits;      // of a lane
  static constexpr int kStep = 4 * kDepth;               // of a warp
  static constexpr int kAhead = kTiles > 1 ? 3 : 5;      // steps whose weights are fetched together
  static constexpr float kCodeUnit = 1.0f / 16;          // a four-bit code lies in the high half of a byte
  static constexpr int kSums = kExact && kKnee ? 2 : 1;  // sums beyond the knee are added at the end
  static constexpr int kResults = kFewColumns * kRowsOfTile * kTiles;
  static constexpr bool kWide = kBytes == 16, kStaged = kWide && kTiles == 1, kKneeAtEnd = kKnee && kExact;
  using Weights = Raw<uint8_t, kBytes>;
  using Values = Raw<X, kDepth>;

  // Eight staged values in the order in which their weights come out of a word: 0, 2, 1, 3.
  static __device__ __forceinline__ uint4 arranged(uint4 v) {
    if constexpr (kCodes || kBits == 8) {
      return v;
    }
    return {low_halves(v.x, v.y), high_halves(v.x, v.y), low_halves(v.z, v.w), high_halves(v.z, v.w)};
  }
  // How many of a lane's values from k on exist.
  static __device__ __forceinline__ int left(int depth, int k) {
    return kWide ? (k < depth ? kDepth : 0) : max(min(depth - k, kDepth), 0);
  }
  template <class T, int kCount>
  static __device__ __forceinline__ Raw<T, kCount> piece(const T* from, int left) {
    if constexpr (!kWide) {
      return load_raw<T, kCount>(from, false, left);
    }
    return left > 0 ? load_raw<T, kCount>(from, true, kCount) : Raw<T, kCount>{};
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
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          uint32_t a[4];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            a[r] = pair_of_nibbles<X>(w[r].word[i], 4 * high);
            a[r + 2] = pair_of_nibbles<X>(w[r].word[i], 4 * high + 8);
          }
          const uint32_t first = x.word[4 * i + 2 * high], second = x.word[4 * i + 2 * high + 1];
          const uint32_t even = kStaged ? first : low_halves(first, second);
          const uint32_t odd = kStaged ? second : high_halves(first, second);
          dualscale::multiply_add<X>(sum, a, even, odd);
        }
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

struct FewGrid {
  int groups;       // of the depth, each with a scale
  int group_shift;  // of the number of the first weight to that of its group
  int split_shift;  // of the number of warps that share the depth of some columns
  int pieces;       // of sixteen columns, of a block
};

// What a lane reads of the weights for one step: those of two columns, and the scales of their groups.
template <class F, int kBits, int kBytes>
struct FewStep {
  typename F::Weights weight[2];
  __half scale[2];

  // `first` is the warp's first weight. With wide pieces, each exists as a whole and is aligned.
  __device__ __forceinline__ void load(const Product& p, const FewGrid& grid,
                                       const uint8_t* const (&weights)[2], const __half* const (&scales)[2],
                                       int first) {
    const int k = first + threadIdx.x % 4 * F::kDepth, depth = static_cast<int>(p.depth);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      weight[r] =
          F::template piece<uint8_t, kBytes>(weights[r] + k * kBits / 8, F::left(depth, k) * kBits / 8);
      if constexpr (kBits == 4) {
        scale[r] = scales[r][min(first, depth - 1) >> grid.group_shift];
      }
    }
  }
};

template <class X, int kBits, int kBytes, int kTiles, bool kKnee>
__global__ void __launch_bounds__(kTiles == 1 ? kRegisterBound : kFewThreads, 1)
    few_rows(const __grid_constant__ Product p, const __grid_constant__ Epilogue e,
             const __grid_constant__ FewGrid grid) {
  using F = FewRows<X, kBits, kBytes, kTiles, kKnee>;
  using Sum = typename F::Sum;
  using Part = typename F::Part;
  extern __shared__ __align__(16) uint8_t memory[];  // x, where it is staged
  __shared__ Sum shared[(kTiles == 1 ? kMostWarps : kFewWarps) * F::kSums * F::kResults];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, split = 1 << grid.split_shift;
  const int depth = static_cast<int>(p.depth), distance = split * F::kStep;
  const int begin = (warp & (split - 1)) * F::kStep;
  const int64_t block_column = static_cast<int64_t>(blockIdx.x) * grid.pieces * kFewColumns;
  const int64_t column = block_column + (warp >> grid.split_shift) * kFewColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kRowsOfTile * kTiles;
  const uint8_t* weights[2];
  const __half* scales[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t mine = min(column + lane / 4 + 8 * r, e.columns - 1);
    weights[r] = static_cast<const uint8_t*>(p.weight) + mine * (p.depth * kBits / 8);
    scales[r] = p.group_scale + mine * grid.groups;
  }
  FewStep<F, kBits, kBytes> steps[F::kAhead];
  const auto fetch = [&](int from) {
#pragma unroll
    for (int i = 0; i < F::kAhead; ++i) {
      if (from + i * distance < depth) {
        steps[i].load(p, grid, weights, scales, from + i * distance);
      }
    }
  };
  fetch(begin);
  // x, and what finishes this thread's first result, come while the weights do.
  const int my_row = threadIdx.x % F::kResults / kFewColumns;
  const int64_t my_column =
      block_column + threadIdx.x / F::kResults * kFewColumns + threadIdx.x % kFewColumns;
  typename Column<Sum>::Fetched fetched{};
  Knee knee{};
  if (first_row + my_row < p.rows) {
    fetched = Column<Sum>::fetch(e, my_column);
    knee = e.code.rows != nullptr ? output_knee(e, my_column) : knee;
  }
  const KneeTerm term = kKnee ? KneeTerm::of(e.x_code) : KneeTerm{};
  const X* rows[kTiles];
  if constexpr (F::kStaged) {
    constexpr int kPiece = 16 / sizeof(X);
    const int stride = depth + kPiece;  // rows begin at different banks
    X* const staged = reinterpret_cast<X*>(memory);
    const int count = static_cast<int>(min(p.rows - first_row, int64_t{kRowsOfTile}));
    const X* const from = static_cast<const X*>(p.x) + first_row * p.x_stride;
    for (int at = threadIdx.x * kPiece; at < depth; at += blockDim.x * kPiece) {
      for (int first = 0; first < count; first += 4) {
        uint4 some[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = min(first + i, count - 1);
          some[i] = *reinterpret_cast<const uint4*>(from + row * p.x_stride + at);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (first + i < count) {
            *reinterpret_cast<uint4*>(staged + (first + i) * stride + at) = F::arranged(some[i]);
          }
        }
      }
    }
    rows[0] = staged + min(lane / 4, count - 1) * stride;
    __syncthreads();
  } else {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int64_t mine = min(first_row + tile * kRowsOfTile + lane / 4, p.rows - 1);
      rows[tile] = static_cast<const X*>(p.x) + mine * p.x_stride;
    }
  }
  const Column<Sum> my_parameters = Column<Sum>::of(e, fetched);

  Sum sums[F::kSums][kTiles][4] = {};
  for (int from = begin; from < depth; from += F::kAhead * distance) {
#pragma unroll
    for (int i = 0; i < F::kAhead; ++i) {
      const int k = from + i * distance + lane % 4 * F::kDepth;
      if (from + i * distance >= depth) {
        break;
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const auto x = F::template piece<X, F::kDepth>(rows[tile] + k, F::left(depth, k));
        if constexpr (kBits == 8) {
          F::step(steps[i].weight, x, term, sums[0][tile], sums[F::kSums - 1][tile]);
        } else {
          Part part[4] = {}, beyond[4] = {};
          F::step(steps[i].weight, x, term, part, beyond);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float value = static_cast<float>(part[j]);
            if constexpr (kKnee) {
              value = term.joined(part[j], beyond[j]);
            }
            sums[0][tile][j] = fmaf(__half2float(steps[i].scale[j / 2]), value, sums[0][tile][j]);
          }
        }
      }
    }
    if (from + F::kAhead * distance < depth) {
      fetch(from + F::kAhead * distance);
    }
  }

  // To shared memory as (row, column), added over the warps of the same columns.
#pragma unroll
  for (int s = 0; s < F::kSums; ++s) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = tile * kRowsOfTile + lane % 4 * 2 + j % 2, inside = lane / 4 + j / 2 * 8;
        shared[(warp * F::kSums + s) * F::kResults + row * kFewColumns + inside] = sums[s][tile][j];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < grid.pieces * F::kResults; i += blockDim.x) {
    const int piece = i / F::kResults, result = i % F::kResults;
    const int64_t row = first_row + result / kFewColumns;
    const int64_t n = block_column + piece * kFewColumns + result % kFewColumns;
    if (row >= p.rows || n >= e.columns) {
      continue;
    }
    Sum total[2] = {};
#pragma unroll
    for (int s = 0; s < F::kSums; ++s) {
      for (int w = 0; w < split; ++w) {
        total[s] += shared[(((piece << grid.split_shift) + w) * F::kSums + s) * F::kResults + result];
      }
    }
    if (kBits == 4 && F::kCodes) {
      total[0] *= F::kCodeUnit;
    }
    const bool is_first = i < static_cast<int>(blockDim.x);
    const Column<Sum> parameters = is_first ? my_parameters : Column<Sum>::of(e, Column<Sum>::fetch(e, n));
    float y[4] = {finish<F::kKneeAtEnd>(e, parameters, total[0], total[1], row)};
    if (e.code.rows != nullptr) {
      y[0] = (is_first ? knee : output_knee(e, n)).encode(y[0]);
    }
    store_four(e.y, e.kind, row * e.columns + n, y, false, 1);
  }
}

// How many warps share the depth of sixteen columns, as a power of two: those with which the fewest rounds of
// fetching are waited for, over all the blocks that a processor takes one after another; more where they do
// not fill the chip.
inline int split_shift_of(int64_t steps, int64_t ahead, int64_t pieces, int64_t most_warps,
                          int64_t processors) {
  int best = 0;
  int64_t lowest = std::numeric_limits<int64_t>::max();
  for (int shift = 0; int64_t{1} << shift <= most_warps && (shift == 0 || int64_t{1} << (shift - 1) < steps);
       ++shift) {
    const int64_t split = int64_t{1} << shift;
    const int64_t rounds =
        ceil_div(pieces * split, kResidentWarps * processors) * ceil_div(steps, split * ahead);
    const bool fills = pieces * split >= kFillingWarps * processors;
    if (rounds < lowest || (rounds == lowest && !fills)) {
      best = shift;
      lowest = rounds;
    }
  }
  return best;
}

// Of a tile's rows in shared memory.
template <class X>
int64_t staged_bytes(const Product& p) {
  return std::min<int64_t>(p.rows, kRowsOfTile) * (p.depth * sizeof(X) + 16);
}

template <class X, int kBits, int kBytes, int kTiles, bool kKnee>
void launch_few_rows(const char* op, const Product& p, const Epilogue& e, int device, cudaStream_t stream) {
  using F = FewRows<X, kBits, kBytes, kTiles, kKnee>;
  FewGrid grid{p.group_size ? static_cast<int>(ceil_div(p.depth, p.group_size)) : 0, 0, 0, 1};
  while (int64_t{1} << grid.group_shift < p.group_size) {
    ++grid.group_shift;
  }
  const int64_t steps = ceil_div(p.depth, F::kStep), pieces = ceil_div(e.columns, kFewColumns);
  const int64_t most_warps = kTiles == 1 ? kMostWarps : kFewWarps;
  grid.split_shift = split_shift_of(steps, F::kAhead, pieces, most_warps, multiprocessors(device));
  const int64_t split = int64_t{1} << grid.split_shift;
  const int warps = static_cast<int>(std::max<int64_t>(split, kFewestWarps));
  grid.pieces = static_cast<int>(warps / split);
  const auto kernel = few_rows<X, kBits, kBytes, kTiles, kKnee>;
  const size_t memory = F::kStaged ? staged_bytes<X>(p) : 0;
  allow_shared(kernel, memory + 16 * 1024);
  const unsigned columns = grid_of(op, ceil_div(e.columns, kFewColumns * grid.pieces));
  const int64_t tiles = ceil_div(p.rows, kRowsOfTile * kTiles), most = 65535;
  for (int64_t first = 0; first < tiles; first += most) {
    Product part = p;
    Epilogue end = e;
    const int64_t row = first * kRowsOfTile * kTiles;
    part.x = static_cast<const X*>(p.x) + row * p.x_stride;
    part.rows = p.rows - row;
    end.row_scale = e.row_scale ? e.row_scale + row : nullptr;
    const int64_t width = width_of(e.kind);
    end.y = static_cast<uint8_t*>(e.y) + row * e.columns * width;
    const dim3 blocks(columns, static_cast<unsigned>(std::min(tiles - first, most)));
    kernel<<<blocks, 32 * warps, memory, stream>>>(part, end, grid);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

// More tiles where there are more rows; kTiles = 4 reads the weights once for 32 rows.
template <class X, int kBits, bool kKnee>
void launch_few_rows(const char* op, const Product& p, const Epilogue& e, int device, cudaStream_t stream) {
  // Wide pieces must not pass from one group to the next, nor beyond the end of a row.
  using Wide = FewRows<X, kBits, 16, 1, kKnee>;
  if (!p.aligned || p.depth % Wide::kDepth != 0 || (p.group_size && p.group_size < Wide::kStep)) {
    launch_few_rows<X, kBits, kBits == 8 ? 8 : 4, 1, kKnee>(op, p, e, device, stream);
  } else if (p.rows <= kRowsOfTile && staged_bytes<X>(p) <= kMostStaged) {
    launch_few_rows<X, kBits, 16, 1, kKnee>(op, p, e, device, stream);
  } else {
    launch_few_rows<X, kBits, 16, 4, kKnee>(op, p, e, device, stream);
  }
}

}  // namespace dualscale

// The product of a few rows with quantized weights: bound by reading the weights, once.
//
// A warp multiplies 16 columns' weights with up to 8 kTiles rows of x on the tensor cores, where the weights
// are the larger operand and a row of x is a column. Several warps share the depth of the same columns and
// add their sums in shared memory.
#pragma once

#include "ahead.cuh"
#include "few_inputs.cuh"

namespace dualscale {

constexpr int kFewThreads = 256;
constexpr int kFewWarps = kFewThreads / 32;
constexpr int kFewestWarps = 4, kMostWarps = 16;  // of a block
// Threads that a block never has, so that a thread gets 72 registers. The code for Blackwell needs more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kRegisterBound = 512;
#else
constexpr int kRegisterBound = 896;
#endif
constexpr int most_threads(int bytes, int tiles) {
  return tiles > 1 ? kFewThreads : bytes == 16 ? kRegisterBound : 32 * kMostWarps;
}
constexpr int64_t kFillingWarps = 8;  // of a processor

// Of shared memory, what a block's weights may take, and as much x beside them; the rest is for sums and
// scales.
inline int64_t most_bytes(int device) { return int64_t{shared_limit(device)} * 2 / 5; }

template <class X, int kBits, int kBytes, int kTiles, bool kKnee>
__global__ void __launch_bounds__(most_threads(kBytes, kTiles), 1)
    few_rows(const __grid_constant__ Product p, const __grid_constant__ Epilogue e,
             const __grid_constant__ FewGrid grid) {
  using F = FewRows<X, kBits, kBytes, kTiles, kKnee>;
  using Sum = typename F::Sum;
  using Part = typename F::Part;
  extern __shared__ __align__(128) uint8_t memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, split = 1 << grid.split_shift;
  Sum* const shared = reinterpret_cast<Sum*>(memory + grid.sums_at);
  const int64_t block_column = static_cast<int64_t>(blockIdx.x) * grid.pieces * kFewColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kRowsOfTile * kTiles;
  const int last = static_cast<int>(min(e.columns - block_column, int64_t{grid.pieces} * kFewColumns)) - 1;
  const int count = static_cast<int>(min(p.rows - first_row, int64_t{kRowsOfTile * kTiles}));
  FewInputs<F> inputs(p, grid, block_column, last, first_row, count, memory);
  inputs.prepare();
  if (p.constant_weight) {
    inputs.start_weights();
  }
  await_earlier();
  admit_later();
  inputs.start_x();
  if (!p.constant_weight) {
    inputs.start_weights();
  }
  // What finishes this thread's first result comes while the weights do.
  const int my_row = threadIdx.x % F::kResults / kFewColumns;
  const int64_t my_column =
      block_column + threadIdx.x / F::kResults * kFewColumns + threadIdx.x % kFewColumns;
  typename Column<Sum>::Fetched fetched{};
  Knee knee{};
  if (my_row < count) {
    fetched = Column<Sum>::fetch(e, my_column);
    knee = e.code.rows != nullptr ? output_knee(e, my_column) : knee;
  }
  const KneeTerm term = kKnee ? KneeTerm::of(e.x_code) : KneeTerm{};
  const Column<Sum> my_parameters = Column<Sum>::of(e, fetched);
  inputs.await_small();

  Sum sums[F::kSums][kTiles][4] = {};
  for (int chunk = 0; chunk < grid.chunks; ++chunk) {
    inputs.await_chunk(chunk);
    const int steps = min(grid.chunk_steps, grid.steps - chunk * grid.chunk_steps);
#pragma unroll 5
    for (int inside = warp & (split - 1); inside < steps; inside += split) {
      inputs.take(chunk, inside);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const auto values = inputs.values(chunk, inside, tile);
        if constexpr (kBits == 8) {
          F::step(inputs.weight, values, term, sums[0][tile], sums[F::kSums - 1][tile]);
        } else {
          Part part[4] = {}, beyond[4] = {};
          F::step(inputs.weight, values, term, part, beyond);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float value = static_cast<float>(part[j]);
            if constexpr (kKnee) {
              value = term.joined(part[j], beyond[j]);
            }
            sums[0][tile][j] = fmaf(inputs.scale[j / 2], value, sums[0][tile][j]);
          }
        }
      }
    }
    inputs.replace_chunk(chunk);
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

// How many warps share the depth of sixteen columns, as a power of two: more where these would not fill the
// chip.
inline int split_shift_of(int64_t steps, int64_t pieces, int64_t most_warps, int64_t processors) {
  int shift = 0;
  while (int64_t{2} << shift <= most_warps && int64_t{1} << shift < steps &&
         (2 << shift <= kFewestWarps || pieces << shift < kFillingWarps * processors)) {
    ++shift;
  }
  return shift;
}

// Where everything lies, with so many rows of x; the bytes of shared memory.
template <class F>
int64_t lay_out(FewGrid& grid, const Product& p, int warps, int64_t rows, int device) {
  const auto round_up = [](int64_t bytes, int64_t to) { return ceil_div(bytes, to) * to; };
  const int64_t row_bytes = p.depth * F::kBitsOfWeight / 8;
  const int64_t sums = int64_t{warps} * F::kSums * F::kResults * sizeof(typename F::Sum);
  grid.chunks = 1;
  grid.chunk_steps = grid.steps;
  if (!F::kWide) {
    return sums;
  }
  grid.is_ragged = p.depth % F::kStep != 0;
  grid.copies_scales = reinterpret_cast<uintptr_t>(p.group_scale) % 16 == 0;
  grid.row_stride = static_cast<int>(row_bytes);
  const int64_t rows_of_weights = int64_t{grid.pieces} * kFewColumns, room = most_bytes(device);
  if (row_bytes * rows_of_weights > room) {  // two chunks in turn
    grid.chunk_steps = static_cast<int>(std::max<int64_t>(room / 2 / (rows_of_weights * F::kStepBytes), 1));
    grid.chunks = static_cast<int>(ceil_div(grid.steps, grid.chunk_steps));
    grid.row_stride = grid.chunk_steps * F::kStepBytes;
  }
  const int64_t stage = rows_of_weights * grid.row_stride;
  grid.stages = static_cast<int>(std::clamp<int64_t>(room / stage, 1, grid.chunks));
  // Rows begin at different banks, but for those that one copy brings.
  grid.x_stride = static_cast<int>(p.depth * sizeof(typename F::Value) + (p.x_stride == p.depth ? 0 : 16));
  const int64_t x_at = round_up(stage * grid.stages, 128);
  const int64_t scales_at = x_at + (F::kStaged ? rows * grid.x_stride : 0);
  const int64_t sums_at = round_up(scales_at + rows_of_weights * grid.groups * int64_t{sizeof(__half)}, 16);
  const int64_t barriers_at = round_up(sums_at + sums, 8);
  grid.x_at = static_cast<int>(x_at);
  grid.scales_at = static_cast<int>(scales_at);
  grid.sums_at = static_cast<int>(sums_at);
  grid.barriers_at = static_cast<int>(barriers_at);
  return barriers_at + 8 * (grid.stages + 1);
}

template <class F>
FewGrid grid_of_few(const Product& p, const Epilogue& e, int device) {
  FewGrid grid{};
  grid.groups = p.group_size ? static_cast<int>(ceil_div(p.depth, p.group_size)) : 0;
  while (int64_t{1} << grid.group_shift < p.group_size) {
    ++grid.group_shift;
  }
  grid.steps = static_cast<int>(ceil_div(p.depth, F::kStep));
  const int64_t most_warps = F::kTilesOfRows == 1 ? kMostWarps : kFewWarps;
  grid.split_shift =
      split_shift_of(grid.steps, ceil_div(e.columns, kFewColumns), most_warps, multiprocessors(device));
  grid.pieces = std::max(kFewestWarps >> grid.split_shift, 1);
  return grid;
}

// Whether blocks shall read their weights before the kernels before are done. Where the chip has no room for
// all of them, those that come early spread unevenly, and the last ones come late.
inline bool may_wait_with_weights(dim3 blocks, size_t memory, int device) {
  const double room = static_cast<double>(multiprocessors(device)) * shared_limit(device);
  return static_cast<double>(blocks.x) * blocks.y * static_cast<double>(memory) <= room * 2 / 3;
}

template <class X, int kBits, int kBytes, int kTiles, bool kKnee>
void launch_few_rows(const char* op, const Product& p, const Epilogue& e, int device, cudaStream_t stream) {
  using F = FewRows<X, kBits, kBytes, kTiles, kKnee>;
  FewGrid grid = grid_of_few<F>(p, e, device);
  const int warps = grid.pieces << grid.split_shift;
  const size_t memory = lay_out<F>(grid, p, warps, std::min<int64_t>(p.rows, kRowsOfTile), device);
  const auto kernel = few_rows<X, kBits, kBytes, kTiles, kKnee>;
  allow_shared(kernel, memory);
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
    part.constant_weight = p.constant_weight && may_wait_with_weights(blocks, memory, device);
    launch_early(kernel, blocks, 32 * warps, memory, device, stream, part, end, grid);
  }
}

// More tiles where there are more rows; kTiles = 4 reads the weights once for 32 rows.
template <class X, int kBits, bool kKnee>
void launch_few_rows(const char* op, const Product& p, const Epilogue& e, int device, cudaStream_t stream) {
  // Wide pieces must not pass from one group to the next, nor beyond the end of a row.
  using Wide = FewRows<X, kBits, 16, 1, kKnee>;
  if (!p.aligned || p.depth % Wide::kDepth != 0 || (p.group_size && p.group_size < Wide::kStep)) {
    launch_few_rows<X, kBits, kBits == 8 ? 8 : 4, 1, kKnee>(op, p, e, device, stream);
  } else if (p.rows <= kRowsOfTile && p.rows * p.depth * int64_t{sizeof(X)} <= most_bytes(device)) {
    launch_few_rows<X, kBits, 16, 1, kKnee>(op, p, e, device, stream);
  } else {
    launch_few_rows<X, kBits, 16, 4, kKnee>(op, p, e, device, stream);
  }
}

}  // namespace dualscale

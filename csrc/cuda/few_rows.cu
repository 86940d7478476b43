// W8A8 product for few rows: bound by reading the weights, so a warp takes four output columns at once and
// reads 16 bytes of each a lane; the activations come from the cache. Any size and alignment is right, if
// slower.
#include "linear.cuh"

namespace dualscale {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 4;
constexpr int kDepth = 16;

// The sum of a value over the warp, in every lane.
__device__ __forceinline__ int add_lanes(int value) { return __reduce_add_sync(0xffffffffu, value); }

template <int kRows, bool kKnee>
__global__ void __launch_bounds__(kThreads, 1)
    dot(const __grid_constant__ Product p, const __grid_constant__ Epilogue e) {
  const int lane = threadIdx.x % 32;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int64_t pieces = (e.columns + kColumns - 1) / kColumns;
  const int64_t column = warp % pieces * kColumns, first_row = warp / pieces * kRows;
  if (first_row >= p.rows) {
    return;
  }
  const KneeTerm term = kKnee ? KneeTerm::of(e.x_code) : KneeTerm{};
  int sum[kRows][kColumns] = {}, excess[kRows][kColumns] = {};
  for (int64_t k = lane * kDepth; k < p.depth; k += 32 * kDepth) {
    const int valid = static_cast<int>(min(p.depth - k, int64_t{kDepth}));
    Raw<int8_t, kDepth> weight[kColumns];
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const int64_t at = min(column + n, e.columns - 1) * p.depth + k;
      weight[n] = load_raw<int8_t, kDepth>(p.weight + at, p.aligned, valid);
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const int64_t at = min(first_row + m, p.rows - 1) * p.x_stride + k;
      const auto x = load_raw<int8_t, kDepth>(p.x + at, p.aligned, valid);
#pragma unroll
      for (int w = 0; w < kDepth / 4; ++w) {
        const int over = kKnee ? static_cast<int>(term.excess(x.word[w])) : 0;
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          const int bytes = static_cast<int>(weight[n].word[w]);
          sum[m][n] = __dp4a(static_cast<int>(x.word[w]), bytes, sum[m][n]);
          if constexpr (kKnee) {
            excess[m][n] = __dp4a(over, bytes, excess[m][n]);  // bytes past the end meet weights of 0
          }
        }
      }
    }
  }
  // Every lane finishes one of the results, so that their parameters are fetched together.
  int my_sum = 0, my_excess = 0;
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const int total = add_lanes(sum[m][n]);
      my_sum = lane == m * kColumns + n ? total : my_sum;
      if constexpr (kKnee) {
        const int beyond = add_lanes(excess[m][n]);
        my_excess = lane == m * kColumns + n ? beyond : my_excess;
      }
    }
  }
  const int64_t row = first_row + lane / kColumns, mine = column + lane % kColumns;
  if (lane < kRows * kColumns && row < p.rows && mine < e.columns) {
    const float y[4] = {Column(e, mine).value(e, my_sum, my_excess, row)};
    store_four(e.y, e.kind, row * e.columns + mine, y, false, 1);
  }
}

template <int kRows>
void launch(const Product& p, const Epilogue& e, cudaStream_t stream) {
  const int64_t warps = ceil_div(e.columns, kColumns) * ceil_div(p.rows, kRows);
  const unsigned grid = grid_of("linear_w8a8", ceil_div(warps * 32, kThreads));
  if (e.knee) {
    dot<kRows, true><<<grid, kThreads, 0, stream>>>(p, e);
  } else {
    dot<kRows, false><<<grid, kThreads, 0, stream>>>(p, e);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void multiply_few_rows(const Product& product, const Epilogue& epilogue, cudaStream_t stream) {
  if (product.rows == 1) {
    launch<1>(product, epilogue, stream);
  } else if (product.rows <= 4) {
    launch<4>(product, epilogue, stream);
  } else {
    launch<8>(product, epilogue, stream);
  }
}

}  // namespace dualscale

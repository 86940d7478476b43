// Many rows on a chip other than Hopper: torch's int8 matrix product (cuBLASLt) into int32 and an epilogue of
// our own; the knee term is a second product, over the part of the codes beyond the knee.
#include <array>

#include "linear.cuh"

namespace dualscale {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerThread = 8;

// Four columns and a few rows a thread, so that the columns' parameters are loaded once.
__global__ void __launch_bounds__(kThreads) finish_sums(const int32_t* sums, const int32_t* excesses,
                                                        int64_t rows, const __grid_constant__ Epilogue e) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t pieces = e.columns / 4;
  const int64_t column = item % pieces * 4, first = item / pieces * kRowsPerThread;
  if (first >= rows) {
    return;
  }
  Column<int32_t> columns[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    columns[i] = Column<int32_t>::of(e, Column<int32_t>::fetch(e, column + i));
  }
#pragma unroll 4
  for (int64_t row = first; row < min(first + kRowsPerThread, rows); ++row) {
    const int64_t at = row * e.columns + column;
    const int4 sum = *reinterpret_cast<const int4*>(sums + at);
    const int4 over = e.knee ? *reinterpret_cast<const int4*>(excesses + at) : int4{};
    const int plain[4] = {sum.x, sum.y, sum.z, sum.w}, beyond[4] = {over.x, over.y, over.z, over.w};
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      y[i] = e.knee ? finish<true>(e, columns[i], plain[i], beyond[i], row)
                    : finish<false>(e, columns[i], plain[i], 0, row);
      y[i] = e.code.rows ? output_knee(e, column + i).encode(y[i]) : y[i];
    }
    store_four(e.y, e.kind, at, y, true, 4);
  }
}

// The part of each code beyond the knee, eight at a time (the depth is a multiple of eight).
__global__ void __launch_bounds__(kThreads)
    beyond_knee(const __grid_constant__ Product p, const float* x_code, int8_t* out) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (at >= p.rows * p.depth) {
    return;
  }
  const KneeTerm term = KneeTerm::of(x_code);
  auto raw = load_raw<int8_t, 8>(static_cast<const int8_t*>(p.x) + at / p.depth * p.x_stride + at % p.depth,
                                 p.aligned, 8);
  raw.word[0] = term.excess(raw.word[0]);
  raw.word[1] = term.excess(raw.word[1]);
  store_raw(out + at, raw, true, 8);
}

Tensor matrix(const void* data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
              const Tensor& like) {
  const std::array<int64_t, 2> sizes{rows, columns}, strides{row_stride, column_stride};
  return torch::stable::from_blob(const_cast<void*>(data), {sizes.data(), sizes.size()},
                                  {strides.data(), strides.size()}, like.device(), like.scalar_type());
}

Tensor int_mm(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(a), torch::stable::detail::from(b)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_int_mm", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace

// cuBLASLt wants a base at 16 bytes, and of rows that do not touch each other the same.
bool suits_library(const Tensor& x) {
  return is_aligned(x, 16) || (x.is_contiguous() && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0);
}

void multiply_by_library(const Rows& x, const Product& p, const Tensor& weight, const Epilogue& e,
                         cudaStream_t stream) {
  const int64_t depth = p.depth;
  const Tensor transposed = matrix(weight.data_ptr(), depth, e.columns, 1, depth, weight);
  const Tensor sums = int_mm(matrix(p.x, p.rows, depth, p.x_stride, 1, x.tensor), transposed);
  Tensor excesses = sums;
  if (e.knee) {
    Tensor beyond = torch::stable::new_empty(x.tensor, {p.rows, depth}, ScalarType::Char);
    beyond_knee<<<grid_of("linear_w8a8", ceil_div(p.rows * depth / 8, kThreads)), kThreads, 0, stream>>>(
        p, e.x_code, static_cast<int8_t*>(beyond.data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    excesses = int_mm(beyond, transposed);
  }
  const int64_t items = e.columns / 4 * ceil_div(p.rows, kRowsPerThread);
  finish_sums<<<grid_of("linear_w8a8", ceil_div(items, kThreads)), kThreads, 0, stream>>>(
      static_cast<const int32_t*>(sums.data_ptr()), static_cast<const int32_t*>(excesses.data_ptr()), p.rows,
      e);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace dualscale

// W8A8 product: torch's int8 matrix product (cuBLASLt) into int32 and an epilogue of our own; the knee term
// is a second product, over the part of the codes beyond the knee.
#include <array>
#include <vector>

#include "linear.cuh"
#include "linear_checks.h"

namespace dualscale {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerThread = 8;
// torch._int_mm refuses fewer rows, and other multiples of columns and depth.
constexpr int64_t kFewRows = 16;
constexpr int64_t kMultiple = 8;

// Four columns and a few rows a thread, so that the columns' parameters are loaded once.
__global__ void __launch_bounds__(kThreads)
    finish(const int32_t* sums, const int32_t* excesses, int64_t rows, const __grid_constant__ Epilogue e) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t pieces = e.columns / 4;
  const int64_t column = item % pieces * 4, first = item / pieces * kRowsPerThread;
  if (first >= rows) {
    return;
  }
  const Column columns[4] = {{e, column}, {e, column + 1}, {e, column + 2}, {e, column + 3}};
#pragma unroll 4
  for (int64_t row = first; row < min(first + kRowsPerThread, rows); ++row) {
    const int64_t at = row * e.columns + column;
    const int4 sum = *reinterpret_cast<const int4*>(sums + at);
    const int4 over = e.knee ? *reinterpret_cast<const int4*>(excesses + at) : int4{};
    const float y[4] = {columns[0].value(e, sum.x, over.x, row), columns[1].value(e, sum.y, over.y, row),
                        columns[2].value(e, sum.z, over.z, row), columns[3].value(e, sum.w, over.w, row)};
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
  auto raw = load_raw<int8_t, 8>(p.x + at / p.depth * p.x_stride + at % p.depth, p.aligned, 8);
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

// cuBLASLt wants a base at 16 bytes, and of rows that do not touch each other the same.
bool suits_library(const Tensor& x) {
  return is_aligned(x, 16) || (x.is_contiguous() && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0);
}

void multiply_many_rows(const Rows& x, const Product& p, const Tensor& weight, const Epilogue& e,
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
  finish<<<grid_of("linear_w8a8", ceil_div(items, kThreads)), kThreads, 0, stream>>>(
      static_cast<const int32_t*>(sums.data_ptr()), static_cast<const int32_t*>(excesses.data_ptr()), p.rows,
      e);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor linear_w8a8(const Tensor& x, const OptionalTensor& x_code, bool knee, const OptionalTensor& row_scale,
                   const Tensor& weight, const Tensor& weight_scale, const Tensor& weight_sum,
                   const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype) {
  checked_linear_w8a8(x, x_code, knee, row_scale, weight, weight_scale, weight_sum, bias, code, dtype);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  const int64_t depth = sizes.back(), columns = weight.size(0);
  sizes.back() = columns;
  Tensor y = torch::stable::new_empty(x, {sizes.data(), sizes.size()}, code ? ScalarType::Char : dtype);
  if (y.numel() == 0) {
    return y;
  }
  const OnDevice device(x);
  Rows rows = rows_of(x);
  const Tensor sums = weight_sum.is_contiguous() ? weight_sum : torch::stable::contiguous(weight_sum);
  const Epilogue e{floats(x_code),
                   knee,
                   floats(row_scale),
                   floats(weight_scale),
                   static_cast<const int32_t*>(sums.data_ptr()),
                   floats(bias),
                   view_of(code),
                   kind_of(y),
                   y.data_ptr(),
                   columns};
  const bool library = rows.count > kFewRows && depth % kMultiple == 0 && columns % kMultiple == 0 &&
                       is_aligned(weight, kMultiple);
  if (library && !suits_library(rows.tensor)) {
    const Tensor& tensor = rows.tensor;
    rows = {tensor.is_contiguous() ? torch::stable::clone(tensor) : torch::stable::contiguous(tensor),
            rows.count, depth, depth};
  }
  const int64_t vector = library ? kMultiple : 16;
  const Product p{static_cast<const int8_t*>(rows.tensor.data_ptr()),
                  rows.stride,
                  rows.count,
                  depth,
                  static_cast<const int8_t*>(weight.data_ptr()),
                  is_aligned(rows.tensor, vector) && is_aligned(weight, vector)};
  if (library) {
    multiply_many_rows(rows, p, weight, e, device.stream);
  } else {
    multiply_few_rows(p, e, device.stream);
  }
  return y;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) { m.impl("linear_w8a8", TORCH_BOX(&dualscale::linear_w8a8)); }

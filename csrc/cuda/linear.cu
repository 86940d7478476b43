// int8 activations with quantized weights: few rows by a kernel of their own, many by the product of the
// chip.
#include <vector>

#include "../linear_checks.h"
#include "linear.cuh"
#include "weights.cuh"

namespace dualscale {
namespace {

// torch._int_mm refuses fewer rows, and other multiples of columns and depth.
constexpr int64_t kLibraryRows = 16;
constexpr int64_t kLibraryMultiple = 8;
constexpr int64_t kFewRows = 8;         // from more on tiles of 64 rows are faster, ...
constexpr int64_t kFewPackedRows = 32;  // ... but weights of four bits are unpacked for them first
constexpr int64_t kMapAlignment = 16;   // of addresses and rows that TMA copies

void multiply_on_hopper(const Rows& rows, const Tensor& weight, const Tensor& weight_scale,
                        int64_t group_size, const Epilogue& e, bool constant_weight, const OnDevice& device) {
  ManyRows p{};
  p.x = static_cast<const int8_t*>(rows.tensor.data_ptr());
  p.x_stride = rows.stride;
  p.rows = rows.count;
  p.depth = rows.channels;
  p.weight = static_cast<const int8_t*>(weight.data_ptr());
  p.constant_weight = constant_weight;
  const int index = rows.tensor.get_device_index();
  if (group_size == 0) {
    const auto go = suits_some_rows(p, e, index) ? multiply_some_rows : multiply_many_rows;
    go(p, e, index, device.stream);
    return;
  }
  // Unpacking costs a fraction of a product of many rows.
  p.padded_columns = ceil_div(e.columns, kColumnPadding) * kColumnPadding;
  const Tensor codes = unpacked_codes(weight, device.stream);
  const Tensor scales = transposed_scales(weight_scale, p.padded_columns, device.stream);
  p.weight = static_cast<const int8_t*>(codes.data_ptr());
  p.group_scale = floats(scales);
  p.group_size = group_size;
  multiply_many_rows(p, e, index, device.stream);
}

Tensor multiply(const char* op, const Tensor& x, const OptionalTensor& x_code, bool knee,
                const OptionalTensor& row_scale, const Tensor& weight, const Tensor& weight_scale,
                const Tensor& weight_sum, int64_t group_size, const OptionalTensor& bias,
                const OptionalTensor& code, ScalarType dtype, bool constant_weight) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  const int64_t depth = sizes.back(), columns = weight.size(0);
  sizes.back() = columns;
  Tensor y = torch::stable::new_empty(x, {sizes.data(), sizes.size()}, code ? ScalarType::Char : dtype);
  if (y.numel() == 0) {
    return y;
  }
  const OnDevice device(x);
  Rows rows = rows_of(x);
  const Epilogue e{
      floats(x_code),        knee,         floats(row_scale), group_size ? nullptr : floats(weight_scale),
      weight_sum.data_ptr(), floats(bias), view_of(code),     kind_of(y),
      y.data_ptr(),          columns};
  const bool many = rows.count > (group_size ? kFewPackedRows : kFewRows) && depth % kMapAlignment == 0 &&
                    is_aligned(weight, kMapAlignment);
  const bool is_hopper = compute_major(x.get_device_index()) == 9, hopper = many && is_hopper;
  const bool library = !is_hopper && group_size == 0 && rows.count > kLibraryRows &&
                       depth % kLibraryMultiple == 0 && columns % kLibraryMultiple == 0 &&
                       is_aligned(weight, kLibraryMultiple);
  if ((hopper && !is_aligned(rows.tensor, kMapAlignment)) || (library && !suits_library(rows.tensor))) {
    const Tensor& tensor = rows.tensor;
    rows = {tensor.is_contiguous() ? torch::stable::clone(tensor) : torch::stable::contiguous(tensor),
            rows.count, depth, depth};
  }
  if (hopper) {
    multiply_on_hopper(rows, weight, weight_scale, group_size, e, constant_weight, device);
    return y;
  }
  const int64_t vector = library ? kLibraryMultiple : 16;
  const Product p{rows.tensor.data_ptr(),
                  rows.stride,
                  rows.count,
                  depth,
                  weight.data_ptr(),
                  group_size ? static_cast<const __half*>(weight_scale.data_ptr()) : nullptr,
                  group_size,
                  is_aligned(rows.tensor, vector) && is_aligned(weight, vector),
                  constant_weight};
  if (library) {
    multiply_by_library(rows, p, weight, e, device.stream);
  } else {
    multiply_few_rows(op, p, e, x.get_device_index(), device.stream);
  }
  return y;
}

Tensor linear_w8a8(const Tensor& x, const OptionalTensor& x_code, bool knee, const OptionalTensor& row_scale,
                   const Tensor& weight, const Tensor& weight_scale, const Tensor& weight_sum,
                   const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype,
                   bool constant_weight) {
  checked_linear_w8a8(x, x_code, knee, row_scale, weight, weight_scale, weight_sum, bias, code, dtype);
  return multiply("linear_w8a8", x, x_code, knee, row_scale, weight, weight_scale, weight_sum, 0, bias, code,
                  dtype, constant_weight);
}

Tensor linear_w4a8(const Tensor& x, const OptionalTensor& x_code, bool knee, const OptionalTensor& row_scale,
                   const Tensor& weight, const Tensor& weight_scale, const Tensor& weight_sum,
                   int64_t group_size, const OptionalTensor& bias, const OptionalTensor& code,
                   ScalarType dtype, bool constant_weight) {
  checked_linear_w4a8(x, x_code, knee, row_scale, weight, weight_scale, weight_sum, group_size, bias, code,
                      dtype);
  return multiply("linear_w4a8", x, x_code, knee, row_scale, weight, weight_scale, weight_sum, group_size,
                  bias, code, dtype, constant_weight);
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("linear_w8a8", TORCH_BOX(&dualscale::linear_w8a8));
  m.impl("linear_w4a8", TORCH_BOX(&dualscale::linear_w4a8));
}

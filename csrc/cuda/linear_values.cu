// Products of floating-point values with quantized weights: a few rows read the codes themselves; for many,
// the weights are decoded once and torch multiplies.
#include "../linear_checks.h"
#include "linear.cuh"
#include "weights.cuh"

#include <vector>

namespace dualscale {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kFewValues = 64;  // rows; see benchmarks/README.md

// Adds the bias and encodes, a value a thread.
__global__ void __launch_bounds__(kThreads)
    end_values(const __grid_constant__ Input values, int64_t total, const __grid_constant__ Epilogue e) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= total) {
    return;
  }
  const int64_t column = at % e.columns;
  float y[4] = {one_value(values, at, column) + (e.bias ? e.bias[column] : 0.0f)};
  if (e.code.rows != nullptr) {
    y[0] = output_knee(e, column).encode(y[0]);
  }
  store_four(e.y, e.kind, at, y, false, 1);
}

Tensor multiply_many_values(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                            int64_t group_size, Epilogue& e, Tensor& y, cudaStream_t stream) {
  const Tensor decoded = decoded_weight(weight, weight_scale, group_size, x.scalar_type(), stream);
  const Tensor found = torch::stable::matmul(x, torch::stable::transpose(decoded, 0, 1));
  if (e.bias == nullptr && e.code.rows == nullptr && found.scalar_type() == y.scalar_type()) {
    return found;
  }
  const Tensor values = found.is_contiguous() ? found : torch::stable::contiguous(found);
  end_values<<<grid_of("linear_a16", ceil_div(y.numel(), kThreads)), kThreads, 0, stream>>>(
      input_of(values, {}), y.numel(), e);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

Tensor linear_values(const char* op, const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                     int64_t group_size, const OptionalTensor& bias, const OptionalTensor& code,
                     ScalarType dtype, bool constant_weight) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  const int64_t depth = sizes.back(), columns = weight.size(0);
  sizes.back() = columns;
  Tensor y = torch::stable::new_empty(x, {sizes.data(), sizes.size()}, code ? ScalarType::Char : dtype);
  if (y.numel() == 0) {
    return y;
  }
  const OnDevice device(x);
  Epilogue e{};
  e.weight_scale = group_size ? nullptr : floats(weight_scale);
  e.bias = floats(bias);
  e.code = view_of(code);
  e.kind = kind_of(y);
  e.y = y.data_ptr();
  e.columns = columns;
  if (x.numel() / depth > kFewValues || x.scalar_type() == ScalarType::Float) {
    return multiply_many_values(x, weight, weight_scale, group_size, e, y, device.stream);
  }
  const Rows rows = rows_of(x);
  Product p{};
  p.x = rows.tensor.data_ptr();
  p.x_stride = rows.stride;
  p.rows = rows.count;
  p.depth = depth;
  p.weight = weight.data_ptr();
  p.group_scale = group_size ? static_cast<const __half*>(weight_scale.data_ptr()) : nullptr;
  p.group_size = group_size;
  p.aligned = is_aligned(rows.tensor, 16) && is_aligned(weight, 16);
  p.constant_weight = constant_weight;
  multiply_few_values(op, p, e, x.scalar_type(), x.get_device_index(), device.stream);
  return y;
}

Tensor linear_w8a16(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                    const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype,
                    bool constant_weight) {
  checked_linear_w8a16(x, weight, weight_scale, bias, code, dtype);
  return linear_values("linear_w8a16", x, weight, weight_scale, 0, bias, code, dtype, constant_weight);
}

Tensor linear_w4a16(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, int64_t group_size,
                    const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype,
                    bool constant_weight) {
  checked_linear_w4a16(x, weight, weight_scale, group_size, bias, code, dtype);
  return linear_values("linear_w4a16", x, weight, weight_scale, group_size, bias, code, dtype,
                       constant_weight);
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("linear_w8a16", TORCH_BOX(&dualscale::linear_w8a16));
  m.impl("linear_w4a16", TORCH_BOX(&dualscale::linear_w4a16));
}

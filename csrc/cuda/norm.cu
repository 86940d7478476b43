// Residual add + RMSNorm + encode. One block a row; x and the residual are read once.
#include "rows.cuh"

namespace dualscale {
namespace {

struct Norm {
  Input x, residual;
  const float* weight;
  float eps;
  void* total;
  Kind total_kind;
  RowResult result;
};

__device__ __forceinline__ float rounded(float x, Kind kind) {
  return kind == Kind::kHalf       ? __half2float(__float2half_rn(x))
         : kind == Kind::kBFloat16 ? __bfloat162float(__float2bfloat16_rn(x))
                                   : x;
}

__device__ __forceinline__ void load_values(const Input& input, int64_t offset, int valid, float (&x)[4]) {
  biased_or_value(load_four<false>(input, offset, valid), input.kind, x);
}

__global__ void __launch_bounds__(kMaxRowThreads) rms_norm(const __grid_constant__ Norm a) {
  extern __shared__ __align__(16) float row[];
  const int64_t index = blockIdx.x;
  float squares = 0.0f;
  for_each_four(a.result.channels, [&](int c, int valid) {
    float x[4], add[4] = {};
    load_values(a.x, index * a.x.row_stride + c, valid, x);
    if (a.residual.data != nullptr) {
      load_values(a.residual, index * a.residual.row_stride + c, valid, add);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = rounded(x[j] + add[j], a.total_kind);
      squares = j < valid ? fmaf(x[j], x[j], squares) : squares;
    }
    store_four(a.total, a.total_kind, index * a.result.channels + c, x, a.result.aligned, valid);
    *reinterpret_cast<float4*>(&row[slot(c)]) = make_float4(x[0], x[1], x[2], x[3]);
  });
  squares = reduce_block(squares, [](float p, float q) { return p + q; });
  const float inverse = rsqrtf(squares / static_cast<float>(a.result.channels) + a.eps);
  for_each_four(a.result.channels, [&](int c, int valid) {
    for (int j = 0; j < valid; ++j) {
      row[slot(c) + j] *= inverse * a.weight[c + j];
    }
  });
  __syncthreads();  // a second reduction may use the same scratch
  write_row(a.result, row, index);
}

Input row_input(const Rows& rows) {
  const Tensor& tensor = rows.tensor;
  return {
      tensor.data_ptr(), {}, 0, rows.stride, kind_of(tensor), is_aligned(tensor, 4 * tensor.element_size())};
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_quant(const Tensor& x, const OptionalTensor& residual,
                                                  const Tensor& weight, double eps,
                                                  const OptionalTensor& code, bool per_token,
                                                  ScalarType residual_dtype, ScalarType dtype) {
  const char* op = "rms_norm_quant";
  const int64_t channels = checked_norm(op, x, residual, weight, code, per_token, residual_dtype, dtype);
  const size_t bytes = row_bytes(channels);
  check_row_fits({op, "x"}, bytes + 1024, x.get_device_index());
  Tensor y = new_result(x, code, per_token, dtype);
  Tensor total = torch::stable::new_empty(x, x.sizes(), residual_dtype);
  Tensor row_scale = new_row_scale(x, per_token);
  if (x.numel() == 0) {
    return {y, total, row_scale};
  }
  const OnDevice device(x);
  const Rows rows = rows_of(x);
  const Rows added = residual ? rows_of(*residual) : rows;
  Norm a{row_input(rows),
         residual ? row_input(added) : Input{},
         floats(weight),
         static_cast<float>(eps),
         total.data_ptr(),
         kind_of(residual_dtype),
         row_result(code, per_token, y, row_scale)};
  allow_shared(rms_norm, bytes);
  rms_norm<<<grid_of(op, rows.count), row_threads(channels), bytes, device.stream>>>(a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, total, row_scale};
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("rms_norm_quant", TORCH_BOX(&dualscale::rms_norm_quant));
}

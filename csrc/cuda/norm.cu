// RMSNorm + encode after a residual add, or with a gate. One block a row; its inputs are read once.
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

struct GatedNorm {
  Input x, z;
  const float* weight;
  float eps;
  int group_size;
  RowResult result;
};

// SiLU(z) of four channels.
__device__ __forceinline__ void load_gates(const Input& z, int64_t offset, int valid, float (&gate)[4]) {
  load_values(z, offset, valid, gate);
  if (z.kind == Kind::kCodes) {
    const Scaled code = Scaled::of(z.code.rows);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      gate[j] = code.value(gate[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    gate[j] = silu(gate[j]);
  }
}

// Leaves the inverse root mean square of every group in `inverse`: a warp a group, in turn.
__device__ __forceinline__ void norm_groups(const GatedNorm& a, const float* row, float* inverse) {
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  for (int group = threadIdx.x / 32; group < a.result.channels / a.group_size; group += warps) {
    float squares = 0.0f;
    for (int i = lane; i < a.group_size; i += 32) {
      const float x = row[slot(group * a.group_size + i)];
      squares = fmaf(x, x, squares);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      squares += __shfl_xor_sync(0xffffffffu, squares, distance);
    }
    if (lane == 0) {
      inverse[group] = rsqrtf(squares / static_cast<float>(a.group_size) + a.eps);
    }
  }
}

template <bool kNormFirst>
__global__ void __launch_bounds__(kMaxRowThreads) gated_rms_norm(const __grid_constant__ GatedNorm a) {
  extern __shared__ __align__(16) float row[];
  float* inverse = row + slot_count(a.result.channels);
  const int64_t index = blockIdx.x;
  float squares = 0.0f;
  for_each_four(a.result.channels, [&](int c, int valid) {
    float x[4], gate[4];
    load_values(a.x, index * a.x.row_stride + c, valid, x);
    if (!kNormFirst) {
      load_gates(a.z, index * a.z.row_stride + c, valid, gate);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] *= kNormFirst ? 1.0f : gate[j];
      squares = j < valid ? fmaf(x[j], x[j], squares) : squares;
    }
    *reinterpret_cast<float4*>(&row[slot(c)]) = make_float4(x[0], x[1], x[2], x[3]);
  });
  if (a.group_size == a.result.channels) {
    squares = reduce_block(squares, [](float p, float q) { return p + q; });
    if (threadIdx.x == 0) {
      inverse[0] = rsqrtf(squares / static_cast<float>(a.group_size) + a.eps);
    }
  } else {
    __syncthreads();
    norm_groups(a, row, inverse);
  }
  __syncthreads();
  for_each_four(a.result.channels, [&](int c, int valid) {
    float gate[4];
    if (kNormFirst) {
      load_gates(a.z, index * a.z.row_stride + c, valid, gate);
    }
    const int group = c / a.group_size, rest = c - group * a.group_size;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < valid) {
        // Groups of four or more: a vector meets two at most, and one division does.
        const int own = a.group_size < 4 ? (c + j) / a.group_size : group + (rest + j >= a.group_size);
        const float scale = inverse[own] * a.weight[c + j];
        row[slot(c) + j] *= kNormFirst ? scale * gate[j] : scale;
      }
    }
  });
  __syncthreads();  // a second reduction may use the same scratch
  write_row(a.result, row, index);
}

Input row_input(const Rows& rows, const OptionalTensor& code = {}) {
  const Tensor& tensor = rows.tensor;
  return {tensor.data_ptr(), view_of(code),   0,
          rows.stride,       kind_of(tensor), is_aligned(tensor, 4 * tensor.element_size())};
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

std::tuple<Tensor, Tensor> gated_rms_norm_quant(const Tensor& x, const Tensor& z,
                                                const OptionalTensor& z_code, const Tensor& weight,
                                                double eps, int64_t group_size, bool norm_before_gate,
                                                const OptionalTensor& code, bool per_token,
                                                ScalarType dtype) {
  const char* op = "gated_rms_norm_quant";
  const int64_t channels = checked_gated_norm(op, x, z, z_code, weight, group_size, code, per_token, dtype);
  const size_t bytes = row_bytes(channels) + channels / group_size * sizeof(float);
  check_row_fits({op, "x"}, bytes + 1024, x.get_device_index());
  Tensor y = new_result(x, code, per_token, dtype);
  Tensor row_scale = new_row_scale(x, per_token);
  if (x.numel() == 0) {
    return {y, row_scale};
  }
  const OnDevice device(x);
  const Rows rows = rows_of(x), gates = rows_of(z);
  const GatedNorm a{
      row_input(rows),         row_input(gates, z_code),     floats(weight),
      static_cast<float>(eps), static_cast<int>(group_size), row_result(code, per_token, y, row_scale)};
  const auto kernel = norm_before_gate ? gated_rms_norm<true> : gated_rms_norm<false>;
  allow_shared(kernel, bytes);
  kernel<<<grid_of(op, rows.count), row_threads(channels), bytes, device.stream>>>(a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, row_scale};
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("rms_norm_quant", TORCH_BOX(&dualscale::rms_norm_quant));
  m.impl("gated_rms_norm_quant", TORCH_BOX(&dualscale::gated_rms_norm_quant));
}

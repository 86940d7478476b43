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

// A thread's only vector of weights is read ahead, while the inputs are on their way; of more, each when its
// turn comes.
template <int kVectors>
struct Weights {
  static constexpr bool kWhole = RowOf<kVectors>::kWhole;
  const float* from;
  float ahead[kEight];

  __device__ Weights(const float* weight, int channels) : from(weight) {
    const int c = kEight * threadIdx.x;
    if (kVectors == 1 && c < channels) {
      load_floats<kWhole>(from + c, kEight, ahead);
    }
  }

  __device__ __forceinline__ void load(int c, int valid, float (&weight)[kEight]) const {
    if constexpr (kVectors == 1) {
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        weight[j] = ahead[j];
      }
    } else {
      load_floats<kWhole>(from + c, valid, weight);
    }
  }
};

struct Summands {
  Eight x, residual;
};

template <int kVectors>
__global__ void __launch_bounds__(kRowThreads<kVectors>, row_blocks<kVectors>())
    rms_norm(const __grid_constant__ Norm a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ float parts[kMaxRowThreads / 32];
  constexpr bool kWhole = RowOf<kVectors>::kWhole;
  const int64_t index = blockIdx.x, first = index * a.result.channels;
  prefetch_floats(a.weight, a.result.channels);
  await_earlier();
  admit_later();
  const RowCode code(a.result.code);
  const Weights<kVectors> weights(a.weight, a.result.channels);
  RowOf<kVectors> row(a.result.channels, shared);
  float squares = 0.0f;
  const bool adds = a.residual.data != nullptr;
  row.fill(
      [&](int c, int valid) {
        Summands in;
        in.x = load_eight<kWhole>(a.x, index * a.x.row_stride + c, valid);
        if (adds) {
          in.residual = load_eight<kWhole>(a.residual, index * a.residual.row_stride + c, valid);
        }
        return in;
      },
      [&](const Summands& in, int c, int valid, float (&x)[kEight]) {
        biased_or_value(in.x, a.x.kind, x);
        if (adds) {
          float add[kEight];
          biased_or_value(in.residual, a.residual.kind, add);
#pragma unroll
          for (int j = 0; j < kEight; ++j) {
            x[j] += add[j];
          }
        }
        round_to(a.total_kind, x);
        store_eight<kWhole>(a.total, a.total_kind, first + c, x, a.result.aligned, valid);
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
          squares = kWhole || j < valid ? fmaf(x[j], x[j], squares) : squares;
        }
      });
  squares = reduce_block(squares, parts, [](float p, float q) { return p + q; });
  const float inverse = rsqrtf(squares / static_cast<float>(a.result.channels) + a.eps);
  row.change([&](int c, int valid, float (&x)[kEight]) {
    float weight[kEight];
    weights.load(c, valid, weight);
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      x[j] *= inverse * weight[j];
    }
  });
  write_row(a.result, code, row, index);
}

struct GatedNorm {
  Input x, z;
  const float* weight;
  float eps;
  int group_size;
  int grain;  // neighbouring channels that are always of one group: 8 or 1
  RowResult result;
};

// SiLU(z) of eight channels; `code` is z's, if it has one.
__device__ __forceinline__ void gates_of(const Eight& z, Kind kind, const Scaled& code,
                                         float (&gate)[kEight]) {
  biased_or_value(z, kind, gate);
  if (kind == Kind::kCodes) {
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      gate[j] = code.value(gate[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    gate[j] = silu(gate[j]);
  }
}

// Leaves the sums of squares of the grains of eight channels in `sums`.
__device__ __forceinline__ void store_squares(const float (&x)[kEight], int c, int valid, int grain,
                                              float* sums) {
  if (grain == kEight) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      sum = fmaf(x[j], x[j], sum);
    }
    sums[c / kEight] = sum;
    return;
  }
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    if (j < valid) {
      sums[c + j] = x[j] * x[j];
    }
  }
}

// Leaves the inverse root mean square of every group in `inverse`: a warp a group, in turn.
__device__ __forceinline__ void norm_groups(const GatedNorm& a, const float* sums, float* inverse) {
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32, grains = a.group_size / a.grain;
  for (int group = threadIdx.x / 32; group < a.result.channels / a.group_size; group += warps) {
    float squares = 0.0f;
    for (int i = lane; i < grains; i += 32) {
      squares += sums[group * grains + i];
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      squares += __shfl_xor_sync(0xffffffffu, squares, distance);
    }
    if (lane == 0) {
      inverse[group] = rsqrtf(squares / static_cast<float>(a.group_size) + a.eps);
    }
  }
}

// Multiplies the weights of eight channels by the inverse root mean square: `only` of a row that is one
// group, else of the channels' groups. Where these are whole vectors, one division does.
__device__ __forceinline__ void multiply_factors(const GatedNorm& a, const float* inverse, float only, int c,
                                                 int valid, float (&factor)[kEight]) {
  const bool is_alone = a.group_size == a.result.channels;
  if (!is_alone && a.grain < kEight) {
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      factor[j] *= j < valid ? inverse[(c + j) / a.group_size] : 0.0f;
    }
    return;
  }
  const float one = is_alone ? only : inverse[c / a.group_size];
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    factor[j] *= one;
  }
}

struct Gated {
  Eight x, z;
};

template <bool kWhole>
__device__ __forceinline__ Eight load_gates(const GatedNorm& a, int64_t index, int c, int valid) {
  return load_eight<kWhole>(a.z, index * a.z.row_stride + c, valid);
}

// Loads the row, multiplied by the gates unless the norm comes first. Returns this thread's sum of squares
// for a row that is one group; else leaves the groups' parts in `sums`.
template <bool kNormFirst, class AnyRow>
__device__ __forceinline__ float fill_row(const GatedNorm& a, const Scaled& z_code, int64_t index,
                                          AnyRow& row, float* sums) {
  constexpr bool kWhole = AnyRow::kWhole;
  const bool alone = a.group_size == a.result.channels;
  float squares = 0.0f;
  row.fill(
      [&](int c, int valid) {
        Gated in;
        in.x = load_eight<kWhole>(a.x, index * a.x.row_stride + c, valid);
        if constexpr (!kNormFirst) {
          in.z = load_gates<kWhole>(a, index, c, valid);
        }
        return in;
      },
      [&](const Gated& in, int c, int valid, float (&x)[kEight]) {
        biased_or_value(in.x, a.x.kind, x);
        if constexpr (!kNormFirst) {
          float gate[kEight];
          gates_of(in.z, a.z.kind, z_code, gate);
#pragma unroll
          for (int j = 0; j < kEight; ++j) {
            x[j] *= gate[j];
          }
        }
        if (!alone) {
          return store_squares(x, c, valid, a.grain, sums);
        }
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
          squares = kWhole || j < valid ? fmaf(x[j], x[j], squares) : squares;
        }
      });
  return squares;
}

template <int kVectors, bool kNormFirst>
__global__ void __launch_bounds__(kRowThreads<kVectors>, row_blocks<kVectors>())
    gated_rms_norm(const __grid_constant__ GatedNorm a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ float parts[kMaxRowThreads / 32];
  const int64_t index = blockIdx.x;
  float* sums = shared + (kVectors == 0 ? slot_count(a.result.channels) : 0);
  float* inverse = sums + a.result.channels / a.grain;
  prefetch_floats(a.weight, a.result.channels);
  await_earlier();
  admit_later();
  const Scaled z_code = a.z.kind == Kind::kCodes ? Scaled::of(a.z.code.rows) : Scaled{};
  const RowCode code(a.result.code);
  const Weights<kVectors> weights(a.weight, a.result.channels);
  RowOf<kVectors> row(a.result.channels, shared);
  float squares = fill_row<kNormFirst>(a, z_code, index, row, sums);
  float only = 0.0f;
  if (a.group_size == a.result.channels) {
    squares = reduce_block(squares, parts, [](float p, float q) { return p + q; });
    only = rsqrtf(squares / static_cast<float>(a.group_size) + a.eps);
  } else {
    __syncthreads();
    norm_groups(a, sums, inverse);
    __syncthreads();
  }
  row.change([&](int c, int valid, float (&x)[kEight]) {
    float factor[kEight];
    weights.load(c, valid, factor);
    multiply_factors(a, inverse, only, c, valid, factor);
    if constexpr (kNormFirst) {
      float gate[kEight];
      gates_of(load_gates<RowOf<kVectors>::kWhole>(a, index, c, valid), a.z.kind, z_code, gate);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        factor[j] *= gate[j];
      }
    }
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      x[j] *= factor[j];
    }
  });
  write_row(a.result, code, row, index);
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_quant(const Tensor& x, const OptionalTensor& residual,
                                                  const Tensor& weight, double eps,
                                                  const OptionalTensor& code, bool per_token,
                                                  ScalarType residual_dtype, ScalarType dtype) {
  const char* op = "rms_norm_quant";
  const int64_t channels = checked_norm(op, x, residual, weight, code, per_token, residual_dtype, dtype);
  const int index = x.get_device_index();
  const size_t bytes = row_bytes(channels);
  check_row_fits({op, "x"}, bytes + 2 * kRowScratch, index);
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
  const bool whole =
      has_whole_vectors(a.result) && a.x.aligned && a.residual.aligned && is_aligned(weight, 16);
  dispatch_vectors(whole, channels, rows.count, index, [&](auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    const size_t needed = kVectors == 0 ? bytes : 0;
    allow_shared(rms_norm<kVectors>, needed + kRowScratch);
    launch_early(rms_norm<kVectors>, grid_of(op, rows.count), threads_of_row<kVectors>(channels), needed,
                 index, device.stream, a);
  });
  return {y, total, row_scale};
}

std::tuple<Tensor, Tensor> gated_rms_norm_quant(const Tensor& x, const Tensor& z,
                                                const OptionalTensor& z_code, const Tensor& weight,
                                                double eps, int64_t group_size, bool norm_before_gate,
                                                const OptionalTensor& code, bool per_token,
                                                ScalarType dtype) {
  const char* op = "gated_rms_norm_quant";
  const int64_t channels = checked_gated_norm(op, x, z, z_code, weight, group_size, code, per_token, dtype);
  const int index = x.get_device_index();
  const int64_t groups = channels / group_size;
  const int grain = group_size % kEight == 0 ? kEight : 1;
  const size_t scratch = groups == 1 ? 0 : (groups + channels / grain) * sizeof(float);
  check_row_fits({op, "x"}, row_bytes(channels) + scratch + 2 * kRowScratch, index);
  Tensor y = new_result(x, code, per_token, dtype);
  Tensor row_scale = new_row_scale(x, per_token);
  if (x.numel() == 0) {
    return {y, row_scale};
  }
  const OnDevice device(x);
  const Rows rows = rows_of(x), gates = rows_of(z);
  const GatedNorm a{row_input(rows),
                    row_input(gates, z_code),
                    floats(weight),
                    static_cast<float>(eps),
                    static_cast<int>(group_size),
                    grain,
                    row_result(code, per_token, y, row_scale)};
  const bool whole = has_whole_vectors(a.result) && a.x.aligned && a.z.aligned && is_aligned(weight, 16);
  dispatch_vectors(whole, channels, rows.count, index, [&](auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    const auto kernel = norm_before_gate ? gated_rms_norm<kVectors, true> : gated_rms_norm<kVectors, false>;
    const size_t needed = scratch + (kVectors == 0 ? row_bytes(channels) : 0);
    allow_shared(kernel, needed + kRowScratch);
    launch_early(kernel, grid_of(op, rows.count), threads_of_row<kVectors>(channels), needed, index,
                 device.stream, a);
  });
  return {y, row_scale};
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("rms_norm_quant", TORCH_BOX(&dualscale::rms_norm_quant));
  m.impl("gated_rms_norm_quant", TORCH_BOX(&dualscale::gated_rms_norm_quant));
}

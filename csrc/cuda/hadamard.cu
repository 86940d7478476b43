// Hadamard transform of every row, base (x) H_{2^k}, + encode. One block a row.
//
// The fast transform over the 2^k neighbours takes three levels a pass in registers; the first pass happens
// on the way into shared memory. The base then mixes the m segments column by column, with all m values in
// registers.
#include "rows.cuh"

namespace dualscale {
namespace {

struct Hadamard {
  Input x;
  const float* base;
  int log2_segment;
  float scale;
  RowResult result;
};

// `levels` of the transform over R registers, neighbours first.
template <int R>
__device__ __forceinline__ void butterflies(float (&v)[R], int levels) {
#pragma unroll
  for (int width = 1, level = 0; width < R; width *= 2, ++level) {
    if (level < levels) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        if ((i & width) == 0) {
          const float a = v[i], b = v[i + width];
          v[i] = a + b;
          v[i + width] = a - b;
        }
      }
    }
  }
}

// log2(R) levels from the one whose partners are 2^log2_stride apart.
template <int R>
__device__ __forceinline__ void strided_pass(float* row, int channels, int log2_stride) {
  for (int q = threadIdx.x; q < channels / R; q += blockDim.x) {
    const int low = q & ((1 << log2_stride) - 1);
    const int first = ((q >> log2_stride) * R << log2_stride) + low;
    float v[R];
#pragma unroll
    for (int i = 0; i < R; ++i) {
      v[i] = row[slot(first + (i << log2_stride))];
    }
    butterflies(v, 3);
#pragma unroll
    for (int i = 0; i < R; ++i) {
      row[slot(first + (i << log2_stride))] = v[i];
    }
  }
  __syncthreads();
}

// Loads the row and does the first three levels (fewer if the segments are shorter).
__device__ __forceinline__ void load_row(const Hadamard& a, float* row, int64_t index) {
  const int channels = a.result.channels;
  for (int c = 8 * threadIdx.x; c < channels; c += 8 * blockDim.x) {
    float v[8];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int valid = min(channels - c - 4 * half, 4);
      float x[4] = {};
      if (valid > 0) {
        const int64_t offset = index * a.x.row_stride + c + 4 * half;
        biased_or_value(load_four<false>(a.x, offset, valid), a.x.kind, x);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[4 * half + j] = x[j];
      }
    }
    butterflies(v, a.log2_segment);
    auto* to = reinterpret_cast<float4*>(&row[slot(c)]);
    to[0] = make_float4(v[0], v[1], v[2], v[3]);
    to[1] = make_float4(v[4], v[5], v[6], v[7]);
  }
  __syncthreads();
}

template <int M>
__device__ __forceinline__ void mix_segments(float* row, const float (&base)[M * M], int log2_segment,
                                             float scale) {
  for (int column = threadIdx.x; column < 1 << log2_segment; column += blockDim.x) {
    float x[M];
#pragma unroll
    for (int j = 0; j < M; ++j) {
      x[j] = scale * row[slot((j << log2_segment) + column)];
    }
#pragma unroll 2
    for (int i = 0; i < M; ++i) {
      float y = 0.0f;
#pragma unroll
      for (int j = 0; j < M; ++j) {
        y = fmaf(base[i * M + j], x[j], y);
      }
      row[slot((i << log2_segment) + column)] = y;
    }
  }
  __syncthreads();
}

template <int M>
__global__ void __launch_bounds__(kMaxRowThreads) transform(const __grid_constant__ Hadamard a) {
  extern __shared__ __align__(16) float row[];
  __shared__ __align__(16) float base[M * M];
  for (int i = threadIdx.x; i < M * M; i += blockDim.x) {
    base[i] = a.base[i];
  }
  const int64_t index = blockIdx.x;
  load_row(a, row, index);
  int done = 3;
  for (; done + 3 <= a.log2_segment; done += 3) {
    strided_pass<8>(row, a.result.channels, done);
  }
  if (a.log2_segment - done == 2) {
    strided_pass<4>(row, a.result.channels, done);
  } else if (a.log2_segment - done == 1) {
    strided_pass<2>(row, a.result.channels, done);
  }
  mix_segments<M>(row, base, a.log2_segment, a.scale);
  write_row(a.result, row, index);
}

template <class F>
void dispatch_base(const Tensor& base, F&& f) {
  switch (base.size(0)) {
    case 1:
      return f(transform<1>);
    case 12:
      return f(transform<12>);
    case 20:
      return f(transform<20>);
    case 28:
      return f(transform<28>);
    case 40:
      return f(transform<40>);
    default:
      refuse({"hadamard_quant", "base"}, "has shape " + shape_of(base), "(m, m) with m 1, 12, 20, 28 or 40");
  }
}

std::tuple<Tensor, Tensor> hadamard_quant(const Tensor& x, const Tensor& base, const OptionalTensor& code,
                                          bool per_token, ScalarType dtype) {
  const char* op = "hadamard_quant";
  const int64_t channels = checked_hadamard(op, x, base, code, per_token, dtype);
  const int64_t m = base.size(0);
  const int64_t segment = channels / m;
  const size_t bytes = row_bytes(channels);
  check_row_fits({op, "x"}, bytes + (m * m + 64) * sizeof(float), x.get_device_index());
  Tensor y = new_result(x, code, per_token, dtype);
  Tensor row_scale = new_row_scale(x, per_token);
  const OnDevice device(x);
  const Rows rows = rows_of(x);
  Hadamard a{
      {rows.tensor.data_ptr(), {}, 0, rows.stride, kind_of(x), is_aligned(rows.tensor, 4 * x.element_size())},
      floats(base),
      0,
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(channels))),
      row_result(code, per_token, y, row_scale)};
  while (int64_t{1} << a.log2_segment < segment) {
    ++a.log2_segment;
  }
  dispatch_base(base, [&](auto kernel) {
    if (x.numel() > 0) {
      allow_shared(kernel, bytes + m * m * sizeof(float));
      kernel<<<grid_of(op, rows.count), row_threads(channels), bytes, device.stream>>>(a);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {y, row_scale};
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("hadamard_quant", TORCH_BOX(&dualscale::hadamard_quant));
}

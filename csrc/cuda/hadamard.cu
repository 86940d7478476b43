// Hadamard transform of every row, base (x) H_{2^k}, + encode. One block a row.
//
// Half types in segments of 64 or more: the tensor cores mix the m segments first, exactly but for the order
// of sums, as the base holds +1 and -1. A warp takes 64 columns of all segments; the sums come out as sixteen
// neighbouring columns a thread and 64 a group of four, so that six levels of the fast transform over the 2^k
// columns need registers and shuffles alone. Otherwise three levels are done on the way into shared memory,
// and the base mixes at the end. The levels that remain take three a pass through shared memory.
#include "hadamard.cuh"

namespace dualscale {
namespace {

// Threads of a block, and blocks for which there shall be registers: five of the 128 threads that tiles
// mostly take, four where the base is larger.
template <int M, bool kTiles>
constexpr int kThreads = !kTiles  ? 512
                         : M < 28 ? 320
                                  : 256;
template <int M, bool kTiles>
constexpr int blocks_of() {
  return M == 40 ? 1 : kTiles ? resident_blocks(2) : 2;
}

// log2(R) levels from the one whose partners are 2^log2_stride >= 8 apart, four columns a thread at a time.
template <int R>
__device__ __forceinline__ void strided_pass(float* row, int channels, int log2_stride) {
  const int log2_low = log2_stride - 2;
  for (int q = threadIdx.x; q < channels / (4 * R); q += blockDim.x) {
    const int low = q & ((1 << log2_low) - 1);
    const int first = ((q >> log2_low) * R << log2_stride) + 4 * low;
    float v[4][R];
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const float4 four = *reinterpret_cast<const float4*>(&row[slot(first + (i << log2_stride))]);
      v[0][i] = four.x, v[1][i] = four.y, v[2][i] = four.z, v[3][i] = four.w;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      butterflies(v[j], 3);
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
      *reinterpret_cast<float4*>(&row[slot(first + (i << log2_stride))]) =
          make_float4(v[0][i], v[1][i], v[2][i], v[3][i]);
    }
  }
  __syncthreads();
}

// Loads the row, times `factor`, and does the first three levels (fewer if the segments are shorter).
__device__ __forceinline__ void load_row(const Hadamard& a, SharedRow<false>& row, int64_t index,
                                         float factor) {
  row.fill([&](int c, int valid) { return load_eight<false>(a.x, index * a.x.row_stride + c, valid); },
           [&](const Eight& in, int, int valid, float (&x)[kEight]) {
             biased_or_value(in, a.x.kind, x);
#pragma unroll
             for (int j = 0; j < kEight; ++j) {
               x[j] = j < valid ? factor * x[j] : 0.0f;
             }
             butterflies(x, a.log2_segment);
           });
  __syncthreads();
}

template <int M>
__device__ __forceinline__ void mix_segments(float* row, const float (&base)[M * M], int log2_segment) {
  for (int column = threadIdx.x; column < 1 << log2_segment; column += blockDim.x) {
    float x[M];
#pragma unroll
    for (int j = 0; j < M; ++j) {
      x[j] = row[slot((j << log2_segment) + column)];
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

// Left to itself, the compiler stores these one by one.
__device__ __forceinline__ void store_shared(float* to, float x, float y, float z, float w) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(shared_address(to)), "f"(x), "f"(y), "f"(z), "f"(w)
               : "memory");
}

// 64 columns of all segments, mixed by the base and transformed. Fragments are those of mma.cuh; column g of
// the q-th operand is column 8 g + q of the tile, so that a thread loads eight neighbours at once, and gets
// sixteen.
template <int M, class T>
struct SegmentTile {
  static constexpr int kSteps = (M + 15) / 16;  // sixteen segments each, of the inputs and of the results
  const Hadamard& a;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  uint32_t operand[kSteps][2][kEight];

  // The inputs; segments that do not exist are zero.
  __device__ __forceinline__ void load(const T* x) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Raw<T, kEight> pair[2] = {};
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int segment = 16 * step + 8 * half + 2 * t + e;
          if (16 * step + 8 * half < M && segment < M) {
            pair[e] = load_raw<T, kEight>(x + (static_cast<int64_t>(segment) << a.log2_segment) + 8 * g, true,
                                          kEight);
          }
        }
#pragma unroll
        for (int q = 0; q < kEight; ++q) {
          operand[step][half][q] =
              __byte_perm(pair[0].word[q / 2], pair[1].word[q / 2], q % 2 == 0 ? 0x5410 : 0x7632);
        }
      }
    }
  }

  __device__ __forceinline__ uint32_t base_pair(int to, int from) const {
    if (to >= M || from >= M) {
      return 0;
    }
    const float2 pair = *reinterpret_cast<const float2*>(a.base + to * M + from);
    return pack_pair<T>(pair.x, pair.y);
  }

  // Segments `first` to `first` + 15 of the results.
  __device__ __forceinline__ void multiply(int first, float (&sum)[kEight][4]) const {
#pragma unroll
    for (int q = 0; q < kEight; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[q][i] = 0.0f;
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int to = first + g, from = 16 * step + 2 * t;
      const uint32_t base[4] = {base_pair(to, from), base_pair(to + 8, from), base_pair(to, from + 8),
                                base_pair(to + 8, from + 8)};
#pragma unroll
      for (int q = 0; q < kEight; ++q) {
        multiply_add<T>(sum[q], base, operand[step][0][q], operand[step][1][q]);
      }
    }
  }

  // Every thread of the warp calls it; `first_column` is the tile's.
  __device__ __forceinline__ void finish(float* row, int first_column) const {
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
      float sum[kEight][4];
      multiply(16 * step, sum);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (16 * step + 8 * half >= M) {
          continue;
        }
        const int segment = 16 * step + 8 * half + g;
        float v[16];
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          v[i] = sum[i % kEight][2 * half + i / kEight];
        }
        transform_columns(v);
        if (segment < M) {
          const int to = (segment << a.log2_segment) + first_column + 16 * t;
#pragma unroll
          for (int i = 0; i < 16; i += 4) {
            store_shared(&row[slot(to + i)], a.scale * v[i], a.scale * v[i + 1], a.scale * v[i + 2],
                         a.scale * v[i + 3]);
          }
        }
      }
    }
  }
};

template <int M, class T>
__device__ __forceinline__ void mix_tiles(const Hadamard& a, float* row, int64_t index) {
  const T* x = static_cast<const T*>(a.x.data) + index * a.x.row_stride;
  for (int tile = threadIdx.x / 32; tile < 1 << (a.log2_segment - kLog2Columns); tile += blockDim.x / 32) {
    SegmentTile<M, T> segments{a};
    segments.load(x + tile * kColumns);
    segments.finish(row, tile * kColumns);
  }
  __syncthreads();
}

template <int M>
__device__ __forceinline__ void mix_tiles_of(const Hadamard& a, float* row, int64_t index) {
  if (a.x.kind == Kind::kHalf) {
    mix_tiles<M, __half>(a, row, index);
  } else {
    mix_tiles<M, __nv_bfloat16>(a, row, index);
  }
}

template <int M, bool kTiles>
__global__ void __launch_bounds__(kThreads<M, kTiles>, blocks_of<M, kTiles>())
    transform(const __grid_constant__ Hadamard a) {
  extern __shared__ __align__(16) float memory[];
  __shared__ __align__(16) float base[kTiles ? 1 : M * M];
  const int64_t index = blockIdx.x;
  const int channels = a.result.channels;
  prefetch_floats(a.base, M * M);
  await_earlier();
  admit_later();
  SharedRow<kTiles> row(channels, memory);
  int done = kLog2Columns;
  if constexpr (kTiles) {
    mix_tiles_of<M>(a, memory, index);
  } else {
    done = 3;
    for (int i = threadIdx.x; i < M * M; i += blockDim.x) {
      base[i] = a.base[i];
    }
    load_row(a, row, index, M == 1 ? a.scale * a.base[0] : a.scale);
  }
  const RowCode code(a.result.code);
  for (; done + 3 <= a.log2_segment; done += 3) {
    strided_pass<8>(memory, channels, done);
  }
  if (a.log2_segment - done == 2) {
    strided_pass<4>(memory, channels, done);
  } else if (a.log2_segment - done == 1) {
    strided_pass<2>(memory, channels, done);
  }
  if constexpr (!kTiles && M > 1) {
    mix_segments<M>(memory, base, a.log2_segment);
  }
  write_row(a.result, code, row, index);
}

// Calls f with the kernel for the order of the base and the most threads that it takes.
template <class F>
void dispatch_base(const Tensor& base, bool tiles, F&& f) {
  const auto either = [&](auto order) {
    constexpr int M = decltype(order)::value;
    tiles ? f(transform<M, true>, kThreads<M, true>) : f(transform<M, false>, kThreads<M, false>);
  };
  switch (base.size(0)) {
    case 1:
      return f(transform<1, false>, kThreads<1, false>);
    case 12:
      return either(std::integral_constant<int, 12>{});
    case 20:
      return either(std::integral_constant<int, 20>{});
    case 28:
      return either(std::integral_constant<int, 28>{});
    case 40:
      return f(transform<40, false>, kThreads<40, false>);
    default:
      refuse({"hadamard_quant", "base"}, "has shape " + shape_of(base), "(m, m) with m 1, 12, 20, 28 or 40");
  }
}

// Many rows: a warp for every tile, or two vectors a thread. A few rows are sooner done with more threads.
int threads_for(const Hadamard& a, bool tiles, int64_t rows, int device) {
  if (rows <= multiprocessors(device)) {
    return row_threads(a.result.channels, 1);
  }
  return tiles ? std::clamp(32 << (a.log2_segment - kLog2Columns), 64, 256)
               : row_threads(a.result.channels, 2);
}

std::tuple<Tensor, Tensor> hadamard_quant(const Tensor& x, const Tensor& base, const OptionalTensor& code,
                                          bool per_token, ScalarType dtype) {
  const char* op = "hadamard_quant";
  const int64_t channels = checked_hadamard(op, x, base, code, per_token, dtype);
  const int64_t m = base.size(0);
  const int64_t segment = channels / m;
  const int index = x.get_device_index();
  const size_t bytes = row_bytes(channels);
  const size_t declared = m * m * sizeof(float) + kRowScratch;
  check_row_fits({op, "x"}, bytes + 2 * declared, index);
  Tensor y = new_result(x, code, per_token, dtype);
  Tensor row_scale = new_row_scale(x, per_token);
  const OnDevice device(x);
  const Rows rows = rows_of(x);
  Hadamard a{row_input(rows), floats(base), 0,
             static_cast<float>(1.0 / std::sqrt(static_cast<double>(channels))),
             row_result(code, per_token, y, row_scale)};
  while (int64_t{1} << a.log2_segment < segment) {
    ++a.log2_segment;
  }
  const bool tiles = m > 1 && m < 40 && segment >= kColumns && x.scalar_type() != ScalarType::Float &&
                     a.x.aligned && has_whole_vectors(a.result) && is_aligned(base, 8);
  if (x.numel() > 0 && transforms_rows(a, m, rows.count, index)) {
    launch_rows(a, m, rows.count, index, device.stream);
    return {y, row_scale};
  }
  dispatch_base(base, tiles, [&](auto kernel, int most_threads) {
    if (x.numel() > 0) {
      const int threads = std::min(threads_for(a, tiles, rows.count, index), most_threads);
      allow_shared(kernel, bytes + declared);
      launch_early(kernel, grid_of(op, rows.count), threads, bytes, index, device.stream, a);
    }
  });
  return {y, row_scale};
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("hadamard_quant", TORCH_BOX(&dualscale::hadamard_quant));
}

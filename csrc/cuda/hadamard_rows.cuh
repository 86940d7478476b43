// Hadamard transform of many rows of a half type, a warp a row.
//
// The row is n segments of 64 columns: base (x) H_{2^k} = (base (x) H_{2^(k-6)}) (x) H_64. The tensor cores
// mix the segments by the first factor, a matrix of n x n, exactly but for the order of sums, as its entries
// are +1 and -1; six levels over columns follow in registers and between four threads (transform_columns).
// Sixteen neighbouring columns of a segment end in one thread, so that codes leave from there, and nothing
// passes through shared memory but the matrix, which the blocks of a multiprocessor make once and read as
// operands.
//
// With a scale a row everything is done twice, first for the largest value alone: that costs fewer
// instructions than to keep a row.
#pragma once

#include "hadamard.cuh"

namespace dualscale {

constexpr int kRowWarps = 4;      // of a block, each with rows of its own
constexpr int kMostRowSteps = 6;  // of sixteen segments: the inputs of a row lie in registers

// Blocks of a multiprocessor for which there shall be registers.
template <int kSteps>
constexpr int kRowBlocks = kSteps > 5   ? 2
                           : kSteps > 3 ? 3
                                        : 4;

struct RowTransform {
  Hadamard a;
  int64_t rows;
  int order;       // of the base
  int log2_parts;  // segments of 64 columns to one entry of the base
  int segments;    // order << log2_parts
};

// Sixteen values of one segment of a row.
struct Sixteen {
  int segment;
  float v[16];
};

template <class T, int kSteps>
struct RowOfWarp {
  const RowTransform& r;
  const uint4 (&matrix)[kSteps][kSteps][32];  // operands of a step of results and one of inputs, by lane
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t operand[kSteps][2][kEight];

  // The inputs, of which column g of the q-th operand is column 8 g + q: a thread loads eight neighbours at
  // once. Segments that do not exist are zero.
  __device__ __forceinline__ void load(const T* x) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Raw<T, kEight> pair[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int segment = 16 * step + 8 * half + 2 * t + e;
          if (step + 1 < kSteps || segment < r.segments) {
            pair[e] = load_raw<T, kEight>(x + segment * kColumns + 8 * g, true, kEight);
          } else {
            pair[e] = {};
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

  // Calls use(Sixteen), without the scale, for all segments. Every thread of the warp calls it.
  template <class Use>
  __device__ __forceinline__ void transform(Use&& use) const {
#pragma unroll 1
    for (int to = 0; to < kSteps; ++to) {
      float sum[kEight][4] = {};
#pragma unroll
      for (int from = 0; from < kSteps; ++from) {
        const uint4 four = matrix[to][from][lane];
        const uint32_t base[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int q = 0; q < kEight; ++q) {
          multiply_add<T>(sum[q], base, operand[from][0][q], operand[from][1][q]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Sixteen own{16 * to + 8 * half + g, {}};
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          own.v[i] = sum[i % kEight][2 * half + i / kEight];
        }
        transform_columns(own.v);
        use(own);
      }
    }
  }
};

// An entry of base (x) H_{2^k'}, and 0 beyond it.
__device__ __forceinline__ float entry_of(const RowTransform& r, int to, int from) {
  if (to >= r.segments || from >= r.segments) {
    return 0.0f;
  }
  const float entry = r.a.base[(to >> r.log2_parts) * r.order + (from >> r.log2_parts)];
  const int both = to & from & ((1 << r.log2_parts) - 1);
  return (__popc(both) & 1) != 0 ? -entry : entry;
}

template <class T, int kSteps>
__device__ __forceinline__ void make_matrix(const RowTransform& r, uint4 (&matrix)[kSteps][kSteps][32]) {
  for (int i = threadIdx.x; i < kSteps * kSteps * 32; i += blockDim.x) {
    const int lane = i % 32, to = i / 32 / kSteps * 16 + lane / 4, from = i / 32 % kSteps * 16 + lane % 4 * 2;
    const auto pair = [&](int row, int column) {
      return pack_pair<T>(entry_of(r, row, column), entry_of(r, row, column + 1));
    };
    matrix[i / 32 / kSteps][i / 32 % kSteps][lane] =
        make_uint4(pair(to, from), pair(to + 8, from), pair(to, from + 8), pair(to + 8, from + 8));
  }
  __syncthreads();
}

// Codes before_packing, or values.
__device__ __forceinline__ void store_sixteen(const RowResult& y, int64_t at, const float (&v)[16],
                                              bool codes) {
  if (codes) {
    store_raw(static_cast<int8_t*>(y.y) + at, pack<int8_t, 16>(v), true, 16);
  } else {
#pragma unroll
    for (int i = 0; i < 16; i += kEight) {
      float eight[kEight];
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        eight[j] = v[i + j];
      }
      store_eight<true>(y.y, y.kind, at + i, eight, true, kEight);
    }
  }
}

template <class T, int kSteps>
__global__ void __launch_bounds__(32 * kRowWarps, resident_blocks(kRowBlocks<kSteps>))
    transform_rows(const __grid_constant__ RowTransform r) {
  __shared__ uint4 matrix[kSteps][kSteps][32];
  const RowResult& result = r.a.result;
  prefetch_floats(r.a.base, r.order * r.order);
  await_earlier();
  admit_later();
  make_matrix<T, kSteps>(r, matrix);
  const Knee code = result.code.rows != nullptr ? Knee::load(result.code.rows) : Knee{};
  RowOfWarp<T, kSteps> row{r, matrix};
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRowWarps;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / 32; index < r.rows;
       index += step) {
    row.load(static_cast<const T*>(r.a.x.data) + index * r.a.x.row_stride);
    Divisor by{};
    if (result.per_token) {
      float largest = 0.0f;
      row.transform([&](const Sixteen& own) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          largest = fmaxf(largest, fabsf(own.v[i]));
        }
      });
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
      }
      // Rounding keeps order: this is the largest of the products.
      const float scale = __fdiv_rn(fmaxf(r.a.scale * largest, 1e-12f), 127.0f);
      if (row.lane == 0) {
        result.row_scale[index] = scale;
      }
      by = Divisor::of(scale);
    }
    row.transform([&](Sixteen& own) {
      if (own.segment >= r.segments) {
        return;
      }
      const int channel = own.segment * kColumns + 16 * row.t;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        own.v[i] *= r.a.scale;
      }
      if (result.per_token) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          own.v[i] = before_packing(by.divide(own.v[i]));
        }
      } else if (is_symmetric(code)) {
        encode_symmetric(code, own.v);
      } else if (result.code.rows != nullptr) {
        encode_knee(code, own.v);
      }
      store_sixteen(result, index * result.channels + channel, own.v,
                    result.per_token || result.code.rows != nullptr);
    });
  }
}

}  // namespace dualscale

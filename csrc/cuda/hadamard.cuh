// What both kernels of the Hadamard transform share: base (x) H_{2^k} of every row, then encode.
#pragma once

#include "mma.cuh"
#include "rows.cuh"

namespace dualscale {

constexpr int kColumns = 64;  // of a warp's tile
constexpr int kLog2Columns = 6;

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

// Six levels over 64 neighbouring columns, of which a thread of a group of four holds sixteen.
__device__ __forceinline__ void transform_columns(float (&v)[16]) {
  butterflies(v, 4);
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const float sign = (threadIdx.x & distance) != 0 ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      v[i] = fmaf(v[i], sign, __shfl_xor_sync(0xffffffffu, v[i], distance));
    }
  }
}

// Whether hadamard_rows.cu has a kernel for it: many rows of a half type in whole segments of 64 columns.
bool transforms_rows(const Hadamard& a, int64_t order, int64_t rows, int device);
void launch_rows(const Hadamard& a, int64_t order, int64_t rows, int device, cudaStream_t stream);

}  // namespace dualscale

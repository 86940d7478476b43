// The products of a layer's step with its large weights, on the tensor cores: a tile of sixteen rows of weights
// times the codes of up to four sequences. Warps share the depth, and their sums are added in shared memory.
//
// Of each row a lane takes the sixteen bytes at 64 s + 16 t of the steps s = warp, warp + 10, ..., with g and t
// as in mma.cuh, and the codes that belong to them; the order of the depth is free as long as both agree. Sums
// of eight-bit weights are exact; those of four-bit weights are exact within a step, which is of one group.
#pragma once

#include "layer_ring.cuh"
#include "small_codes.cuh"

namespace dualscale {

template <int kBits>
struct StepSums {
  using Sum = std::conditional_t<kBits == 8, int, float>;
  static constexpr int kLaneCodes = 16 * 8 / kBits, kCodes = 4 * kLaneCodes, kBytes = 64;  // of a step
  static constexpr int kWords = kLaneCodes / 4;
  static constexpr int kChains = kBits == 8 ? 2 : 1;  // sums that do not wait for each other
  static constexpr float kUnit = kBits == 8 ? 1.0f : 1.0f / 16;  // four bits lie in the high half of a byte

  Sum sum[kChains][4] = {};

  // Rows g and g + 8 of the tile, with the scales of their groups where weights have four bits.
  __device__ __forceinline__ void add(const uint4& low, const uint4& high, const uint32_t (&x)[kWords],
                                      const float2& scale) {
    const uint32_t w[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
    if constexpr (kBits == 8) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t operand[4] = {w[0][2 * i], w[1][2 * i], w[0][2 * i + 1], w[1][2 * i + 1]};
        multiply_add(sum[i], operand, x[2 * i], x[2 * i + 1]);
      }
    } else {
      int part[2][4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t operand[4] = {w[0][i] << 4 & 0xf0f0f0f0u, w[1][i] << 4 & 0xf0f0f0f0u,
                                     w[0][i] & 0xf0f0f0f0u, w[1][i] & 0xf0f0f0f0u};
        multiply_add(part[i % 2], operand, x[2 * i], x[2 * i + 1]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[0][j] =
            fmaf(j < 2 ? scale.x : scale.y, static_cast<float>(part[0][j] + part[1][j]), sum[0][j]);
      }
    }
  }

  // Sums of warps lie as (warp, row, sequence).
  static __device__ __forceinline__ Sum* at(uint8_t* partial, int warp, int row, int sequence) {
    return reinterpret_cast<Sum*>(partial) + (warp * kTileRows + row) * kLayerBatch + sequence;
  }
  static constexpr int kPartialBytes = kLayerWarps * kTileRows * kLayerBatch * 4;  // of a tile

  // Hands on the sums of the first four columns.
  __device__ __forceinline__ void store(uint8_t* partial) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if (2 * t < kLayerBatch) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Sum total = sum[0][j];
        if constexpr (kChains > 1) {
          total += sum[kChains - 1][j];
        }
        *at(partial, threadIdx.x / 32, g + 8 * (j / 2), 2 * t + j % 2) = total;
      }
    }
  }

  // One of them, of all warps.
  static __device__ __forceinline__ Sum total(uint8_t* partial, int row, int sequence) {
    Sum sum = 0;
#pragma unroll
    for (int warp = 0; warp < kLayerWarps; ++warp) {
      sum += *at(partial, warp, row, sequence);
    }
    if constexpr (kBits == 4) {
      sum *= kUnit;
    }
    return sum;
  }
};

#if defined(DUALSCALE_BULK)

// A lane's codes of step s of the rows at `rows`, one a sequence; lanes of columns beyond take the last.
template <int kBits>
__device__ __forceinline__ void load_codes(uint32_t rows, int stride, int batch, int s,
                                           uint32_t (&x)[StepSums<kBits>::kWords]) {
  using S = StepSums<kBits>;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t from = rows + min(g, batch - 1) * stride + s * S::kCodes + t * S::kLaneCodes;
#pragma unroll
  for (int i = 0; i < S::kWords / 4; ++i) {
    const uint4 four = load_shared(from + 16 * i);
    x[4 * i] = four.x;
    x[4 * i + 1] = four.y;
    x[4 * i + 2] = four.z;
    x[4 * i + 3] = four.w;
  }
}

// The scales of a step's group, of two rows; eight-bit weights have none.
template <int kBits>
__device__ __forceinline__ float2 group_scales(const __half* scales, const LayerGroups& groups, int low, int high,
                                               int step) {
  if constexpr (kBits == 8) {
    return {};
  }
  const int group = step * StepSums<kBits>::kCodes >> groups.shift;
  return make_float2(__half2float(scales[low * groups.count + group]),
                     __half2float(scales[high * groups.count + group]));
}

#endif

}  // namespace dualscale

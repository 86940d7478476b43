// The products of a layer's step with its large weights, on the tensor cores: a tile of eight rows of weights
// times the codes of up to four sequences. Warps share the depth, and their sums are added in shared memory.
//
// Of row g of a tile a lane takes the sixteen bytes at 64 s + 16 t of the steps s = warp, warp + 10, ...,
// with g and t as in mma.cuh. As they come they are its part of the larger operand, but then half of them are
// those of the operand's row g + 8. So the columns of the smaller operand are the sequences twice: codes that
// belong to the first half, then codes that belong to the other one. Of the sums, row g of a column of the
// first half and row g + 8 of the other half's are added; the rest is nothing. Sums of eight-bit weights are
// exact; those of four-bit weights are exact within a step, which is of one group.
#pragma once

#include "layer_ring.cuh"
#include "small_codes.cuh"

namespace dualscale {

template <int kBits>
struct LayerProduct {
  using Sum = std::conditional_t<kBits == 8, int, float>;
  static constexpr int kLaneCodes = 16 * 8 / kBits, kCodes = 4 * kLaneCodes, kBytes = 64;  // of a step
  static constexpr int kWords = kLaneCodes / 8;                  // of codes that a lane takes
  static constexpr float kUnit = kBits == 8 ? 1.0f : 1.0f / 16;  // four bits lie in the high half of a byte
  static constexpr int kPartialBytes = kLayerWarps * kTileRows * kLayerBatch * 4;  // of a tile

  // One step: the lane's weights, its codes, and the scale of its row's group where weights have four bits.
  static __device__ __forceinline__ void add(Sum (&sum)[4], const uint4& w, const uint32_t (&x)[kWords],
                                             float scale) {
    if constexpr (kBits == 8) {
      const uint32_t operand[4] = {w.x, w.y, w.z, w.w};
      multiply_add(sum, operand, x[0], x[1]);
    } else {
      constexpr uint32_t kHigh = 0xf0f0f0f0u;
      const uint32_t first[4] = {w.x << 4 & kHigh, w.y << 4 & kHigh, w.x & kHigh, w.y & kHigh};
      const uint32_t second[4] = {w.z << 4 & kHigh, w.w << 4 & kHigh, w.z & kHigh, w.w & kHigh};
      int part[4] = {};
      multiply_add(part, first, x[0], x[1]);
      multiply_add(part, second, x[2], x[3]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[j] = fmaf(scale, static_cast<float>(part[j]), sum[j]);
      }
    }
  }

  // Sums of warps lie as (warp, row of the tile, sequence).
  static __device__ __forceinline__ Sum* at(uint8_t* partial, int warp, int row, int sequence) {
    return reinterpret_cast<Sum*>(partial) + (warp * kTileRows + row) * kLayerBatch + sequence;
  }

  // Hands on this warp's.
  static __device__ __forceinline__ void store(const Sum (&sum)[4], uint8_t* partial) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    Sum pair[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      pair[j] = t < 2 ? sum[j] : sum[2 + j];
      pair[j] += __shfl_xor_sync(0xffffffffu, pair[j], 2);
    }
    if (t < 2) {
      uint32_t bits[2];
      memcpy(bits, pair, sizeof(pair));
      *reinterpret_cast<uint2*>(at(partial, threadIdx.x / 32, g, 2 * t)) = make_uint2(bits[0], bits[1]);
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

#if defined(DUALSCALE_BULK)
  // Where a lane's codes of this warp's first step are, of the row of its sequence; of those beyond the batch
  // the last one's. Its next step's are kLayerWarps * kCodes further on.
  static __device__ __forceinline__ uint32_t codes_at(uint32_t rows, int stride, int batch) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, half = g / kLayerBatch;
    return rows + min(g % kLayerBatch, batch - 1) * stride + threadIdx.x / 32 * kCodes + t * kLaneCodes +
           (kBits == 8 ? 4 : 8) * half;
  }

  // They, or zeros of a step that does not exist: then it does not matter which weights are multiplied.
  static __device__ __forceinline__ void load_codes(uint32_t from, bool exists, uint32_t (&x)[kWords]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      // Of eight bits words 0 and 2, or 1 and 3; of four those of the low and high halves of the words of
      // weights 0, or 1, and of 2, or 3.
      x[i] = load_word_if(exists, from + (kBits == 8 ? 8 * i : 16 * (i / 2) + 4 * (i % 2)));
    }
  }

  // The scale of a step's group; eight-bit weights have none.
  static __device__ __forceinline__ float scale_of(const __half* scales, const LayerGroups& groups, int row,
                                                   int step, int steps) {
    if constexpr (kBits == 8) {
      return 0.0f;
    }
    return __half2float(scales[row * groups.count + (min(step, steps - 1) * kCodes >> groups.shift)]);
  }
#endif
};

}  // namespace dualscale

// The Hadamard transform of y in a layer's step: every block transforms all of every sequence's y, as the
// time to hand parts on would be longer.
//
// As in hadamard.cu the tensor cores mix the segments, and the fast transform runs over their 128 or 256
// columns; where the base is of order one, segments are sixteen and mixed by the first four levels of the
// transform. A warp takes 32 columns of all segments: five levels in registers and by shuffles, then one pass
// through shared memory for the two or three that are left. Products, sums and the place of the factor are
// those of hadamard.cu in the same order, but where the base is of order one.
#pragma once

#include "layer_exchange.cuh"

namespace dualscale {

constexpr int kSegmentPad = 4;  // words between segments in shared memory, so that these meet different banks
constexpr int kMadeSegments = 16;  // where the base is of order one
constexpr int kMostSegments = 32;
constexpr int kBaseStride =
    kMostSegments + 8;     // halves of a row of the base, so that rows meet different banks
constexpr int kItem = 16;  // channels of a thread in the last pass

#if defined(DUALSCALE_BULK)

class LayerRotation {
 public:
  // All of the block call everything here.
  __device__ __forceinline__ LayerRotation(const LayerStep& step, const LayerExchange& exchange,
                                           uint8_t* memory)
      : a(step),
        exchange_(exchange),
        scratch_(reinterpret_cast<float*>(memory + step.at.scratch)),
        base_(shared_address(memory + step.at.base) +
              (threadIdx.x % 16 * kBaseStride + threadIdx.x % 32 / 16 * 8) *
                  static_cast<int>(sizeof(__half))),
        columns_(1 << step.log2_segment),
        works_(static_cast<int>(threadIdx.x) / 32 < columns_ / kSlowestColumns),
        first_column_(threadIdx.x / 32 * kSlowestColumns) {}

  // This thread's entries of the base, zeros around it.
  struct Base {
    static constexpr int kEntries = (kMostSegments * kMostSegments + kLayerThreads - 1) / kLayerThreads;
    float entry[kEntries];

    __device__ __forceinline__ void load(const LayerStep& a) {
#pragma unroll
      for (int i = 0; i < kEntries; ++i) {
        const int n = threadIdx.x + i * kLayerThreads, to = n / kMostSegments, from = n % kMostSegments;
        entry[i] = 0.0f;
        if (max(to, from) < a.segments) {
          entry[i] = a.base[a.base_order == 1 ? 0 : to * a.segments + from];
        }
      }
    }

    // Leaves them in shared memory.
    __device__ __forceinline__ void store(const LayerStep& a, uint8_t* memory) const {
      auto* const base = reinterpret_cast<__half*>(memory + a.at.base);
#pragma unroll
      for (int i = 0; i < kEntries; ++i) {
        const int n = threadIdx.x + i * kLayerThreads, to = n / kMostSegments, from = n % kMostSegments;
        if (to < kMostSegments) {
          const bool turned = a.base_order == 1 && __popc(to & from) % 2 != 0;
          base[to * kBaseStride + from] = __float2half_rn(turned ? -entry[i] : entry[i]);
        }
      }
    }
  };

  // Starts to read a sequence's values.
  __device__ __forceinline__ void peek(int batch) {
    if (works_) {
      for_each_piece([&](uint2& piece, int segment) {
        piece = exchange_.peek_values(batch, (segment << a.log2_segment) + first_column_ + 4 * g_);
      });
    }
  }

  // Waits for them, and mixes; then, of the next sequence, starts to read. Whole warps call it.
  __device__ __forceinline__ void mix(int batch) {
    if (works_) {
      Patience patience;
      while (__any_sync(0xffffffffu, misses())) {
        peek(batch);
        patience.wait();
      }
      uint32_t operand[2][2][4];
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint2 first = piece_[step][half][0], second = piece_[step][half][1];
          operand[step][half][0] = ~low_halves(first.x, second.x);
          operand[step][half][1] = ~high_halves(first.x, second.x);
          operand[step][half][2] = ~low_halves(first.y, second.y);
          operand[step][half][3] = ~high_halves(first.y, second.y);
        }
      }
#pragma unroll 1
      for (int tile = 0; tile < (a.segments + 15) / 16; ++tile) {
        finish_tile(tile, operand);
      }
      if (batch + 1 < a.batch) {
        peek(batch + 1);
      }
    }
  }

  // The levels that are left, of sixteen channels a thread, and their codes by a row of a knee; after a
  // barrier behind mix().
  __device__ __forceinline__ void finish(const float* row, uint32_t (&codes)[kItem / 4]) const {
    if (static_cast<int>(threadIdx.x) < a.channels / kItem) {
      float v[kItem];
      columns_ == 8 * kSlowestColumns ? last_levels<8>(v) : last_levels<4>(v);
      const Knee code = Knee::load(row);
#pragma unroll
      for (int word = 0; word < kItem / 4; ++word) {
        uint32_t bits[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float x = v[4 * word + k];
          bits[k] = __float_as_uint(code.encode_straight(x == x ? x : 0.0f) + kIntegerBias);
        }
        codes[word] = pack_bytes(bits[0], bits[1], bits[2], bits[3]);
      }
    }
  }

  // Stores them as a row of codes.
  __device__ __forceinline__ void store(const uint32_t (&codes)[kItem / 4], int8_t* row) const {
    if (static_cast<int>(threadIdx.x) < a.channels / kItem) {
      columns_ == 8 * kSlowestColumns ? store_codes<8>(codes, row) : store_codes<4>(codes, row);
    }
  }

 private:
  // Sixteen rows of the base, and sixteen columns, as an operand.
  __device__ __forceinline__ void load_base(int tile, int step, uint32_t (&operand)[4]) const {
    load_matrices(base_ + (16 * tile * kBaseStride + 16 * step) * static_cast<int>(sizeof(__half)), operand);
  }

  // The segments of this lane's operands, those that exist; the order of bases is a multiple of four.
  template <class F>
  __device__ __forceinline__ void for_each_piece(F&& f) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int segment = 16 * step + 8 * half + 2 * t_ + e;
          if (segment < a.segments) {
            f(piece_[step][half][e], segment);
          } else {
            piece_[step][half][e] = make_uint2(~0u, ~0u);  // zeros
          }
        }
      }
    }
  }

  __device__ __forceinline__ bool misses() {
    bool any = false;
    for_each_piece([&](const uint2& piece, int) { any = any || piece.x == 0 || piece.y == 0; });
    return any;
  }

  // Sixteen segments of the result, or as many as there are.
  __device__ __forceinline__ void finish_tile(int tile, const uint32_t (&operand)[2][2][4]) const {
    float sum[4][4] = {};
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t base[4];
      load_base(tile, step, base);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        multiply_add<__half>(sum[q], base, operand[step][0][q], operand[step][1][q]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int segment = 16 * tile + 8 * half + g_;
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        v[i] = sum[i % 4][2 * half + i / 4];
      }
      butterflies(v);
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) {
        const float sign = (t_ & distance) != 0 ? -1.0f : 1.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          v[i] = fmaf(v[i], sign, __shfl_xor_sync(0xffffffffu, v[i], distance));
        }
      }
      if (segment < a.segments) {
        auto* const to = reinterpret_cast<float4*>(at(segment, first_column_ + 8 * t_));
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
      }
    }
  }

  // All levels over neighbours in registers; after the first, times `factor`.
  template <int R>
  static __device__ __forceinline__ void butterflies(float (&v)[R], float factor = 1.0f) {
#pragma unroll
    for (int width = 1; width < R; width *= 2) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        if ((i & width) == 0) {
          const float p = v[i], q = v[i + width];
          v[i] = p + q;
          v[i + width] = p - q;
        }
      }
      if (width == 1) {
#pragma unroll
        for (int i = 0; i < R; ++i) {
          v[i] *= factor;
        }
      }
    }
  }

  // Of R columns 32 apart a thread has kItem / R neighbours.
  template <int R>
  __device__ __forceinline__ int segment_of() const {
    return threadIdx.x / (2 * R);
  }
  template <int R>
  __device__ __forceinline__ int column_of() const {
    return threadIdx.x % (2 * R) * (kItem / R);
  }

  template <int R>
  __device__ __forceinline__ void last_levels(float (&all)[kItem]) const {
    constexpr int kWidth = kItem / R;
    float v[kWidth][R];
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const float* const from = at(segment_of<R>(), column_of<R>() + kSlowestColumns * i);
      if constexpr (kWidth == 2) {
        const float2 two = *reinterpret_cast<const float2*>(from);
        v[0][i] = two.x, v[1][i] = two.y;
      } else {
        const float4 four = *reinterpret_cast<const float4*>(from);
        v[0][i] = four.x, v[1][i] = four.y, v[2][i] = four.z, v[3][i] = four.w;
      }
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      butterflies(v[j], a.factor);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        all[i * kWidth + j] = v[j][i];
      }
    }
  }

  template <int R>
  __device__ __forceinline__ void store_codes(const uint32_t (&codes)[kItem / 4], int8_t* row) const {
    int8_t* const to = row + (segment_of<R>() << a.log2_segment) + column_of<R>();
#pragma unroll
    for (int word = 0; word < kItem / 4; ++word) {
      if constexpr (kItem / R == 4) {
        *reinterpret_cast<uint32_t*>(to + kSlowestColumns * word) = codes[word];
      } else {
        *reinterpret_cast<uint16_t*>(to + kSlowestColumns * 2 * word) = static_cast<uint16_t>(codes[word]);
        *reinterpret_cast<uint16_t*>(to + kSlowestColumns * (2 * word + 1)) =
            static_cast<uint16_t>(codes[word] >> 16);
      }
    }
  }

  __device__ __forceinline__ float* at(int segment, int column) const {
    return scratch_ + segment * (columns_ + kSegmentPad) + column;
  }

  const LayerStep& a;
  const LayerExchange& exchange_;
  float* const scratch_;
  const uint32_t base_;  // where this lane's rows begin
  const int columns_;
  const bool works_;  // whether this warp has columns
  const int first_column_;
  const int g_ = threadIdx.x % 32 / 4, t_ = threadIdx.x % 4;
  uint2 piece_[2][2][2];
};

#endif

}  // namespace dualscale

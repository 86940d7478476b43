// The end of a product on a Hopper GPU: from the sums in registers to scaled, encoded lines in memory.
#pragma once

#include "linear.cuh"
#include "wgmma.cuh"

namespace dualscale {

// The result of 16 rows of a warp on its way to memory: 64 bytes of each row, or 32 columns; twice but for
// fp32.
constexpr int kChunkColumns = 32;
constexpr int kStripLine = 64;
constexpr int kStripBytes = 16 * kLineBytes;

struct Grid {
  int64_t rows;
  int steps, row_tiles, column_tiles, cluster;
  const float* group_scale;
  int64_t padded_columns;
  int group_steps;  // of a group that takes whole steps
  int64_t groups;
  int line_bytes;  // of a strip; 0 where rows of the result do not begin at multiples of 16 bytes
};

// The parameters of a tile's columns, each kind beside its like: neighbours are read together.
template <class Sum, int kColumns, bool kKnee>
struct Columns {
  using Offset = std::conditional_t<std::is_same_v<Sum, float>, float, int>;
  float scale[kColumns], bias[kColumns];
  Offset zero[kColumns];
  float gain[kKnee ? kColumns : 1];
  int64_t knee[kKnee ? kColumns : 1];

  __device__ __forceinline__ void set(int n, const Column<Sum>& column) {
    scale[n] = column.scale;
    bias[n] = column.bias;
    if constexpr (std::is_same_v<Sum, float>) {
      zero[n] = column.offset;
    } else {
      zero[n] = column.zero_sum;
      if constexpr (kKnee) {
        gain[n] = column.gain;
        knee[n] = column.knee_sum;
      }
    }
  }
  __device__ __forceinline__ Column<Sum> get(int n, bool turned) const {
    if constexpr (std::is_same_v<Sum, float>) {
      return {scale[n], bias[n], zero[n]};
    } else {
      return {scale[n], bias[n], kKnee ? gain[kKnee ? n : 0] : 0.0f, zero[n], kKnee ? knee[kKnee ? n : 0] : 0,
              turned};
    }
  }
};

#if defined(DUALSCALE_HOPPER)

// Whether a condition holds for every thread of the two groups that multiply; a barrier among them.
__device__ __forceinline__ bool all_of_group(bool condition) {
  int all;
  asm volatile(
      "{\n.reg .pred in, out;\nsetp.ne.s32 in, %1, 0;\nbarrier.cta.red.and.pred out, 1, 256, in;\n"
      "selp.s32 %0, 1, 0, out;\n}"
      : "=r"(all)
      : "r"(static_cast<int>(condition))
      : "memory");
  return all != 0;
}

// A pair of values as they lie in memory.
template <class T>
__device__ __forceinline__ void put_pair(uint8_t* to, float a, float b) {
  if constexpr (std::is_same_v<T, int8_t>) {
    const uint32_t low = __float_as_uint(a + kIntegerBias), high = __float_as_uint(b + kIntegerBias);
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(__byte_perm(low, high, 0x0040));
  } else if constexpr (std::is_same_v<T, float>) {
    *reinterpret_cast<float2*>(to) = make_float2(a, b);
  } else {
    *reinterpret_cast<uint32_t*>(to) = pack_pair<T>(a, b);
  }
}

// How values become codes: not at all, by a code without a knee for all columns, or by any.
enum class Encoding { kNone, kStraight, kAny };

// Brings a warp's 16 rows of a tile to memory, 32 columns at a time.
template <int kColumns, bool kKnee, class Sum>
struct Finisher {
  static constexpr int kValues =
      kChunkColumns / 2;  // of a lane: rows g and g + 8, of every eight columns two
  const Epilogue& e;
  const Grid& grid;
  const CUtensorMap* y;
  const Columns<Sum, kColumns, kKnee>& columns;
  uint8_t* strips;
  bool turned;

  // Values of a chunk into a strip, where a line of 64 bytes has its pieces in the order piece ^ (row / 2 %
  // 4).
  template <class T>
  __device__ __forceinline__ void put(uint8_t* strip, const float (&v)[kValues], int byte) const {
    const int lane = threadIdx.x % 32, line = grid.line_bytes, mask = line == kStripLine ? lane / 8 : 0;
    uint8_t* const row = strip + lane / 4 * line;
#pragma unroll
    for (int i = 0; i < kValues; i += 2) {
      const int at = byte + (i / 4 * 8 + lane % 4 * 2) * static_cast<int>(sizeof(T));
      put_pair<T>(row + i / 2 % 2 * 8 * line + ((at / 16) ^ mask) * 16 + at % 16, v[i], v[i + 1]);
    }
  }

  // Copies a chunk's values out of the strip that holds them, once that has a whole line.
  template <class T>
  __device__ __forceinline__ void write(const float (&v)[kValues], int chunk, bool is_last, int64_t column,
                                        int64_t first_row) const {
    constexpr int kBytes = kChunkColumns * sizeof(T);
    const int line = grid.line_bytes, byte = chunk * kBytes % line, lane = threadIdx.x % 32;
    constexpr bool kTwo = kBytes <= kStripLine;  // whether there is room for a second strip
    uint8_t* const strip = strips + (kTwo ? chunk * kBytes / line % 2 * (kStripBytes / 2) : 0);
    if (byte == 0) {
      if (lane == 0) {
        // Until this strip may be written again: the box before the last has left it, but the last tile may
        // have ended on either strip.
        if (kTwo && chunk > 0) {
          boxes_wait<1>();
        } else {
          boxes_wait<0>();
        }
      }
      __syncwarp();
    }
    put<T>(strip, v, byte);
    if (byte + kBytes == line || is_last) {
      fence_for_copies();
      __syncwarp();
      if (lane == 0) {
        const int64_t begin = column + (chunk * kBytes - byte) / static_cast<int>(sizeof(T));
        store_box(y, shared_address(strip), static_cast<int>(begin), static_cast<int>(first_row));
      }
    }
  }

  // One chunk, unrolled for its place in the registers.
  template <Encoding kEncoding>
  __device__ __forceinline__ void encode(const Knee& shared, bool uniform, int64_t column,
                                         float (&v)[kValues]) const {
    Knee knee = shared;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      if constexpr (kEncoding == Encoding::kStraight) {
        v[i] = knee.encode_straight(v[i]);
      } else if constexpr (kEncoding == Encoding::kAny) {
        if (!uniform) {
          knee = output_knee(e, column + i / 4 * 8 + i % 2);
        }
        v[i] = knee.encode(v[i]);
      }
    }
  }

  template <Encoding kEncoding, int kSums, int kBeyond>
  __device__ __forceinline__ void run(const Sum (&sums)[kSums], const Sum (&beyond)[kBeyond],
                                      int64_t first_row, int64_t column, const Knee& shared,
                                      bool uniform) const {
    const int lane = threadIdx.x % 32;
    const int64_t row = first_row + lane / 4;
    float row_scale[2] = {1.0f, 1.0f};
    if (e.row_scale != nullptr) {
      row_scale[0] = e.row_scale[min(row, grid.rows - 1)];
      row_scale[1] = e.row_scale[min(row + 8, grid.rows - 1)];
    }
    const int64_t left = e.columns - column;
#pragma unroll
    for (int chunk = 0; chunk < kSums / kValues; ++chunk) {
      if (chunk * kChunkColumns >= left) {
        break;
      }
      const int inside = chunk * kChunkColumns + lane % 4 * 2;
      float v[kValues];
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const Column<Sum> own = columns.get(inside + i / 4 * 8 + i % 2, turned);
        const int at = chunk * kValues + i;
        v[i] =
            own.template total<kKnee>(sums[at], beyond[kKnee ? at : 0]) * own.scale * row_scale[i / 2 % 2] +
            own.bias;
      }
      encode<kEncoding>(shared, uniform, column + inside, v);
      const bool is_last = chunk + 1 == kSums / kValues || (chunk + 1) * kChunkColumns >= left;
      if (grid.line_bytes == 0) {
        store_directly(v, row, column + inside);
      } else if (kEncoding != Encoding::kNone) {
        write<int8_t>(v, chunk, is_last, column, first_row);
      } else if (e.kind == Kind::kHalf) {
        write<__half>(v, chunk, is_last, column, first_row);
      } else if (e.kind == Kind::kBFloat16) {
        write<__nv_bfloat16>(v, chunk, is_last, column, first_row);
      } else {
        write<float>(v, chunk, is_last, column, first_row);
      }
    }
  }

  template <int kSums, int kBeyond>
  __device__ __forceinline__ void run(const Sum (&sums)[kSums], const Sum (&beyond)[kBeyond],
                                      int64_t first_row, int64_t column, bool uniform) const {
    if (e.code.rows == nullptr) {
      run<Encoding::kNone>(sums, beyond, first_row, column, Knee{}, uniform);
      return;
    }
    const Knee shared = output_knee(e, column);
    if (uniform && e.row_scale == nullptr && shared.is_straight()) {
      run<Encoding::kStraight>(sums, beyond, first_row, column, shared, uniform);
    } else {
      run<Encoding::kAny>(sums, beyond, first_row, column, shared, uniform);
    }
  }

  __device__ __forceinline__ void store_directly(const float (&v)[kValues], int64_t row,
                                                 int64_t column) const {
#pragma unroll 1
    for (int i = 0; i < kValues; i += 2) {
      const int64_t at = row + i / 2 % 2 * 8, n = column + i / 4 * 8;
      float pair[4] = {};
#pragma unroll
      for (int k = 0; k < kValues; ++k) {
        pair[k % 2] = k / 2 * 2 == i ? v[k] : pair[k % 2];
      }
      if (at < grid.rows && n < e.columns) {
        store_four(e.y, e.kind, at * e.columns + n, pair, false,
                   static_cast<int>(min(e.columns - n, int64_t{2})));
      }
    }
  }
};

#endif

}  // namespace dualscale

// The parameters of the columns of a tile in shared memory, and how its results are encoded: common to the
// products of some and of many rows on a Hopper GPU.
#pragma once

#include "gemm_products.cuh"

namespace dualscale {

constexpr int kChunkColumns = 32;  // that a warp finishes at a time

// The parameters of a tile's columns, each kind beside its like: neighbours are read together.
template <class Sum, int kColumns, bool kKnee>
struct alignas(16) Columns {
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

// Before it is encoded, the value of a sum and of what lies beyond the knee.
template <bool kKnee, class Sum>
__device__ __forceinline__ float value_of(const Column<Sum>& column, Sum sum, Sum beyond, float row_scale) {
  return column.template total<kKnee>(sum, beyond) * column.scale * row_scale + column.bias;
}

// The parameters of one column of a tile, the `n`-th of `count`: as they come, on their way to shared memory
// while something else goes on, and then as they are needed, in the same place.
template <class Sum, int kColumns, bool kKnee>
struct NextColumn {
  Columns<Sum, kColumns, kKnee>& columns;
  int n;
  bool is_one, same = true;  // whether the column has the output code of the first

  __device__ __forceinline__ NextColumn(const Epilogue& e, Columns<Sum, kColumns, kKnee>& columns,
                                        int64_t first, int n, int count)
      : columns(columns), n(n), is_one(n < count) {
    if (!is_one) {
      return;
    }
    const int64_t mine = min(first + n, e.columns - 1), other = min(first, e.columns - 1);
    if (e.weight_scale != nullptr) {
      copy_async<4>(&columns.scale[n], e.weight_scale + mine);
    }
    if (e.bias != nullptr) {
      copy_async<4>(&columns.bias[n], e.bias + mine);
    }
    if (e.x_code != nullptr) {
      copy_async<4>(&columns.zero[n], static_cast<const Sum*>(e.weight_sum) + mine);
    }
    if (e.code.per_channel) {
      const auto* const rows = reinterpret_cast<const float4*>(e.code.rows);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 a = rows[2 * mine + i], b = rows[2 * other + i];
        same = same && a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w;
      }
    }
  }

  __device__ __forceinline__ void set(const Epilogue& e) const {
    if (is_one) {
      wait_for_copies();
      columns.set(
          n, Column<Sum>::of(e, {e.weight_scale ? columns.scale[n] : 1.0f, e.bias ? columns.bias[n] : 0.0f,
                                 e.x_code ? columns.zero[n] : Sum{0}}));
    }
  }
};

// How values become codes: not at all, by one code for all columns, without a knee or any, or by each
// column's own.
enum class Encoding { kNone, kStraight, kShared, kOwn };

template <Encoding kEncoding>
using EncodingType = std::integral_constant<Encoding, kEncoding>;

// The code of a tile's results: of its first column, and whether all the others have the same.
struct ResultCode {
  Knee first;
  bool uniform;

  // Calls f(EncodingType<...>{}) for what the results need.
  template <class F>
  __device__ __forceinline__ void choose(const Epilogue& e, F&& f) const {
    if (e.code.rows == nullptr) {
      f(EncodingType<Encoding::kNone>{});
    } else if (uniform && e.row_scale == nullptr && first.is_straight()) {
      f(EncodingType<Encoding::kStraight>{});
    } else if (uniform) {
      f(EncodingType<Encoding::kShared>{});
    } else {
      f(EncodingType<Encoding::kOwn>{});
    }
  }

  // Values of the columns column_of(0), column_of(1), ...
  template <Encoding kEncoding, int kCount, class F>
  __device__ __forceinline__ void encode(const Epilogue& e, float (&v)[kCount], F&& column_of) const {
    if constexpr (kEncoding == Encoding::kStraight || kEncoding == Encoding::kShared) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        v[i] = kEncoding == Encoding::kStraight ? first.encode_straight(v[i]) : first.encode(v[i]);
      }
    } else if constexpr (kEncoding == Encoding::kOwn) {
#pragma unroll 1
      for (int i = 0; i < kCount; ++i) {  // for all at once the registers do not suffice
        float x = 0.0f;
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          x = k == i ? v[k] : x;
        }
        x = output_knee(e, column_of(i)).encode(x);
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          v[k] = k == i ? x : v[k];
        }
      }
    }
  }
};

#endif

}  // namespace dualscale

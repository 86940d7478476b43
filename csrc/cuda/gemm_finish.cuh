// The end of a product on a Hopper GPU: from the sums in registers through shared memory to scaled, encoded
// values, eight columns of a row a lane.
#pragma once

#include "eight.cuh"
#include "gemm_columns.cuh"

namespace dualscale {

// Sums of 16 rows, which a warp has, and 32 columns, of which a lane has 16: they pass through shared memory
// together, in a loop, for code that is unrolled over all sums of a thread is too long for the caches.
constexpr int kPieceSums = 16;
constexpr int kPieceBytes = 32 * kPieceSums * 4;

#if defined(DUALSCALE_HOPPER)

// Where in a piece two sums lie, columns 2 q and 2 q + 1 of a row and of eight columns: lane 4 g + q of the
// product has them of rows g and g + 8. Neither its writers, a row's four lanes side by side, nor its
// readers, who take one q of four rows and all four eights, meet in a bank.
__device__ __forceinline__ int offset_in_piece(int eight, int row, int q) {
  return eight * 512 + row * 32 + ((q + eight) & 3) * 8;
}

// Calls f(offset, two sums) for all that a lane has of a piece.
template <class Sum, class F>
__device__ __forceinline__ void each_pair(const Sum* sums, F&& f) {
  const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < kPieceSums; i += 2) {
    int32_t v[2];
    memcpy(v, sums + i, sizeof(v));
    f(offset_in_piece(i / 4, g + i / 2 % 2 * 8, q), v);
  }
}

// A lane has eight columns, from the 8 (lane % 4)-th on, of rows lane / 4 and lane / 4 + 8 of a piece, of
// both at once or of one after the other: with a knee the registers do not suffice for both.
template <int kCount, class Sum>
__device__ __forceinline__ void add_eights(uint32_t piece, int row, Sum (&total)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    const int2 v = load_pair(piece + offset_in_piece(threadIdx.x % 4, row + i / 8 * 8, i / 2 % 4));
    Sum pair[2];
    memcpy(pair, &v, sizeof(v));
    total[i] += pair[0];
    total[i + 1] += pair[1];
  }
}

// Calls f(std::integral_constant<int, n>{}) by a jump: n is the number of registers that must be fixed.
template <int kCount, class F>
__device__ __forceinline__ void with_number(int n, F&& f) {
  static_assert(kCount <= 10);
  const auto go = [&](auto number) {
    constexpr int i = decltype(number)::value;
    if constexpr (i < kCount) {
      f(number);
    }
  };
#define DUALSCALE_CASE(i)                 \
  case i:                                 \
    go(std::integral_constant<int, i>{}); \
    break;
  switch (n) {
    DUALSCALE_CASE(0)
    DUALSCALE_CASE(1)
    DUALSCALE_CASE(2)
    DUALSCALE_CASE(3)
    DUALSCALE_CASE(4)
    DUALSCALE_CASE(5)
    DUALSCALE_CASE(6)
    DUALSCALE_CASE(7)
    DUALSCALE_CASE(8)
    DUALSCALE_CASE(9)
  }
#undef DUALSCALE_CASE
}

// Neighbouring words at once, which the compiler does not find by itself where they may also go one by one.
template <class T>
__device__ __forceinline__ void store_whole(void* to, int64_t offset, const float (&x)[8]) {
  const auto raw = pack<T, 8>(x);
  T* const p = static_cast<T*>(to) + offset;
  if constexpr (sizeof(T) == 1) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(p), "r"(raw.word[0]), "r"(raw.word[1]) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < raw.kWords; i += 4) {
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p + i * 4 / sizeof(T)), "r"(raw.word[i]),
                   "r"(raw.word[i + 1]), "r"(raw.word[i + 2]), "r"(raw.word[i + 3])
                   : "memory");
    }
  }
}

// Eight columns of a row, of which `valid` exist: all of them where rows begin at multiples of eight.
__device__ __forceinline__ void store_eight_of(const Epilogue& e, Kind kind, int64_t offset,
                                               const float (&x)[8], int valid) {
  if (e.columns % 8 != 0) {
    store_eight<false>(e.y, kind, offset, x, false, valid);
  } else if (kind == Kind::kCodes) {
    store_whole<int8_t>(e.y, offset, x);
  } else if (kind == Kind::kHalf) {
    store_whole<__half>(e.y, offset, x);
  } else if (kind == Kind::kBFloat16) {
    store_whole<__nv_bfloat16>(e.y, offset, x);
  } else {
    store_whole<float>(e.y, offset, x);
  }
}

// A tile in the result, as far as it lies inside, ...
struct TilePlace {
  int64_t row, column, first;  // the number of its first element
  int rows, columns;

  __device__ __forceinline__ TilePlace(const Epilogue& e, int64_t all_rows, int64_t row, int64_t column,
                                       int most_rows, int most_columns)
      : row(row),
        column(column),
        first(row * e.columns + column),
        rows(static_cast<int>(min(all_rows - row, static_cast<int64_t>(most_rows)))),
        columns(static_cast<int>(min(e.columns - column, static_cast<int64_t>(most_columns)))) {}
};

// ... and eight results in it, with those of the same columns eight rows below.
struct EightResults {
  int row, column;
  int64_t first;  // the number of the first of them
  float row_scale[2];

  __device__ __forceinline__ EightResults(const Epilogue& e, const TilePlace& tile, int row, int column)
      : row(row),
        column(column),
        first(tile.first + static_cast<int64_t>(row) * static_cast<int>(e.columns) + column),
        row_scale{1.0f, 1.0f} {}
};

template <Encoding kEncoding, bool kKnee, int kCount, class Sum, class Columns>
__device__ __forceinline__ void finish_eights(const Epilogue& e, const Columns& columns,
                                              const ResultCode& code, const Sum (&sum)[kCount],
                                              const Sum (&beyond)[kCount], bool turned, const TilePlace& tile,
                                              const EightResults& at) {
  float v[kCount];
  const auto find = [&](auto is_turned) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const Column<Sum> own = columns.get(at.column + i, decltype(is_turned)::value);
#pragma unroll
      for (int k = i; k < kCount; k += 8) {
        v[k] = value_of<kKnee>(own, sum[k], beyond[k], at.row_scale[k / 8]);
      }
    }
  };
  if (kKnee && turned) {
    find(std::true_type{});
  } else {
    find(std::false_type{});
  }
  code.template encode<kEncoding>(e, v, [&](int i) { return tile.column + at.column + i % 8; });
#pragma unroll
  for (int half = 0; half < kCount / 8; ++half) {
    const int row = at.row + half * 8;
    float eight[8];
    memcpy(eight, v + half * 8, sizeof(eight));
    if (row < tile.rows) {
      store_eight_of(e, kEncoding == Encoding::kNone ? e.kind : Kind::kCodes, at.first + half * 8 * e.columns,
                     eight, min(tile.columns - at.column, 8));
    }
  }
}

#endif

}  // namespace dualscale

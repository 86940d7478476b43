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

// Where in a piece sixteen bytes lie: the eights of columns follow each other, and in each, lane 4 g + q of
// the product has columns 2 q and 2 q + 1 of rows g and g + 8, whose order changes from one eight to the next.
// So neither the writers of sixteen bytes nor the readers of eight meet in a bank.
__device__ __forceinline__ int offset_in_piece(int eight, int g, int q) {
  return eight * 512 + (8 * q + ((g + 2 * q + eight / 2 * 4) & 7)) * 16;
}

// Calls f(offset, four sums) for all that a lane has of a piece.
template <class Sum, class F>
__device__ __forceinline__ void each_four(const Sum* sums, F&& f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int eight = 0; eight < kChunkColumns / 8; ++eight) {
    const Sum* const four = sums + 4 * eight;
    const int swap = eight % 2 * 2;
    const Sum own[4] = {four[swap], four[swap + 1], four[2 - swap], four[3 - swap]};
    int32_t v[4];
    memcpy(v, own, sizeof(v));
    f(offset_in_piece(eight, lane / 4, lane % 4), v);
  }
}

// A lane's eight columns, from the 8 (lane % 4)-th on, of row 8 half + lane / 4 of a piece.
template <class Sum>
__device__ __forceinline__ void add_eight(uint32_t piece, int half, Sum (&total)[8]) {
  const int eight = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
  const uint32_t from = piece + ((half ^ eight) & 1) * 8;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const int2 v = load_pair(from + offset_in_piece(eight, g, q));
    Sum pair[2];
    memcpy(pair, &v, sizeof(v));
    total[2 * q] += pair[0];
    total[2 * q + 1] += pair[1];
  }
}

// The place of eight results: of the tile's columns, and of the whole.
struct EightResults {
  int inside;
  int64_t row, column;
  float row_scale;
};

template <Encoding kEncoding, bool kKnee, class Sum, class Columns>
__device__ __forceinline__ void finish_eight(const Epilogue& e, const Columns& columns, const ResultCode& code,
                                             const Sum (&sum)[8], const Sum (&beyond)[8], bool turned,
                                             const EightResults& at) {
  float v[8];
  const auto find = [&](auto is_turned) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const Column<Sum> own = columns.get(at.inside + i, decltype(is_turned)::value);
      v[i] = value_of<kKnee>(own, sum[i], beyond[i], at.row_scale);
    }
  };
  if (kKnee && turned) {
    find(std::true_type{});
  } else {
    find(std::false_type{});
  }
  code.template encode<kEncoding>(e, v, [&](int i) { return at.column + i; });
  store_eight<false>(e.y, e.kind, at.row * e.columns + at.column, v, e.columns % 8 == 0,
                     static_cast<int>(min(e.columns - at.column, int64_t{8})));
}

#endif

}  // namespace dualscale

// int8 x int8 linear layer with the knee term, exact sums, one scaling at the end.
#include <algorithm>
#include <vector>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include "cpu/lanes.h"
#include "cpu/linear_codes.h"
#include "linear_checks.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kTile = 4;      // rows and columns of a register tile
constexpr int64_t kColumns = 64;  // columns of a task
constexpr int64_t kRows = 32;     // rows of a task

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

// The sums of the lanes of four registers.
inline __m128i sum_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// sums[r][c] = rows[r] . columns[c]. The shape of this function is what keeps GCC 12 from moving accumulators
// through memory: own copies of the pointers, full unrolling, and the instruction itself, because the
// intrinsic makes it copy every accumulator in every turn of the loop (99 against 180 billion products a
// second).
template <int64_t kCount>
__attribute__((noinline)) void multiply(const uint8_t* const* rows, const int8_t* const* columns,
                                        int64_t size, int32_t (*sums)[kTile]) {
  __m512i acc[kCount][kTile];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kCount * kTile; ++i) {
    acc[i / kTile][i % kTile] = _mm512_setzero_si512();
  }
  const uint8_t* const row[kTile] = {rows[0], rows[1 % kCount], rows[2 % kCount], rows[3 % kCount]};
  const int8_t* const column[kTile] = {columns[0], columns[1], columns[2], columns[3]};
  for (int64_t k = 0; k < size; k += 64) {
    const __mmask64 mask = size - k >= 64 ? ~__mmask64{0} : (__mmask64{1} << (size - k)) - 1;
    __m512i weights[kTile];
#pragma GCC unroll 4
    for (int64_t c = 0; c < kTile; ++c) {
      weights[c] = _mm512_maskz_loadu_epi8(mask, column[c] + k);
      if (kCount < kTile) {
        prefetch(column[c] + k + kAhead * size);
      }
    }
#pragma GCC unroll 4
    for (int64_t r = 0; r < kCount; ++r) {
      const __m512i values = _mm512_maskz_loadu_epi8(mask, row[r] + k);
#pragma GCC unroll 4
      for (int64_t c = 0; c < kTile; ++c) {
        asm("vpdpbusd %2, %1, %0" : "+v"(acc[r][c]) : "v"(values), "v"(weights[c]));
      }
    }
  }
#pragma GCC unroll 4
  for (int64_t r = 0; r < kCount; ++r) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums[r]),
                     sum_lanes(acc[r][0], acc[r][1], acc[r][2], acc[r][3]));
  }
}

#else

template <int64_t kCount>
void multiply(const uint8_t* const* rows, const int8_t* const* columns, int64_t size,
              int32_t (*sums)[kTile]) {
  for (int64_t r = 0; r < kCount; ++r) {
    for (int64_t c = 0; c < kTile; ++c) {
      const uint8_t* const row = rows[r];
      const int8_t* const column = columns[c];
      int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < size; ++k) {
        sum += static_cast<int32_t>(row[k]) * static_cast<int32_t>(column[k]);
      }
      sums[r][c] = sum;
    }
  }
}

#endif

// All sums of `count` <= kTile activation rows with the columns [n, n + columns) of the weights.
void multiply_rows(const CodeRows& in, int64_t first, int64_t count, const int8_t* weight, int64_t size,
                   int64_t n, int64_t columns, int32_t (*sums)[kColumns]) {
  const uint8_t* rows[kTile];
  for (int64_t r = 0; r < kTile; ++r) {
    rows[r] = in[first + std::min(r, count - 1)];
  }
  for (int64_t c = 0; c < columns; c += kTile) {
    const int8_t* parts[kTile];
    for (int64_t i = 0; i < kTile; ++i) {
      parts[i] = weight + (n + std::min(c + i, columns - 1)) * size;
    }
    int32_t tile[kTile][kTile];
    if (count == 1) {
      multiply<1>(rows, parts, size, tile);
    } else if (count == 2) {
      multiply<2>(rows, parts, size, tile);
    } else {
      multiply<kTile>(rows, parts, size, tile);
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < std::min(kTile, columns - c); ++i) {
        sums[r][c + i] = tile[r][i];
      }
    }
  }
}

Tensor linear_w8a8(const Tensor& x, const OptionalTensor& x_code, bool knee, const OptionalTensor& row_scale,
                   const Tensor& weight, const Tensor& weight_scale, const Tensor& weight_sum,
                   const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype,
                   bool /*constant_weight*/) {
  const int64_t size =
      checked_linear_w8a8(x, x_code, knee, row_scale, weight, weight_scale, weight_sum, bias, code, dtype);
  const int64_t rows = x.numel() / size, columns = weight.size(0);
  const InputCode in(x_code, knee);
  const CodeEpilogue<int32_t, int32_t> finish{in, weight_scale.const_data_ptr<float>(), pointer(row_scale),
                                              pointer(bias), weight_sum.const_data_ptr<int32_t>()};
  Tensor y = torch::stable::new_empty(x, shape_with_last(x, columns), code ? ScalarType::Char : dtype);
  const CodeRows inputs(x, in, size, [size](const uint8_t* from, uint8_t* to) {
    std::memcpy(to, from, static_cast<size_t>(size));
  });
  const Sink sink(y, code);
  const int8_t* const weights = weight.const_data_ptr<int8_t>();
  const int64_t per_row = in.per_row(), step = kTile / per_row;
  const int64_t row_blocks = (rows + kRows - 1) / kRows, column_blocks = (columns + kColumns - 1) / kColumns;
  const int64_t grain = kWork / (std::min(rows, kRows) * kColumns * size * per_row + 1) + 1;

  torch::stable::parallel_for(0, row_blocks * column_blocks, grain, [&](int64_t begin, int64_t end) {
    int32_t sums[kTile][kColumns];
    float result[kColumns];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task % column_blocks * kColumns, count = std::min(kColumns, columns - n);
      const int64_t start = task / column_blocks * kRows, stop = std::min(rows, start + kRows);
      for (int64_t row = start; row < stop; row += step) {
        const int64_t together = std::min(step, stop - row);
        multiply_rows(inputs, row * per_row, together * per_row, weights, size, n, count, sums);
        for (int64_t r = 0; r < together; ++r) {
          const int32_t *plain = sums[r * per_row], *above = sums[r * per_row + per_row - 1];
#pragma omp simd
          for (int64_t i = 0; i < count; ++i) {
            result[i] = finish(plain[i], above[i], row + r, n + i);
          }
          sink.write(result, (row + r) * columns, n, count);
        }
      }
    }
  });
  return y;
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("linear_w8a8", TORCH_BOX(&dualscale::cpu::linear_w8a8));
}

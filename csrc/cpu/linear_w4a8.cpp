// int8 x int4 linear layer: exact sums within a block of weights, scaled and added in fp32.
#include <algorithm>
#include <vector>

#include "cpu/int4.h"
#include "cpu/linear_codes.h"
#include "linear_checks.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kTile = 4;      // rows and columns of a register tile
constexpr int64_t kColumns = 64;  // columns of a task
constexpr int64_t kRows = 64;     // rows of a task
constexpr int64_t kManyRows = 8;  // that pay for unpacking the weights of a task beforehand

// Columns of a register tile: packed rows of weights, or their codes as bytes, and their scales.
struct Tile {
  const uint8_t* weight[kTile];
  const float* scale[kTile];
};

// sums[r][c] = rows[r] . column c, groups scaled.
template <int64_t kCount, bool kPacked>
__attribute__((noinline)) void multiply(const uint8_t* const* rows, const Tile& tile, const Int4Shape& shape,
                                        float (*sums)[kTile]) {
  const uint8_t* const row[kTile] = {rows[0], rows[1 % kCount], rows[2 % kCount], rows[3 % kCount]};
  const Tile own = tile;
  const Ints lanes = scale_lanes(shape.group_size);
  const int64_t bytes = shape.bytes(), blocks = shape.blocks();
  Floats total[kCount][kTile] = {};
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t at = block * kBlockCodes;
    Bytes low[kTile], high[kTile];
    Floats scale[kTile];
#pragma GCC unroll 4
    for (int64_t c = 0; c < kTile; ++c) {
      if (kPacked) {
        const Bytes packed = load_block(own.weight[c], block * kBlockBytes, bytes);
        low[c] = signed_nibbles(packed & 15);
        high[c] = signed_nibbles(packed >> 4);
      } else {
        low[c] = load<Bytes>(own.weight[c] + at);
        high[c] = load<Bytes>(own.weight[c] + at + kBlockBytes);
      }
      scale[c] = block_scale(own.scale[c], block, shape.group_size, lanes);
    }
#pragma GCC unroll 4
    for (int64_t r = 0; r < kCount; ++r) {
      const Bytes first = load<Bytes>(row[r] + at), second = load<Bytes>(row[r] + at + kBlockBytes);
#pragma GCC unroll 4
      for (int64_t c = 0; c < kTile; ++c) {
        Ints sum{};
        dot_bytes(sum, first, low[c]);
        dot_bytes(sum, second, high[c]);
        total[r][c] = multiply_add(__builtin_convertvector(sum, Floats), scale[c], total[r][c]);
      }
    }
  }
  for (int64_t r = 0; r < kCount; ++r) {
    for (int64_t c = 0; c < kTile; ++c) {
      sums[r][c] = sum_of(total[r][c]);
    }
  }
}

// Weights of the columns of a task.
struct Panel {
  const uint8_t* packed;
  const Tensor& scale;
  Int4Shape shape;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  int64_t first = 0, count = 0;
  bool unpacked = false;

  void take(int64_t n, int64_t columns, bool unpack) {
    first = n;
    count = columns;
    unpacked = unpack;
    read_scales(scale, shape, n, columns, scales);
    if (unpack) {
      codes.resize(static_cast<size_t>(columns * shape.padded()));
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t block = 0; block < shape.blocks(); ++block) {
          const Bytes both = load_block(packed + (n + c) * shape.bytes(), block * kBlockBytes, shape.bytes());
          const Bytes halves[2] = {signed_nibbles(both & 15), signed_nibbles(both >> 4)};
          std::memcpy(codes.data() + c * shape.padded() + block * kBlockCodes, halves, sizeof halves);
        }
      }
    }
  }

  Tile tile(int64_t c) const {
    Tile tile;
    for (int64_t i = 0; i < kTile; ++i) {
      const int64_t column = std::min(c + i, count - 1);
      tile.weight[i] =
          unpacked ? codes.data() + column * shape.padded() : packed + (first + column) * shape.bytes();
      tile.scale[i] = scales.data() + column * shape.scale_stride();
    }
    return tile;
  }
};

template <bool kPacked>
void multiply_tile(int64_t count, const uint8_t* const* rows, const Tile& tile, const Int4Shape& shape,
                   float (*sums)[kTile]) {
  if (count == 1) {
    multiply<1, kPacked>(rows, tile, shape, sums);
  } else if (count == 2) {
    multiply<2, kPacked>(rows, tile, shape, sums);
  } else {
    multiply<kTile, kPacked>(rows, tile, shape, sums);
  }
}

// All sums of `count` <= kTile activation rows with the columns of the panel.
void multiply_rows(const CodeRows& in, int64_t first, int64_t count, const Panel& panel,
                   float (*sums)[kColumns]) {
  const uint8_t* rows[kTile];
  for (int64_t r = 0; r < kTile; ++r) {
    rows[r] = in[first + std::min(r, count - 1)];
  }
  for (int64_t c = 0; c < panel.count; c += kTile) {
    float tile[kTile][kTile];
    if (panel.unpacked) {
      multiply_tile<false>(count, rows, panel.tile(c), panel.shape, tile);
    } else {
      multiply_tile<true>(count, rows, panel.tile(c), panel.shape, tile);
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < std::min(kTile, panel.count - c); ++i) {
        sums[r][c + i] = tile[r][i];
      }
    }
  }
}

// Four bytes at a time: of every eight the first four to the front half of their block.
void arrange(const uint8_t* from, uint8_t* to, const Int4Shape& shape) {
  std::memset(to + shape.padded() - kBlockCodes, 0, kBlockCodes);
  for (int64_t k = 0; k < shape.depth; k += 8) {
    uint8_t* const block = to + k / kBlockCodes * kBlockCodes + k % kBlockCodes / 2;
    std::memcpy(block, from + k, 4);
    std::memcpy(block + kBlockBytes, from + k + 4, 4);
  }
}

Tensor linear_w4a8(const Tensor& x, const OptionalTensor& x_code, bool knee, const OptionalTensor& row_scale,
                   const Tensor& weight, const Tensor& weight_scale, const Tensor& weight_sum,
                   int64_t group_size, const OptionalTensor& bias, const OptionalTensor& code,
                   ScalarType dtype) {
  const int64_t size = checked_linear_w4a8(x, x_code, knee, row_scale, weight, weight_scale, weight_sum,
                                           group_size, bias, code, dtype);
  const int64_t rows = x.numel() / size, columns = weight.size(0);
  const Int4Shape shape{size, group_size};
  const InputCode in(x_code, knee);
  const CodeEpilogue<float, float> finish{in, nullptr, pointer(row_scale), pointer(bias),
                                          weight_sum.const_data_ptr<float>()};
  Tensor y = torch::stable::new_empty(x, shape_with_last(x, columns), code ? ScalarType::Char : dtype);
  const CodeRows inputs(x, in, shape.padded(),
                        [&](const uint8_t* from, uint8_t* to) { arrange(from, to, shape); });
  const Sink sink(y, code);
  const uint8_t* const weights = weight.const_data_ptr<uint8_t>();
  const int64_t per_row = in.per_row(), step = kTile / per_row;
  const int64_t row_blocks = (rows + kRows - 1) / kRows, column_blocks = (columns + kColumns - 1) / kColumns;
  const int64_t grain = kWork / (std::min(rows, kRows) * kColumns * size * per_row + 1) + 1;

  torch::stable::parallel_for(0, row_blocks * column_blocks, grain, [&](int64_t begin, int64_t end) {
    float sums[kTile][kColumns], result[kColumns];
    Panel panel{weights, weight_scale, shape, {}, {}};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task % column_blocks * kColumns, count = std::min(kColumns, columns - n);
      const int64_t start = task / column_blocks * kRows, stop = std::min(rows, start + kRows);
      panel.take(n, count, (stop - start) * per_row > kManyRows);
      for (int64_t row = start; row < stop; row += step) {
        const int64_t together = std::min(step, stop - row);
        multiply_rows(inputs, row * per_row, together * per_row, panel, sums);
        for (int64_t r = 0; r < together; ++r) {
          const float *plain = sums[r * per_row], *above = sums[r * per_row + per_row - 1];
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
  m.impl("linear_w4a8", TORCH_BOX(&dualscale::cpu::linear_w4a8));
}

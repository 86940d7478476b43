// int8 x int4 linear layer: exact sums within a block of weights, scaled and
// added in fp32.
#include <algorithm>
#include <vector>

#include "cpu/int4.h"
#include "cpu/linear_codes.h"
#include "linear_checks.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kTile = 4;       // rows and columns of a register tile
constexpr int64_t kColumns = 64;   // columns of a task
constexpr int64_t kRows = 64;      // rows of a task
constexpr int64_t kManyRows = 16;  // that pay for unpacking the weights of a task beforehand

// Columns of a register tile: packed rows of weights, or their codes as bytes,
// and their scales.
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
  const Ints lanes = shape.lanes;
  const int shift = shape.shift;
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
        prefetch(own.weight[c] + block * kBlockBytes + kAhead * bytes);
        low[c] = signed_nibbles(packed & 15);
        high[c] = signed_nibbles(packed >> 4);
      } else {
        low[c] = load<Bytes>(own.weight[c] + at);
        high[c] = load<Bytes>(own.weight[c] + at + kBlockBytes);
      }
      scale[c] = block_scale(own.scale[c], block, shift, lanes);
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
#pragma GCC unroll 4
  for (int64_t r = 0; r < kCount; ++r) {
    sum_four(total[r], sums[r]);
  }
}

// The columns of a task: packed as they are, or unpacked because many rows will read them.
class Panel {
 public:
  Panel(const Tensor& weight, const Tensor& scale, const Int4Shape& shape)
      : shape_(shape), packed_(weight.const_data_ptr<uint8_t>()), scales_(scale, shape) {}

  void take(int64_t first, int64_t count, bool unpack) {
    columns_ = count;
    is_packed_ = !unpack;
    scales_.read(first, count);
    const uint8_t* const rows = packed_ + first * shape_.bytes();
    const int64_t stride = unpack ? shape_.padded() : shape_.bytes();
    if (unpack) {
      codes_.resize(static_cast<size_t>(count * stride));
      for (int64_t c = 0; c < count; ++c) {
        unpack_row(rows + c * shape_.bytes(), codes_.data() + c * stride);
      }
    }
    tiles_.resize(static_cast<size_t>((count + kTile - 1) / kTile));
    for (int64_t i = 0; i < static_cast<int64_t>(tiles_.size()) * kTile; ++i) {
      const int64_t column = std::min(i, count - 1);
      tiles_[i / kTile].weight[i % kTile] = (unpack ? codes_.data() : rows) + column * stride;
      tiles_[i / kTile].scale[i % kTile] = scales_[column];
    }
  }

  int64_t columns() const { return columns_; }

  // sums[r][i] of `count` <= kTile rows with columns [c, c + kTile).
  void multiply_tile(const uint8_t* const* rows, int64_t count, int64_t c, float (*sums)[kTile]) const {
    if (is_packed_) {
      multiply_tile_of<true>(rows, count, tiles_[c / kTile], sums);
    } else {
      multiply_tile_of<false>(rows, count, tiles_[c / kTile], sums);
    }
  }

 private:
  template <bool kPacked>
  void multiply_tile_of(const uint8_t* const* rows, int64_t count, const Tile& tile,
                        float (*sums)[kTile]) const {
    if (count == 1) {
      multiply<1, kPacked>(rows, tile, shape_, sums);
    } else if (count == 2) {
      multiply<2, kPacked>(rows, tile, shape_, sums);
    } else {
      multiply<kTile, kPacked>(rows, tile, shape_, sums);
    }
  }

  void unpack_row(const uint8_t* from, uint8_t* to) const {
    for (int64_t block = 0; block < shape_.blocks(); ++block) {
      const Bytes both = load_block(from, block * kBlockBytes, shape_.bytes());
      const Bytes halves[2] = {signed_nibbles(both & 15), signed_nibbles(both >> 4)};
      std::memcpy(to + block * kBlockCodes, halves, sizeof halves);
    }
  }

  Int4Shape shape_;
  const uint8_t* packed_;
  Scales scales_;
  std::vector<uint8_t> codes_;
  std::vector<Tile> tiles_;
  int64_t columns_ = 0;
  bool is_packed_ = true;
};

// All sums of `count` <= kTile activation rows with the columns of the panel.
void multiply_rows(const CodeRows& in, int64_t first, int64_t count, const Panel& panel,
                   float (*sums)[kColumns]) {
  const uint8_t* rows[kTile];
  for (int64_t r = 0; r < kTile; ++r) {
    rows[r] = in[first + std::min(r, count - 1)];
  }
  for (int64_t c = 0; c < panel.columns(); c += kTile) {
    float tile[kTile][kTile];
    panel.multiply_tile(rows, count, c, tile);
    for (int64_t r = 0; r < count; ++r) {
      std::copy_n(tile[r], std::min(kTile, panel.columns() - c), sums[r] + c);
    }
  }
}

// Four bytes at a time: of every eight the first four to the front half of
// their block.
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
                   ScalarType dtype, bool /*constant_weight*/) {
  const int64_t size = checked_linear_w4a8(x, x_code, knee, row_scale, weight, weight_scale, weight_sum,
                                           group_size, bias, code, dtype);
  const int64_t rows = x.numel() / size, columns = weight.size(0);
  const Int4Shape shape(size, group_size);
  const InputCode in(x_code, knee);
  const CodeEpilogue<float, float> finish{in, nullptr, pointer(row_scale), pointer(bias),
                                          weight_sum.const_data_ptr<float>()};
  Tensor y = torch::stable::new_empty(x, shape_with_last(x, columns), code ? ScalarType::Char : dtype);
  const CodeRows inputs(x, in, shape.padded(),
                        [&](const uint8_t* from, uint8_t* to) { arrange(from, to, shape); });
  const Sink sink(y, code);
  const int64_t per_row = in.per_row(), step = kTile / per_row;
  const int64_t row_blocks = (rows + kRows - 1) / kRows, column_blocks = (columns + kColumns - 1) / kColumns;
  const int64_t grain = kWork / (std::min(rows, kRows) * kColumns * size * per_row + 1) + 1;

  torch::stable::parallel_for(0, row_blocks * column_blocks, grain, [&](int64_t begin, int64_t end) {
    float sums[kTile][kColumns], result[kColumns];
    Panel panel(weight, weight_scale, shape);
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

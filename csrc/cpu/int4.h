// 4-bit weights as they lie in memory, and what multiplies them.
//
// Eight neighbouring codes take four bytes: low nibbles the first four, high
// nibbles the others. A register of 64 bytes thus holds 128 columns of a row, a
// block; its low nibbles, taken out at once, are the first four of every eight,
// and activations are brought into the same order beforehand. Rows are padded
// to whole blocks.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/lanes.h"
#include "cpu/rows.h"

namespace dualscale::cpu {

constexpr int64_t kBlockCodes = 128;
constexpr int64_t kBlockBytes = kBlockCodes / 2;

// The sizes of packed weights (N, depth / 2) with scales (N, groups). Divisions by the group size are shifts.
struct Int4Shape {
  int64_t depth, group_size;
  int shift = 0;
  Ints lanes{};  // which scale each lane of a block takes, counted from the block's first: it holds 8
                 // neighbours

  Int4Shape(int64_t inputs, int64_t size) : depth(inputs), group_size(size) {
    while ((int64_t{1} << shift) < size) {
      ++shift;
    }
    for (int64_t lane = 0; lane < kWide; ++lane) {
      lanes[lane] = static_cast<int32_t>((8 * lane) >> shift);
    }
  }

  int64_t bytes() const { return depth / 2; }
  int64_t blocks() const { return (depth + kBlockCodes - 1) / kBlockCodes; }
  int64_t padded() const { return blocks() * kBlockCodes; }
  int64_t groups() const { return (depth + group_size - 1) >> shift; }
  // Scales of one row as the kernels read them: of whole blocks, zeros behind the last, and room for a
  // register.
  int64_t scale_stride() const { return std::max(groups(), padded() >> shift) + kWide; }
};

// The scales of the 128 codes of a block.
DUALSCALE_INLINE Floats block_scale(const float* scales, int64_t block, int shift, Ints lanes) {
  return look_up(lanes, load<Floats>(scales + ((block * kBlockCodes) >> shift)));
}

// Codes as signed bytes.
DUALSCALE_INLINE Bytes signed_nibbles(Bytes low) { return (low ^ 8) - 8; }

// The block at `at` bytes of a row of `bytes`; past its end there are zeros.
DUALSCALE_INLINE Bytes load_block(const uint8_t* row, int64_t at, int64_t bytes) {
  return bytes - at >= kBlockBytes ? load<Bytes>(row + at) : load_part<Bytes>(row + at, bytes - at);
}

// Scales of rows of the weights as fp32, in the layout that block_scale reads.
class Scales {
 public:
  Scales(const Tensor& scale, const Int4Shape& shape) : source_(scale, std::nullopt), shape_(shape) {}

  // Reads those of rows [first, first + count).
  void read(int64_t first, int64_t count) {
    const int64_t groups = shape_.groups(), stride = shape_.scale_stride();
    dense_.resize(static_cast<size_t>(count * groups));
    spread_.assign(static_cast<size_t>(count * stride), 0.0f);
    const float* const from = source_.read(first * groups, 0, count * groups, dense_.data());
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(from + i * groups, groups, spread_.data() + i * stride);
    }
  }

  const float* operator[](int64_t i) const { return spread_.data() + i * shape_.scale_stride(); }

 private:
  Source source_;
  Int4Shape shape_;
  std::vector<float> dense_, spread_;
};

}  // namespace dualscale::cpu

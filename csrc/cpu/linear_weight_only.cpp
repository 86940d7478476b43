// Linear layers with floating-point activations and 8-bit or 4-bit weights,
// summed in fp32.
//
// One row, or a few, multiply weights that are decoded in registers on their
// way from memory. For many rows a block of columns is decoded into the
// second-level cache once, and the product is an ordinary one of fp32.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/int4.h"
#include "linear_checks.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kTile = 4;       // rows and columns of a register tile
constexpr int64_t kColumns = 32;   // columns of a task
constexpr int64_t kRows = 64;      // rows of a task
constexpr int64_t kManyRows = 24;  // that pay for decoding the weights of a task beforehand
constexpr int64_t kDepth = 1024;   // inputs that are decoded at once: the cache holds them
// Not a multiple of 4 KiB, which would put all columns into the same few lines of the first-level cache.
constexpr int64_t kPanelStride = kDepth + kWide;
constexpr int64_t kWork = 256 * 1024;  // products that pay for waking a thread

// Weights in 8 bits: a register takes 16 neighbours, and the scale is applied
// to the sums.
struct Int8Weight {
  static constexpr int64_t kStep = kWide, kTogether = 4;
  const int8_t* codes;
  const float* scale;
  int64_t depth;

  Int8Weight(const Tensor& weight, const Tensor& weight_scale)
      : codes(weight.const_data_ptr<int8_t>()),
        scale(weight_scale.const_data_ptr<float>()),
        depth(weight.size(1)) {}

  int64_t padded() const { return (depth + kStep - 1) / kStep * kStep; }
  void arrange(const float* from, float* to) const {
    std::memcpy(to, from, static_cast<size_t>(depth) * sizeof(float));
    std::fill(to + depth, to + padded(), 0.0f);
  }
  float finish(float sum, int64_t column) const { return sum * scale[column]; }

  // Reads columns of the weights.
  struct Reader {
    const Int8Weight& weight;
    void take(int64_t, int64_t) {}

    // Adds to total[r][i] the products of the rows with `column` at inputs [k,
    // k + kStep).
    template <int64_t kCount>
    DUALSCALE_INLINE void multiply(const float* const* rows, int64_t column, int64_t k,
                                   Floats (*total)[kTile], int64_t i) const {
      prefetch(weight.codes + (column + kAhead) * weight.depth + k);
      const Floats values = decode(column, k);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kCount; ++r) {
        total[r][i] = multiply_add(values, load<Floats>(rows[r] + k), total[r][i]);
      }
    }

    DUALSCALE_INLINE Floats decode(int64_t column, int64_t k) const {
      const int8_t* const from = weight.codes + column * weight.depth + k;
      const Codes16 codes =
          weight.depth - k >= kStep ? load<Codes16>(from) : load_part<Codes16>(from, weight.depth - k);
      return widen(codes);
    }

    DUALSCALE_INLINE void decode_step(int64_t column, int64_t k, float* to) const {
      const Floats values = decode(column, k);
      std::memcpy(to, &values, sizeof values);
    }
  };
};

// Weights in 4 bits: a register takes 128 neighbours, eight in each lane, and
// scales are applied lane by lane.
struct Int4Weight {
  static constexpr int64_t kStep = kBlockCodes, kTogether = 2;
  const uint8_t* packed;
  const Tensor& scale;
  Int4Shape shape;

  Int4Weight(const Tensor& weight, const Tensor& weight_scale, int64_t group_size)
      : packed(weight.const_data_ptr<uint8_t>()),
        scale(weight_scale),
        shape(2 * weight.size(1), group_size) {}

  int64_t padded() const { return shape.padded(); }
  // Nibble i of lane j holds code 8 j + i / 2, and 4 more where i is odd.
  static int64_t place(int64_t i) { return i / 2 + i % 2 * 4; }
  void arrange(const float* from, float* to) const {
    std::fill(to + shape.padded() - kBlockCodes, to + shape.padded(), 0.0f);
    for (int64_t k = 0; k < shape.depth; k += 8) {
      float* const block = to + k / kBlockCodes * kBlockCodes + k % kBlockCodes / 8;
      for (int64_t i = 0; i < 8; ++i) {
        block[i * kWide] = from[k + place(i)];
      }
    }
  }
  float finish(float sum, int64_t) const { return sum; }

  struct Reader {
    const Int4Weight& weight;
    Scales scales{weight.scale, weight.shape};
    int64_t first = 0;

    void take(int64_t n, int64_t columns) {
      first = n;
      scales.read(n, columns);
    }

    template <int64_t kCount>
    DUALSCALE_INLINE void multiply(const float* const* rows, int64_t column, int64_t k,
                                   Floats (*total)[kTile], int64_t to) const {
      const Ints packed = codes(column, k);
      prefetch(weight.packed + (column + kAhead) * weight.shape.bytes() + k / 2);
      Floats part[kCount] = {};
#pragma GCC unroll 8
      for (int64_t i = 0; i < 8; ++i) {
        const Floats values = nibble(packed, i);
#pragma GCC unroll 4
        for (int64_t r = 0; r < kCount; ++r) {
          part[r] = multiply_add(values, load<Floats>(rows[r] + k + i * kWide), part[r]);
        }
      }
      const Floats scale = scale_of(column, k);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kCount; ++r) {
        total[r][to] = multiply_add(part[r], scale, total[r][to]);
      }
    }

    DUALSCALE_INLINE void decode_step(int64_t column, int64_t k, float* to) const {
      const Ints packed = codes(column, k);
      const Floats scale = scale_of(column, k);
#pragma GCC unroll 8
      for (int64_t i = 0; i < 8; ++i) {
        const Floats values = nibble(packed, i) * scale;
        std::memcpy(to + i * kWide, &values, sizeof values);
      }
    }

    DUALSCALE_INLINE Ints codes(int64_t column, int64_t k) const {
      const int64_t bytes = weight.shape.bytes();
      return (Ints)load_block(weight.packed + column * bytes, k / 2, bytes);
    }
    DUALSCALE_INLINE static Floats nibble(Ints packed, int64_t i) {
      const Floats values = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
      return look_up(packed >> static_cast<int>(4 * i), values);
    }
    DUALSCALE_INLINE Floats scale_of(int64_t column, int64_t k) const {
      return block_scale(scales[column - first], k / kBlockCodes, weight.shape.shift, weight.shape.lanes);
    }
  };
};

// Activations as fp32 rows, in the order of the weights, padded with zeros.
template <typename Weight>
class FloatRows {
 public:
  FloatRows(const Tensor& x, const Weight& weight) : stride_(weight.padded()) {
    const RowOffsets offsets(x);
    const Source source(x, std::nullopt);
    const int64_t size = x.size(x.dim() - 1);
    data_.reset(new float[static_cast<size_t>(offsets.rows() * stride_)]);
    torch::stable::parallel_for(0, offsets.rows(), kWork / size + 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<size_t>(size));
      for (int64_t row = begin; row < end; ++row) {
        weight.arrange(source.read(offsets(row), 0, size, scratch.data()), data_.get() + row * stride_);
      }
    });
  }

  const float* operator[](int64_t row) const { return data_.get() + row * stride_; }

 private:
  int64_t stride_;
  std::unique_ptr<float[]> data_;
};

// sums[r][c] for columns [n, n + columns), decoded on the way.
template <int64_t kCount, typename Weight>
__attribute__((noinline)) void multiply_tile(const float* const* rows, const typename Weight::Reader& reader,
                                             int64_t depth, int64_t n, int64_t columns,
                                             float (*sums)[kColumns]) {
  const float* const row[kTile] = {rows[0], rows[1 % kCount], rows[2 % kCount], rows[3 % kCount]};
  for (int64_t c = 0; c < columns; c += Weight::kTogether) {
    Floats total[kCount][kTile] = {};
    for (int64_t k = 0; k < depth; k += Weight::kStep) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < Weight::kTogether; ++i) {
        reader.template multiply<kCount>(row, n + std::min(c + i, columns - 1), k, total, i);
      }
    }
#pragma GCC unroll 4
    for (int64_t r = 0; r < kCount; ++r) {
      float four[kTile];
      sum_four(total[r], four);
      std::copy_n(four, std::min(Weight::kTogether, columns - c), sums[r] + c);
    }
  }
}

// sums[r][c] = rows[r] . columns[c] over `depth` inputs.
__attribute__((noinline)) void multiply(const float* const* rows, const float* const* columns, int64_t depth,
                                        float (*sums)[kTile]) {
  const float* const row[kTile] = {rows[0], rows[1], rows[2], rows[3]};
  const float* const column[kTile] = {columns[0], columns[1], columns[2], columns[3]};
  Floats total[kTile][kTile] = {};
  for (int64_t k = 0; k < depth; k += kWide) {
    Floats values[kTile];
#pragma GCC unroll 4
    for (int64_t c = 0; c < kTile; ++c) {
      values[c] = load<Floats>(column[c] + k);
      pin(values[c]);
    }
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTile; ++r) {
      Floats x = load<Floats>(row[r] + k);
      pin(x);
#pragma GCC unroll 4
      for (int64_t c = 0; c < kTile; ++c) {
        total[r][c] = multiply_add(x, values[c], total[r][c]);
      }
    }
  }
#pragma GCC unroll 4
  for (int64_t r = 0; r < kTile; ++r) {
    sum_four(total[r], sums[r]);
  }
}

// sums[r][c] of `count` rows from `first` with `columns` <= kColumns decoded
// columns, over `depth` inputs from k.
template <typename Weight>
void add_products(const FloatRows<Weight>& in, int64_t first, int64_t count, const float* panel,
                  int64_t columns, int64_t k, int64_t depth, float (*sums)[kColumns]) {
  for (int64_t r = 0; r < count; r += kTile) {
    for (int64_t c = 0; c < columns; c += kTile) {
      const float *rows[kTile], *parts[kTile];
      for (int64_t i = 0; i < kTile; ++i) {
        rows[i] = in[first + std::min(r + i, count - 1)] + k;
        parts[i] = panel + std::min(c + i, columns - 1) * kPanelStride;
      }
      float tile[kTile][kTile];
      multiply(rows, parts, depth, tile);
      for (int64_t i = 0; i < std::min(kTile, count - r); ++i) {
        for (int64_t j = 0; j < std::min(kTile, columns - c); ++j) {
          sums[r + i][c + j] += tile[i][j];
        }
      }
    }
  }
}

template <typename Weight>
void multiply_many(const FloatRows<Weight>& in, int64_t first, int64_t count,
                   const typename Weight::Reader& reader, int64_t n, int64_t columns,
                   std::vector<float>& panel, float (*sums)[kColumns]) {
  const int64_t depth = reader.weight.padded();
  panel.resize(static_cast<size_t>(kColumns * kPanelStride));
  std::fill(sums[0], sums[count], 0.0f);
  for (int64_t start = 0; start < depth; start += kDepth) {
    const int64_t size = std::min(kDepth, depth - start);
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t k = 0; k < size; k += Weight::kStep) {
        reader.decode_step(n + c, start + k, panel.data() + c * kPanelStride + k);
      }
    }
    add_products(in, first, count, panel.data(), columns, start, size, sums);
  }
}

template <typename Weight>
void multiply_few(const FloatRows<Weight>& in, int64_t first, int64_t count,
                  const typename Weight::Reader& reader, int64_t n, int64_t columns,
                  float (*sums)[kColumns]) {
  for (int64_t r = 0; r < count; r += kTile) {
    const int64_t together = std::min(kTile, count - r);
    const float* rows[kTile];
    for (int64_t i = 0; i < kTile; ++i) {
      rows[i] = in[first + r + std::min(i, together - 1)];
    }
    const int64_t depth = reader.weight.padded();
    if (together == 1) {
      multiply_tile<1, Weight>(rows, reader, depth, n, columns, sums + r);
    } else if (together == 2) {
      multiply_tile<2, Weight>(rows, reader, depth, n, columns, sums + r);
    } else {
      multiply_tile<kTile, Weight>(rows, reader, depth, n, columns, sums + r);
    }
  }
}

template <typename Weight>
Tensor product(const Tensor& x, const Weight& weight, int64_t columns, const OptionalTensor& bias,
               const OptionalTensor& code, ScalarType dtype) {
  const int64_t size = x.size(x.dim() - 1), rows = x.numel() / size;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = columns;
  Tensor y = torch::stable::new_empty(x, shape, code ? ScalarType::Char : dtype);
  const FloatRows<Weight> inputs(x, weight);
  const Sink sink(y, code);
  const float* const offset = pointer(bias);
  const int64_t row_blocks = (rows + kRows - 1) / kRows, column_blocks = (columns + kColumns - 1) / kColumns;
  const int64_t grain = kWork / (std::min(rows, kRows) * kColumns * size + 1) + 1;

  torch::stable::parallel_for(0, row_blocks * column_blocks, grain, [&](int64_t begin, int64_t end) {
    float sums[kRows + kTile][kColumns];
    std::vector<float> panel;
    typename Weight::Reader reader{weight};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task % column_blocks * kColumns, count = std::min(kColumns, columns - n);
      const int64_t first = task / column_blocks * kRows, together = std::min(rows - first, kRows);
      reader.take(n, count);
      if (together > kManyRows) {
        multiply_many(inputs, first, together, reader, n, count, panel, sums);
      } else {
        multiply_few(inputs, first, together, reader, n, count, sums);
      }
      for (int64_t r = 0; r < together; ++r) {
        for (int64_t i = 0; i < count; ++i) {
          sums[r][i] = weight.finish(sums[r][i], n + i) + (offset ? offset[n + i] : 0.0f);
        }
        sink.write(sums[r], (first + r) * columns, n, count);
      }
    }
  });
  return y;
}

Tensor linear_w8a16(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                    const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype,
                    bool /*constant_weight*/) {
  checked_linear_w8a16(x, weight, weight_scale, bias, code, dtype);
  return product(x, Int8Weight(weight, weight_scale), weight.size(0), bias, code, dtype);
}

Tensor linear_w4a16(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, int64_t group_size,
                    const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype,
                    bool /*constant_weight*/) {
  checked_linear_w4a16(x, weight, weight_scale, group_size, bias, code, dtype);
  return product(x, Int4Weight(weight, weight_scale, group_size), weight.size(0), bias, code, dtype);
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("linear_w8a16", TORCH_BOX(&dualscale::cpu::linear_w8a16));
  m.impl("linear_w4a16", TORCH_BOX(&dualscale::cpu::linear_w4a16));
}

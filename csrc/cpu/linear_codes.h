// int8 activations of a linear layer: stored for the machine's dot product, and
// the way back from its sums.
//
// The dot product multiplies unsigned by signed bytes, so activations are
// stored as q + 128 and the surplus of 128 * weight_sum is taken off at the
// end, together with the zero point. The knee term is a second row of
// activations, max(q - knee, 0), which lies in 0..255 too: the kernel sees
// twice the rows and the same weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/rows.h"

namespace dualscale::cpu {

constexpr int64_t kWork = 512 * 1024;  // products that pay for waking a thread

// The code of the activations as a linear layer needs it.
struct InputCode {
  double zero = 128.0;  // of the stored activations
  double gain = 0.0, lift = 0.0;
  float scale = 1.0f;
  bool has_knee = false;
  int32_t knee = 0;

  InputCode(const OptionalTensor& x_code, bool knee_term) {
    if (!x_code) {
      return;
    }
    const Knee in = Knee::load(x_code->const_data_ptr<float>());
    zero += in.zero;
    scale = in.scale;
    has_knee = knee_term;
    if (knee_term) {
      // A knee below all codes is lifted to the lowest; what that takes off is
      // a multiple of the weight sums.
      knee = static_cast<int32_t>(std::floor(min_of(max_of(in.knee, -128.0f), 127.0f)));
      gain = in.gain;
      lift = in.knee < -128.0f ? -128.0 - in.knee : 0.0;
    }
  }

  // Rows of bytes for each row of x.
  int64_t per_row() const { return has_knee ? 2 : 1; }
};

// What turns sums of products with stored activations into the result. Without
// weight_scale it is in the sums.
template <typename Sum, typename WeightSum>
struct CodeEpilogue {
  const InputCode& in;
  const float *weight_scale, *row_scale, *bias;
  const WeightSum* weight_sum;

  float operator()(Sum plain, Sum above_knee, int64_t row, int64_t column) const {
    const double sum = weight_sum[column];
    const double above = static_cast<double>(above_knee) + in.lift * sum;
    const double total = (static_cast<double>(plain) - in.zero * sum) + in.gain * above;
    float y = static_cast<float>(total) * (weight_scale ? in.scale * weight_scale[column] : in.scale);
    y = row_scale ? y * row_scale[row] : y;
    return bias ? y + bias[column] : y;
  }
};

// Activations as the kernel wants them: one row, or with a knee two, for each
// row of x. `arrange` may reorder a row of K bytes (from, to); rows are
// `stride` >= K bytes apart.
class CodeRows {
 public:
  template <typename Arrange>
  CodeRows(const Tensor& x, const InputCode& code, int64_t stride, Arrange arrange)
      : stride_(stride), per_row_(code.per_row()) {
    const RowOffsets offsets(x);
    const int8_t* const codes = x.const_data_ptr<int8_t>();
    data_.reset(new uint8_t[static_cast<size_t>(offsets.rows() * per_row_ * stride)]);
    // Copies, because a byte that is written might be any member.
    uint8_t* const data = data_.get();
    const int64_t size = x.size(x.dim() - 1), per_row = per_row_;
    const int32_t lowest = code.knee;
    torch::stable::parallel_for(0, offsets.rows(), kWork / size + 1, [&, data](int64_t begin, int64_t end) {
      std::vector<uint8_t> scratch(static_cast<size_t>(size));
      uint8_t* const bytes = scratch.data();
      for (int64_t row = begin; row < end; ++row) {
        const int8_t* const in = codes + offsets(row);
#pragma omp simd
        for (int64_t k = 0; k < size; ++k) {
          bytes[k] = static_cast<uint8_t>(in[k] ^ 0x80);
        }
        arrange(bytes, data + row * per_row * stride);
        if (per_row == 2) {
#pragma omp simd
          for (int64_t k = 0; k < size; ++k) {
            bytes[k] = static_cast<uint8_t>(std::max<int32_t>(in[k] - lowest, 0));
          }
          arrange(bytes, data + (row * per_row + 1) * stride);
        }
      }
    });
  }

  int64_t per_row() const { return per_row_; }
  const uint8_t* operator[](int64_t index) const { return data_.get() + index * stride_; }

 private:
  int64_t stride_, per_row_;
  std::unique_ptr<uint8_t[]> data_;
};

// Sizes of the result of a linear layer.
inline std::vector<int64_t> shape_with_last(const Tensor& x, int64_t columns) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = columns;
  return shape;
}

}  // namespace dualscale::cpu

// The common end of the operators that finish a whole row at once: static code, one scale a row, or floating
// point.
#pragma once

#include <algorithm>
#include <cmath>

#include "checks.h"
#include "cpu/rows.h"

namespace dualscale::cpu {

// The outputs of such an operator.
struct RowCodes {
  Tensor y, row_scale;

  RowCodes(const Tensor& x, const OptionalTensor& code, bool per_token, int64_t rows, ScalarType dtype)
      : y(empty_of(x, code || per_token ? ScalarType::Char : dtype)),
        row_scale(torch::stable::new_empty(x, {per_token ? rows : 0}, ScalarType::Float)) {}
};

// Writes finished fp32 rows.
class RowWriter {
 public:
  RowWriter(RowCodes& to, const OptionalTensor& code, bool per_token, int64_t channels)
      : sink_(to.y, code),
        codes_(per_token ? to.y.mutable_data_ptr<int8_t>() : nullptr),
        scales_(per_token ? to.row_scale.mutable_data_ptr<float>() : nullptr),
        channels_(channels) {}

  void write(const float* row, int64_t index) const {
    if (!codes_) {
      sink_.write(row, index * channels_, 0, channels_);
      return;
    }
    float largest = 0.0f;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < channels_; ++i) {
      largest = max_of(largest, std::fabs(row[i]));
    }
    const float scale = max_of(largest, 1e-12f) / 127.0f;
    int8_t* const out = codes_ + index * channels_;
#pragma omp simd
    for (int64_t i = 0; i < channels_; ++i) {
      const float t = row[i] == row[i] ? row[i] / scale : 0.0f;
      out[i] = static_cast<int8_t>(static_cast<int32_t>(round_half_away(min_of(max_of(t, -127.0f), 127.0f))));
    }
    scales_[index] = scale;
  }

 private:
  Sink sink_;
  int8_t* codes_;
  float* scales_;
  int64_t channels_;
};

}  // namespace dualscale::cpu

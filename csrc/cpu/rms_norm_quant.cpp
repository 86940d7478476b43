// Residual add + RMSNorm + encode, one row a task.
#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "cpu/row_codes.h"
#include "cpu/rows.h"
#include "cpu/vector_math.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // values of a task

// In kParts sums that are added at the end: as exact on a machine without vectors as on one with wide ones.
float sum_of_squares(const float* row, int64_t n) {
  constexpr int64_t kParts = 64;
  alignas(64) float parts[kParts] = {};
  for (int64_t start = 0; start < n; start += kParts) {
    const int64_t count = std::min(kParts, n - start);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      parts[i] = fma_of(row[start + i], row[start + i], parts[i]);
    }
  }
  for (int64_t width = kParts / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) {
      parts[i] += parts[i + width];
    }
  }
  return parts[0];
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_quant(const Tensor& x, const OptionalTensor& residual,
                                                  const Tensor& weight, double eps,
                                                  const OptionalTensor& code, bool per_token,
                                                  ScalarType residual_dtype, ScalarType dtype) {
  const char* op = "rms_norm_quant";
  const int64_t channels = checked_norm(op, x, residual, weight, code, per_token, residual_dtype, dtype);

  const RowOffsets offsets(x), residual_offsets(residual ? *residual : x);
  const int64_t rows = offsets.rows();
  RowCodes result(x, code, per_token, rows, dtype);
  Tensor total = empty_of(x, residual_dtype);
  const RowWriter writer(result, code, per_token, channels);
  const Source inputs(x, std::nullopt), before(residual ? *residual : x, std::nullopt),
      rounded(total, std::nullopt);
  const Sink totals(total, std::nullopt);
  const float* const gains = weight.const_data_ptr<float>();

  torch::stable::parallel_for(0, rows, kGrain / channels + 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(static_cast<size_t>(2 * channels));
    float *const sum = buffer.data(), *const scratch = sum + channels;
    for (int64_t row = begin; row < end; ++row) {
      const float* value = inputs.read(offsets(row), 0, channels, scratch);
      std::copy(value, value + channels, sum);
      if (residual) {
        value = before.read(residual_offsets(row), 0, channels, scratch);
#pragma omp simd
        for (int64_t i = 0; i < channels; ++i) {
          sum[i] += value[i];
        }
      }
      totals.write(sum, row * channels, 0, channels);
      // The norm sees what the next layer will see: the residual as it was stored.
      value = rounded.read(row * channels, 0, channels, scratch);
      const float mean = sum_of_squares(value, channels) / static_cast<float>(channels);
      const float inverse = 1.0f / std::sqrt(mean + static_cast<float>(eps));
#pragma omp simd
      for (int64_t i = 0; i < channels; ++i) {
        sum[i] = value[i] * inverse * gains[i];
      }
      writer.write(sum, row);
    }
  });
  return {result.y, total, result.row_scale};
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("rms_norm_quant", TORCH_BOX(&dualscale::cpu::rms_norm_quant));
}

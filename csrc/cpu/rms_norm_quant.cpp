// Residual add or gate + RMSNorm + encode, by rows.
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

// out = value / rms(value) * gains, where out may be value.
void normalize(const float* value, const float* gains, int64_t n, double eps, float* out) {
  const float mean = sum_of_squares(value, n) / static_cast<float>(n);
  const float inverse = 1.0f / std::sqrt(mean + static_cast<float>(eps));
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    out[i] = value[i] * inverse * gains[i];
  }
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
      inputs.copy(offsets(row), 0, channels, sum);
      const float* value = sum;
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
      normalize(value, gains, channels, eps, sum);
      writer.write(sum, row);
    }
  });
  return {result.y, total, result.row_scale};
}

std::tuple<Tensor, Tensor> gated_rms_norm_quant(const Tensor& x, const Tensor& z,
                                                const OptionalTensor& z_code, const Tensor& weight,
                                                double eps, int64_t group_size, bool norm_before_gate,
                                                const OptionalTensor& code, bool per_token,
                                                ScalarType dtype) {
  const char* op = "gated_rms_norm_quant";
  const int64_t channels = checked_gated_norm(op, x, z, z_code, weight, group_size, code, per_token, dtype);

  const RowOffsets offsets(x), gate_offsets(z);
  const int64_t rows = offsets.rows();
  RowCodes result(x, code, per_token, rows, dtype);
  const RowWriter writer(result, code, per_token, channels);
  const Source inputs(x, std::nullopt), gates(z, z_code);
  const float* const gains = weight.const_data_ptr<float>();

  torch::stable::parallel_for(0, rows, kGrain / channels + 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(static_cast<size_t>(2 * channels));
    float *const y = buffer.data(), *const gate = y + channels;
    const auto apply_gate = [&] {
#pragma omp simd
      for (int64_t i = 0; i < channels; ++i) {
        y[i] *= gate[i];
      }
    };
    for (int64_t row = begin; row < end; ++row) {
      const float* const value = gates.read(gate_offsets(row), 0, channels, gate);
#pragma omp simd
      for (int64_t i = 0; i < channels; ++i) {
        gate[i] = silu_of(value[i]);
      }
      inputs.copy(offsets(row), 0, channels, y);
      if (!norm_before_gate) {
        apply_gate();
      }
      for (int64_t c = 0; c < channels; c += group_size) {
        normalize(y + c, gains + c, group_size, eps, y + c);
      }
      if (norm_before_gate) {
        apply_gate();
      }
      writer.write(y, row);
    }
  });
  return {result.y, result.row_scale};
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("rms_norm_quant", TORCH_BOX(&dualscale::cpu::rms_norm_quant));
  m.impl("gated_rms_norm_quant", TORCH_BOX(&dualscale::cpu::gated_rms_norm_quant));
}

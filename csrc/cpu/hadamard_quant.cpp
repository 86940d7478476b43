// x (base (x) H_{2^k})^T / sqrt(C), then encode; one row a task.
//
// The stages of H_{2^k} commute. Those between values of one register are a shuffle and a multiply-add; the
// others combine registers. `base` then mixes the m parts of the row.
#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "cpu/row_codes.h"
#include "cpu/rows.h"
#include "cpu/vector_math.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kGrain = 4096;  // values of a task
constexpr int64_t kTile = 4 * kLanes;

// The stage that combines lanes whose numbers differ by kDistance.
template <int kDistance>
Vec combine_lanes(Vec v) {
  Vec sign;
  IntVec partner;
  for (int i = 0; i < kLanes; ++i) {
    sign[i] = i & kDistance ? -1.0f : 1.0f;
    partner[i] = i ^ kDistance;
  }
  return fma_of(v, sign, __builtin_shuffle(v, partner));
}

// H_n of each run of n values in place, n a power of two.
void transform(float* row, int64_t channels, int64_t n) {
  int64_t width = 1;
  if (n >= kLanes) {
    for (int64_t i = 0; i < channels; i += kLanes) {
      Vec v = combine_lanes<1>(load_vec(row + i));
      v = combine_lanes<2>(v);
      v = kLanes > 4 ? combine_lanes<(kLanes > 4 ? 4 : 1)>(v) : v;
      v = kLanes > 8 ? combine_lanes<(kLanes > 8 ? 8 : 1)>(v) : v;
      store_vec(row + i, v);
    }
    width = kLanes;
  }
  for (; width < n; width *= 2) {
    for (int64_t start = 0; start < channels; start += 2 * width) {
      float *const low = row + start, *const high = low + width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a + b;
        high[i] = a - b;
      }
    }
  }
}

// out = (base (x) I_n) row * factor; row holds m parts of n values.
void mix(const float* base, int64_t m, const float* row, int64_t n, float factor, float* out) {
  for (int64_t start = 0; start < n; start += kTile) {
    const int64_t count = std::min(kTile, n - start);
    for (int64_t i = 0; i < m; ++i) {
      alignas(64) float sum[kTile] = {};
      for (int64_t j = 0; j < m; ++j) {
        const float sign = base[i * m + j];
        const float* const part = row + j * n + start;
#pragma omp simd
        for (int64_t l = 0; l < count; ++l) {
          sum[l] = fma_of(sign, part[l], sum[l]);
        }
      }
      for (int64_t l = 0; l < count; ++l) {
        out[i * n + start + l] = sum[l] * factor;
      }
    }
  }
}

std::tuple<Tensor, Tensor> hadamard_quant(const Tensor& x, const Tensor& base, const OptionalTensor& code,
                                          bool per_token, ScalarType dtype) {
  const char* op = "hadamard_quant";
  const int64_t channels = checked_hadamard(op, x, base, code, per_token, dtype);
  const int64_t m = base.size(0);

  const RowOffsets offsets(x);
  RowCodes result(x, code, per_token, offsets.rows(), dtype);
  const RowWriter writer(result, code, per_token, channels);
  const Source inputs(x, std::nullopt);
  const float* const signs = base.const_data_ptr<float>();
  const float factor = 1.0f / std::sqrt(static_cast<float>(channels));

  torch::stable::parallel_for(0, offsets.rows(), kGrain / channels + 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(static_cast<size_t>(2 * channels));
    float *const row = buffer.data(), *const mixed = row + channels;
    for (int64_t index = begin; index < end; ++index) {
      const float* const value = inputs.read(offsets(index), 0, channels, row);
      if (value != row) {
        std::copy(value, value + channels, row);
      }
      transform(row, channels, channels / m);
      mix(signs, m, row, channels / m, factor, mixed);
      writer.write(mixed, index);
    }
  });
  return {result.y, result.row_scale};
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("hadamard_quant", TORCH_BOX(&dualscale::cpu::hadamard_quant));
}

// Causal depthwise convolution + bias + SiLU + encode, for a sequence and for one token.
//
// Each input row is decoded once, into a ring of fp32 rows that stays in the first-level cache; the taps then
// run over channels.
#include <algorithm>
#include <cstring>

#include "checks.h"
#include "cpu/rows.h"
#include "cpu/selectors.h"
#include "cpu/vector_math.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kMaxWidth = 4;
// Tokens of one task: the W - 1 rows before them are decoded twice, which this makes cheap.
constexpr int64_t kTokens = 64;

// Taps and bias of one block of channels, taps first, so that channels are neighbours.
struct Taps {
  float weight[kMaxWidth][kBlock];
  float bias[kBlock];

  Taps(const float* from, const float* from_bias, int64_t width, int64_t c, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < width; ++k) {
        weight[k][i] = from[(c + i) * width + k];
      }
      bias[i] = from_bias ? from_bias[c + i] : 0.0f;
    }
  }

  // out = SiLU(bias + sum of taps); rows[k] is the input W - 1 - k tokens ago.
  template <int64_t kWidth>
  void apply(const float* const* rows, int64_t n, float* out) const {
    const float *first = rows[0], *second = rows[1], *third = rows[kWidth > 2 ? 2 : 0],
                *last = rows[kWidth - 1];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      float sum = fma_of(weight[0][i], first[i], bias[i]);
      if (kWidth > 2) {
        sum = fma_of(weight[1][i], second[i], sum);
      }
      if (kWidth > 3) {
        sum = fma_of(weight[2][i], third[i], sum);
      }
      out[i] = silu_of(fma_of(weight[kWidth - 1][i], last[i], sum));
    }
  }

  void apply(int64_t width, const float* const* rows, int64_t n, float* out) const {
    switch (width) {
      case 2:
        return apply<2>(rows, n, out);
      case 3:
        return apply<3>(rows, n, out);
      default:
        return apply<4>(rows, n, out);
    }
  }
};

void check_taps(const char* op, const Tensor& weight, const OptionalTensor& bias, int64_t channels,
                const Tensor& x) {
  check_dim({op, "weight"}, weight, 2);
  if (weight.size(1) < 2 || weight.size(1) > kMaxWidth) {
    refuse({op, "weight"}, "has " + std::to_string(weight.size(1)) + " taps", "2, 3 or 4");
  }
  check_parameter({op, "weight"}, weight, {channels, weight.size(1)}, x);
  check_parameter({op, "bias"}, bias, {channels}, x);
}

void check_result(const char* op, const OptionalTensor& code, int64_t channels, ScalarType dtype,
                  const Tensor& x) {
  check_code({op, "code"}, code, channels, Codes::kAnyOrPair, x);
  if (!code) {
    check_result_type({op, "dtype"}, dtype);
  }
}

// `initial` and `state` continue x: same type, (B, W - 1, C).
void check_history(const Argument& argument, const Tensor& history, const Tensor& x, int64_t width) {
  check_type(argument, history, x.scalar_type());
  check_shape(argument, history, {x.size(0), width - 1, x.size(x.dim() - 1)});
  check_same_device(argument, history, x);
  check_last_stride(argument, history);
}

Tensor causal_conv1d_encode(const Tensor& x, const OptionalTensor& x_code, const Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& initial,
                            const OptionalTensor& code, ScalarType dtype, const OptionalTensor& mask,
                            const OptionalTensor& outliers) {
  const char* op = "causal_conv1d_encode";
  check_dim({op, "x"}, x, 3);
  check_channels({op, "x"}, x);
  check_activation({op, "x"}, x, x_code, Codes::kKneeOneRow, x);
  const int64_t batch = x.size(0), length = x.size(1), channels = x.size(2);
  check_taps(op, weight, bias, channels, x);
  const int64_t width = weight.size(1);
  if (initial) {
    check_history({op, "initial"}, *initial, x, width);
  }
  check_result(op, code, channels, dtype, x);
  SelectorSink selectors(checked_selectors(op, "mask", "outliers", code, mask, outliers, length, channels, x),
                         batch);

  Tensor y = empty_of(x, code ? ScalarType::Char : dtype);
  const Source inputs(x, x_code), history(initial ? *initial : x, x_code);
  const Sink outputs(y, code);
  const float *taps = weight.const_data_ptr<float>(), *offset = pointer(bias);
  const int64_t x_batch = x.stride(0), x_token = x.stride(1);
  const int64_t h_batch = initial ? initial->stride(0) : 0, h_token = initial ? initial->stride(1) : 0;
  const int64_t blocks = (channels + kBlock - 1) / kBlock, chunks = (length + kTokens - 1) / kTokens;

  torch::stable::parallel_for(0, batch * chunks * blocks, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float ring[kMaxWidth][kBlock], zeros[kBlock] = {}, result[kBlock];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c = task % blocks * kBlock, n = std::min(kBlock, channels - c);
      const int64_t b = task / blocks / chunks, start = task / blocks % chunks * kTokens;
      const Taps block(taps, offset, width, c, n);
      const float* rows[kMaxWidth];
      const auto fetch = [&](int64_t t) -> const float* {
        float* scratch = ring[(t + kMaxWidth) % kMaxWidth];
        if (t >= 0) {
          return inputs.read(b * x_batch + t * x_token, c, n, scratch);
        }
        return initial ? history.read(b * h_batch + (t + width - 1) * h_token, c, n, scratch) : zeros;
      };
      for (int64_t k = 1; k < width; ++k) {
        rows[k] = fetch(start + k - width);
      }
      for (int64_t t = start; t < std::min(length, start + kTokens); ++t) {
        for (int64_t k = 1; k < width; ++k) {
          rows[k - 1] = rows[k];
        }
        rows[width - 1] = fetch(t);
        block.apply(width, rows, n, result);
        if (uint8_t* const bits = selectors.row(b, t)) {
          outputs.write_pair(result, (b * length + t) * channels, c, n, bits);
        } else {
          outputs.write(result, (b * length + t) * channels, c, n);
        }
      }
    }
  });
  selectors.finish();
  return y;
}

Tensor causal_conv1d_update(const Tensor& x, const OptionalTensor& x_code, Tensor state, const Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& code, ScalarType dtype,
                            const OptionalTensor& mask, const OptionalTensor& outliers) {
  const char* op = "causal_conv1d_update";
  check_dim({op, "x"}, x, 2);
  check_channels({op, "x"}, x);
  check_activation({op, "x"}, x, x_code, Codes::kKneeOneRow, x);
  const int64_t batch = x.size(0), channels = x.size(1);
  check_taps(op, weight, bias, channels, x);
  const int64_t width = weight.size(1);
  check_history({op, "state"}, state, x, width);
  check_result(op, code, channels, dtype, x);
  SelectorSink selectors(checked_selectors(op, "mask", "outliers", code, mask, outliers, 1, channels, x),
                         batch);

  Tensor y = empty_of(x, code ? ScalarType::Char : dtype);
  const Source inputs(x, x_code), history(state, x_code);
  const Sink outputs(y, code);
  const float *taps = weight.const_data_ptr<float>(), *offset = pointer(bias);
  char* const state_bytes = static_cast<char*>(state.mutable_data_ptr());
  const char* const x_bytes = static_cast<const char*>(x.const_data_ptr());
  const int64_t size = static_cast<int64_t>(x.element_size());
  const int64_t x_batch = x.stride(0), s_batch = state.stride(0), s_token = state.stride(1);
  const int64_t blocks = (channels + kBlock - 1) / kBlock;

  torch::stable::parallel_for(0, batch * blocks, 8, [&](int64_t begin, int64_t end) {
    alignas(64) float scratch[kMaxWidth][kBlock], result[kBlock];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / blocks, c = task % blocks * kBlock, n = std::min(kBlock, channels - c);
      const Taps block(taps, offset, width, c, n);
      const float* rows[kMaxWidth];
      for (int64_t k = 0; k < width - 1; ++k) {
        rows[k] = history.read(b * s_batch + k * s_token, c, n, scratch[k]);
      }
      rows[width - 1] = inputs.read(b * x_batch, c, n, scratch[width - 1]);
      block.apply(width, rows, n, result);
      if (uint8_t* const bits = selectors.row(b, 0)) {
        outputs.write_pair(result, b * channels, c, n, bits);
      } else {
        outputs.write(result, b * channels, c, n);
      }
      const auto at = [&](int64_t k) { return state_bytes + (b * s_batch + k * s_token + c) * size; };
      for (int64_t k = 1; k < width - 1; ++k) {
        std::memcpy(at(k - 1), at(k), static_cast<size_t>(n * size));
      }
      std::memcpy(at(width - 2), x_bytes + (b * x_batch + c) * size, static_cast<size_t>(n * size));
    }
  });
  selectors.finish();
  return y;
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("causal_conv1d_encode", TORCH_BOX(&dualscale::cpu::causal_conv1d_encode));
  m.impl("causal_conv1d_update", TORCH_BOX(&dualscale::cpu::causal_conv1d_update));
}

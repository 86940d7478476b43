// State space duality (Dao & Gu 2024) as its recurrence, for a sequence and for one token.
//
// A task is one batch entry and a run of channels that share B and C, walked in chunks of tokens: first the
// inputs of the chunk are decoded and the steps of each head are spread over its channels; then a few rows of
// the state at a time stay in registers for all tokens of the chunk. States are the lanes.
//
// The state is kept divided by `scale`, the product of the decays since it was 1, so that a token costs two
// multiply-adds a state and no third operation for the decay: with g = h / scale,
//   g += input / scale * B, y = scale * (g C).
// Before the scale leaves [kLeastScale, 1 / kLeastScale] the state takes it in. Every quotient is as exact as
// the product that it replaces.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/rows.h"
#include "cpu/vector_math.h"
#include "ssd_checks.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kChannels = 256;    // of a task, at most: B and C are decoded once for all of them
constexpr int64_t kFewChannels = 16;  // of a task, at least
constexpr int64_t kTokens = 32;       // of a chunk
constexpr int64_t kGrain = 32768;     // states times tokens that are worth a thread
constexpr int64_t kAlignment = 16;    // fp32 values of a cache line
constexpr float kLeastScale = 1.0f / (1 << 30);

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// An activation (batch, length, C), or (batch, C) for one token.
class Activation {
 public:
  Activation(const Tensor& tensor, const OptionalTensor& code)
      : source_(tensor, code), batch_(tensor.stride(0)), token_(tensor.dim() == 3 ? tensor.stride(1) : 0) {}

  // n values from channel c on: as fp32, in `scratch` or in place.
  const float* read(int64_t b, int64_t t, int64_t c, int64_t n, float* scratch) const {
    return source_.read(b * batch_ + t * token_, c, n, scratch);
  }

  // The same, in `to` in any case.
  void copy(int64_t b, int64_t t, int64_t c, int64_t n, float* to) const {
    source_.copy(b * batch_ + t * token_, c, n, to);
  }

 private:
  Source source_;
  int64_t batch_, token_;
};

// Where the N states of a channel lie in a tensor (batch, heads, P, N).
class StateRows {
 public:
  explicit StateRows(const Tensor& tensor)
      : batch_(tensor.stride(0)),
        head_(tensor.stride(1)),
        row_(tensor.stride(2)),
        head_dim_(tensor.size(2)) {}

  int64_t operator()(int64_t b, int64_t channel) const {
    return b * batch_ + channel / head_dim_ * head_ + channel % head_dim_ * row_;
  }

 private:
  int64_t batch_, head_, row_, head_dim_;
};

// The channels of a task, and their heads.
struct Run {
  int64_t b, group, channel, channels, head, heads;
};

// How the work is cut: `blocks` runs of `width` channels for each batch entry and group.
struct Tasks {
  SsdSizes sizes;
  int64_t width, blocks;

  explicit Tasks(const SsdSizes& s) : sizes(s) {
    const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
    width = std::min(kChannels, rounded_up(of_a_group(), kAlignment));
    const auto count = [&] { return s.batch * s.groups * ((of_a_group() + width - 1) / width); };
    while (width > kFewChannels && count() < wanted) {
      width = rounded_up(width / 2, kAlignment);
    }
    blocks = (of_a_group() + width - 1) / width;
  }

  int64_t of_a_group() const { return sizes.heads_of_a_group() * sizes.head_dim; }
  int64_t count() const { return sizes.batch * sizes.groups * blocks; }

  Run operator[](int64_t task) const {
    const int64_t start = task % blocks * width, group = task / blocks % sizes.groups;
    const int64_t channel = group * of_a_group() + start, channels = std::min(width, of_a_group() - start);
    const int64_t head = channel / sizes.head_dim;
    const int64_t heads = (channel + channels - 1) / sizes.head_dim - head + 1;
    return {task / blocks / sizes.groups, group, channel, channels, head, heads};
  }
};

// What a task needs, decoded. Rows of channels are `width` apart, rows of states `padded`.
class Scratch {
 public:
  const int64_t width, padded;
  float *state, *B, *C, *decay, *input, *scale, *output;
  float *step, *head_decay, *head_scale;  // a value a head and token

  Scratch(const Tasks& tasks, int64_t tokens)
      : width(tasks.width), padded(rounded_up(tasks.sizes.states, kLanes)) {
    const int64_t rows = tokens * width, states = tokens * padded;
    memory_.resize(static_cast<size_t>(width * padded + 2 * states + 7 * rows + kAlignment));
    const auto misplaced = reinterpret_cast<uintptr_t>(memory_.data()) / sizeof(float) % kAlignment;
    state = memory_.data() + (kAlignment - misplaced) % kAlignment;
    B = state + width * padded;
    C = B + states;
    decay = C + states;
    input = decay + rows;
    scale = input + rows;
    output = scale + rows;
    step = output + rows;
    head_decay = step + rows;
    head_scale = head_decay + rows;
  }

 private:
  std::vector<float> memory_;
};

constexpr int kRows = 4;  // of the state, in registers at once

// `tokens` steps of the recurrence for kRows channels from `row` on and kVecs registers of states from n on.
template <int kVecs>
void recur(const Scratch& s, int64_t tokens, int64_t row, int64_t n) {
  Vec h[kRows][kVecs];
  float* const state = s.state + row * s.padded + n;
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      h[r][v] = load_vec(state + r * s.padded + v * kLanes);
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const float *const B = s.B + t * s.padded + n, *const C = s.C + t * s.padded + n;
    const int64_t at = t * s.width + row;
    const float *const decay = s.decay + at, *const input = s.input + at;
    if (decay[0] != 1.0f || decay[1] != 1.0f || decay[2] != 1.0f || decay[3] != 1.0f) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVecs; ++v) {
          h[r][v] *= decay[r];
        }
      }
    }
    Vec sum[kRows] = {};
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      Vec b = load_vec(B + v * kLanes), c = load_vec(C + v * kLanes);
      hold(b);
      hold(c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        h[r][v] = fma_of(broadcast(input[r]), b, h[r][v]);
        sum[r] = fma_of(h[r][v], c, sum[r]);
      }
    }
    add_sums(sum, s.scale + at, s.output + at);
  }
  const float* const scale = s.scale + (tokens - 1) * s.width + row;
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      store_vec(state + r * s.padded + v * kLanes, scale[r] * h[r][v]);
    }
  }
}

void recur_all(const Scratch& s, int64_t tokens, int64_t channels) {
  for (int64_t row = 0; row < channels; row += kRows) {
    int64_t n = 0;
    // As many registers as there are for kRows rows.
    for (constexpr int kVecs = kLanes == 16 ? 4 : 2; n + kVecs * kLanes <= s.padded; n += kVecs * kLanes) {
      recur<kVecs>(s, tokens, row, n);
    }
    if (n + 2 * kLanes <= s.padded) {
      recur<2>(s, tokens, row, n);
      n += 2 * kLanes;
    }
    if (n < s.padded) {
      recur<1>(s, tokens, row, n);
    }
  }
}

// Both operators; one token is a sequence of length 1.
class Ssd {
 public:
  Ssd(const SsdArguments& in, const SsdSizes& sizes, Tensor& y)
      : sizes_(sizes),
        x_(in.x, in.x_code),
        delta_(in.delta, in.delta_code),
        B_(in.B, in.B_code),
        C_(in.C, in.C_code),
        A_(in.A.const_data_ptr<float>()),
        skip_(pointer(in.D)),
        bias_(pointer(in.delta_bias)),
        low_(static_cast<float>(in.delta_min)),
        high_(static_cast<float>(in.delta_max)),
        y_(y, std::nullopt) {}

  // From the state `before` (zeros if there is none) to the state `after`, which may be the same tensor.
  void run(const OptionalTensor& before, Tensor& after) const {
    const Tasks tasks(sizes_);
    const int64_t tokens = std::min(kTokens, sizes_.length);
    const StateRows before_rows(before ? *before : after), after_rows(after);
    const Source from(before ? *before : after, std::nullopt);
    const Sink to(after, std::nullopt);
    const int64_t work = tasks.width * sizes_.states * std::max<int64_t>(sizes_.length, 1);
    torch::stable::parallel_for(0, tasks.count(), kGrain / work + 1, [&](int64_t begin, int64_t end) {
      const Scratch s(tasks, tokens);
      for (int64_t task = begin; task < end; ++task) {
        const Run run = tasks[task];
        for (int64_t i = 0; i < run.channels; ++i) {
          float* const row = s.state + i * s.padded;
          std::fill_n(row, s.padded, 0.0f);
          if (before) {
            from.copy(before_rows(run.b, run.channel + i), 0, sizes_.states, row);
          }
        }
        for (int64_t start = 0; start < sizes_.length; start += kTokens) {
          advance(s, run, start, std::min(kTokens, sizes_.length - start));
        }
        for (int64_t i = 0; i < run.channels; ++i) {
          to.write(s.state + i * s.padded, after_rows(run.b, run.channel + i), 0, sizes_.states);
        }
      }
    });
  }

 private:
  void advance(const Scratch& s, const Run& run, int64_t start, int64_t tokens) const {
    read_steps(s, run, start, tokens);
    for (int64_t k = 0; k < tokens; ++k) {
      spread(s, run, start + k, k);
      B_.copy(run.b, start + k, run.group * sizes_.states, sizes_.states, s.B + k * s.padded);
      C_.copy(run.b, start + k, run.group * sizes_.states, sizes_.states, s.C + k * s.padded);
    }
    recur_all(s, tokens, run.channels);
    for (int64_t k = 0; k < tokens; ++k) {
      const int64_t row = run.b * sizes_.length + start + k;
      y_.write(s.output + k * s.width, row * sizes_.channels(), run.channel, run.channels);
    }
  }

  // The steps and factors of decay of the run's heads, for all tokens of the chunk.
  void read_steps(const Scratch& s, const Run& run, int64_t start, int64_t tokens) const {
    for (int64_t k = 0; k < tokens; ++k) {
      float* const step = s.step + k * run.heads;
      delta_.copy(run.b, start + k, run.head, run.heads, step);
      for (int64_t h = 0; bias_ && h < run.heads; ++h) {
        step[h] += bias_[run.head + h];
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < tokens * run.heads; ++i) {
      const float step = softplus_of(s.step[i]);
      const float raised = step < low_ ? low_ : step;  // NaN stays
      s.step[i] = raised > high_ ? high_ : raised;
    }
    for (int64_t k = 0; k < tokens; ++k) {
      for (int64_t h = 0; h < run.heads; ++h) {
        s.head_decay[k * run.heads + h] = s.step[k * run.heads + h] * A_[run.head + h];
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < tokens * run.heads; ++i) {
      s.head_decay[i] = exp_of(s.head_decay[i]);
    }
    for (int64_t i = 0; i < tokens * run.heads; ++i) {
      const float scale = s.head_decay[i] * (i < run.heads ? 1.0f : s.head_scale[i - run.heads]);
      const bool kept = scale >= kLeastScale && scale <= 1.0f / kLeastScale;  // not NaN either
      s.head_decay[i] = kept ? 1.0f : scale;
      s.head_scale[i] = kept ? scale : 1.0f;
    }
  }

  // Token t of the run, the k-th of its chunk: what each channel needs.
  void spread(const Scratch& s, const Run& run, int64_t t, int64_t k) const {
    alignas(64) float scratch[kChannels];
    const float* const x = x_.read(run.b, t, run.channel, run.channels, scratch);
    float *const decay = s.decay + k * s.width, *const input = s.input + k * s.width;
    float *const scale = s.scale + k * s.width, *const output = s.output + k * s.width;
    int64_t i = 0;
    for (int64_t h = 0; h < run.heads; ++h) {
      const int64_t at = k * run.heads + h;
      const float head_decay = s.head_decay[at], head_scale = s.head_scale[at];
      const float step = s.step[at] / head_scale;
      const float skip = skip_ ? skip_[run.head + h] : 0.0f;
      const int64_t end = std::min((run.head + h + 1) * sizes_.head_dim - run.channel, run.channels);
#pragma omp simd
      for (int64_t j = i; j < end; ++j) {
        decay[j] = head_decay;
        scale[j] = head_scale;
        input[j] = step * x[j];
        output[j] = skip * x[j];
      }
      i = end;
    }
  }

  SsdSizes sizes_;
  Activation x_, delta_, B_, C_;
  const float *A_, *skip_, *bias_;
  float low_, high_;
  Sink y_;
};

std::tuple<Tensor, Tensor> ssd_scan(const Tensor& x, const OptionalTensor& x_code, const Tensor& delta,
                                    const OptionalTensor& delta_code, const Tensor& A, const Tensor& B,
                                    const OptionalTensor& B_code, const Tensor& C,
                                    const OptionalTensor& C_code, const OptionalTensor& D,
                                    const OptionalTensor& delta_bias, double delta_min, double delta_max,
                                    int64_t groups, const OptionalTensor& initial, int64_t chunk,
                                    ScalarType state_dtype, ScalarType dtype) {
  const SsdArguments in{"ssd_scan", x,      x_code, delta,      delta_code, A,         B,     B_code,
                        C,          C_code, D,      delta_bias, delta_min,  delta_max, groups};
  const SsdSizes sizes = checked_ssd_scan(in, initial, chunk, state_dtype, dtype);
  Tensor y = empty_of(x, dtype);
  Tensor last =
      torch::stable::new_empty(x, {sizes.batch, sizes.heads, sizes.head_dim, sizes.states}, state_dtype);
  Ssd(in, sizes, y).run(initial, last);
  return {y, last};
}

Tensor ssd_state_update(Tensor state, const Tensor& x, const OptionalTensor& x_code, const Tensor& delta,
                        const OptionalTensor& delta_code, const Tensor& A, const Tensor& B,
                        const OptionalTensor& B_code, const Tensor& C, const OptionalTensor& C_code,
                        const OptionalTensor& D, const OptionalTensor& delta_bias, double delta_min,
                        double delta_max, int64_t groups, ScalarType dtype) {
  const SsdArguments in{
      "ssd_state_update", x,         x_code,    delta, delta_code, A, B, B_code, C, C_code, D,
      delta_bias,         delta_min, delta_max, groups};
  const SsdSizes sizes = checked_ssd_state_update(in, state, dtype);
  Tensor y = empty_of(x, dtype);
  Ssd(in, sizes, y).run(state, state);
  return y;
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("ssd_scan", TORCH_BOX(&dualscale::cpu::ssd_scan));
  m.impl("ssd_state_update", TORCH_BOX(&dualscale::cpu::ssd_state_update));
}

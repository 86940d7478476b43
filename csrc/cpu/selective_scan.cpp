// Selective scan (Gu & Dao 2023, Algorithm 2), for a sequence and for one token.
//
// A task is one batch entry and one block of channels, walked in chunks of tokens: first the inputs of the
// chunk are decoded and passed through softplus and SiLU, row by row; then each register-wide group of
// channels runs the recurrence with its states in registers. Channels are the lanes, so that nothing is ever
// summed across lanes.
#include <algorithm>
#include <memory>

#include "cpu/rows.h"
#include "cpu/selectors.h"
#include "cpu/vector_math.h"
#include "ssm_checks.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kChannels = 256;    // of a task, at most: long runs of memory
constexpr int64_t kFewChannels = 64;  // of a task, at least
constexpr int64_t kTokens = 32;       // of a chunk

// Decoding of rows of u, delta and z, with what happens to them before the recurrence.
struct Reader {
  Source u, delta, z;
  const float *skip, *bias;
  bool gated;

  explicit Reader(const SelectiveArguments& in)
      : u(in.u, in.u_code),
        delta(in.delta, in.delta_code),
        z(in.z ? *in.z : in.u, in.z ? in.z_code : in.u_code),
        skip(pointer(in.D)),
        bias(pointer(in.delta_bias)),
        gated(in.z.has_value()) {}

  // step = softplus(delta + bias), input = step * u, direct = D u, gate = SiLU(z), each for channels [c, c +
  // n). `bits` are the selectors of the row of u, or null.
  void read(int64_t u_at, const uint8_t* bits, int64_t delta_at, int64_t z_at, int64_t c, int64_t n,
            float* step, float* input, float* direct, float* gate) const {
    alignas(64) float scratch[kChannels];
    const float* value = delta.read(delta_at, c, n, scratch);
    for (int64_t i = 0; i < n; ++i) {
      step[i] = bias ? value[i] + bias[c + i] : value[i];
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      step[i] = softplus_of(step[i]);
    }
    value = bits == nullptr ? u.read(u_at, c, n, scratch) : u.read_pair(u_at, c, n, bits, scratch);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      input[i] = step[i] * value[i];
    }
    for (int64_t i = 0; i < n; ++i) {
      direct[i] = skip ? skip[c + i] * value[i] : 0.0f;
    }
    if (gated) {
      value = z.read(z_at, c, n, scratch);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        gate[i] = silu_of(value[i]);
      }
    }
  }
};

// What a chunk of tokens needs, decoded.
struct Chunk {
  alignas(64) float step[kTokens][kChannels], input[kTokens][kChannels], output[kTokens][kChannels],
      gate[kTokens][kChannels];
  // Rows of as many states as there are.
  alignas(64) float B[kTokens * kMaxStates], C[kTokens * kMaxStates];
};

// `tokens` steps of the recurrence for the kLanes channels from `lane` on. state and A2 (A times log2 e) are
// [state][kChannels]. kStates is the number of states where it is known, so that they stay in registers, or
// 0.
template <int64_t kStates>
void recur(Chunk& chunk, int64_t tokens, int64_t lane, int64_t states, float (*state)[kChannels],
           const float (*A2)[kChannels]) {
  Vec h[kStates ? kStates : kMaxStates];
  const int64_t count = kStates ? kStates : states;
  for (int64_t n = 0; n < count; ++n) {
    h[n] = load_vec(state[n] + lane);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const Vec step = load_vec(chunk.step[t] + lane), input = load_vec(chunk.input[t] + lane);
    Vec sum = load_vec(chunk.output[t] + lane);
    const float *B = chunk.B + t * count, *C = chunk.C + t * count;
#pragma GCC unroll 16
    for (int64_t n = 0; n < count; ++n) {
      const Vec decay = exp2_decay(step * load_vec(A2[n] + lane));
      h[n] = fma_of(decay, h[n], input * B[n]);
      sum = fma_of(h[n], broadcast(C[n]), sum);
    }
    store_vec(chunk.output[t] + lane, sum);
  }
  for (int64_t n = 0; n < count; ++n) {
    store_vec(state[n] + lane, h[n]);
  }
}

// Channels of a task: as many as leave two tasks for each thread.
int64_t task_width(int64_t batch, int64_t channels) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t width = kChannels;
  while (width > kFewChannels && batch * ((channels + width - 1) / width) < wanted) {
    width /= 2;
  }
  return width;
}

std::tuple<Tensor, Tensor> selective_scan(const Tensor& u, const OptionalTensor& u_code, const Tensor& delta,
                                          const OptionalTensor& delta_code, const Tensor& A, const Tensor& B,
                                          const OptionalTensor& B_code, const Tensor& C,
                                          const OptionalTensor& C_code, const OptionalTensor& D,
                                          const OptionalTensor& z, const OptionalTensor& z_code,
                                          const OptionalTensor& delta_bias, const OptionalTensor& initial,
                                          ScalarType dtype, const OptionalTensor& u_mask,
                                          const OptionalTensor& u_outliers) {
  const SelectiveArguments in{"selective_scan", u, u_code, delta,  delta_code, A,      B,         B_code, C,
                              C_code,           D, z,      z_code, delta_bias, u_mask, u_outliers};
  const SelectiveSizes sizes = checked_selective(in, 3, dtype);
  if (initial) {
    check_ssm_state({in.op, "initial"}, *initial, u, A);
  }
  const int64_t batch = sizes.batch, length = sizes.length, channels = sizes.channels, states = sizes.states;
  Tensor y = empty_of(u, dtype);
  Tensor last = torch::stable::new_empty(u, {batch, channels, states}, ScalarType::Float);
  const Reader reader(in);
  const SelectorSource selectors(sizes.selectors, batch);
  const Source source_B(B, B_code), source_C(C, C_code);
  const Sink sink(y, std::nullopt);
  const float *decay = A.const_data_ptr<float>(), *first = pointer(initial);
  float* const final_state = last.mutable_data_ptr<float>();
  const int64_t i_batch = initial ? initial->stride(0) : 0, i_channel = initial ? initial->stride(1) : 0;
  const int64_t z_batch = z ? z->stride(0) : 0, z_token = z ? z->stride(1) : 0;
  const int64_t u_batch = u.stride(0), u_token = u.stride(1), d_batch = delta.stride(0),
                d_token = delta.stride(1);
  const int64_t B_batch = B.stride(0), B_token = B.stride(1), C_batch = C.stride(0), C_token = C.stride(1);
  const int64_t width = task_width(batch, channels), blocks = (channels + width - 1) / width;

  torch::stable::parallel_for(0, batch * blocks, 1, [&](int64_t begin, int64_t end) {
    const auto chunk = std::make_unique<Chunk>();
    const auto buffer = std::make_unique<float[][kChannels]>(static_cast<size_t>(2 * states));
    float (*const state)[kChannels] = buffer.get();
    float (*const A2)[kChannels] = buffer.get() + states;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / blocks, c = task % blocks * width, n = std::min(width, channels - c);
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t s = 0; s < states; ++s) {
          A2[s][i] = decay[(c + i) * states + s] * kLog2E;
          state[s][i] = first ? first[b * i_batch + (c + i) * i_channel + s] : 0.0f;
        }
      }
      for (int64_t start = 0; start < length; start += kTokens) {
        const int64_t tokens = std::min(kTokens, length - start);
        for (int64_t k = 0; k < tokens; ++k) {
          const int64_t t = start + k;
          reader.read(b * u_batch + t * u_token, selectors.row(b, t), b * d_batch + t * d_token,
                      b * z_batch + t * z_token, c, n, chunk->step[k], chunk->input[k], chunk->output[k],
                      chunk->gate[k]);
          source_B.copy(b * B_batch + t * B_token, 0, states, chunk->B + k * states);
          source_C.copy(b * C_batch + t * C_token, 0, states, chunk->C + k * states);
        }
        for (int64_t lane = 0; lane < n; lane += kLanes) {
          if (states == 16) {
            recur<16>(*chunk, tokens, lane, states, state, A2);
          } else {
            recur<0>(*chunk, tokens, lane, states, state, A2);
          }
        }
        for (int64_t k = 0; k < tokens; ++k) {
          float* row = chunk->output[k];
          if (reader.gated) {
            for (int64_t i = 0; i < n; ++i) {
              row[i] *= chunk->gate[k][i];
            }
          }
          sink.write(row, (b * length + start + k) * channels, c, n);
        }
      }
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t s = 0; s < states; ++s) {
          final_state[(b * channels + c + i) * states + s] = state[s][i];
        }
      }
    }
  });
  return {y, last};
}

// One step for one channel, with its states as the lanes.
float advance(float* state, const float* A, const float* B, const float* C, int64_t states, float step,
              float input) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t s = 0; s < states; ++s) {
    state[s] = fma_of(exp_of(step * A[s]), state[s], input * B[s]);
    sum = fma_of(state[s], C[s], sum);
  }
  return sum;
}

Tensor selective_state_update(Tensor state, const Tensor& u, const OptionalTensor& u_code,
                              const Tensor& delta, const OptionalTensor& delta_code, const Tensor& A,
                              const Tensor& B, const OptionalTensor& B_code, const Tensor& C,
                              const OptionalTensor& C_code, const OptionalTensor& D, const OptionalTensor& z,
                              const OptionalTensor& z_code, const OptionalTensor& delta_bias,
                              ScalarType dtype, const OptionalTensor& u_mask,
                              const OptionalTensor& u_outliers) {
  const SelectiveArguments in{"selective_state_update",
                              u,
                              u_code,
                              delta,
                              delta_code,
                              A,
                              B,
                              B_code,
                              C,
                              C_code,
                              D,
                              z,
                              z_code,
                              delta_bias,
                              u_mask,
                              u_outliers};
  const SelectiveSizes sizes = checked_selective(in, 2, dtype);
  check_ssm_state({in.op, "state"}, state, u, A);
  const int64_t batch = sizes.batch, channels = sizes.channels, states = sizes.states;
  Tensor y = empty_of(u, dtype);
  const Reader reader(in);
  const SelectorSource selectors(sizes.selectors, batch);
  const Source source_B(B, B_code), source_C(C, C_code);
  const Sink sink(y, std::nullopt);
  const float* decay = A.const_data_ptr<float>();
  float* const states_data = state.mutable_data_ptr<float>();
  const int64_t s_batch = state.stride(0), s_channel = state.stride(1), z_batch = z ? z->stride(0) : 0;
  const int64_t u_batch = u.stride(0), d_batch = delta.stride(0), B_batch = B.stride(0),
                C_batch = C.stride(0);
  const int64_t blocks = (channels + kFewChannels - 1) / kFewChannels;

  torch::stable::parallel_for(0, batch * blocks, 16, [&](int64_t begin, int64_t end) {
    alignas(64) float step[kChannels], input[kChannels], result[kChannels], gate[kChannels];
    alignas(64) float scratch_B[kMaxStates], scratch_C[kMaxStates];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / blocks, c = task % blocks * kFewChannels,
                    n = std::min(kFewChannels, channels - c);
      reader.read(b * u_batch, selectors.row(b, 0), b * d_batch, b * z_batch, c, n, step, input, result,
                  gate);
      const float* row_B = source_B.read(b * B_batch, 0, states, scratch_B);
      const float* row_C = source_C.read(b * C_batch, 0, states, scratch_C);
      for (int64_t i = 0; i < n; ++i) {
        float* const own = states_data + b * s_batch + (c + i) * s_channel;
        result[i] += advance(own, decay + (c + i) * states, row_B, row_C, states, step[i], input[i]);
        result[i] *= reader.gated ? gate[i] : 1.0f;
      }
      sink.write(result, b * channels, c, n);
    }
  });
  return y;
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("selective_scan", TORCH_BOX(&dualscale::cpu::selective_scan));
  m.impl("selective_state_update", TORCH_BOX(&dualscale::cpu::selective_state_update));
}

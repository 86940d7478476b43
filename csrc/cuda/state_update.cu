// One token of the selective scan: the state is read and written once, four states a thread.
#include "ahead.cuh"
#include "pairs.cuh"
#include "ssm.cuh"

namespace dualscale {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBatch = 65535;  // blocks along the second axis of a grid

struct Token {
  SsmArguments in;
  float* state;
  int64_t batch_stride, channel_stride;  // of the state
  void* y;
  Kind result;
  bool state_aligned;
  SelectorView selectors;  // of u
};

// Four neighbouring states' B or C.
__device__ __forceinline__ void four_values(const Input& input, int64_t offset, int present, float (&x)[4]) {
  biased_or_value(load_four<false>(input, offset, present), input.kind, x);
  if (input.kind == Kind::kCodes) {
    const Scaled code = Scaled::of(input.code.rows);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = code.value(x[j]);
    }
  }
}

// One value of u, with two scales or with a code of any family.
template <class Selectors>
__device__ __forceinline__ float value_of_u(const Token& a, int64_t batch, int64_t channel) {
  const int64_t offset = batch * a.in.u.batch_stride + channel;
  if constexpr (Selectors::kPairs) {
    const float q = biased_byte(load_bits(a.in.u, offset) ^ 0x80u, 0) - kByteBias;
    const Pair pair = Pair::load(a.in.u.code.rows + (a.in.u.code.per_channel ? channel * kPairWidth : 0));
    return pair.decode(q, selects_outer<Selectors>(a.selectors, batch, channel));
  } else {
    return one_value(a.in.u, offset, channel);
  }
}

// kLanes threads share a channel; each takes four states at a time.
template <int kLanes, class Selectors>
__global__ void __launch_bounds__(kThreads, 6) update(const __grid_constant__ Token a) {
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t batch = blockIdx.y;
  const bool exists = channel < a.in.channels;  // all threads take part in the sum below
  if (exists && 4 * lane < a.in.states) {       // the largest of what no kernel of the same step has written
    prefetch_sector(a.state + batch * a.batch_stride + channel * a.channel_stride + 4 * lane);
    prefetch_sector(a.in.A + channel * a.in.states + 4 * lane);
  }
  await_earlier();
  admit_later();
  float sum = 0.0f, u = 0.0f;
  if (exists) {
    u = value_of_u<Selectors>(a, batch, channel);
    const float bias = a.in.delta_bias ? a.in.delta_bias[channel] : 0.0f;
    const float delta = softplus(one_value(a.in.delta, batch * a.in.delta.batch_stride + channel, 0) + bias);
#pragma unroll 4
    for (int n = 4 * lane; n < a.in.states; n += 4 * kLanes) {
      const int present = min(a.in.states - n, 4);
      float* at = a.state + batch * a.batch_stride + channel * a.channel_stride + n;
      const float* A = a.in.A + channel * a.in.states + n;
      float B[4], C[4], h[4], rate[4];
      unpack(load_raw<float, 4>(at, a.state_aligned, present), h);
      unpack(load_raw<float, 4>(A, a.state_aligned, present), rate);
      four_values(a.in.B, batch * a.in.B.batch_stride + n, present, B);
      four_values(a.in.C, batch * a.in.C.batch_stride + n, present, C);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        h[j] = fmaf(exp2_approx(kLog2e * delta * rate[j]), h[j], delta * u * B[j]);
        sum = j < present ? fmaf(h[j], C[j], sum) : sum;
      }
      store_raw(at, pack<float, 4>(h), a.state_aligned, present);
    }
  }
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  if (!exists || lane != 0) {
    return;
  }
  float y = a.in.D ? fmaf(a.in.D[channel], u, sum) : sum;
  if (a.in.z.data != nullptr) {
    y *= silu(one_value(a.in.z, batch * a.in.z.batch_stride + channel, 0));
  }
  const float only[4] = {y};
  store_four(a.y, a.result, batch * a.in.channels + channel, only, false, 1);
}

template <class Selectors>
void launch(const Token& a, Selectors, const Tensor& u, int64_t values, cudaStream_t stream) {
  const auto run = [&](auto kernel, int lanes) {
    const dim3 grid(grid_of("selective_state_update", ceil_div(a.in.channels * lanes, kThreads)),
                    static_cast<unsigned>(a.in.batch));
    launch_early(kernel, grid, kThreads, 0, u.get_device_index(), stream, a);
  };
  // One thread a channel decodes its inputs once; a small batch needs more threads instead.
  const bool many = values > int64_t{512} * multiprocessors(u.get_device_index());
  if (a.in.states <= 4 || (a.in.states <= 16 && many)) {
    run(update<1, Selectors>, 1);
  } else if (a.in.states <= 16) {
    run(update<4, Selectors>, 4);
  } else {
    run(update<16, Selectors>, 16);
  }
}

Tensor selective_state_update(const Tensor& state, const Tensor& u, const OptionalTensor& u_code,
                              const Tensor& delta, const OptionalTensor& delta_code, const Tensor& A,
                              const Tensor& B, const OptionalTensor& B_code, const Tensor& C,
                              const OptionalTensor& C_code, const OptionalTensor& D, const OptionalTensor& z,
                              const OptionalTensor& z_code, const OptionalTensor& delta_bias,
                              ScalarType dtype, const OptionalTensor& u_mask,
                              const OptionalTensor& u_outliers) {
  const char* op = "selective_state_update";
  const SelectiveArguments given{op, u,      u_code, delta, delta_code, A,          B,      B_code,
                                 C,  C_code, D,      z,     z_code,     delta_bias, u_mask, u_outliers};
  const SelectiveSizes sizes = checked_selective(given, 2, dtype);
  Token a{ssm_of(given, sizes)};
  a.selectors = sizes.selectors;
  check_ssm_state({op, "state"}, state, u, A);
  Tensor y = torch::stable::new_empty(u, u.sizes(), dtype);
  if (y.numel() == 0) {
    return y;
  }
  if (a.in.batch > kMaxBatch) {
    refuse({op, "u"}, "has a batch of " + std::to_string(a.in.batch), "at most " + std::to_string(kMaxBatch));
  }
  const OnDevice device(u);
  a.state = static_cast<float*>(state.data_ptr());
  a.batch_stride = state.stride(0);
  a.channel_stride = state.stride(1);
  a.y = y.data_ptr();
  a.result = kind_of(y);
  a.state_aligned = a.in.states % 4 == 0 && is_aligned(state, 16) && is_aligned(A, 16);
  if (a.selectors.mask == nullptr) {
    launch(a, NoSelectors{}, u, y.numel(), device.stream);
  } else {
    dispatch_selectors(a.selectors,
                       [&](auto selectors) { launch(a, selectors, u, y.numel(), device.stream); });
  }
  return y;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("selective_state_update", TORCH_BOX(&dualscale::selective_state_update));
}

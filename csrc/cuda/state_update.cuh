// One token of the selective scan: the state is read and written once, sixteen bytes at a time, neighbouring
// lanes neighbouring bytes.
//
// kLanes threads share a channel and take four sequences at once, so that A and the channel's parameters are
// read once for all of a block's sequences. What is done once a channel and sequence, decoding, softplus and
// the gate, falls to one lane of the four, which in the end has the whole sum (see finish). B and C of the
// four sequences are decoded by the block, into shared memory. All loads of the next four sequences are under
// way while these are worked on.
//
// A sequence's result does not depend on the batch it is in.
#pragma once

#include "ahead.cuh"
#include "pairs.cuh"
#include "ssm.cuh"

namespace dualscale {

constexpr int kUpdateThreads = 128;
constexpr int kSequences = 4;  // at once

struct Token {
  SsmArguments in;
  float* state;
  int64_t batch_stride, channel_stride;  // of the state
  void* y;
  Kind result;
  bool state_aligned;
  SelectorView selectors;  // of u
};

// Four states of which `present` exist. Written out, since the compiler would make words of them.
__device__ __forceinline__ void load_states(const float* at, bool aligned, int present, float (&h)[4]) {
  if (aligned) {
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(h[0]), "=f"(h[1]), "=f"(h[2]), "=f"(h[3])
                 : "l"(at)
                 : "memory");
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    h[j] = j < present ? at[j] : 0.0f;
  }
}

__device__ __forceinline__ void store_states(float* at, bool aligned, int present, const float (&h)[4]) {
  if (aligned) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(at), "f"(h[0]), "f"(h[1]), "f"(h[2]),
                 "f"(h[3])
                 : "memory");
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j < present) {
      at[j] = h[j];
    }
  }
}

// How one channel of an activation is decoded, kept for all sequences. kCodes: it has a knee code.
template <bool kCodes>
struct Decoder {
  Kind kind;
  const float* table;  // of table codes, else null
  Knee knee;

  __device__ Decoder(const Input& input, int64_t channel) : kind(input.kind), table(nullptr), knee{} {
    if (input.code.rows != nullptr && (kCodes || !input.code.is_table)) {
      knee = Knee::load(input.code.rows + (input.code.per_channel ? channel * kKneeWidth : 0));
    } else if (input.code.rows != nullptr) {
      table = input.code.rows + (input.code.per_channel ? channel * kTableWidth : 0);
    }
  }

  __device__ __forceinline__ float value(uint32_t bits) const {
    if (kCodes || kind == Kind::kCodes) {
      const float q = biased_byte(bits ^ 0x80u, 0) - kByteBias;
      return kCodes || table == nullptr ? knee.decode(q) : Table::load(table).decode(q);
    }
    return kind == Kind::kFloat  ? __uint_as_float(bits)
           : kind == Kind::kHalf ? __half2float(__ushort_as_half(static_cast<uint16_t>(bits)))
                                 : __uint_as_float(bits << 16);
  }
};

// The same of u, which may have two scales.
template <bool kCodes, class Selectors>
struct DecoderOfU : Decoder<kCodes> {
  __device__ DecoderOfU(const Token& a, int64_t channel) : Decoder<kCodes>(a.in.u, channel) {}
  __device__ __forceinline__ float value_at(const Token&, uint32_t bits, int64_t, int64_t) const {
    return this->value(bits);
  }
};

template <class Selectors>
struct DecoderOfPairs {
  Pair pair;
  __device__ DecoderOfPairs(const Token& a, int64_t channel)
      : pair(Pair::load(a.in.u.code.rows + (a.in.u.code.per_channel ? channel * kPairWidth : 0))) {}
  __device__ __forceinline__ float value_at(const Token& a, uint32_t bits, int64_t batch,
                                            int64_t channel) const {
    const float q = biased_byte(bits ^ 0x80u, 0) - kByteBias;
    return pair.decode(q, selects_outer<Selectors>(a.selectors, batch, channel));
  }
};

// A thread's share of the work. kFast: 16 aligned states and codes with knees, of u with knees or pairs; four
// lanes a channel. Else kLanes is 4 for up to 16 states, or 16.
template <int kLanes, bool kFast, class Selectors>
struct Update {
  static constexpr bool kAhead = kLanes == 4;  // all states of a thread are fetched ahead
  static constexpr int kMaxStates = kAhead ? 16 : static_cast<int>(dualscale::kMaxStates);
  static constexpr int kOwners = kLanes / kSequences;  // lanes that do the same for a sequence
  using Value = Decoder<kFast>;
  using ValueOfU =
      std::conditional_t<Selectors::kPairs, DecoderOfPairs<Selectors>, DecoderOfU<kFast, Selectors>>;

  // B and C of four sequences.
  struct Shared {
    float values[2][kSequences][2][kMaxStates];  // now and next; B, C
    Scaled codes[2];                             // of B, C
  };
  // Of four sequences, as they lie in memory: states, this lane's sequence's u, delta and z, one of B or C.
  struct Fetched {
    float h[kSequences][4];
    uint32_t u, delta, z, state;
  };

  // Where four sequences are: this channel's states of the first, and how many there are: none where the
  // channel does not exist.
  struct Group {
    float* state;
    int first, left;
  };

  const Token& a;
  Shared& s;
  int64_t channel;
  int lane, own;
  bool exists;  // the channel

  __device__ Update(const Token& arguments, Shared& shared) : a(arguments), s(shared) {
    channel = (static_cast<int64_t>(blockIdx.x) * kUpdateThreads + threadIdx.x) / kLanes;
    lane = threadIdx.x % kLanes;
    own = lane / kOwners;
    exists = channel < a.in.channels;
    channel = exists ? channel : a.in.channels - 1;
  }

  __device__ __forceinline__ Group group_at(int first) const {
    return {a.state + first * a.batch_stride + channel * a.channel_stride, first,
            exists ? static_cast<int>(a.in.batch) - first : 0};
  }
  // `step` sequences further.
  __device__ __forceinline__ Group after(const Group& group, int step) const {
    return {group.state + step * a.batch_stride, group.first + step, exists ? group.left - step : 0};
  }
  __device__ __forceinline__ bool aligned() const { return kFast || a.state_aligned; }
  __device__ __forceinline__ int present(int n) const { return kFast ? 4 : min(a.in.states - n, 4); }

  static __device__ __forceinline__ uint32_t bits_at(const Input& input, int64_t offset) {
    return kFast ? static_cast<const uint8_t*>(input.data)[offset] : load_bits(input, offset);
  }

  // Before await_earlier: the largest of what no kernel of the same step has written.
  __device__ void prefetch(const Group& group) const {
    if (present(4 * lane) > 0) {
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        if (i < group.left) {
          prefetch_sector(group.state + i * a.batch_stride + 4 * lane);
        }
      }
      prefetch_sector(a.in.A + channel * a.in.states + 4 * lane);
    }
  }

  // Starts the loads of four sequences.
  __device__ __forceinline__ void fetch(const Group& group, Fetched& to) const {
    if constexpr (kAhead) {
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        if (i < group.left && present(4 * lane) > 0) {
          load_states(group.state + i * a.batch_stride + 4 * lane, aligned(), present(4 * lane), to.h[i]);
        }
      }
      to.state = state_bits(group.first, threadIdx.x);
    }
    const int64_t batch = group.first + own;
    if (own < group.left) {
      to.u = bits_at(a.in.u, batch * a.in.u.batch_stride + channel);
      to.delta = bits_at(a.in.delta, batch * a.in.delta.batch_stride + channel);
      to.z = a.in.z.data ? bits_at(a.in.z, batch * a.in.z.batch_stride + channel) : 0;
    }
  }

  // The bits of the i-th of all B and C of four sequences, as they lie in Shared.
  __device__ __forceinline__ uint32_t state_bits(int first, int i) const {
    const int n = i % kMaxStates, batch = first + i / (2 * kMaxStates);
    const Input& input = i / kMaxStates % 2 == 0 ? a.in.B : a.in.C;
    const bool is_there = batch < static_cast<int>(a.in.batch) && (kFast || n < a.in.states);
    return is_there ? bits_at(input, batch * input.batch_stride + n) : 0;
  }

  __device__ __forceinline__ void decode_states(int first, int turn, const Fetched& fetched) const {
    constexpr int kItems = kSequences * 2 * kMaxStates;
    static_assert(!kAhead || kItems == kUpdateThreads, "a thread fetches one");
#pragma unroll 1
    for (int i = threadIdx.x; i < kItems; i += kUpdateThreads) {
      const int matrix = i / kMaxStates % 2;
      const Kind kind = matrix == 0 ? a.in.B.kind : a.in.C.kind;
      const uint32_t bits = kAhead ? fetched.state : state_bits(first, i);
      float value = s.codes[matrix].value(biased_byte(bits ^ 0x80u, 0));
      if (!kFast && kind != Kind::kCodes) {
        value = Value(Input{nullptr, {}, 0, 0, kind}, 0).value(bits);
      }
      (&s.values[turn & 1][0][0][0])[i] = value;
    }
  }

  // Advances four states of each sequence; `sum` are their parts of y.
  __device__ __forceinline__ void advance(const Group& group, int turn, int n, const float (&rate)[4],
                                          const float (&scaled)[kSequences], const float (&input)[kSequences],
                                          float (&h)[kSequences][4], float (&sum)[kSequences]) const {
#pragma unroll
    for (int i = 0; i < kSequences; ++i) {
      if (i >= group.left || present(n) <= 0) {
        continue;
      }
      float* at = group.state + i * a.batch_stride + n;
      if constexpr (!kAhead) {
        load_states(at, aligned(), present(n), h[i]);
      }
      const float4 b = *reinterpret_cast<const float4*>(&s.values[turn & 1][i][0][n]);
      const float4 c = *reinterpret_cast<const float4*>(&s.values[turn & 1][i][1][n]);
      const float B[4] = {b.x, b.y, b.z, b.w}, C[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        h[i][j] = fmaf(exp2_approx(scaled[i] * rate[j]), h[i][j], input[i] * B[j]);
        sum[i] = j < present(n) ? fmaf(h[i][j], C[j], sum[i]) : sum[i];
      }
      store_states(at, aligned(), present(n), h[i]);
    }
  }

  // Sums over a channel's lanes: each of them ends with the sum of its own sequence.
  __device__ __forceinline__ float own_sum(float (&sum)[kSequences]) const {
#pragma unroll
    for (int half = kSequences / 2; half > 0; half /= 2) {
      const bool upper = (own & half) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float kept = upper ? sum[i + half] : sum[i], given = upper ? sum[i] : sum[i + half];
        sum[i] = kept + __shfl_xor_sync(0xffffffffu, given, half * kOwners);
      }
    }
#pragma unroll
    for (int distance = kOwners / 2; distance > 0; distance /= 2) {
      sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], distance);
    }
    return sum[0];
  }

  __device__ void run() {
    const int step = gridDim.y * kSequences;
    Group group = group_at(blockIdx.y * kSequences);
    prefetch(group);
    await_earlier();
    admit_later();
    Fetched now{}, next{};
    fetch(group, now);
    const ValueOfU u_code(a, channel);
    const Value delta_code(a.in.delta, 0), z_code(a.in.z, 0);
    const float bias = a.in.delta_bias ? a.in.delta_bias[channel] : 0.0f;
    const float skip = a.in.D ? a.in.D[channel] : 0.0f;
    const float* A = a.in.A + channel * a.in.states;
    float rate[4] = {};
    if (kAhead && present(4 * lane) > 0) {
      load_states(A + 4 * lane, aligned(), present(4 * lane), rate);
    }
    load_codes();
    decode_states(group.first, 0, now);
#pragma unroll 1
    for (int turn = 0; group.first < static_cast<int>(a.in.batch); ++turn) {
      // B and C of these sequences are decoded; nobody reads those of the sequences before any more.
      __syncthreads();
      const Group later = after(group, step);
      fetch(later, next);
      float u = 0.0f, delta = 0.0f;
      if (own < group.left) {
        u = u_code.value_at(a, now.u, group.first + own, channel);
        delta = softplus(delta_code.value(now.delta) + bias);
      }
      float scaled[kSequences], input[kSequences], sum[kSequences] = {};
#pragma unroll
      for (int i = 0; i < kSequences; ++i) {
        scaled[i] = __shfl_sync(0xffffffffu, kLog2e * delta, i * kOwners, kLanes);
        input[i] = __shfl_sync(0xffffffffu, delta * u, i * kOwners, kLanes);
      }
      if constexpr (kAhead) {
        advance(group, turn, 4 * lane, rate, scaled, input, now.h, sum);
      } else {
        for (int n = 4 * lane; n < a.in.states; n += 4 * kLanes) {
          load_states(A + n, aligned(), present(n), rate);
          advance(group, turn, n, rate, scaled, input, now.h, sum);
        }
      }
      const float whole = own_sum(sum);
      if (own < group.left && lane % kOwners == 0) {
        finish(group.first + own, whole, u, skip, z_code, now.z);
      }
      decode_states(later.first, turn + 1, next);
      now = next;
      group = later;
    }
  }

  __device__ __forceinline__ void load_codes() const {
    if (threadIdx.x < 2) {
      const Input& input = threadIdx.x == 0 ? a.in.B : a.in.C;
      if (input.code.rows != nullptr) {
        s.codes[threadIdx.x] = Scaled::of(input.code.rows);
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ void finish(int64_t batch, float sum, float u, float skip, const Value& z_code,
                                         uint32_t z) const {
    float y = a.in.D ? fmaf(skip, u, sum) : sum;
    if (a.in.z.data != nullptr) {
      y *= silu(z_code.value(z));
    }
    const float only[4] = {y};
    store_four(a.y, a.result, batch * a.in.channels + channel, only, false, 1);
  }
};

}  // namespace dualscale

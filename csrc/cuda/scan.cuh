// The selective scan of one block: 128 threads, `kSplit` threads a channel, each with `kStates` states in
// registers.
//
// The sequence is walked in tiles. Before a tile's recurrence the block decodes its inputs once, four
// channels a thread, and leaves softplus(delta) and softplus(delta) * u, B and C as fp32 in shared memory;
// the recurrence then has nothing to do but exponentials and multiply-adds; after it the block gates and
// stores the tile with vector stores. Global loads of the next tile are in flight during the recurrence.
// Steps past the end have delta = 0 and leave the state as it is, so the inner loop knows no ends.
#pragma once

#include "residency.cuh"
#include "scan_selectors.cuh"
#include "ssm.cuh"

namespace dualscale {

constexpr int kScanThreads = 128;

struct ScanArguments {
  SsmArguments in;
  const float* initial;
  float* last;
  void* y;
  Kind result;
  SelectorView selectors;  // of u
};

// kFast: every input aligned and the channels a multiple of the block's, so that vectors are always whole.
template <bool kAllCodes, bool kFast, int kStates, int kSplit, class Selectors>
struct ScanBlock {
  static constexpr int kChannels = kScanThreads / kSplit;
  static constexpr int kPadded = kStates * kSplit;
  static constexpr int kTile = kAllCodes && kSplit > 1 ? 32 : 16;
  static constexpr int kSteps = kStates < 8 ? 8 : 4;    // of the recurrence between two stores
  static constexpr int kGroups = kChannels / 4;         // of four channels
  static constexpr int kPass = kScanThreads / kGroups;  // rows that the block covers at once
  static constexpr int kItems = kTile > kPass ? kTile / kPass : 1;
  static constexpr int kStateGroups = kPadded / 4;
  static constexpr int kStatePass = kScanThreads / kStateGroups;
  static constexpr int kStateItems = kTile > kStatePass ? kTile / kStatePass : 1;
  static constexpr bool kFetchStates = kStateItems == 1;  // more would take too many registers
  using Piece = Four<kAllCodes>;
  using OwnSelectors = TileSelectors < Selectors, kTile, kChannels, kPass, kItems, kStates<8>;

  struct Shared : OwnSelectors::Shared {
    float2 step[kTile][kChannels];  // softplus(delta), softplus(delta) * u
    float partial[kTile][kScanThreads];
    float B[kTile][kPadded];
    float C[kTile][kPadded];
    Scaled u_code[kChannels];
    Scaled delta_code, B_code, C_code, z_code;
    float bias[kChannels];
    float skip[kChannels];  // D
  };

  const ScanArguments& a;
  Shared& s;
  int64_t batch, first_channel;
  int group, row,
      valid;  // this thread's four channels, its first row of a tile, how many of the channels exist
  Piece u[kItems], delta[kItems], z[kItems];
  Piece next_B, next_C;
  float skipped[kItems][4];  // D * u
  OwnSelectors selectors;

  __device__ ScanBlock(const ScanArguments& arguments, Shared& shared) : a(arguments), s(shared) {
    const unsigned pieces = static_cast<unsigned>((a.in.channels + kChannels - 1) / kChannels);
    batch = blockIdx.x / pieces;
    first_channel = static_cast<int64_t>(blockIdx.x % pieces) * kChannels;
    group = threadIdx.x % kGroups;
    row = threadIdx.x / kGroups;
    valid = static_cast<int>(min(max(a.in.channels - first_channel - 4 * group, int64_t{0}), int64_t{4}));
    valid = kFast ? 4 : valid;
    for (int i = threadIdx.x; i < kChannels; i += kScanThreads) {
      const int64_t channel = min(first_channel + i, a.in.channels - 1);
      const CodeView& code = a.in.u.code;
      if constexpr (Selectors::kPairs) {
        const Pair pair = Pair::load(code.rows + (code.per_channel ? channel * kPairWidth : 0));
        s.u_code[i] = {pair.inner, pair.outer, 0.0f, 0.0f};  // both scales alone
      } else if (code.rows != nullptr && !code.is_table) {
        s.u_code[i] = Scaled::of(code.rows + (code.per_channel ? channel * kKneeWidth : 0));
      }
      s.bias[i] = a.in.delta_bias ? a.in.delta_bias[channel] : 0.0f;
      s.skip[i] = a.in.D ? a.in.D[channel] : 0.0f;
    }
    if (threadIdx.x == 0) {
      load_code(a.in.delta, s.delta_code);
      load_code(a.in.B, s.B_code);
      load_code(a.in.C, s.C_code);
      load_code(a.in.z, s.z_code);
      if constexpr (Selectors::kLists) {
        selectors.open(s, a.selectors, place());
      }
    }
    __syncthreads();
  }

  static __device__ void load_code(const Input& input, Scaled& code) {
    if (input.code.rows != nullptr) {
      code = Scaled::of(input.code.rows);
    }
  }

  // kWhole: the caller knows that all rows of the tile exist.
  template <bool kWhole>
  __device__ __forceinline__ bool exists(int64_t start, int i) const {
    if constexpr (kWhole && kFast && kTile % kPass == 0) {
      return true;
    }
    return row + i * kPass < kTile && start + row + i * kPass < a.in.length && (kFast || valid > 0);
  }

  // Offset of this thread's channels in its first row of a tile.
  __device__ __forceinline__ int64_t start_of(const Input& input, int64_t start) const {
    return batch * input.batch_stride + (start + row) * input.row_stride + first_channel + 4 * group;
  }

  // Starts the loads of z, which only the end of the tile needs.
  template <bool kWhole>
  __device__ __forceinline__ void fetch_gate(int64_t start) {
    if (a.in.z.data == nullptr) {
      return;
    }
    const int64_t at = start_of(a.in.z, start);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (exists<kWhole>(start, i)) {
        z[i] = load_four<kAllCodes, kFast>(a.in.z, at + i * kPass * a.in.z.row_stride, valid);
      }
    }
  }

  // Starts the other loads of a tile.
  template <bool kWhole>
  __device__ __forceinline__ void fetch(int64_t start) {
    const int64_t u_at = start_of(a.in.u, start), delta_at = start_of(a.in.delta, start);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (exists<kWhole>(start, i)) {
        u[i] = load_four<kAllCodes, kFast>(a.in.u, u_at + i * kPass * a.in.u.row_stride, valid);
        delta[i] =
            load_four<kAllCodes, kFast>(a.in.delta, delta_at + i * kPass * a.in.delta.row_stride, valid);
      }
    }
    if constexpr (Selectors::kLists) {
      selectors.fetch_list(s, a.selectors, start);
    }
    if constexpr (kFetchStates) {
      next_B = state_piece<kWhole>(a.in.B, start, 0);
      next_C = state_piece<kWhole>(a.in.C, start, 0);
    }
  }

  // Starts the loads of a tile's bytes of the mask; late, so that no register holds them during the
  // recurrence.
  __device__ __forceinline__ void fetch_bits(int64_t start) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (exists<false>(start, i)) {
        selectors.fetch(a.selectors, place(), start, i);
      }
    }
  }

  __device__ __forceinline__ ScanPlace place() const { return {batch, first_channel, group, row}; }

  // How many of this thread's four states of B or C exist.
  template <bool kWhole>
  __device__ __forceinline__ int present_states(int64_t start, int i) const {
    if constexpr (kWhole && kFast && kTile % kStatePass == 0) {
      return 4;
    }
    const int r = threadIdx.x / kStateGroups + i * kStatePass;
    const int column = threadIdx.x % kStateGroups * 4;
    return r < kTile && start + r < a.in.length ? min(max(a.in.states - column, 0), 4) : 0;
  }

  template <bool kWhole>
  __device__ __forceinline__ Piece state_piece(const Input& input, int64_t start, int i) const {
    const int present = present_states<kWhole>(start, i);
    const int r = threadIdx.x / kStateGroups + i * kStatePass;
    const int column = threadIdx.x % kStateGroups * 4;
    const int64_t offset = batch * input.batch_stride + (start + r) * input.row_stride + column;
    return present > 0 ? load_four<kAllCodes, kFast>(input, offset, present) : Piece{};
  }

  // The i-th of this thread's pieces of u.
  __device__ __forceinline__ void decode_u(int i, float (&x)[4]) const {
    biased_or_value(u[i], a.in.u.kind, x);
    if constexpr (Selectors::kPairs) {
      const uint32_t outer = selectors.four(s, place(), i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 scales = scales_of(s.u_code[4 * group + j]);
        x[j] = (x[j] - kByteBias) * (outer >> j & 1 ? scales.y : scales.x);
      }
      return;
    }
    const CodeView& code = a.in.u.code;
    if (code.rows == nullptr) {
      return;
    }
    if (code.is_table) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t channel = min(first_channel + 4 * group + j, a.in.channels - 1);
        const int level = static_cast<int>(__float_as_uint(x[j]) & 0xffu);  // the mantissa holds 128 + q
        x[j] = __ldg(code.rows + (code.per_channel ? channel * kTableWidth : 0) + level);
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[j] = s.u_code[4 * group + j].value(x[j]);
      }
    }
  }

  // Decodes u and delta into shared memory and keeps what the end of the tile needs.
  template <bool kWhole>
  __device__ __forceinline__ void prepare(int64_t start) {
    const bool coded = kAllCodes || a.in.delta.code.rows != nullptr;
    const Scaled code = s.delta_code;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      float2 pair[4] = {};
      if (exists<kWhole>(start, i)) {
        float x[4], value[4];
        decode_u(i, value);
        biased_or_value(delta[i], a.in.delta.kind, x);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float bias = s.bias[4 * group + j];
          pair[j].x = softplus(coded ? code.value(x[j], bias) : x[j] + bias);
          pair[j].y = pair[j].x * value[j];
          skipped[i][j] = s.skip[4 * group + j] * value[j];
        }
      }
      if (row + i * kPass < kTile) {
        auto* to = reinterpret_cast<float4*>(&s.step[row + i * kPass][4 * group]);
        to[0] = make_float4(pair[0].x, pair[0].y, pair[1].x, pair[1].y);
        to[1] = make_float4(pair[2].x, pair[2].y, pair[3].x, pair[3].y);
      }
    }
    prepare_states<kWhole>(a.in.B, s.B_code, next_B, start, s.B);
    prepare_states<kWhole>(a.in.C, s.C_code, next_C, start, s.C);
  }

  // Decodes B or C; rows past the end and states that only pad are zero.
  template <bool kWhole>
  __device__ __forceinline__ void prepare_states(const Input& input, const Scaled& code, const Piece& fetched,
                                                 int64_t start, float (&to)[kTile][kPadded]) const {
    const bool coded = kAllCodes || input.code.rows != nullptr;
    const int column = threadIdx.x % kStateGroups * 4;
#pragma unroll
    for (int i = 0; i < kStateItems; ++i) {
      const int r = threadIdx.x / kStateGroups + i * kStatePass;
      const int present = present_states<kWhole>(start, i);
      float x[4];
      biased_or_value(kFetchStates ? fetched : state_piece<kWhole>(input, start, i), input.kind, x);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[j] = j >= present ? 0.0f : coded ? code.value(x[j]) : x[j];
      }
      if (r < kTile) {
        *reinterpret_cast<float4*>(&to[r][column]) = make_float4(x[0], x[1], x[2], x[3]);
      }
    }
  }

  // The recurrence over one tile; A is already multiplied by log2(e).
  __device__ __forceinline__ void recur(const float (&A)[kStates], float (&h)[kStates]) const {
    const int channel = threadIdx.x % kChannels;
    const int part = threadIdx.x / kChannels;
    // A store might, for all the compiler knows, change what the next step loads: so a few steps store at the
    // end.
#pragma unroll 1
    for (int first = 0; first < kTile; first += kSteps) {
      float y[kSteps];
#pragma unroll
      for (int g = 0; g < kSteps; ++g) {
        const float2 step = s.step[first + g][channel];
        float B[kStates], C[kStates];
        read_states(&s.B[first + g][part * kStates], B);
        read_states(&s.C[first + g][part * kStates], C);
        y[g] = 0.0f;
#pragma unroll
        for (int n = 0; n < kStates; ++n) {
          h[n] = fmaf(exp2_approx(step.x * A[n]), h[n], step.y * B[n]);
          y[g] = fmaf(h[n], C[n], y[g]);
        }
      }
#pragma unroll
      for (int g = 0; g < kSteps; ++g) {
        s.partial[first + g][threadIdx.x] = y[g];
      }
    }
  }

  static __device__ __forceinline__ void read_states(const float* from, float (&x)[kStates]) {
    constexpr int kWidth = kStates < 4 ? kStates : 4;
#pragma unroll
    for (int n = 0; n < kStates; n += kWidth) {
      if constexpr (kWidth == 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + n);
        x[n] = four.x;
        x[n + 1] = four.y;
        x[n + 2] = four.z;
        x[n + 3] = four.w;
      } else {
        const float2 two = *reinterpret_cast<const float2*>(from + n);
        x[n] = two.x;
        x[n + 1] = two.y;
      }
    }
  }

  // Sums the parts of each channel, adds D u, gates with SiLU(z) and stores.
  template <bool kWhole>
  __device__ __forceinline__ void finish(int64_t start) const {
    const bool coded = kAllCodes || a.in.z.code.rows != nullptr;
    const Scaled code = s.z_code;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (!exists<kWhole>(start, i)) {
        continue;
      }
      const int r = row + i * kPass;
      float y[4], x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        y[j] = skipped[i][j];
      }
#pragma unroll
      for (int part = 0; part < kSplit; ++part) {
        const float4 four = *reinterpret_cast<const float4*>(&s.partial[r][part * kChannels + 4 * group]);
        y[0] += four.x;
        y[1] += four.y;
        y[2] += four.z;
        y[3] += four.w;
      }
      if (a.in.z.data != nullptr) {
        biased_or_value(z[i], a.in.z.kind, x);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          y[j] *= silu(coded ? code.value(x[j]) : x[j]);
        }
      }
      const int64_t offset = (batch * a.in.length + start + r) * a.in.channels + first_channel + 4 * group;
      store_four(a.y, a.result, offset, y, kFast || a.in.channels % 4 == 0, valid);
    }
  }
};

}  // namespace dualscale

// The selective scan of one block: four warps, `kLanes` lanes a channel, each with `kStates` states in
// registers.
//
// The sequence is walked in tiles, a tile in batches of eight tokens. Of each batch a lane owns kOwn
// (channel, token) pairs: it decodes delta and u, applies softplus, and hands both to the other lanes of the
// channel through shared memory of the warp alone. All lanes then advance their states over the batch, the
// sums over states meet at the lane that owns the token (sum_parts), and that lane adds D u and gates. B and
// C are decoded for the whole block, a tile ahead; raw inputs arrive by copies two tiles ahead; results leave
// as vectors a tile or two later. So a tile costs one barrier. Which tiles are touched between two barriers
// is said in scan_shape.cuh.
//
// Steps past the end have delta = 0 and leave the state as it is, so the inner loop knows no ends.
//
// With sixteen states the sum over them is the same tree whatever kLanes is, so that a channel's result does
// not depend on how many others are scanned beside it.
#pragma once

#include "scan_selectors.cuh"
#include "scan_shape.cuh"
#include "ssm.cuh"

namespace dualscale {

struct ScanArguments {
  SsmArguments in;
  const float* initial;
  float* last;
  void* y;
  Kind result;
  SelectorView selectors;  // of u
};

template <class Shape, class Selectors>
struct ScanBlock : Shape {
  using Shape::kBatch, Shape::kBatches, Shape::kChannels, Shape::kCodes, Shape::kLanes, Shape::kOwn;
  using Shape::kPadded, Shape::kRow, Shape::kStates, Shape::kTile, Shape::kWarpChannels, Shape::kRawStates;
  using typename Shape::Parameters, typename Shape::Place, typename Shape::Shared, typename Shape::Stage;

  // What a lane keeps of its tokens of a batch until their sums have met; gates only where that is later.
  struct Own {
    float u[kOwn], gate[kOwn];
  };

  const ScanArguments& a;
  Shared& s;
  int batch, first_channel;
  int length;
  int part, channel;  // of this lane: which states, which channel of the block
  Parameters kept;    // where registers are plenty
  WarpSelectors<Selectors, kWarpChannels, Shape::kLater> selectors;

  __device__ ScanBlock(const ScanArguments& arguments, Shared& shared) : a(arguments), s(shared) {
    batch = blockIdx.y + gridDim.y * blockIdx.z;
    first_channel = blockIdx.x * kChannels;
    length = static_cast<int>(a.in.length);
    const Lane lane(threadIdx.x);
    part = lane.part;
    channel = lane.channel;
  }

  // Which states and which channel of the block a thread has. The second bit of a lane tells channels apart:
  // lanes n and n ^ 2 read the same B and C, lanes n and n ^ 1 the same steps, which halves the cycles of
  // such a load.
  struct Lane {
    int part, channel;
    __device__ __forceinline__ explicit Lane(int thread) {
      const int lane = thread % 32, rest = (lane & 1) | (lane >> 2 << 1);
      part = rest % kLanes;
      channel = thread / 32 * kWarpChannels + (rest / kLanes << 1 | (lane >> 1 & 1));
    }
  };

  // Where the rows lie; before anything is copied.
  __device__ void open_streams() {
    set_place();
    const int i = threadIdx.x;
    if (i < 5) {
      const Input& input = i == 0 ? a.in.u : i == 1 ? a.in.delta : i == 2 ? a.in.z : i == 3 ? a.in.B : a.in.C;
      const int64_t left = a.in.channels - first_channel;
      s.streams[i] = i < 3 ? Stream::of(input, batch, first_channel, min(left, int64_t{kChannels}))
                           : Stream::of(input, batch, 0, a.in.states);
      if (i >= 3 && input.code.rows != nullptr) {
        s.codes[i - 3] = Scaled::of(input.code.rows);
      }
    }
    __syncthreads();
  }

  // Parameters of this lane's channel, and the table of gates.
  __device__ void load_parameters() {
    const int64_t at = min(first_channel + channel, static_cast<int>(a.in.channels) - 1);
    const CodeView& code = a.in.u.code;
    Parameters own{};
    if constexpr (Selectors::kPairs) {
      const Pair pair = Pair::load(code.rows + (code.per_channel ? at * kPairWidth : 0));
      own.u = {pair.inner, pair.outer, 0.0f, 0.0f};
    } else if (code.rows != nullptr && !code.is_table) {
      own.u = Scaled::of(code.rows + (code.per_channel ? at * kKneeWidth : 0));
    }
    own.bias = a.in.delta_bias ? a.in.delta_bias[at] : 0.0f;
    own.skip = a.in.D ? a.in.D[at] : 0.0f;
    if (a.in.delta.code.rows != nullptr) {
      own.delta = Scaled::of(a.in.delta.code.rows);
      own.delta.offset += own.bias;
    }
    if constexpr (Shape::kLater) {
      kept = own;
    } else {
      s.parameters[channel] = own;  // the same from all lanes of the channel
    }
    if (a.in.z.data == nullptr || a.in.z.code.rows != nullptr) {
      for (int i = threadIdx.x; i < kLevels; i += kScanThreads) {
        s.gates[i] = a.in.z.data == nullptr ? 1.0f : silu(Scaled::of(a.in.z.code.rows).value(biased(i)));
      }
    }
    if constexpr (Shape::kTable) {
      fill_table();
    }
  }

  // By each warp for its channels.
  __device__ void fill_table() const {
    Scaled code = Scaled::of(a.in.delta.code.rows);
    const float offset = code.offset;
#pragma unroll 1
    for (int i = 0; i < kWarpChannels; ++i) {
      const int own = threadIdx.x / 32 * kWarpChannels + i;
      const int64_t at = min(first_channel + own, static_cast<int>(a.in.channels) - 1);
      const float bias = a.in.delta_bias ? a.in.delta_bias[at] : 0.0f;
      code.offset = offset + bias;
#pragma unroll 4
      for (int q = threadIdx.x % 32; q < kLevels; q += 32) {
        s.table[own][q] = softplus(value_of_delta(code, bias, biased(q)));
      }
    }
  }

  static __device__ __forceinline__ float value_of_delta(const Scaled& code, float bias, float x) {
    const float t = x - code.origin;
    return fmaxf(fmaf(t, code.scale, bias), fmaf(t, code.slope, code.offset));
  }

  __device__ __forceinline__ const Parameters& parameters() const {
    if constexpr (Shape::kLater) {
      return kept;
    } else {
      return s.parameters[channel];
    }
  }

  // A code's byte as Scaled takes it.
  static __device__ __forceinline__ float biased(uint32_t byte) {
    return __uint_as_float(byte ^ 0x4b000080u);
  }

  __device__ __forceinline__ Stage& stage_of(int tile) const {
    return s.stage[static_cast<unsigned>(tile) % Shape::kStages];
  }

  // Starts the copies of a tile, one warp an array.
  __device__ __forceinline__ void copy(int tile) const {
    const int start = tile * kTile;
    const int rows = min(length - start, kTile);  // or fewer than none
    Stage& to = stage_of(tile);
    const int warp = threadIdx.x / 32;
    if (warp < 3) {
      auto* rows_of = warp == 0 ? to.u : warp == 1 ? to.delta : to.z;
      RowCopy<kTile, kRow, Shape::kRowBytes>::run(s.streams[warp], start, rows, rows_of[0]);
    } else if constexpr (kRawStates) {
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        RowCopy<kTile, Shape::kStateRow, Shape::kStateRow>::run(s.streams[3 + i], start, rows,
                                                                to.states[i][0]);
      }
    }
    end_of_copies();
  }

  // A value in shared memory; codes stay biased.
  static __device__ __forceinline__ float raw_value(const uint8_t* row, int column, Kind kind) {
    if (kCodes || kind == Kind::kCodes) {
      return biased(row[column]);
    }
    if (kind == Kind::kFloat) {
      return reinterpret_cast<const float*>(row)[column];
    }
    const uint16_t bits = reinterpret_cast<const uint16_t*>(row)[column];
    return kind == Kind::kHalf ? __half2float(__ushort_as_half(bits))
                               : __uint_as_float(static_cast<uint32_t>(bits) << 16);
  }

  static constexpr int kItems = kPadded * kTile / 4;  // of B or of C, four tokens' values of a state
  static_assert(kItems % kScanThreads == 0 || kScanThreads % kItems == 0,
                "a thread has items of one matrix or both");

  __device__ void set_place() {
    const int thread = threadIdx.x, row = thread / Shape::kGroups, column = thread % Shape::kGroups * 4;
    s.places[thread] = {(row * Shape::kSumRow + column) * 4, row, column, 0};
  }

  // Decodes the B and C of a tile.
  __device__ __forceinline__ void decode_states(int tile) const {
    static_assert(kItems % kScanThreads == 0 || 2 * kItems <= kScanThreads,
                  "a thread has one matrix or both");
    const unsigned thread = threadIdx.x;
    if constexpr (kItems >= kScanThreads) {
#pragma unroll
      for (int matrix = 0; matrix < 2; ++matrix) {
        for (int turn = 0; turn < kItems / kScanThreads; ++turn) {
          decode_item(matrix, tile, turn * kScanThreads + thread);
        }
      }
    } else if (2 * kItems == kScanThreads || thread < 2 * kItems) {
      decode_item(thread / kItems, tile, thread % kItems);
    }
  }

  __device__ __forceinline__ void decode_item(int matrix, int tile, int item) const {
    const int state = item % kPadded, token = item / kPadded * 4;
    auto* to = &s.states[tile & 1][matrix][state][token];
    *reinterpret_cast<float4*>(to) = four_states(matrix, tile, state, token);
  }

  // Four neighbouring tokens' B or C of one state; what does not exist is zero, unless a step of 0 hides it.
  __device__ __forceinline__ float4 four_states(int matrix, int tile, int state, int token) const {
    const Input& input = matrix == 0 ? a.in.B : a.in.C;
    const Scaled code = s.codes[matrix];
    const Stage& stage = stage_of(tile);
    float x[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      if constexpr (kCodes) {
        x[t] = code.value(biased(stage.states[matrix][token + t][state]));
        continue;
      }
      const int row = tile * kTile + token + t;
      x[t] = 0.0f;
      if (row < length && state < a.in.states) {
        if constexpr (kRawStates) {
          x[t] = raw_value(stage.states[matrix][token + t], state, input.kind);
        } else {
          const auto* from = static_cast<const uint8_t*>(input.data) +
                             (batch * input.batch_stride + row * input.row_stride) * width_of(input.kind);
          x[t] = raw_value(from, state, input.kind);
        }
        x[t] = input.code.rows != nullptr ? code.value(x[t]) : x[t];
      }
    }
    return make_float4(x[0], x[1], x[2], x[3]);
  }

  __device__ __forceinline__ float decoded_u(const uint8_t* row, const Parameters& own, bool is_outer) const {
    const float x = raw_value(row, channel, a.in.u.kind);
    if constexpr (Selectors::kPairs) {
      return (x - kByteBias) * (is_outer ? own.u.scale : own.u.origin);
    } else {
      const CodeView& code = a.in.u.code;
      if (!kCodes && (code.rows == nullptr || code.is_table)) {
        if (code.rows == nullptr) {
          return x;
        }
        const int64_t at = min(first_channel + channel, static_cast<int>(a.in.channels) - 1);
        return __ldg(code.rows + (code.per_channel ? at * kTableWidth : 0) + (__float_as_uint(x) & 0xffu));
      }
      return own.u.value(x);
    }
  }

  __device__ __forceinline__ float gate_of(const uint8_t* row) const {
    const Input& z = a.in.z;
    if (kCodes || z.data == nullptr || z.kind == Kind::kCodes) {
      return s.gates[kCodes || z.data != nullptr ? row[channel] : 0];
    }
    return silu(raw_value(row, channel, z.kind));
  }

  __device__ __forceinline__ ScanPlace place() const {
    return {batch, first_channel + threadIdx.x / 32 * kWarpChannels, a.in.channels};
  }

  // Selectors of the 32 tokens from `start` on, where a list begins there; else they are there already.
  __device__ __forceinline__ void spread_selectors(int start) {
    if constexpr (Selectors::kPairs) {
      if (start % kListTokens == 0) {
        selectors.spread(a.selectors, place(), start, s.selectors[threadIdx.x / 32][start / kListTokens & 1]);
        selectors.fetch(a.selectors, place(), start + kListTokens);
      }
    }
  }

  // Decodes this lane's tokens of a batch and hands delta and delta * u to the channel's other lanes, who
  // read them behind __syncwarp().
  __device__ __forceinline__ void prepare(int tile, int b, Own& own) const {
    const Stage& stage = stage_of(tile);
    const int start = tile * kTile;
    const int left = length - start - b * kBatch - part * kOwn;  // from this lane's first token on
    const bool coded = kCodes || a.in.delta.code.rows != nullptr;
    const Parameters its = parameters();
    float step[2 * kOwn];
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      const int token = b * kBatch + part * kOwn + o;
      bool is_outer = false;
      if constexpr (Selectors::kPairs) {
        const uint32_t word =
            s.selectors[threadIdx.x / 32][start / kListTokens & 1][start % kListTokens + token];
        is_outer = word >> (channel % kWarpChannels) & 1;
      }
      own.u[o] = decoded_u(stage.u[token], its, is_outer);
      float delta;
      if constexpr (Shape::kTable) {
        delta = s.table[channel][stage.delta[token][channel]];
      } else {
        const float x = raw_value(stage.delta[token], channel, a.in.delta.kind);
        delta = softplus(coded ? value_of_delta(its.delta, its.bias, x) : x + its.bias);
      }
      own.u[o] = kCodes || o < left ? own.u[o] : 0.0f;  // what lies there may be no number
      if constexpr (Shape::kLater) {
        own.gate[o] = gate_of(stage.z[token]);
      }
      step[2 * o] = o < left ? delta : 0.0f;
      step[2 * o + 1] = step[2 * o] * own.u[o];
    }
    float* to = s.steps[threadIdx.x / 32][(tile * kBatches + b) & 1][channel % kWarpChannels];
#pragma unroll
    for (int o = 0; o < kOwn; o += 2) {
      auto* at = to + 2 * (part * kOwn + o);
      if constexpr (kOwn == 1) {
        *reinterpret_cast<float2*>(at) = make_float2(step[0], step[1]);
      } else {
        *reinterpret_cast<float4*>(at) =
            make_float4(step[2 * o], step[2 * o + 1], step[2 * o + 2], step[2 * o + 3]);
      }
    }
  }
};

}  // namespace dualscale

// State space duality over a sequence on the tensor cores: one block walks the sequence for 64 channels of
// one or two heads, 64 tokens at a time, and keeps their state in registers as the sums of a matrix product.
//
// A warp owns 16 channels (rows of the state) or 32 with all their states. Its rows, rounded to the half
// type, are operands of C h^T as they lie in the registers, so the state is never stored. Per chunk, with c
// the running sum of delta' A and s = delta':
//   decode x, B, C into shared memory; c, s
//   S[i][j] = (C B^T)[i][j] exp(c_i - c_j) s_j for j <= i, plus D on the diagonal; the block's heads share C
//   B^T y[i] = exp(c_i) C h^T + S x h = exp(c_last) h + x^T (exp(c_last - c_j) s_j B)
// All exponents are at most 0. Tokens past the end have s = 0 and x = B = C = 0 and change nothing.
#pragma once

#include "ssd.cuh"
#include "ssd_tiles.cuh"

namespace dualscale {

constexpr int kHeadTile = 64;  // channels of a head that a block takes
constexpr int kWarpRows = 16;  // of the state, to one set of sums
constexpr int kRowBlocks = kChunk / 16;

struct SsdScan {
  SsdCommon in;
  TileInput x, B, C;
  int head_blocks, tiles;  // blocks that share the heads of a group, the channels of a head
  StateView initial, last;
  void* y;
};

template <class T, int kStates, int kWarps, int kSlices>
struct SsdBlock {
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kHeads = kWarps * kSlices * kWarpRows / kHeadTile;
  using StateTile = Tile<T, kThreads, kStates>;
  using ChannelTile = Tile<T, kThreads, kHeads * kHeadTile>;
  static constexpr int kScoreStride = kChunk + 8;

  struct Shared {
    typename ChannelTile::Code x_code;
    typename StateTile::Code B_code, C_code;
    alignas(16) T x[kChunk * ChannelTile::kStride];
    alignas(16) T B[kChunk * StateTile::kStride];
    alignas(16) T C[kChunk * StateTile::kStride];
    alignas(16) T scores[kHeads][kChunk * kScoreStride];
    alignas(16) float sum[kHeads][kChunk];          // of delta' A log2(e) up to and with the token
    alignas(16) float grow[kHeads][kChunk];         // 2^sum
    alignas(16) float step[kHeads][kChunk];         // delta', times what B's decoding left out
    alignas(16) T weight[kHeads][kChunk];           // step 2^(last sum - sum)
    alignas(16) float out[kHeads * kHeadTile];      // what y's channels are multiplied by
    float decay[kHeads];                            // 2^(last sum)
    float rate[kHeads], bias[kHeads], skip[kHeads];  // A log2(e), delta's bias, D over what C's decoding left out
    float B_rest, C_rest;
  };

  const SsdScan& a;
  Shared& s;
  char* memory;
  int64_t batch;
  int group, first_head, heads, first_p;  // heads: how many of the block's exist
  float h[kSlices][kStates / 8][4];

  __device__ SsdBlock(const SsdScan& arguments, char* shared)
      : a(arguments), s(*reinterpret_cast<Shared*>(shared)), memory(shared) {
    unsigned index = blockIdx.x;
    first_p = static_cast<int>(index % a.tiles) * kHeadTile;
    index /= a.tiles;
    const int heads_of_a_group = a.in.heads_of_a_group();
    const int first = static_cast<int>(index % a.head_blocks) * kHeads;
    index /= a.head_blocks;
    group = static_cast<int>(index % a.in.groups);
    batch = index / a.in.groups;
    first_head = group * heads_of_a_group + first;
    heads = min(heads_of_a_group - first, kHeads);
  }

  // What a thread of a warp works on.
  struct Own {
    unsigned lane, warp;
    int head;    // which of the block's heads
    int column;  // its first channel in that head's tile

    __device__ __forceinline__ Own() {
      const unsigned thread = thread_now();
      lane = thread % 32;
      warp = thread / 32;
      head = warp * kSlices * kWarpRows / kHeadTile;
      column = warp * kSlices * kWarpRows % kHeadTile;
    }
  };

  // Whether some of this warp's channels exist.
  __device__ __forceinline__ bool is_active() const {
    const Own own;
    return own.head < heads && first_p + own.column < a.in.head_dim;
  }

  __device__ __forceinline__ auto channels_part(int start) const {
    const unsigned thread = thread_now();
    const int column = thread % ChannelTile::kPieces * kPiece;
    const int head = column / kHeadTile, p = first_p + column % kHeadTile;
    const int valid = head < heads ? min(max(a.in.head_dim - p, 0), kPiece) : 0;
    return typename ChannelTile::Part(a.x, batch * a.x.in.batch_stride + start * a.x.in.row_stride, thread,
                                      (first_head + head) * a.in.head_dim + p, valid, memory);
  }

  __device__ __forceinline__ auto states_part(const TileInput& input, int start) const {
    const unsigned thread = thread_now();
    const int n = thread % StateTile::kPieces * kPiece;
    const int valid = min(max(a.in.states - n, 0), kPiece);
    return typename StateTile::Part(input, batch * input.in.batch_stride + start * input.in.row_stride,
                                    thread, group * a.in.states + n, valid, memory);
  }

  static __device__ __forceinline__ const float* code_row(const Input& input, int64_t channel) {
    return input.code.rows == nullptr || input.code.is_table
               ? nullptr
               : input.code.rows + (input.code.per_channel ? channel * kKneeWidth : 0);
  }

  static __device__ __forceinline__ bool has_rows(const Input& input) {
    return input.code.per_channel && !input.code.is_table;
  }

  // Where all channels of B or C share a code, what decoding leaves out is one number.
  __device__ __forceinline__ void set_codes() {
    const bool B_rows = has_rows(a.B.in), C_rows = has_rows(a.C.in), empty = a.in.length == 0;
    for (int n = threadIdx.x; n < kStates; n += kThreads) {
      const int channel = group * a.in.states + n;
      const bool exists = n < a.in.states;
      set_code(s.B_code, n, exists ? code_row(a.B.in, channel) : nullptr);
      set_code(s.C_code, n, exists ? code_row(a.C.in, channel) : nullptr);
      if (n == 0) {
        s.B_rest = B_rows || empty ? 1.0f : s.B_code.rest[0];
        s.C_rest = C_rows || empty ? 1.0f : s.C_code.rest[0];
      }
      const float both = (B_rows ? s.B_code.rest[n] : 1.0f) * (C_rows ? s.C_code.rest[n] : 1.0f);
      s.C_code.after[n] = __float2half_rn(both);
      s.B_code.rest[n] = B_rows && !empty ? s.B_code.rest[n] : 1.0f;
    }
    __syncthreads();
    if (threadIdx.x < kHeads) {
      const int head = threadIdx.x;
      const bool exists = head < heads;
      s.rate[head] = exists ? kLog2e * a.in.A[first_head + head] : 0.0f;
      s.bias[head] = exists && a.in.delta_bias ? a.in.delta_bias[first_head + head] : 0.0f;
      s.skip[head] = exists && a.in.D ? a.in.D[first_head + head] / s.C_rest : 0.0f;
    }
    for (int c = threadIdx.x; c < kHeads * kHeadTile; c += kThreads) {
      const int head = c / kHeadTile, p = first_p + c % kHeadTile;
      const bool exists = head < heads && p < a.in.head_dim;
      set_code(s.x_code, c, exists ? code_row(a.x.in, (first_head + head) * a.in.head_dim + p) : nullptr);
      s.x_code.rest[c] = empty ? 1.0f : s.x_code.rest[c];
      s.out[c] = s.x_code.rest[c] * s.C_rest;
    }
  }

  // Loads the state in front of the sequence, or stores the one behind it. In registers a state is in units
  // of what decoding x and B left out.
  template <bool kLoad>
  __device__ __forceinline__ void move_state() {
    const StateView& view = kLoad ? a.initial : a.last;
    const Own own;
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = own.column + i * kWarpRows + half * 8 + own.lane / 4, p = first_p + column;
        const float unit = s.x_code.rest[own.head * kHeadTile + column];
        const int64_t at = view.offset(batch, first_head + own.head, p);
#pragma unroll
        for (int tile = 0; tile < kStates / 8; ++tile) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int n = tile * 8 + own.lane % 4 * 2 + j;
            const bool exists = own.head < heads && p < a.in.head_dim && n < a.in.states;
            const float factor = unit * s.B_code.rest[n];
            float& value = h[i][tile][2 * half + j];
            if constexpr (kLoad) {
              value = 0.0f;
              if (exists && view.data != nullptr) {
                value = view.kind == Kind::kHalf ? __half2float(static_cast<const __half*>(view.data)[at + n])
                                                 : static_cast<const float*>(view.data)[at + n];
                value = __fdividef(value, factor);
              }
            } else if (exists) {
              value *= factor;
              if (view.kind == Kind::kHalf) {
                static_cast<__half*>(view.data)[at + n] = __float2half_rn(value);
              } else {
                static_cast<float*>(view.data)[at + n] = value;
              }
            }
          }
        }
      }
    }
  }

  __device__ __forceinline__ int rows_from(int start) const {
    return min(static_cast<int>(a.in.length) - start, kChunk);
  }

  // Starts the loads of the chunk at `start`.
  __device__ __forceinline__ void fetch(int start) {
    const int rows = rows_from(start);
    ChannelTile::fetch(channels_part(start), rows);
    StateTile::fetch(states_part(a.B, start), rows);
    StateTile::fetch(states_part(a.C, start), rows);
  }

  __device__ __forceinline__ void decode(int start) {
    const int rows = rows_from(start);
    uint32_t delta[2] = {};  // loaded long before they are needed
    const Own own;
    if (static_cast<int>(own.warp) < heads) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int64_t row = min(start + 2 * static_cast<int>(own.lane) + j, start + rows - 1);
        delta[j] = load_bits(a.in.delta, batch * a.in.delta.batch_stride + row * a.in.delta.row_stride +
                                             first_head + own.warp);
      }
    }
    wait_for_copies();
    ChannelTile::decode(channels_part(start), s.x_code, false, rows, s.x);
    StateTile::decode(states_part(a.B, start), s.B_code, false, rows, s.B);
    StateTile::decode(states_part(a.C, start), s.C_code, has_rows(a.B.in) || has_rows(a.C.in), rows, s.C);
    if (own.warp < kHeads) {
      set_steps(own.warp, own.lane, rows, delta);
    }
  }

  // One warp: steps and their sums for one of the block's heads.
  __device__ __forceinline__ void set_steps(int head, unsigned lane, int rows, const uint32_t (&bits)[2]) {
    float step[2] = {}, sum[2] = {};
    if (head < heads) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float delta = value_of_bits(a.in.delta, bits[j], 0);
        step[j] = 2 * lane + j < rows ? step_size(delta, s.bias[head], a.in.low, a.in.high) : 0.0f;
        sum[j] = 2 * lane + j < rows ? step[j] * s.rate[head] : 0.0f;
      }
    }
    float before = sum[0] + sum[1];
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const float lower = __shfl_up_sync(0xffffffffu, before, distance);
      before += lane >= distance ? lower : 0.0f;
    }
    const float last = __shfl_sync(0xffffffffu, before, 31);
    before = __shfl_up_sync(0xffffffffu, before, 1);
    sum[0] += lane > 0 ? before : 0.0f;
    sum[1] += sum[0];
    float weight[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      step[j] *= s.B_rest;
      weight[j] = step[j] * exp2_approx(last - sum[j]);
    }
    reinterpret_cast<float2*>(s.sum[head])[lane] = make_float2(sum[0], sum[1]);
    reinterpret_cast<float2*>(s.grow[head])[lane] = make_float2(exp2_approx(sum[0]), exp2_approx(sum[1]));
    reinterpret_cast<float2*>(s.step[head])[lane] = make_float2(step[0], step[1]);
    reinterpret_cast<uint32_t*>(s.weight[head])[lane] = pack_pair<T>(weight[0], weight[1]);
    if (lane == 0) {
      s.decay[head] = exp2_approx(last);
    }
  }

  // Addresses of fragments: rows along the first index of a tile for A, or transposed for what multiplies;
  // ...
  static __device__ __forceinline__ uint32_t at(const T* tile, int stride, int row, int column,
                                                unsigned lane) {
    return shared_address(tile) + 2 * (lane % 16 * stride + lane / 16 * 8) + 2 * (row * stride + column);
  }
  // ... and rows of B^T, the second index running along the sum.
  static __device__ __forceinline__ uint32_t at_columns(const T* tile, int stride, int row, int column,
                                                        unsigned lane) {
    return shared_address(tile) + 2 * ((lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8) +
           2 * (row * stride + column);
  }

  // S in blocks of 16 x 16 on and below the diagonal, shared out among the warps.
  __device__ __forceinline__ void set_scores() {
    const Own own;
#pragma unroll 1
    for (int block = static_cast<int>(own.warp); block < kRowBlocks * (kRowBlocks + 1) / 2; block += kWarps) {
      const int r = block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3;
      const int c = block - r * (r + 1) / 2;
      float product[2][4] = {};
#pragma unroll 4
      for (int n = 0; n < kStates; n += 16) {
        uint32_t left[4], right[4];
        load_matrices(at(s.C, StateTile::kStride, 16 * r, n, own.lane), left);
        load_matrices(at_columns(s.B, StateTile::kStride, 16 * c, n, own.lane), right);
        multiply_add<T>(product[0], left, right[0], right[1]);
        multiply_add<T>(product[1], left, right[2], right[3]);
      }
#pragma unroll
      for (int head = 0; head < kHeads; ++head) {
        set_block(head, r, c, s.skip[head], own.lane, product);
      }
    }
  }

  __device__ __forceinline__ void set_block(int head, int r, int c, float skip, unsigned lane,
                                            const float (&product)[2][4]) {
    const int i = 16 * r + lane / 4;
    const float sum[2] = {s.sum[head][i], s.sum[head][i + 8]};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int j = 16 * c + 8 * tile + lane % 4 * 2;
      const float2 other = *reinterpret_cast<const float2*>(&s.sum[head][j]);
      const float2 step = *reinterpret_cast<const float2*>(&s.step[head][j]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float low = product[tile][2 * half] * exp2_approx(sum[half] - other.x) * step.x;
        float high = product[tile][2 * half + 1] * exp2_approx(sum[half] - other.y) * step.y;
        const int row = i + 8 * half;
        if (r == c) {
          low = j < row ? low : j == row ? low + skip : 0.0f;
          high = j + 1 < row ? high : j + 1 == row ? high + skip : 0.0f;
        }
        *reinterpret_cast<uint32_t*>(&s.scores[head][row * kScoreStride + j]) = pack_pair<T>(low, high);
      }
    }
  }

  // Of y, for two blocks of 16 tokens: all four would take too many registers.
  using Sums = float[kSlices][2][2][4];

  // y = exp(c) C h^T for the blocks from `first` on.
  __device__ __forceinline__ void read_state(int first, Sums& y) const {
    const Own own;
    const unsigned lane = own.lane;
#pragma unroll
    for (int n = 0; n < kStates / 16; ++n) {
      uint32_t state[kSlices][4];
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          state[i][j] = pack_pair<T>(h[i][2 * n + j % 2][j / 2 * 2], h[i][2 * n + j % 2][j / 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint32_t left[4];
        load_matrices(at(s.C, StateTile::kStride, 16 * (first + r), 16 * n, lane), left);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
          multiply_add<T>(y[i][r][0], left, state[i][0], state[i][1]);
          multiply_add<T>(y[i][r][1], left, state[i][2], state[i][3]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* grow = &s.grow[own.head][16 * (first + r) + lane / 4];
      const float low = grow[0], high = grow[8];
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          y[i][r][0][j] *= j < 2 ? low : high;
          y[i][r][1][j] *= j < 2 ? low : high;
        }
      }
    }
  }

  __device__ __forceinline__ void decay_state() {
    const float decay = s.decay[Own().head];
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
#pragma unroll
      for (int n = 0; n < kStates / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          h[i][n][j] *= decay;
        }
      }
    }
  }

  // y += S x for the blocks from `first` on. With the last of them, h += x^T (weight B): the same fragments
  // of x serve both.
  __device__ __forceinline__ void read_inputs(int first, Sums& y) {
    const Own own;
    const unsigned lane = own.lane;
#pragma unroll 1
    for (int c = 0; c < first + 2; ++c) {
      uint32_t values[kSlices][4];
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
        const int column = own.head * kHeadTile + own.column + i * kWarpRows;
        load_transposed(at(s.x, ChannelTile::kStride, 16 * c, column, lane), values[i]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (first + r < c) {
          continue;
        }
        uint32_t left[4];
        load_matrices(at(s.scores[own.head], kScoreStride, 16 * (first + r), 16 * c, lane), left);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
          multiply_add<T>(y[i][r][0], left, values[i][0], values[i][1]);
          multiply_add<T>(y[i][r][1], left, values[i][2], values[i][3]);
        }
      }
      if (first + 2 == kRowBlocks) {
        add_to_state(own, c, values);
      }
    }
  }

  __device__ __forceinline__ void add_to_state(const Own& own, int c, uint32_t (&values)[kSlices][4]) {
    const auto* weights = reinterpret_cast<const uint32_t*>(&s.weight[own.head][16 * c]) + own.lane % 4;
    const uint32_t low = weights[0], high = weights[4];
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      const uint32_t second = multiply_pair<T>(values[i][2], low);
      values[i][0] = multiply_pair<T>(values[i][0], low);
      values[i][2] = multiply_pair<T>(values[i][1], high);
      values[i][3] = multiply_pair<T>(values[i][3], high);
      values[i][1] = second;
    }
#pragma unroll
    for (int n = 0; n < kStates / 16; ++n) {
      uint32_t right[4];
      load_transposed(at(s.B, StateTile::kStride, 16 * c, 16 * n, own.lane), right);
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
        multiply_add<T>(h[i][2 * n], values[i], right[0], right[1]);
        multiply_add<T>(h[i][2 * n + 1], values[i], right[2], right[3]);
      }
    }
  }

  // Neighbouring threads trade halves, so that each stores four neighbouring channels.
  __device__ __forceinline__ void store(int first, const Sums& y, int start) const {
    const Own own;
    const int64_t channels = static_cast<int64_t>(a.in.heads) * a.in.head_dim;
    const bool whole = a.in.head_dim % kWarpRows == 0;
    const int odd = own.lane % 2, rows = rows_from(start);
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      const int column = own.column + i * kWarpRows;
      const int p = first_p + column + 8 * odd + own.lane % 4 / 2 * 4, valid = a.in.head_dim - p;
      const float2 left_out =
          *reinterpret_cast<const float2*>(&s.out[own.head * kHeadTile + column + own.lane % 4 * 2]);
      const float2 right_out =
          *reinterpret_cast<const float2*>(&s.out[own.head * kHeadTile + column + 8 + own.lane % 4 * 2]);
      T* to = static_cast<T*>(a.y) + (batch * a.in.length + start + 16 * first + own.lane / 4) * channels +
              (first_head + own.head) * a.in.head_dim + p;
#pragma unroll
      for (int half = 0; half < 4; ++half) {
        const auto& sums = y[i][half / 2];
        const int j = half % 2 * 2;
        const uint32_t left = pack_pair<T>(sums[0][j] * left_out.x, sums[0][j + 1] * left_out.y);
        const uint32_t right = pack_pair<T>(sums[1][j] * right_out.x, sums[1][j + 1] * right_out.y);
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? left : right, 1);
        Raw<T, 4> raw;
        raw.word[0] = odd ? other : left;
        raw.word[1] = odd ? right : other;
        if (16 * first + half * 8 + own.lane / 4 < rows && valid > 0) {
          store_raw(to, raw, whole, valid);
        }
        to += 8 * channels;
      }
    }
  }

  __device__ __forceinline__ void advance(int first, int start) {
    Sums y = {};
    read_state(first, y);
    if (first + 2 == kRowBlocks) {
      decay_state();
    }
    read_inputs(first, y);
    store(first, y, start);
  }

  __device__ __forceinline__ void run() {
    set_codes();
    __syncthreads();
    move_state<true>();
    const int length = static_cast<int>(a.in.length);
    if (length > 0) {
      fetch(0);
    }
#pragma unroll 1
    for (int start = 0; start < length; start += kChunk) {
      decode(start);
      __syncthreads();
      if (start + kChunk < length) {
        fetch(start + kChunk);
      }
      set_scores();
      __syncthreads();
      if (is_active()) {
#pragma unroll 1
        for (int first = 0; first < kRowBlocks; first += 2) {
          advance(first, start);
        }
      }
      __syncthreads();
    }
    move_state<false>();
  }
};

template <class T, int kStates, int kWarps, int kSlices, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) ssd_scan(const __grid_constant__ SsdScan a) {
  extern __shared__ __align__(16) char memory[];
  SsdBlock<T, kStates, kWarps, kSlices>(a, memory).run();
}

}  // namespace dualscale

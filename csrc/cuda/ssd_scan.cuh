// State space duality over a sequence on the tensor cores: one block walks the sequence for 64 channels of
// one or two heads, 64 tokens at a time, and keeps their state in registers as the sums of a matrix product.
//
// A warp owns 16 channels (rows of the state) or 32 with all their states. Its rows, rounded to the half
// type, are operands of C h^T as they lie in the registers, so the state is never stored. Per chunk, with c
// the running sum of delta' A and s = delta', in spans of 32 tokens:
//
//   decode x, B, C into shared memory; c, s
//
//   S[i][j] = (C B^T)[i][j] exp(c_i - c_j) s_j for j <= i, plus D on the diagonal; the heads share C B^T
//
//   y[i] = exp(c_i) C h^T + S x
//
//   h = exp(c_last) h + x^T (exp(c_last - c_j) s_j B)
//
// All exponents are at most 0. Tokens past the end have s = 0 and finite x, B and C, and change nothing.
#pragma once

#include "ssd_inputs.cuh"

namespace dualscale {

template <class T, int kStates, int kWarps, int kSlices>
struct SsdBlock : SsdInputs<T, kStates, kWarps, kSlices> {
  using Base = SsdInputs<T, kStates, kWarps, kSlices>;
  using Base::a;
  using Base::kHeads;
  using Base::kScoreStride;
  using Base::s;
  using typename Base::ChannelTile;
  using typename Base::Own;
  using typename Base::StateTile;
  using typename Base::Steps;

  float h[kSlices][kStates / 8][4];

  __device__ SsdBlock(const SsdScan& arguments, char* shared) : Base(arguments, shared) {}

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
        const int column = own.column + i * kWarpRows + half * 8 + own.lane / 4, p = s.first_p + column;
        const float unit = s.x_code.rest[own.head * kHeadTile + column];
        const int64_t at = view.offset(s.batch, s.first_head + own.head, p);
#pragma unroll
        for (int tile = 0; tile < kStates / 8; ++tile) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int n = tile * 8 + own.lane % 4 * 2 + j;
            const bool exists = own.head < s.heads && p < a.in.head_dim && n < a.in.states;
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

  // S of every span in blocks of 16 x 16 on and below the diagonal, shared out among the warps.
  __device__ __forceinline__ void set_scores(int start) {
    const Own own;
#pragma unroll 1
    for (unsigned block = own.warp; block < 3 * kSpans; block += kWarps) {
      const int span = block / 3, r = block % 3 > 0, c = block % 3 > 1;
      const uint32_t left_at = at(s.C, StateTile::kStride, kSpan * span + 16 * r, 0, own.lane);
      const uint32_t right_at = at_columns(s.B, StateTile::kStride, kSpan * span + 16 * c, 0, own.lane);
      float product[2][4] = {};
#pragma unroll
      for (int n = 0; n < kStates; n += 16) {
        uint32_t left[4], right[4];
        load_matrices(left_at + 2 * n, left);
        load_matrices(right_at + 2 * n, right);
        multiply_add<T>(product[0], left, right[0], right[1]);
        multiply_add<T>(product[1], left, right[2], right[3]);
      }
#pragma unroll
      for (int head = 0; head < kHeads; ++head) {
        const Steps& steps = s.steps[start / kChunk % 2][head];
        set_block(steps.sum + kSpan * span, steps.step + kSpan * span, s.scores[head][span], r, c,
                  s.skip[head], own.lane, product);
      }
    }
  }

  // One block for one head: masked, scaled and rounded.
  static __device__ __forceinline__ void set_block(const float* sums, const float* steps, T* scores, int r,
                                                   int c, float skip, unsigned lane,
                                                   const float (&product)[2][4]) {
    const int i = 16 * r + lane / 4;
    const float sum[2] = {sums[i], sums[i + 8]};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int j = 16 * c + 8 * tile + lane % 4 * 2;
      const float2 other = *reinterpret_cast<const float2*>(&sums[j]);
      const float2 step = *reinterpret_cast<const float2*>(&steps[j]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float low = product[tile][2 * half] * exp2_approx(sum[half] - other.x) * step.x;
        float high = product[tile][2 * half + 1] * exp2_approx(sum[half] - other.y) * step.y;
        const int row = i + 8 * half;
        if (r == c) {
          low = j < row ? low : j == row ? low + skip : 0.0f;
          high = j + 1 < row ? high : j + 1 == row ? high + skip : 0.0f;
        }
        *reinterpret_cast<uint32_t*>(&scores[row * kScoreStride + j]) = pack_pair<T>(low, high);
      }
    }
  }

  using Sums = float[kSlices][2][2][4];  // of y, for a span

  // y = exp(c) C h^T; then the state decays.
  __device__ __forceinline__ void read_state(const Own& own, const Steps& steps, int span, Sums& y) {
    const uint32_t left_at = at(s.C, StateTile::kStride, kSpan * span, 0, own.lane);
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
        load_matrices(left_at + 2 * (16 * r * StateTile::kStride + 16 * n), left);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
          multiply_add<T>(y[i][r][0], left, state[i][0], state[i][1]);
          multiply_add<T>(y[i][r][1], left, state[i][2], state[i][3]);
        }
      }
    }
    const float decay = steps.decay[span];
    const float* grow = &steps.grow[kSpan * span + own.lane / 4];
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          y[i][r][0][j] *= grow[16 * r + j / 2 * 8];
          y[i][r][1][j] *= grow[16 * r + j / 2 * 8];
        }
      }
#pragma unroll
      for (int n = 0; n < kStates / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          h[i][n][j] *= decay;
        }
      }
    }
  }

  // y += S x and h += x^T (weight B): the same fragments of x serve both.
  __device__ __forceinline__ void read_inputs(const Own& own, const Steps& steps, int span, Sums& y) {
    const int column = own.head * kHeadTile + own.column;
    const uint32_t values_at = at(s.x, ChannelTile::kStride, kSpan * span, column, own.lane);
    const uint32_t scores_at = at(s.scores[own.head][span], kScoreStride, 0, 0, own.lane);
    const uint32_t right_at = at(s.B, StateTile::kStride, kSpan * span, 0, own.lane);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      uint32_t values[kSlices][4], left[2][4];
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
        load_transposed(values_at + 2 * (16 * c * ChannelTile::kStride + i * kWarpRows), values[i]);
      }
#pragma unroll
      for (int r = c; r < 2; ++r) {
        load_matrices(scores_at + 2 * (16 * r * kScoreStride + 16 * c), left[r]);
      }
#pragma unroll
      for (int r = c; r < 2; ++r) {
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
          multiply_add<T>(y[i][r][0], left[r], values[i][0], values[i][1]);
          multiply_add<T>(y[i][r][1], left[r], values[i][2], values[i][3]);
        }
      }
      weigh(own, steps, kSpan * span + 16 * c, values);
#pragma unroll
      for (int n = 0; n < kStates / 16; ++n) {
        uint32_t right[4];
        load_transposed(right_at + 2 * (16 * c * StateTile::kStride + 16 * n), right);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
          multiply_add<T>(h[i][2 * n], values[i], right[0], right[1]);
          multiply_add<T>(h[i][2 * n + 1], values[i], right[2], right[3]);
        }
      }
    }
  }

  // Fragments of x as what multiplies become fragments of (weight x)^T as what is multiplied.
  static __device__ __forceinline__ void weigh(const Own& own, const Steps& steps, int token,
                                               uint32_t (&values)[kSlices][4]) {
    const auto weight = [&](int part, int half) {
      return *reinterpret_cast<const uint32_t*>(&steps.weight[part][token + 8 * half + own.lane % 4 * 2]);
    };
    const uint32_t low[2] = {weight(0, 0), weight(1, 0)}, high[2] = {weight(0, 1), weight(1, 1)};
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      const uint32_t second = multiply_parts<T>(values[i][2], low);
      values[i][0] = multiply_parts<T>(values[i][0], low);
      values[i][2] = multiply_parts<T>(values[i][1], high);
      values[i][3] = multiply_parts<T>(values[i][3], high);
      values[i][1] = second;
    }
  }

  // Neighbouring threads trade halves, so that each stores four neighbouring channels.
  // `start` is the first token of the span.
  __device__ __forceinline__ void store(const Own& own, const Sums& y, int start) const {
    const int64_t channels = static_cast<int64_t>(a.in.heads) * a.in.head_dim;
    const bool odd = own.lane % 2, whole = a.in.head_dim % kWarpRows == 0;
    const int rows = static_cast<int>(a.in.length) - start - static_cast<int>(own.lane / 4);
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      const int column = own.column + i * kWarpRows;
      const int p = s.first_p + column + 8 * odd + own.lane % 4 / 2 * 4, valid = a.in.head_dim - p;
      const float* out = &s.out[own.head * kHeadTile + column + own.lane % 4 * 2];
      const float2 left_out = *reinterpret_cast<const float2*>(out);
      const float2 right_out = *reinterpret_cast<const float2*>(out + 8);
      T* to = static_cast<T*>(a.y) + (s.batch * a.in.length + start + own.lane / 4) * channels +
              (s.first_head + own.head) * a.in.head_dim + p;
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
        if (whole) {
          if (8 * half < rows) {
            *reinterpret_cast<uint2*>(to) = make_uint2(raw.word[0], raw.word[1]);
          }
        } else if (8 * half < rows && valid > 0) {
          store_raw(to, raw, false, valid);
        }
        to += 8 * channels;
      }
    }
  }

  __device__ __forceinline__ void advance(int start, int span) {
    const Own own;
    const Steps& steps = s.steps[start / kChunk % 2][own.head];
    Sums y = {};
    read_state(own, steps, span, y);
    read_inputs(own, steps, span, y);
    store(own, y, start + kSpan * span);
  }

  __device__ __forceinline__ void run() {
    this->set_codes();
    __syncthreads();
    move_state<true>();
    const int length = static_cast<int>(a.in.length);
    if (length > 0) {
      this->fetch(0);
      uint32_t delta[2] = {};
      this->load_steps(0, delta);
      this->set_steps(0, delta);
    }
#pragma unroll 1
    for (int start = 0; start < length; start += kChunk) {
      uint32_t delta[2] = {};
      this->load_steps(start + kChunk, delta);
      this->decode(start);
      __syncthreads();
      if (start + kChunk < length) {
        this->fetch(start + kChunk);
      }
      set_scores(start);
      this->set_steps(start + kChunk, delta);
      __syncthreads();
      if (this->is_active()) {
#pragma unroll 1
        for (int span = 0; span < kSpans; ++span) {
          advance(start, span);
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

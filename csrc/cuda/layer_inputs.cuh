// The first half of a layer's step: norm, in_proj, convolution. Every phase ends with a barrier of the block.
#pragma once

#include "conv.cuh"
#include "layer_exchange.cuh"
#include "layer_product.cuh"
#include "rows.cuh"

namespace dualscale {

#if defined(DUALSCALE_BULK)

template <int kBits, bool kKnee>
class LayerInputs {
 public:
  using Sums = StepSums<kBits>;
  using Sum = typename Sums::Sum;
  using Rows = SlotRows<kBits>;

  __device__ __forceinline__ LayerInputs(const LayerContext& context, const WeightRing<kBits>& ring,
                                         LayerExchange& exchange)
      : k(context), a(context.a), s(context.s), ring_(ring), exchange_(exchange) {}

  // Begins to fetch what no kernel of the step writes.
  __device__ __forceinline__ void start() {
    if (threadIdx.x == 0) {
      ring_.prepare();
    }
    __syncthreads();
    ring_.fill(0, ring_.capacity());
    if (k.warp == kLayerWarps - 1) {
      copy_parameters();
    }
    if (threadIdx.x == 0) {
      ring_.prefetch_in();
      ring_.prefetch_tail();
    }
    if (column() < a.width) {
      load_floats<true>(a.norm_weight + column(), kEight, norm_weight_);
    }
    if (convolves()) {
      for (int row = 0; row + 1 < a.taps; ++row) {
        prefetch_sector(conv_state_at(row));
      }
    }
  }

  // Begins to fetch what the norm adds, after await_earlier().
  __device__ __forceinline__ void load() {
    if (threadIdx.x == 0) {
      s.epoch = exchange_.epoch();
    }
#pragma unroll
    for (int b = 0; b < kLayerBatch; ++b) {
      if (b < a.batch && column() < a.width) {
        hidden_[b] = load_raw<__half, kEight>(a.hidden + b * a.hidden_stride + column(), true, kEight);
        if (a.residual.data != nullptr) {
          residual_[b] = load_eight<true>(a.residual, b * a.residual.row_stride + column(), kEight);
        }
      }
    }
  }

  // What is needed after in_proj.
  __device__ __forceinline__ void load_window() {
    if (convolves()) {
#pragma unroll
      for (int tap = 0; tap + 1 < kMaxTaps; ++tap) {
        const int row = tap - (kMaxTaps - a.taps);
        window_[tap] = row >= 0 ? static_cast<uint8_t>(*conv_state_at(row)) : 0;
      }
    }
  }

  // Codes of the norm of residual + hidden, all of the width; a slice of the sum is written.
  __device__ __forceinline__ void norm() {
    float x[kLayerBatch][kEight];
#pragma unroll
    for (int b = 0; b < kLayerBatch; ++b) {
      if (b < a.batch) {
        float squares = column() < a.width ? add_residual(b, x[b]) : 0.0f;
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
          squares += __shfl_xor_sync(0xffffffffu, squares, distance);
        }
        if (k.lane == 0) {
          s.squares[b][k.warp] = squares;
        }
      }
    }
    barrier_wait(ring_.parameters(), 0);
    __syncthreads();
    exchange_.begin(s.epoch);
    const RowCode code(k.code_of(kInCode));
#pragma unroll
    for (int b = 0; b < kLayerBatch; ++b) {
      if (b < a.batch && column() < a.width) {
        float squares = s.squares[b][0];
#pragma unroll
        for (int warp = 1; warp < kLayerWarps; ++warp) {
          squares += s.squares[b][warp];
        }
        const float inverse = rsqrtf(squares / static_cast<float>(a.width) + a.eps);
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
          x[b][j] *= inverse * norm_weight_[j];
        }
        code.template encode<true>(column(), kEight, x[b]);
        store_raw(reinterpret_cast<int8_t*>(k.memory + a.at.row + b * a.at.row_stride + column()),
                  pack<int8_t, kEight>(x[b]), true, kEight);
      }
    }
    __syncthreads();
  }

  // Codes of x and gates of z, of this block's channels.
  __device__ __forceinline__ void project() {
    constexpr int kSteps = kMostWidth / Sums::kCodes / kLayerWarps;
    const int steps = a.width / Sums::kCodes, tiles = a.own / kChannelStep;
    const int row_bytes = a.width * kBits / 8;
    uint32_t x[kSteps][Sums::kWords];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int step = k.warp + kLayerWarps * i;
      if (step < steps) {
        load_codes<kBits>(shared_address(k.memory + a.at.row), a.at.row_stride, a.batch, step, x[i]);
      }
    }
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      const int first = tile * Rows::kInSlots;
#pragma unroll
      for (int n = 0; n < Rows::kInSlots; ++n) {
        ring_.await(first + n);
      }
      const uint32_t low = row_at(first, k.g, row_bytes), high = row_at(first, k.g + 8, row_bytes);
      const int row = k.g % 2 * a.own + tile * kChannelStep + k.g / 2;
      Sums sums;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int step = k.warp + kLayerWarps * i;
        if (step < steps) {
          const auto scale = group_scales<kBits>(k.template parameter<__half>(kInScaleX), a.in, row, row + 4, step);
          sums.add(load_shared(low + Sums::kBytes * step), load_shared(high + Sums::kBytes * step), x[i], scale);
        }
      }
      uint8_t* const partial = k.memory + a.at.partial + tile % 2 * Sums::kPartialBytes;
      sums.store(partial);
      __syncthreads();
      ring_.fill(first + ring_.capacity(), first + ring_.capacity() + Rows::kInSlots);
      // Two warps finish the tile while all go on; they come to the next barrier before its room is used again.
      const int thread = threadIdx.x - 64 * (tile % (kLayerWarps / 2));
      if (thread >= 0 && thread < kTileRows * a.batch) {
        finish(partial, tile, thread % kTileRows, thread / kTileRows);
      }
    }
    __syncthreads();
  }

  // u of this block's channels; the window of inputs is shifted in place.
  __device__ __forceinline__ void convolve() {
    if (convolves()) {
      const int b = sequence(), c = channel();
      const ConvParameters parameters{k.parameter(kXCode),
                                      k.parameter(kConvWeight),
                                      a.has_conv_bias ? k.parameter(kConvBias) : nullptr,
                                      k.code_of(kUCode),
                                      a.taps,
                                      a.own,
                                      true};
      const Convolution<int8_t, false> conv(parameters, c, 1, true);
      const KneeResult<1> result(parameters.code, nullptr, c, 1);
      window_[kMaxTaps - 1] = static_cast<uint8_t>(s.x[b][c]);
      float value[kMaxTaps] = {};
#pragma unroll
      for (int tap = 0; tap < kMaxTaps; ++tap) {
        const int row = tap - (kMaxTaps - a.taps);
        if (row >= 0) {
          float eight[kConvVector];
          conv.values(Raw<int8_t, kConvVector>{{window_[tap], 0}}, eight);
          value[tap] = eight[0];
        }
        if (row > 0) {
          *conv_state_at(row - 1) = static_cast<int8_t>(window_[tap]);
        }
      }
      const float y[kConvVector] = {conv.silu_over_ln2(0, value[0], value[1], value[2], value[3])};
      const uint32_t code = result.result(y).word[0] & 0xff;
      s.u[b][c] = static_cast<int8_t>(code);
      if constexpr (kKnee) {
        s.over[b][c] = static_cast<int8_t>(KneeTerm::of(k.parameter(kUCode)).excess(code) & 0xff);
      }
    }
    __syncthreads();
  }

 private:
  // This thread's vector of the width; its sequence and channel of the convolution.
  __device__ __forceinline__ int column() const { return kEight * threadIdx.x; }
  __device__ __forceinline__ int sequence() const { return threadIdx.x / 64; }
  __device__ __forceinline__ int channel() const { return threadIdx.x % 64; }
  __device__ __forceinline__ bool convolves() const { return sequence() < a.batch && channel() < a.own; }
  __device__ __forceinline__ int8_t* conv_state_at(int row) const {
    return a.conv_state + sequence() * a.conv_batch_stride + row * a.conv_row_stride + k.first_channel() + channel();
  }

  // A lane each.
  __device__ __forceinline__ void copy_parameters() const {
    static_assert(kPieces <= 32, "a lane a piece");
    const int bytes = k.lane < kPieces ? a.pieces[k.lane].bytes : 0;
    const int all = __reduce_add_sync(0xffffffffu, bytes);
    if (k.lane == 0) {
      barrier_expect(ring_.parameters(), all);
    }
    __syncwarp();
    if (bytes > 0) {
      const Piece& piece = a.pieces[k.lane];
      copy_bulk(shared_address(k.memory + piece.at),
                static_cast<const uint8_t*>(piece.from) + static_cast<int64_t>(blockIdx.x) * piece.step, bytes,
                ring_.parameters());
    }
  }

  // The sum of squares of this thread's vector.
  __device__ __forceinline__ float add_residual(int b, float (&x)[kEight]) const {
    unpack(hidden_[b], x);
    if (a.residual.data != nullptr) {
      float add[kEight];
      biased_or_value(residual_[b], a.residual.kind, add);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        x[j] += add[j];
      }
    }
    round_to(a.total_kind, x);
    if (threadIdx.x % a.blocks == blockIdx.x) {
      store_eight<true>(a.total, a.total_kind, static_cast<int64_t>(b) * a.width + column(), x, true, kEight);
    }
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      squares = fmaf(x[j], x[j], squares);
    }
    return squares;
  }

  // Where this lane's bytes of row f of a tile are, whose slots begin with the copy `first`.
  __device__ __forceinline__ uint32_t row_at(int first, int f, int row_bytes) const {
    return ring_.slot(first + 2 * Rows::pair_of(f, Rows::kIn) + f % 2) + Rows::row_of(f, Rows::kIn) * row_bytes +
           16 * k.t;
  }

  // Row f of a tile of one sequence: a code of x or the gate of z.
  __device__ __forceinline__ void finish(uint8_t* partial, int tile, int f, int b) const {
    const int c = tile * kChannelStep + f / 2;
    Epilogue e{};
    e.x_code = k.parameter(kInCode);
    e.weight_scale = kBits == 8 ? k.parameter(kInScaleX) : nullptr;
    e.weight_sum = k.parameter(kInSumX);
    e.columns = 2 * a.own;
    const auto column = Column<Sum>::of(e, Column<Sum>::fetch(e, f % 2 * a.own + c));
    const float y = dualscale::finish<false>(e, column, Sums::total(partial, f, b), Sum(0), b);
    if (f % 2 == 0) {
      s.x[b][c] = static_cast<int8_t>(__float2int_rn(Knee::load(k.parameter(kXCode)).encode(y)));
    } else {
      const Knee code = Knee::load(k.parameter(kZCode));
      s.gate[b][c] = silu(code.decode(code.encode(y)));
    }
  }

  const LayerContext& k;
  const LayerStep& a;
  LayerShared& s;
  const WeightRing<kBits>& ring_;
  LayerExchange& exchange_;
  float norm_weight_[kEight];
  Raw<__half, kEight> hidden_[kLayerBatch];
  Eight residual_[kLayerBatch];
  uint32_t window_[kMaxTaps];  // codes of this thread's channel, the newest last
};

#endif

}  // namespace dualscale

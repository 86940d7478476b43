// The first half of a layer's step: norm, in_proj, convolution. Every phase ends with a barrier of the block.
#pragma once

#include "conv_results.cuh"
#include "layer_exchange.cuh"
#include "layer_product.cuh"
#include "rows.cuh"

namespace dualscale {

#if defined(DUALSCALE_BULK)

template <int kBits, bool kKnee>
class LayerInputs {
 public:
  using Product = LayerProduct<kBits>;
  using Sum = typename Product::Sum;
  using Rows = SlotRows<kBits>;

  __device__ __forceinline__ LayerInputs(const LayerContext& context, const WeightRing<kBits>& ring,
                                         LayerExchange& exchange)
      : k(context), a(context.a), s(context.s), ring_(ring), exchange_(exchange) {}

  // Begins to fetch what no kernel of the step writes.
  __device__ __forceinline__ void start() {
    keeps_ = threadIdx.x % a.blocks == blockIdx.x;
    if (threadIdx.x == 0) {
      ring_.prepare();
    }
    __syncthreads();
    if (k.warp == kLayerWarps - 1) {
      copy_parameters();
    }
    ring_.begin();
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
    epoch_ = threadIdx.x == 0 ? exchange_.epoch() : 0;
#pragma unroll
    for (int b = 0; b < kLayerBatch; ++b) {
      if (b < a.batch && column() < a.width) {
        hidden_[b] = load_raw<__half, kEight>(a.hidden + b * a.hidden_stride + column(), true, kEight);
        if (a.residual.data != nullptr) {
          row_[b] = load_eight<true>(a.residual, b * a.residual.row_stride + column(), kEight);
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

  // Codes of the norm of residual + hidden, all of the width; a slice of the sum is written. The loops are
  // not unrolled, as code that runs once takes its time to come; what belongs to the next sequence moves up.
  __device__ __forceinline__ void norm() {
#pragma unroll 1
    for (int b = 0; b < a.batch; ++b) {
      Eight x;
      float squares = column() < a.width ? add_residual(b, x) : 0.0f;
      move_up(hidden_, Raw<__half, kEight>{});
      move_up(row_, x);
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        squares += __shfl_xor_sync(0xffffffffu, squares, distance);
      }
      if (k.lane == 0) {
        s.squares[b][k.warp] = squares;
      }
    }
    if (threadIdx.x == 0) {
      s.epoch = epoch_;
    }
    barrier_wait(ring_.parameters(), 0);
    __syncthreads();
    exchange_.begin(s.epoch);
    const RowCode code(k.code_of(kInCode));
#pragma unroll 1
    for (int b = a.batch - 1; b >= 0; --b) {  // the last one's sums are the last of row_
      if (column() < a.width) {
        float parts[LayerShared::kPartsStride], squares = 0.0f;
        unpack(load_raw<float, LayerShared::kPartsStride>(s.squares[b], true, LayerShared::kPartsStride),
               parts);
#pragma unroll
        for (int warp = 0; warp < kLayerWarps; ++warp) {
          squares += parts[warp];
        }
        const float inverse = rsqrtf(squares / static_cast<float>(a.width) + a.eps);
        float y[kEight];
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
          y[j] = __uint_as_float(row_[kLayerBatch - 1].word[j]) * (inverse * norm_weight_[j]);
        }
        code.template encode<true>(column(), kEight, y);
        store_raw(reinterpret_cast<int8_t*>(k.memory + a.at.row + b * a.at.row_stride + column()),
                  pack<int8_t, kEight>(y), true, kEight);
      }
#pragma unroll
      for (int i = kLayerBatch - 1; i > 0; --i) {
        row_[i] = row_[i - 1];
      }
    }
    __syncthreads();
  }

  // Codes of x and gates of z, of this block's channels.
  __device__ __forceinline__ void project() {
    constexpr int kSteps = kMostWidth / Product::kCodes / kLayerWarps;
    const int steps = a.width / Product::kCodes;
    const uint32_t codes = Product::codes_at(shared_address(k.memory + a.at.row), a.at.row_stride, a.batch);
    uint32_t x[kSteps][Product::kWords];
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      Product::load_codes(codes + j * kLayerWarps * Product::kCodes, k.warp + kLayerWarps * j < steps, x[j]);
    }
#pragma unroll 1
    for (int round = 0; round < ring_.in_groups(); ++round) {
      ring_.await(round);
      // All weights are on their way before the first is used.
      uint4 weights[kTilesAtOnce][kSteps];
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i) {
        const uint32_t from = ring_.in_at(round * kTilesAtOnce + i, k.g, k.t) + Product::kBytes * k.warp;
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          weights[i][j] =
              load_four_if(k.warp + kLayerWarps * j < steps, from + j * kLayerWarps * Product::kBytes);
        }
      }
      Sum sum[kTilesAtOnce][4] = {};
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
#pragma unroll
        for (int i = 0; i < kTilesAtOnce; ++i) {
          const int row = k.g % 2 * a.own + Rows::place(round * kTilesAtOnce + i, k.g);
          Product::add(sum[i], weights[i][j], x[j],
                       Product::scale_of(k.template parameter<__half>(kInScaleX), a.in, row,
                                         k.warp + kLayerWarps * j, steps));
        }
      }
      uint8_t* const partial = k.memory + a.at.partial + round % 2 * kTilesAtOnce * Product::kPartialBytes;
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i) {
        Product::store(sum[i], partial + i * Product::kPartialBytes);
      }
      __syncthreads();
      ring_.fill(round + ring_.groups(), round + ring_.groups() + 1);
      // Two warps finish these tiles while all go on; they come to the next barrier before their room is used
      // again.
      const int thread = threadIdx.x - 64 * (round % (kLayerWarps / 2));
      if (thread >= 0 && thread < kTilesAtOnce * kTileRows * a.batch) {
        const int row = thread % (kTilesAtOnce * kTileRows), i = row / kTileRows;
        finish(partial + i * Product::kPartialBytes, round * kTilesAtOnce + i, row % kTileRows,
               thread / (kTilesAtOnce * kTileRows));
      }
    }
    __syncthreads();
  }

  // u of this block's channels; the window of inputs is shifted in place.
  __device__ __forceinline__ void convolve() {
    const uint32_t lanes = __ballot_sync(0xffffffffu, convolves());
    if (convolves()) {
      const int b = sequence(), c = channel();
      const ConvParameters parameters{k.parameter(kXCode),
                                      k.parameter(kConvWeight),
                                      a.has_conv_bias ? k.parameter(kConvBias) : nullptr,
                                      k.code_of(kUCode),
                                      a.taps,
                                      a.own,
                                      true};
      const Convolution<int8_t, false> conv(parameters, c, 1, true, nullptr);
      const KneeResult<1> result(parameters.code, nullptr, c, 1);
      window_[kMaxTaps - 1] = static_cast<uint8_t>(s.x[b][c]);
      ConvSums sums = conv.start();
      float sum[kConvVector];
#pragma unroll
      for (int tap = 0; tap < kMaxTaps; ++tap) {
        const int row = tap - (kMaxTaps - a.taps);
        if (row >= 0) {
          float eight[kConvVector];
          conv.values<false>(Raw<int8_t, kConvVector>{{window_[tap], 0}}, eight);
          conv.feed(sums, eight, sum);
        }
        if (row > 0) {
          *conv_state_at(row - 1) = static_cast<int8_t>(window_[tap]);
        }
      }
      // Neighbouring channels share a reciprocal where causal_conv1d_update lets them, so that its bits come
      // out.
      const float other = __shfl_xor_sync(lanes, sum[0], 1);
      const SiluTerm term[kConvVector] = {c % kConvVector < kPairedChannels
                                              ? silu_paired(sum[0], other, result.factor(0))
                                              : silu_alone(sum[0], result.factor(0))};
      const uint32_t code = result.result<false, false>(term).word[0] & 0xff;
      s.u[b][c] = static_cast<int8_t>(code);
      if constexpr (kKnee) {
        s.over[b][c] = static_cast<int8_t>(KneeTerm::of(k.parameter(kUCode)).excess(code) & 0xff);
      }
    }
    __syncthreads();
  }

 private:
  // The first goes, and all others move one up.
  template <class T, int N>
  static __device__ __forceinline__ void move_up(T (&each)[N], const T& last) {
#pragma unroll
    for (int i = 0; i + 1 < N; ++i) {
      each[i] = each[i + 1];
    }
    each[N - 1] = last;
  }

  // This thread's vector of the width; its sequence and channel of the convolution.
  __device__ __forceinline__ int column() const { return kEight * threadIdx.x; }
  __device__ __forceinline__ int sequence() const { return threadIdx.x / 64; }
  __device__ __forceinline__ int channel() const { return threadIdx.x % 64; }
  __device__ __forceinline__ bool convolves() const { return sequence() < a.batch && channel() < a.own; }
  __device__ __forceinline__ int8_t* conv_state_at(int row) const {
    return a.conv_state + sequence() * a.conv_batch_stride + row * a.conv_row_stride + k.first_channel() +
           channel();
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
                static_cast<const uint8_t*>(piece.from) + static_cast<int64_t>(blockIdx.x) * piece.step,
                bytes, ring_.parameters());
    }
  }

  // The sum of squares of this thread's vector of the sequence that is the first now.
  __device__ __forceinline__ float add_residual(int b, Eight& sum) const {
    float x[kEight];
    unpack(hidden_[0], x);
    if (a.residual.data != nullptr) {
      float add[kEight];
      biased_or_value(row_[0], a.residual.kind, add);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        x[j] += add[j];
      }
    }
    round_to(a.total_kind, x);
    if (keeps_) {
      store_eight<true>(a.total, a.total_kind, static_cast<int64_t>(b) * a.width + column(), x, true, kEight);
    }
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      squares = fmaf(x[j], x[j], squares);
      sum.word[j] = __float_as_uint(x[j]);
    }
    return squares;
  }

  // Row g of a tile of one sequence: a code of x or the gate of z.
  __device__ __forceinline__ void finish(uint8_t* partial, int tile, int g, int b) const {
    const int c = Rows::place(tile, g);
    Epilogue e{};
    e.x_code = k.parameter(kInCode);
    e.weight_scale = kBits == 8 ? k.parameter(kInScaleX) : nullptr;
    e.weight_sum = k.parameter(kInSumX);
    e.columns = 2 * a.own;
    const auto column = Column<Sum>::of(e, Column<Sum>::fetch(e, g % 2 * a.own + c));
    const float y = dualscale::finish<false>(e, column, Product::total(partial, g, b), Sum(0), b);
    const Knee code = Knee::load(k.parameter(g % 2 == 0 ? kXCode : kZCode));
    const float q = code.encode(y);
    if (g % 2 == 0) {
      s.x[b][c] = static_cast<int8_t>(__float2int_rn(q));
    } else {
      s.gate[b][c] = silu(code.decode(q));
    }
  }

  const LayerContext& k;
  const LayerStep& a;
  LayerShared& s;
  const WeightRing<kBits>& ring_;
  LayerExchange& exchange_;
  bool keeps_;                // whether this block writes this thread's vector of the sum
  unsigned long long epoch_;  // the first thread's
  float norm_weight_[kEight];
  Raw<__half, kEight> hidden_[kLayerBatch];
  Eight row_[kLayerBatch];     // the residual, and, as fp32, its sums with hidden
  uint32_t window_[kMaxTaps];  // codes of this thread's channel, the newest last
};

#endif

}  // namespace dualscale

// A layer's step from end to end, and its last part: transform, out_proj.
#pragma once

#include "layer_inputs.cuh"
#include "layer_rotation.cuh"
#include "layer_state.cuh"

namespace dualscale {

#if defined(DUALSCALE_BULK)

// Lets the blocks of the next kernel come. All that this block still wants of the memory is under way, and
// every block of this launch is resident once all have come here. So those of the next one, which wait for
// each other once this one is over, will have room: the operator has checked that two launches fit the chip
// together, and no third one of this stream is under way. Of two streams at a time each has a launch that is
// all resident; that one ends, and makes room.
__device__ __forceinline__ void admit_next() { admit_later(); }

template <int kBits>
class LayerOutputs {
 public:
  using Product = LayerProduct<kBits>;
  using Sum = typename Product::Sum;
  using Ring = WeightRing<kBits>;

  __device__ __forceinline__ LayerOutputs(const LayerContext& context, const WeightRing<kBits>& ring)
      : k(context), a(context.a), ring_(ring) {}

  // Codes of the transform of y.
  __device__ __forceinline__ void rotate(const LayerExchange& exchange) {
    LayerRotation rotation(a, exchange, k.memory);
    uint32_t codes[kLayerBatch][kItem / 4];
    rotation.peek(0);
#pragma unroll 1
    for (int b = 0; b < a.batch; ++b) {
      rotation.mix(b);
      __syncthreads();
      uint32_t made[kItem / 4] = {};
      rotation.finish(k.parameter(kOutCode), made);
#pragma unroll
      for (int i = 0; i < kLayerBatch; ++i) {
#pragma unroll
        for (int j = 0; j < kItem / 4; ++j) {
          codes[i][j] = i == b ? made[j] : codes[i][j];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int b = 0; b < kLayerBatch; ++b) {
      if (b < a.batch) {
        rotation.store(codes[b], reinterpret_cast<int8_t*>(k.memory + a.at.code + b * a.at.code_stride));
      }
    }
    load_tail();
    __syncthreads();
  }

  // This block's rows of out_proj.
  __device__ __forceinline__ void project() {
    const int steps = a.channels / Product::kCodes;
#pragma unroll 1
    for (int group = 0; group < ring_.out_groups(); ++group) {
      ring_.await(ring_.in_groups() + group);
    }
    const uint32_t codes = Product::codes_at(shared_address(k.memory + a.at.code), a.at.code_stride, a.batch);
    uint32_t from[kMostOutTiles];
    const __half* const scales = k.template parameter<__half>(kOutScale);
    int row[kMostOutTiles];
#pragma unroll
    for (int tile = 0; tile < kMostOutTiles; ++tile) {
      from[tile] = ring_.out_at(tile, k.g, k.t) + Product::kBytes * k.warp;
      row[tile] = min(Ring::out_row_of(tile, k.g), a.out_rows() - 1);
    }
    // Of tiles that do not exist anything is multiplied, and nothing read.
    Sum sum[kMostOutTiles][4] = {};
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int step = k.warp + kLayerWarps * j;
      uint32_t x[Product::kWords];
      Product::load_codes(codes + j * kLayerWarps * Product::kCodes, step < steps, x);
#pragma unroll
      for (int tile = 0; tile < kMostOutTiles; ++tile) {
        const float scale = Product::scale_of(scales, a.last, row[tile], step, steps);
        if (Ring::kTail && tile == kMostOutTiles - 1) {
          Product::add(sum[tile], tail_[j], x, scale);
        } else {
          Product::add(sum[tile], load_four_if(step < steps, from[tile] + j * kLayerWarps * Product::kBytes),
                       x, scale);
        }
      }
    }
    uint8_t* const partial = k.memory + a.at.partial;
#pragma unroll
    for (int tile = 0; tile < kMostOutTiles; ++tile) {
      Product::store(sum[tile], partial + tile * Product::kPartialBytes);
    }
    __syncthreads();
    constexpr int kRows = kMostOutTiles * kTileRows;
    static_assert(kRows * kLayerBatch <= kLayerThreads, "a thread a result");
    const int g = threadIdx.x % kTileRows, tile = threadIdx.x % kRows / kTileRows, b = threadIdx.x / kRows;
    const int result = Ring::out_row_of(tile, g);
    if (b < a.batch && result < a.out_rows()) {
      finish(result, b, Product::total(partial + tile * Product::kPartialBytes, g, b));
    }
  }

 private:
  static constexpr int kSteps = 2 * kMostWidth / Product::kCodes / kLayerWarps;

  __device__ __forceinline__ void load_tail() {
    if constexpr (Ring::kTail) {
      const int row = Ring::out_row_of(kMostOutTiles - 1, k.g), steps = a.channels / Product::kCodes;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int step = k.warp + kLayerWarps * i;
        tail_[i] = make_uint4(0, 0, 0, 0);
        if (row < a.out_rows() && step < steps) {
          tail_[i] =
              __ldg(reinterpret_cast<const uint4*>(ring_.out_row(row) + Product::kBytes * step + 16 * k.t));
        }
      }
    }
  }

  __device__ __forceinline__ void finish(int row, int b, Sum sum) const {
    Epilogue e{};
    e.x_code = k.parameter(kOutCode);
    e.weight_scale = kBits == 8 ? k.parameter(kOutScale) : nullptr;
    e.weight_sum = k.parameter(kOutSum);
    e.columns = a.out_rows();
    const auto column = Column<Sum>::of(e, Column<Sum>::fetch(e, row));
    a.out[static_cast<int64_t>(b) * a.width + blockIdx.x * a.out_rows() + row] =
        __float2half_rn(dualscale::finish<false>(e, column, sum, Sum(0), b));
  }

  const LayerContext& k;
  const LayerStep& a;
  const WeightRing<kBits>& ring_;
  uint4 tail_[Ring::kTail ? kSteps : 1];
};

#endif

template <int kBits, bool kKnee>
__global__ void __launch_bounds__(kLayerThreads, 2) layer_step(const __grid_constant__ LayerStep a) {
#if defined(DUALSCALE_BULK)
  extern __shared__ __align__(128) uint8_t memory[];
  if (!a.reads_ahead) {
    await_earlier();
  }
  const LayerContext context(a, memory);
  const WeightRing<kBits> ring(a, shared_address(memory));
  LayerExchange exchange(a);
  if (static_cast<int>(blockIdx.x) >= a.blocks) {
    if (a.reads_ahead) {
      await_earlier();
    }
    admit_later();
    if (threadIdx.x == 0) {
      exchange.hold_place();
    }
    return;
  }
  LayerState<kBits, kKnee> state(context, exchange);
  {
    LayerInputs<kBits, kKnee> inputs(context, ring, exchange);
    LayerRotation::Base base;
    inputs.start();
    state.start();
    if (a.reads_ahead) {
      await_earlier();
    }
    inputs.load();
    inputs.norm();
    inputs.load_window();
    state.load();
    base.load(a);
    inputs.project();
    admit_next();
    base.store(a, memory);  // where sums were
    inputs.convolve();
  }
  state.send();
  state.receive();
  state.update();
  LayerOutputs<kBits> outputs(context, ring);
  outputs.rotate(exchange);
  outputs.project();
#endif
}

}  // namespace dualscale

// A layer's step from end to end, and its last part: transform, out_proj.
#pragma once

#include "layer_inputs.cuh"
#include "layer_rotation.cuh"
#include "layer_state.cuh"

namespace dualscale {

#if defined(DUALSCALE_BULK)

// Lets the blocks of the next kernel come. All that this block still wants of the memory is under way, and every
// block of this launch is resident once all have come here. So those of the next one, which wait for each other
// once this one is over, will have room: the operator has checked that two launches fit the chip together, and
// no third one of this stream is under way. Of two streams at a time each has a launch that is all resident;
// that one ends, and makes room.
__device__ __forceinline__ void admit_next() { admit_later(); }

template <int kBits>
class LayerOutputs {
 public:
  using Sums = StepSums<kBits>;
  using Sum = typename Sums::Sum;
  using Rows = SlotRows<kBits>;

  __device__ __forceinline__ LayerOutputs(const LayerContext& context, const WeightRing<kBits>& ring)
      : k(context), a(context.a), ring_(ring) {}

  // Codes of the transform of y.
  __device__ __forceinline__ void rotate(const LayerExchange& exchange) {
    LayerRotation rotation(a, exchange, k.memory, k.parameter(kBase));
    const Knee code = Knee::load(k.parameter(kOutCode));
    uint32_t codes[kLayerBatch][kItem / 4];
    rotation.peek(0);
#pragma unroll 1
    for (int b = 0; b < a.batch; ++b) {
      rotation.mix(b);
      __syncthreads();
      uint32_t made[kItem / 4] = {};
      rotation.finish(code, made);
#pragma unroll
      for (int i = 0; i < kLayerBatch; ++i) {
#pragma unroll
        for (int j = 0; j < kItem / 4; ++j) {
          codes[i][j] = i == b ? made[j] : codes[i][j];
        }
      }
      __syncthreads();
    }
    load_tail();
#pragma unroll
    for (int b = 0; b < kLayerBatch; ++b) {
      if (b < a.batch) {
        rotation.store(codes[b], reinterpret_cast<int8_t*>(k.memory + a.at.code + b * a.at.code_stride));
      }
    }
    __syncthreads();
  }

  // This block's rows of out_proj.
  __device__ __forceinline__ void project() {
    const int steps = a.channels / Sums::kCodes;
    for (int n = 0; n < ring_.out_slots(); ++n) {
      ring_.await(ring_.in_slots() + n);
    }
    Sums sums[kMostOutTiles];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int step = k.warp + kLayerWarps * i;
      if (step < steps) {
        uint32_t x[Sums::kWords];
        load_codes<kBits>(shared_address(k.memory + a.at.code), a.at.code_stride, a.batch, step, x);
#pragma unroll
        for (int tile = 0; tile < kMostOutTiles; ++tile) {
          if (tile * kTileRows < a.out_rows()) {
            const int low = row_of(tile, k.g), high = row_of(tile, k.g + 8);
            const auto scale = group_scales<kBits>(k.template parameter<__half>(kOutScale), a.last,
                                                   min(low, a.out_rows() - 1), min(high, a.out_rows() - 1), step);
            sums[tile].add(weights(tile, k.g, step, i), weights(tile, k.g + 8, step, i), x, scale);
          }
        }
      }
    }
    uint8_t* const partial = k.memory + a.at.partial;
#pragma unroll
    for (int tile = 0; tile < kMostOutTiles; ++tile) {
      sums[tile].store(partial + tile * Sums::kPartialBytes);
    }
    __syncthreads();
    const int f = threadIdx.x % kTileRows, tile = threadIdx.x / kTileRows % kMostOutTiles;
    const int b = threadIdx.x / (kTileRows * kMostOutTiles), row = row_of(tile, f);
    if (b < a.batch && row < a.out_rows()) {
      finish(row, b, Sums::total(partial + tile * Sums::kPartialBytes, f, b));
    }
  }

 private:
  static constexpr int kSteps = 2 * kMostWidth / Sums::kCodes / kLayerWarps;
  static constexpr bool kTail = kBits == 8;  // whether there may be rows without a slot

  // The row of this block that row f of a tile's operand is; it need not exist.
  static __device__ __forceinline__ int row_of(int tile, int f) {
    return tile * kTileRows + (2 * Rows::pair_of(f, Rows::kOut) + f % 2) * Rows::kOut + Rows::row_of(f, Rows::kOut);
  }

  // Rows without a slot are the first eight of the second tile at most.
  __device__ __forceinline__ void load_tail() {
    if constexpr (kTail) {
      const int row = row_of(1, k.g), steps = a.channels / Sums::kCodes;
      const bool exists = ring_.tail_rows() > 0 && row < a.out_rows();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int step = k.warp + kLayerWarps * i;
        tail_[i] = exists && step < steps
                       ? __ldg(reinterpret_cast<const uint4*>(ring_.out_row(row) + Sums::kBytes * step + 16 * k.t))
                       : make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ __forceinline__ uint4 weights(int tile, int f, int step, int i) const {
    if (row_of(tile, f) >= a.out_rows()) {
      return make_uint4(0, 0, 0, 0);
    }
    if constexpr (kTail) {
      if (tile == 1 && ring_.tail_rows() > 0) {
        return tail_[i];
      }
    }
    const int n = tile * Rows::kOutSlots + 2 * Rows::pair_of(f, Rows::kOut) + f % 2;
    return load_shared(ring_.slot(ring_.in_slots() + n) + Rows::row_of(f, Rows::kOut) * (a.channels * kBits / 8) +
                       Sums::kBytes * step + 16 * k.t);
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
  uint4 tail_[kTail ? kSteps : 1];
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
  LayerInputs<kBits, kKnee> inputs(context, ring, exchange);
  LayerState<kBits, kKnee> state(context, exchange);
  LayerOutputs<kBits> outputs(context, ring);
  inputs.start();
  state.start();
  if (a.reads_ahead) {
    await_earlier();
  }
  inputs.load();
  inputs.norm();
  inputs.load_window();
  state.load();
  inputs.project();
  admit_next();
  inputs.convolve();
  state.send();
  state.receive();
  state.update();
  outputs.rotate(exchange);
  outputs.project();
#endif
}

}  // namespace dualscale

// The kernel of the selective scan: the recurrence of one block of scan.cuh, tile by tile.
#pragma once

#include "residency.cuh"
#include "scan.cuh"

namespace dualscale {

template <class Shape, class Selectors>
struct ScanRun : ScanBlock<Shape, Selectors> {
  using Block = ScanBlock<Shape, Selectors>;
  using Block::a, Block::s, Block::part, Block::channel;
  using Block::kBatch, Block::kBatches, Block::kLanes, Block::kOwn, Block::kStates, Block::kTile;
  using Block::kChannels, Block::kWarpChannels;
  using typename Block::Own, typename Block::Shared;
  static constexpr int kQuad = 4;  // tokens of a vector of B or C

  float A[kStates], h[kStates];  // A times log2(e)

  using Block::Block;

  // Calls f(i, where a lane's i-th state lies in A, where in all states) for those that exist.
  template <class F>
  __device__ __forceinline__ void each_state(const typename Block::Lane& lane, F&& f) {
    const int own = this->first_channel + lane.channel;
    const int64_t rate = int64_t{own} * a.in.states + lane.part;
    const int64_t state = this->batch * a.in.channels * a.in.states + rate;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      if (own < a.in.channels && lane.part + kLanes * i < a.in.states) {
        f(i, rate + kLanes * i, state + kLanes * i);
      }
    }
  }

  __device__ __forceinline__ void load_states() {
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      A[i] = h[i] = 0.0f;
    }
    each_state(typename Block::Lane(threadIdx.x), [&](int i, int64_t rate, int64_t state) {
      A[i] = kLog2e * a.in.A[rate];
      h[i] = a.initial ? a.initial[state] : 0.0f;
    });
  }

  __device__ __forceinline__ void store_states() {
    const typename Block::Lane lane(thread_anew());
    each_state(lane, [&](int i, int64_t, int64_t state) { a.last[state] = h[i]; });
  }

  // Advances state i over four tokens; `step` are delta and delta * u of each.
  template <int i, bool kFirst>
  __device__ __forceinline__ void advance_state(const float4 (&step)[2], const float* B, const float* C,
                                                float (&y)[kQuad]) {
    constexpr int kAway = kLanes * i * (kTile + 4);
    const float4 b = *reinterpret_cast<const float4*>(B + kAway);
    const float4 c = *reinterpret_cast<const float4*>(C + kAway);
    const auto token = [&](float delta, float input, float b, float c, float& y) {
      h[i] = fmaf(exp2_approx(delta * A[i]), h[i], __fmul_rn(input, b));
      y = kFirst ? __fmul_rn(h[i], c) : fmaf(h[i], c, y);
    };
    token(step[0].x, step[0].y, b.x, c.x, y[0]);
    token(step[0].z, step[0].w, b.y, c.y, y[1]);
    token(step[1].x, step[1].y, b.z, c.z, y[2]);
    token(step[1].z, step[1].w, b.w, c.w, y[3]);
  }

  // The same for states kFirst, kFirst + kEvery and so on, with the sums of their parts of y: pairs half of
  // all states apart first, then pairs of pairs, as sum_parts goes on between lanes.
  template <int kFirst, int kEvery>
  __device__ __forceinline__ void advance(const float4 (&step)[2], const float* B, const float* C,
                                          float (&y)[kQuad]) {
    if constexpr (2 * kEvery == kStates) {
      advance_state<kFirst, true>(step, B, C, y);
      advance_state<kFirst + kEvery, false>(step, B, C, y);
    } else {
      float other[kQuad];
      advance<kFirst, 2 * kEvery>(step, B, C, y);
      advance<kFirst + kEvery, 2 * kEvery>(step, B, C, other);
#pragma unroll
      for (int t = 0; t < kQuad; ++t) {
        y[t] = __fadd_rn(y[t], other[t]);
      }
    }
  }

  // The recurrence over a batch.
  __device__ __forceinline__ void recur(int tile, int b, float (&y)[kBatch]) {
    const int warp = threadIdx.x / 32;
    const auto* steps =
        reinterpret_cast<const float4*>(s.steps[warp][(tile * kBatches + b) & 1][channel % kWarpChannels]);
    const auto& states = s.states[tile & 1];
#pragma unroll
    for (int q = 0; q < kBatch / kQuad; ++q) {
      const float4 step[2] = {steps[2 * q], steps[2 * q + 1]};
      float part_of_y[kQuad];
      const int token = b * kBatch + q * kQuad;
      advance<0, 1>(step, &states[0][part][token], &states[1][part][token], part_of_y);
#pragma unroll
      for (int t = 0; t < kQuad; ++t) {
        y[q * kQuad + t] = part_of_y[t];
      }
    }
  }

  // One instruction; the compiler would make exchanges of registers of two such, which take more.
  static __device__ __forceinline__ float either(bool first, float a, float b) {
    float x;
    asm("{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\nselp.f32 %0, %1, %2, p;\n}"
        : "=f"(x)
        : "f"(a), "f"(b), "r"(static_cast<int>(first)));
    return x;
  }

  // Sums over the lanes of a channel: afterwards y[o] is the whole sum of token part * kOwn + o. In each
  // round two lanes share the tokens that both have: each gives half of them away.
  __device__ __forceinline__ void sum_parts(float (&y)[kBatch]) const {
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
      const int half = kOwn * lanes;
      const bool upper = (part & lanes) != 0;
      const int distance = lanes == 1 ? 1 : 2 * lanes;  // the second bit of a lane is the channel's
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float kept = either(upper, y[i + half], y[i]), given = either(upper, y[i], y[i + half]);
        y[i] = __fadd_rn(kept, __shfl_xor_sync(0xffffffffu, given, distance));
      }
    }
  }

  // Adds D u and gates, after sum_parts.
  __device__ __forceinline__ void finish(int tile, int b, const float (&y)[kBatch], const Own& own) const {
    const float skip = this->parameters().skip;
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      const int token = b * kBatch + part * kOwn + o;
      float gate = own.gate[o];
      if constexpr (!Block::kLater) {
        gate = this->gate_of(this->stage_of(tile).z[token]);
      }
      s.sums[tile & (Block::kSums - 1)][token][channel] = fmaf(skip, own.u[o], y[o]) * gate;
    }
  }

  // Stores the results of a tile, four channels at a time.
  __device__ __forceinline__ void store(int tile) const {
    constexpr int kGroups = Block::kGroups, kItems = kTile * kGroups, kStep = kScanThreads / kGroups;
    const typename Block::Place& place = s.places[threadIdx.x];
    const int row = place.row, column = place.column;
    const auto* from = reinterpret_cast<const uint8_t*>(s.sums[tile & (Block::kSums - 1)]) + place.sums;
    const int left = static_cast<int>(a.in.channels) - this->first_channel - column;
    const int64_t at = (int64_t{this->batch} * a.in.length + tile * kTile + row) * a.in.channels +
                       this->first_channel + column;
#pragma unroll
    for (int turn = 0; turn * kScanThreads < kItems; ++turn) {
      const int here = row + turn * kStep;
      if ((kItems % kScanThreads != 0 && here >= kTile) || tile * kTile + here >= this->length || left <= 0) {
        return;
      }
      const auto four = *reinterpret_cast<const float4*>(from + turn * kStep * sizeof(s.sums[0][0]));
      const float y[4] = {four.x, four.y, four.z, four.w};
      const int64_t to = at + turn * kStep * a.in.channels;
      if (a.in.channels % 4 == 0) {
        store_whole_four(a.y, a.result, to, y);
      } else {
        store_four(a.y, a.result, to, y, false, min(left, 4));
      }
    }
  }

  // One tile, whose first batch is prepared; afterwards that of the next tile is.
  __device__ __forceinline__ void walk(int tile, Own& before, Own& now, float (&y_before)[kBatch]) {
#pragma unroll
    for (int b = 0; b < kBatches; ++b) {
      const bool last = b == kBatches - 1;
      float y[kBatch];
      Own next;
      if constexpr (Block::kLater) {
        sum_parts(y_before);
      }
      if constexpr (!Block::kLater) {
        this->prepare(last ? tile + 1 : tile, last ? 0 : b + 1, next);
      }
      recur(tile, b, y);
      if constexpr (!Block::kLater) {
        sum_parts(y);
        finish(tile, b, y, now);
      }
      if constexpr (Block::kLater) {
        this->prepare(last ? tile + 1 : tile, last ? 0 : b + 1, next);
        finish(b == 0 ? tile - 1 : tile, b == 0 ? kBatches - 1 : b - 1, y_before, before);
      }
      __syncwarp();
      before = now;
      now = next;
#pragma unroll
      for (int t = 0; t < kBatch; ++t) {
        y_before[t] = y[t];
      }
    }
  }

  __device__ __forceinline__ void run() {
    constexpr int kLag = Block::kLag, kOpen = Block::kStages - 3;
    const int tiles = (this->length + kTile - 1) / kTile;
    this->open_streams();
#pragma unroll 1
    for (int tile = 0; tile < Block::kStages - 1; ++tile) {
      this->copy(tile);
    }
    load_states();
    this->load_parameters();
    if constexpr (Selectors::kPairs) {
      this->selectors.fetch(a.selectors, this->place(), 0);
    }
    wait_for_all_but<kOpen>();
    __syncthreads();
    this->spread_selectors(0);
    this->decode_states(0);
    Own before{}, now;
    float y_before[kBatch] = {};
    this->prepare(0, 0, now);
    __syncthreads();
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      this->copy(tile + Block::kStages - 1);
      if (tile >= kLag) {
        store(tile - kLag);
      }
      this->decode_states(tile + 1);
      this->spread_selectors((tile + 1) * kTile);
      walk(tile, before, now, y_before);
      wait_for_all_but<kOpen>();  // those of tile + 2 have arrived, and the barrier makes them seen
      __syncthreads();
    }
    if constexpr (Block::kLater) {
      sum_parts(y_before);
      finish(tiles - 1, kBatches - 1, y_before, before);
      __syncthreads();
    }
    for (int tile = max(tiles - kLag, 0); tile < tiles; ++tile) {
      store(tile);
    }
    store_states();
  }
};

constexpr int64_t kMaxBlocksAlong = 65535;  // the second and third axis of a grid

extern __shared__ float4 scan_memory[];

// Elsewhere than on Hopper the compiler takes more registers for loads ahead, the newer the more.
constexpr int scan_blocks(int wanted) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  return wanted > 4 ? (__CUDA_ARCH__ >= 1000 ? 2 : 3) : resident_blocks(wanted);
#else
  return wanted;
#endif
}

// kBlocks are what the registers shall suffice for.
template <class Shape, int kBlocks, class Selectors>
__global__ void __launch_bounds__(kScanThreads, scan_blocks(kBlocks))
    scan(const __grid_constant__ ScanArguments a) {
  ScanRun<Shape, Selectors> run(a, *reinterpret_cast<typename Shape::Shared*>(scan_memory));
  if (run.batch < a.in.batch) {
    run.run();
  }
}

template <class Shape, int kBlocks, class Selectors = NoSelectors>
void launch_scan(const ScanArguments& a, cudaStream_t stream) {
  const auto kernel = scan<Shape, kBlocks, Selectors>;
  constexpr size_t kBytes = sizeof(typename Shape::Shared);
  static_assert(kBytes <= 99 * 1024 && kBlocks * (kBytes + 1024) <= 228 * 1024, "the blocks do not fit");
  allow_shared(kernel, kBytes);
  // The blocks of a multiprocessor need most of what it has, and hardly any cache.
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared));
  const int64_t along = std::min(a.in.batch, kMaxBlocksAlong);
  const dim3 grid(grid_of("selective_scan", ceil_div(a.in.channels, Shape::kChannels)),
                  static_cast<unsigned>(along), static_cast<unsigned>(ceil_div(a.in.batch, along)));
  kernel<<<grid, kScanThreads, kBytes, stream>>>(a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Sixteen states, `states` a lane.
template <bool kCodes, class Selectors = NoSelectors>
void launch_sixteen(const ScanArguments& a, int states, cudaStream_t stream) {
  constexpr int64_t kTableLength = 1024;  // of a sequence: a table takes as long as 256 tokens do without
  if (kCodes && states == 2 && a.in.length >= kTableLength) {
    return launch_scan<ScanShape<kCodes, 2, 8, kCodes>, 4, Selectors>(a, stream);
  }
  switch (states) {
    case 2:
      return launch_scan<ScanShape<kCodes, 2, 8>, 4, Selectors>(a, stream);
    case 4:
      return launch_scan<ScanShape<kCodes, 4, 4>, 4, Selectors>(a, stream);
    default:
      return launch_scan<ScanShape<kCodes, 8, 2>, kCodes ? 5 : 4, Selectors>(a, stream);
  }
}

// In scan_pairs.cu: u has two scales. `states` a lane of sixteen.
void launch_pairs(const ScanArguments& a, bool all_codes, int states, cudaStream_t stream);

}  // namespace dualscale

// The kernel of the selective scan: the recurrence of one block of scan.cuh, tile by tile.
#pragma once

#include "scan.cuh"

namespace dualscale {

template <bool kAllCodes, bool kFast, int kStates, int kSplit, int kBlocks, class Selectors>
__global__ void __launch_bounds__(kScanThreads, resident_blocks(kBlocks))
    scan(const __grid_constant__ ScanArguments a) {
  using Block = ScanBlock<kAllCodes, kFast, kStates, kSplit, Selectors>;
  __shared__ __align__(16) typename Block::Shared shared;
  Block block(a, shared);
  const int64_t channel = block.first_channel + threadIdx.x % Block::kChannels;
  const int first_state = threadIdx.x / Block::kChannels * kStates;
  const int64_t state = (block.batch * a.in.channels + channel) * a.in.states + first_state;
  const int present = channel < a.in.channels ? a.in.states - first_state : 0;
  float A[kStates], h[kStates];
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    A[n] = n < present ? kLog2e * a.in.A[channel * a.in.states + first_state + n] : 0.0f;
    h[n] = n < present && a.initial ? a.initial[state + n] : 0.0f;
  }
  constexpr int64_t kTile = Block::kTile;
  block.template fetch<false>(0);
  if constexpr (Selectors::kLists) {
    block.selectors.clear(shared);
    __syncthreads();
    block.selectors.spread(shared, a.selectors, 0);
    __syncthreads();
  } else if constexpr (Selectors::kPairs) {
    block.fetch_bits(0);
  }
  for (int64_t start = 0; start < a.in.length; start += kTile) {
    const bool whole = start + kTile <= a.in.length;
    if (whole) {
      block.template prepare<true>(start);
      block.template fetch_gate<true>(start);
    } else {
      block.template prepare<false>(start);
      block.template fetch_gate<false>(start);
    }
    __syncthreads();
    if (start + 2 * kTile <= a.in.length) {
      block.template fetch<true>(start + kTile);
    } else {
      block.template fetch<false>(start + kTile);
    }
    if constexpr (Selectors::kLists) {
      block.selectors.clear(shared);
    }
    block.recur(A, h);
    if constexpr (Selectors::kPairs && !Selectors::kLists) {
      block.fetch_bits(start + kTile);
    }
    __syncthreads();
    whole ? block.template finish<true>(start) : block.template finish<false>(start);
    if constexpr (Selectors::kLists) {
      block.selectors.spread(shared, a.selectors, start + kTile);
      __syncthreads();
    }
  }
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    if (n < present) {
      a.last[state + n] = h[n];
    }
  }
}

// kBlocks are what the registers shall suffice for.
template <bool kAllCodes, bool kFast, int kStates, int kSplit, int kBlocks, class Selectors = NoSelectors>
void launch_scan(const ScanArguments& a, cudaStream_t stream) {
  constexpr int64_t kChannels = kScanThreads / kSplit;
  const int64_t blocks = a.in.batch * ceil_div(a.in.channels, kChannels);
  scan<kAllCodes, kFast, kStates, kSplit, kBlocks, Selectors>
      <<<grid_of("selective_scan", blocks), kScanThreads, 0, stream>>>(a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// In scan_pairs.cu: u has two scales. `states` a thread where `fast`.
void launch_pairs(const ScanArguments& a, bool fast, int states, cudaStream_t stream);

}  // namespace dualscale

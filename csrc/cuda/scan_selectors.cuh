// The selectors of one warp's channels, where u has two scales: a word a token, bit i is channel i of the
// warp.
//
// They are made for 32 tokens at once, those of a list, a lane a token.
#pragma once

#include "pairs.cuh"

namespace dualscale {

// threadIdx.x, read anew: what follows from it shall not be kept in registers during the recurrence.
__device__ __forceinline__ int thread_anew() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// A warp's place: its first channel may lie past the last.
struct ScanPlace {
  int64_t batch, channel, channels;
};

// kChannels of a warp, a divisor of a list's. kAhead: what the words are made of is fetched 32 tokens ahead,
// where few warps run; it takes registers.
template <class Selectors, int kChannels, bool kAhead>
struct WarpSelectors {};

// The bits of this lane's token in a mask, whatever that token is.
template <int kChannels>
__device__ __forceinline__ uint32_t bits_of_mask(const SelectorView& view, const ScanPlace& at,
                                                 int64_t token) {
  if (token >= view.length || at.channel >= at.channels) {
    return 0;
  }
  const int first = static_cast<int>(at.channel / 8);
  const uint8_t* row = view.row(at.batch, token);
  uint32_t bits = row[first];
  if constexpr (kChannels > 8) {
    bits |= first + 1 < view.row_bytes ? row[first + 1] << 8 : 0;
  }
  return kChannels < 8 ? bits >> at.channel % 8 : bits;
}

template <int kChannels, bool kAhead>
struct WarpSelectors<MaskSelectors, kChannels, kAhead> {
  uint32_t bits = 0;

  __device__ __forceinline__ void fetch(const SelectorView& view, const ScanPlace& at, int64_t start) {
    bits = bits_of_mask<kChannels>(view, at, start + thread_anew() % 32);
  }

  // Writes the words of the tokens that were fetched.
  __device__ __forceinline__ void spread(const SelectorView&, const ScanPlace&, int64_t,
                                         uint32_t (&words)[kListTokens]) const {
    words[thread_anew() % 32] = bits;
    __syncwarp();
  }
};

template <int kChannels, bool kAhead>
struct WarpSelectors<ListSelectors, kChannels, kAhead> {
  int count = 0, entry = 0;

  static __device__ __forceinline__ const int16_t* list_of(const SelectorView& view, const ScanPlace& at,
                                                           int64_t start) {
    return view.list(at.batch, start / kListTokens, at.channel / kListChannels);
  }

  // The list's size and this lane's entry.
  __device__ __forceinline__ void fetch(const SelectorView& view, const ScanPlace& at, int64_t start) {
    if constexpr (kAhead) {
      load(view, at, start);
    }
  }

  __device__ __forceinline__ void load(const SelectorView& view, const ScanPlace& at, int64_t start) {
    count = 0;
    if (start < view.length && at.channel < at.channels) {
      const int16_t* list = list_of(view, at, start);
      const int lane = thread_anew() % 32;
      count = list[0];
      entry = lane < view.capacity ? list[1 + lane] : 0;
    }
  }

  __device__ __forceinline__ void spread(const SelectorView& view, const ScanPlace& at, int64_t start,
                                         uint32_t (&words)[kListTokens]) {
    if constexpr (!kAhead) {
      load(view, at, start);
    }
    const int lane = thread_anew() % 32;
    words[lane] = count > view.capacity ? bits_of_mask<kChannels>(view, at, start + lane) : 0;
    __syncwarp();
    if (count <= view.capacity) {
#pragma unroll 1
      for (int i = lane; i < count; i += 32) {
        // A list that nobody has written must not reach beyond the words.
        const int index =
            (i == lane ? entry : list_of(view, at, start)[1 + i]) & (kListTokens * kListChannels - 1);
        const unsigned channel = index % kListChannels - static_cast<int>(at.channel % kListChannels);
        if (channel < kChannels) {
          atomicOr(&words[index / kListChannels], 1u << channel);  // in any order
        }
      }
    }
    __syncwarp();
  }
};

}  // namespace dualscale

// Codes of two scales in kernels: how selectors are written and how they are read.
//
// Writers see whole tiles: the eight threads of a segment own the 64 channels of a list, eight each, and walk
// its tokens four at a time. All 32 threads of a warp take part in every call.
#pragma once

#include "launch.cuh"
#include "pairs.h"
#include "vector.cuh"

namespace dualscale {

constexpr int kPairVector = 8;                           // channels of a thread, a byte of selectors
constexpr int kSegment = kListChannels / kPairVector;    // threads
constexpr int kTokensAtOnce = 4;                         // whose bytes are one word
constexpr int kTileWords = kListTokens / kTokensAtOnce;  // of a thread

// Nothing lies beside the codes.
struct NoSelectors {
  static constexpr bool kPairs = false;
  static constexpr bool kLists = false;
};

// All selectors stand in the mask.
struct MaskSelectors {
  static constexpr bool kPairs = true;
  static constexpr bool kLists = false;
  SelectorView view;
};

// Lists, and the mask where one is full.
struct ListSelectors {
  static constexpr bool kPairs = true;
  static constexpr bool kLists = true;
  SelectorView view;
};

// Calls f(policy) for selectors that there are.
template <class F>
void dispatch_selectors(const SelectorView& view, F&& f) {
  view.lists == nullptr ? f(MaskSelectors{view}) : f(ListSelectors{view});
}

// Ones in each byte.
__device__ __forceinline__ uint32_t count_bytes(uint32_t w) {
  w -= (w >> 1) & 0x55555555u;
  w = (w & 0x33333333u) + ((w >> 2) & 0x33333333u);
  return (w + (w >> 4)) & 0x0f0f0f0fu;
}

// Writes the list of one tile after the other. `kept` are kTileWords words of this thread in shared memory,
// `stride` apart: what goes to the mask should the list become full.
struct ListWriter {
  const SelectorView& view;
  uint32_t* kept;
  unsigned stride;
  int64_t batch, channel, channels;  // this thread's first channel may lie past the last
  int16_t* list = nullptr;
  int count = 0;

  __device__ ListWriter(const SelectorView& view, uint32_t* kept, unsigned stride, int64_t batch,
                        int64_t channel, int64_t channels)
      : view(view), kept(kept), stride(stride), batch(batch), channel(channel), channels(channels) {}

  __device__ __forceinline__ void begin(int64_t token) {
    list = view.list(batch, token / kListTokens, channel / kListChannels);
    count = 0;
  }

  // Byte r of `bits` are the selectors of token `in_tile` + r, a multiple of four plus r.
  __device__ __forceinline__ void take(uint32_t bits, int in_tile) {
    kept[in_tile / kTokensAtOnce * stride] = bits;
    if (!__any_sync(0xffffffffu, bits != 0)) {
      return;
    }
    const int lane = threadIdx.x % kSegment;
    const uint32_t own = count_bytes(bits);
    uint32_t before = own;
#pragma unroll
    for (int distance = 1; distance < kSegment; distance *= 2) {
      const uint32_t other = __shfl_up_sync(0xffffffffu, before, distance, kSegment);
      before += lane >= distance ? other : 0;
    }
    const uint32_t total = __shfl_sync(0xffffffffu, before, kSegment - 1, kSegment);
    // Those of lanes before in a token, and of tokens before: at most 56 + 192 in a byte.
    before += (total * 0x01010101u << 8) - own;
#pragma unroll
    for (int r = 0; r < kTokensAtOnce; ++r) {
      int at = count + static_cast<int>(before >> (8 * r) & 0xffu);
      for (uint32_t left = bits >> (8 * r) & 0xffu; left != 0; left &= left - 1, ++at) {
        if (at < view.capacity) {
          const int index =
              (in_tile + r) * kListChannels + lane * kPairVector + __ffs(static_cast<int>(left)) - 1;
          list[1 + at] = static_cast<int16_t>(index);
        }
      }
    }
    const uint32_t pairs = (total & 0x00ff00ffu) + (total >> 8 & 0x00ff00ffu);
    count += static_cast<int>((pairs & 0xffffu) + (pairs >> 16));
  }

  // The tile's tokens are [token, token + tokens).
  __device__ __forceinline__ void end(int64_t token, int tokens) const {
    if (tokens <= 0) {
      return;
    }
    if (threadIdx.x % kSegment == 0) {
      list[0] = static_cast<int16_t>(count);
    }
    if (count > view.capacity && channel < channels) {
      for (int t = 0; t < tokens; ++t) {
        const uint32_t word = kept[t / kTokensAtOnce * stride];
        view.row(batch, token + t)[channel / kPairVector] =
            static_cast<uint8_t>(word >> (t % kTokensAtOnce * 8));
      }
    }
  }
};

// Whether a value of one token has the outer scale.
template <class Selectors>
__device__ __forceinline__ bool selects_outer(const SelectorView& view, int64_t batch, int64_t channel) {
  if constexpr (Selectors::kLists) {
    const int16_t* list = view.list(batch, 0, channel / kListChannels);
    const int count = list[0];
    if (count <= view.capacity) {
      bool found = false;
      for (int i = 1; i <= count; ++i) {
        found = found || list[i] == channel % kListChannels;
      }
      return found;
    }
  }
  return (view.row(batch, 0)[channel / 8] >> (channel % 8) & 1) != 0;
}

}  // namespace dualscale

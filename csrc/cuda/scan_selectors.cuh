// The selectors of one tile of a scan's block (kTile tokens, kChannels channels), where u has two scales.
//
// From a mask a thread fetches its own bytes. Lists are first spread into a bitmap in shared memory: it is
// cleared during the recurrence before, and filled before the tile's inputs are decoded.
#pragma once

#include "pairs.cuh"
#include "ssm.cuh"

namespace dualscale {

// Where a thread's first four channels and its first token lie, kItems tokens kPass apart.
struct ScanPlace {
  int64_t batch, first_channel;
  int group, row;
};

// The two scales of a channel, which lie in shared memory; read each time, not kept during the recurrence.
__device__ __forceinline__ float2 scales_of(const Scaled& pair) {
  float2 scales;
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(&pair));
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(scales.x), "=f"(scales.y) : "r"(at));
  return scales;
}

// kAhead: whether a thread keeps its part of a list in registers until the recurrence before is done.
template <class Selectors, int kTile, int kChannels, int kPass, int kItems, bool kAhead>
struct TileSelectors {
  struct Shared {};
};

template <int kTile, int kChannels, int kPass, int kItems, bool kAhead>
struct TileSelectors<MaskSelectors, kTile, kChannels, kPass, kItems, kAhead> {
  struct Shared {};
  uint32_t byte[kItems];

  // Starts the load of the i-th token's, which exists.
  __device__ __forceinline__ void fetch(const SelectorView& view, const ScanPlace& at, int64_t start, int i) {
    const int64_t token = start + at.row + i * kPass;
    byte[i] = view.row(at.batch, token)[(at.first_channel + 4 * at.group) / 8];
  }

  // The four selectors of the i-th token.
  __device__ __forceinline__ uint32_t four(const Shared&, const ScanPlace& at, int i) const {
    return byte[i] >> ((at.first_channel + 4 * at.group) % 8);
  }
};

template <int kTile, int kChannels, int kPass, int kItems, bool kAhead>
struct TileSelectors<ListSelectors, kTile, kChannels, kPass, kItems, kAhead> {
  static constexpr int kThreads = 128;
  static constexpr int kWords = kTile * kChannels / 32 > 0 ? kTile * kChannels / 32 : 1;
  static constexpr int kColumns = kChannels > kListChannels ? kChannels / kListChannels : 1;  // of lists
  static constexpr int kWidth = kChannels / kColumns;
  static constexpr int kFours = kWidth / 4;
  static_assert(kWords <= kThreads && kListTokens % kTile == 0,
                "a thread clears a word, a tile has one list");

  // Besides the bitmap where the block's lists and bits begin: registers are scarce.
  struct alignas(16) Shared {
    uint32_t word[kWords];
    const int16_t* lists;
    const uint8_t* mask;
    int64_t channel;
  };
  int count = 0, entry = 0;

  // By one thread, before all others go on.
  static __device__ void open(Shared& shared, const SelectorView& view, const ScanPlace& at) {
    shared.lists = view.list(at.batch, 0, at.first_channel / kListChannels);
    shared.mask = view.row(at.batch, 0);
    shared.channel = at.first_channel;
  }

  static __device__ __forceinline__ const int16_t* list_of(const Shared& shared, const SelectorView& view,
                                                           int64_t start, int column) {
    const int64_t tile = start / kListTokens * view.list_channels + column;
    return shared.lists + tile * (1 + view.capacity);
  }

  // Starts the loads of the first list's size and of this thread's entry.
  __device__ __forceinline__ void fetch_list(const Shared& shared, const SelectorView& view, int64_t start) {
    if (kAhead && start < view.length) {
      const int16_t* list = list_of(shared, view, start, 0);
      count = list[0];
      entry = static_cast<int>(threadIdx.x) < view.capacity ? list[1 + threadIdx.x] : 0;
    }
  }

  __device__ __forceinline__ void clear(Shared& shared) const {
    if (threadIdx.x < kWords) {
      shared.word[threadIdx.x] = 0;
    }
  }

  // Fills the bitmap of the tile that was fetched.
  __device__ __forceinline__ void spread(Shared& shared, const SelectorView& view, int64_t start) const {
    if (start >= view.length) {
      return;
    }
    const int thread = this_thread();
#pragma unroll 1
    for (int column = 0; column < kColumns; ++column) {
      const int64_t first = shared.channel + column * kListChannels;
      if (column > 0 && first / kListChannels >= view.list_channels) {
        return;
      }
      const int16_t* list = list_of(shared, view, start, column);
      const int outliers = kAhead && column == 0 ? count : list[0];
      if (outliers > view.capacity) {
        copy_mask(shared, view, start, first, column * kWidth, thread);
        continue;
      }
#pragma unroll 1
      for (int i = thread; i < outliers; i += kThreads) {
        const bool is_here = kAhead && column == 0 && i == thread;
        const int index = is_here ? entry : list[1 + i];
        const unsigned token = index / kListChannels - static_cast<int>(start % kListTokens);
        const unsigned channel = index % kListChannels - static_cast<int>(first % kListChannels);
        if (token < kTile && channel < kWidth) {
          set(shared, token * kChannels + column * kWidth + channel, 1);
        }
      }
    }
  }

  __device__ __forceinline__ uint32_t four(const Shared& shared, const ScanPlace& at, int i) const {
    const unsigned bit = (at.row + i * kPass) * kChannels + 4 * at.group;
    return shared.word[bit / 32] >> (bit % 32);
  }

 private:
  // threadIdx.x, read anew: what follows from it shall not be kept in registers during the recurrence.
  static __device__ __forceinline__ int this_thread() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
  }

  // The order of threads does not matter.
  static __device__ __forceinline__ void set(Shared& shared, unsigned bit, uint32_t ones) {
    atomicOr(&shared.word[bit / 32], ones << (bit % 32));
  }

  // The bits of a list that is full.
  static __device__ void copy_mask(Shared& shared, const SelectorView& view, int64_t start, int64_t first,
                                   int column, int thread) {
#pragma unroll 1
    for (int i = thread; i < kTile * kFours; i += kThreads) {
      const int token = i / kFours;
      const int64_t channel = first + i % kFours * 4;
      if (start + token < view.length && channel / 8 < view.row_bytes) {
        const uint32_t byte = shared.mask[(start + token) * view.row_bytes + channel / 8];
        set(shared, token * kChannels + column + i % kFours * 4, byte >> (channel % 8) & 15u);
      }
    }
  }
};

}  // namespace dualscale

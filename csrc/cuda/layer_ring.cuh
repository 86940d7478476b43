// The weights of in_proj and out_proj on their way to a block: a ring of slots in shared memory, each filled
// by one copy of neighbouring rows.
//
// Copies are numbered in the order of their use: first those of in_proj, rows of x with even and rows of z
// with odd numbers, then those of out_proj. Number n lies in slot n mod 2^slot_shift and completes phase n /
// 2^slot_shift of that slot's barrier. A slot is filled again only after a barrier of the whole block behind
// the last read of what lay there; so every thread has also seen the phase before, and its parity tells
// phases apart. Rows of out_proj for which the ring has no slots are `tail`: these come straight to
// registers.
#pragma once

#include "layer_step.cuh"

namespace dualscale {

template <int kBits>
struct SlotRows {
  static constexpr int kIn = kBits == 8 ? 4 : 8, kOut = kIn / 2;  // rows of a slot
  // Of eight bits the last tile of out_proj has no slots: so many rows do not fit.
  static constexpr bool kTail = kBits == 8;
  static constexpr int kLog2Group = kBits == 8 ? 2 : 1, kGroup = 1 << kLog2Group;  // slots
  static_assert(kGroup * kIn == kTilesAtOnce * kTileRows, "what is multiplied at once");
  static constexpr int kSlotted = (kTail ? kMostOutTiles - 1 : kMostOutTiles) * kTileRows;

  // Row g of a tile, in the numbering of mma.cuh, is in an even slot where g is even, and else in an odd one,
  // so that a quarter of a warp meets all banks. In its parity's slots it is this row.
  static __device__ __forceinline__ int place(int tile, int g) { return tile * (kTileRows / 2) + g / 2; }
};

#if defined(DUALSCALE_BULK)

// Brings bytes, a multiple of sixteen, into the L2 cache; no read, as prefetch_sector.
__device__ __forceinline__ void prefetch_bulk(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

template <int kBits>
class WeightRing {
 public:
  using Rows = SlotRows<kBits>;
  static constexpr bool kTail = Rows::kTail;

  __device__ __forceinline__ WeightRing(const LayerStep& step, uint32_t memory)
      : a(step),
        memory_(memory),
        in_slots_(2 * step.own / Rows::kIn),
        out_slots_((min(step.out_rows(), Rows::kSlotted) + Rows::kOut - 1) / Rows::kOut) {}

  // One thread makes the barriers, and that of the parameters, before any copy.
  __device__ __forceinline__ void prepare() const {
    for (int i = 0; i < groups(); ++i) {
      barrier_init(barrier(i), Rows::kGroup);
    }
    barrier_init(parameters(), 1);
    fence_for_copies();
  }

  // Starts the copies of groups [first, last), as many as exist; a warp each, in turn. All of the block call
  // it.
  __device__ __forceinline__ void fill(int first, int last) const {
    if (threadIdx.x % 32 == 0) {
      const int end = min(last, in_groups() + out_groups()) * Rows::kGroup;
      for (int n = first * Rows::kGroup + threadIdx.x / 32; n < end; n += kLayerWarps) {
        copy(n);
      }
    }
  }

  // Starts the first copies, of all the ring holds, and brings near what will not be copied for long.
  __device__ __forceinline__ void begin() const {
    fill(0, groups());
    if (threadIdx.x == 0) {
      prefetch();
    }
  }

  // How many groups the ring holds, and how many there are of each product.
  __device__ __forceinline__ int groups() const { return 1 << (a.at.slot_shift - Rows::kLog2Group); }
  __device__ __forceinline__ int in_groups() const { return in_slots_ / Rows::kGroup; }
  __device__ __forceinline__ int out_groups() const { return (out_slots_ + Rows::kGroup - 1) / Rows::kGroup; }

  __device__ __forceinline__ void await(int group) const {
    barrier_wait(barrier(group & (groups() - 1)), group >> (a.at.slot_shift - Rows::kLog2Group) & 1);
  }

  // Where a lane's first bytes of a row of a tile of in_proj are, and of out_proj.
  __device__ __forceinline__ uint32_t in_at(int tile, int g, int t) const {
    const int place = Rows::place(tile, g);
    return slot(place / Rows::kIn * 2 + g % 2) + place % Rows::kIn * in_bytes() + 16 * t;
  }
  __device__ __forceinline__ uint32_t out_at(int tile, int g, int t) const {
    const int place = Rows::place(tile, g);
    return slot(in_slots_ + place / Rows::kOut * 2 + g % 2) + place % Rows::kOut * out_bytes() + 16 * t;
  }

  // The row of this block's part of out_proj that this is; it need not exist.
  static __device__ __forceinline__ int out_row_of(int tile, int g) {
    const int place = Rows::place(tile, g);
    return (place / Rows::kOut * 2 + g % 2) * Rows::kOut + place % Rows::kOut;
  }

  __device__ __forceinline__ uint32_t parameters() const { return barrier(groups()); }

  // A row of this block's part of out_proj.
  __device__ __forceinline__ const uint8_t* out_row(int row) const {
    return a.out_weight + (static_cast<int64_t>(blockIdx.x) * a.out_rows() + row) * out_bytes();
  }

 private:
  // To the L2 cache: the rows of x and z that have no slots yet, and those of out_proj that never have.
  __device__ __forceinline__ void prefetch() const {
    const int row = capacity() / 2 * Rows::kIn, in_left = a.own - row;
    if (in_left > 0) {
      prefetch_bulk(in_row(0, row), in_left * in_bytes());
      prefetch_bulk(in_row(1, row), in_left * in_bytes());
    }
    const int out_left = a.out_rows() - Rows::kSlotted;
    if (out_left > 0) {
      prefetch_bulk(out_row(Rows::kSlotted), out_left * out_bytes());
    }
  }

  __device__ __forceinline__ int capacity() const { return 1 << a.at.slot_shift; }
  // Where copy n lies.
  __device__ __forceinline__ uint32_t slot(int n) const {
    return memory_ + a.at.ring + (n & (capacity() - 1)) * a.at.slot_bytes;
  }
  __device__ __forceinline__ int in_bytes() const { return a.width * kBits / 8; }
  __device__ __forceinline__ int out_bytes() const { return a.channels * kBits / 8; }
  // Of x (half 0) or z (half 1).
  __device__ __forceinline__ const uint8_t* in_row(int half, int row) const {
    return a.in_weight + (static_cast<int64_t>(half) * a.channels + blockIdx.x * a.own + row) * in_bytes();
  }
  __device__ __forceinline__ uint32_t barrier(int i) const { return memory_ + a.at.barriers + 8 * i; }

  __device__ __forceinline__ void copy(int n) const {
    const uint32_t counter = barrier(n / Rows::kGroup & (groups() - 1));
    const uint8_t* from = nullptr;
    int bytes = 0;  // of the last group's numbers without rows
    if (n < in_slots_) {
      from = in_row(n & 1, n / 2 * Rows::kIn);
      bytes = Rows::kIn * in_bytes();
    } else if (n < in_slots_ + out_slots_) {
      const int row = (n - in_slots_) * Rows::kOut;
      from = out_row(row);
      bytes = min(Rows::kOut, a.out_rows() - row) * out_bytes();
    }
    barrier_expect(counter, bytes);
    if (bytes > 0) {
      copy_bulk(slot(n), from, bytes, counter);
    }
  }

  const LayerStep& a;
  const uint32_t memory_;
  const int in_slots_, out_slots_;
};

#endif

}  // namespace dualscale

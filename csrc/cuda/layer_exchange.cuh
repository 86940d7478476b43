// How the blocks of a layer's step hand each other sums and values: words that say themselves whether they
// are whole, so that nobody waits for more than the words that he reads, and no fence is needed.
//
// A workspace has a count of launches (the epoch), counts of blocks that hold places, and two halves, which
// launches use in turn. It is all zeros at first. A launch works in the half of its epoch's parity, finds it
// all zeros, and zeroes the other one, in which the launch before worked. That launch is over: nobody touches
// the workspace before await_earlier(). The launch after, which works there, begins to when this one is over.
// One thread advances the epoch, once every block has added to a sum that it has read, for which each block
// had read the epoch first.
//
// Sums: every block adds to each word once, 2^56 for itself and its part below. Parts are 32 bits, so that
// 128 blocks stay below 2^40, or two of 21 bits, which stay below 2^28 each. Values: two halves in a word,
// inverted; what a conversion to half makes is never 0xffff, so that no word of values is zero.
#pragma once

#include "layer_step.cuh"

namespace dualscale {

constexpr int kEpochWords = 64;  // of the epoch, and of blocks that only hold a place
constexpr int kSumCopies =
    2;                        // of every sum, for half of the blocks each, as one address takes one at a time
constexpr int kSumKinds = 4;  // low and high parts of sums, and of sums beyond the knee
constexpr int kCountShift = 56;
constexpr int kHalfShift = 28, kHalfBias = 1 << 20;  // of two parts in a word
static_assert(kMostOwn * 128 * 128 < kHalfBias && kMostBlocks * 2 * kHalfBias <= 1 << kHalfShift,
              "sums of codes fit");

// Words of sums in a half; a word of values is half as long.
__host__ __device__ inline int sum_words(int rows) { return kSumCopies * kLayerBatch * kSumKinds * rows; }
inline int half_words(int rows, int channels) {
  return (sum_words(rows) + kLayerBatch * channels / 4 + kEpochWords - 1) / kEpochWords * kEpochWords;
}

#if defined(DUALSCALE_BULK)

__device__ __forceinline__ unsigned long long load_word(const unsigned long long* from) {
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

__device__ __forceinline__ uint2 load_values(const uint32_t* from) {
  uint2 value;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(value.x), "=r"(value.y)
               : "l"(from)
               : "memory");
  return value;
}

// Ends the kernel with an error where a block has waited for seconds: more than two streams may wait for each
// other without end.
class Patience {
 public:
  __device__ __forceinline__ void wait() {
    if (--left_ == 0) {
      __trap();
    }
  }

 private:
  int left_ = 1 << 22;  // looks at memory, of half a microsecond or more
};

class LayerExchange {
 public:
  __device__ __forceinline__ explicit LayerExchange(const LayerStep& step) : a(step) {}

  // After await_earlier().
  __device__ __forceinline__ unsigned long long epoch() const { return load_word(a.workspace); }

  // What every thread does with the epoch that one has read; all of the block call it.
  __device__ __forceinline__ void begin(unsigned long long epoch) {
    epoch_ = epoch;
    half_ = half(epoch);
    auto* const other = reinterpret_cast<ulonglong2*>(half(epoch + 1));
    for (int i = blockIdx.x * kLayerThreads + threadIdx.x; i < a.half_words / 2;
         i += a.blocks * kLayerThreads) {
      other[i] = make_ulonglong2(0, 0);
    }
  }

  // Adds this block's part, signed or, as the low part of a longer one, unsigned.
  __device__ __forceinline__ void add(int batch, int kind, int row, unsigned long long part) const {
    const unsigned long long value = (1ull << kCountShift) + part;
    asm volatile(
        "red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(sum(blockIdx.x % kSumCopies, batch, kind, row)),
        "l"(value)
        : "memory");
  }
  static __device__ __forceinline__ uint32_t biased(int part) {
    return static_cast<uint32_t>(part) ^ 0x80000000u;
  }
  __device__ __forceinline__ long long unbiased(long long total) const {
    return total - (static_cast<long long>(a.blocks) << 31);
  }

  // Two parts in one word, each less than 2^20 in size, and their sums.
  static __device__ __forceinline__ unsigned long long both(int first, int second) {
    return static_cast<unsigned long long>(second + kHalfBias) << kHalfShift |
           static_cast<unsigned long long>(first + kHalfBias);
  }
  __device__ __forceinline__ int first_of(long long total) const {
    return static_cast<int>(total & ((1 << kHalfShift) - 1)) - a.blocks * kHalfBias;
  }
  __device__ __forceinline__ int second_of(long long total) const {
    return static_cast<int>(total >> kHalfShift) - a.blocks * kHalfBias;
  }

  // Waits for the sums of a row: kKinds of kSequences sequences from `first` on. Those beyond the batch are
  // not there and stay as they are.
  template <int kSequences, int kKinds>
  __device__ __forceinline__ void await_sums(int first, int row,
                                             long long (&total)[kSequences][kKinds]) const {
    bool whole;
    Patience patience;
    do {
      patience.wait();
      unsigned long long word[kSequences][kKinds][kSumCopies];
#pragma unroll
      for (int s = 0; s < kSequences; ++s) {
        if (first + s < a.batch) {
#pragma unroll
          for (int kind = 0; kind < kKinds; ++kind) {
#pragma unroll
            for (int copy = 0; copy < kSumCopies; ++copy) {
              word[s][kind][copy] = load_word(sum(copy, first + s, kind, row));
            }
          }
        }
      }
      whole = true;
#pragma unroll
      for (int s = 0; s < kSequences; ++s) {
        if (first + s < a.batch) {
#pragma unroll
          for (int kind = 0; kind < kKinds; ++kind) {
            total[s][kind] = 0;
#pragma unroll
            for (int copy = 0; copy < kSumCopies; ++copy) {
              const int parts = (a.blocks + kSumCopies - 1 - copy) / kSumCopies;
              whole = whole && static_cast<int>(word[s][kind][copy] >> kCountShift) == parts;
              total[s][kind] += static_cast<long long>(word[s][kind][copy] & ((1ull << kCountShift) - 1));
            }
          }
        }
      }
    } while (!whole);
  }

  // A block that has no share of the work: launches are one block a multiprocessor, so that none has two of
  // one launch while another has none. It stays until y arrives, when the blocks of the next launch have
  // come. Its own count of launches tells the epoch, which may have advanced before it looks.
  __device__ __forceinline__ void hold_place() const {
    unsigned long long* const own = a.workspace + 1 + (blockIdx.x - a.blocks);
    const unsigned long long epoch = *own;
    *own = epoch + 1;
    Patience patience;
    while (load_word(a.workspace) == epoch) {
      __nanosleep(200);
      patience.wait();
    }
    const uint32_t* const first = values_of(half(epoch), 0, 0);
    while (load_values(first).x == 0) {
      __nanosleep(200);
      patience.wait();
    }
  }

  // Called by one thread of one block that has awaited a sum.
  __device__ __forceinline__ void end() const {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(a.workspace), "l"(epoch_ + 1) : "memory");
  }

  // Two neighbouring channels' values.
  __device__ __forceinline__ void send_values(int batch, int channel, uint32_t halves) const {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(values(batch, channel)), "r"(~halves)
                 : "memory");
  }

  // Four neighbouring channels as they are kept; a part that is zero is not there yet.
  __device__ __forceinline__ uint2 peek_values(int batch, int channel) const {
    return load_values(values(batch, channel));
  }

 private:
  __device__ __forceinline__ unsigned long long* half(unsigned long long epoch) const {
    return a.workspace + kEpochWords + (epoch & 1 ? a.half_words : 0);
  }
  __device__ __forceinline__ unsigned long long* sum(int copy, int batch, int kind, int row) const {
    return half_ + ((copy * kLayerBatch + batch) * kSumKinds + kind) * a.mix_rows() + row;
  }
  __device__ __forceinline__ uint32_t* values(int batch, int channel) const {
    return values_of(half_, batch, channel);
  }
  __device__ __forceinline__ uint32_t* values_of(unsigned long long* half, int batch, int channel) const {
    return reinterpret_cast<uint32_t*>(half + sum_words(a.mix_rows())) + (batch * a.channels + channel) / 2;
  }

  const LayerStep& a;
  unsigned long long epoch_ = 0;
  unsigned long long* half_ = nullptr;
};

#endif

}  // namespace dualscale

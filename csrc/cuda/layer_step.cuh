// A whole Mamba-1 layer for one token of a few sequences as one kernel: what it is given and what lies where.
//
// Block b of `blocks` owns the channels [b own, (b + 1) own) from in_proj to y, and own / 2 rows of out_proj.
// The blocks meet twice, in global memory (layer_exchange.cuh): for the sums of x_proj and for y. Each norms
// the row and transforms y by itself, as the time to share these would be longer.
//
// Two launches lie side by side on a multiprocessor: while the blocks of one wait for each other, those of
// the next already fetch their weights. That is why a block takes less than half of a multiprocessor, and it
// is why no block waits for one that cannot come: see admit_next of layer_kernel.cuh.
#pragma once

#include "ahead.cuh"
#include "bulk.cuh"
#include "linear.cuh"

namespace dualscale {

constexpr int kLayerWarps = 10;
constexpr int kLayerThreads = 32 * kLayerWarps;
constexpr int kLayerBatch = 4;    // sequences at most
constexpr int kLayerStates = 16;  // of a channel
constexpr int kMostBlocks = 128;  // of a launch; fewer than 256, as a byte counts them
constexpr int kMostOwn = 40;      // channels of a block
constexpr int kMostWidth = 2560;  // of the residual: a vector of eight a thread
constexpr int kMostRanks = 256;   // of delta
constexpr int kTileRows = 8;      // of weights that a warp takes at once
constexpr int kTilesAtOnce = 2;   // of in_proj, between two barriers
constexpr int kMostOutTiles = 3;  // of a block's rows of out_proj
constexpr int kChannelStep = 8;   // own is a multiple of it
constexpr int kRowSkew = 64;      // bytes by which neighbouring slots and rows of codes lie apart modulo 128
constexpr int kSlowestColumns = 32;  // of a segment: those that a warp transforms at once

// Parameters that a block copies to shared memory before it waits for the kernel before.
enum LayerPiece : int {
  kInCode,
  kXCode,
  kZCode,
  kUCode,
  kDtCode,
  kBCode,
  kCCode,
  kDeltaCode,
  kOutCode,  // eight floats each
  kInScaleX,
  kInScaleZ,
  kInSumX,
  kInSumZ,  // x right before z
  kConvWeight,
  kConvBias,
  kDeltaWeight,
  kDeltaScale,
  kDeltaSum,
  kDeltaBias,
  kRate,
  kSkip,
  kOutScale,
  kOutSum,
  kPieces
};

// The same for every block (step 0), or that of a block `step` bytes after that of the block before.
struct Piece {
  const void* from;
  int step, bytes, at;  // all but step multiples of 16
};

// Where things lie in shared memory, in bytes.
struct LayerLayout {
  int ring, slot_bytes;   // slots of weights
  int slot_shift;         // of their number, a power of two
  int partial;            // sums of warps: one tile, or two in turn
  int row, row_stride;    // codes of the normed rows
  int scratch;            // of the transform, where rows and most parameters lay
  int code, code_stride;  // codes of the transform's results, where it worked
  int base;               // of the transform, as halves, while there are no sums
  int small, barriers, size;
};

// Group sizes of four-bit weights, as powers of two, and groups of a row; 0 with eight bits.
struct LayerGroups {
  int shift, count;
};

struct LayerStep {
  const __half* hidden;
  int64_t hidden_stride;
  Input residual;  // of any type, or no data
  void* total;     // the new residual
  Kind total_kind;
  __half* out;
  const float* norm_weight;
  float eps;
  const uint8_t* in_weight;   // (2 channels, width)
  const uint8_t* mix_weight;  // x_proj: (rows, channels)
  const void* mix_scale;
  const void* mix_sum;
  const uint8_t* out_weight;  // (width, channels)
  LayerGroups in, mix, delta, last;
  int8_t* conv_state;
  int64_t conv_batch_stride, conv_row_stride;
  float* state;
  int64_t state_stride;
  const float* base;
  unsigned long long* workspace;
  int half_words;  // of the workspace that take turns
  int batch, width, channels, own, blocks, ranks, taps;
  int segments, log2_segment;  // of the transform; segments of a base of order one are made here
  int base_order;
  float factor;  // 1 / sqrt(channels)
  bool has_conv_bias, has_skip, has_delta_bias, reads_ahead;
  Piece pieces[kPieces];
  LayerLayout at;

  __host__ __device__ int mix_rows() const { return ranks + 2 * kLayerStates; }
  __host__ __device__ int out_rows() const { return own / 2; }
};

// Small arrays of a block.
struct LayerShared {
  static constexpr int kOwnStride = 48;  // a multiple of 16 that holds kMostOwn
  alignas(16) int8_t x[kLayerBatch][kOwnStride];
  alignas(16) int8_t u[kLayerBatch][kOwnStride];
  alignas(16) int8_t over[kLayerBatch][kOwnStride];  // of u beyond the knee
  alignas(16) int8_t dt[kLayerBatch][kMostRanks];
  float gate[kLayerBatch][kMostOwn];
  alignas(16) float B[kLayerBatch][kLayerStates];
  alignas(16) float C[kLayerBatch][kLayerStates];
  static constexpr int kPartsStride = 12;  // a multiple of 4 that holds kLayerWarps
  alignas(16) float squares[kLayerBatch][kPartsStride];
  unsigned long long epoch;
};

#if defined(DUALSCALE_BULK)

// What lies in shared memory, if it exists; else zero, ...
__device__ __forceinline__ uint32_t load_word_if(bool exists, uint32_t address) {
  uint32_t word;
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\nmov.u32 %0, 0;\n@p ld.shared.u32 %0, [%1];\n}"
               : "=r"(word)
               : "r"(address), "r"(static_cast<uint32_t>(exists))
               : "memory");
  return word;
}

// ... or anything: what it is multiplied with is zero.
__device__ __forceinline__ uint4 load_four_if(bool exists, uint32_t address) {
  uint4 four;
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
               : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
               : "r"(address), "r"(static_cast<uint32_t>(exists))
               : "memory");
  return four;
}

#endif

// What every phase of a block works with; g and t as in mma.cuh.
struct LayerContext {
  const LayerStep& a;
  uint8_t* const memory;
  LayerShared& s;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  __device__ __forceinline__ LayerContext(const LayerStep& step, uint8_t* shared)
      : a(step), memory(shared), s(*reinterpret_cast<LayerShared*>(shared + step.at.small)) {}

  __device__ __forceinline__ int first_channel() const { return blockIdx.x * a.own; }

  template <class T = float>
  __device__ __forceinline__ const T* parameter(LayerPiece piece) const {
    return reinterpret_cast<const T*>(memory + a.pieces[piece].at);
  }

  // A code that all channels share, where it lies in shared memory.
  __device__ __forceinline__ CodeView code_of(LayerPiece piece) const {
    return {parameter(piece), false, false};
  }
};

}  // namespace dualscale

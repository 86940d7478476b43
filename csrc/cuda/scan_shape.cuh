// Sizes of a scan's block, and what lies in its shared memory.
#pragma once

#include "pairs.h"
#include "scan_copies.cuh"

namespace dualscale {

constexpr int kScanWarps = 4;
constexpr int kScanThreads = 32 * kScanWarps;

// Between the barriers before and after the recurrence of tile i, the block reads the raw u, delta and z of
// tiles i and i + 1 and the raw B and C of i + 1, while the copies of the next are started: three stages, and
// one more where tiles are so soon done that copies of two are under way. It reads B and C of tile i and
// writes those of i + 1: two buffers. It writes results of tile i, or with kLater of i - 1 and i, and stores
// those of i - kLag, complete since the barrier: kSums buffers, so that one barrier at least lies between a
// store and the next results there.
template <bool kAllCodes, int kStatesOfLane, int kLanesOfChannel, bool kTableOfSteps = false>
struct ScanShape {
  static constexpr bool kCodes = kAllCodes;  // and a knee or a pair code of u, and sixteen states
  static constexpr int kStates = kStatesOfLane, kLanes = kLanesOfChannel;
  // softplus(delta) from a table of each channel's 256 values: worth its making for long sequences of codes.
  static constexpr bool kTable = kTableOfSteps;
  static_assert(kCodes || !kTable, "the table is of codes");
  static constexpr int kPadded = kStates * kLanes;
  static constexpr int kWarpChannels = 32 / kLanes;
  static constexpr int kChannels = kScanWarps * kWarpChannels;
  static constexpr int kGroups = kChannels / 4;
  static constexpr int kBatch = 8;  // tokens
  static constexpr int kOwn = kBatch / kLanes;
  static constexpr bool kRawStates = kPadded == 16;  // B and C are copied as they are; else read when decoded
  static constexpr int kTile = !kRawStates ? 8 : kCodes ? (kStates < 8 ? 32 : 16) : (kStates < 8 ? 16 : 8);
  static constexpr int kBatches = kTile / kBatch;
  // Where few warps run, sums of a batch meet during the next, so that their latency hides behind its
  // recurrence.
  static constexpr bool kLater = kStates == 2;
  static constexpr int kLag = kLater ? 2 : 1;
  static constexpr int kSums = 2 * kLag;
  static constexpr int kStages = kLater ? 4 : 3;
  static constexpr int kWidth = kCodes ? 1 : 4;  // bytes of a value, at most
  static constexpr int kRowBytes = kChannels * kWidth;
  static constexpr int kRow = kRowBytes + (kRowBytes / 16 % 2 == 0 ? 16 : 0);  // rows in different banks
  static constexpr int kStateRow = kRawStates ? kPadded * kWidth : 0;
  static constexpr int kSumRow = kChannels + (kChannels / 4 % 2 == 0 ? 4 : 0);

  // Of one channel.
  struct alignas(16) Parameters {
    Scaled u, delta;   // of pairs both scales alone; delta's bias is in its offset
    float bias, skip;  // of delta; D
  };
  struct Stage {
    uint8_t u[kTile][kRow], delta[kTile][kRow], z[kTile][kRow];
    uint8_t states[2][kTile][kRawStates ? kStateRow : 16];  // B, C
  };
  // What a thread decodes of B and C and stores of the results, in bytes from the first tile's and in values.
  // In shared memory, since it is needed once a tile and registers are scarce.
  struct alignas(16) Place {
    int sums, row, column, unused;
  };
  struct alignas(16) Shared {
    Stage stage[kStages];
    float states[2][2][kPadded][kTile + 4];                     // of two tiles; B, C
    float sums[kSums][kTile][kSumRow];                          // results before they are stored
    float steps[kScanWarps][2][kWarpChannels][2 * kBatch + 4];  // of two batches: delta and delta * u in turn
    float gates[kLevels];                                       // SiLU(z) by the code's byte
    float table[kTable ? kChannels : 1][kTable ? kLevels : 1];  // softplus(delta) by the code's byte
    uint32_t selectors[kScanWarps][2][kListTokens];             // of two lists' tokens
    Stream streams[5];                                          // u, delta, z, B, C
    Scaled codes[2];                                            // of B, C
    Parameters parameters[kLater ? 1 : kChannels];
    Place places[kScanThreads];
  };
};

}  // namespace dualscale

// How a product of some rows is cut: host only, so that what it chooses can be printed and read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace dualscale {

constexpr int kMostCluster = 8;  // blocks, on any chip
constexpr int kMostRowsOfBlock = 128;
constexpr int kWidthUnit = 8;            // columns, eight rows of a tile in shared memory
constexpr int kHalfBytes = 112 * 1024;   // of shared memory, so that two blocks fit a processor, ...
constexpr int kWholeBytes = 224 * 1024;  // ... or one, where a step has many rows of x
constexpr int kFewStages = 4, kMostStages = 24;
constexpr int kSumsBytes = 16 * 32 * 4;  // of a warp's 16 rows and 32 columns

struct SomeShape {
  int64_t rows, columns, depth;
  bool knee;
};

// A block has 64 rows a group of four warps, and so many columns. The blocks of a cluster share the depth of
// the same columns (parts), or have the same depth of neighbouring columns, and share x (neighbours).
struct SomeCut {
  int groups, width, parts, neighbours;
  bool best = true;  // or tiles of many rows are quicker

  int cluster() const { return parts * neighbours; }
};

// How many clusters of each size find room at once, one block a processor.
struct ClusterRoom {
  int clusters[kMostCluster + 1];
};

// Of a kernel that has so many columns: a multiple of 32.
constexpr int columns_of_kernel(int width) { return (width + 31) / 32 * 32; }
constexpr int most_width(bool knee) { return knee ? 64 : 128; }

// Nanoseconds. A product takes as long as its bytes from memory, from the second level of the cache, which
// all processors share, through the port of a processor, or its sums on the tensor cores, each alone; where
// two of them take alike they are in each other's way, hence the fourth root of a sum of fourth powers.
struct SomeTime {
  static constexpr double kMemoryBytes = 4100, kCacheBytes = 5500, kPortBytes = 70;  // a nanosecond
  static constexpr double kSharedBytes = 128, kClock = 1.76;                         // a cycle; cycles
  static constexpr double kLatency = 1100;  // of memory at work: what is under way must last for it
  static constexpr double kExchange = 600, kRemoteBytes = 25;
  static constexpr double kPiece = 250, kTile = 300;  // of a warp's 16 rows and 32 columns; of a tile's end
  static constexpr double kAlone = 250;               // where no other block finds room beside one
  static constexpr double kCluster = 0.01;            // of all, for each block of a cluster
};

inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What lies where in the shared memory of a block: steps, sums on their way, parameters, barriers.
struct SomeLayout {
  int x_bytes, step_bytes, stage_bytes, stages, sums_at, parameters_at, barriers_at, bytes;
};

constexpr int bytes_of_parameters(int columns, bool knee) {
  return (knee ? columns * 24 : columns * 12 + 16) + kMostRowsOfBlock * 4;
}

inline SomeLayout lay_out(const SomeShape& p, const SomeCut& cut) {
  SomeLayout l{};
  const int columns = columns_of_kernel(cut.width), warps = 4 * cut.groups;
  const int x_rows = static_cast<int>(std::min<int64_t>(over(p.rows, 8) * 8, 64 * cut.groups));
  l.x_bytes = x_rows * 128;
  l.step_bytes = l.x_bytes + cut.width * 128;
  // Products read 64 rows a group and all columns of the kernel: there is room for them, though nothing
  // comes.
  l.stage_bytes = std::max(l.x_bytes + columns * 128, cut.groups * 64 * 128);
  // Alone, each warp has a place for one piece; the parts of the depth have places for all that come
  // together.
  const int pieces = static_cast<int>(over(x_rows, 16)) * columns / 32;
  const int places = cut.parts > 1 ? static_cast<int>(over(pieces, cut.parts)) * cut.parts : warps;
  const int sums = places * kSumsBytes * (p.knee ? 2 : 1);
  const int rest = sums + bytes_of_parameters(columns, p.knee) + (2 * kMostStages + 1) * 8;
  const int most = static_cast<int>(std::min<int64_t>(over(p.depth, 128), kMostStages));
  l.stages = std::min((kHalfBytes - rest) / l.stage_bytes, most);
  if (l.stages < std::min(kFewStages, most)) {
    l.stages = std::min((kWholeBytes - rest) / l.stage_bytes, most);
  }
  l.sums_at = l.stages * l.stage_bytes;
  l.parameters_at = l.sums_at + sums;
  l.barriers_at = l.parameters_at + bytes_of_parameters(columns, p.knee);
  l.bytes = l.barriers_at + (2 * l.stages + 1) * 8;
  return l;
}

inline double time_of(const SomeShape& p, const SomeCut& cut, const ClusterRoom& room) {
  using T = SomeTime;
  const int64_t steps = over(p.depth, 128), row_tiles = over(p.rows, 64 * cut.groups);
  const int64_t column_tiles = over(p.columns, cut.width);
  const int64_t needed = row_tiles * over(column_tiles, cut.neighbours);
  const int64_t clusters = std::max(room.clusters[cut.cluster()], 1), rounds = over(needed, clusters);
  const SomeLayout layout = lay_out(p, cut);
  if (room.clusters[cut.cluster()] == 0 || layout.stages < std::min<int64_t>(2, steps) || cut.parts > steps ||
      cut.neighbours > column_tiles || (cut.parts > 1 && rounds > 1)) {
    return std::numeric_limits<double>::infinity();
  }
  const double blocks = static_cast<double>(std::min(needed, clusters) * cut.cluster());
  const double x = layout.x_bytes, weights = 128.0 * cut.width;
  const int columns = columns_of_kernel(cut.width), products = p.knee ? 2 : 1;
  const double steps_of_block = static_cast<double>(rounds * over(steps, cut.parts));
  // Where not all of a block is under way at once, its stages are what memory can bring in its latency.
  const bool is_whole = rounds * over(steps, cut.parts) <= layout.stages;
  const double port =
      std::max((x + weights) / T::kPortBytes, is_whole ? 0.0 : T::kLatency / (layout.stages - 1));
  const double cache = blocks * (x / cut.neighbours + weights) / T::kCacheBytes;
  const double product = std::max(columns / 2.0, (64.0 + columns) * 32 / T::kSharedBytes);
  const double tensor = 4.0 * cut.groups * products * product / T::kClock;
  const double memory = static_cast<double>(p.columns * p.depth) / T::kMemoryBytes;
  double stream = std::pow(memory / steps_of_block, 4);
  for (const double each : {port, cache, tensor}) {
    stream += each * each * each * each;
  }
  stream = std::sqrt(std::sqrt(stream)) * steps_of_block;

  const int64_t bands = over(std::min<int64_t>(p.rows, 64 * cut.groups), 16), chunks = over(cut.width, 32);
  const int64_t pieces = over(bands * chunks, cut.parts);
  const double end = rounds * (T::kTile + T::kPiece * over(pieces, 4 * cut.groups));
  const double sent = 1.0 * kSumsBytes * bands * chunks * products * (cut.parts - 1) / cut.parts;
  const double exchange = cut.parts > 1 ? T::kExchange + sent / T::kRemoteBytes : 0.0;
  const double alone = layout.bytes > kHalfBytes ? T::kAlone : 0.0;
  return (stream + end + exchange + alone) * (1.0 + T::kCluster * cut.cluster());
}

// The same of tiles of many rows in clusters of four (gemm.cuh), whose steps are bound by the tensor cores
// and the shared memory that feeds them, and whose ends two teams share but with a knee.
inline double time_of_many(const SomeShape& p, const ClusterRoom& room) {
  const int64_t rows = 128, columns = p.knee ? 96 : 160;
  const double shared = p.knee ? 480 : 417, end = p.knee ? 1500 : 0, least = 1500, rest = 3000;
  const int64_t row_tiles = over(p.rows, rows), column_tiles = over(p.columns, columns);
  const int down = row_tiles > 1 ? 2 : 1, across = column_tiles > 1 ? 2 : 1;
  const int64_t needed = over(row_tiles, down) * over(column_tiles, across);
  const int64_t clusters = std::max(room.clusters[down * across], 1), rounds = over(needed, clusters);
  const double blocks = static_cast<double>(std::min(needed, clusters) * down * across);
  const double bytes = 128.0 * static_cast<double>(rows / across + columns / down);
  const double step = std::max(shared, blocks * bytes / SomeTime::kCacheBytes);
  const double tile = std::max(static_cast<double>(over(p.depth, 128)) * step + end, least);
  return std::max(rounds * tile, static_cast<double>(p.columns * p.depth) / SomeTime::kMemoryBytes) + rest;
}

// The quickest of all, of clusters that the device has room for.
inline SomeCut quickest_cut(const SomeShape& p, const ClusterRoom& room) {
  SomeCut best{1, kWidthUnit, 1, 1, true};
  double least = std::numeric_limits<double>::infinity();
  const int groups = p.rows > 64 ? 2 : 1;
  for (int parts = 1; parts <= kMostCluster; parts *= 2) {
    for (const int neighbours : {1, 2, 3, 4, 8}) {
      for (int width = kWidthUnit; width <= most_width(p.knee); width += kWidthUnit) {
        const SomeCut cut{groups, width, parts, neighbours, true};
        if (cut.cluster() > kMostCluster) {
          continue;
        }
        const double time = time_of(p, cut, room);
        if (time < least) {
          least = time;
          best = cut;
        }
      }
    }
  }
  best.best = least <= time_of_many(p, room);
  return best;
}

}  // namespace dualscale

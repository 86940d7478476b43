// Launches of the product of some rows on a Hopper GPU.
#include "some_rows.cuh"
#include "tensor_map.cuh"

namespace dualscale {
namespace {

// How many clusters of each size find room, a block a processor.
const ClusterRoom& room_of(int device) {
  static thread_local int known = -1;
  static thread_local ClusterRoom room{};
  if (known != device) {
    const auto kernel = some_rows<32, false>;
    allow_shared(kernel, kWholeBytes);
    for (const int cluster : {1, 2, 3, 4, 8}) {  // a part of the depth or a neighbour each
      room.clusters[cluster] = clusters_of_device(kernel, cluster, 128 + 32, kWholeBytes, device);
    }
    known = device;
  }
  return room;
}

// The choice takes some microseconds, and a model has few shapes.
SomeCut known_cut(const SomeShape& p, int device) {
  struct Known {
    SomeShape shape{};
    SomeCut cut{};
    int device = -1;
  };
  constexpr int kKnown = 32;
  static thread_local Known known[kKnown];
  static thread_local int next = 0;
  for (const Known& each : known) {
    const SomeShape& s = each.shape;
    if (each.device == device && s.rows == p.rows && s.columns == p.columns && s.depth == p.depth &&
        s.knee == p.knee) {
      return each.cut;
    }
  }
  known[next] = {p, quickest_cut(p, room_of(device)), device};
  const SomeCut cut = known[next].cut;
  next = (next + 1) % kKnown;
  return cut;
}

template <int kColumns, bool kKnee>
void launch(const ManyRows& p, const Epilogue& e, const SomeCut& cut, int device, cudaStream_t stream) {
  static_assert(sizeof(SomeParameters<kColumns, kKnee>) == bytes_of_parameters(kColumns, kKnee) &&
                kSumsBytes == kPieceBytes);
  const auto kernel = some_rows<kColumns, kKnee>;
  const SomeLayout layout = lay_out({p.rows, e.columns, p.depth, kKnee}, cut);
  allow_shared(kernel, layout.bytes);
  SomeGrid grid{};
  grid.rows = p.rows;
  grid.steps = static_cast<int>(ceil_div(p.depth, kLineBytes));
  grid.column_groups = static_cast<int>(ceil_div(ceil_div(e.columns, cut.width), cut.neighbours));
  grid.tiles = static_cast<int>(ceil_div(p.rows, cut.groups * kGroupRows)) * grid.column_groups;
  grid.groups = cut.groups;
  grid.width = cut.width;
  grid.parts = cut.parts;
  grid.neighbours = cut.neighbours;
  grid.x_bytes = layout.x_bytes;
  grid.step_bytes = layout.step_bytes;
  grid.stage_bytes = layout.stage_bytes;
  grid.stages = layout.stages;
  grid.sums_at = layout.sums_at;
  grid.parameters_at = layout.parameters_at;
  grid.barriers_at = layout.barriers_at;
  // Only where there is room beside the kernel before.
  grid.constant_weight = p.constant_weight && layout.bytes <= kHalfBytes;
  const CUtensorMap x = map_of_codes(p.x, p.rows, p.depth, p.x_stride, layout.x_bytes / kLineBytes);
  const CUtensorMap weight = map_of_codes(p.weight, e.columns, p.depth, p.depth, cut.width);
  // With parts, each cluster has one tile; else they take tiles one after another.
  const int64_t room = cut.parts > 1 ? grid.tiles : room_of(device).clusters[cut.cluster()];
  const int64_t clusters = std::clamp<int64_t>(room, 1, grid.tiles);
  const ClusterLaunch launch(clusters * cut.cluster(), cut.cluster(), cut.groups * 128 + 32, layout.bytes,
                             stream);
  STD_CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, x, weight, e, grid));
}

}  // namespace

bool suits_some_rows(const ManyRows& p, const Epilogue& e, int device) {
  return known_cut({p.rows, e.columns, p.depth, e.knee}, device).best;
}

void multiply_some_rows(const ManyRows& p, const Epilogue& e, int device, cudaStream_t stream) {
  const SomeCut cut = known_cut({p.rows, e.columns, p.depth, e.knee}, device);
  const int columns = columns_of_kernel(cut.width);
  const auto go = e.knee ? (columns == 32 ? launch<32, true> : launch<64, true>)
                         : (columns == 32   ? launch<32, false>
                            : columns == 64 ? launch<64, false>
                            : columns == 96 ? launch<96, false>
                                            : launch<128, false>);
  go(p, e, cut, device, stream);
}

}  // namespace dualscale

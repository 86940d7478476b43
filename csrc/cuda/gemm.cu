// Launches of the product of many rows on a Hopper GPU.
#include "gemm.cuh"
#include "tensor_map.cuh"

namespace dualscale {
namespace {

template <int kTeams, int kColumns, bool kKnee, int kFlush>
void launch(const ManyRows& p, const Epilogue& e, int device, cudaStream_t stream) {
  using G = Gemm<kTeams, kColumns, kKnee, kFlush>;
  const auto kernel = gemm<kTeams, kColumns, kKnee, kFlush>;
  allow_shared(kernel, G::kShared);
  Grid grid{};
  grid.rows = p.rows;
  grid.steps = static_cast<int>(ceil_div(p.depth, kLineBytes));
  grid.row_tiles = static_cast<int>(ceil_div(p.rows, kTileRows));
  grid.column_tiles = static_cast<int>(ceil_div(e.columns, kColumns));
  grid.cluster_rows = grid.row_tiles > 1 ? 2 : 1;
  grid.cluster_columns = grid.column_tiles > 1 ? 2 : 1;
  grid.group_scale = p.group_scale;
  grid.padded_columns = p.padded_columns;
  grid.group_steps = static_cast<int>(std::max<int64_t>(p.group_size / kLineBytes, 1));
  grid.groups = p.group_size ? ceil_div(p.depth, p.group_size) : 0;
  const int cluster = grid.cluster_rows * grid.cluster_columns;
  const int64_t tiles =
      ceil_div(grid.row_tiles, grid.cluster_rows) * ceil_div(grid.column_tiles, grid.cluster_columns);
  const int64_t room = clusters_of_device(kernel, cluster, kGemmThreads, G::kShared, device);
  const CUtensorMap x = map_of_codes(p.x, p.rows, p.depth, p.x_stride, kGroupRows);
  const CUtensorMap weight = map_of_codes(p.weight, e.columns, p.depth, p.depth, kColumns / 2);
  const ClusterLaunch launch(std::clamp<int64_t>(room, 1, tiles) * cluster, cluster, kGemmThreads, G::kShared,
                             stream);
  STD_CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, x, weight, e, grid));
}

}  // namespace

void multiply_many_rows(const ManyRows& p, const Epilogue& e, int device, cudaStream_t stream) {
  const int64_t products = p.group_size / kCodesOfProduct;
  if (p.group_scale == nullptr) {
    e.knee ? launch<1, 96, true, 0>(p, e, device, stream) : launch<2, 160, false, 0>(p, e, device, stream);
  } else if (products >= kProducts) {
    e.knee ? launch<1, 96, true, kProducts>(p, e, device, stream)
           : launch<1, 128, false, kProducts>(p, e, device, stream);
  } else if (products == 2) {
    e.knee ? launch<1, 96, true, 2>(p, e, device, stream) : launch<1, 128, false, 2>(p, e, device, stream);
  } else {
    e.knee ? launch<1, 96, true, 1>(p, e, device, stream) : launch<1, 128, false, 1>(p, e, device, stream);
  }
}

}  // namespace dualscale

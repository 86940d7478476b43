// Launches of the product of many rows on a Hopper GPU.
#include "gemm.cuh"

namespace dualscale {
namespace {

using Encoder = decltype(&cuTensorMapEncodeTiled);

// The driver's function that describes a tensor to the copies; found at run time, so that nothing links the
// driver.
Encoder tensor_map_encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status{};
    STD_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                    cudaEnableDefault, &status));
    STD_TORCH_CHECK(status == cudaDriverEntryPointSuccess, "the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encoder>(function);
  }();
  return found;
}

// Boxes of `box_rows` rows of `line_bytes` of a matrix; what lies outside it reads as zero and is not
// written.
CUtensorMap map_of(const void* data, CUtensorMapDataType type, int width, int64_t rows, int64_t columns,
                   int64_t stride, int box_rows, int line_bytes, CUtensorMapSwizzle swizzle) {
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride * width)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(line_bytes / width), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = tensor_map_encoder()(
      &map, type, 2, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with ", static_cast<int>(result));
  return map;
}

CUtensorMap map_of_codes(const int8_t* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  return map_of(data, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, rows, columns, stride, box_rows, kLineBytes,
                CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap map_of_result(const Epilogue& e, int64_t rows, int line_bytes) {
  const auto make = [&](CUtensorMapDataType type, int width) {
    return map_of(e.y, type, width, rows, e.columns, e.columns, 16, line_bytes,
                  line_bytes == kStripLine ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_NONE);
  };
  switch (e.kind) {
    case Kind::kCodes:
      return make(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1);
    case Kind::kFloat:
      return make(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4);
    default:  // bits of two bytes, whatever they mean
      return make(CU_TENSOR_MAP_DATA_TYPE_UINT16, 2);
  }
}

template <int kColumns, bool kKnee, int kFlush>
void launch(const ManyRows& p, const Epilogue& e, int device, cudaStream_t stream) {
  using G = Gemm<kColumns, kKnee, kFlush>;
  const auto kernel = gemm<kColumns, kKnee, kFlush>;
  allow_shared(kernel, G::kShared);
  Grid grid{};
  grid.rows = p.rows;
  grid.steps = static_cast<int>(ceil_div(p.depth, kLineBytes));
  grid.row_tiles = static_cast<int>(ceil_div(p.rows, kTileRows));
  grid.column_tiles = static_cast<int>(ceil_div(e.columns, kColumns));
  grid.cluster = grid.row_tiles > 1 ? 2 : 1;
  grid.group_scale = p.group_scale;
  grid.padded_columns = p.padded_columns;
  grid.group_steps = static_cast<int>(std::max<int64_t>(p.group_size / kLineBytes, 1));
  grid.groups = p.group_size ? ceil_div(p.depth, p.group_size) : 0;
  const int64_t tiles = ceil_div(grid.row_tiles, grid.cluster) * grid.column_tiles;
  const int64_t clusters = std::min<int64_t>(tiles, multiprocessors(device) / grid.cluster);

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(clusters * grid.cluster));
  config.blockDim = dim3(kGemmThreads);
  config.dynamicSmemBytes = G::kShared;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  const int width = width_of(e.kind);
  if (e.columns * width % 16 == 0) {
    // A line must not reach into the next tile, nor end inside a chunk.
    const bool fits = width < 4 && kColumns * width % kStripLine == 0;
    grid.line_bytes = fits ? kStripLine : kChunkColumns * width;
  }
  const CUtensorMap y = grid.line_bytes ? map_of_result(e, p.rows, grid.line_bytes) : CUtensorMap{};
  const CUtensorMap x = map_of_codes(p.x, p.rows, p.depth, p.x_stride, kTileRows);
  const CUtensorMap weight = map_of_codes(p.weight, e.columns, p.depth, p.depth, kColumns / 2);
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, x, weight, y, e, grid));
}

}  // namespace

void multiply_many_rows(const ManyRows& p, const Epilogue& e, int device, cudaStream_t stream) {
  const int64_t products = p.group_size / kCodesOfProduct;
  if (p.group_scale == nullptr) {
    // Smaller tiles where larger ones would leave processors idle.
    const int64_t large = ceil_div(p.rows, kTileRows) * ceil_div(e.columns, 256);
    if (e.knee) {
      launch<96, true, 0>(p, e, device, stream);
    } else if (large >= multiprocessors(device)) {
      launch<256, false, 0>(p, e, device, stream);
    } else {
      launch<128, false, 0>(p, e, device, stream);
    }
  } else if (products >= kProducts) {
    e.knee ? launch<96, true, kProducts>(p, e, device, stream)
           : launch<128, false, kProducts>(p, e, device, stream);
  } else if (products == 2) {
    e.knee ? launch<96, true, 2>(p, e, device, stream) : launch<128, false, 2>(p, e, device, stream);
  } else {
    e.knee ? launch<96, true, 1>(p, e, device, stream) : launch<128, false, 1>(p, e, device, stream);
  }
}

}  // namespace dualscale

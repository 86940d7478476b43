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

// Tiles of a product, and how many blocks share the depth of one.
struct Cut {
  int rows, columns, split;
};

template <class G>
Grid grid_of_tiles(const ManyRows& p, const Epilogue& e, int split) {
  Grid grid{};
  grid.rows = p.rows;
  grid.steps = static_cast<int>(ceil_div(p.depth, kLineBytes));
  grid.row_tiles = static_cast<int>(ceil_div(p.rows, G::kTileRows));
  grid.column_tiles = static_cast<int>(ceil_div(e.columns, G::kTileColumns));
  grid.cluster = !G::kCut && grid.row_tiles > 1 ? 2 : 1;
  grid.split = split;
  grid.group_scale = p.group_scale;
  grid.padded_columns = p.padded_columns;
  grid.group_steps = static_cast<int>(std::max<int64_t>(p.group_size / kLineBytes, 1));
  grid.groups = p.group_size ? ceil_div(p.depth, p.group_size) : 0;
  const int width = width_of(e.kind);
  if (e.columns * width % 16 == 0) {
    // A line must not reach into the next tile, nor end inside a chunk; chunks of a cut tile are written
    // singly.
    const bool fits = !G::kCut && width < 4 && G::kTileColumns * width % kStripLine == 0;
    grid.line_bytes = fits ? kStripLine : kChunkColumns * width;
  }
  return grid;
}

template <int kRows, int kColumns, bool kKnee, int kFlush>
void launch(const ManyRows& p, const Epilogue& e, int split, int device, cudaStream_t stream) {
  using G = Gemm<kRows, kColumns, kKnee, kFlush>;
  const auto kernel = gemm<kRows, kColumns, kKnee, kFlush>;
  allow_shared(kernel, G::kShared);
  const Grid grid = grid_of_tiles<G>(p, e, split);
  const int64_t tiles = ceil_div(grid.row_tiles, grid.cluster) * grid.column_tiles;
  const int blocks = grid.cluster * grid.split;
  const int64_t clusters = G::kCut ? tiles : std::min<int64_t>(tiles, multiprocessors(device) / blocks);

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(clusters * blocks));
  config.blockDim = dim3(kGemmThreads);
  config.dynamicSmemBytes = G::kShared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  const CUtensorMap y = grid.line_bytes ? map_of_result(e, p.rows, grid.line_bytes) : CUtensorMap{};
  const CUtensorMap x = map_of_codes(p.x, p.rows, p.depth, p.x_stride, kRows);
  const CUtensorMap weight = map_of_codes(p.weight, e.columns, p.depth, p.depth, kColumns / 2);
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, x, weight, y, e, grid));
}

// Time is counted in lines of 128 bytes, of which a processor takes in one in 1.3 ns; from memory, with all
// processors at it, one in 4 ns.
constexpr int64_t kMemoryLine = 3;
constexpr int64_t kChunkTime = 300;     // of a warp that finishes 16 rows and 32 columns
constexpr int64_t kExchangeTime = 300;  // of a cluster whose blocks wait for each other
constexpr int64_t kRemoteLine = 4;      // of another block's shared memory
constexpr int kLeastNeighbours = 16;    // processors among which a cluster must find room

// How long a product takes with such tiles; none for a cut one that does not fit the chip at once.
int64_t time_of(const ManyRows& p, const Epilogue& e, const Cut& cut, int device) {
  const int64_t processors = multiprocessors(device), lines = ceil_div(p.depth, kLineBytes);
  const int64_t tiles = ceil_div(p.rows, cut.rows) * ceil_div(e.columns, cut.columns);
  const int64_t from_memory = lines * e.columns * kMemoryLine / processors;
  const int64_t chunks = cut.columns / kChunkColumns;
  if (cut.rows > kGroupRows) {
    const int64_t rounds = ceil_div(tiles, processors);
    return std::max(rounds * lines * (cut.rows + cut.columns), from_memory) + chunks * kChunkTime;
  }
  const int64_t clusters =
      cut.split > 1 ? processors / kLeastNeighbours * (kLeastNeighbours / cut.split) : processors;
  const int64_t unit = std::max<int64_t>(p.group_size / kLineBytes, 1), units = ceil_div(lines, unit);
  if (tiles > clusters || cut.split > units) {
    return std::numeric_limits<int64_t>::max();
  }
  const int64_t steps = std::min(ceil_div(units, cut.split) * unit, lines);
  const int64_t sums = int64_t{cut.rows} * cut.columns * 4 / kLineBytes * (e.knee && !p.group_size ? 2 : 1);
  const int64_t exchange =
      cut.split > 1 ? kExchangeTime + sums * (cut.split - 1) / cut.split * kRemoteLine : 0;
  return std::max(steps * (cut.rows + cut.columns), from_memory) + exchange +
         ceil_div(chunks * 4, 8 * cut.split) * kChunkTime;
}

// The quickest of these tiles, with each number of blocks that may share one.
Cut quickest(const ManyRows& p, const Epilogue& e, std::initializer_list<Cut> tiles, int device) {
  Cut best{};
  int64_t least = std::numeric_limits<int64_t>::max();
  for (Cut cut : tiles) {
    const int most = cut.rows > kGroupRows ? 1 : kMostSplit;
    for (cut.split = 1; cut.split <= most; ++cut.split) {
      const int64_t time = time_of(p, e, cut, device);
      if (time < least) {
        best = cut;
        least = time;
      }
    }
  }
  return best;
}

// Sums of integers.
void multiply_codes(const ManyRows& p, const Epilogue& e, int device, cudaStream_t stream) {
  if (e.knee) {
    const Cut cut = quickest(p, e, {{128, 96}, {64, 128}, {64, 64}}, device);
    const auto go = cut.rows == 128      ? launch<128, 96, true, 0>
                    : cut.columns == 128 ? launch<64, 128, true, 0>
                                         : launch<64, 64, true, 0>;
    go(p, e, cut.split, device, stream);
    return;
  }
  // Of tiles of 128 rows the smaller ones where the larger ones would leave processors idle, or fetching the
  // weights is what takes long.
  const bool is_large =
      p.rows > 128 && ceil_div(p.rows, 128) * ceil_div(e.columns, 256) >= multiprocessors(device);
  const Cut cut = quickest(p, e, {{128, is_large ? 256 : 128}, {64, 256}, {64, 128}, {64, 64}}, device);
  const auto go = cut.rows == 128      ? (is_large ? launch<128, 256, false, 0> : launch<128, 128, false, 0>)
                  : cut.columns == 256 ? launch<64, 256, false, 0>
                  : cut.columns == 128 ? launch<64, 128, false, 0>
                                       : launch<64, 64, false, 0>;
  go(p, e, cut.split, device, stream);
}

// Sums of groups times their scales.
template <bool kKnee, int kFlush>
void multiply_groups(const ManyRows& p, const Epilogue& e, int device, cudaStream_t stream) {
  constexpr int kColumns = kKnee ? 96 : 128;
  const Cut cut = quickest(p, e, {{128, kColumns}, {64, 128}}, device);
  const auto go = cut.rows == 128 ? launch<128, kColumns, kKnee, kFlush> : launch<64, 128, kKnee, kFlush>;
  go(p, e, cut.split, device, stream);
}

}  // namespace

void multiply_many_rows(const ManyRows& p, const Epilogue& e, int device, cudaStream_t stream) {
  const int64_t products = p.group_size / kCodesOfProduct;
  if (p.group_scale == nullptr) {
    multiply_codes(p, e, device, stream);
  } else if (products >= kProducts) {
    const auto go = e.knee ? multiply_groups<true, kProducts> : multiply_groups<false, kProducts>;
    go(p, e, device, stream);
  } else if (products == 2) {
    const auto go = e.knee ? multiply_groups<true, 2> : multiply_groups<false, 2>;
    go(p, e, device, stream);
  } else {
    const auto go = e.knee ? multiply_groups<true, 1> : multiply_groups<false, 1>;
    go(p, e, device, stream);
  }
}

}  // namespace dualscale

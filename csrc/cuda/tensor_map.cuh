// How tensors are described to the copies of a Hopper GPU (TMA).
#pragma once

#include "launch.cuh"
#include "wgmma.cuh"

namespace dualscale {

using TensorMapEncoder = decltype(&cuTensorMapEncodeTiled);

// The driver's function that does it; found at run time, so that nothing links the driver.
inline TensorMapEncoder tensor_map_encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status{};
    STD_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                    cudaEnableDefault, &status));
    STD_TORCH_CHECK(status == cudaDriverEntryPointSuccess, "the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<TensorMapEncoder>(function);
  }();
  return found;
}

// Boxes of `box_rows` rows of `line_bytes` of a matrix; what lies outside it reads as zero and is not
// written.
inline CUtensorMap map_of(const void* data, CUtensorMapDataType type, int width, int64_t rows,
                          int64_t columns, int64_t stride, int box_rows, int line_bytes,
                          CUtensorMapSwizzle swizzle) {
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

// Tiles of codes as products read them.
inline CUtensorMap map_of_codes(const int8_t* data, int64_t rows, int64_t columns, int64_t stride,
                                int box_rows) {
  return map_of(data, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, rows, columns, stride, box_rows, kLineBytes,
                CU_TENSOR_MAP_SWIZZLE_128B);
}

// Attributes of a launch in clusters, each block on another processor, that begins while the kernel before
// ends (ahead.cuh).
struct ClusterLaunch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[3]{};

  ClusterLaunch(int64_t blocks, int cluster, int threads, size_t shared, cudaStream_t stream) {
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    attributes[1].id = cudaLaunchAttributeClusterSchedulingPolicyPreference;
    attributes[1].val.clusterSchedulingPolicyPreference = cudaClusterSchedulingPolicySpread;
    attributes[2].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[2].val.programmaticStreamSerializationAllowed = 1;
    config.attrs = attributes;
    config.numAttrs = 3;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;
};

// How many clusters of such blocks find room on the device at once; each size is asked for once.
template <class Kernel>
int clusters_of_device(Kernel kernel, int cluster, int threads, size_t shared, int device) {
  constexpr int kMostCluster = 8;
  static thread_local int known_device = -1, known[kMostCluster + 1] = {};
  if (known_device != device) {
    std::fill(known, known + kMostCluster + 1, 0);
    known_device = device;
  }
  if (known[cluster] == 0) {
    ClusterLaunch launch(cluster, cluster, threads, shared, nullptr);
    launch.config.numAttrs = 1;  // its size
    STD_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&known[cluster], kernel, &launch.config));
  }
  return known[cluster];
}

}  // namespace dualscale

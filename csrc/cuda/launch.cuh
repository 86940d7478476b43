// Host side of every CUDA operator: device and stream, tensors as rows, types to templates.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <limits>

#include "checks.h"

namespace dualscale {

// Makes a tensor's device current for the duration of an operator; kernels go to its current stream.
struct OnDevice {
  explicit OnDevice(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &handle));
    stream = static_cast<cudaStream_t>(handle);
  }
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a one-dimensional grid.
inline unsigned grid_of(const char* op, int64_t blocks) {
  if (blocks > std::numeric_limits<int32_t>::max()) {
    refuse({op, "the first argument"}, "needs " + std::to_string(blocks) + " blocks", "at most 2^31 - 1");
  }
  return static_cast<unsigned>(blocks);
}

// An attribute of a device; launches ask for it again and again.
template <cudaDeviceAttr kAttribute>
int attribute_of(int device) {
  static thread_local int cached_device = -1;
  static thread_local int cached = 0;
  if (device != cached_device) {
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&cached, kAttribute, device));
    cached_device = device;
  }
  return cached;
}

inline int multiprocessors(int device) { return attribute_of<cudaDevAttrMultiProcessorCount>(device); }

// The first number of its compute capability.
inline int compute_major(int device) { return attribute_of<cudaDevAttrComputeCapabilityMajor>(device); }

// Dynamic shared memory above 48 KiB must be asked for, kernel by kernel.
template <class Kernel>
void allow_shared(Kernel kernel, size_t bytes) {
  if (bytes > 48 * 1024) {
    STD_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
}

inline int shared_limit(int device) { return attribute_of<cudaDevAttrMaxSharedMemoryPerBlockOptin>(device); }

// (..., channels) seen as rows one stride apart; a tensor that is not so is copied first.
struct Rows {
  Tensor tensor;
  int64_t count;
  int64_t channels;
  int64_t stride;
};

inline Rows rows_of(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const int64_t channels = tensor.size(last);
  const int64_t count = channels ? tensor.numel() / channels : 0;
  int64_t stride = channels, expected = -1;
  bool regular = channels < 2 || tensor.stride(last) == 1;
  for (int64_t i = last - 1; i >= 0 && regular; --i) {
    if (tensor.size(i) == 1) {
      continue;
    }
    if (expected < 0) {
      stride = tensor.stride(i);
    } else if (tensor.stride(i) != expected) {
      regular = false;
    }
    expected = tensor.stride(i) * tensor.size(i);
  }
  if (count == 0 || regular) {
    return {tensor, count, channels, stride};
  }
  return {torch::stable::contiguous(tensor), count, channels, channels};
}

// Whether every row begins at a multiple of `bytes`, so that vectors of that size may be loaded.
inline bool is_aligned(const Tensor& tensor, int64_t bytes) {
  bool aligned = reinterpret_cast<uintptr_t>(tensor.data_ptr()) % bytes == 0;
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) {
    aligned = aligned && (tensor.size(i) == 1 || tensor.stride(i) * tensor.element_size() % bytes == 0);
  }
  return aligned;
}

inline bool is_aligned(const OptionalTensor& tensor, int64_t bytes) {
  return !tensor || is_aligned(*tensor, bytes);
}

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) for the floating types.
template <class F>
void dispatch_floating(ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Half:
      return f(Type<__half>{});
    case ScalarType::BFloat16:
      return f(Type<__nv_bfloat16>{});
    default:
      return f(Type<float>{});
  }
}

// ... and for codes.
template <class F>
void dispatch_activation(ScalarType type, F&& f) {
  if (type == ScalarType::Char) {
    return f(Type<int8_t>{});
  }
  dispatch_floating(type, f);
}

inline const float* floats(const OptionalTensor& tensor) {
  return tensor ? static_cast<const float*>(tensor->data_ptr()) : nullptr;
}

inline const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data_ptr()); }

template <class T = void>
const T* data(const OptionalTensor& tensor) {
  return tensor ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
}

// The code of a result as kernels take it; rows is null when the result is floating point.
struct CodeView {
  const float* rows = nullptr;
  bool per_channel = false;
  bool is_table = false;
};

inline CodeView view_of(const OptionalTensor& code) {
  if (!code) {
    return {};
  }
  return {floats(code), code->size(0) > 1, !is_knee(*code)};
}

}  // namespace dualscale

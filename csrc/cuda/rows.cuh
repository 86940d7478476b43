// Operators that see a whole row before they can write it: the row waits as fp32 in shared memory, then
// leaves as static codes, as codes with a scale of the row's own, or as floating point.
#pragma once

#include "four.cuh"

namespace dualscale {

constexpr int kMaxRowThreads = 512;

// Where channel c of the row lies. Every 64 channels 8 words are left out, so that the strided passes of the
// Hadamard transform meet different banks; vectors of four stay together and aligned.
__device__ __forceinline__ int slot(int c) { return c + ((c >> 6) << 3); }

// Words that a row of so many channels takes.
__host__ __device__ inline int64_t slot_count(int64_t channels) { return channels + (channels / 64 + 1) * 8; }

inline size_t row_bytes(int64_t channels) { return slot_count(channels) * sizeof(float); }

struct RowResult {
  CodeView code;
  bool per_token;
  Kind kind;
  void* y;
  float* row_scale;
  int channels;  // a row fits shared memory, so it fits an int
  bool aligned;
};

inline RowResult row_result(const OptionalTensor& code, bool per_token, const Tensor& y,
                            const Tensor& row_scale) {
  const int channels = static_cast<int>(y.size(y.dim() - 1));
  return {
      view_of(code), per_token,        kind_of(y), y.data_ptr(), static_cast<float*>(row_scale.data_ptr()),
      channels,      channels % 4 == 0};
}

inline Tensor new_row_scale(const Tensor& x, bool per_token) {
  const int64_t channels = x.size(x.dim() - 1);
  return torch::stable::new_empty(x, {per_token ? x.numel() / channels : 0}, ScalarType::Float);
}

inline Tensor new_result(const Tensor& x, const OptionalTensor& code, bool per_token, ScalarType dtype) {
  return torch::stable::new_empty(x, x.sizes(), code || per_token ? ScalarType::Char : dtype);
}

// A few vectors of four a thread.
inline int row_threads(int64_t channels) {
  return static_cast<int>(std::clamp<int64_t>(ceil_div(channels, 16 * 32) * 32, 64, kMaxRowThreads));
}

inline void check_row_fits(const Argument& argument, size_t bytes, int device) {
  const size_t limit = shared_limit(device);
  if (bytes > limit) {
    refuse(argument, "has rows that need " + std::to_string(bytes) + " bytes of shared memory",
           "at most " + std::to_string(limit) + " bytes");
  }
}

// Combines a value of every thread of the block; all get the result.
template <class Combine>
__device__ __forceinline__ float reduce_block(float value, Combine combine) {
  __shared__ float parts[kMaxRowThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = value;
  }
  __syncthreads();
  value = parts[0];
  for (unsigned i = 1; i < blockDim.x / 32; ++i) {
    value = combine(value, parts[i]);
  }
  return value;
}

template <class F>
__device__ __forceinline__ void for_each_four(int channels, F&& f) {
#pragma unroll 2
  for (int c = 4 * threadIdx.x; c < channels; c += 4 * blockDim.x) {
    f(c, min(channels - c, 4));
  }
}

__device__ __forceinline__ void encode_four(const CodeView& code, int64_t channel, int valid, float (&x)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t row = code.per_channel ? channel + min(j, valid - 1) : 0;
    x[j] = code.is_table ? Table::load(code.rows + row * kTableWidth).encode(x[j])
                         : Knee::load(code.rows + row * kKneeWidth).encode(x[j]);
  }
}

// Writes row `index`. A thread reads only the channels that for_each_four gives it.
__device__ __forceinline__ void write_row(const RowResult& r, const float* row, int64_t index) {
  float scale = 1.0f;
  if (r.per_token) {
    float largest = 0.0f;
    for_each_four(r.channels, [&](int c, int valid) {
      for (int j = 0; j < valid; ++j) {
        largest = fmaxf(largest, fabsf(row[slot(c) + j]));
      }
    });
    largest = reduce_block(largest, [](float a, float b) { return fmaxf(a, b); });
    scale = __fdiv_rn(fmaxf(largest, 1e-12f), 127.0f);
    if (threadIdx.x == 0) {
      r.row_scale[index] = scale;
    }
  }
  for_each_four(r.channels, [&](int c, int valid) {
    const float4 four = *reinterpret_cast<const float4*>(&row[slot(c)]);
    float x[4] = {four.x, four.y, four.z, four.w};
    if (r.per_token) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float q = __fdiv_rn(x[j] == x[j] ? x[j] : 0.0f, scale);
        x[j] = round_half_away(fminf(fmaxf(q, -127.0f), 127.0f));
      }
    } else if (r.code.rows != nullptr) {
      encode_four(r.code, c, valid, x);
    }
    store_four(r.y, r.kind, index * r.channels + c, x, r.aligned, valid);
  });
}

}  // namespace dualscale

// Operators that see a whole row before they can write it: the row waits as fp32, in registers or in shared
// memory, then leaves as static codes, as codes with a scale of the row's own, or as floating point. One
// block a row; a thread owns vectors of eight channels, the next thread the next vector.
#pragma once

#include "ahead.cuh"
#include "eight.cuh"
#include "encode.cuh"
#include "residency.cuh"

namespace dualscale {

constexpr int kMaxRowThreads = 1024;

// Where channel c of the row lies in shared memory. Every 32 channels four words are left out, so that
// strided passes over vectors of four meet different banks; vectors of four stay together and aligned.
__host__ __device__ __forceinline__ int slot(int c) { return c + ((c >> 5) << 2); }

// Words that a row of so many channels takes, rounded up to whole vectors.
__host__ __device__ inline int64_t slot_count(int64_t channels) { return channels + (channels / 32 + 2) * 4; }

// Of shared memory that a kernel declares itself, bytes at most: allowed in addition to what a launch asks
// for.
constexpr size_t kRowScratch = 512;

inline size_t row_bytes(int64_t channels) { return slot_count(channels) * sizeof(float); }

struct RowResult {
  CodeView code;
  bool per_token;
  Kind kind;
  void* y;
  float* row_scale;
  int channels;  // a row fits shared memory, so it fits an int
  bool aligned;  // whether vectors of eight may be stored
};

inline RowResult row_result(const OptionalTensor& code, bool per_token, const Tensor& y,
                            const Tensor& row_scale) {
  const int channels = static_cast<int>(y.size(y.dim() - 1));
  return {view_of(code),
          per_token,
          kind_of(y),
          y.data_ptr(),
          static_cast<float*>(row_scale.data_ptr()),
          channels,
          channels % kEight == 0};
}

// Whether rows are whole vectors, and codes of channels may be read as such.
inline bool has_whole_vectors(const RowResult& result) {
  return result.aligned &&
         (!result.code.per_channel || reinterpret_cast<uintptr_t>(result.code.rows) % 16 == 0);
}

inline Tensor new_row_scale(const Tensor& x, bool per_token) {
  const int64_t channels = x.size(x.dim() - 1);
  return torch::stable::new_empty(x, {per_token ? x.numel() / channels : 0}, ScalarType::Float);
}

inline Tensor new_result(const Tensor& x, const OptionalTensor& code, bool per_token, ScalarType dtype) {
  return torch::stable::new_empty(x, x.sizes(), code || per_token ? ScalarType::Char : dtype);
}

// A row as the input of these operators.
inline Input row_input(const Rows& rows, const OptionalTensor& code = {}) {
  const Tensor& tensor = rows.tensor;
  const int64_t bytes = std::min<int64_t>(kEight * tensor.element_size(), 16);
  return {tensor.data_ptr(), view_of(code), 0, rows.stride, kind_of(tensor), is_aligned(tensor, bytes)};
}

// Threads that own so many vectors of eight each.
inline int row_threads(int64_t channels, int vectors) {
  return static_cast<int>(
      std::clamp<int64_t>(ceil_div(ceil_div(channels, kEight * vectors), 32) * 32, 32, kMaxRowThreads));
}

inline void check_row_fits(const Argument& argument, size_t bytes, int device) {
  const size_t limit = shared_limit(device);
  if (bytes > limit) {
    refuse(argument, "has rows that need " + std::to_string(bytes) + " bytes of shared memory",
           "at most " + std::to_string(limit) + " bytes");
  }
}

// Brings parameters near before the kernels before are done.
__device__ __forceinline__ void prefetch_floats(const float* from, int count) {
  for (int i = kEight * threadIdx.x; i < count; i += kEight * blockDim.x) {
    prefetch_sector(from + i);
  }
}

// Combines a value of every thread of the block; all get the result. `parts` is the scratch of one reduction.
template <class Combine>
__device__ __forceinline__ float reduce_block(float value, float (&parts)[kMaxRowThreads / 32],
                                              Combine combine) {
#pragma unroll
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

// The channels of one thread in registers: kVectors vectors, whole ones of aligned rows. Kernels ask rows of
// either kind for:
//   fill(load, use)   use(load(channel, valid), channel, valid, x) for every vector, which sets x
//   change(f)         f(channel, valid, x), which may write x
//   visit(f)          the same on a copy that is forgotten
template <int kVectors>
struct Row {
  static constexpr bool kWhole = true;
  float x[kVectors][kEight];
  int channels;

  __device__ Row(int size, float*) : channels(size) {}

  // All vectors are on their way before the first is used.
  template <class Load, class Use>
  __device__ __forceinline__ void fill(Load&& load, Use&& use) {
    decltype(load(0, 0)) raw[kVectors];
    for_each([&](int c, int v) { raw[v] = load(c, kEight); });
    for_each([&](int c, int v) { use(raw[v], c, kEight, x[v]); });
  }

  template <class Change>
  __device__ __forceinline__ void change(Change&& change) {
    for_each([&](int c, int v) { change(c, kEight, x[v]); });
  }

  template <class Use>
  __device__ __forceinline__ void visit(Use&& use) {
    change([&](int c, int valid, const float (&kept)[kEight]) {
      float copy[kEight];
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        copy[j] = kept[j];
      }
      use(c, valid, copy);
    });
  }

 private:
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int c = kEight * (threadIdx.x + v * blockDim.x);
      if (c < channels) {
        f(c, v);
      }
    }
  }
};

// Any number of channels in shared memory. kAllWhole: whole vectors of aligned rows here, too.
template <bool kAllWhole>
struct SharedRow {
  static constexpr bool kWhole = kAllWhole;
  float* row;
  int channels;

  __device__ SharedRow(int size, float* shared) : row(shared), channels(size) {}

  template <class Load, class Use>
  __device__ __forceinline__ void fill(Load&& load, Use&& use) {
    for_each([&](int c, int valid) {
      float x[kEight];
      use(load(c, valid), c, valid, x);
      write(c, x);
    });
  }

  template <class Change>
  __device__ __forceinline__ void change(Change&& change) {
    for_each([&](int c, int valid) {
      float x[kEight];
      read(c, x);
      change(c, valid, x);
      write(c, x);
    });
  }

  template <class Use>
  __device__ __forceinline__ void visit(Use&& use) {
    for_each([&](int c, int valid) {
      float x[kEight];
      read(c, x);
      use(c, valid, x);
    });
  }

 private:
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) {
    for (int c = kEight * threadIdx.x; c < channels; c += kEight * blockDim.x) {
      f(c, min(channels - c, kEight));
    }
  }
  __device__ __forceinline__ void read(int c, float (&x)[kEight]) const {
    const float4 a = *reinterpret_cast<const float4*>(&row[slot(c)]);
    const float4 b = *reinterpret_cast<const float4*>(&row[slot(c) + 4]);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
  }
  __device__ __forceinline__ void write(int c, const float (&x)[kEight]) {
    *reinterpret_cast<float4*>(&row[slot(c)]) = make_float4(x[0], x[1], x[2], x[3]);
    *reinterpret_cast<float4*>(&row[slot(c) + 4]) = make_float4(x[4], x[5], x[6], x[7]);
  }
};

// 0 vectors stand for shared memory.
template <int kVectors>
using RowOf = std::conditional_t<kVectors == 0, SharedRow<false>, Row<kVectors>>;

// Threads and blocks of them for which a kernel gets registers. One vector a thread is for few rows, where
// more threads are the sooner done; two and three blocks are for many rows of up to 5,120 channels.
template <int kVectors>
constexpr int kRowThreads = kVectors == 1   ? kMaxRowThreads
                            : kVectors == 2 ? 320
                                            : 512;
template <int kVectors>
constexpr int row_blocks() {
  return kVectors == 2 ? resident_blocks(3) : 1;
}

// Calls f(vectors a thread, as a constant) with the choice for so many rows: 0 where they are not whole
// vectors, or too long for registers.
template <class F>
void dispatch_vectors(bool whole, int64_t channels, int64_t rows, int device, F&& f) {
  const bool few = rows <= 2 * multiprocessors(device);
  if (!whole || channels > 4 * kEight * kRowThreads<4>) {
    f(std::integral_constant<int, 0>{});
  } else if (channels <= kEight * (few ? kRowThreads<1> : 256)) {
    f(std::integral_constant<int, 1>{});
  } else if (channels <= 2 * kEight * kRowThreads<2>) {
    f(std::integral_constant<int, 2>{});
  } else {
    f(std::integral_constant<int, 4>{});
  }
}

template <int kVectors>
unsigned threads_of_row(int64_t channels) {
  return std::min(row_threads(channels, kVectors == 0 ? 2 : kVectors), kRowThreads<kVectors>);
}

// The code of a row's channels. One that all share is read ahead of its use.
struct RowCode {
  CodeView view;
  Knee shared{};

  __device__ explicit RowCode(const CodeView& code) : view(code) {
    if (view.rows != nullptr && !view.per_channel && !view.is_table) {
      shared = Knee::load(view.rows);
    }
  }

  // Codes before_packing of N neighbouring channels.
  template <bool kWhole, int N>
  __device__ __forceinline__ void encode(int channel, int valid, float (&x)[N]) const {
    if (view.is_table) {
      encode_by_table(channel, valid, x);
    } else if (view.per_channel) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        float k[kKneeWidth];
        const int64_t row = channel + (kWhole ? j : min(j, valid - 1));
        load_floats<kWhole>(view.rows + row * kKneeWidth, kKneeWidth, k);
        x[j] = Knee::load(k).encode(x[j]);
      }
    } else if (is_symmetric(shared)) {
      encode_symmetric(shared, x);
    } else {
      encode_knee(shared, x);
    }
  }

 private:
  template <int N>
  __device__ __forceinline__ void encode_by_table(int channel, int valid, float (&x)[N]) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int64_t row = view.per_channel ? channel + min(j, valid - 1) : 0;
      x[j] = Table::load(view.rows + row * kTableWidth).encode(x[j]);
    }
  }
};

// Division by one number, rounded as division rounds: by its reciprocal and one correction (Markstein 1990).
struct Divisor {
  float value, inverse;

  // By infinity too, which leaves zero of every number.
  static __device__ __forceinline__ Divisor of(float by) {
    return isinf(by) ? Divisor{0.0f, 0.0f} : Divisor{by, __fdiv_rn(1.0f, by)};
  }

  __device__ __forceinline__ float divide(float x) const {
    const float q = __fmul_rn(x, inverse);
    return fmaf(fmaf(-q, value, x), inverse, q);
  }
};

// Writes row `index`. Each thread writes its own channels.
template <class AnyRow>
__device__ __forceinline__ void write_row(const RowResult& r, const RowCode& code, AnyRow& row,
                                          int64_t index) {
  constexpr bool kWhole = AnyRow::kWhole;
  const int64_t first = index * r.channels;
  if (r.per_token) {
    __shared__ float parts[kMaxRowThreads / 32];
    float largest = 0.0f;
    row.visit([&](int, int valid, const float (&x)[kEight]) {
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        largest = kWhole || j < valid ? fmaxf(largest, fabsf(x[j])) : largest;
      }
    });
    largest = reduce_block(largest, parts, [](float a, float b) { return fmaxf(a, b); });
    const float scale = __fdiv_rn(fmaxf(largest, 1e-12f), 127.0f);
    if (threadIdx.x == 0) {
      r.row_scale[index] = scale;
    }
    const Divisor by = Divisor::of(scale);
    row.visit([&](int c, int valid, float (&x)[kEight]) {
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        x[j] = before_packing(by.divide(x[j]));  // 127 at most, and a bit; packing makes 0 of NaN
      }
      store_eight<kWhole>(r.y, Kind::kCodes, first + c, x, r.aligned, valid);
    });
  } else if (r.code.rows != nullptr) {
    row.visit([&](int c, int valid, float (&x)[kEight]) {
      code.template encode<kWhole>(c, valid, x);
      store_eight<kWhole>(r.y, Kind::kCodes, first + c, x, r.aligned, valid);
    });
  } else {
    row.visit([&](int c, int valid, float (&x)[kEight]) {
      store_eight<kWhole>(r.y, r.kind, first + c, x, r.aligned, valid);
    });
  }
}

}  // namespace dualscale

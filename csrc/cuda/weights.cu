// Unpacking and decoding of weights, a piece a thread.
#include "weights.cuh"

#include "vector.cuh"

namespace dualscale {
namespace {

constexpr int kThreads = 256;
constexpr int kPiece = 16;  // codes of a thread

// Eight codes from the four bytes that hold them, the first four in the low halves.
__device__ __forceinline__ void unpack_word(uint32_t word, uint32_t (&codes)[2]) {
#pragma unroll
  for (int high = 0; high < 2; ++high) {
    const uint32_t nibbles = (high ? word >> 4 : word) & 0x0f0f0f0fu;
    codes[high] = __vsub4(nibbles ^ 0x08080808u, 0x08080808u);  // the sign of four bits becomes that of eight
  }
}

// Sixteen codes from `at` on of a matrix of `total` codes; each row is a multiple of eight, so is the whole.
template <int kBits>
__device__ __forceinline__ Raw<int8_t, kPiece> load_codes(const uint8_t* weight, int64_t at, int64_t total,
                                                          bool aligned) {
  const int valid = static_cast<int>(min(total - at, int64_t{kPiece}));
  if constexpr (kBits == 8) {
    return load_raw<int8_t, kPiece>(reinterpret_cast<const int8_t*>(weight) + at, aligned, valid);
  } else {
    const auto packed = load_raw<uint8_t, kPiece / 2>(weight + at / 2, aligned, valid / 2);
    Raw<int8_t, kPiece> codes;
#pragma unroll
    for (int i = 0; i < kPiece / 8; ++i) {
      uint32_t pair[2];
      unpack_word(packed.word[i], pair);
      codes.word[2 * i] = pair[0];
      codes.word[2 * i + 1] = pair[1];
    }
    return codes;
  }
}

__global__ void __launch_bounds__(kThreads)
    unpack_all(const uint8_t* weight, int64_t total, bool aligned, int8_t* to) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPiece;
  if (at < total) {
    store_raw(to + at, load_codes<4>(weight, at, total, aligned), true,
              static_cast<int>(min(total - at, int64_t{kPiece})));
  }
}

__global__ void __launch_bounds__(kThreads)
    transpose_scales(const __half* scale, int64_t columns, int64_t groups, int64_t padded, float* to) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < groups * padded) {
    const int64_t column = at % padded, group = at / padded;
    to[at] = column < columns ? __half2float(scale[column * groups + group]) : 0.0f;
  }
}

// Eight-bit codes have a row's fp32 scale, four-bit ones the fp16 scale of their group.
template <class T, int kBits>
__global__ void __launch_bounds__(kThreads)
    decode_all(const uint8_t* weight, const void* scale, int64_t total, int64_t depth, int64_t group_size,
               bool aligned, T* to) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPiece;
  if (first >= total) {
    return;
  }
  float x[kPiece];
  unpack(load_codes<kBits>(weight, first, total, aligned), x);
  const int64_t groups = kBits == 4 ? (depth + group_size - 1) / group_size : 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int64_t row = (first + 8 * half) / depth;
    int64_t k = (first + 8 * half) % depth;
    float s = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i, ++k) {
      if (k == depth) {
        k = 0;
        ++row;
      }
      if (first + 8 * half + i >= total) {
        break;
      }
      if constexpr (kBits == 4) {  // groups begin at multiples of eight
        s = i == 0 ? __half2float(static_cast<const __half*>(scale)[row * groups + k / group_size]) : s;
      } else {
        s = i == 0 || k == 0 ? static_cast<const float*>(scale)[row] : s;
      }
      x[8 * half + i] *= s;
    }
  }
  store_raw(to + first, pack<T, kPiece>(x), true, static_cast<int>(min(total - first, int64_t{kPiece})));
}

}  // namespace

Tensor unpacked_codes(const Tensor& weight, cudaStream_t stream) {
  Tensor codes = torch::stable::new_empty(weight, {weight.size(0), 2 * weight.size(1)}, ScalarType::Char);
  const int64_t total = codes.numel();
  if (total > 0) {
    unpack_all<<<grid_of("linear_w4a8", ceil_div(total, kThreads * kPiece)), kThreads, 0, stream>>>(
        static_cast<const uint8_t*>(weight.data_ptr()), total, is_aligned(weight, 8),
        static_cast<int8_t*>(codes.data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return codes;
}

Tensor transposed_scales(const Tensor& scale, int64_t padded_columns, cudaStream_t stream) {
  const int64_t columns = scale.size(0), groups = scale.size(1);
  Tensor made = torch::stable::new_empty(scale, {groups, padded_columns}, ScalarType::Float);
  transpose_scales<<<grid_of("linear_w4a8", ceil_div(groups * padded_columns, kThreads)), kThreads, 0,
                     stream>>>(static_cast<const __half*>(scale.data_ptr()), columns, groups, padded_columns,
                               static_cast<float*>(made.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return made;
}

Tensor decoded_weight(const Tensor& weight, const Tensor& scale, int64_t group_size, ScalarType type,
                      cudaStream_t stream) {
  const bool packed = group_size > 0;
  const int64_t depth = weight.size(1) * (packed ? 2 : 1), total = weight.size(0) * depth;
  Tensor values = torch::stable::new_empty(weight, {weight.size(0), depth}, type);
  if (total == 0) {
    return values;
  }
  const unsigned blocks = grid_of("linear_a16", ceil_div(total, kThreads * kPiece));
  const auto* const codes = static_cast<const uint8_t*>(weight.data_ptr());
  const bool aligned = reinterpret_cast<uintptr_t>(codes) % 16 == 0;
  dispatch_floating(type, [&](auto t) {
    using T = typename decltype(t)::type;
    const auto kernel = packed ? decode_all<T, 4> : decode_all<T, 8>;
    kernel<<<blocks, kThreads, 0, stream>>>(codes, scale.data_ptr(), total, depth, group_size, aligned,
                                            static_cast<T*>(values.data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return values;
}

}  // namespace dualscale

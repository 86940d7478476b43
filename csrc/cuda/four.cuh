// Four neighbouring values of a type that is known at run time: kernels whose arithmetic outweighs a uniform
// branch are compiled once instead of once a combination of types.
#pragma once

#include "launch.cuh"
#include "vector.cuh"

namespace dualscale {

// How an activation lies in memory. Whether it holds codes is fixed at compile time where that pays.
enum class Kind : int { kCodes, kHalf, kBFloat16, kFloat };

inline Kind kind_of(ScalarType type) {
  switch (type) {
    case ScalarType::Char:
      return Kind::kCodes;
    case ScalarType::Half:
      return Kind::kHalf;
    case ScalarType::BFloat16:
      return Kind::kBFloat16;
    default:
      return Kind::kFloat;
  }
}

// Bytes of a value.
__host__ __device__ inline int width_of(Kind kind) {
  return kind == Kind::kCodes ? 1 : kind == Kind::kFloat ? 4 : 2;
}

inline Kind kind_of(const Tensor& tensor) { return kind_of(tensor.scalar_type()); }

// One activation. `code` is null unless it holds codes.
struct Input {
  const void* data = nullptr;
  CodeView code;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
  Kind kind = Kind::kFloat;
  bool aligned = true;
};

inline Input input_of(const OptionalTensor& tensor, const OptionalTensor& code) {
  if (!tensor) {
    return {};
  }
  const int64_t rows = tensor->dim() > 2 ? tensor->stride(1) : 0;
  return {tensor->data_ptr(), view_of(code),
          tensor->stride(0),  rows,
          kind_of(*tensor),   is_aligned(*tensor, 4 * tensor->element_size())};
}

// Four neighbouring values as they lie in memory; four codes take one word.
template <bool kCodes>
struct Four {
  uint32_t word[kCodes ? 1 : 4];
};

// kAligned says the same as input.aligned, at compile time.
template <bool kCodes, bool kAligned = false>
__device__ __forceinline__ Four<kCodes> load_four(const Input& input, int64_t offset, int valid) {
  Four<kCodes> four;
  const auto take = [&](auto raw) {
#pragma unroll
    for (int i = 0; i < raw.kWords; ++i) {
      four.word[i] = raw.word[i];
    }
  };
  if (kCodes || input.kind == Kind::kCodes) {
    take(load_raw<int8_t, 4>(static_cast<const int8_t*>(input.data) + offset, kAligned || input.aligned,
                             valid));
  } else if constexpr (!kCodes) {
    if (input.kind == Kind::kFloat) {
      take(load_raw<float, 4>(static_cast<const float*>(input.data) + offset, kAligned || input.aligned,
                              valid));
    } else {  // half and bfloat16 are read alike
      take(load_raw<__half, 4>(static_cast<const __half*>(input.data) + offset, kAligned || input.aligned,
                               valid));
    }
  }
  return four;
}

// A knee code for approximate decoding, its scale included.
struct Scaled {
  float origin, scale, slope, offset;

  static __device__ __forceinline__ Scaled of(const float* row) {
    const Knee knee = Knee::load(row);
    const Pieces pieces = Pieces::of(knee);
    return {pieces.origin, knee.scale, knee.scale * pieces.slope, knee.scale * pieces.offset};
  }

  // Value of a biased code, plus `bias`.
  __device__ __forceinline__ float value(float biased, float bias = 0.0f) const {
    const float t = biased - origin;
    return fmaxf(fmaf(t, scale, bias), fmaf(t, slope, offset + bias));
  }
};

// Floating point values; codes stay biased (2^23 + 128 + q) for Scaled::value.
template <bool kCodes>
__device__ __forceinline__ void biased_or_value(const Four<kCodes>& four, Kind kind, float (&x)[4]) {
  if (kCodes || kind == Kind::kCodes) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = biased_byte(four.word[0] ^ 0x80808080u, i);
    }
  } else if constexpr (!kCodes) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint16_t bits = static_cast<uint16_t>(four.word[i / 2] >> (i % 2 * 16));
      x[i] = kind == Kind::kFloat  ? __uint_as_float(four.word[i])
             : kind == Kind::kHalf ? __half2float(__ushort_as_half(bits))
                                   : __uint_as_float(static_cast<uint32_t>(bits) << 16);
    }
  }
}

// One value: its bits as they lie in memory, ...
__device__ __forceinline__ uint32_t load_bits(const Input& input, int64_t offset) {
  switch (input.kind) {
    case Kind::kCodes:
      return static_cast<const uint8_t*>(input.data)[offset];
    case Kind::kFloat:
      return static_cast<const uint32_t*>(input.data)[offset];
    default:
      return static_cast<const uint16_t*>(input.data)[offset];
  }
}

// ... and what they stand for.
__device__ __forceinline__ float value_of_bits(const Input& input, uint32_t bits, int64_t channel) {
  if (input.kind == Kind::kCodes) {
    const float q = biased_byte(bits ^ 0x80u, 0) - kByteBias;
    const int64_t row = input.code.per_channel ? channel : 0;
    return input.code.is_table ? Table::load(input.code.rows + row * kTableWidth).decode(q)
                               : Knee::load(input.code.rows + row * kKneeWidth).decode(q);
  }
  return input.kind == Kind::kFloat  ? __uint_as_float(bits)
         : input.kind == Kind::kHalf ? __half2float(__ushort_as_half(static_cast<uint16_t>(bits)))
                                     : __uint_as_float(bits << 16);
}

__device__ __forceinline__ float one_value(const Input& input, int64_t offset, int64_t channel) {
  return value_of_bits(input, load_bits(input, offset), channel);
}

// The same to global memory where they are aligned and all there, each in one instruction: of stores that
// depend on conditions the compiler makes single words.
__device__ __forceinline__ void store_whole_four(void* to, Kind kind, int64_t offset, const float (&x)[4]) {
  if (kind == Kind::kFloat) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(static_cast<float*>(to) + offset),
                 "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                 : "memory");
    return;
  }
  uint32_t word[2];
  const auto halves = [&](int i) {
    const __half2 pair = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
    memcpy(&word[i], &pair, 4);
  };
  const auto bfloats = [&](int i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    memcpy(&word[i], &pair, 4);
  };
  if (kind == Kind::kHalf) {
    halves(0);
    halves(1);
  } else {
    bfloats(0);
    bfloats(1);
  }
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(static_cast<uint16_t*>(to) + offset), "r"(word[0]),
               "r"(word[1])
               : "memory");
}

__device__ __forceinline__ void store_four(void* to, Kind kind, int64_t offset, const float (&x)[4],
                                           bool aligned, int valid) {
  switch (kind) {
    case Kind::kCodes:
      return store_raw(static_cast<int8_t*>(to) + offset, pack<int8_t, 4>(x), aligned, valid);
    case Kind::kHalf:
      return store_raw(static_cast<__half*>(to) + offset, pack<__half, 4>(x), aligned, valid);
    case Kind::kBFloat16:
      return store_raw(static_cast<__nv_bfloat16*>(to) + offset, pack<__nv_bfloat16, 4>(x), aligned, valid);
    default:
      return store_raw(static_cast<float*>(to) + offset, pack<float, 4>(x), aligned, valid);
  }
}

}  // namespace dualscale
